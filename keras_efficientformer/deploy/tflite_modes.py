"""The modes of TFLite export: for each, the kernels its graph is written for, how it is quantized, and its limits.

float32 and float16 are written as they are. The integer modes are made from the float32 file by ai-edge-quantizer,
whose recipes choose operation by operation: that is what lets LayerNorm and attention stay in float32 in "int8", where
LiteRT has slow reference kernels or none for them, and keeps the file's names and signature.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

IO_TYPES = ("float32", "int8", "uint8")
SIGNATURE = "serving_default"
INPUT = "image"

# In "int8" these are computed in integers: all that have XNNPACK or fast LiteRT kernels. What is left in float32, less
# than 2% of the work, is LayerNorm, the attention's products and softmax, and the last activation.
IN_INT8 = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MUL", "SUB", "GELU", "PAD", "RESHAPE")

# What the tensors of these steps are called (`tflite_builder.StepScopes`).
LAYER_NORM = r"layer_norm_\d+/"
POOLING_MIXER = r"pooling_mixer_\d+/"
# What the sum of attention's scores and biases is called.
ADD_TABLE = "ADD_TABLE"

# XNNPACK adds int8 tensors whose scales are no smaller than this share of the sum's. Of a smaller one (under a fresh
# layer scale of 1e-5) nothing reaches the sum, so that a coarser scale loses nothing.
SMALLEST_SHARE = 2.0**-9


@dataclass(frozen=True)
class Kernels:
    """Which of several equal ways to write an operation a mode's kernels are fastest with (XNNPACK of LiteRT 2.3).

    Attributes:
        pooling: how the pooling mixer averages. "average": AVERAGE_POOL_2D. "depthwise": by depthwise convolutions,
            whose zero padding is corrected at the border, because there is no int8 pooling kernel. "fused": by one
            depthwise convolution that adds the input too, of an image with a border that leaves averages alone.
        matmul_variance: variances as products with a vector: a sum of squares has no float16 kernel, and everything
            after it would be float32.
        row_padding: whole rows are padded, not pixels: for kernels that do not take the padding into the convolution.
    """

    pooling: str = "average"
    matmul_variance: bool = False
    row_padding: bool = False


@dataclass(frozen=True)
class Mode:
    """One mode of export.

    Attributes:
        name: in file names.
        limit: the largest `Difference.relative` at which a file is written.
        kernels: how its graph is written.
        float16_weights: whether weights are stored in float16.
        float16_arithmetic: whether CPUs that can may compute in float16.
        recipe: adds the quantization to an ai-edge-quantizer `RecipeManager`; None leaves the file as it is.
        calibrated: whether ranges of activations are measured, so that images are needed.
        io_types: the types that input and output may have.
    """

    name: str
    limit: float
    kernels: Kernels
    float16_weights: bool = False
    float16_arithmetic: bool = False
    recipe: Callable[[Any], None] | None = None
    calibrated: bool = False
    io_types: tuple[str, ...] = ("float32",)


def _dynamic(recipe):
    recipe.add_dynamic_config(".*", "*", 8)
    # XNNPACK has no such kernel: each would be a hole in its graph.
    recipe.add_weight_only_config(".*", "DEPTHWISE_CONV_2D", 8)


def _weight_only(recipe):
    recipe.add_weight_only_config(".*", "*", 8)


def _int8(recipe):
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    for operation in IN_INT8:
        recipe.add_static_config(".*", operation, 8, 8)
    for operation in ("SLICE", "CONCATENATION"):
        recipe.add_static_config(POOLING_MIXER, operation, 8, 8)
    # It divides by the root of a variance, which int8 would round to zero where it is small.
    for operation in ("ADD", "MUL", "SUB"):
        recipe.add_quantization_config(LAYER_NORM, operation, None, AlgorithmName.NO_QUANTIZE)
    # It lies between a product and a softmax, which are float.
    recipe.add_quantization_config(ADD_TABLE, "ADD", None, AlgorithmName.NO_QUANTIZE)


def _int8_integer(recipe):
    recipe.add_static_config(".*", "*", 8, 8)


def _int16x8(recipe):
    recipe.add_static_config(".*", "*", 16, 8)


PLAIN = Kernels()
FLOAT16 = Kernels(matmul_variance=True, row_padding=True)
DYNAMIC = Kernels(row_padding=True)
FAST_INTEGER = Kernels(pooling="fused")
INTEGER = Kernels(pooling="depthwise")
MODES = {
    "none": Mode("float32", 1e-5, PLAIN),
    "float16": Mode("float16", 0.02, FLOAT16, float16_weights=True, float16_arithmetic=True),
    "dynamic": Mode("dynamic", 0.5, DYNAMIC, float16_arithmetic=True, recipe=_dynamic),
    "weight_only": Mode("weight_only", 0.2, PLAIN, recipe=_weight_only),
    "int8": Mode("int8", 0.5, FAST_INTEGER, recipe=_int8, calibrated=True, io_types=IO_TYPES),
    "int8_integer": Mode("int8_integer", 0.5, INTEGER, recipe=_int8_integer, calibrated=True, io_types=IO_TYPES),
    "int16x8": Mode("int16x8", 0.2, INTEGER, recipe=_int16x8, calibrated=True),
}


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
        content: the file.
        mode: the mode, which has a recipe.
        io: the type of input and output, one of the mode's `io_types`.
        images: float32 array (number, height, width, channels) in the file's input range; where the mode is calibrated,
            the ranges of its activations are the smallest and largest values seen on them.
        batch_size: of the file.
        known_ranges: (smallest, largest) of tensors, by name, that do not depend on the images: of the input, so that
            whole pixel values stay whole, and of probabilities, so that none is cut off at the largest one seen.

    Returns:
        The quantized file.
    """
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.recipe_manager import RecipeManager

    from keras_efficientformer.deploy.tflite_file import read

    recipe = RecipeManager()
    assert mode.recipe is not None
    mode.recipe(recipe)
    if mode.calibrated:
        _set_io(recipe, io)
    tool = quantizer.Quantizer(bytearray(content), recipe.get_quantization_recipe())
    ranges = _ranges(content, recipe, images, batch_size) if mode.calibrated else None
    if ranges is not None:
        for name in known_ranges.keys() & ranges.keys():  # outputs that stay in float32 have none
            ends = zip(("min", "max"), known_ranges[name], strict=True)
            ranges[name] = {end: np.full_like(ranges[name][end], value) for end, value in ends}
        file = read(content)
        _share_with_borders(file, ranges)
        _widen(file, ranges)
    # The quantizer reports sizes on standard output, which is where `--json` goes.
    with contextlib.redirect_stdout(sys.stderr):
        return bytes(tool.quantize(ranges).quantized_model)


