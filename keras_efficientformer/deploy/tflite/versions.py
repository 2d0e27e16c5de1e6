"""Gives each operator of a .tflite file the version that its data need, by TFLite's own rules. Room: deploy/tflite.

A runtime refuses a version that it has not ("Didn't find op for builtin opcode ... version"); told too small a one, it
computes with the kernel it has, and may read the data wrongly without a word. The rules are those of
`tensorflow/lite/tools/versioning/op_version.cc` for the operators that exports have, but for one by which GPUs refuse
files; a test compares the versions with those that TensorFlow gives the same files.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

FLOAT16, FLOAT32, INT4, INT8, INT16 = (
    getattr(schema.TensorType, name) for name in ("FLOAT16", "FLOAT32", "INT4", "INT8", "INT16")
)

# {operator: {type of its first input: version}}; of another type, and of operators with no entry, it is 1.
BY_FIRST_INPUT: dict[str, dict[int, int]] = {
    "AVERAGE_POOL_2D": {INT8: 2, INT16: 3},
    "BATCH_MATMUL": {INT8: 2, INT16: 3},
    "CONCATENATION": {INT8: 2, INT16: 3},
    "GELU": {INT8: 2},
    "LOGISTIC": {INT8: 2, INT16: 3},
    "MEAN": {INT8: 2, INT16: 3},
    "PAD": {INT8: 2, INT16: 3},
    "REDUCE_MAX": {INT8: 2, INT16: 3},
    "RELU": {INT8: 2, INT16: 3},
    "RESHAPE": {},
    "RSQRT": {INT8: 2, INT16: 3},
    "SLICE": {INT8: 2, INT16: 4},
    "SOFTMAX": {INT8: 2, INT16: 3},
    "TRANSPOSE": {INT8: 2, INT16: 5},
}


def set_versions(file: Any) -> None:
    """Sets the versions in a file (`ModelT`): for a kind of operator, the highest that one of them needs."""
    kinds = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    for code in file.operatorCodes:
        code.version = 1
    for graph in file.subgraphs:
        for operator in graph.operators:
            code = file.operatorCodes[operator.opcodeIndex]
            inputs, outputs = ([graph.tensors[index] for index in ends] for ends in (operator.inputs, operator.outputs))
            version = _version(kinds[code.builtinCode], inputs, outputs, operator.builtinOptions)
            code.version = max(code.version, version)


def _version(kind: str, inputs: list[Any], outputs: list[Any], options: Any) -> int:
    if kind in VERSION_RULES:
        return VERSION_RULES[kind](inputs, outputs, options)
    return BY_FIRST_INPUT[kind].get(inputs[0].type, 1)


def _convolution(inputs: list[Any], outputs: list[Any], options: Any) -> int:
    types = inputs[0].type, inputs[1].type
    if types == (INT16, INT8):  # with a type of the bias, which every file has that has the newest options
        return 8
    if types == (INT8, INT8):
        return 3
    if types == (FLOAT32, INT8):
        return 5 if _is_per_channel(inputs[1]) else 2
    return 1


def _depthwise_convolution(inputs: list[Any], outputs: list[Any], options: Any) -> int:
    types = inputs[0].type, inputs[1].type
    if types == (FLOAT32, INT8):
        return 6 if _is_per_channel(inputs[1]) else 4
    return 3 if types == (INT8, INT8) else 1


def _fully_connected(inputs: list[Any], outputs: list[Any], options: Any) -> int:
    types = inputs[0].type, inputs[1].type
    # TFLite's rule asks for no more than 5 of int4, and then older runtimes would read one scale for all channels.
    if types in ((FLOAT32, INT8), (FLOAT32, INT4)) and _is_per_channel(inputs[1]):
        return 12
    if types == (INT16, INT8):  # as of a convolution
        return 11
    if options.keepNumDims:
        return 5
    return {(INT8, INT8): 4, (FLOAT32, INT8): 3}.get(types, 1)


def _sum(of_int16: int, inputs: list[Any], outputs: list[Any], options: Any) -> int:
    """Of an addition or subtraction; `of_int16` is the version for scales that are no powers of two."""
    if inputs[0].type == INT16 and not options.potScaleInt16:
        return of_int16
    return 2 if inputs[0].type == INT8 else 1


def _multiplication(inputs: list[Any], outputs: list[Any], options: Any) -> int:
    if inputs[0].type == INT16:
        return 4
    if inputs[0].type != INT8:
        return 1
    first, second, product = (float(tensor.quantization.scale[0]) for tensor in (*inputs, *outputs))
    return 3 if first * second / product >= 1 else 2


def _resizing(inputs: list[Any], outputs: list[Any], options: Any) -> int:
    if inputs[0].type == INT16:
        return 4
    if options.halfPixelCenters:
        return 3
    return 2 if inputs[0].type == INT8 else 1


def _dequantization(inputs: list[Any], outputs: list[Any], options: Any) -> int:
    if inputs[0].type in (INT16, FLOAT16):
        return 3
    # TFLite's rule asks for 5 where channels have scales of their own, which GPU engines refuse (they know 3), though
    # they compute it. The rule keeps off runtimes that read one scale for all, which lack GELU too, so that they refuse
    # every file of these networks as it is: all runtimes since 2.9 read both alike.
    return 2 if inputs[0].type == INT8 else 1


def _quantization(inputs: list[Any], outputs: list[Any], options: Any) -> int:
    return 2 if outputs[0].type == INT16 else 1


def _is_per_channel(tensor: Any) -> bool:
    return np.size(tensor.quantization.scale) > 1


VERSION_RULES: dict[str, Callable[[list[Any], list[Any], Any], int]] = {
    "ADD": partial(_sum, 3),
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise_convolution,
    "DEQUANTIZE": _dequantization,
    "FULLY_CONNECTED": _fully_connected,
    "MUL": _multiplication,
    "QUANTIZE": _quantization,
    "RESIZE_BILINEAR": _resizing,
    "SUB": partial(_sum, 5),
}
