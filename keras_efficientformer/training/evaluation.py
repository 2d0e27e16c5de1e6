"""Evaluates a model on a folder of images: top-1, top-5, confusion matrix, speed. Room: training."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_efficientformer.classifiers import Classifier, KerasClassifier, open_classifier
from keras_efficientformer.imagenet import imagenet_labels, read_labels
from keras_efficientformer.training.data.batches import Batch, ValidationImages, prefetched
from keras_efficientformer.training.data.image_folder import ImageSet, list_images, without_unreadable
from keras_efficientformer.training.data.imagenet_layout import is_flat, read_flat
from keras_efficientformer.training.scores import Scores, count


@dataclass(frozen=True)
class EvaluationReport:
    """The results of an evaluation.

    Attributes:
        model: the file's name.
        folder: of the images.
        images: how many were classified.
        scores: top-1, top-5 and the confusion matrix.
        labels: class names in the order of the outputs.
        images_per_second: of prediction alone, without the first batch, which compiles.
        skipped: {path: reason} of images that were left out.
    """

    model: str
    folder: str
    images: int
    scores: Scores
    labels: tuple[str, ...]
    images_per_second: float
    skipped: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, without the confusion matrix."""
        scores = self.scores.to_dict(self.labels)
        return {
            "model": self.model,
            "folder": self.folder,
            "images": self.images,
            "top1": scores["top1"],
            "top5": scores["top5"],
            "images_per_second": round(self.images_per_second, 2),
            "classes": scores["classes"],
            "skipped": self.skipped,
        }

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def evaluate(
    model: keras.Model | str | os.PathLike,
    folder: str | os.PathLike,
    *,
    labels: Sequence[str] | None = None,
    ground_truth: str | os.PathLike | None = None,
    input_shape: tuple[int, int, int] | None = None,
    crop_fraction: float = 0.95,
    batch_size: int = 32,
    skip_bad: bool = False,
    track: Callable[[Iterable], Iterable] = iter,
) -> EvaluationReport:
    """Classifies the images of a folder and compares the answers with their classes.

    Args:
        model: a `keras.Model` of normalised images, or a .keras file, a checkpoint, a .tflite file, an .mlpackage, or
            "l1", "l3", "l7", "v2_s0", "v2_s1", "v2_s2", "v2_l".
        folder: a subfolder of images for each class, called as the class or, for ImageNet, by its WordNet id; or
            ImageNet's ILSVRC2012_val_*.JPEG in one folder.
        labels: class names in the order of the outputs. None means those in the file's sidecar, else in a `labels.txt`
            beside the file, else ImageNet's where there are 1000, else the names of the subfolders, sorted.
        ground_truth: for ImageNet's files in one folder: what they are (`imagenet_layout`); None means the file beside.
        input_shape: (h, w, 3) for a Keras model or checkpoint; None means its own.
        crop_fraction: as for `imagenet.resize_and_crop`.
        batch_size: images in a prediction.
        skip_bad: leave unreadable images out, instead of raising.
        track: wraps the check of all images and the batches, e.g. `rich.progress.track`.

    Returns:
        An `EvaluationReport`.

    Raises:
        ValueError: an image cannot be read, or with `skip_bad` none; or the folder's classes are not the model's.
        OSError: a file or folder is missing.
        ImportError: something that the file needs is not installed.
    """
    folder = Path(folder)
    classifier = KerasClassifier(model) if isinstance(model, keras.Model) else open_classifier(model, input_shape)
    beside = None if isinstance(model, keras.Model) else Path(model).with_name("labels.txt")
    if labels is None:
        labels = classifier.labels
    if labels is None and beside is not None and beside.is_file():
        labels = read_labels(beside)

    classes = _number_of_classes(classifier)
    names, images = _read_images(folder, classes, labels, ground_truth)
    images, skipped = without_unreadable(images, (), skip_bad, track)
    answers, seconds = _answers(classifier, images, classes, crop_fraction, batch_size, track)
    scores = count(answers, images.targets, probabilities=False)
    name = model.name if isinstance(model, keras.Model) else str(model)
    return EvaluationReport(name, str(folder), len(images), scores, tuple(names), seconds, skipped)


def _number_of_classes(classifier: Classifier) -> int:
    """How many classes a classifier answers with, found by asking it."""
    return classifier.predict(np.zeros((1, *classifier.size, 3), "float32")).shape[-1]


def _read_images(
    folder: Path, classes: int, labels: Sequence[str] | None, ground_truth: str | os.PathLike | None
) -> tuple[Sequence[str], ImageSet]:
    """The classes' names in the order of the outputs, and the images with their places among them."""
    imagenet = imagenet_labels()
    if labels is not None and len(labels) != classes:
        raise ValueError(f"The model has {classes} classes, and there are {len(labels)} labels.")
    if folder.is_dir() and is_flat(folder):
        if classes != len(imagenet):
            raise ValueError(f"{folder} holds ImageNet's validation images, of 1000 classes; the model has {classes}.")
        files, targets = read_flat(folder, Path(ground_truth) if ground_truth else None)
        return labels or [name for _, name in imagenet], ImageSet(files, targets, np.arange(len(files)))
    names, images = list_images(folder)
    ids = {wordnet_id: place for place, (wordnet_id, _) in enumerate(imagenet)}
    if classes == len(imagenet) and all(name in ids for name in names):
        return labels or [name for _, name in imagenet], _at([ids[name] for name in names], images)
    if labels is None and len(names) == classes:
        return names, images
    if labels is None:
        raise ValueError(f"{folder} has {len(names)} classes and the model {classes}: say which are which with labels.")
    unknown = sorted(set(names) - set(labels))
    if unknown:
        raise ValueError(f"{folder} has classes that the model does not know: {', '.join(unknown)}.")
    return labels, _at([list(labels).index(name) for name in names], images)


class _Sized:
    """An iterator with a length, for progress bars."""

    def __init__(self, iterator: Iterator[Batch], length: int) -> None:
        self._iterator, self._length = iterator, length

    def __iter__(self) -> Iterator[Batch]:
        return self._iterator

    def __len__(self) -> int:
        return self._length


def _at(places: Sequence[int], images: ImageSet) -> ImageSet:
    """The images with class `places[n]` in the place of class n."""
    return ImageSet(images.files, np.array(places)[images.targets], images.rows)


def _answers(
    classifier: Classifier,
    images: ImageSet,
    classes: int,
    crop_fraction: float,
    batch_size: int,
    track: Callable[[Iterable], Iterable],
) -> tuple[np.ndarray, float]:
    """Answers (images, classes), and images per second of prediction."""
    batches = ValidationImages(images, classes, classifier.size, crop_fraction, batch_size)
    answers, times = [], []
    for batch in track(_Sized(prefetched(batches.epoch(0)), batches.steps)):
        # All batches have one shape, for another one would be compiled anew.
        pixels = np.zeros((batch_size, *batch.images.shape[1:]), "float32")
        pixels[: len(batch.images)] = batch.images
        started = time.perf_counter()
        found = classifier.predict(pixels)
        times.append(time.perf_counter() - started)
        answers.append(found[: len(batch.images)])
    later = times[1:] or times
    return np.concatenate(answers), batch_size * len(later) / sum(later)
