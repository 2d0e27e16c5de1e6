"""Makes batches of raw RGB images and soft labels, from a folder's files or a user's loader. Room: training/data.

A folder's batch is a function of the seed, the epoch and the step. A loader's cannot be; it is read from the epoch's
start and passed over up to the step, so a resumed run is bit-equal where the loader itself repeats its epochs.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import keras
import numpy as np

from keras_efficientformer.imagenet import load_image, resize_and_crop
from keras_efficientformer.training.config import FineTuneConfig
from keras_efficientformer.training.data.augmentation import BatchAugmentation, random_crop
from keras_efficientformer.training.data.image_folder import ImageSet

Item = TypeVar("Item")


class Batch(NamedTuple):
    """One batch.

    Attributes:
        images: float32 (batch, height, width, 3), raw RGB in 0..255.
        labels: float32 (batch, classes), rows that add up to 1.
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
                images = np.stack(list(threads.map(lambda place: self._load(epoch, place), places)))
                labels = one_hot(self._images.targets[places], self._classes)
                yield Batch(images.astype("float32"), labels, self._images.rows[places])

    def _load(self, epoch: int, place: int) -> np.ndarray:
        rng = np.random.default_rng([self._config.seed, epoch, place])
        image = load_image(self._images.files[place])
        if self._config.min_crop < 1:
            image = random_crop(image, self._size, self._config.min_crop, rng)
        else:
            image = resize_and_crop(image, self._size, self._config.crop_fraction)
        return image[:, ::-1] if self._config.flip and rng.random() < 0.5 else image


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

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for start in range(first_step * self._batch_size, len(self._images), self._batch_size):
                places = slice(start, start + self._batch_size)
                images = np.stack(list(threads.map(self._load, self._images.files[places])))
                labels = one_hot(self._images.targets[places], self._classes)
                yield Batch(images.astype("float32"), labels, self._images.rows[places])

    def _load(self, file: Path) -> np.ndarray:
        return resize_and_crop(load_image(file), self._size, self._crop_fraction)


class LoaderBatches:
    """Batches of a `keras.utils.PyDataset`, `tf.data.Dataset`, PyTorch `DataLoader` or iterable of (images, labels).

    Args:
        loader: gives batches of raw RGB images (batch, height, width, 3) in 0..255 and labels, integers (batch,) or
            (batch, 1) or rows of probabilities (batch, classes); has a length, of which no batch beyond is asked for;
            and can be iterated once for each epoch, before which its `set_epoch(epoch)` is called if it has one. A
            PyDataset's `on_epoch_begin` and `on_epoch_end` are called as Keras does.
        classes: number of classes.
        size: (height, width) that the images must have.

    Raises:
        ValueError: the loader does not know its length, is empty, or gives something else.
    """

    def __init__(self, loader: Any, classes: int, size: tuple[int, int]) -> None:
        self._loader, self._classes, self._size = loader, classes, size
        self._indexed, self._hooks_called = isinstance(loader, keras.utils.PyDataset), 0
        try:
            self.steps = len(loader)
        except TypeError as error:
            raise ValueError(
                f"The loader {loader!r} does not know how many batches it has, which the learning rate's schedule "
                f"needs ({error}). For tf.data call `dataset.apply(tf.data.experimental.assert_cardinality(batches))`."
            ) from error
        if not self.steps:
            raise ValueError(f"The loader {loader!r} has no batches. Check what it reads.")

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        if hasattr(self._loader, "set_epoch"):
            self._loader.set_epoch(epoch)
        self._call_hooks(2 * epoch + 1)
        batches = (self._loader[step] for step in range(self.steps)) if self._indexed else iter(self._loader)
        for step, batch in enumerate(itertools.islice(batches, self.steps)):
            if step >= first_step:
                yield self._checked(batch)
        self._call_hooks(2 * epoch + 2)

    def _call_hooks(self, count: int) -> None:
        """Calls a PyDataset's hooks, which alternate, up to so many in all: after a resume those of past epochs too."""
        for number in range(self._hooks_called, count if self._indexed else 0):
            self._loader.on_epoch_end() if number % 2 else self._loader.on_epoch_begin()
            self._hooks_called += 1

    def _checked(self, batch: Any) -> Batch:
        """What the loader gave, as a `Batch`."""
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            found = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
            raise ValueError(
                "The loader should give batches of two parts, (images, labels); for weights of classes there is "
                f"class_weight. Received: {found}"
            )
        images, labels = np.asarray(batch[0], "float32"), np.asarray(batch[1])
        if images.ndim != 4 or images.shape[1:] != (*self._size, 3):
            raise ValueError(
                f"The loader should give raw RGB images in 0..255 of shape (batch, {self._size[0]}, {self._size[1]}, "
                f"3), channels last; the size is the model's, or `size`. Received: {images.shape}"
            )
        if labels.ndim == 1 or labels.shape == (len(images), 1):
            labels = one_hot(labels.ravel().astype("int64"), self._classes)
        if labels.shape != (len(images), self._classes):
            raise ValueError(
                f"The loader should give labels of shape (batch,) or (batch, {self._classes}). "
                f"Received: {labels.shape} with {len(images)} images"
            )
        return Batch(images, labels.astype("float32"), None)


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
    """The same batches after RandAugment, MixUp and CutMix.

    Args:
        batches: of an epoch from `first_step` on.
        config: of the run.
        epoch, first_step: where they start.
        extend: Batch -> float32 labels (batch, n) that are to be mixed as the images are, and become the batch's.
    """
    augmentation = BatchAugmentation(config.rand_augment, config.mixup, config.cutmix)
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
