"""Counts what of an ML Program is computed in int8, and says why the rest is not. Room: deploy/coreml/int8.

An operation is computed in int8 where all that it takes comes from `dequantize` and all that it gives goes to
`quantize`, which can be fused with it. Whether the device does so is Core ML's choice.
"""

from collections.abc import Iterable

from coremltools.converters.mil.mil import Operation, Program, Var

from keras_efficientformer.deploy.coreml.program import computing_operations, is_constant

# What multiplies and adds: what is counted.
COUNTED = ("conv", "conv_transpose", "linear", "matmul", "add")
# These move values without changing them, or are fused with what is before them.
MOVING = ("reshape", "transpose", "split", "squeeze", "expand_dims", "slice_by_index", "cast", "relu")


def int8_counts(program: Program, function: str | None = None) -> dict[str, str]:
    """{kind of operation: how many of how many, of one function or of all, are computed in int8, "36 of 37"}.

    Empty where nothing is quantized.
    """
    operations = list(computing_operations(program, function))
    if not _has_int8(operations):
        return {}
    kinds = [kind for kind in COUNTED if any(operation.op_type == kind for operation in operations)]
    return {kind: _count([operation for operation in operations if operation.op_type == kind]) for kind in kinds}


def _count(operations: list[Operation]) -> str:
    return f"{sum(_reason(operation) is None for operation in operations)} of {len(operations)}"


def kept_in_float(operation: Operation) -> str | None:
    """Why an operation that multiplies or adds, in a program with int8 activations, is not computed in int8."""
    if operation.op_type not in COUNTED or not _has_int8(operation.enclosing_block.operations):
        return None
    return _reason(operation)


def _has_int8(operations: Iterable[Operation]) -> bool:
    return any(operation.op_type == "quantize" for operation in operations)


def _reason(operation: Operation) -> str | None:
    """Why an operation is not computed in int8; None where it is."""
    for taken in (operation.inputs[name] for name in ("x", "y") if name in operation.inputs):
        source = None if is_constant(taken) else _float_source(taken)
        if source is not None:
            return f"takes a float from {source}"
    target = _float_target(operation.outputs[0])
    return None if target is None else f"gives a float to {target}"


def _float_source(var: Var) -> str | None:
    """What gives a tensor, where that is not `dequantize`."""
    if var.op is None:
        return "the program's input"
    if var.op.op_type in MOVING:
        return _float_source(var.op.x)
    return None if var.op.op_type == "dequantize" else var.op.op_type


def _float_target(var: Var) -> str | None:
    """What takes a tensor, where that is not `quantize` alone."""
    if var in var.op.enclosing_block.outputs:
        return "the program's output"
    for taker in var.child_ops:
        target = taker.op_type
        if taker.op_type in MOVING:
            target = next((found for found in map(_float_target, taker.outputs) if found is not None), "quantize")
        if target != "quantize":
            return target
    return None
