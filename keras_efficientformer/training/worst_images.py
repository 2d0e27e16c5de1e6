"""Keeps the validation images that a classifier is worst at. Room: training."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from keras_efficientformer.pages.pictures import thumbnail
from keras_efficientformer.segmentation.palette import colour_values, drawn_over
from keras_efficientformer.training.data.batches import Batch
from keras_efficientformer.training.scores import SMALLEST_PROBABILITY, THRESHOLD, enlarged

IMAGES_KEPT = 24
# Of a mask.
CLASSES_SHOWN = 3
WRONG_COLOUR = colour_values(["#ff0000"])


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


class WorstMasks:
    """Looks at batches and their masks as they are scored, and keeps two dozen images.

    Attributes:
        confident: nothing: a mask is right and wrong in parts.
        worst: images of the highest loss, wrong pixels drawn in red, with shares of pixels in the place of scores.
    """

    confident: tuple[JudgedImage, ...] = ()

    def __init__(self) -> None:
        self.worst: list[JudgedImage] = []
        self._seen = 0

    def look(self, batch: Batch, answers: np.ndarray) -> None:
        """Takes a batch of raw images and masks in its turn, and its probabilities (batch, height, width, classes)."""
        for image, mask, answer in zip(batch.images, batch.labels, answers, strict=True):
            judged, scores = mask >= 0, enlarged(answer[None], mask.shape)[0]
            own = np.take_along_axis(scores, np.maximum(mask, 0)[..., None], -1)[judged]
            loss = float(-np.log(np.maximum(own, SMALLEST_PROBABILITY)).mean()) if judged.any() else 0.0
            found = scores.argmax(-1)
            if len(self.worst) < IMAGES_KEPT or loss > self.worst[-1].loss:
                wrong = np.where(judged & (found != mask), 0, -1)
                picture = thumbnail(drawn_over(image.astype("uint8"), wrong, WRONG_COLOUR))
                true, said = shares(mask[judged], scores.shape[-1]), shares(found, scores.shape[-1])
                judgement = JudgedImage(self._seen, tuple(true), tuple(said), 0.0, loss, picture)
                self.worst = _highest([*self.worst, judgement], lambda image: image.loss)
            self._seen += 1


def shares(mask: np.ndarray, classes: int, most: int = CLASSES_SHOWN) -> list[tuple[int, float]]:
    """(class, its share of the pixels) of the classes that have most pixels of a mask, largest first."""
    counts = np.bincount(mask.ravel(), minlength=classes)
    order = np.argsort(-counts, kind="stable")[:most]
    return [(int(place), float(counts[place] / mask.size)) for place in order if counts[place]]


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
