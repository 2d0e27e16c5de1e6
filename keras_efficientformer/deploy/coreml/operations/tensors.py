"""Normalisation, products, reductions, shapes and classes of ML Programs in NumPy. Room: deploy/coreml/operations."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from keras_efficientformer.deploy.coreml.operations.table import (
    OPERATIONS,
    Integer,
    Operand,
    OperationKind,
    PlannedFunction,
    Real,
    UnsupportedError,
    Varying,
    check_aligned,
    check_false,
    inner_axes,
    inner_axis,
    operation,
)


@operation("layer_norm")
def _layer_norm(
    x: Operand,
    axes: np.ndarray | None = None,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    epsilon: Real = 1e-5,
) -> PlannedFunction:
    inner = inner_axes(x, axes)
    shape = [side if axis in inner else 1 for axis, side in enumerate(x.shape)]
    scale = np.float32(1) if gamma is None else gamma.reshape(shape)
    offset = np.float32(0) if beta is None else beta.reshape(shape)

    def normalise(x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(inner, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(inner, keepdims=True) + np.float32(epsilon))
        return centred / deviation * scale + offset

    return normalise


@operation("batch_norm")
def _batch_norm(
    x: Operand,
    mean: np.ndarray,
    variance: np.ndarray,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    epsilon: Real = 1e-5,
) -> PlannedFunction:
    scale = (np.float32(1) if gamma is None else gamma) / np.sqrt(variance + np.float32(epsilon))
    offset = (np.float32(0) if beta is None else beta) - mean * scale
    shape = (-1, *[1] * (len(x.shape) - 2))
    scale, offset = scale.reshape(shape), offset.reshape(shape)
    return lambda x: x * scale + offset


@operation("linear")
def _linear(x: Operand, weight: np.ndarray, bias: np.ndarray | None = None) -> PlannedFunction:
    offset = np.float32(0) if bias is None else bias
    return lambda x: x @ weight.T + offset


@operation("matmul", varying=("x", "y"))
def _matmul(x: Operand, y: Operand, transpose_x: bool = False, transpose_y: bool = False) -> PlannedFunction:
    check_aligned(x, y)
    if (isinstance(x, Varying) and len(x.shape) < 2 + transpose_x) or (isinstance(y, Varying) and len(y.shape) < 3):
        raise UnsupportedError("it multiplies along the first axis, which is that of the images")

    def multiply(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.matmul(x.swapaxes(-1, -2) if transpose_x else x, y.swapaxes(-1, -2) if transpose_y else y)

    return multiply


@operation("softmax")
def _softmax_of(x: Operand, axis: Integer) -> PlannedFunction:
    inner = inner_axis(x, axis)
    return lambda x: _softmax(x, inner)


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    exponentials = np.exp(x - x.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


@operation("scaled_dot_product_attention", varying=("query", "key", "value", "attn_mask"))
def _attention(query: Operand, key: Operand, value: Operand, attn_mask: Operand | None = None) -> PlannedFunction:
    tensors = [tensor for tensor in (query, key, value, attn_mask) if tensor is not None]
    check_aligned(*tensors)
    scale = np.float32(query.shape[-1] ** -0.5)

    def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        scores = query @ key.swapaxes(-1, -2) * scale
        if mask is not None:
            scores = np.where(mask, scores, np.float32(-np.inf)) if mask.dtype == bool else scores + mask
        return _softmax(scores, -1) @ value

    return attend


def _reduction(kind: str, function: Callable[..., Any]) -> None:
    """Registers a NumPy reduction, which takes axes and `keepdims`."""

    def plan(x: Operand, axes: np.ndarray | None = None, keep_dims: bool = False) -> PlannedFunction:
        inner = inner_axes(x, axes)
        return lambda x: function(x, inner, keepdims=bool(keep_dims))

    OPERATIONS[kind] = OperationKind(plan, ("x",))


_reduction("reduce_mean", np.mean)
_reduction("reduce_max", np.max)
_reduction("reduce_min", np.min)
_reduction("reduce_sum", np.sum)


@operation("reduce_argmax")
def _reduce_argmax(
    x: Operand, axis: Integer = -1, keep_dims: bool = True, output_dtype: str = "int32"
) -> PlannedFunction:
    if output_dtype != "int32":
        raise UnsupportedError(f"it gives {output_dtype}, and only int32 is supported")
    inner = inner_axis(x, axis)
    return lambda x: x.argmax(inner, keepdims=bool(keep_dims)).astype("int32")


def _reshape(
    x: Operand, result: tuple[int, ...], shape: np.ndarray | None = None, axes: np.ndarray | None = None
) -> PlannedFunction:
    # The first axis is the slowest and of length one on both sides, so nothing passes from image to image.
    return lambda x: x.reshape(len(x), *result[1:])


OPERATIONS.update(dict.fromkeys(("reshape", "expand_dims", "squeeze"), OperationKind(_reshape, ("x",))))


@operation("transpose")
def _transpose(x: Operand, perm: np.ndarray) -> PlannedFunction:
    order = [int(axis) % len(x.shape) for axis in perm]
    if isinstance(x, Varying) and order[0] != 0:
        raise UnsupportedError("it moves the first axis, which is that of the images")
    return lambda x: x.transpose(order)


@operation("split")
def _split(
    x: Operand, axis: Integer, num_splits: Integer = 1, split_sizes: np.ndarray | None = None
) -> PlannedFunction:
    inner = inner_axis(x, axis)
    if split_sizes is not None:
        ends = np.cumsum(split_sizes)[:-1]
        return lambda x: np.split(x, ends, inner)
    count = int(num_splits)
    return lambda x: np.split(x, count, inner)


@operation("concat", varying=("values",))
def _concat(values: list[Operand], axis: Integer, interleave: bool = False) -> PlannedFunction:
    check_false(interleave=interleave)
    (inner,) = {inner_axis(value, axis) for value in values}
    return lambda values: np.concatenate(_for_all_images(values), inner)


@operation("stack", varying=("values",))
def _stack(values: list[Operand], axis: Integer) -> PlannedFunction:
    (inner,) = {int(axis) % (len(value.shape) + 1) for value in values}
    if inner == 0:
        raise UnsupportedError("it makes a new first axis, which is that of the images")
    return lambda values: np.stack(_for_all_images(values), inner)


def _for_all_images(values: list[np.ndarray]) -> list[np.ndarray]:
    """The arrays with as many images as the one that has most: a constant has one."""
    images = max(len(value) for value in values)
    return [np.broadcast_to(value, (images, *value.shape[1:])) for value in values]


@operation("slice_by_size")
def _slice_by_size(x: Operand, begin: np.ndarray, size: np.ndarray) -> PlannedFunction:
    stop = [side if length == -1 else start + length for start, length, side in zip(begin, size, x.shape, strict=True)]
    if isinstance(x, Varying) and (begin[0], stop[0]) != (0, 1):
        raise UnsupportedError("it slices the first axis, which is that of the images")
    slices = tuple(slice(*pair) for pair in zip(begin, stop, strict=True))
    return lambda x: x[:, *slices[1:]]


@operation("slice_by_index")
def _slice_by_index(
    x: Operand,
    begin: np.ndarray,
    end: np.ndarray,
    stride: np.ndarray | None = None,
    begin_mask: np.ndarray | None = None,
    end_mask: np.ndarray | None = None,
    squeeze_mask: np.ndarray | None = None,
) -> PlannedFunction:
    rank = len(x.shape)
    none = np.zeros(rank, bool)
    open_begin, open_end, squeezed = (none if mask is None else mask for mask in (begin_mask, end_mask, squeeze_mask))
    strides = np.ones(rank, int) if stride is None else stride
    slices: list[int | slice] = [
        int(begin[axis])
        if squeezed[axis]
        else slice(
            None if open_begin[axis] else int(begin[axis]), None if open_end[axis] else int(end[axis]), strides[axis]
        )
        for axis in range(rank)
    ]
    if isinstance(x, Varying):
        if not isinstance(slices[0], slice) or slices[0].indices(1) != (0, 1, 1):
            raise UnsupportedError("it slices the first axis, which is that of the images")
        slices[0] = slice(None)
    return lambda x: x[tuple(slices)]


@operation("gather")
def _gather(
    x: Operand, indices: np.ndarray, axis: Integer, batch_dims: Integer = 0, validate_indices: bool = False
) -> PlannedFunction:
    check_false(batch_dims=batch_dims)
    inner = inner_axis(x, axis)
    return lambda x: np.take(x, indices, inner)


@operation("pad")
def _pad(x: Operand, pad: np.ndarray, mode: str = "constant", constant_val: Real = 0.0) -> PlannedFunction:
    modes: dict[str, Literal["reflect", "edge"]] = {"reflect": "reflect", "replicate": "edge"}
    widths = np.zeros((len(x.shape), 2), int)
    widths[len(x.shape) - len(pad) // 2 :] = np.reshape(pad, (-1, 2))
    if isinstance(x, Varying) and widths[0].any():
        raise UnsupportedError("it pads the first axis, which is that of the images")
    if mode == "constant":
        return lambda x: np.pad(x, widths, constant_values=constant_val)
    return lambda x: np.pad(x, widths, modes[mode])


@operation("classify", varying=("probabilities",))
def _classify(probabilities: Operand, classes: np.ndarray) -> PlannedFunction:
    labels = np.array([str(label) for label in classes])

    def classify(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probabilities = probabilities.reshape(len(probabilities), len(labels))
        return labels[probabilities.argmax(-1)], probabilities

    return classify
