"""The way to Android: a Keras model becomes a .tflite file that has been run and compared before it gets its name."""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np

from keras_efficientformer.checkpoint_files import finished_file
from keras_efficientformer.conversion import source_of
from keras_efficientformer.deploy.images import read_images, seeded_images
from keras_efficientformer.deploy.litert import LiteRTModel
from keras_efficientformer.deploy.network import fuse
from keras_efficientformer.deploy.recording import FusedNetwork
from keras_efficientformer.deploy.report import Difference, ExportReport, compare, versions_of
from keras_efficientformer.imagenet import MEAN, imagenet_labels, preprocess_input

# Each mode: what it is called in file names, and how far its outputs may be from Keras' (`Difference.relative`).
MODES = {"none": ("float32", 1e-5)}

CALIBRATION_LIMIT = 128
SIGNATURE = "serving_default"
INPUT = "image"


class ExportError(RuntimeError):
    """The exported file does not do what the model does, so it was not written; the message says by how much."""


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    quantize: str = "none",
    calibration: str | os.PathLike | np.ndarray | Iterable | None = None,
    labels: str | os.PathLike | list[str] | None = None,
    include_preprocessing: bool = True,
    batch_size: int = 1,
    max_difference: float | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Exports a model as a TFLite file and a report, `.json`, beside it.

    The file holds the fused network (`deploy.network`): static shapes, one XNNPACK partition, no Flex operation. It has
    the signature "serving_default", the input `image` and the outputs `probabilities` or `logits` (of a model with two
    outputs also `probabilities_distillation` or `logits_distillation`), without a classifier `features` or `embedding`.
    Before it gets its name it is run in LiteRT and compared with the Keras model, on any Keras backend.

    Args:
        model: an EfficientFormer of this package.
        path: the file to write, `.tflite`; or an existing folder, in which it is called by the model's name, input size
            and mode, e.g. `efficientformer_l1_224_float32.tflite`.
        quantize: "none" (float32 weights and activations).
        calibration: raw RGB images to measure on: a folder, searched recursively, or arrays (height, width, 3) in
            0..255; None means four seeded ones. At most 128 are taken.
        labels: class names, or a text file with one in each line; None means ImageNet's for 1000 classes, else none.
        include_preprocessing: whether the input is raw RGB, float32 in 0..255, normalised inside; else it is what
            `preprocess_input` returns.
        batch_size: number of images in one inference, >= 1.
        max_difference: the largest difference from Keras, relative to the largest output where that is over 1, at which
            the file is written; None means the mode's own limit (1e-5), `float("inf")` writes whatever comes.
        overwrite: whether existing files may be replaced.

    Returns:
        The `ExportReport`; it is also what the sidecar holds.

    Raises:
        ValueError: an argument is out of its range, labels do not match the classes, weights are not finite, the model
            is no EfficientFormer, or there are no calibration images.
        OSError: the folder is missing or cannot be written to, or a file exists and `overwrite` is False.
        ImportError: TensorFlow or LiteRT is not installed.
        ExportError: the file differs too much from the model. It is not written.
    """
    started = time.perf_counter()
    if quantize not in MODES:
        raise ValueError(f"`quantize` should be one of {', '.join(MODES)}. Received: quantize={quantize!r}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` should be an integer >= 1. Received: batch_size={batch_size}")
    _require("tensorflow", "ai_edge_litert")
    mode, mode_limit = MODES[quantize]
    limit = mode_limit if max_difference is None else max_difference
    network = fuse(model, include_preprocessing)
    label_names = _labels(labels, network.classes)
    file = _file_path(path, network, mode)

    with finished_file(file, overwrite) as partial, finished_file(file.with_suffix(".json"), overwrite) as sidecar:
        images, images_from = _images(calibration, network.input_shape)
        partial.write_bytes(_convert(network, batch_size))
        exported = LiteRTModel(partial)
        differences = _differences(model, network, exported, images)
        _check(differences, limit, file)
        report = ExportReport(
            path=str(file),
            mode=mode,
            size=partial.stat().st_size,
            model=network.name,
            preprocessing=network.preprocessing,
            inputs=exported.inputs,
            outputs=exported.outputs,
            labels=label_names,
            differences=differences,
            limit=limit,
            images=len(images),
            images_from=images_from,
            operations=exported.operations(),
            checkpoint=_checkpoint(model),
            versions=versions_of("keras-efficientformer", "keras", "tensorflow", "ai-edge-litert", "numpy"),
            seconds=round(time.perf_counter() - started, 2),
        )
        sidecar.write_text(report.to_json())
    return report


def _require(*modules):
    for module in modules:
        try:
            __import__(module)
        except ImportError as error:
            raise ImportError(
                f"TFLite export needs {module.replace('_', '-')}: pip install 'keras-efficientformer[tflite]'"
            ) from error


def _labels(labels, classes):
    if labels is None:
        return tuple(name for _, name in imagenet_labels()) if classes == len(imagenet_labels()) else None
    if isinstance(labels, str | os.PathLike):
        labels = Path(labels).read_text(encoding="utf-8").splitlines()
    if len(labels) != classes:
        raise ValueError(f"The model has {classes} classes and there are {len(labels)} labels: one for each is needed.")
    return tuple(labels)


def _file_path(path, network, mode):
    path = Path(path)
    if path.is_dir():
        height, width, _ = network.input_shape
        size = f"{height}" if height == width else f"{height}x{width}"
        return path / f"{network.name}_{size}_{mode}.tflite"
    if path.suffix != ".tflite":
        raise ValueError(f"A TFLite file's name ends in .tflite, or the path is an existing folder. Received: {path}")
    return path


def _images(calibration, input_shape):
    if calibration is None:
        return seeded_images(input_shape), "seeded noise"
    images = read_images(calibration, input_shape, CALIBRATION_LIMIT)
    return images, str(calibration) if isinstance(calibration, str | os.PathLike) else "the given arrays"


def _convert(network: FusedNetwork, batch_size: int) -> bytes:
    import tensorflow as tf

    from keras_efficientformer.deploy.tensorflow_builder import TensorFlowBuilder

    specification = tf.TensorSpec((batch_size, *network.input_shape), tf.float32, name=INPUT)

    @tf.function(input_signature=[specification], autograph=False)
    def function(image):
        return list(network.build(TensorFlowBuilder(image)).values())

    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], function)
    return _with_names(converter.convert(), network.outputs)


def _with_names(content, outputs):
    """The file with its output tensors named and a signature, neither of which converting a function gives."""
    from tensorflow.lite.tools import flatbuffer_utils

    schema = flatbuffer_utils.schema_fb
    file = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = file.subgraphs[0]
    signature = schema.SignatureDefT()
    signature.signatureKey = SIGNATURE
    signature.subgraphIndex = 0
    signature.inputs, signature.outputs = [], []
    ends = ((graph.inputs, (INPUT,), signature.inputs), (graph.outputs, outputs, signature.outputs))
    for indices, names, entries in ends:
        for index, name in zip(indices, names, strict=True):
            graph.tensors[index].name = name
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, index
            entries.append(entry)
    file.signatureDefs = [signature]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(file))


def _differences(model, network, exported, images) -> tuple[Difference, ...]:
    # Of other images than RGB nobody knows the normalisation; any range that networks are used to will do.
    normalised = preprocess_input(images) if images.shape[-1] == len(MEAN) else images / 127.5 - 1.0
    expected = model.predict(normalised, verbose=0)
    expected = expected if isinstance(expected, list | tuple) else [expected]
    found = exported.predict(images if network.preprocessing else normalised)
    return tuple(
        compare(name, keras_output, found[name], network.classes is not None)
        for name, keras_output in zip(network.outputs, expected, strict=True)
    )


def _check(differences, limit, path):
    for difference in differences:
        if not difference.relative <= limit:
            raise ExportError(
                f"{path} was not written: its output {difference.output} differs from the Keras model's by "
                f"{difference.max:.3g} (relative {difference.relative:.3g}, mean {difference.mean:.3g}), and the limit "
                f"is {limit:.3g}. Raise max_difference if that is acceptable."
            )


def _checkpoint(model):
    source = source_of(model)
    if source is None:
        return None
    with contextlib.suppress(OSError), open(source, "rb") as file:
        return {"file": Path(source).name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return {"file": Path(source).name, "sha256": "unknown: the file is gone"}