def _ranges(content, recipe, images, batch_size):
    """{tensor: its smallest and largest value}. The quantizer's own moving average would cut the extremes off, which
    costs the embedded checkpoint half a point of accuracy."""
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    tool = calibrator.Calibrator(bytearray(content), num_threads=os.cpu_count() or 1, qsv_update_func=min_max_update)
    samples = [{INPUT: np.repeat(image[None], batch_size, axis=0)} for image in images]
    tool.calibrate({SIGNATURE: samples}, recipe)
    return tool.get_model_qsvs()


def _share_with_borders(file, ranges):
    """Gives the borders that the pooling mixer joins to its input the input's range: of another one, they would have to
    be quantized anew."""
    from keras_efficientformer.deploy.tflite_file import operators, tensor_names

    names, sliced_from = tensor_names(file), {}
    for kind, operator in operators(file):
        if kind == "SLICE":
            sliced_from[operator.outputs[0]] = operator.inputs[0]
        if kind == "CONCATENATION":
            first, middle, last = operator.inputs
            for index in (first, last, *operator.outputs):
                ranges[names[index]] = ranges[names[middle]]
                if index in sliced_from:
                    ranges[names[sliced_from[index]]] = ranges[names[middle]]


def _widen(file, ranges):
    """Widens the ranges of tensors that are too small beside the sum they go into."""
    from keras_efficientformer.deploy.tflite_file import operators, tensor_names

    names = tensor_names(file)
    for kind, operator in operators(file):
        if kind != "ADD":
            continue
        (total,), parts = ([ranges.get(names[index]) for index in ends] for ends in (operator.outputs, operator.inputs))
        for part in filter(None, parts if total else ()):
            smallest = SMALLEST_SHARE * _span(total)
            if _span(part) < smallest:
                part["max"] = np.full_like(part["max"], smallest)


def _span(ends):
    """The length of a range, which includes zero."""
    return float(max(ends["max"].max(), 0.0) - min(ends["min"].min(), 0.0))


def _set_io(recipe, io):
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

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
