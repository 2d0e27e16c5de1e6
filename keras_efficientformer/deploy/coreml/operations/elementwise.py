"""Elementwise operations of ML Programs in NumPy, and rounding to float16. Room: deploy/coreml/operations."""

import math

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
    return x * np.polyval(ERF_NUMERATOR, square) / np.polyval(ERF_DENOMINATOR, square)


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
    return forms[mode]


@operation("cast")
def _cast(x: Operand, dtype: str) -> PlannedFunction:
    # Numbers are float32 here: whoever runs the program rounds them to float16, or not.
    types = {"fp16": np.float32, "fp32": np.float32, "int32": np.int32, "bool": np.bool_}
    if dtype not in types:
        raise UnsupportedError(f"it casts to {dtype}, and only {', '.join(types)} are supported")
    return lambda x: x.astype(types[dtype], copy=False)


def rounded(x: np.ndarray) -> np.ndarray:
    """`x` as float16 stores it, in float32; what is too large is infinite."""
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
unary("erf", _erf)
binary("add", np.add)
binary("sub", np.subtract)
binary("mul", np.multiply)
binary("real_div", np.divide)
binary("pow", np.power)
binary("maximum", np.maximum)
binary("minimum", np.minimum)
