"""The way to Android: a Keras model becomes a .tflite file that has been run and compared before it gets its name."""

import importlib.metadata
import os
import sys
import time
from collections.abc import Iterable
from numbers import Integral

import keras
import numpy as np

from keras_efficientformer.checkpoint_files import finished_file
from keras_efficientformer.deploy import exporting
from keras_efficientformer.deploy.images import read_images, seeded_images
from keras_efficientformer.deploy.litert import LiteRTModel
from keras_efficientformer.deploy.network import fuse
from keras_efficientformer.deploy.recording import FusedNetwork
from keras_efficientformer.deploy.report import ExportReport, versions_of
from keras_efficientformer.deploy.tflite_metadata import ModelCard
from keras_efficientformer.deploy.tflite_modes import INPUT, MODES, Mode
from keras_efficientformer.deploy.tflite_modes import quantize as quantize_file
from keras_efficientformer.imagenet import MEAN, STD

CALIBRATION_LIMIT = 128
PIXEL_RANGE = (0.0, 255.0)
TOOLS = ("keras-efficientformer", "keras", "ai-edge-litert", "ai-edge-quantizer", "numpy")


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    quantize: str = "none",
    calibration: str | os.PathLike | np.ndarray | Iterable | None = None,
    labels: str | os.PathLike | list[str] | None = None,
    include_preprocessing: bool = True,
    batch_size: int = 1,
    io: str = "float32",
    max_difference: float | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Exports a model as a TFLite file and a report, `.json`, beside it.

    The file holds the fused network (`deploy.network`): static shapes, no Flex operation, in float32 and float16 one
    XNNPACK partition. It has metadata (labels, normalisation, author, licence) that MediaPipe's ImageClassifier reads,
    the signature "serving_default", the input `image` and the outputs `probabilities` or `logits` (of a model with two
    outputs also `probabilities_distillation` or `logits_distillation`), without a classifier `features` or `embedding`.
    Before it gets its name it is run in LiteRT and compared with the Keras model, on any Keras backend.

    Args:
        model: an EfficientFormer of this package, or what `training` made of one: a quantization-aware model, whose
            learnt ranges "int8" takes, so that it needs no calibration, or a pruned one.
        path: the file to write, `.tflite`; or an existing folder, in which it is called by the model's name, input size
            and mode, e.g. `efficientformer_l1_224_float32.tflite`.
        quantize: "none" (float32), "float16" (weights, and arithmetic where the CPU or GPU can), "dynamic" (int8
            weights, activations quantized while running; the rest as in "float16"), "weight_only" (int8 weights,
            float32 arithmetic), "int8" (fastest on phones' CPUs: all but LayerNorm and attention's products in int8),
            "int8_integer" (no float operation inside, for NPUs and DSPs) or "int16x8" (int16 activations, int8
            weights).
        calibration: raw RGB images, values in 0..255: a folder, searched recursively, an array (number, height, width,
            3), or a dataset or other iterable of images or batches, labels left out; at most 128 are taken. "int8",
            "int8_integer" and "int16x8" measure their ranges on them and cannot do without; all modes are compared with
            Keras on them, or on four seeded images where there are none.
        labels: class names, or a text file with one in each line; None means ImageNet's for 1000 classes, else none.
        include_preprocessing: whether the input is raw RGB, float32 in 0..255, normalised inside; else it is what
            `preprocess_input` returns.
        batch_size: number of images in one inference, >= 1.
        io: type of the input and the outputs: "float32", or for "int8" and "int8_integer" also "int8" and "uint8".
        max_difference: the largest difference from Keras, relative to the largest output where that is over 1, at which
            the file is written; None means the mode's own limit (`tflite_modes.MODES`; 1e-5 in float32), and
            `float("inf")` writes whatever comes.
        overwrite: whether existing files may be replaced.

    Returns:
        The `ExportReport`; it is also what the sidecar holds.

    Raises:
        ValueError: an argument is out of its range, labels do not match the classes, weights are not finite, the model
            is no EfficientFormer, or calibration images are needed and not there.
        OSError: the folder is missing or cannot be written to, or a file exists and `overwrite` is False.
        ImportError: LiteRT or ai-edge-quantizer is not installed.
        ExportError: the file differs too much from the model. It is not written.
    """
    started = time.perf_counter()
    ranges = _trained_ranges(model)
    mode = _mode(quantize, io, calibration, ranges)
    if not isinstance(batch_size, Integral) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"`batch_size` should be an integer >= 1. Received: batch_size={batch_size}")
    exporting.require("TFLite", "tflite", "ai_edge_litert", *(["ai_edge_quantizer"] if mode.recipe else []))
    limit = mode.limit if max_difference is None else float(max_difference)
    model, network = _network(model, include_preprocessing, mode)
    label_names = exporting.label_names(labels, network.classes)
    file = exporting.file_path(path, network, mode.name, ".tflite")

    with finished_file(file, overwrite) as partial, finished_file(file.with_suffix(".json"), overwrite) as sidecar:
        images, images_from = _images(calibration, network.input_shape)
        card = _card(network, mode, label_names)
        partial.write_bytes(_content(network, mode, io, batch_size, images, ranges, card))
        exported = LiteRTModel(partial)
        found = exported.predict(exporting.network_inputs(images, network))
        differences = _differences(model, network, found, images)
        exporting.check(differences, limit, file)
        report = ExportReport(
            path=str(file),
            mode=mode.name,
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
            partitions=exported.partitions(),
            checkpoint=exporting.checkpoint_of(model),
            versions=versions_of(*TOOLS),
            seconds=round(time.perf_counter() - started, 2),
        )
        sidecar.write_text(report.to_json())
    return report


def _is_tf_keras(model):
    return "tf_keras" in sys.modules and isinstance(model, sys.modules["tf_keras"].Model)


def _trained_ranges(model):
    """What a quantization-aware model has learnt; nothing of others."""
    if not _is_tf_keras(model):
        return {}
    from keras_efficientformer.deploy.tf_keras_builder import trained_ranges

    return trained_ranges(model)


def _network(model, include_preprocessing, mode):
    """The model that the file is compared with, and the network that goes into it."""
    if not _is_tf_keras(model):
        return model, fuse(model, include_preprocessing)
    from keras_efficientformer.deploy.tf_keras_builder import build_tf_keras, trained_network

    network = trained_network(model)
    if network.preprocessing != include_preprocessing:
        raise ValueError(
            f"{model.name} was made for training with include_preprocessing={network.preprocessing}: export it with "
            f"the same. Received: include_preprocessing={include_preprocessing}"
        )
    # A quantization-aware model computes as "int8" does, and as no other mode.
    return model if mode.name == "int8" else build_tf_keras(network), network


def _differences(model, network, found, images):
    if not _is_tf_keras(model):
        return exporting.differences(model, network, found, images)
    expected = model.predict(exporting.network_inputs(images, network), verbose=0)
    return exporting.compare_outputs(expected, network, found)


def _mode(quantize, io, calibration, ranges):
    if quantize not in MODES:
        raise ValueError(f"`quantize` should be one of {', '.join(MODES)}. Received: quantize={quantize!r}")
    mode = MODES[quantize]
    if io not in mode.io_types:
        raise ValueError(f"`io` should be {' or '.join(mode.io_types)} with quantize={quantize!r}. Received: io={io!r}")
    if mode.calibrated and calibration is None and not (ranges and mode.name == "int8"):
        raise ValueError(
            f"quantize={quantize!r} measures the ranges of activations: pass calibration, a folder of a hundred or so "
            "photographs like those the model will see, or arrays."
        )
    return mode


def _known_ranges(network):
    ranges = {name: (0.0, 1.0) for name in network.outputs if name.startswith(("probabilities", "scores"))}
    return ranges | ({INPUT: PIXEL_RANGE} if network.preprocessing else {})


def _images(calibration, input_shape):
    if calibration is None:
        return seeded_images(input_shape), "seeded noise"
    images = read_images(calibration, input_shape, CALIBRATION_LIMIT)
    return images, str(calibration) if isinstance(calibration, str | os.PathLike) else "the given arrays"


def _content(
    network: FusedNetwork, mode: Mode, io: str, batch_size: int, images: np.ndarray, ranges: dict, card: ModelCard
) -> bytes:
    """The finished file's."""
    from keras_efficientformer.deploy import tflite_file
    from keras_efficientformer.deploy.tflite_builder import StepScopes, TFLiteBuilder
    from keras_efficientformer.deploy.tflite_steps import tensor_ranges

    builder = TFLiteBuilder(batch_size, mode.kernels, mode.float16_weights)
    network.build(StepScopes(builder))
    file = builder.graph.file()
    if mode.recipe:
        known = tensor_ranges(file, network, ranges) | _known_ranges(network)
        tflite_file.name_ends(file, network.outputs)
        inputs = exporting.network_inputs(images, network)
        content = quantize_file(tflite_file.pack(file), mode, io, inputs, batch_size, known)
        file = tflite_file.read(content)
    return tflite_file.finish(file, network.outputs, card, mode.float16_arithmetic)


def _card(network, mode, labels):
    height, width, _ = network.input_shape
    if network.preprocessing:
        pixels, unit, description = PIXEL_RANGE, (0.0, 1.0), "RGB image, values in 0..255; normalised inside."
    else:
        # MediaPipe takes one mean and deviation for all channels: ImageNet's averages come closest.
        mean, std = 255.0 * float(np.mean(MEAN)), 255.0 * float(np.mean(STD))
        pixels, unit = (-mean / std, (255.0 - mean) / std), (mean, std)
        description = f"RGB image, (pixel / 255 - {MEAN}) / {STD} for each channel."
    return ModelCard(
        name=f"{network.name} {height}x{width} {mode.name}",
        description=f"{network.paper}, {height}x{width}, {mode.name}, by keras-efficientformer.",
        version=importlib.metadata.version("keras-efficientformer"),
        author=exporting.AUTHOR,
        license=exporting.LICENSE,
        input_name=INPUT,
        input_description=description,
        pixel_range=pixels,
        mean=unit[0],
        std=unit[1],
        outputs=tuple((name, exporting.OUTPUT_DESCRIPTIONS[name.partition("_")[0]]) for name in network.outputs),
        labels=labels,
    )
