"""Makes batches of raw RGB images and soft labels from a folder's files. Room: training/data.

A batch is a function of the seed, the epoch and the step.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from keras_efficientformer.image_folders.image_folder import ImageSet
from keras_efficientformer.imagenet import load_image, resize_and_crop
from keras_efficientformer.training.config import FineTuneConfig
from keras_efficientformer.training.data.augmentation import BatchAugmentation, random_crop

Item = TypeVar("Item")


class Batch(NamedTuple):
    """One batch.

    Attributes:
        images: float32 (batch, height, width, 3), raw RGB in 0..255.
        labels: float32 (batch, classes), rows that add up to 1; or, where an image may have several labels or none,
            values in 0..1; or masks, int32 (batch, height, width), the class of each pixel, -1 where it has none.
        rows: int64 (batch,), `ImageSet.rows` of the images, or None where they come from a loader.
    """

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray | None


class Batches(Protocol):
    """A source of batches.

    Attributes:
        steps: number of batches in an epoch.
    """

    steps: int

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from `first_step` on."""


class TrainingImages:
    """Images of a folder, shuffled, cropped and mirrored at random; what is left over at an epoch's end is dropped.

    Args:
        images: the files.
        classes: number of classes.
        size: (height, width).
        config: of the run.
        process: number of this process.
        processes: how many processes share a batch; each decodes its own part.

    Raises:
        ValueError: there are fewer images than in one batch.
    """

    def __init__(
        self,
        images: ImageSet,
        classes: int,
        size: tuple[int, int],
        config: FineTuneConfig,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self._images, self._classes, self._size, self._config = images, classes, size, config
        self._batch_size = config.batch_size
        self._part = slice(process, None, processes)
        self.steps = len(images) // self._batch_size
        if not self.steps:
            raise ValueError(
                f"There are {len(images)} training images, fewer than one batch of {self._batch_size}: "
                "add images, or make batch_size smaller."
            )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        order = np.random.default_rng([self._config.seed, epoch]).permutation(len(self._images))
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for step in range(first_step, self.steps):
                places = order[step * self._batch_size : (step + 1) * self._batch_size][self._part]
                images, targets = zip(*threads.map(lambda place: self._load(epoch, place), places), strict=True)
                labels = self._labels(np.stack(targets))
                yield Batch(np.stack(images).astype("float32"), labels, self._images.rows[places])

    def _load(self, epoch: int, place: int) -> tuple[np.ndarray, Any]:
        """An image and its target."""
        rng = np.random.default_rng([self._config.seed, epoch, place])
        image = load_image(self._images.files[place])
        if self._config.min_crop < 1:
            image = random_crop(image, self._size, self._config.min_crop, rng)
        else:
            image = resize_and_crop(image, self._size, self._config.crop_fraction)
        flipped = self._config.flip and rng.random() < 0.5
        return image[:, ::-1] if flipped else image, self._images.targets[place]

    def _labels(self, targets: np.ndarray) -> np.ndarray:
        """What a batch has as its labels."""
        return label_rows(targets, self._classes)


class ValidationImages:
    """Images of a folder as evaluation sees them, in their order; the last batch may be smaller.

    Args:
        images: the files.
        classes: number of classes.
        size: (height, width).
        crop_fraction: as for `imagenet.resize_and_crop`.
        batch_size: images in a batch.
    """

    def __init__(
        self, images: ImageSet, classes: int, size: tuple[int, int], crop_fraction: float, batch_size: int
    ) -> None:
        self._images, self._classes, self._size = images, classes, size
        self._crop_fraction, self._batch_size = crop_fraction, batch_size
        self.steps = -(-len(images) // batch_size)

    @property
    def names(self) -> tuple[str, ...]:
        """What the images are called, each with its folder, in their order."""
        return self._images.names

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for start in range(first_step * self._batch_size, len(self._images), self._batch_size):
                places = slice(start, start + self._batch_size)
                found = threads.map(self._load, self._images.files[places], self._images.targets[places])
                images, targets = zip(*found, strict=True)
                labels = self._labels(np.stack(targets))
                yield Batch(np.stack(images).astype("float32"), labels, self._images.rows[places])

    def _load(self, file: Path, target: Any) -> tuple[np.ndarray, Any]:
        """An image and its target."""
        return resize_and_crop(load_image(file), self._size, self._crop_fraction), target

    def _labels(self, targets: np.ndarray) -> np.ndarray:
        """What a batch has as its labels."""
        return label_rows(targets, self._classes)


def label_rows(targets: np.ndarray, classes: int) -> np.ndarray:
    """`ImageSet.targets` as float32 rows (batch, classes)."""
    return one_hot(targets, classes) if targets.ndim == 1 else targets.astype("float32")


def one_hot(targets: np.ndarray, classes: int) -> np.ndarray:
    """Integers (batch,) as float32 rows (batch, classes).

    Raises:
        ValueError: an integer is no class.
    """
    if len(targets) and not 0 <= targets.min() <= targets.max() < classes:
        raise ValueError(f"Labels should be in the range [0, {classes}). Received: {targets.min()} to {targets.max()}")
    return np.eye(classes, dtype="float32")[targets]


def augmented(
    batches: Iterator[Batch],
    config: FineTuneConfig,
    epoch: int,
    first_step: int,
    extend: Callable[[Batch], np.ndarray],
) -> Iterator[Batch]:
    """The same batches after changes of colours, RandAugment, MixUp and CutMix.

    Args:
        batches: of an epoch from `first_step` on.
        config: of the run.
        epoch, first_step: where they start.
        extend: Batch -> float32 labels (batch, n) that are to be mixed as the images are, and become the batch's.
    """
    augmentation = BatchAugmentation(config.rand_augment, config.mixup, config.cutmix, config.color_jitter)
    for step, batch in enumerate(batches, first_step):
        images, labels = augmentation(batch.images, extend(batch), [config.seed, epoch, step, 1])
        yield Batch(images, labels, batch.rows)


def prefetched(batches: Iterator[Item]) -> Iterator[Item]:
    """The same items, none of them None, each made in another thread while the one before it is used."""
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(next, batches, None)
        while (batch := future.result()) is not None:
            future = executor.submit(next, batches, None)
            yield batch
