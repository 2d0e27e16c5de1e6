"""Exports a model as a .tflite file, which is run and compared before it gets its name. Room: deploy/tflite."""

import dataclasses
import functools
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_efficientformer import errors
from keras_efficientformer.deploy.calibration import (
    RANGES,
    ROUNDING_EFFECTS,
    Calibration,
    check_calibration,
    images_to_compare,
    kept_for_sizes,
)
from keras_efficientformer.deploy.export import (
    AUTHOR,
    LICENSE,
    ExportJob,
    FurtherSize,
    NPUJob,
    Opened,
    file_path,
    label_names,
    output_description,
    warn_without_labels,
    write_checked,
)
from keras_efficientformer.deploy.file_facts import FileFacts
from keras_efficientformer.deploy.input_sizes import InputSize, described, size_name
from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.deploy.network.rounding.bit_choice import (
    MAX_DROP,
    BitChoice,
    check_choice,
    check_max_drop,
    choose_bits,
)
from keras_efficientformer.deploy.network.rounding.linear import LinearStep, to_linear
from keras_efficientformer.deploy.network.rounding.weight_rounding import Storage
from keras_efficientformer.deploy.report import ExportReport, NPUReport
from keras_efficientformer.deploy.source import SizedNetwork, at_sizes, network_inputs, open_source
from keras_efficientformer.deploy.tflite.accelerators.gpu import check_on_gpu
from keras_efficientformer.deploy.tflite.accelerators.npu import compile_file, run_file
from keras_efficientformer.deploy.tflite.accelerators.npu_targets import NPUTarget, npu_target
from keras_efficientformer.deploy.tflite.metadata import ModelCard
from keras_efficientformer.deploy.tflite.modes import MODES, Mode, stored_bits
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel, quantized, real_values
from keras_efficientformer.deploy.tflite.sizes.joining import join
from keras_efficientformer.deploy.tflite.step_names import INPUT, SIGNATURE
from keras_efficientformer.images import SEEDED_IMAGES
from keras_efficientformer.labels import Labels
from keras_efficientformer.models.assembly import is_integer

