"""Rounding to int8 and back of ML Programs in NumPy, as coremltools says it. Room: deploy/coreml/operations."""

import numpy as np

from keras_efficientformer.deploy.coreml.operations.elementwise import rounded
from keras_efficientformer.deploy.coreml.operations.table import (
    Integer,
    Operand,
    PlannedFunction,
    Varying,
    inner_axis,
    operation,
)

STORED_AS = {"int8": np.int8, "uint8": np.uint8}


@operation("quantize", varying=("input",))
def _quantize(
    input: Operand,
    scale: np.ndarray,
    output_dtype: str,
    zero_point: np.ndarray | None = None,
    axis: Integer | None = None,
) -> PlannedFunction:
    integers = STORED_AS[output_dtype]
    scale, offset = (_aligned(values, input, axis) for values in (scale, zero_point))
    ends, is_rounded = np.iinfo(integers), isinstance(input, Varying) and input.is_rounded

    def quantize(input_: np.ndarray) -> np.ndarray:
        quotient = input_ / scale
        # coremltools divides in the input's dtype, so that what lies near a half may become one.
        steps = np.rint(rounded(quotient) if is_rounded else quotient)
        return np.clip(steps + offset, ends.min, ends.max).astype(integers)

    return quantize


@operation("dequantize", varying=("input",))
def _dequantize(
    input: Operand, scale: np.ndarray, zero_point: np.ndarray | None = None, axis: Integer | None = None
) -> PlannedFunction:
    scale, offset = (_aligned(values, input, axis) for values in (scale, zero_point))
    return lambda input_: (input_ - offset) * scale


def _aligned(values: np.ndarray | None, x: Operand, axis: Integer | None) -> np.ndarray:
    """One value for all of `x`, or one for each place along an axis, as float32 in a shape that broadcasts."""
    values = np.asarray(0.0 if values is None else values, "float32")
    if axis is None:
        return values
    shape = [1] * len(x.shape)
    shape[inner_axis(x, axis)] = -1
    return values.reshape(shape)
