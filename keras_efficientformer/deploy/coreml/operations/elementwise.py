"""Elementwise operations of ML Programs in NumPy, and rounding to float16. Room: deploy/coreml/operations.

What takes many steps for each value is computed tile by tile: between steps, a tile stays in a core's cache.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from keras_efficientformer.deploy.coreml.operations.table import (
    Operand,
    PlannedFunction,
    Real,
    UnsupportedError,
    binary,
    operation,
    unary,
)

# How many values a tile has: three such float32 arrays fit a second-level cache, and Python's own time is small beside
# what they take.
TILE = 2**15


def _in_tiles(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """What an elementwise function gives for `x`, computed tile by tile, in the order in which `x` lies in memory."""
    result = np.empty_like(x)
    if x.size:
        tiles = np.nditer(
            [x, result], ["buffered", "external_loop"], [["readonly"], ["writeonly"]], order="K", buffersize=TILE
        )
        with tiles:
            for values, results in tiles:
                results[...] = function(values)
    return result


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # This form cannot overflow, whatever the sign.
    return np.float32(0.5) * np.tanh(np.float32(0.5) * x) + np.float32(0.5)


# Eigen's approximation of the error function in float32, within 5e-7. SciPy's is right to the last bit, but its import
# would be a tenth of what `predict` takes.
ERF_LIMIT = 4
ERF_NUMERATOR = np.array(
    [
        -2.72614225801306e-10,
        2.77068142495902e-8,
        -2.10102402082508e-6,
        -5.69250639462346e-5,
        -7.34990630326855e-4,
        -2.95459980854025e-3,
        -1.60960333262415e-2,
    ],
    "float32",
)
ERF_DENOMINATOR = np.array(
    [-1.45660718464996e-5, -2.13374055278905e-4, -1.68282697438203e-3, -7.37332916720468e-3, -1.42647390514189e-2],
    "float32",
)


def _erf(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, -ERF_LIMIT, ERF_LIMIT)
    square = x * x
    return x * _polynomial(ERF_NUMERATOR, square) / _polynomial(ERF_DENOMINATOR, square)


def _polynomial(coefficients: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`np.polyval` without an array for each of its steps."""
    result = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result *= x
        result += coefficient
    return result


@operation("rsqrt")
def _rsqrt(x: Operand, epsilon: Real) -> PlannedFunction:
    return lambda x: 1 / np.sqrt(x + epsilon)


@operation("inverse")
def _inverse(x: Operand, epsilon: Real) -> PlannedFunction:
    return lambda x: 1 / (x + epsilon)


@operation("log")
def _log(x: Operand, epsilon: Real) -> PlannedFunction:
    return lambda x: np.log(x + epsilon)


@operation("clip")
def _clip(x: Operand, alpha: Real, beta: Real) -> PlannedFunction:
    return lambda x: np.clip(x, alpha, beta)


@operation("leaky_relu")
def _leaky_relu(x: Operand, alpha: Real) -> PlannedFunction:
    return lambda x: np.where(x >= 0, x, alpha * x)


@operation("sigmoid_hard")
def _sigmoid_hard(x: Operand, alpha: Real, beta: Real) -> PlannedFunction:
    return lambda x: np.clip(alpha * x + beta, 0, 1)


@operation("gelu")
def _gelu(x: Operand, mode: str) -> PlannedFunction:
    forms: dict[str, PlannedFunction] = {
        "EXACT": lambda x: np.float32(0.5) * x * (1 + _erf(x * np.float32(math.sqrt(0.5)))),
        "TANH_APPROXIMATION": lambda x: (
            np.float32(0.5) * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)))
        ),
        "SIGMOID_APPROXIMATION": lambda x: x * _sigmoid(np.float32(1.702) * x),
    }
    return functools.partial(_in_tiles, forms[mode])


@operation("cast")
def _cast(x: Operand, dtype: str) -> PlannedFunction:
    # Numbers are float32 here: whoever runs the program rounds them to float16, or not.
    types = {"fp16": np.float32, "fp32": np.float32, "int32": np.int32, "bool": np.bool_}
    if dtype not in types:
        raise UnsupportedError(f"it casts to {dtype}, and only {', '.join(types)} are supported")
    return lambda x: x.astype(types[dtype], copy=False)


# The bits of a float32 that are its exponent, and those of 2**-14, float16's smallest normal number, and of 2**15.
EXPONENT, SMALLEST_NORMAL, LARGEST_POWER = np.array([0x7F800000, 0x38800000, 0x47000000], "int32")


def rounded(x: np.ndarray) -> np.ndarray:
    """`x` as float16 stores it, in float32; what is too large is infinite. A zero may lose its sign."""
    return _in_tiles(_rounded_tile if x.dtype == np.float32 else _converted, x)


def _rounded_tile(x: np.ndarray) -> np.ndarray:
    # Added to a power of two so much larger that float16's last bit is float32's, a number is rounded, half to even;
    # half of that power besides keeps negative sums from a finer last bit. NumPy's conversions take five times as long.
    exponents = x.view("int32") & EXPONENT
    np.maximum(exponents, SMALLEST_NORMAL, out=exponents)
    if exponents.max() >= LARGEST_POWER:
        return _converted(x)  # it may have to become infinite, or is no number
    large = exponents.view("float32")
    large *= np.float32(1.5 * 2**13)
    result = x + large
    result -= large
    return result


def _converted(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


unary("identity", lambda x: x)
unary("relu", lambda x: np.maximum(x, 0))
unary("relu6", lambda x: np.clip(x, 0, 6))
unary("sigmoid", _sigmoid)
unary("silu", lambda x: x * _sigmoid(x))
unary("tanh", np.tanh)
unary("exp", np.exp)
unary("sqrt", np.sqrt)
unary("square", np.square)
unary("abs", np.abs)
unary("erf", functools.partial(_in_tiles, _erf))
binary("add", np.add)
binary("sub", np.subtract)
binary("mul", np.multiply)
binary("real_div", np.divide)
binary("pow", np.power)
binary("maximum", np.maximum)
binary("minimum", np.minimum)