PIXEL_RANGE = (0.0, 255.0)
# What these operations of `Builder` give is in 0..1.
UNIT_RANGE = ("softmax", "channel_softmax", "sigmoid")
# What an export can be made to run on besides the CPU.
REQUIREMENTS = (None, "gpu")
# MediaPipe says so itself: "Classification tflite models are assumed to have a single subgraph."
ONE_SIZE = "; MediaPipe's ImageClassifier and ImageSegmenter open files of one input size only"
TFLITE_TOOLS = ("keras-efficientformer", "keras", "ai-edge-litert", "litert-quantizer", "numpy")


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    quantize: str = "none",
    calibration: Calibration | None = None,
    max_drop: float | None = None,
    labels: Labels | None = None,
    include_preprocessing: bool = True,
    feature_maps: bool = False,
    input_sizes: Sequence[InputSize] | None = None,
    batch_size: int = 1,
    io: str = "float32",
    max_difference: float | None = None,
    require: str | None = None,
    npu: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Exports a model as a TFLite file and a report, `.tflite.json`, beside it.

    The file holds the fused network (`deploy.network`): static shapes, no Flex operation, in float32 and float16 one
    XNNPACK partition. It has metadata (labels, normalisation, author, licence) that MediaPipe's ImageClassifier reads,
    the signature "serving_default", the input `image` and the outputs `probabilities` or `logits` (of a model with two
    outputs also `probabilities_distillation` or `logits_distillation`), without a classifier `features` or `embedding`,
    of a segmentation model `masks`, with what its ImageSegmenter wants to know.
    Before it gets its name it is run in LiteRT and compared with the Keras model, on any Keras backend.

    Args:
        model: an EfficientFormer of this package, alone or with a head of standard Keras layers on it, whose outputs
            are named after them (README, "Android"); or what `training` made of one: a pruned model, or a
            quantization-aware one, whose learnt ranges all integer modes take, and "int8" needs no others.
        path: the file to write, `.tflite`; or an existing folder, in which it is called by the model's name, input size
            and mode, e.g. `efficientformer_l1_224_float32.tflite`.
        quantize: "none" (float32), "float16" (weights, and arithmetic where the CPU or GPU can), "dynamic" (int8
            weights, activations quantized while running; the rest as in "float16"), "weight_only" (int8 weights,
            float32 arithmetic), "auto" (int4 or int8 weights with activations quantized while running, or as "float16",
            layer by layer: the fewest bits with which a classifier or segmentation model keeps within `max_drop`,
            rounded so that the layers' outputs on calibration images change least), "int8" (fastest on phones' CPUs:
            all but LayerNorm and attention's products in int8), "int8_integer" (no float operation inside, for NPUs and
            DSPs) or "int16x8" (int16 activations, int8 weights).
        calibration: raw RGB images, values in 0..255: a folder, searched recursively, an array (number, height, width,
            3), or a dataset or other iterable of images or batches, labels left out; at most 128 are taken. "int8",
            "int8_integer" and "int16x8" measure the ranges that nobody has learnt on them, "auto" what rounding
            changes, and cannot do without; all modes are compared with Keras on them, or on four seeded images where
            there are none. With several `input_sizes` they are a folder, or Pillow's images, which are cropped to each.
        max_drop: of "auto", on how many of a hundred calibration images, or of their pixels, the best class may be
            another than the exact network's when the file is run in LiteRT; 0..100, None means 1.
        labels: class names in the order of the outputs, a text file with one in each line, or a dictionary
            {name: index} or {index: name}; None means ImageNet's for 1000 classes, else none.
        include_preprocessing: whether the input is raw RGB, float32 in 0..255, normalised inside; else it is what
            `preprocess_input` returns.
        feature_maps: whether the outputs of the four stages are outputs too, `stage1` to `stage4`, float32 (1, height,
            width, channels), before the model's own.
        input_sizes: sizes in pixels that the file takes, such as [224, 256, (384, 288)] (height, width), the model's
            own among them: one network for each, which share the weights, each compared with Keras at its size. The
            first opens by default and has the signature "serving_default", the others "size_256" and "size_384x288".
            MediaPipe's ImageClassifier and ImageSegmenter refuse files of several. None means the model's own alone.
        batch_size: number of images in one inference, >= 1.
        io: type of the input and the outputs: "float32", or for "int8" and "int8_integer" also "int8" and "uint8".
        max_difference: the largest difference from Keras, relative to the largest output where that is over 1, at which
            the file is written; None means the mode's own limit (`deploy.tflite.modes.MODES`; 1e-5 in float32), and
            `float("inf")` writes whatever comes.
        require: "gpu" writes the file only if LiteRT's GPU engine computes all of it, and what the CPU computes, on
            this machine's GPU or a driver that computes on the CPU (`tflite/gpu/setup.sh` of the source tree).
        npu: the NPU to compile the file for besides, "qualcomm:SM8750", whose maker's compiler is installed
            (`deploy.tflite.accelerators.npu_targets`). The compiled file lies beside the other and has LiteRT's name
            for it, `model_Qualcomm_SM8750.tflite`; the report says what the NPU takes of it. "intel" is compiled for
            OpenVINO on a CPU and compared with Keras here; what is compiled for an NPU proper is not run.
        overwrite: whether existing files may be replaced.

    Returns:
        The `ExportReport`; it is also what the sidecar holds.

    Raises:
        ValueError: an argument is out of its range, labels do not match the classes, weights are not finite, the model
            is no EfficientFormer, or calibration images are needed and not there.
        OSError: the folder is missing or cannot be written to, a file exists and `overwrite` is False, or a GPU is
            required and there is none.
        ImportError: LiteRT, litert-quantizer or the compiler of an NPU's maker is not installed.
        ExportError: the file differs too much from the model, nothing keeps within `max_drop`, the GPU that is required
            does not compute it rightly, or it cannot be compiled for the NPU. Nothing is written.
    """
    started = time.perf_counter()
    source = open_source(model)
    mode = _mode(quantize, io, calibration, source.ranges, max_drop)
    if not is_integer(batch_size) or batch_size < 1:
        raise ValueError(f"`batch_size` should be an integer >= 1. Received: batch_size={batch_size}")
    if require not in REQUIREMENTS:
        raise ValueError(f"`require` should be None or 'gpu'. Received: require={require!r}")
    if npu is not None and input_sizes is not None:
        raise ValueError("A file is compiled for an NPU at one size: leave `input_sizes` or `npu` out.")
    for module in mode.modules:
        errors.require(module, "TFLite export", "litert")
    target = npu_target(npu) if npu is not None else None
    sizes = at_sizes(source, source.network(include_preprocessing, feature_maps), input_sizes, feature_maps)
    source, network = sizes[0].source, sizes[0].network
    if mode.chosen_bits:
        check_choice(f"quantize={quantize!r}", network, len(sizes))
    names = label_names(labels, network)
    warn_without_labels(network, names)
    card, facts = _card(sizes, mode, names), FileFacts.of(network, names)
    calibration = kept_for_sizes(calibration, len(sizes))
    further = tuple(_further_size(sized, calibration, mode, require) for sized in sizes[1:])

    def write(file: Path, images: np.ndarray) -> dict[str, int] | None:
        choice = None
        if mode.chosen_bits:
            choice = _chosen_bits(network, mode, batch_size, images, MAX_DROP if max_drop is None else max_drop)
        graphs = [_graph(choice.network if choice else network, mode, io, batch_size, images, source.ranges, SIGNATURE)]
        for size in further:
            graphs.append(_graph(size.sized.network, mode, io, batch_size, size.images(), {}, size.name))
        file.write_bytes(_content(graphs, card, facts, mode))
        return choice.layers if choice else None

    file = file_path(path, sizes, mode.name, ".tflite")
    return write_checked(
        ExportJob(
            source=source,
            network=network,
            file=file,
            mode=mode.name,
            labels=names,
            limit=mode.limit if max_difference is None else float(max_difference),
            images=lambda: images_to_compare(calibration, network.input_shape, mode.measures),
            write=write,
            run=lambda file, images: _run(file, network, images, require),
            tools=(*TFLITE_TOOLS, *(target.packages if target else ())),
            requires=f"TensorFlow Lite {mode.runtime} or newer{ONE_SIZE if further else ''}",
            overwrite=overwrite,
            started=started,
            quantized=mode.name == "int8",
            npu=_npu_job(file, target, network) if target else None,
            further=further,
        )
    )


def _further_size(
    sized: SizedNetwork, calibration: Calibration | None, mode: Mode, required: str | None
) -> FurtherSize:
    network = sized.network
    return FurtherSize(
        sized,
        images=functools.cache(lambda: images_to_compare(calibration, network.input_shape, mode.measures)[0]),
        run=lambda file, images: _run(file, network, images, required, size_name(sized.size)),
    )


def _npu_job(file: Path, target: NPUTarget, network: FusedNetwork) -> NPUJob:
    file = file.with_name(f"{file.stem}{target.suffix}{file.suffix}")

    def make(
        exported: Path, compiled: Path, opened: Opened, images: np.ndarray
    ) -> tuple[NPUReport, dict[str, np.ndarray] | None]:
        report = dataclasses.replace(compile_file(exported, compiled, target), path=str(file))
        if not target.libraries:
            return report, None
        (image,) = opened.inputs
        stored = run_file(compiled, quantized(network_inputs(images, network), image), image.shape[0], target)
        return report, {tensor.name: real_values(stored[tensor.name], tensor) for tensor in opened.outputs}

    return NPUJob(file, make)


def _run(
    file: Path, network: FusedNetwork, images: np.ndarray, required: str | None, signature: str | None = None
) -> Opened:
    opened = LiteRTModel(file, signature=signature)
    inputs = network_inputs(images, network)
    results = opened.predict(inputs)
    accelerator = _on_gpu(file, inputs, signature) if required else None
    return Opened(opened.inputs, opened.outputs, opened.operations(), opened.partitions(), results, accelerator)


def _on_gpu(file: Path, inputs: np.ndarray, signature: str | None) -> str:
    """What the GPU engine makes of a file, on images as the file takes them.

    Raises:
        ExportError: it does not compute all of it rightly.
    """
    # A driver that computes on the CPU takes its time, and four images show what there is to see.
    found = check_on_gpu(file, inputs[:SEEDED_IMAGES], signature)
    if not found.passes:
        raise errors.ExportError(f"{file.name} was not written, because the GPU is required: {found.verdict}.")
    return found.verdict


def _mode(
    quantize: str,
    io: str,
    calibration: Calibration | None,
    ranges: dict[int, list[tuple[float, float]]],
    max_drop: float | None,
) -> Mode:
    if quantize not in MODES:
        raise ValueError(f"`quantize` should be one of {', '.join(MODES)}. Received: quantize={quantize!r}")
    mode = MODES[quantize]
    if io not in mode.io_types:
        raise ValueError(f"`io` should be {' or '.join(mode.io_types)} with quantize={quantize!r}. Received: io={io!r}")
    check_max_drop(max_drop, "quantize", quantize, mode.chosen_bits)
    if mode.chosen_bits:
        check_calibration(f"quantize={quantize!r}", calibration, ROUNDING_EFFECTS)
    if mode.calibrated and not (ranges and mode.name == "int8"):
        not_learnt = "what training has not learnt the ranges of (LayerNorm, softmax, attention's products)"
        check_calibration(f"quantize={quantize!r}", calibration, not_learnt if ranges else RANGES)
    return mode


def _input_range(network: FusedNetwork) -> dict[str, tuple[float, float]]:
    """{the input: its (smallest, largest)} for any pixels, whatever calibration images have; nothing where nobody knows
    how those are normalised."""
    if network.preprocessing:
        return {INPUT: PIXEL_RANGE}
    if network.normalization is None:
        return {}
    ends = network.normalization(np.stack([np.full(network.input_shape[2], pixel) for pixel in PIXEL_RANGE]))
    return {INPUT: (float(ends.min()), float(ends.max()))}


def _output_ranges(network: FusedNetwork) -> dict[str, tuple[float, float]]:
    """{output: its (smallest, largest)} of those whose range is known without images."""
    # Names say nothing: a head of one's own may call anything `probabilities`.
    makers = {result: step.operation for step in network.steps for result in step.results}
    ends = {step.arguments["name"]: makers[step.arguments["x"]] for step in network.steps if step.operation == "output"}
    return {name: (0.0, 1.0) for name, operation in ends.items() if operation in UNIT_RANGE}


def _chosen_bits(network: FusedNetwork, mode: Mode, batch_size: int, images: np.ndarray, max_drop: float) -> BitChoice:
    """The network with weights of the fewest bits, each choice being tried as a file in LiteRT."""
    inputs = network_inputs(images, network)

    def answers(changed: FusedNetwork, inputs: np.ndarray) -> np.ndarray:
        # It imports ai_edge_litert, which not every installation has.
        from keras_efficientformer.deploy.tflite import file as tflite_file

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "tried.tflite")
            graph = _graph(changed, mode, "float32", batch_size, images, {}, SIGNATURE)
            file.write_bytes(tflite_file.computable(graph, mode.float16_arithmetic))
            return LiteRTModel(file).predict(inputs)[network.outputs[-1]].argmax(-1)

    return choose_bits(network, inputs, max_drop, Storage("tflite", stored_bits, to_linear), answers)


def _graph(
    network: FusedNetwork,
    mode: Mode,
    io: str,
    batch_size: int,
    images: np.ndarray,
    ranges: dict[int, list[tuple[float, float]]],
    signature: str,
) -> Any:
    """The file of one input size, a `ModelT` with its ends named."""
    # These import ai_edge_litert, which not every installation has.
    from keras_efficientformer.deploy.tflite import file as tflite_file
    from keras_efficientformer.deploy.tflite import quantization
    from keras_efficientformer.deploy.tflite.builder import TFLiteBuilder

    linear = {number: step for number, step in enumerate(network.steps) if isinstance(step, LinearStep)}
    builder = TFLiteBuilder(batch_size, mode.kernels, mode.float16_weights, linear)
    network.build(builder)
    file = builder.graph.file()
    if mode.recipe:
        if mode.calibrated:
            quantization.part_last_operator(file)
        learned = quantization.tensor_ranges(file, network, ranges)
        known = _input_range(network) | learned | _output_ranges(network)
        tflite_file.name_ends(file, network.outputs)
        inputs = network_inputs(images, network)
        content = quantization.quantize(tflite_file.pack(file), mode, io, inputs, batch_size, known)
        file = tflite_file.read(content)
    tflite_file.name_ends(file, network.outputs, signature)
    return file


def _content(graphs: Sequence[Any], card: ModelCard, facts: FileFacts, mode: Mode) -> bytes:
    """The finished file's content, of its networks at each input size."""
    # These import ai_edge_litert, which not every installation has.
    from keras_efficientformer.deploy.tflite import file as tflite_file
    from keras_efficientformer.deploy.tflite.sizes.tables import shrink_tables

    if len(graphs) > 1 and mode.recipe:
        for graph in graphs:
            shrink_tables(graph, to_int8=mode.calibrated)
    return tflite_file.finish(join(graphs), card, facts, mode.runtime, mode.float16_arithmetic)


