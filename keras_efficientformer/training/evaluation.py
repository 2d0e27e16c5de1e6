"""Evaluates a model on a folder of images: top-1, top-5, confusion matrix; mAP; IoU of masks; speed. Room: training."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_efficientformer.classifiers import Classifier, KerasClassifier, open_classifier
from keras_efficientformer.errors import listing
from keras_efficientformer.files import bare_name
from keras_efficientformer.image_folders.class_places import class_places
from keras_efficientformer.image_folders.image_folder import ImageSet, from_folder_on, list_images, without_unreadable
from keras_efficientformer.imagenet import CROP, imagenet_labels
from keras_efficientformer.images import count_other_files, of_channels
from keras_efficientformer.labels import Labels, class_names, labels_beside
from keras_efficientformer.layers.names import MASKS
from keras_efficientformer.models.sources import crop_of
from keras_efficientformer.segmentation.palette import read_palette
from keras_efficientformer.training.data.batches import Batch, ValidationImages, prefetched
from keras_efficientformer.training.data.imagenet_layout import is_flat, read_flat
from keras_efficientformer.training.data.mask_batches import ValidationMasks
from keras_efficientformer.training.data.masks import check_masks, list_masked
from keras_efficientformer.training.data.multi_label import list_multi_label
from keras_efficientformer.training.scores import AnyScores, MaskCounter, count, count_multi_label


@dataclass(frozen=True)
class EvaluationReport:
    """The results of an evaluation.

    Attributes:
        model: the file.
        folder: of the images.
        images: how many were classified.
        scores: top-1, top-5 and the confusion matrix; or, of images with several labels, average precisions; or, of
            masks, the IoU of each class.
        labels: class names in the order of the outputs.
        images_per_second: of prediction alone, without the first batch, which compiles.
        classes_from: how it is known of which class a folder's images are.
        image_size: (height, width) of what the model sees, in pixels.
        crop_fraction: share of the resized image's side that it sees, in (0, 1]; with masks 1, the whole.
        skipped: {path from the folder on: reason} of images that were left out.
        other_files: {suffix: number} of files in the folder that are called as no image.
    """

    model: str
    folder: str
    images: int
    scores: AnyScores
    labels: tuple[str, ...]
    images_per_second: float
    classes_from: str
    image_size: tuple[int, int]
    crop_fraction: float
    skipped: dict[str, str] = field(default_factory=dict)
    other_files: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, without the confusion matrix and the loss, which logits do not have; model and
        folder by their names alone."""
        scores = self.scores.to_dict(self.labels)
        return {
            "model": bare_name(self.model),
            "folder": bare_name(self.folder),
            "images": self.images,
            **{name: value for name, value in scores.items() if name not in ("loss", "classes")},
            "images_per_second": round(self.images_per_second, 2),
            "classes_from": self.classes_from,
            "image_size": list(self.image_size),
            "crop_fraction": self.crop_fraction,
            "classes": scores["classes"],
            "skipped": self.skipped,
            "other_files": self.other_files,
        }

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def evaluate(
    model: keras.Model | str | os.PathLike,
    folder: str | os.PathLike,
    *,
    labels: Labels | None = None,
    multi_label: bool = False,
    masks: str | os.PathLike | None = None,
    palette: str | os.PathLike | None = None,
    ground_truth: str | os.PathLike | None = None,
    input_shape: tuple[int, ...] | None = None,
    crop_fraction: float | None = None,
    batch_size: int = 32,
    skip_bad: bool = False,
    track: Callable[[Iterable], Iterable] = iter,
) -> EvaluationReport:
    """Classifies the images of a folder, or their pixels, and compares the answers with what they are.

    Args:
        model: a `keras.Model` of normalised images, or a .tflite file, an .mlpackage, or what else
            `open_model` opens.
        folder: a subfolder of images for each class, called as the class, by its index or, for ImageNet, by its WordNet
            id; or ImageNet's ILSVRC2012_val_*.JPEG in one folder.
        labels: class names in the order of the outputs, or what else `labels.class_names` takes. None means the
            model's own, else those in a `labels.txt` beside the file, else ImageNet's where there are 1000, else the
            names of the subfolders, sorted, which the report says.
        multi_label: images may have several labels or none, which the folder or CSV file says as for `finetune`; the
            model's scores must be a sigmoid's.
        masks: as for `finetune`: what each pixel of the images is, for a model that gives masks. Images are scaled to
            the model's size, not cropped, and so are the masks, to the nearest pixel; answers of a coarser grid are
            enlarged to it.
        palette: as for `finetune`.
        ground_truth: for ImageNet's files in one folder: what they are (`imagenet_layout`); None means the file beside.
        input_shape: (h, w) or (h, w, channels) for a Keras model or checkpoint; None means its own.
        crop_fraction: as for `imagenet.resize_and_crop`; None means the one that published weights were measured with,
            else what the config.json of timm's or of a run, beside the file or in the repository, states, else 0.95.
            With masks there is none.
        batch_size: images in a prediction.
        skip_bad: leave unreadable images out, instead of raising.
        track: wraps the check of all images and the batches, e.g. `rich.progress.track`.

    Returns:
        An `EvaluationReport`.

    Raises:
        ValueError: an image cannot be read, or with `skip_bad` none; the folder's classes are not the model's; masks
            are unfit; or the model gives none, or gives masks and none are passed.
        OSError: a file or folder is missing.
        ImportError: something that the file needs is not installed.
    """
    folder = Path(folder)
    classifier = KerasClassifier(model) if isinstance(model, keras.Model) else open_classifier(model, input_shape)
    cropped = crop_fraction is not None
    if crop_fraction is None:
        crop_fraction = CROP if isinstance(model, keras.Model) else crop_of(model)
    if labels is None:
        labels = classifier.labels
    if labels is None and not isinstance(model, keras.Model):
        labels = labels_beside(model)

    name = model.name if isinstance(model, keras.Model) else str(model)
    _check_answers_of(name, classifier, masks, palette, multi_label)
    if masks is not None and ground_truth is not None:
        raise ValueError("`ground_truth` (--ground-truth) says classes of whole images: leave it out, or the masks.")
    if masks is not None and cropped:
        raise ValueError(f"{name} gives masks of whole images: leave `crop_fraction` (--crop) out.")
    classes = _number_of_classes(classifier)
    names = None if labels is None else class_names(labels, classes)
    if masks is not None:
        return _evaluate_masks(name, classifier, classes, folder, masks, palette, names, batch_size, skip_bad, track)
    if multi_label and not classifier.independent:
        raise ValueError(
            f"{model} gives no scores of classes by themselves, so that an image could have several labels: a model "
            "that ends in a sigmoid is needed, as finetune with multi_label makes one."
        )
    all_names, images, classes_from = _read_images(folder, classes, names, ground_truth, multi_label)
    images, skipped = without_unreadable(images, (), skip_bad, track)
    batches = ValidationImages(images, classes, classifier.size, crop_fraction, batch_size)
    answers: list[np.ndarray] = []
    speed = _ask(classifier, batches, batch_size, track, lambda _, found: answers.append(found))
    measure = count_multi_label if multi_label else partial(count, probabilities=False)
    scores: AnyScores = measure(np.concatenate(answers), images.targets)
    others = count_other_files(folder)
    return EvaluationReport(
        name,
        str(folder),
        len(images),
        scores,
        all_names,
        speed,
        classes_from,
        classifier.size,
        crop_fraction,
        from_folder_on(folder, skipped),
        others,
    )


