"""Finds the layers of an exported file that err most, beside the float32 network. Room: deploy.

A layer's error has two parts: what it has been handed, and what it adds. They are told apart by computing each step of
the network twice in float32: on the float32 network's own tensors, and on those of the file.
"""

import dataclasses
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from rich.table import Column, Table
from rich.text import Text

from keras_efficientformer.deploy.coreml.package import function_sizes
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.input_sizes import name_of_size
from keras_efficientformer.deploy.network.file_steps import FileSteps, StepTensors
from keras_efficientformer.deploy.network.recording import Step
from keras_efficientformer.deploy.source import network_inputs
from keras_efficientformer.deploy.tflite.layer_tensors import TFLiteSteps
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel, check_survival
from keras_efficientformer.deploy.tflite.sizes.signatures import signature_sizes
from keras_efficientformer.files import bare_name
from keras_efficientformer.images import read_images, seeded_images
from keras_efficientformer.reporting import finite_only

IMAGE_LIMIT = 32
WORST = 10
# So many images' tensors are held at once; those of L1 at 224x224 are some 100 MB each.
CHUNK = 4


@dataclass(frozen=True)
class LayerError:
    """How far one tensor of a file is from the float32 network's, over all images.

    Attributes:
        step: its number in `FusedNetwork.steps`.
        location: where in the Keras model that is, such as `stage3.blocks.2.mlp.fc1`.
        operation: of `Builder`; several, joined by " + ", where the file computes them in one.
        dtype: NumPy's name of what the tensor is stored as.
        weights: what the largest constant that it is computed with is stored as, such as "int4", or None.
        error: root mean square of (file - float32), relative to that of float32.
        snr_db: the same as a signal-to-noise ratio in dB, -20 * log10(error).
        added: what this layer alone adds: root mean square of (file - the operation in float32 on the file's own
            tensors before it), relative to that of the float32 network's tensor.
    """

    step: int
    location: str
    operation: str
    dtype: str
    weights: str | None
    error: float
    snr_db: float
    added: float

    @property
    def stored_as(self) -> str:
        """The types of its tensor and, where that is another, of its largest constant."""
        return self.dtype if self.weights in (None, self.dtype) else f"{self.dtype}, weights {self.weights}"


@dataclass(frozen=True)
class LayerErrors:
    """The errors of a file's layers.

    Attributes:
        path: the file.
        model: name of the Keras model that it was compared with.
        images: how many images it was compared on.
        images_from: where those came from.
        layers: in the network's order.
    """

    path: str
    model: str
    images: int
    images_from: str
    layers: tuple[LayerError, ...]

    def worst(self, count: int = WORST) -> tuple[LayerError, ...]:
        """The layers that add most, the worst first."""
        return tuple(sorted(self.layers, key=lambda layer: layer.added, reverse=True)[:count])

    def to_json(self) -> str:
        """All layers as indented JSON, the file by its name alone; numbers that are not finite are null."""
        values = dataclasses.asdict(self) | {"path": bare_name(self.path)}
        return json.dumps(finite_only(values), indent=2, allow_nan=False) + "\n"

    def __rich__(self) -> Table:
        worst = self.worst()
        table = Table(
            Column("layer", overflow="fold"),
            "operation",
            "stored as",
            Column("adds", justify="right"),
            Column("error", justify="right"),
            Column("SNR", justify="right"),
            title=Text(f"{Path(self.path).name} against {self.model}: the {len(worst)} layers that add most error"),
            title_justify="left",
            caption=f"Of {len(self.layers)}, relative to their values; on {self.images} images: {self.images_from}.",
            caption_justify="left",
        )
        for layer in (*worst, self.layers[-1]):
            numbers = f"{layer.added:.2%}", f"{layer.error:.2%}", f"{layer.snr_db:.1f} dB"
            texts = (layer.location, layer.operation, layer.stored_as, *numbers)
            table.add_row(*map(Text, texts), end_section=layer is worst[-1])
        return table


def layer_errors(
    path: str | os.PathLike,
    model: keras.Model,
    images: str | Path | np.ndarray | Iterable | None = None,
) -> LayerErrors:
    """Compares an exported file with the model it was made of, tensor by tensor: names where quantization hurts.

    A .tflite file runs in LiteRT with every tensor kept, a .mlpackage in `CoreMLModel`, rounded to float16 as on a
    phone; the float32 network (`deploy.network`) beside it in Keras, or for a package in NumPy.

    Args:
        path: a .tflite file or .mlpackage folder that `export_tflite` or `export_coreml` made, in any mode.
        model: the EfficientFormer it was exported from; of a file of several input sizes, at the size that is meant.
        images: raw RGB images as for `export_tflite`'s calibration, of which 32 are taken; None means four seeded ones.

    Raises:
        ValueError: the file is of another kind, was not made by this package, or of another model; images are
            unreadable or of another shape.
        OSError: the file is missing.
        ImportError: LiteRT or coremltools is not installed.
    """
    path = Path(path)
    steps = _open(path, model)
    shape = steps.network.input_shape
    pixels = seeded_images(shape) if images is None else read_images(images, shape, IMAGE_LIMIT)
    named = bare_name(images) if isinstance(images, str | Path) else "the given arrays"
    sums: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(3))
    for start in range(0, len(pixels), CHUNK):
        for tensors in steps.compare(network_inputs(pixels[start : start + CHUNK], steps.network)):
            sums[tensors.step] += _squares(tensors)
    return LayerErrors(
        path=str(path),
        model=model.name,
        images=len(pixels),
        images_from="seeded noise" if images is None else named,
        layers=tuple(_layers(steps, sums)),
    )


def _open(path: Path, model: keras.Model) -> FileSteps:
    size = model.inputs[0].shape[1:3]
    if path.suffix == ".tflite":
        check_survival(path)
        signature = name_of_size(signature_sizes(path), size)
        return TFLiteSteps(LiteRTModel(path, keep_tensors=True, signature=signature), model)
    if path.suffix == ".mlpackage":
        # They say what is wrong with it, or that coremltools is not installed.
        package = CoreMLModel(path, function=name_of_size(function_sizes(path), size))
        from keras_efficientformer.deploy.coreml.layer_tensors import CoreMLSteps  # it imports coremltools

        return CoreMLSteps(package, model)
    raise ValueError(f"{path} is neither a .tflite file nor a .mlpackage: only exported files have layers to compare.")


def _squares(tensors: StepTensors) -> np.ndarray:
    """Sums of squares: of the exact values, of the file's error, and of what the step adds to it."""
    exact, expected, found = (np.asarray(array, "float64") for array in tensors[1:])
    return np.array([np.sum(array**2) for array in (exact, found - exact, found - expected)])


def _layers(steps: FileSteps, sums: dict[int, np.ndarray]) -> Iterator[LayerError]:
    together: list[Step] = []
    for number, step in enumerate(steps.network.steps):
        together.append(step)
        if number not in steps.stored:
            continue
        signal, error, added = sums[number]
        yield LayerError(
            number,
            step.location,
            " + ".join(step.operation for step in together),
            *steps.stored[number],
            error=_root_ratio(error, signal),
            snr_db=-20 * math.log10(_root_ratio(error, signal)) if error else math.inf,
            added=_root_ratio(added, signal),
        )
        together = []


def _root_ratio(part: float, whole: float) -> float:
    """sqrt(part / whole); infinite too where a value that is not finite was compared, for a NaN would sort anywhere."""
    if part == 0:
        return 0.0
    ratio = math.sqrt(part / whole) if whole else math.inf
    return ratio if math.isfinite(ratio) else math.inf