def _card(sizes: Sequence[SizedNetwork], mode: Mode, labels: tuple[str, ...] | None) -> ModelCard:
    network, pixels_of_sizes = sizes[0].network, ", ".join(described(sized.size) for sized in sizes)
    if network.preprocessing:
        pixels, unit, description = PIXEL_RANGE, (0.0, 1.0), "RGB image, values in 0..255; normalised inside."
    elif network.normalization is None:
        pixels, unit, description = (-1.0, 1.0), (127.5, 127.5), "Image, normalised as in training."
    else:
        # MediaPipe takes one mean and deviation for all channels: the averages come closest.
        all_means, all_stds = network.normalization.mean, network.normalization.std
        mean, std = 255.0 * float(np.mean(all_means)), 255.0 * float(np.mean(all_stds))
        pixels, unit = (-mean / std, (255.0 - mean) / std), (mean, std)
        description = f"RGB image, (pixel / 255 - {all_means}) / {all_stds} for each channel."
    return ModelCard(
        name=f"{network.name} {pixels_of_sizes} {mode.name}",
        description=f"{network.paper}, {pixels_of_sizes}, {mode.name}, by keras-efficientformer.",
        version=importlib.metadata.version("keras-efficientformer"),
        author=AUTHOR,
        license=LICENSE,
        input_name=INPUT,
        input_description=description,
        pixel_range=pixels,
        mean=unit[0],
        std=unit[1],
        outputs=tuple((name, output_description(name)) for name in network.outputs),
        labels=labels,
        mask_activation=("none" if network.softmax else "softmax") if network.has_masks else None,
    )
