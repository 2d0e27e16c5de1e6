"""Computes loss, top-1, top-5 and confusion matrix of a classifier's answers. Room: training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_efficientformer.images import of_channels
from keras_efficientformer.layers.image_normalization import model_inputs
from keras_efficientformer.training.data.batches import Batches, prefetched

# The logarithm of 0 is not finite, so probabilities count as this at least.
SMALLEST_PROBABILITY = np.finfo("float32").tiny


class NotFiniteError(ValueError):
    """A classifier answers with values that are not finite."""


@dataclass(frozen=True)
class Scores:
    """Results over a set of images.

    Attributes:
        loss: mean cross-entropy, or None where the answers are no probabilities.
        top1: share of images whose class has the highest score.
        top5: share whose class is among the five highest.
        confusion: int64 (classes, classes): row, the class that it is; column, the one that was answered.
    """

    loss: float | None
    top1: float
    top5: float
    confusion: np.ndarray

    def to_dict(self, labels: Sequence[str]) -> dict[str, Any]:
        """The results as plain values, ready for JSON; "classes" are those of which there are images."""
        rows = zip(labels, self.confusion.sum(1), np.diag(self.confusion), strict=True)
        classes = [
            {"label": n, "images": int(total), "top1": float(right / total)} for n, total, right in rows if total
        ]
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5, "classes": classes}


def count(answers: np.ndarray, targets: np.ndarray, probabilities: bool) -> Scores:
    """Scores of a classifier's answers.

    A class' rank counts the classes with higher values, and those with equal ones that come before it.

    Args:
        answers: probabilities or logits (images, classes), images >= 1.
        targets: integers (images,).
        probabilities: whether the answers are probabilities; of logits there is no loss.

    Raises:
        NotFiniteError: an answer is not finite.
    """
    if not np.isfinite(answers).all():
        raise NotFiniteError("The model answers with values that are not finite: its weights or its file are damaged.")
    images, classes = answers.shape
    own = answers[np.arange(images), targets][:, None]
    earlier = np.arange(classes) < targets[:, None]
    ranks = ((answers > own) | ((answers == own) & earlier)).sum(1)
    confusion = np.zeros((classes, classes), "int64")
    np.add.at(confusion, (targets, answers.argmax(1)), 1)
    loss = float(-np.log(np.maximum(own, SMALLEST_PROBABILITY)).mean()) if probabilities else None
    return Scores(loss, float((ranks < 1).mean()), float((ranks < 5).mean()), confusion)


def score(model: keras.Model, batches: Batches, epoch: int) -> Scores:
    """Scores of a Keras model with softmax on an epoch's batches of raw images.

    Raises:
        ValueError: there are no batches.
        NotFiniteError: the model's answers are not finite.
    """
    probabilities, targets = [], []
    size = 0
    for batch in prefetched(batches.epoch(epoch)):
        size = max(size, len(batch.images))
        # All batches have one shape, for another one would be compiled anew.
        taken = model_inputs(model, of_channels(batch.images, model.inputs[0].shape[3]))
        images = np.zeros((size, *taken.shape[1:]), "float32")
        images[: len(taken)] = taken
        found = keras.ops.convert_to_numpy(model.predict_on_batch(images))
        probabilities.append(found[: len(batch.images)])
        targets.append(batch.labels.argmax(1))
    if not targets:
        raise ValueError("The validation loader gave no batches.")
    return count(np.concatenate(probabilities), np.concatenate(targets), probabilities=True)
