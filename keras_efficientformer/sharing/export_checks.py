"""Checks that exported files answer as the model that they are published with. Room: sharing."""

from pathlib import Path
from typing import Any

import keras

from keras_efficientformer.classifiers.keras_models import KerasClassifier
from keras_efficientformer.classifiers.opening import file_sizes, open_classifier
from keras_efficientformer.deploy.report import CLASS_NUMBERS, compare
from keras_efficientformer.deploy.source import checkpoint_of
from keras_efficientformer.images import seeded_images
from keras_efficientformer.labels import unique_names


def check_exports(model: keras.Model, reports: dict[Path, dict[str, Any]]) -> None:
    """Runs exported files beside a model, files of several input sizes at the model's.

    Args:
        model: the classifier or segmentation model.
        reports: as `read_reports` has them.

    Raises:
        ValueError: a file is another model's: it was exported of another file, takes other images, gives something
            else, names its classes otherwise, or its answers are further away than its report allows.
        ImportError: what runs it is not installed.
    """
    if not reports:
        return
    ours = KerasClassifier(model)
    checkpoint = checkpoint_of(model)
    images = seeded_images((*ours.size, ours.channels))
    expected = ours.predict(images)
    for file, report in reports.items():
        _check_checkpoint(file, report["checkpoint"], checkpoint)
        theirs = open_classifier(file, ours.size if ours.size in file_sizes(file) else None)
        shape, own = (*theirs.size, theirs.channels), (*ours.size, ours.channels)
        if theirs.output != ours.output or shape != own:
            raise ValueError(
                f"{file} gives {theirs.output} of images {shape}, and the model gives {ours.output} of images {own}: "
                "it is another model's. Export this one, or leave the file out."
            )
        if ours.labels and theirs.labels and theirs.labels not in (ours.labels, unique_names(ours.labels)):
            raise ValueError(f"{file} calls its classes otherwise than the model does. Export this model again.")
        found = theirs.predict(images)
        if found.shape != expected.shape:
            raise ValueError(f"{file} has {found.shape[-1]} classes, and the model {expected.shape[-1]}.")
        if getattr(theirs, "output_name", None) == CLASS_NUMBERS:
            found = found.argmax(-1)
        difference = compare(ours.output, expected, found, classes=True).relative
        if not difference <= report["limit"]:
            raise ValueError(
                f"{file} is another model's: its answers differ from this one's by {difference:.2g}, and the limit of "
                f"its report is {report['limit']:.2g}. Export this model, or leave the file out."
            )


def _check_checkpoint(file: Path, theirs: dict[str, str] | None, ours: dict[str, str] | None) -> None:
    """Compares the files that an export and a model were read from, where both are known and were not changed since.

    Quantized files may be so far from their model that their answers do not tell it from a later epoch's.
    """
    if theirs is None or ours is None or "weights" in theirs or "weights" in ours:
        return
    if theirs["sha256"] != ours["sha256"]:
        raise ValueError(
            f"{file} was exported of another file: {theirs['file']} of sha256 {theirs['sha256']}, and the model is "
            f"{ours['file']} of {ours['sha256']}. Export this one, or leave the file out."
        )
