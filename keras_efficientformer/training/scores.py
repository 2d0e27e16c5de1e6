"""Computes what answers are worth: top-1, top-5, confusion; average precision; IoU of masks. Room: training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np

from keras_efficientformer.images import of_channels
from keras_efficientformer.layers.image_normalization import model_inputs
from keras_efficientformer.training.data.batches import Batch, Batches, prefetched

# The logarithm of 0 is not finite, so probabilities count as this at least.
SMALLEST_PROBABILITY = np.finfo("float32").tiny
# An image has the labels whose scores are at least this.
THRESHOLD = 0.5


class NotFiniteError(ValueError):
    """A classifier answers with values that are not finite."""


class ClassScores:
    """What results have that say of each class how well it is found."""

    # What a class is measured by in `to_dict`, and how that is said.
    measure: ClassVar[str]
    words: ClassVar[str]

    def to_dict(self, labels: Sequence[str]) -> dict[str, Any]:
        """The results as plain values, ready for JSON."""
        raise NotImplementedError

    def worst(self, labels: Sequence[str]) -> list[tuple[str, str]]:
        """(label, its scores in words) of each class with images, the worst first."""
        found = [row for row in self.to_dict(labels)["classes"] if row[self.measure] is not None]
        return [(row["label"], self.words.format(**row)) for row in sorted(found, key=lambda row: row[self.measure])]


@dataclass(frozen=True)
class Scores(ClassScores):
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

    measure: ClassVar[str] = "top1"
    words: ClassVar[str] = "{top1:.1%} of {images}"

    @property
    def summary(self) -> dict[str, float]:
        """{name: share in [0, 1]} of what is said first."""
        return {"top-1": self.top1, "top-5": self.top5}

    @property
    def row(self) -> dict[str, float]:
        """What a run's history has of them."""
        assert self.loss is not None  # the answers of softmax are probabilities, of which there is a loss
        return {"val_loss": self.loss, "val_accuracy": self.top1, "val_top5": self.top5}

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
    _check_answers(answers)
    images, classes = answers.shape
    own = answers[np.arange(images), targets][:, None]
    earlier = np.arange(classes) < targets[:, None]
    ranks = ((answers > own) | ((answers == own) & earlier)).sum(1)
    confusion = np.zeros((classes, classes), "int64")
    np.add.at(confusion, (targets, answers.argmax(1)), 1)
    loss = float(-np.log(np.maximum(own, SMALLEST_PROBABILITY)).mean()) if probabilities else None
    return Scores(loss, float((ranks < 1).mean()), float((ranks < 5).mean()), confusion)


@dataclass(frozen=True)
class MultiLabelScores(ClassScores):
    """Results over a set of images that may have several labels or none.

    Attributes:
        loss: mean binary cross-entropy.
        accuracy: share of right answers, of each label of each image, at `THRESHOLD`.
        average_precision: float64 (classes,), scikit-learn's, not-a-number for labels that no image has.
        positives: int64 (classes,), how many images have each label.
        answered: int64 (classes,), how many are said to have it.
        right: int64 (classes,), how many have it of those.
    """

    loss: float
    accuracy: float
    average_precision: np.ndarray
    positives: np.ndarray
    answered: np.ndarray
    right: np.ndarray

    measure: ClassVar[str] = "average_precision"
    words: ClassVar[str] = "average precision {average_precision:.1%}, F1 {f1:.1%}, {images} images"

    @property
    def mean_average_precision(self) -> float:
        """The mean over the labels that an image has."""
        return float(np.nanmean(self.average_precision))

    @property
    def summary(self) -> dict[str, float]:
        """{name: share in [0, 1]} of what is said first."""
        return {"mean average precision": self.mean_average_precision, "label accuracy": self.accuracy}

    @property
    def row(self) -> dict[str, float]:
        """What a run's history has of them."""
        return {"val_loss": self.loss, "val_accuracy": self.accuracy, "val_map": self.mean_average_precision}

    def to_dict(self, labels: Sequence[str]) -> dict[str, Any]:
        """The results as plain values, ready for JSON; None for shares of nothing."""
        classes = [
            {
                "label": label,
                "images": int(positives),
                "average_precision": float(average) if positives else None,
                "precision": _share(right, answered),
                "recall": _share(right, positives),
                "f1": _share(2 * right, answered + positives),
            }
            for label, positives, average, right, answered in zip(
                labels, self.positives, self.average_precision, self.right, self.answered, strict=True
            )
        ]
        return {
            "loss": self.loss,
            "mean_average_precision": self.mean_average_precision,
            "accuracy": self.accuracy,
            "threshold": THRESHOLD,
            "classes": classes,
        }


