"""Stores attention's tables of biases in fewer bits where weights are integers. Room: deploy/tflite/sizes.

Each size has tables of its own, a value for every head and pair of tokens, and quantizing leaves those in float32 that
are added to float32 scores: beside int8 weights they would be most of what a size adds. Only the offsets between tokens
decide on a value, but what would gather the values of a smaller table is refused by XNNPACK and by GPUs.
"""

import copy
from typing import Any

import numpy as np

from keras_efficientformer.deploy.tflite.graph import LARGEST_INT8, add_buffer, code_number, schema, text
from keras_efficientformer.deploy.tflite.versions import FLOAT16, FLOAT32, INT8

# A table is (1, heads, queries, keys), or has its heads last; what else is added has fewer axes.
TABLE_AXES = 4
HEAD_AXIS = 1


def shrink_tables(file: Any, to_int8: bool) -> None:
    """Has the float32 tables that a file (`ModelT`) of one network adds stored smaller, each with a DEQUANTIZE after
    it, like the weights of other modes: XNNPACK and GPUs compute those once, when the file is opened.

    Args:
        file: it is changed.
        to_int8: whether in int8, with a scale for each head, or else in float16.
    """
    (graph,) = file.subgraphs
    added = {index for operator in _additions(file, graph) for index in operator.inputs}
    tables = sorted(index for index in added if _is_table(file, graph.tensors[index]))
    if not tables:
        return
    code = code_number(file, "DEQUANTIZE")
    values = {table: len(graph.tensors) + place for place, table in enumerate(tables)}
    for operator in graph.operators:
        operator.inputs = [values.get(index, index) for index in operator.inputs]
    graph.operators = [*(_dequantization(code, *ends) for ends in values.items()), *graph.operators]
    graph.tensors = [*graph.tensors, *(_shrunk(file, graph.tensors[table], to_int8) for table in tables)]


def _additions(file: Any, graph: Any) -> list[Any]:
    codes = [code.builtinCode for code in file.operatorCodes]
    return [operator for operator in graph.operators if codes[operator.opcodeIndex] == schema.BuiltinOperator.ADD]


def _is_table(file: Any, tensor: Any) -> bool:
    is_constant = file.buffers[tensor.buffer].data is not None
    return is_constant and tensor.type == FLOAT32 and len(tensor.shape) == TABLE_AXES


def _dequantization(code: int, table: int, values: int) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, [table], [values]
    operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
    operator.builtinOptions = schema.DequantizeOptionsT()
    return operator


def _shrunk(file: Any, table: Any, to_int8: bool) -> Any:
    """Stores a table in fewer bits; the tensor that it is dequantized to."""
    values = copy.copy(table)
    values.name, values.buffer = f"{text(table.name)}/DEQUANTIZE", 0
    content = np.asarray(file.buffers[table.buffer].data, "uint8").view("float32").reshape(table.shape)
    file.buffers[table.buffer].data = None
    if to_int8:
        axes = tuple(axis for axis in range(TABLE_AXES) if axis != HEAD_AXIS)
        # A head whose biases are all zero has any scale.
        scales = np.maximum(np.abs(content).max(axes), np.finfo("float32").tiny * LARGEST_INT8) / LARGEST_INT8
        content = np.round(content / np.expand_dims(scales, axes)).astype("int8")
        table.type, table.quantization = INT8, schema.QuantizationParametersT()
        table.quantization.scale, table.quantization.zeroPoint = scales, np.zeros(len(scales), "int64")
        table.quantization.quantizedDimension = HEAD_AXIS
    else:
        content, table.type = content.astype("float16"), FLOAT16
    table.buffer = add_buffer(file, np.ascontiguousarray(content).reshape(-1).view("uint8"))
    return values
