"""The modes of TFLite export: for each, the kernels its graph is written for, how it is quantized, and its limits.

float32 and float16 are written as they are. The integer modes are made from the float32 file by litert-quantizer,
whose recipes choose operation by operation: that is what lets LayerNorm and attention stay in float32 in "int8", where
LiteRT has slow reference kernels or none for them, and keeps the file's names and signature. Room: deploy/tflite.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # it imports Keras, and who only lists the modes does without
    from keras_efficientformer.deploy.network.recording import Step

from keras_efficientformer.deploy.tflite.step_names import ADD_TABLE, scope_pattern

IO_TYPES = ("float32", "int8", "uint8")

# In "int8" these are computed in integers: all that have XNNPACK or fast LiteRT kernels. What is left in float, less
# than 2% of the work, is LayerNorm, the attention's products and softmax, and the last activation.
IN_INT8 = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MUL", "SUB", "GELU", "PAD", "RESHAPE")

# And these of single steps: elsewhere they lie between operations in float32.
IN_INT8_OF_STEPS = {
    "pooling_mixer": ("SLICE", "CONCATENATION"),
    "enlarge": ("CONCATENATION",),
    "concatenate": ("CONCATENATION",),
    "resize": ("RESIZE_BILINEAR",),
}


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
        convolved_dense: dense layers are convolutions of size 1, which cost the same: runtimes before TensorFlow 2.16
            read one scale for all channels of a FULLY_CONNECTED's int8 weights and compute nonsense without a word
            (those before 2.12 in every int8 mode), and GPUs refuse such weights.
        row_convolutions: convolutions of size 1 run over one row of all pixels, with a stride of 2 from row to row:
            XNNPACK makes others fully connected layers, and then computes these, and all that lies between them, in
            float32 where it could in float16.
    """

    pooling: str = "average"
    matmul_variance: bool = False
    row_padding: bool = False
    convolved_dense: bool = False
    row_convolutions: bool = False


@dataclass(frozen=True)
class Mode:
    """One mode of export.

    Attributes:
        name: in file names.
        limit: the largest `Difference.relative` at which a file is written.
        kernels: how its graph is written.
        float16_weights: whether weights are stored in float16.
        float16_arithmetic: whether CPUs that can may compute in float16.
        recipe: adds the quantization to a litert-quantizer `RecipeManager`; None leaves the file as it is.
        calibrated: whether ranges of activations are measured, so that images are needed.
        chosen_bits: whether each layer's bits are chosen, and its weights rounded, with images in view.
        io_types: the types that input and output may have.
        runtime: the oldest release of TensorFlow Lite in which files of both families were run and right
            (`benchmarks/old_runtimes.py`); older ones refuse them.
    """

    name: str
    limit: float
    kernels: Kernels
    float16_weights: bool = False
    float16_arithmetic: bool = False
    recipe: Callable[[Any], None] | None = None
    calibrated: bool = False
    chosen_bits: bool = False
    io_types: tuple[str, ...] = ("float32",)
    runtime: str = "2.9.1"

    @property
    def measures(self) -> bool:
        """Whether something is measured on calibration images, besides the differences from Keras."""
        return self.calibrated or self.chosen_bits

    @property
    def modules(self) -> tuple[str, ...]:
        """What files are written with, by the names that are imported."""
        return ("ai_edge_litert", *(("litert_quantizer",) if self.recipe else ()))


def _dynamic(recipe: Any) -> None:
    recipe.add_dynamic_config(".*", "*", 8)
    # XNNPACK has no dynamic kernel for it: each would interrupt its partition.
    recipe.add_weight_only_config(".*", "DEPTHWISE_CONV_2D", 8)


def _weight_only(recipe: Any) -> None:
    recipe.add_weight_only_config(".*", "*", 8)


def _int8(recipe: Any) -> None:
    from litert_quantizer.algorithm_manager import AlgorithmName

    for operation in IN_INT8:
        recipe.add_static_config(".*", operation, 8, 8)
    for step, operations in IN_INT8_OF_STEPS.items():
        for operation in operations:
            recipe.add_static_config(scope_pattern(step), operation, 8, 8)
    # These norms divide by the root of a variance, which int8 would round to zero where it is small.
    for step in ("layer_norm", "group_norm"):
        for operation in ("ADD", "MUL", "SUB"):
            recipe.add_quantization_config(scope_pattern(step), operation, None, AlgorithmName.NO_QUANTIZE)
    # The sum of scores and biases lies between a product and a softmax, which are float.
    recipe.add_quantization_config(ADD_TABLE, "ADD", None, AlgorithmName.NO_QUANTIZE)


def _int8_integer(recipe: Any) -> None:
    recipe.add_static_config(".*", "*", 8, 8)


def _int16x8(recipe: Any) -> None:
    recipe.add_static_config(".*", "*", 16, 8)


def is_matrix(weights: np.ndarray, stride: int = 1) -> bool:
    """Whether weights, of a dense layer or a convolution, multiply each position by itself."""
    return weights.ndim == 2 or (weights.shape[0] == 1 and stride == 1)


def stored_bits(step: "Step") -> tuple[int, ...]:
    """What the weights of a step may have in "auto"; with 16 they stay as they are. XNNPACK has int4 kernels for
    matrices of an even number of inputs alone."""
    weights = step.arguments["weights"]
    in_four = is_matrix(weights, step.arguments.get("stride", 1)) and weights.shape[-2] % 2 == 0
    return (4, 8, 16) if in_four else (8, 16)


PLAIN = Kernels()
FLOAT16 = Kernels(matmul_variance=True, row_padding=True)
DYNAMIC = Kernels(row_padding=True, convolved_dense=True, row_convolutions=True)
WEIGHT_ONLY = Kernels(convolved_dense=True)
FAST_INTEGER = Kernels(pooling="fused", convolved_dense=True)
INTEGER = Kernels(pooling="depthwise", convolved_dense=True)
MODES = {
    "none": Mode("float32", 1e-5, PLAIN),
    "float16": Mode("float16", 0.02, FLOAT16, float16_weights=True, float16_arithmetic=True),
    "dynamic": Mode("dynamic", 0.5, DYNAMIC, float16_arithmetic=True, recipe=_dynamic),
    "auto": Mode(
        "auto", 1.0, FLOAT16, float16_weights=True, float16_arithmetic=True, chosen_bits=True, runtime="2.17.0"
    ),
    "weight_only": Mode("weight_only", 0.2, WEIGHT_ONLY, recipe=_weight_only),
    "int8": Mode("int8", 0.5, FAST_INTEGER, float16_arithmetic=True, recipe=_int8, calibrated=True, io_types=IO_TYPES),
    "int8_integer": Mode("int8_integer", 0.5, INTEGER, recipe=_int8_integer, calibrated=True, io_types=IO_TYPES),
    "int16x8": Mode("int16x8", 0.2, INTEGER, recipe=_int16x8, calibrated=True, runtime="2.20.0"),
}
