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
        ValueError: it does not know as many classes, or scores have another shape than (images, classes).
    """
    if teacher is None:
        return None
    if isinstance(teacher, np.ndarray):
        return Teacher(_lookup(teacher, classes, images), fixed=True)
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
    if scores.shape != (images, classes):
        raise ValueError(
            f"Precomputed teacher scores should have the shape ({images}, {classes}): a row for each image of the "
            f"folder, in the order of `list_images`, and a column for each class. Received: {scores.shape}"
        )
    choices = scores.argmax(-1)
    return lambda batch: one_hot(choices[batch.rows], classes)


def _ask_model(model):
    height, width = model.inputs[0].shape[1:3]

    def ask(images):
        if height and images.shape[1:3] != (height, width):
            images = keras.ops.convert_to_numpy(keras.ops.image.resize(images, (height, width), antialias=True))
        scores = model.predict_on_batch(preprocess_input(images))
        return scores[0] if isinstance(scores, list) else scores

    return ask
