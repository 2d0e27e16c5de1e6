"""Builds a .tflite file's tensors, constants and operators as objects of the format's schema. Room: deploy/tflite.

It knows the format and no network. Everything is float32 here; quantizing is done to the finished file.
"""

import collections
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

FORMAT_VERSION = 3
# The options of these operators are not called after them in the schema.
OPTIONS = {
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "MEAN": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
}
TYPES = {"float32": "FLOAT32", "float16": "FLOAT16", "int32": "INT32"}
INTEGER_TYPES = {4: "INT4", 8: "INT8"}
LARGEST_INT8 = 127  # of weights, which are stored with as many steps on both sides


@dataclass(frozen=True)
class GraphTensor:
    """A tensor of the file: its number and its shape, the batch included."""

    index: int
    shape: tuple[int, ...]


class Graph:
    """Builds the one subgraph of a .tflite file.

    Args:
        float16_weights: whether constants are stored in float16, each with a DEQUANTIZE after it.

    Attributes:
        scope: what the names of tensors start with from now on.
    """

    def __init__(self, float16_weights: bool = False) -> None:
        self.scope = ""
        self._float16_weights = float16_weights
        # Constants are found by their content, results by what makes them.
        self._made: dict[tuple[Any, ...], GraphTensor] = {}
        self._names: collections.Counter[str] = collections.Counter()
        self._tensors: list[Any] = []
        self._content: dict[int, np.ndarray] = {}
        self._operators: list[tuple[str, Any]] = []
        self._inputs: list[int] = []
        self._outputs: list[int] = []

    def input(self, name: str, shape: tuple[int, ...]) -> GraphTensor:
        """The file's float32 input."""
        tensor = self._tensor(name, shape, TYPES["float32"])
        self._inputs.append(tensor.index)
        return tensor

    def output(self, x: GraphTensor) -> None:
        """Makes a tensor the file's next output; of one that is an output already, a copy, for each has one name."""
        if x.index in self._outputs:
            x = self.operator("RESHAPE", [x, self.constant(np.array(x.shape, "int32"))], x.shape, newShape=[*x.shape])
        self._outputs.append(x.index)

    def weights(self, array: np.ndarray) -> GraphTensor:
        """A constant of the array's values, float32 in the graph. Equal ones are stored once."""
        if not self._float16_weights:
            return self.constant(np.asarray(array, "float32"))
        stored = self.constant(np.asarray(array, "float16"))
        return self.operator("DEQUANTIZE", [stored], stored.shape)

    def constant(self, array: np.ndarray) -> GraphTensor:
        """A constant of the array's own dtype: float32, float16 or int32. Equal ones are stored once."""
        array = np.ascontiguousarray(array)
        key = (array.dtype.name, array.shape, hashlib.sha256(array.data).digest())
        if key not in self._made:
            self._made[key] = self._tensor(self._name("constant"), array.shape, TYPES[array.dtype.name])
            self._content[self._made[key].index] = array.reshape(-1).view("uint8")
        return self._made[key]

    def integers(self, values: np.ndarray, bits: int, scale: np.ndarray) -> GraphTensor:
        """A constant of whole numbers, int8, stored in 4 or 8 bits, which stand for their product with the scale of
        their place on the first axis."""
        content = _in_four_bits(values) if bits == 4 else np.ascontiguousarray(values).reshape(-1).view("uint8")
        key = (bits, values.shape, hashlib.sha256(content.data).digest(), scale.tobytes())
        if key not in self._made:
            made = self._made[key] = self._tensor(self._name("constant"), values.shape, INTEGER_TYPES[bits])
            self._content[made.index] = content
            quantization = schema.QuantizationParametersT()
            quantization.scale, quantization.zeroPoint = scale, np.zeros(len(scale), "int64")
            self._tensors[made.index].quantization = quantization
        return self._made[key]

    def operator(
        self, kind: str, inputs: list[GraphTensor], shape: tuple[int, ...], name: str | None = None, **options: Any
    ) -> GraphTensor:
        """Adds an operator with one float32 output, or takes the one that does the same already.

        Args:
            kind: its name in the schema's BuiltinOperator, e.g. "CONV_2D".
            inputs: its inputs in the order of its kernel.
            shape: of its output.
            name: of its output within the scope; None means the kind.
            options: fields of its options table that are not at their default.
        """
        read = [tensor.index for tensor in inputs]
        key = (kind, *read, *map(str, sorted(options.items())))
        if key not in self._made:
            self._made[key] = self._tensor(self._name(name or kind), shape, TYPES["float32"])
            operator = schema.OperatorT()
            operator.inputs, operator.outputs = read, [self._made[key].index]
            _set_options(operator, kind, options)
            self._operators.append((kind, operator))
        return self._made[key]

    def ends_in_convolution(self, x: GraphTensor) -> bool:
        """Whether the newest operator is a convolution that made `x`."""
        kind, operator = self._operators[-1]
        return (kind, operator.outputs) == ("CONV_2D", [x.index])

    def fuse_relu(self, x: GraphTensor) -> None:
        """Has the newest operator, the convolution that made `x`, end in a ReLU; its result is the present scope's."""
        _, operator = self._operators[-1]
        operator.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.RELU
        self._tensors[x.index].name = self._name("RELU")
        # The same convolution without a ReLU would be another one.
        self._made = {key: tensor for key, tensor in self._made.items() if tensor != x}

    def file(self) -> Any:
        """The file as the schema's `ModelT`, without what nothing reads. Asked for once: tensors get other numbers."""
        operators: list[tuple[str, Any]] = []
        read = set(self._outputs)
        for kind, operator in reversed(self._operators):
            if not read.isdisjoint(operator.outputs):
                operators.insert(0, (kind, operator))
                read.update(operator.inputs)
        indices = sorted(read | set(self._inputs))
        numbers = {index: number for number, index in enumerate(indices)}
        codes = {kind: number for number, kind in enumerate(dict.fromkeys(kind for kind, _ in operators))}

        file, graph = schema.ModelT(), schema.SubGraphT()
        file.version, file.subgraphs = FORMAT_VERSION, [graph]
        file.buffers = [schema.BufferT()]  # tensors without content share it
        file.operatorCodes = [operator_code(kind) for kind in codes]
        graph.name = "main"
        graph.inputs, graph.outputs = ([numbers[index] for index in ends] for ends in (self._inputs, self._outputs))
        graph.tensors = [self._tensors[index] for index in indices]
        graph.operators = [operator for _, operator in operators]
        for kind, operator in operators:
            operator.opcodeIndex = codes[kind]
            operator.inputs, operator.outputs = (
                [numbers[index] for index in ends] for ends in (operator.inputs, operator.outputs)
            )
        for index in indices:
            if index in self._content:
                self._tensors[index].buffer = add_buffer(file, self._content[index])
        return file

    def _tensor(self, name: str, shape: tuple[int, ...], kind: str) -> GraphTensor:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, list(shape), 0
        tensor.type = getattr(schema.TensorType, kind)
        tensor.hasRank = True
        self._tensors.append(tensor)
        return GraphTensor(len(self._tensors) - 1, tuple(shape))

    def _name(self, kind: str) -> str:
        """`scope/KIND`, from the second one on with a number by which they sort."""
        name = f"{self.scope}/{kind}"
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name]:03}"


