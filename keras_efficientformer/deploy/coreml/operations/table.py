"""Registers the operations by kind, with the checks that planning shares. Room: deploy/coreml/operations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


class UnsupportedError(ValueError):
    """An operation of a known kind is used in a way that is not planned here; the message says which."""


@dataclass(frozen=True)
class Varying:
    """Stands for a tensor that is not constant, while operations are planned.

    Attributes:
        shape: as declared, for one image: (1, ...).
        is_rounded: whether its values are rounded to float16.
    """

    shape: tuple[int, ...]
    is_rounded: bool = False


# A constant number is NumPy's, and a default Python's.
Integer = int | np.integer
Real = float | np.floating
# A plan gets these as tensors: one that varies, or a constant.
Operand = Varying | np.ndarray | np.generic
# A plan returns this: it computes an operation's result, or several, from its varying arguments in their order.
PlannedFunction = Callable[..., Any]
Planner = Callable[..., PlannedFunction]


@dataclass(frozen=True)
class OperationKind:
    """A kind of operation.

    Attributes:
        plan: takes its arguments by name, constants as arrays or Python values and others as `Varying`, and `result`,
            the declared shape of its first output, where it wants to know that; returns a function of `varying`.
        varying: names of the arguments that need not be constant.
    """

    plan: Planner
    varying: tuple[str, ...]


OPERATIONS: dict[str, OperationKind] = {}


def operation(*kinds: str, varying: tuple[str, ...] = ("x",)) -> Callable[[Planner], Planner]:
    """A decorator that registers a plan for these kinds of operations."""

    def register(plan: Planner) -> Planner:
        OPERATIONS.update(dict.fromkeys(kinds, OperationKind(plan, varying)))
        return plan

    return register


def unary(kind: str, function: PlannedFunction) -> None:
    """Registers a function of one tensor, which needs no plan."""
    OPERATIONS[kind] = OperationKind(lambda x: function, ("x",))


def binary(kind: str, function: PlannedFunction) -> None:
    """Registers a function of two tensors that are broadcast to one shape."""

    def plan(x: Operand, y: Operand) -> PlannedFunction:
        check_aligned(x, y)
        return function

    OPERATIONS[kind] = OperationKind(plan, ("x", "y"))


def check_aligned(*tensors: Operand) -> None:
    """Refuses to broadcast tensors whose first axes, the images, would not meet."""
    rank = max(len(tensor.shape) for tensor in tensors)
    if any(isinstance(tensor, Varying) and len(tensor.shape) != rank for tensor in tensors):
        raise UnsupportedError("it broadcasts a tensor along the axis of the images")


def inner_axis(x: Operand, axis: Integer) -> int:
    """`axis`, counted from the front; the one of the images is refused."""
    axis = int(axis) % len(x.shape)
    if axis == 0 and isinstance(x, Varying):
        raise UnsupportedError("it works along the first axis, which is that of the images")
    return axis


def inner_axes(x: Operand, axes: np.ndarray | None) -> tuple[int, ...]:
    """`axes`, each as `inner_axis` gives it; None means all."""
    numbers = range(len(x.shape)) if axes is None else np.atleast_1d(axes)
    return tuple(inner_axis(x, axis) for axis in numbers)


def check_false(**arguments: Any) -> None:
    """Refuses arguments that are neither None nor false or zero throughout."""
    for name, value in arguments.items():
        if value is not None and np.any(value):
            raise UnsupportedError(f"its argument {name} is {value}, and only what is off or zero is supported")
