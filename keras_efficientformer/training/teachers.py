"""Makes the second head's labels in distillation: of a model, a function or precomputed scores. Room: training.

Hard distillation, as the reference trains: the label is the class with the teacher's highest score (DeiT, arXiv
2012.12877, section 4; snap-research/EfficientFormer, util/losses.py). A teacher that is asked sees the images that the
student sees, augmented; scores from before are of the images as they are, and are mixed as MixUp and CutMix mix labels.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_efficientformer.classifiers.opening import open_classifier
from keras_efficientformer.errors import listing
from keras_efficientformer.image_folders.class_places import class_places
from keras_efficientformer.images import of_channels
from keras_efficientformer.layers.image_normalization import model_inputs
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.training.data.batches import Batch, one_hot


@dataclass(frozen=True)
class Teacher:
    """What labels the images for the second head.

    Attributes:
        labels: Batch -> float32 (batch, classes), rows of a single 1.
        fixed: whether they are of the images before augmentation.
    """

    labels: Callable[[Batch], np.ndarray]
    fixed: bool


def open_teacher(teacher: Any, labels: Sequence[str], images: int | None) -> Teacher | None:
    """The teacher that `finetune`'s argument stands for; None for None.

    Args:
        teacher: as for `finetune`.
        labels: the classes that it must know. Where it says itself what they are called, its scores are taken in this
            order.
        images: how many images the folder has, or None where the data come from a loader.

    Raises:
        ValueError, OSError, ImportError: a model's name stands for none, or as `open_classifier`.
        ValueError: it is none of these, does not know as many classes, calls them otherwise, or scores have another
            shape than (images, classes).
    """
    if teacher is None:
        return None
    classes = len(labels)
    if isinstance(teacher, np.ndarray):
        return Teacher(_lookup(teacher, classes, images), fixed=True)
    places = None
    if isinstance(teacher, str | os.PathLike):
        classifier = open_classifier(teacher)
        places = _places(labels, classifier.labels)
        channels, predict = classifier.channels, classifier.predict
        teacher = resizing(lambda pixels: predict(of_channels(pixels, channels)), classifier.size)
    elif isinstance(teacher, keras.Model):
        places = _places(labels, labels_of(teacher))
    if not callable(teacher):
        raise ValueError(
            "A teacher should be a keras.Model, a function of raw images, a NumPy array of scores, or a model's name. "
            f"Received: {type(teacher).__name__}"
        )
    ask = _ask_model(teacher) if isinstance(teacher, keras.Model) else teacher

    def choices(batch: Batch) -> np.ndarray:
        scores = np.asarray(ask(batch.images))
        if scores.shape != (len(batch.images), classes):
            raise ValueError(
                f"The teacher should give scores of shape ({len(batch.images)}, {classes}), a column for each class of "
                f"the data. Received: {scores.shape}"
            )
        return one_hot((scores if places is None else scores[:, places]).argmax(-1), classes)

    return Teacher(choices, fixed=False)


def _places(labels: Sequence[str], known: Sequence[str] | None) -> list[int] | None:
    """The place of each label among a teacher's classes, `known`, in the order of its scores; None where that order is
    the labels', or not known and taken to be that.

    Raises:
        ValueError: the teacher's classes are others.
    """
    if known is None or tuple(known) == tuple(labels):
        return None
    try:
        places, _, _ = class_places(Path("The data"), labels, len(known), known)
    except ValueError as error:
        raise ValueError(
            f"The teacher's classes, {listing(known)}, are not those of the data, {listing(labels)}. {error} Pass a "
            "teacher that was trained on these classes, or a function that gives scores in their order."
        ) from error
    return places


def _lookup(scores: np.ndarray, classes: int, images: int | None) -> Callable[[Batch], np.ndarray]:
    """The labels of precomputed scores, by the rows of a batch's images."""
    if images is None:
        raise ValueError(
            "Precomputed teacher scores need a folder: a loader does not say which images it gives. Pass a model or a "
            "function as the teacher."
        )
    if scores.shape != (images, classes):
        raise ValueError(
            f"Precomputed teacher scores should have the shape ({images}, {classes}): a row for each image of the "
            f"folder, in the order of `list_images`, and a column for each class. Received: {scores.shape}"
        )
    choices = scores.argmax(-1)
    return lambda batch: one_hot(choices[batch.rows], classes)


def _ask_model(model: keras.Model) -> Callable[[np.ndarray], Any]:
    """A function of raw images that gives a model's scores; of two heads, those of the one trained on labels."""

    def ask(images: np.ndarray) -> Any:
        scores = model.predict_on_batch(model_inputs(model, of_channels(images, model.inputs[0].shape[3])))
        return scores[0] if isinstance(scores, list) else scores

    return resizing(ask, model.inputs[0].shape[1:3])


def resizing(ask: Callable[[np.ndarray], Any], size: tuple[int | None, int | None]) -> Callable[[np.ndarray], Any]:
    """A function of images (batch, height, width, 3) that resizes them to the one size that another takes.

    Args:
        ask: the function that is called with the resized images.
        size: (height, width) that it takes, or (None, None) where it takes any.
    """

    def ask_resized(images: np.ndarray) -> Any:
        if None not in size and images.shape[1:3] != tuple(size):
            images = keras.ops.convert_to_numpy(
                keras.ops.image.resize(images, size, antialias=True, data_format="channels_last")
            )
        return ask(images)

    return ask_resized
