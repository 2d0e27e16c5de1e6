"""Reads batches of raw RGB images and labels from a user's loader, and checks what it gives. Room: training/data.

A loader's batch cannot be a function of seed, epoch and step; it is read from the epoch's start and passed over up to
the step, so a resumed run is bit-equal where the loader itself repeats its epochs.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_efficientformer.errors import listing
from keras_efficientformer.images import IMAGE_KEYS, check_raw
from keras_efficientformer.training.data.batches import Batch, one_hot

# Where a loader gives dictionaries, as those of tensorflow-datasets and of Hugging Face do, the parts are called so.
PARTS = (IMAGE_KEYS, ("label", "labels"))
# Rows of mixed or smoothed labels add up to 1 but for rounding, in bfloat16 too.
LABEL_SUM_TOLERANCE = 0.01


class LoaderBatches:
    """Batches of a `keras.utils.PyDataset`, `tf.data.Dataset`, PyTorch `DataLoader` or iterable of (images, labels).

    Args:
        loader: gives batches of raw RGB images (batch, height, width, 3) in 0..255 and labels, whole numbers (batch,)
            or (batch, 1) or rows of probabilities (batch, classes), as pairs or as dictionaries; has a length, of
            which no batch beyond is asked for; and can be iterated once for each epoch, before which its
            `set_epoch(epoch)` is called if it has one. A PyDataset's `on_epoch_begin` and `on_epoch_end` are called as
            Keras does.
        classes: number of classes.
        size: (height, width) that the images must have.
        multi_label: whether labels are rows (batch, classes) of values in 0..1, each by itself, instead.

    Raises:
        ValueError: the loader does not know its length, is empty, or gives something else.
    """

    def __init__(self, loader: Any, classes: int, size: tuple[int, int], multi_label: bool = False) -> None:
        self._loader, self._classes, self._size = loader, classes, size
        self._read_labels = _multi_label_rows if multi_label else _probability_rows
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

    def _checked(self, item: Any) -> Batch:
        """What the loader gave, as a `Batch`."""
        found, labels = map(np.asarray, _parts(item))
        if found.ndim != 4 or found.shape[1:] != (*self._size, 3):
            raise ValueError(
                f"The loader should give raw RGB images in 0..255 of shape (batch, {self._size[0]}, {self._size[1]}, "
                f"3), channels last; the size is the model's, or `size`. Received: {found.shape}"
            )
        images = found.astype("float32")
        # The training loop says at which step values were not finite.
        if np.isfinite(images).all():
            check_raw(found)
        return Batch(images, self._read_labels(_numbers(labels), len(images), self._classes), None)


def _parts(item: Any) -> tuple[Any, Any]:
    """The images and the labels of a loader's batch: two parts, or those of a dictionary that are called so."""
    if isinstance(item, Mapping):
        found = [next((name for name in names if name in item), None) for names in PARTS]
        if None in found:
            expected = " and ".join(" or ".join(map(repr, names)) for names in PARTS)
            raise ValueError(
                f"The loader gives dictionaries, which should have {expected}. "
                f"Received: {listing(list(map(repr, item)))}"
            )
        return item[found[0]], item[found[1]]
    if not isinstance(item, tuple | list) or len(item) != 2:
        received = f"{len(item)} parts" if isinstance(item, tuple | list) else type(item).__name__
        raise ValueError(
            "The loader should give batches of two parts, (images, labels); for weights of classes there is "
            f"class_weight. Received: {received}"
        )
    return item[0], item[1]


def _numbers(labels: np.ndarray) -> np.ndarray:
    """A loader's labels, which are numbers."""
    if labels.dtype.kind not in "biuf":
        raise ValueError(
            f"The loader should give labels that are numbers: the classes' places in `labels`. "
            f"Received: {listing([repr(label) for label in labels.ravel().tolist()])}"
        )
    return labels


def _probability_rows(labels: np.ndarray, images: int, classes: int) -> np.ndarray:
    """Labels of one class for each image as float32 rows of probabilities (images, classes)."""
    if labels.shape in ((images,), (images, 1)):
        numbers = labels.ravel()
        whole = numbers[np.isfinite(numbers)]
        if len(whole) < images or (whole != np.round(whole)).any():
            raise ValueError(
                "The loader should give labels that are whole numbers, or rows of probabilities (batch, "
                f"{classes}). Received: {listing([f'{number:g}' for number in numbers.tolist()])}"
            )
        return one_hot(numbers.astype("int64"), classes)
    if labels.shape != (images, classes):
        raise ValueError(
            f"The loader should give labels of shape (batch,) or (batch, {classes}). "
            f"Received: {labels.shape} with {images} images"
        )
    rows = labels.astype("float32")
    if np.isfinite(rows).all():  # as for images
        unfit = np.flatnonzero((rows < 0).any(1) | (np.abs(rows.sum(1) - 1) > LABEL_SUM_TOLERANCE))
        if len(unfit):
            raise ValueError(
                "The loader should give rows of labels that are probabilities, none under 0, which add up to 1: each "
                "image has one class, where multi_label does not say otherwise. "
                f"Received: {listing([f'{value:g}' for value in rows[unfit[0]].tolist()])}"
            )
    return rows


def _multi_label_rows(labels: np.ndarray, images: int, classes: int) -> np.ndarray:
    """Labels of which an image may have several as float32 rows (images, classes)."""
    if labels.shape != (images, classes):
        raise ValueError(
            f"With multi_label the loader should give labels of shape (batch, {classes}): a row for each image, 1 for "
            f"each class that it has, else 0. Received: {labels.shape} with {images} images"
        )
    rows = labels.astype("float32")
    unfit = np.flatnonzero(((rows < 0) | (rows > 1)).any(1))  # not-a-number is neither, as for images
    if len(unfit):
        raise ValueError(
            "With multi_label the loader should give rows of labels in 0..1. "
            f"Received: {listing([f'{value:g}' for value in rows[unfit[0]].tolist()])}"
        )
    return rows
