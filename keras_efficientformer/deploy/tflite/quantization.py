"""Quantizes a float32 .tflite file by a mode's recipe, with litert-quantizer. Room: deploy/tflite."""

import contextlib
import copy
import os
from collections import defaultdict
from collections.abc import Iterator
from io import StringIO
from typing import Any

import numpy as np

from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.deploy.tflite.file import operators, read, tensor_names
from keras_efficientformer.deploy.tflite.graph import LARGEST_INT8, code_number, schema, text
from keras_efficientformer.deploy.tflite.modes import Mode
from keras_efficientformer.deploy.tflite.step_names import INPUT, SIGNATURE, steps_in
from keras_efficientformer.errors import ExportError, listing

# {name of a tensor: {"min": its smallest value, "max": its largest}}, each an array; litert-quantizer has none for
# tensors that stay in float32.
MeasuredRanges = dict[str, dict[str, np.ndarray]]

# XNNPACK adds int8 tensors whose scales are no smaller than this share of the sum's. Of a smaller one (under a fresh
# layer scale of 1e-5) nothing reaches the sum, so that a coarser scale loses nothing.
SMALLEST_SHARE = 2.0**-9

# litert-quantizer takes no shorter range, in whose steps neither sums nor biases could be counted.
SMALLEST_SPAN = 1e-9
# litert-quantizer leaves out infinite values and those near them.
LARGEST_SPAN = 1e37
# LiteRT has kernels of their own for steps of int16 that are powers of two, with other conditions.
REVIVED = 0.75
BIASED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
CHANNEL_AXES = {"DEPTHWISE_CONV_2D": 3}

# These operators give what they take, in another shape, and share its quantization.
RESHAPING = ("PAD", "RESHAPE")
# Nothing is learnt of the inner tensors of these steps: those of LayerNorm are float, those of the mixer its input's
# border.
LAST_ONLY = ("layer_norm", "group_norm", "pooling_mixer")


