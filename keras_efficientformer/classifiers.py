"""Opens models and exported files as classifiers, which all take raw pixels and give scores. Room: top level.

A Keras model, a checkpoint of any dialect, a .tflite file and a Core ML package are used alike, so that the commands
`predict` and `evaluate` need not know which they have. How raw pixels go in is what the model or the file itself says.
"""

import os
from pathlib import Path
from typing import Protocol

import keras
import numpy as np

from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.file_facts import FileFacts
from keras_efficientformer.deploy.network.fuse import ACTIVATIONS, check_whole
from keras_efficientformer.deploy.report_sidecar import check_sidecar
from keras_efficientformer.deploy.tflite.metadata import read_facts
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel, check_survival
from keras_efficientformer.layers.image_normalization import model_inputs
from keras_efficientformer.layers.names import HEADS, PREDICTIONS
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.models.opening import open_model

# Exported files call the scores of the classes one of these.
SCORES = ("probabilities", "classLabel_probs", "logits", "scores")
EMBEDDINGS = ("embedding", "features")


class Classifier(Protocol):
    """What all classifiers have.

    Attributes:
        size: (height, width) of the images that it takes.
        channels: of those images.
        labels: names of the classes in the order of the scores, or None where it does not know them.
        output: "scores" of classes; or what it gives in their place, "embedding" or "features".
        independent: whether each score is of its class by itself, a sigmoid's, so that an image may be of several.
    """

    size: tuple[int, int]
    channels: int
    labels: tuple[str, ...] | None
    output: str
    independent: bool

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Raw images, float32 (batch, height, width, channels) in 0..255 -> float32 scores (batch, classes), or what
        `output` says."""


class KerasClassifier:
    """A Keras model; of two heads, the one that was trained on labels.

    Raises:
        ValueError: it is no EfficientFormer of this package alone, so that nobody knows how its images are prepared.
    """

    def __init__(self, model: keras.Model) -> None:
        check_whole(model)
        self._model = model
        self.size: tuple[int, int] = tuple(model.inputs[0].shape[1:3])
        self.channels = int(model.inputs[0].shape[3])
        self.labels = labels_of(model)
        shape = model.outputs[0].shape
        layers = {layer.name: layer for layer in model.layers}
        classifies = HEADS[0] in layers
        self.independent = classifies and layers[PREDICTIONS[0]].activation is keras.activations.sigmoid
        self.output = "scores" if classifies else "embedding" if len(shape) == 2 else "features"

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        scores = self._model.predict(model_inputs(self._model, pixels), verbose=0)
        return scores[0] if isinstance(scores, list) else scores


class FileClassifier:
    """A .tflite file or a Core ML package.

    Args:
        model: the opened file.
        facts: what it says of itself.

    Raises:
        ValueError: it does not say how images are prepared for it, or gives neither scores of classes nor an embedding.
    """

    def __init__(self, model: LiteRTModel | CoreMLModel, facts: FileFacts | None) -> None:
        self._model = model
        self.size, self.channels = model.input_shape[:2], model.input_shape[2]
        if facts is None or not facts.mean:
            raise ValueError(
                f"{model.path} does not say how raw pixels are prepared for it: it has no metadata of their "
                "normalisation. Export the model again, or run it with code of your own."
            )
        self._facts = facts
        names = [output.name for output in model.outputs]
        found = [name for name in (*SCORES, *EMBEDDINGS) if name in names]
        if not found:
            raise ValueError(
                f"{model.path} has no output of classes: expected one of {', '.join(SCORES)}. Found: {', '.join(names)}"
            )
        # A Core ML classifier also names the class; files with feature maps have those first.
        self._output = found[0]
        self.output = "scores" if found[0] in SCORES else found[0]
        self.independent = found[0] == ACTIVATIONS["sigmoid"][1]
        self.labels = getattr(model, "labels", None) or facts.labels

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        return self._model.predict(self._facts.inputs(pixels))[self._output]


def open_classifier(source: str | os.PathLike[str], input_shape: tuple[int, ...] | None = None) -> Classifier:
    """The classifier that a file or a name stands for.

    Args:
        source: a `.tflite` file, an `.mlpackage`, or anything that `open_model` takes.
        input_shape: (h, w) or (h, w, channels) for a Keras model; None means its own.

    Raises:
        ValueError: the file is unfit, or the report beside it is another file's.
        OSError: the file is missing or cannot be read.
        ImportError: the file needs LiteRT, coremltools or PyTorch, which is not installed.
    """
    suffix = Path(source).suffix
    if suffix not in (".tflite", ".mlpackage"):
        return KerasClassifier(open_model(source, input_shape))
    is_known = Path(source).exists() and check_sidecar(source)
    if suffix == ".mlpackage":
        package = CoreMLModel(source)
        return FileClassifier(package, package.facts)
    if not is_known:
        check_survival(source)
    return FileClassifier(LiteRTModel(source), read_facts(source))
