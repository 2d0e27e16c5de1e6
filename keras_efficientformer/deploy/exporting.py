"""What every exporter does around its conversion: names and labels before it, the comparison with Keras after it."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_efficientformer.bindings import listing
from keras_efficientformer.conversion import source_of
from keras_efficientformer.deploy.recording import FusedNetwork
from keras_efficientformer.deploy.report import Difference, compare
from keras_efficientformer.imagenet import MEAN, imagenet_labels, preprocess_input, read_labels
from keras_efficientformer.initialization import weights_follow

AUTHOR = "keras-efficientformer"
LICENSE = "Apache-2.0"
STAGES = ("stage1", "stage2", "stage3", "stage4")
OUTPUT_DESCRIPTIONS = {
    "probabilities": "Probability of each class.",
    "logits": "Logit of each class.",
    "scores": "Score of each class, in 0..1, each by itself.",
    "features": "Feature map after the final norm.",
    "embedding": "Embedding of the image.",
    "stage": "Feature map after a stage.",
}


class ExportError(RuntimeError):
    """The exported file does not do what the model does, so it was not written; the message says by how much."""


def require(target: str, extra: str, *modules: str) -> None:
    """Raises an `ImportError` that names the extra to install where one of the modules is missing."""
    for module in modules:
        try:
            __import__(module)
        except ImportError as error:
            raise ImportError(
                f"{target} export needs {module.replace('_', '-')}: pip install 'keras-efficientformer[{extra}]'"
            ) from error


def label_names(labels: str | os.PathLike | Sequence[str] | None, classes: int | None) -> tuple[str, ...] | None:
    """Class names from a list or a text file with one in each line; None means ImageNet's for 1000 classes, else none.

    Raises:
        ValueError: their number is not that of the classes, or one is no single line of text.
        OSError: the file cannot be read.
    """
    if labels is None:
        return tuple(name for _, name in imagenet_labels()) if classes == len(imagenet_labels()) else None
    names = read_labels(labels) if isinstance(labels, str | os.PathLike) else tuple(labels)
    if classes is None:
        raise ValueError(f"The model has no classifier that {len(names)} labels could be for: leave them out.")
    if len(names) != classes:
        raise ValueError(f"The model has {classes} classes and there are {len(names)} labels: one for each is needed.")
    unfit = [name for name in names if not isinstance(name, str) or "\n" in name or "\r" in name]
    if unfit:  # files hold them one in a line
        raise ValueError(f"Labels should be single lines of text. Received: {listing(list(map(repr, unfit)))}")
    return tuple(map(str, names))


def file_path(path: str | os.PathLike, network: FusedNetwork, mode: str, suffix: str) -> Path:
    """`path`, or within an existing folder the standard name, e.g. `efficientformer_l1_224_float32.tflite`."""
    path = Path(path)
    if path.suffix == suffix:
        return path
    if not path.is_dir():
        raise ValueError(f"The file's name ends in {suffix}, or the path is an existing folder. Received: {path}")
    height, width, _ = network.input_shape
    size = f"{height}" if height == width else f"{height}x{width}"
    return path / f"{network.name}_{size}_{mode}{suffix}"


def network_inputs(images: np.ndarray, network: FusedNetwork) -> np.ndarray:
    """Raw images, values in 0..255, as the network takes them."""
    return images if network.preprocessing else normalised(images)


def normalised(images: np.ndarray) -> np.ndarray:
    """Raw images as the Keras model takes them."""
    # Of other images than RGB nobody knows the normalisation; any range that networks are used to will do.
    return preprocess_input(images) if images.shape[-1] == len(MEAN) else images / 127.5 - 1.0


def differences(
    model: keras.Model, network: FusedNetwork, found: dict[str, np.ndarray], images: np.ndarray
) -> tuple[Difference, ...]:
    """How far the exported file's outputs on raw images are from the Keras model's, output by output."""
    stages = [name for name in network.outputs if name in STAGES]
    if stages:  # else the model itself, which need not be traced again for every export
        model = keras.Model(model.inputs, [*(model.get_layer(name).output for name in stages), *model.outputs])
    return compare_outputs(_in_float32(model).predict(normalised(images), verbose=0), network, found)


def _in_float32(model):
    """The model, or where it computes in another precision a copy that does not: what it stands for is compared."""
    if {layer.compute_dtype for layer in model.layers} == {"float32"}:
        return model
    return changed_copy(model, _with_float32_policies(model.get_config()))


def changed_copy(model: keras.Model, config: dict[str, Any]) -> keras.Model:
    """A model of that configuration with the weights of `model`."""
    with weights_follow():
        copy = keras.Model.from_config(config)
    copy.set_weights(model.get_weights())
    return copy


def _with_float32_policies(config):
    if isinstance(config, list | tuple):
        return type(config)(map(_with_float32_policies, config))
    if not isinstance(config, dict):
        return config
    return {name: "float32" if name == "dtype" else _with_float32_policies(value) for name, value in config.items()}


def compare_outputs(expected: Any, network: FusedNetwork, found: dict[str, np.ndarray]) -> tuple[Difference, ...]:
    """How far the exported file's outputs are from what `predict` of the model gave, an array or a list of them."""
    expected = expected if isinstance(expected, list | tuple) else [expected]
    return tuple(
        compare(name, output, found[name], network.classes is not None and name not in STAGES)
        for name, output in zip(network.outputs, expected, strict=True)
    )


def check(differences: tuple[Difference, ...], limit: float, path: Path) -> None:
    """Raises `ExportError` where a difference is over the limit."""
    for difference in differences:
        if not difference.relative <= limit:
            raise ExportError(
                f"{path} was not written: its output {difference.output} differs from the Keras model's by "
                f"{difference.max:.3g} (relative {difference.relative:.3g}, mean {difference.mean:.3g}), and the limit "
                f"is {limit:.3g}. Raise max_difference if that is acceptable."
            )


def checkpoint_of(model: keras.Model) -> dict[str, str] | None:
    """File name and sha256 of the checkpoint that the model was loaded from, where that is known."""
    source = source_of(model)
    if source is None:
        return None
    with contextlib.suppress(OSError), open(source, "rb") as file:
        return {"file": Path(source).name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return {"file": Path(source).name, "sha256": "unknown: the file is gone"}
