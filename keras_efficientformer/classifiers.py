"""Whatever classifies images, opened from its file and asked one way: raw RGB pixels in, scores out.

A Keras model, a checkpoint of any dialect, a .tflite file and a Core ML package answer alike, so that `predict` and
`evaluate` need not know what they are talking to.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

from keras_efficientformer import conversion
from keras_efficientformer.assembly import POOLINGS
from keras_efficientformer.bindings import HEADS
from keras_efficientformer.checkpoint_files import suffix_of
from keras_efficientformer.efficientformer import (
    EfficientFormerL1,
    EfficientFormerL3,
    EfficientFormerL7,
    from_checkpoint,
    network_of,
)
from keras_efficientformer.efficientformer_v2 import (
    EfficientFormerV2L,
    EfficientFormerV2S0,
    EfficientFormerV2S1,
    EfficientFormerV2S2,
)
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.initialization import weights_follow

# What exported files call the scores of the classes.
SCORES = ("probabilities", "classLabel_probs", "logits", "scores")

PUBLISHED = {
    "l1": EfficientFormerL1,
    "l3": EfficientFormerL3,
    "l7": EfficientFormerL7,
    "v2_s0": EfficientFormerV2S0,
    "v2_s1": EfficientFormerV2S1,
    "v2_s2": EfficientFormerV2S2,
    "v2_l": EfficientFormerV2L,
}


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

    def __init__(self, model: keras.Model):
        self._model = model
        self.size = tuple(model.inputs[0].shape[1:3])

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        scores = self._model.predict(preprocess_input(pixels), verbose=0)
        return scores[0] if isinstance(scores, list) else scores


class FileClassifier:
    """A .tflite file or a Core ML package; its sidecar has the labels and says whether the file normalises by itself.

    Without one, labels are those in a .tflite file itself, and it is taken to normalise, as exports do by default.

    Args:
        model: the opened file: `input_shape`, and `predict` that gives {output name: scores}.
        path: the file's path, beside which its sidecar stands.
    """

    def __init__(self, model: Any, path: str | os.PathLike):
        self._model = model
        self.size = tuple(model.input_shape[:2])
        report = _read_report(Path(path).with_suffix(".json"))
        self.labels = report.get("labels") or _embedded_labels(path)
        self._preprocessing = report.get("preprocessing", True)

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        outputs = self._model.predict(pixels if self._preprocessing else preprocess_input(pixels))
        # A Core ML classifier also names the class; files with feature maps have those first.
        return next(outputs[name] for name in SCORES if name in outputs)


def _read_report(sidecar):
    """What an export wrote beside its file; nothing where there is none."""
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


def _embedded_labels(path):
    from keras_efficientformer.deploy.tflite_metadata import LABELS_FILE

    if not (os.path.isfile(path) and zipfile.is_zipfile(path)):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.read(LABELS_FILE).decode().split("\n") if LABELS_FILE in archive.namelist() else None


def open_classifier(source: str | os.PathLike, input_shape: tuple[int, int, int] | None = None) -> Classifier:
    """The classifier that a file or a name stands for.

    Args:
        source: a `.tflite` file, an `.mlpackage`, or anything that `open_model` takes.
        input_shape: (h, w, 3) for a Keras model; None means its own.

    Raises:
        ValueError, OSError, ImportError: the file is unfit, missing, or needs something that is not installed.
    """
    suffix = Path(source).suffix
    if suffix == ".tflite":
        from keras_efficientformer.deploy.litert import LiteRTModel

        return FileClassifier(LiteRTModel(source), source)
    if suffix == ".mlpackage":
        from keras_efficientformer.deploy.coreml_model import CoreMLModel

        return FileClassifier(CoreMLModel(source), source)
    return KerasClassifier(open_model(source, input_shape))


def open_model(
    source: str | os.PathLike, input_shape: tuple[int, int, int] | None = None, progress: Any = iter
) -> keras.Model:
    """The Keras model that a file or a name stands for.

    Args:
        source: a key of `PUBLISHED` (ImageNet, downloaded) such as "l1", "l1:imagenet-300", a .keras file or a
            checkpoint file.
        input_shape: (h, w, 3); None means the file's own, or 224x224.
        progress: wraps the iteration over a checkpoint's variables, e.g. `rich.progress.track`.
    """
    variant, _, weights = str(source).partition(":")
    if variant in PUBLISHED:
        return PUBLISHED[variant](weights=weights or "imagenet", input_shape=input_shape)
    if suffix_of(source) == ".keras":
        with weights_follow():
            model = keras.saving.load_model(source, compile=False)
        return model if input_shape in (None, model.inputs[0].shape[1:]) else _at_size(model, input_shape)
    if suffix_of(source) is None and not os.path.exists(source):
        raise FileNotFoundError(f"{source} is neither a file nor one of the names {', '.join(PUBLISHED)}.")
    return from_checkpoint(source, input_shape=input_shape, progress=progress)


def _at_size(model, input_shape):
    """The same model for images of another size."""
    architecture, layers = conversion.architecture_of(model), {layer.name: layer for layer in model.layers}
    pooling = model.output_names[0].removesuffix("_pool")
    top: dict[str, Any] = {"include_top": False, "pooling": pooling if pooling in POOLINGS else None}
    if HEADS[0] in layers:
        head = "both" if len(model.outputs) == 2 else "average" if HEADS[1] in layers else "single"
        activation = layers["predictions"].activation
        top = {"classes": layers[HEADS[0]].units, "classifier_activation": activation, "head": head}
    with weights_follow():
        resized = network_of(architecture)(input_shape=input_shape, name=model.name, **top)
    conversion.load_state_dict(resized, conversion.to_state_dict(model))
    return resized
