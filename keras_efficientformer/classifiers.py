"""Opens models and exported files as classifiers, which all take raw RGB pixels and give scores. Room: top level.

A Keras model, a checkpoint of any dialect, a .tflite file and a Core ML package are used alike, so that the commands
`predict` and `evaluate` need not know which they have.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.tflite.metadata import LABELS_FILE
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.models.opening import open_model

# Exported files call the scores of the classes one of these.
SCORES = ("probabilities", "classLabel_probs", "logits", "scores")


class Classifier(Protocol):
    """What all classifiers have.

    Attributes:
        size: (height, width) of the images that it takes.
        labels: names of the classes in the order of the scores, or None where the file has none.
    """

    size: tuple[int, int]
    labels: list[str] | None

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Raw RGB images, float32 (batch, height, width, 3) in 0..255 -> scores, float32 (batch, classes)."""


class KerasClassifier:
    """A Keras model; of two heads, the one that was trained on labels."""

    labels: list[str] | None = None

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self.size: tuple[int, int] = tuple(model.inputs[0].shape[1:3])

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        scores = self._model.predict(preprocess_input(pixels), verbose=0)
        return scores[0] if isinstance(scores, list) else scores


class FileClassifier:
    """A .tflite file or a Core ML package; its sidecar has the labels and says whether the file normalises by itself.

    Without one, labels are those in a .tflite file itself, and it is taken to normalise, as exports do by default.

    Args:
        model: the opened file.
        path: the file's path, beside which its sidecar stands.

    Raises:
        ValueError: the sidecar is no report of an export.
    """

    def __init__(self, model: LiteRTModel | CoreMLModel, path: str | os.PathLike[str]) -> None:
        self._model = model
        self.size = model.input_shape[:2]
        report = _read_report(Path(path).with_suffix(".json"))
        self.labels: list[str] | None = report.get("labels") or _embedded_labels(path)
        self._preprocessing = report.get("preprocessing", True)

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        outputs = self._model.predict(pixels if self._preprocessing else preprocess_input(pixels))
        # A Core ML classifier also names the class; files with feature maps have those first.
        return next(outputs[name] for name in SCORES if name in outputs)


def _read_report(sidecar: Path) -> dict[str, Any]:
    """What an export wrote beside its file; empty where there is none."""
    if not sidecar.exists():
        return {}
    try:
        report = json.loads(sidecar.read_text(encoding="utf-8"))
    except ValueError:
        report = None
    if not isinstance(report, dict):
        raise ValueError(
            f"{sidecar} is not the report that an export writes beside its file, which says how the file takes images. "
            "Bring the report again, or move this one away."
        )
    return report


def _embedded_labels(path: str | os.PathLike[str]) -> list[str] | None:
    """The labels in a .tflite file; None where there are none."""
    if not (os.path.isfile(path) and zipfile.is_zipfile(path)):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.read(LABELS_FILE).decode().split("\n") if LABELS_FILE in archive.namelist() else None


def open_classifier(source: str | os.PathLike[str], input_shape: tuple[int, int, int] | None = None) -> Classifier:
    """The classifier that a file or a name stands for.

    Args:
        source: a `.tflite` file, an `.mlpackage`, or anything that `open_model` takes.
        input_shape: (h, w, 3) for a Keras model; None means its own.

    Raises:
        ValueError: the file is unfit, or its sidecar is no report of an export.
        OSError: the file is missing or cannot be read.
        ImportError: the file needs LiteRT, coremltools or PyTorch, which is not installed.
    """
    suffix = Path(source).suffix
    if suffix == ".tflite":
        return FileClassifier(LiteRTModel(source), source)
    if suffix == ".mlpackage":
        return FileClassifier(CoreMLModel(source), source)
    return KerasClassifier(open_model(source, input_shape))
