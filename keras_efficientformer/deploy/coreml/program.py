"""Summarises an ML Program: operations, ranks, dtypes, largest tensors, bytes of weights. Room: deploy/coreml."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from coremltools.converters.mil.mil import Block, Operation, Program, Var, types


@dataclass(frozen=True)
class LargeTensor:
    """A tensor that an operation computes: its name, shape, NumPy's name of its dtype, and bytes without padding."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class ProgramSummary:
    """What an ML Program consists of, constants and decompressed weights left out.

    Attributes:
        operations: {type: number of operations}, most frequent first.
        ranks: {rank: number of tensors that operations compute}.
        dtypes: {NumPy's name: number of tensors that operations compute}.
        largest: the largest tensors that operations compute, largest first; those of unknown size are left out.
        weights_bytes: bytes of the stored constants, as they are compressed.
    """

    operations: dict[str, int]
    ranks: dict[int, int]
    dtypes: dict[str, int]
    largest: tuple[LargeTensor, ...]
    weights_bytes: int


def summary(program: Program, largest: int = 5, function: str | None = None) -> ProgramSummary:
    """Counts the operations of a coremltools MIL program and what they compute, with its `largest` largest tensors; of
    one function, or of all."""
    operations = list(computing_operations(program, function))
    tensors = [tensor for operation in operations for tensor in computed_tensors(operation)]
    sized = [
        LargeTensor(tensor.name, tuple(map(int, tensor.shape)), dtype_name(tensor), bytes_of(tensor))
        for tensor in tensors
        if not is_flexible(tensor)
    ]
    stored = [operation.outputs[0] for operation in _operations(program, function) if operation.op_type == "const"]
    return ProgramSummary(
        operations=dict(Counter(operation.op_type for operation in operations).most_common()),
        ranks=dict(sorted(Counter(tensor.rank for tensor in tensors).items())),
        dtypes=dict(Counter(map(dtype_name, tensors)).most_common()),
        largest=tuple(sorted(sized, key=lambda tensor: -tensor.bytes)[:largest]),
        weights_bytes=sum(bytes_of(tensor) for tensor in stored if is_numeric(tensor)),
    )


def _operations(program: Program, function: str | None) -> Iterator[Operation]:
    """All operations of a function or of all, the bodies of loops and conditions included."""
    for name, block in program.functions.items():
        if function in (None, name):
            yield from _inside(block)


def _inside(block: Block) -> Iterator[Operation]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _inside(inner)


def computing_operations(program: Program, function: str | None = None) -> Iterator[Operation]:
    """The operations of a function or of all that run on the device; those that make constants are left out."""
    return (operation for operation in _operations(program, function) if not _makes_constant(operation))


def _makes_constant(operation: Operation) -> bool:
    # Core ML decompresses weights (constexpr_...) when it loads the program.
    return operation.op_type == "const" or operation.op_type.startswith("constexpr_")


def is_constant(var: Var) -> bool:
    """Whether a variable is a stored constant, or one that is decompressed when the program is loaded."""
    return var.op is not None and _makes_constant(var.op)


def is_numeric(var: Var) -> bool:
    """Whether a variable is a tensor, or a scalar that is not a string; lists and dictionaries are neither."""
    return types.is_tensor(var.sym_type) or (types.is_scalar(var.sym_type) and not types.is_str(var.sym_type))


def computed_tensors(operation: Operation) -> list[Var]:
    """The numeric results of an operation; a classifier's labels are left out."""
    return [var for var in operation.outputs if is_numeric(var)]


def dtype_name(var: Var) -> str:
    """NumPy's name of a numeric variable's dtype, such as "float16"."""
    return np.dtype(types.nptype_from_builtin(var.dtype)).name


def bits_of(var: Var) -> int:
    """Bits of one value of a numeric variable; a bool takes a byte."""
    return 8 if types.is_bool(var.dtype) else var.dtype.get_bitwidth()


def bytes_of(var: Var) -> int:
    """Bytes of a numeric variable of known size, without padding."""
    return math.ceil(math.prod(map(int, var.shape)) * bits_of(var) / 8)


def shape_of(var: Var) -> str:
    """A variable's shape as text, such as "(1, 3, 224, 224)"."""
    return f"({', '.join(map(str, var.shape))})"


def is_flexible(var: Var) -> bool:
    """Whether a side of a variable's shape is unknown until the program runs."""
    return any(types.symbolic.is_symbolic(side) for side in var.shape)