def set_metadata(file: Any, name: str, content: bytes) -> None:
    """Gives a file (`ModelT`) an entry of metadata, in place of one that it may have by that name."""
    entry = schema.MetadataT()
    entry.name, entry.buffer = name, add_buffer(file, np.frombuffer(content, "uint8"))
    file.metadata = [*(other for other in file.metadata or [] if text(other.name) != name), entry]


def add_buffer(file: Any, content: np.ndarray) -> int:
    """The number of a new buffer of a file (`ModelT`) with that content, uint8."""
    buffer = schema.BufferT()
    buffer.data = content
    file.buffers.append(buffer)
    return len(file.buffers) - 1


def code_number(file: Any, kind: str) -> int:
    """The number of an operator's code in a file (`ModelT`), which gets it where it has none."""
    wanted, codes = operator_code(kind), [code.builtinCode for code in file.operatorCodes]
    if wanted.builtinCode not in codes:
        file.operatorCodes.append(wanted)
    return [*codes, wanted.builtinCode].index(wanted.builtinCode)


def text(name: str | bytes) -> str:
    """A name of a file's object, as it was set or as it was read."""
    return name.decode() if isinstance(name, bytes) else name


def _in_four_bits(values: np.ndarray) -> np.ndarray:
    """An even number of whole numbers in -8..7, two in a byte, the first in its lower half: uint8."""
    halves = np.ascontiguousarray(values).reshape(-1).view("uint8") & 15
    return halves[::2] | halves[1::2] << 4


def operator_code(kind: str) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, kind)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = 1
    return code


def _set_options(operator: Any, kind: str, options: dict[str, Any]) -> None:
    name = OPTIONS.get(kind, f"{kind.title().replace('_', '')}Options")
    if not hasattr(schema, f"{name}T"):  # RSQRT is one that has none
        assert not options, f"{kind} has no options"
        return
    table = getattr(schema, f"{name}T")()
    for field, value in options.items():
        assert hasattr(table, field), f"{kind} has no option {field}"
        setattr(table, field, value)
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
    operator.builtinOptions = table
