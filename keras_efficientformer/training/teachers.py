"""Makes the second head's labels in distillation: of a model, a function or precomputed scores. Room: training.

Hard distillation, as the reference trains: the label is the class with the teacher's highest score (DeiT, arXiv
2012.12877, section 4; snap-research/EfficientFormer, util/losses.py). A teacher that is asked sees the images that the
student sees, augmented; scores from before are of the images as they are, and are mixed as MixUp and CutMix mix labels.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_efficientformer.classifiers.opening import open_classifier
from keras_efficientformer.layers.image_normalization import model_inputs
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


def open_teacher(teacher: Any, classes: int, images: int | None) -> Teacher | None:
    """The teacher that `finetune`'s argument stands for; None for None.

    Args:
        teacher: as for `finetune`.
        classes: how many it must know.
        images: how many images the folder has, or None where the data come from a loader.

    Raises:
        ValueError, OSError, ImportError: a model's name stands for none, or as `open_classifier`.
        ValueError: it is none of these, does not know as many classes, or scores have another shape than
            (images, classes).
    """
    if teacher is None:
        return None
    if isinstance(teacher, np.ndarray):
        return Teacher(_lookup(teacher, classes, images), fixed=True)
    if isinstance(teacher, str | os.PathLike):
        classifier = open_classifier(teacher)
        teacher = resizing(classifier.predict, classifier.size)
    if not callable(teacher):
        raise ValueError(
            "A teacher should be a keras.Model, a function of raw images, a NumPy array of scores, or a model's name. "
            f"Received: {type(teacher).__name__}"
        )
    ask = _ask_model(teacher) if isinstance(teacher, keras.Model) else teacher

    def labels(batch: Batch) -> np.ndarray:
        scores = np.asarray(ask(batch.images))
        if scores.shape != (len(batch.images), classes):
            raise ValueError(
                f"The teacher should give scores of shape ({len(batch.images)}, {classes}), a column for each class of "
                f"the data. Received: {scores.shape}"
            )
        return one_hot(scores.argmax(-1), classes)

    return Teacher(labels, fixed=False)


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
        scores = model.predict_on_batch(model_inputs(model, images))
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
            images = keras.ops.convert_to_numpy(keras.ops.image.resize(images, size, antialias=True))
        return ask(images)

    return ask_resized