@dataclass(frozen=True)
class MaskScores(ClassScores):
    """Results over the pixels of a set of images; those that no mask judges are left out.

    Attributes:
        loss: mean cross-entropy of a pixel, or None where the answers are no probabilities.
        confusion: int64 (classes, classes), numbers of pixels: row, the class that it is; column, the one answered.
    """

    loss: float | None
    confusion: np.ndarray

    measure: ClassVar[str] = "iou"
    words: ClassVar[str] = "IoU {iou:.1%}, {pixels:,} pixels"

    @property
    def iou(self) -> np.ndarray:
        """float64 (classes,): right pixels over those that are or were answered so; not-a-number where none is."""
        right = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - right
        return np.divide(right, union, out=np.full(len(right), np.nan), where=union > 0)

    @property
    def mean_iou(self) -> float:
        """The mean over the classes that a pixel is or was answered, as `keras.metrics.MeanIoU` has it."""
        return float(np.nanmean(self.iou))

    @property
    def accuracy(self) -> float:
        """Share of right pixels."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def summary(self) -> dict[str, float]:
        """{name: share in [0, 1]} of what is said first."""
        return {"mean IoU": self.mean_iou, "pixel accuracy": self.accuracy}

    @property
    def row(self) -> dict[str, float]:
        """What a run's history has of them."""
        assert self.loss is not None  # the answers of softmax are probabilities, of which there is a loss
        return {"val_loss": self.loss, "val_accuracy": self.accuracy, "val_miou": self.mean_iou}

    def to_dict(self, labels: Sequence[str]) -> dict[str, Any]:
        """The results as plain values, ready for JSON; None for the IoU of a class of no pixels."""
        rows = zip(labels, self.confusion.sum(1), self.iou, strict=True)
        classes = [{"label": n, "pixels": int(k), "iou": None if np.isnan(iou) else float(iou)} for n, k, iou in rows]
        return {"loss": self.loss, "mean_iou": self.mean_iou, "accuracy": self.accuracy, "classes": classes}


AnyScores = Scores | MultiLabelScores | MaskScores
# Is shown each batch with its answers.
Look = Callable[[Batch, np.ndarray], None]


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def count_multi_label(answers: np.ndarray, rows: np.ndarray) -> MultiLabelScores:
    """Scores of a classifier's answers.

    Args:
        answers: scores in 0..1, each by itself, (images, classes), images >= 1.
        rows: 0 and 1 (images, classes).

    Raises:
        NotFiniteError: an answer is not finite.
        ValueError: labels are not 0 or 1, or no image has one.
    """
    _check_answers(answers)
    if not np.isin(rows, (0, 1)).all() or not rows.any():
        raise ValueError(
            "The images that a model is validated on should have labels of 0 and 1, some of them 1. "
            f"Received: {rows.min():g} to {rows.max():g}"
        )
    losses = keras.losses.binary_crossentropy(rows.astype("float32"), answers.astype("float32"))
    has, said = rows > 0, answers >= THRESHOLD
    return MultiLabelScores(
        float(keras.ops.convert_to_numpy(losses).mean()),
        float((has == said).mean()),
        np.array([_average_precision(*columns) for columns in zip(answers.T, has.T, strict=True)]),
        has.sum(0),
        said.sum(0),
        (has & said).sum(0),
    )


def _average_precision(scores: np.ndarray, has: np.ndarray) -> float:
    """The area under the steps of precision over recall, as scikit-learn has it; images of equal score are one step."""
    if not has.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    found = np.cumsum(has[order])[ends]
    return float(np.sum(np.diff(found, prepend=0) * found / (ends + 1)) / found[-1])


