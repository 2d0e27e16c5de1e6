"""Keeps the validation images that a classifier is worst at. Room: training."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from keras_efficientformer.pages.pictures import thumbnail
from keras_efficientformer.training.data.batches import Batch
from keras_efficientformer.training.scores import SMALLEST_PROBABILITY, THRESHOLD

IMAGES_KEPT = 24


@dataclass(frozen=True)
class JudgedImage:
    """An image and what a classifier says of it.

    Attributes:
        place: its place in the epoch's order.
        true: (class, its score) of the class that it is of; of each of its labels where it may have several.
        predicted: the same of what was answered.
        confidence: in a mistake: the score of the class that was answered; of several labels, how far the worst is off.
        loss: cross-entropy, or the mean binary one.
        pixels: uint8 (height, width, 3), what the network sees, at most 160 pixels on each side.
    """

    place: int
    true: tuple[tuple[int, float], ...]
    predicted: tuple[tuple[int, float], ...]
    confidence: float
    loss: float
    pixels: np.ndarray

    @property
    def is_mistake(self) -> bool:
        return self.true != self.predicted


class WorstImages:
    """Looks at batches as they are scored, and keeps two dozen images of each kind.

    Args:
        multi_label: whether an image may have several labels.

    Attributes:
        confident: mistakes, the most confident first.
        worst: images of the highest loss, right ones among them where there are too few mistakes.
    """

    def __init__(self, multi_label: bool = False) -> None:
        self.confident: list[JudgedImage] = []
        self.worst: list[JudgedImage] = []
        self._multi_label = multi_label
        self._seen = 0

    def look(self, batch: Batch, answers: np.ndarray) -> None:
        """Takes a batch of raw images in its turn, and its scores in 0..1 (batch, classes)."""
        has, said, confidence, losses = (_several if self._multi_label else _single)(batch.labels, answers)
        wrong = (has != said).any(1)
        # Only of what may be kept a thumbnail is made.
        candidates = {*np.argsort(-losses, kind="stable")[:IMAGES_KEPT]}
        candidates |= {*np.argsort(np.where(wrong, -confidence, 1.0), kind="stable")[:IMAGES_KEPT]}
        judged = [
            JudgedImage(
                self._seen + int(row),
                _scored(has[row], answers[row]),
                _scored(said[row], answers[row]),
                float(confidence[row]),
                float(losses[row]),
                thumbnail(batch.images[row]),
            )
            for row in sorted(candidates)
        ]
        self._seen += len(answers)
        mistakes = [image for image in judged if image.is_mistake]
        self.confident = _highest([*self.confident, *mistakes], lambda image: image.confidence)
        self.worst = _highest([*self.worst, *judged], lambda image: image.loss)


# Which classes images are of and which are said, bool (images, classes); confidence and loss, float (images,).
Judgement = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _single(labels: np.ndarray, answers: np.ndarray) -> Judgement:
    rows, true, predicted = np.arange(len(answers)), labels.argmax(1), answers.argmax(1)
    classes = np.arange(answers.shape[1])
    losses = -np.log(np.maximum(answers[rows, true], SMALLEST_PROBABILITY))
    return true[:, None] == classes, predicted[:, None] == classes, answers[rows, predicted], losses


def _several(labels: np.ndarray, answers: np.ndarray) -> Judgement:
    right = np.where(labels > 0, answers, 1 - answers)
    losses = -np.log(np.maximum(right, SMALLEST_PROBABILITY)).mean(1)
    return labels > 0, answers >= THRESHOLD, 1 - right.min(1), losses


def _scored(chosen: np.ndarray, answers: np.ndarray) -> tuple[tuple[int, float], ...]:
    return tuple((int(place), float(answers[place])) for place in np.flatnonzero(chosen))


def _highest(images: Iterable[JudgedImage], key: Callable[[JudgedImage], float]) -> list[JudgedImage]:
    return sorted(images, key=key, reverse=True)[:IMAGES_KEPT]
