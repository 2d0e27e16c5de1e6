"""Whoever sets the second head's task in distillation: a model, a function, or scores that were computed before.

Hard distillation, as the reference trains: the label is the class with the teacher's highest score (DeiT, arXiv
2012.12877, section 4; snap-research/EfficientFormer, util/losses.py). A teacher that is asked sees the images that the
student sees, augmented; scores from before are of the images as they are, and are mixed as MixUp and CutMix mix labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.training.batches import Batch, one_hot


@dataclass(frozen=True)
class Teacher:
    """A teacher.

    Attributes:
        labels: Batch -> float32 (batch, classes), one class in each row.
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
        ValueError: it is none of these, does not know as many classes, or scores have another shape than
            (images, classes).
    """
    if teacher is None:
        return None
    if isinstance(teacher, np.ndarray):
        return Teacher(_lookup(teacher, classes, images), fixed=True)
    if not callable(teacher):
        raise ValueError(
            "A teacher should be a keras.Model, a function of raw images, or a NumPy array of scores. "
            f"Received: {type(teacher).__name__}"
        )
    ask = _ask_model(teacher) if isinstance(teacher, keras.Model) else teacher

    def labels(batch):
        scores = np.asarray(ask(batch.images))
        if scores.shape != (len(batch.images), classes):
            raise ValueError(
                f"The teacher should give scores of shape ({len(batch.images)}, {classes}), a column for each class of "
                f"the data. Received: {scores.shape}"
            )
        return one_hot(scores.argmax(-1), classes)

    return Teacher(labels, fixed=False)


def _lookup(scores, classes, images):
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


def _ask_model(model):
    def ask(images):
        scores = model.predict_on_batch(preprocess_input(images))
        return scores[0] if isinstance(scores, list) else scores

    return resizing(ask, model.inputs[0].shape[1:3])


def resizing(ask: Callable[[np.ndarray], np.ndarray], size: tuple[int | None, int | None]) -> Callable:
    """The same function of images (batch, height, width, 3), for images of any size.

    Args:
        ask: the function.
        size: (height, width) that it takes, or (None, None) where it takes any.
    """

    def ask_resized(images):
        if None not in size and images.shape[1:3] != tuple(size):
            images = keras.ops.convert_to_numpy(keras.ops.image.resize(images, size, antialias=True))
        return ask(images)

    return ask_resized