def quantize(
    content: bytes,
    mode: Mode,
    io: str,
    images: np.ndarray,
    batch_size: int,
    known_ranges: dict[str, tuple[float, float]],
) -> bytes:
    """A float32 file quantized by the recipe of `mode`.

    Args:
        content: the float32 file's content, its ends named.
        mode: the mode, which has a recipe.
        io: the type of input and output, one of the mode's `io_types`.
        images: float32 array (number, height, width, channels) in the file's input range; where the mode is calibrated,
            the ranges of its activations are the smallest and largest values seen on them.
        batch_size: of the file.
        known_ranges: (smallest, largest) of tensors, by name, that do not depend on the images: of the input, so that
            whole pixel values stay whole, and of probabilities, so that none is cut off at the largest one seen.

    Returns:
        The quantized file's content.

    Raises:
        ExportError: values on the images are not finite.
    """
    from litert_quantizer import quantizer
    from litert_quantizer.recipe_manager import RecipeManager

    recipe = RecipeManager()
    assert mode.recipe is not None
    mode.recipe(recipe)
    if mode.calibrated:
        _set_io(recipe, io)
    tool = quantizer.Quantizer(bytearray(content), recipe.get_quantization_recipe())
    with _silent():
        ranges = _ranges(content, recipe, images, batch_size) if mode.calibrated else None
    if ranges is not None:
        _check_finite(ranges)
        for name in known_ranges.keys() & ranges.keys():  # outputs that stay in float32 have none
            ends = zip(("min", "max"), known_ranges[name], strict=True)
            ranges[name] = {end: np.full_like(ranges[name][end], value) for end, value in ends}
        file = read(content)
        _share_with_borders(file, ranges)
        _widen(file, ranges)
        _revive(file, ranges)
        _keep_biases(file, ranges, 16 if mode.name == "int16x8" else 8)
    with _silent():
        return bytes(tool.quantize(ranges).quantized_model)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps what the quantizer prints, sizes and a progress bar for each of its steps, off both outputs."""
    with contextlib.redirect_stdout(StringIO()), contextlib.redirect_stderr(StringIO()):
        yield


def _ranges(content: bytes, recipe: Any, images: np.ndarray, batch_size: int) -> MeasuredRanges:
    """{tensor: its smallest and largest value}. The quantizer's own moving average would cut the extremes off, and make
    the file depend on the order of the images."""
    from litert_quantizer import calibrator
    from litert_quantizer.utils.qsv_utils import min_max_update

    tool = calibrator.Calibrator(bytearray(content), num_threads=os.cpu_count() or 1, qsv_update_func=min_max_update)
    samples = [{INPUT: np.repeat(image[None], batch_size, axis=0)} for image in images]
    tool.calibrate({SIGNATURE: samples}, recipe)
    return tool.get_model_qsvs()


def _check_finite(ranges: MeasuredRanges) -> None:
    """Raises `ExportError` for tensors whose values overflow: LiteRT ends the process where a scale is infinite."""
    endless = [name for name, ends in ranges.items() if ends and not _span(ends) < LARGEST_SPAN]
    if endless:
        raise ExportError(
            "Nothing was written: on the calibration images the model's values in float32 are infinite, none, or over "
            f"{LARGEST_SPAN:.1g}, first in {listing(endless)}. Its weights are damaged or far too large."
        )


def _share_with_borders(file: Any, ranges: MeasuredRanges) -> None:
    """Gives the borders that the pooling mixer joins to its input the input's range: of another one, they would have to
    be quantized anew."""
    names = tensor_names(file)
    sliced_from: dict[int, int] = {}
    for kind, operator in operators(file):
        if kind == "SLICE":
            sliced_from[operator.outputs[0]] = operator.inputs[0]
        # Those of a head of one's own are of two, whose ranges are their own.
        if kind == "CONCATENATION" and len(operator.inputs) == 3:
            first, middle, last = operator.inputs
            for index in (first, last, *operator.outputs):
                ranges[names[index]] = ranges[names[middle]]
                if index in sliced_from:
                    ranges[names[sliced_from[index]]] = ranges[names[middle]]


def _widen(file: Any, ranges: MeasuredRanges) -> None:
    """Widens the ranges of tensors that are too small beside the sum they go into."""
    names = tensor_names(file)
    # A tensor that is reshaped takes its quantization along.
    origins = {operator.outputs[0]: operator.inputs[0] for kind, operator in operators(file) if kind == "RESHAPE"}
    for kind, operator in operators(file):
        if kind != "ADD":
            continue
        total = ranges.get(names[operator.outputs[0]])
        parts = [*operator.inputs, *(origins[index] for index in operator.inputs if index in origins)]
        for part in filter(None, (ranges.get(names[index]) for index in parts)):
            if total and _span(part) < (smallest := SMALLEST_SHARE * _span(total)):
                part["max"] = np.full_like(part["max"], smallest)


def _revive(file: Any, ranges: MeasuredRanges) -> None:
    """Gives tensors that are zero on all images a range for what other images may make of them."""
    for ends in filter(None, ranges.values()):
        if _span(ends) < SMALLEST_SPAN:
            ends["max"] = np.full_like(ends["max"], REVIVED)
    names = tensor_names(file)
    for kind, operator in operators(file):
        total = ranges.get(names[operator.outputs[0]])
        parts = [part for index in operator.inputs if (part := ranges.get(names[index]))]
        if kind in ("ADD", "SUB") and total and parts:
            # LiteRT ends the process where a sum's scale is some ten thousandth of a part's.
            smallest = SMALLEST_SHARE * max(map(_span, parts))
            if _span(total) < smallest:
                total["max"] = np.full_like(total["max"], smallest)


def _keep_biases(file: Any, ranges: MeasuredRanges, bits: int) -> None:
    """Widens the ranges of weights, channel by channel, whose bias would not fit into its 32 bits: it is counted in
    steps of the weights' scale, which next to nothing is left of in a dead or pruned channel, times the input's.

    Args:
        file: the float32 file (`ModelT`).
        ranges: of its tensors, to which those of such weights are added.
        bits: of activations.
    """
    names = tensor_names(file)
    for kind, operator in operators(file):
        if kind not in BIASED or names[operator.inputs[0]] not in ranges:
            continue
        image, weights, bias = operator.inputs
        # Half of the bits are left to what is added to the bias.
        needed = LARGEST_INT8 * np.abs(_constant(file, bias)) / (_span(ranges[names[image]]) / 2**bits * 2.0**30)
        values = _constant(file, weights)
        others = tuple(axis for axis in range(values.ndim) if axis != CHANNEL_AXES.get(kind, 0))
        needed = np.expand_dims(needed, others)
        found = np.abs(values).max(others, keepdims=True)
        # Equal weights are stored once.
        found = ranges[names[weights]]["max"] if names[weights] in ranges else found
        if (found < needed).any():
            largest = np.maximum(found, needed).astype("float32")
            ranges[names[weights]] = {"min": -largest, "max": largest}


def _constant(file: Any, index: int) -> np.ndarray:
    """The values of a float32 tensor of a file of one network; of what is computed there are none."""
    tensor = file.subgraphs[0].tensors[index]
    data = file.buffers[tensor.buffer].data
    return np.zeros(0, "float32") if data is None else np.asarray(data, "uint8").view("float32").reshape(tensor.shape)


def _span(ends: dict[str, np.ndarray]) -> float:
    """The length of a range, which includes zero."""
    return float(max(ends["max"].max(), 0.0) - min(ends["min"].min(), 0.0))


def _set_io(recipe: Any, io: str) -> None:
    from litert_quantizer import qtyping
    from litert_quantizer.algorithm_manager import AlgorithmName

    for end in ("INPUT", "OUTPUT"):
        if io == "float32":
            recipe.add_quantization_config(".*", end, None, AlgorithmName.NO_QUANTIZE)
        elif io == "int8":
            recipe.add_static_config(".*", end, 8, 8)
        else:
            values = qtyping.TensorQuantizationConfig(num_bits=8, symmetric=False, dtype=qtyping.TensorDataType.UINT)
            weights = qtyping.TensorQuantizationConfig(num_bits=8, granularity=qtyping.QuantGranularity.CHANNELWISE)
            config = qtyping.OpQuantizationConfig(
                activation_tensor_config=values,
                weight_tensor_config=weights,
                compute_precision=qtyping.ComputePrecision.INTEGER,
            )
            recipe.add_quantization_config(".*", end, config)


def part_last_operator(file: Any) -> None:
    """Gives the last operator of a float32 file (`ModelT`) copies of those outputs that it takes.

    litert-quantizer has the last operator of a file take what apps get of an output, of another type than its own.
    """
    graph = file.subgraphs[0]
    last = graph.operators[-1]
    for index in sorted(set(graph.outputs).intersection(last.inputs)):
        copied, number = copy.copy(graph.tensors[index]), len(graph.tensors)
        copied.name = f"{text(copied.name)}_copy"
        graph.tensors.append(copied)
        last.inputs = [number if taken == index else taken for taken in last.inputs]
        reshape = schema.OperatorT()
        reshape.opcodeIndex, reshape.inputs, reshape.outputs = code_number(file, "RESHAPE"), [index], [number]
        reshape.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
        reshape.builtinOptions = schema.ReshapeOptionsT()
        reshape.builtinOptions.newShape = copied.shape
        graph.operators.insert(-1, reshape)


def tensor_ranges(
    file: Any, network: FusedNetwork, ranges: dict[int, list[tuple[float, float]]]
) -> dict[str, tuple[float, float]]:
    """The ranges of steps as ranges of a file's tensors.

    Args:
        file: the float32 file (`ModelT`) that the network was built as, its ends not yet named.
        network: which it was made of.
        ranges: {number of the step: (smallest, largest) of its tensors in the order they are made}.

    Returns:
        {name of the tensor, the ends being named as in the finished file: (smallest, largest)}.

    Raises:
        ValueError: a step has become another number of tensors than it has ranges.
    """
    graph, names = file.subgraphs[0], tensor_names(file)
    made: dict[int, list[int]] = defaultdict(list)
    for kind, operator in operators(file):
        if kind not in RESHAPING:
            ((operation, number),) = steps_in(names[operator.outputs[0]])
            if kind != "TRANSPOSE" or operation == "merge_heads":
                made[number] += operator.outputs
    if network.steps[0].arguments["mean"] is None:
        made[0] = list(graph.inputs)
    finished = dict(enumerate(names)) | dict(
        zip((*graph.inputs, *graph.outputs), (INPUT, *network.outputs), strict=True)
    )
    found: dict[int, tuple[float, float]] = {}
    for number, points in ranges.items():
        operation = network.steps[number].operation
        tensors = made[number][-1:] if operation in LAST_ONLY else made[number]
        if len(tensors) != len(points):
            raise ValueError(
                f"Step {number} of {network.name}, {operation}, has {len(points)} learnt ranges "
                f"and became {len(tensors)} tensors of the file: {[names[index] for index in tensors]}."
            )
        found |= zip(tensors, points, strict=True)
    # What is transposed keeps its range: talking heads take scores so, and merged heads were products, which are
    # integer in some modes.
    for kind, operator in operators(file):
        ends = (operator.inputs[0], operator.outputs[0])
        if kind == "TRANSPOSE" and (known := [found[end] for end in ends if end in found]):
            found |= dict.fromkeys(ends, known[-1])
    return {finished[index]: point for index, point in found.items()}
