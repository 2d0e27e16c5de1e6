"""Opens whatever classifies images: exported files, and all that stands for a Keras model. Room: classifiers."""

import os
from pathlib import Path
from typing import Protocol

import numpy as np

from keras_efficientformer.classifiers.exported_files import FileClassifier
from keras_efficientformer.deploy.coreml.package import function_sizes
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.input_sizes import described, name_of_size
from keras_efficientformer.deploy.report_sidecar import check_sidecar
from keras_efficientformer.deploy.tflite.metadata import read_facts
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel, check_survival
from keras_efficientformer.deploy.tflite.sizes.signatures import signature_sizes


class Classifier(Protocol):
    """What all classifiers have.

    Attributes:
        size: (height, width) of the images that it takes.
        channels: of those images.
        labels: names of the classes in the order of the scores, or None where it does not know them.
        output: "scores" of classes; or what it gives in their place, "masks", "embedding" or "features".
        independent: whether each score is of its class by itself, a sigmoid's, so that an image may be of several.
    """

    size: tuple[int, int]
    channels: int
    labels: tuple[str, ...] | None
    output: str
    independent: bool

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Raw images, float32 (batch, height, width, channels) in 0..255 -> float32 scores (batch, classes), of
        masks (batch, h, w, classes), or what `output` says."""


def open_classifier(source: str | os.PathLike[str], input_shape: tuple[int, ...] | None = None) -> Classifier:
    """The classifier that a file or a name stands for.

    Args:
        source: a `.tflite` file, an `.mlpackage`, or anything that `open_model` takes.
        input_shape: (h, w) or (h, w, channels); None means its own, of an exported file of several sizes the first.

    Raises:
        ValueError: the file is unfit, takes no images of `input_shape`, or the report beside it is another file's.
        OSError: the file is missing or cannot be read.
        ImportError: the file needs LiteRT, coremltools or PyTorch, which is not installed.
    """
    path = Path(os.path.expanduser(source))
    if path.suffix not in (".tflite", ".mlpackage"):
        return _open_keras(source, input_shape)
    open_file = _open_package if path.suffix == ".mlpackage" else open_tflite
    classifier: Classifier = open_file(path, input_shape)
    own = (*classifier.size, classifier.channels)
    if input_shape is not None and tuple(input_shape) != own[: len(input_shape)]:
        found = ", ".join(map(described, file_sizes(path))) or described(classifier.size)
        raise ValueError(
            f"{source} takes images of {found} pixels and no others. Received: {tuple(input_shape)}; leave the size "
            "out, or export the model at that size."
        )
    return classifier


def file_sizes(file: Path) -> tuple[tuple[int, int], ...]:
    """(height, width) of each input size of a .tflite file or package, the one that opens by default first; errors are
    those of `open_classifier`."""
    sizes = function_sizes(file) if file.suffix == ".mlpackage" else signature_sizes(file)
    return tuple(sizes.values())


def open_embedder(source: str | os.PathLike[str], input_shape: tuple[int, ...] | None = None) -> Classifier:
    """What gives the embeddings of images: an exported file that was made for that, or any Keras model, whose
    classifier is left out.

    Args:
        source, input_shape: as of `open_classifier`.

    Raises:
        ValueError: as `open_classifier`, or it gives no embedding.
        OSError, ImportError: as `open_classifier`.
    """
    if Path(source).suffix in (".tflite", ".mlpackage"):
        embedder = open_classifier(source, input_shape)
    else:
        embedder = _open_keras(source, input_shape, embeds=True)
    if embedder.output != "embedding":
        raise ValueError(
            f"{source} gives {embedder.output}, and no embedding: export a model that was made with include_top=False "
            "and pooling='avg'."
        )
    return embedder


def _open_keras(
    source: str | os.PathLike[str], input_shape: tuple[int, ...] | None, embeds: bool = False
) -> Classifier:
    """What asks a Keras model, or what of it gives embeddings."""
    # They import Keras, which takes seconds and files do without.
    from keras_efficientformer.classifiers.keras_models import KerasClassifier, without_classifier
    from keras_efficientformer.opening import open_model

    model = open_model(source, input_shape)
    return KerasClassifier(without_classifier(model) if embeds else model)


def _open_package(source: Path, input_shape: tuple[int, ...] | None) -> Classifier:
    if source.exists():
        check_sidecar(source)
    function = None if input_shape is None else name_of_size(function_sizes(source), input_shape)
    package = CoreMLModel(source, function=function)
    return FileClassifier(package, package.facts)


def open_tflite(source: Path, input_shape: tuple[int, ...] | None = None) -> FileClassifier:
    """The classifier of a `.tflite` file; errors are those of `open_classifier`."""
    if not (source.exists() and check_sidecar(source)):
        check_survival(source)
    signature = None if input_shape is None else name_of_size(signature_sizes(source), input_shape)
    return FileClassifier(LiteRTModel(source, signature=signature), read_facts(source))