def _check_answers_of(
    name: str,
    classifier: Classifier,
    masks: str | os.PathLike | None,
    palette: str | os.PathLike | None,
    multi_label: bool,
) -> None:
    """Checks that a classifier gives what is to be evaluated."""
    if masks is None and palette is not None:
        raise ValueError("A palette is of masks: pass `masks` (--masks) too, the folder that holds them.")
    if masks is not None and multi_label:
        raise ValueError("Masks do not go with multi_label: a pixel has one class. Leave it out.")
    if masks is None and classifier.output == MASKS:
        raise ValueError(f"{name} gives masks: pass `masks` (--masks), the folder of those to compare with.")
    if masks is not None and classifier.output != MASKS:
        raise ValueError(f"{name} gives {classifier.output} and no masks: leave `masks` out, or choose another model.")
    if classifier.output not in (MASKS, "scores"):
        raise ValueError(f"{name} has no classifier that could be evaluated: it gives {classifier.output}.")


def _evaluate_masks(
    name: str,
    classifier: Classifier,
    classes: int,
    folder: Path,
    masks: str | os.PathLike,
    palette: str | os.PathLike | None,
    labels: tuple[str, ...] | None,
    batch_size: int,
    skip_bad: bool,
    track: Callable[[Iterable], Iterable],
) -> EvaluationReport:
    """The report of a classifier of pixels; `labels` are the names of its classes, where they are known."""
    colours = None if palette is None else read_palette(palette)
    numbers = tuple(map(str, range(classes)))
    known = None if labels == numbers else labels
    if colours is not None and len(colours.names) != classes:
        raise ValueError(f"{palette} has {len(colours.names)} classes, and {name} {classes}: pass that model's.")
    if colours is not None and known is not None and colours.names != known:
        raise ValueError(
            f"{palette} names other classes than {name}, or in another order: {listing(colours.names)}. Expected: "
            f"{listing(known)}"
        )
    images, skipped = without_unreadable(list_masked(folder, masks), (), skip_bad, track)
    check_masks(images, colours, classes, track)
    counter = MaskCounter(classes, probabilities=False)
    batches = ValidationMasks(images, colours, classes, classifier.size, batch_size)
    speed = _ask(classifier, batches, batch_size, track, lambda batch, found: counter.add(batch.labels, found))
    return EvaluationReport(
        name,
        str(folder),
        len(images),
        counter.scores(),
        colours.names if colours else labels or numbers,
        speed,
        "by the numbers in the masks" if colours is None else f"by the colours of {bare_name(colours.path)}",
        classifier.size,
        1.0,
        from_folder_on(folder, skipped),
        count_other_files(folder),
    )