class MaskCounter:
    """Counts the pixels of batches as they are answered.

    Args:
        classes: how many there are.
        probabilities: whether the answers are probabilities; of logits there is no loss.
    """

    def __init__(self, classes: int, probabilities: bool) -> None:
        self._confusion = np.zeros((classes, classes), "int64")
        self._loss, self._probabilities = 0.0, probabilities

    def add(self, masks: np.ndarray, answers: np.ndarray) -> None:
        """Counts a batch.

        Args:
            masks: int32 (batch, height, width), the class of each pixel, below 0 where it is not judged.
            answers: probabilities or logits (batch, height, width, classes), or smaller, then enlarged, bilinear.

        Raises:
            NotFiniteError: an answer is not finite.
        """
        _check_answers(answers)
        classes = len(self._confusion)
        # One image after another, because the answers to a batch may be gigabytes.
        for mask, answer in zip(masks, answers, strict=True):
            judged = mask >= 0
            true, found = mask[judged], enlarged(answer[None], mask.shape)[0][judged]
            pairs = np.bincount(true * classes + found.argmax(-1), minlength=classes**2)
            self._confusion += pairs.reshape(classes, classes)
            if self._probabilities:
                own = np.take_along_axis(found, true[:, None], -1)
                self._loss -= float(np.log(np.maximum(own, SMALLEST_PROBABILITY)).sum(dtype="float64"))

    def scores(self) -> MaskScores:
        """The results so far.

        Raises:
            ValueError: no pixel was judged.
        """
        pixels = int(self._confusion.sum())
        if not pixels:
            raise ValueError("The masks to validate on have no pixel of any class: all of them are left out.")
        return MaskScores(self._loss / pixels if self._probabilities else None, self._confusion)


def enlarged(answers: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Answers (batch, h, w, classes) at a size (height, width), bilinear, as they are where they have it."""
    if answers.shape[1:3] == tuple(size):
        return answers
    return keras.ops.convert_to_numpy(
        keras.ops.image.resize(answers, size, interpolation="bilinear", data_format="channels_last")
    )


def _check_answers(answers: np.ndarray) -> None:
    if not np.isfinite(answers).all():
        raise NotFiniteError("The model answers with values that are not finite: its weights or its file are damaged.")


def score(
    model: keras.Model,
    batches: Batches,
    epoch: int,
    multi_label: bool = False,
    look: Look | None = None,
) -> AnyScores:
    """Scores of a Keras model with softmax, or with a sigmoid for `multi_label`, on an epoch's batches of raw images.

    Args:
        model: the classifier.
        batches: of the images.
        epoch: which of them.
        multi_label: whether an image may have several labels.
        look: is shown each batch with its answers (batch, classes).

    Raises:
        ValueError: there are no batches, or their labels are unfit.
        NotFiniteError: the model's answers are not finite.
    """
    answers, rows = [], []
    for batch, found in _answered(model, batches, epoch):
        answers.append(found)
        rows.append(batch.labels)
        if look is not None:
            look(batch, found)
    if not rows:
        raise ValueError("The validation loader gave no batches.")
    if multi_label:
        return count_multi_label(np.concatenate(answers), np.concatenate(rows))
    return count(np.concatenate(answers), np.concatenate(rows).argmax(1), probabilities=True)


def score_masks(
    model: keras.Model,
    batches: Batches,
    epoch: int,
    look: Look | None = None,
) -> MaskScores:
    """Scores of a Keras model that gives masks of probabilities; arguments and errors are those of `score`."""
    counter = MaskCounter(model.outputs[0].shape[-1], probabilities=True)
    for batch, found in _answered(model, batches, epoch):
        counter.add(batch.labels, found)
        if look is not None:
            look(batch, found)
    return counter.scores()


def _answered(model: keras.Model, batches: Batches, epoch: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """Each batch of an epoch, and what a Keras model answers to its images."""
    size = 0
    for batch in prefetched(batches.epoch(epoch)):
        size = max(size, len(batch.images))
        # All batches have one shape, for another one would be compiled anew.
        taken = model_inputs(model, of_channels(batch.images, model.inputs[0].shape[3]))
        images = np.zeros((size, *taken.shape[1:]), "float32")
        images[: len(taken)] = taken
        found = keras.ops.convert_to_numpy(model.predict_on_batch(images))
        yield batch, found[: len(batch.images)]