def _number_of_classes(classifier: Classifier) -> int:
    """How many classes a classifier answers with, found by asking it."""
    return classifier.predict(np.zeros((1, *classifier.size, classifier.channels), "float32")).shape[-1]


def _read_images(
    folder: Path,
    classes: int,
    labels: tuple[str, ...] | None,
    ground_truth: str | os.PathLike | None,
    multi_label: bool,
) -> tuple[tuple[str, ...], ImageSet, str]:
    """The classes' names in the order of the outputs, the images, and how it is known which class each is of."""
    imagenet = imagenet_labels()
    flat = folder.is_dir() and is_flat(folder) and not multi_label
    if ground_truth is not None and not flat:
        raise ValueError(
            f"`ground_truth` (--ground-truth) is for a folder of ILSVRC2012_val_*.JPEG, and {folder} has none: leave "
            "it out."
        )
    if flat:
        if classes != len(imagenet):
            raise ValueError(f"{folder} holds ImageNet's validation images, of 1000 classes; the model has {classes}.")
        files, targets = read_flat(folder, Path(ground_truth) if ground_truth else None)
        all_names = labels or tuple(name for _, name in imagenet)
        return all_names, ImageSet(files, targets, np.arange(len(files))), "by ImageNet's ground truth"
    names, images = list_multi_label(folder) if multi_label else list_images(folder)
    places, all_names, how = class_places(folder, names, classes, labels)
    return all_names, images.moved(places, classes), how


class _Sized:
    """An iterator with a length, for progress bars."""

    def __init__(self, iterator: Iterator[Batch], length: int) -> None:
        self._iterator, self._length = iterator, length

    def __iter__(self) -> Iterator[Batch]:
        return self._iterator

    def __len__(self) -> int:
        return self._length


def _ask(
    classifier: Classifier,
    batches: ValidationImages,
    batch_size: int,
    track: Callable[[Iterable], Iterable],
    take: Callable[[Batch, np.ndarray], None],
) -> float:
    """Has `take` each batch with the answers to it; returns images per second of prediction."""
    times = []
    for batch in track(_Sized(prefetched(batches.epoch(0)), batches.steps)):
        # All batches have one shape, for another one would be compiled anew.
        pixels = np.zeros((batch_size, *batch.images.shape[1:]), "float32")
        pixels[: len(batch.images)] = batch.images
        started = time.perf_counter()
        found = classifier.predict(of_channels(pixels, classifier.channels))
        times.append(time.perf_counter() - started)
        take(batch, found[: len(batch.images)])
    later = times[1:] or times
    return batch_size * len(later) / sum(later)
