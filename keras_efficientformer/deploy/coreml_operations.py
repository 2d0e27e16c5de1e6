"""The operations of ML Programs in NumPy: what each means, for any number of images at once.

An operation is planned once, from its constant arguments, and gives a function of the arguments that vary from image
to image. Arguments have the names, defaults and meaning of coremltools' MIL operations
(https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html); what is not planned here is
an error, never ignored. Programs are written for one image, so a tensor that varies is declared as (1, ...), and is
(images, ...) here: a plan refuses what would mix the first axis with others.

Results of convolutions lie in memory as (channels, images, height, width), which NumPy keeps through elementwise
operations: so one matrix product serves all images, without a copy.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

OPERATIONS: dict[str, "Operation"] = {}


class UnsupportedError(ValueError):
    """An operation of a known kind is used in a way that is not planned here; the message says which."""


@dataclass(frozen=True)
class Varying:
    """Stands for a tensor that is not constant, while operations are planned.

    Attributes:
        shape: as declared, for one image: (1, ...).
    """

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """A kind of operation.

    Attributes:
        plan: takes its arguments by name, constants as arrays or Python values and others as `Varying`, and `result`,
            the declared shape of its first output, where it wants to know that; returns a function of `varying`.
        varying: names of the arguments that need not be constant.
    """

    plan: Callable[..., Callable[..., Any]]
    varying: tuple[str, ...]


def _operation(*kinds, varying=("x",)):
    def register(plan):
        OPERATIONS.update(dict.fromkeys(kinds, Operation(plan, varying)))
        return plan

    return register


def _unary(kind, function):
    OPERATIONS[kind] = Operation(lambda x: function, ("x",))


def _binary(kind, function):
    def plan(x, y):
        _check_aligned(x, y)
        return function

    OPERATIONS[kind] = Operation(plan, ("x", "y"))


def _check_aligned(*tensors):
    """Refuses to broadcast tensors whose first axes, the images, would not meet."""
    rank = max(len(tensor.shape) for tensor in tensors)
    if any(isinstance(tensor, Varying) and len(tensor.shape) != rank for tensor in tensors):
        raise UnsupportedError("it broadcasts a tensor along the axis of the images")


def _inner_axis(x, axis):
    """`axis`, counted from the front; the one of the images is refused."""
    axis = int(axis) % len(x.shape)
    if axis == 0 and isinstance(x, Varying):
        raise UnsupportedError("it works along the first axis, which is that of the images")
    return axis


def _inner_axes(x, axes):
    axes = range(len(x.shape)) if axes is None else np.atleast_1d(axes)
    return tuple(_inner_axis(x, axis) for axis in axes)


def _check_false(**arguments):
    for name, value in arguments.items():
        if value is not None and np.any(value):
            raise UnsupportedError(f"its argument {name} is {value}, and only what is off or zero is supported")


# Elementwise


def _sigmoid(x):
    # Of both signs the one form that cannot overflow.
    return np.float32(0.5) * np.tanh(np.float32(0.5) * x) + np.float32(0.5)


_unary("identity", lambda x: x)
_unary("relu", lambda x: np.maximum(x, 0))
_unary("relu6", lambda x: np.clip(x, 0, 6))
_unary("sigmoid", _sigmoid)
_unary("silu", lambda x: x * _sigmoid(x))
_unary("tanh", np.tanh)
_unary("exp", np.exp)
_unary("sqrt", np.sqrt)
_unary("square", np.square)
_unary("abs", np.abs)
_unary("erf", lambda x: _erf(x))
_binary("add", np.add)
_binary("sub", np.subtract)
_binary("mul", np.multiply)
_binary("real_div", np.divide)
_binary("pow", np.power)
_binary("maximum", np.maximum)
_binary("minimum", np.minimum)


def _erf(x):
    from scipy.special import erf

    return erf(x)


@_operation("rsqrt")
def _rsqrt(x, epsilon):
    return lambda x: 1 / np.sqrt(x + epsilon)


@_operation("inverse")
def _inverse(x, epsilon):
    return lambda x: 1 / (x + epsilon)


@_operation("log")
def _log(x, epsilon):
    return lambda x: np.log(x + epsilon)


@_operation("clip")
def _clip(x, alpha, beta):
    return lambda x: np.clip(x, alpha, beta)


@_operation("leaky_relu")
def _leaky_relu(x, alpha):
    return lambda x: np.where(x >= 0, x, alpha * x)


@_operation("sigmoid_hard")
def _sigmoid_hard(x, alpha, beta):
    return lambda x: np.clip(alpha * x + beta, 0, 1)


@_operation("gelu")
def _gelu(x, mode):
    forms = {
        "EXACT": lambda x: np.float32(0.5) * x * (1 + _erf(x * np.float32(math.sqrt(0.5)))),
        "TANH_APPROXIMATION": lambda x: (
            np.float32(0.5) * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)))
        ),
        "SIGMOID_APPROXIMATION": lambda x: x * _sigmoid(np.float32(1.702) * x),
    }
    return forms[mode]


@_operation("cast")
def _cast(x, dtype):
    # float16 is rounded to by whoever runs the program, and by its choice: numbers are float32 here.
    types = {"fp16": np.float32, "fp32": np.float32, "int32": np.int32, "bool": np.bool_}
    if dtype not in types:
        raise UnsupportedError(f"it casts to {dtype}, and only {', '.join(types)} are supported")
    return lambda x: x.astype(types[dtype], copy=False)


# Convolution and pooling


@dataclass(frozen=True)
class _Windows:
    """Where windows of `kernel` pixels lie in an image of `size` (height, width) with `pad` pixels around it.

    Attributes:
        pad: ((top, bottom), (left, right)).
    """

    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pad: tuple[tuple[int, int], tuple[int, int]]

    @property
    def count(self) -> tuple[int, int]:
        """How many windows there are down and across."""
        reach = [(side - 1) * dilation + 1 for side, dilation in zip(self.kernel, self.dilations, strict=True)]
        spaces = [side + sum(pad) for side, pad in zip(self.size, self.pad, strict=True)]
        down, across = (
            (space - side) // stride + 1 for space, side, stride in zip(spaces, reach, self.strides, strict=True)
        )
        return down, across

    def views(self, x: np.ndarray, outside: float = 0.0) -> Iterator[np.ndarray]:
        """For each pixel of the kernel, row by row, that pixel of all windows: (images, channels, down, across)."""
        (top, bottom), (left, right) = self.pad
        height, width = self.size
        if self.pad != ((0, 0), (0, 0)):
            padded = np.full_like(x, outside, shape=(*x.shape[:2], top + height + bottom, left + width + right))
            padded[:, :, top : top + height, left : left + width] = x
            x = padded
        rows, columns = (np.arange(count) * stride for count, stride in zip(self.count, self.strides, strict=True))
        for row in range(0, self.kernel[0] * self.dilations[0], self.dilations[0]):
            for column in range(0, self.kernel[1] * self.dilations[1], self.dilations[1]):
                yield x[
                    :,
                    :,
                    row : row + rows[-1] + 1 : self.strides[0],
                    column : column + columns[-1] + 1 : self.strides[1],
                ]


def _windows(x, kernel, strides, pad_type, pad, dilations=(1, 1)):
    if len(x.shape) != 4 or len(kernel) != 2:
        raise UnsupportedError(f"its input is {list(x.shape)}, and only images of two dimensions are supported")
    size, kernel, strides, dilations = (
        tuple(int(side) for side in pair) for pair in (x.shape[2:], kernel, strides, dilations)
    )
    if pad_type == "custom":
        pads = tuple((int(pad[axis]), int(pad[axis + 1])) for axis in (0, 2))
    elif pad_type == "valid":
        pads = ((0, 0), (0, 0))
    elif pad_type in ("same", "same_lower"):
        pads = tuple(
            _same(*sides, before=pad_type == "same_lower")
            for sides in zip(size, kernel, strides, dilations, strict=True)
        )
    else:
        raise UnsupportedError(f"its pad_type is {pad_type}, and custom, valid, same and same_lower are supported")
    return _Windows(size, kernel, strides, dilations, pads)


def _same(size, kernel, stride, dilation, before):
    """The padding on both sides with which there are size / stride windows; `before` gets the odd pixel, or not."""
    total = max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    pads = (total // 2, total - total // 2)
    return pads[::-1] if before else pads


@_operation("conv")
def _convolution(x, weight, strides, pad_type, dilations, groups, pad=None, bias=None):
    windows = _windows(x, weight.shape[2:], strides, pad_type, pad, dilations)
    groups, outputs, inputs = int(groups), weight.shape[0], x.shape[1]
    offset = np.zeros(outputs, "float32") if bias is None else bias
    if groups == inputs == outputs:
        return _depthwise(windows, weight, offset)
    matrices = weight.reshape(groups, outputs // groups, -1)

    def convolve(x):
        columns = np.empty((inputs, math.prod(windows.kernel), len(x), *windows.count), "float32")
        for column, view in zip(columns.swapaxes(0, 1), windows.views(x), strict=True):
            column[:] = view.swapaxes(0, 1)
        return multiply(columns, len(x))

    def convolve_pixels(x):
        return multiply(x.swapaxes(0, 1), len(x))

    def multiply(columns, images):
        result = np.matmul(matrices, columns.reshape(groups, matrices.shape[2], -1)).reshape(outputs, -1)
        result += offset[:, None]
        return result.reshape(outputs, images, *windows.count).swapaxes(0, 1)

    pixels = windows.kernel == windows.strides == (1, 1) and windows.pad == ((0, 0), (0, 0))
    return convolve_pixels if pixels else convolve


def _depthwise(windows, weight, offset):
    factors = weight.reshape(len(weight), -1).T[:, None, :, None, None]

    def convolve(x):
        result = sum(view * factor for view, factor in zip(windows.views(x), factors, strict=True))
        result += offset[:, None, None]
        return result

    return convolve


@_operation("avg_pool")
def _average_pool(x, kernel_sizes, strides, pad_type, exclude_padding_from_average, ceil_mode, pad=None):
    _check_false(ceil_mode=ceil_mode)
    windows = _windows(x, kernel_sizes, strides, pad_type, pad)
    real = np.ones((1, 1, *windows.size), "float32")
    pixels = sum(windows.views(real, outside=0.0 if exclude_padding_from_average else 1.0))
    return lambda x: sum(windows.views(x)) / pixels


@_operation("max_pool")
def _max_pool(x, kernel_sizes, strides, pad_type, ceil_mode, pad=None):
    _check_false(ceil_mode=ceil_mode)
    windows = _windows(x, kernel_sizes, strides, pad_type, pad)
    # `initial` would make an array of all views; this needs two.
    return lambda x: _largest(windows.views(x, outside=-np.inf))


def _largest(views):
    result = next(views)
    for view in views:
        result = np.maximum(result, view)
    return result


# Normalisation


@_operation("layer_norm")
def _layer_norm(x, axes=None, gamma=None, beta=None, epsilon=1e-5):
    axes = _inner_axes(x, axes)
    shape = [side if axis in axes else 1 for axis, side in enumerate(x.shape)]
    scale = np.float32(1) if gamma is None else gamma.reshape(shape)
    offset = np.float32(0) if beta is None else beta.reshape(shape)

    def normalise(x):
        centred = x - x.mean(axes, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(axes, keepdims=True) + np.float32(epsilon))
        return centred / deviation * scale + offset

    return normalise


@_operation("batch_norm")
def _batch_norm(x, mean, variance, gamma=None, beta=None, epsilon=1e-5):
    scale = (np.float32(1) if gamma is None else gamma) / np.sqrt(variance + np.float32(epsilon))
    offset = (np.float32(0) if beta is None else beta) - mean * scale
    shape = (-1, *[1] * (len(x.shape) - 2))
    scale, offset = scale.reshape(shape), offset.reshape(shape)
    return lambda x: x * scale + offset


# Products and reductions


@_operation("linear")
def _linear(x, weight, bias=None):
    offset = np.float32(0) if bias is None else bias
    return lambda x: x @ weight.T + offset


@_operation("matmul", varying=("x", "y"))
def _matmul(x, y, transpose_x=False, transpose_y=False):
    _check_aligned(x, y)
    if (isinstance(x, Varying) and len(x.shape) < 2 + transpose_x) or (isinstance(y, Varying) and len(y.shape) < 3):
        raise UnsupportedError("it multiplies along the first axis, which is that of the images")

    def multiply(x, y):
        return np.matmul(x.swapaxes(-1, -2) if transpose_x else x, y.swapaxes(-1, -2) if transpose_y else y)

    return multiply


@_operation("softmax")
def _softmax_of(x, axis):
    axis = _inner_axis(x, axis)
    return lambda x: _softmax(x, axis)


def _softmax(x, axis):
    exponentials = np.exp(x - x.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


@_operation("scaled_dot_product_attention", varying=("query", "key", "value", "attn_mask"))
def _attention(query, key, value, attn_mask=None):
    tensors = [tensor for tensor in (query, key, value, attn_mask) if tensor is not None]
    _check_aligned(*tensors)
    scale = np.float32(query.shape[-1] ** -0.5)

    def attend(query, key, value, mask):
        scores = query @ key.swapaxes(-1, -2) * scale
        if mask is not None:
            scores = np.where(mask, scores, np.float32(-np.inf)) if mask.dtype == bool else scores + mask
        return _softmax(scores, -1) @ value

    return attend


def _reduction(kind, function):
    def plan(x, axes=None, keep_dims=False):
        axes = _inner_axes(x, axes)
        return lambda x: function(x, axes, keepdims=bool(keep_dims))

    OPERATIONS[kind] = Operation(plan, ("x",))


_reduction("reduce_mean", np.mean)
_reduction("reduce_max", np.max)
_reduction("reduce_min", np.min)
_reduction("reduce_sum", np.sum)


# Shapes


def _reshape(x, result, shape=None, axes=None):
    # The first axis is the slowest and of length one on both sides, so nothing passes from image to image.
    return lambda x: x.reshape(len(x), *result[1:])


OPERATIONS.update(dict.fromkeys(("reshape", "expand_dims", "squeeze"), Operation(_reshape, ("x",))))


@_operation("transpose")
def _transpose(x, perm):
    order = [int(axis) % len(x.shape) for axis in perm]
    if isinstance(x, Varying) and order[0] != 0:
        raise UnsupportedError("it moves the first axis, which is that of the images")
    return lambda x: x.transpose(order)


@_operation("split")
def _split(x, axis, num_splits=None, split_sizes=None):
    axis = _inner_axis(x, axis)
    parts = int(num_splits) if split_sizes is None else np.cumsum(split_sizes)[:-1]
    return lambda x: np.split(x, parts, axis)


@_operation("concat", varying=("values",))
def _concat(values, axis, interleave=False):
    _check_false(interleave=interleave)
    (axis,) = {_inner_axis(value, axis) for value in values}
    return lambda values: np.concatenate(_for_all_images(values), axis)


@_operation("stack", varying=("values",))
def _stack(values, axis):
    (axis,) = {int(axis) % (len(value.shape) + 1) for value in values}
    if axis == 0:
        raise UnsupportedError("it makes a new first axis, which is that of the images")
    return lambda values: np.stack(_for_all_images(values), axis)


def _for_all_images(values):
    images = max(len(value) for value in values)
    return [np.broadcast_to(value, (images, *value.shape[1:])) for value in values]


@_operation("slice_by_size")
def _slice_by_size(x, begin, size):
    stop = [side if length == -1 else start + length for start, length, side in zip(begin, size, x.shape, strict=True)]
    if isinstance(x, Varying) and (begin[0], stop[0]) != (0, 1):
        raise UnsupportedError("it slices the first axis, which is that of the images")
    slices = tuple(slice(*pair) for pair in zip(begin, stop, strict=True))
    return lambda x: x[:, *slices[1:]]


@_operation("slice_by_index")
def _slice_by_index(x, begin, end, stride=None, begin_mask=None, end_mask=None, squeeze_mask=None):
    rank = len(x.shape)
    none = np.zeros(rank, bool)
    open_begin, open_end, squeezed = (none if mask is None else mask for mask in (begin_mask, end_mask, squeeze_mask))
    strides = np.ones(rank, int) if stride is None else stride
    slices = [
        int(begin[axis])
        if squeezed[axis]
        else slice(
            None if open_begin[axis] else int(begin[axis]), None if open_end[axis] else int(end[axis]), strides[axis]
        )
        for axis in range(rank)
    ]
    if isinstance(x, Varying) and (squeezed[0] or slices[0].indices(1) != (0, 1, 1)):
        raise UnsupportedError("it slices the first axis, which is that of the images")
    if isinstance(x, Varying):
        slices[0] = slice(None)
    return lambda x: x[tuple(slices)]


@_operation("gather")
def _gather(x, indices, axis, batch_dims=0, validate_indices=False):
    _check_false(batch_dims=batch_dims)
    axis = _inner_axis(x, axis)
    return lambda x: np.take(x, indices, axis)


@_operation("pad")
def _pad(x, pad, mode="constant", constant_val=0.0):
    modes = {"constant": {"constant_values": constant_val}, "reflect": {}, "replicate": {}}
    widths = np.zeros((len(x.shape), 2), int)
    widths[len(x.shape) - len(pad) // 2 :] = np.reshape(pad, (-1, 2))
    if isinstance(x, Varying) and widths[0].any():
        raise UnsupportedError("it pads the first axis, which is that of the images")
    return lambda x: np.pad(x, widths, mode.replace("replicate", "edge"), **modes[mode])


# Resizing


@_operation("upsample_bilinear")
def _upsample_bilinear(x, result, scale_factor_height=1, scale_factor_width=1, align_corners=True):
    return _resize_linearly(x, result, "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS")


@_operation("resize_bilinear")
def _resize_bilinear(x, result, target_size_height, target_size_width, sampling_mode="DEFAULT"):
    return _resize_linearly(x, result, sampling_mode)


@_operation("resize")
def _resize(x, result, shape, resized_dims, interpolation_mode="LINEAR", sampling_mode="DEFAULT"):
    if interpolation_mode != "LINEAR" or result[:-2] != tuple(x.shape[:-2]):
        raise UnsupportedError("only the linear resizing of two dimensions is supported")
    return _resize_linearly(x, result, sampling_mode)


def _resize_linearly(x, result, sampling_mode):
    rows, columns = (
        _interpolation(before, after, sampling_mode) for before, after in zip(x.shape[-2:], result[-2:], strict=True)
    )
    return lambda x: rows @ x @ columns.T


def _interpolation(before, after, sampling_mode):
    """The matrix (after, before) that resizes an axis; what the modes mean is in MIL's `resize_bilinear`."""
    index = np.arange(after)
    if sampling_mode == "UNALIGN_CORNERS":
        points = (index + 0.5) * before / after - 0.5
    elif sampling_mode == "DEFAULT":
        points = index * before / after
    elif sampling_mode == "STRICT_ALIGN_CORNERS" or (sampling_mode == "ALIGN_CORNERS" and after > 1):
        points = index * (before - 1) / max(after - 1, 1)
    else:
        raise UnsupportedError(f"its sampling mode {sampling_mode} is not supported")
    # A hat around each old pixel: at a point between two, each counts by how near it is.
    points = np.clip(points, 0, before - 1)
    return np.maximum(1 - np.abs(points[:, None] - np.arange(before)), 0).astype("float32")


@_operation("upsample_nearest_neighbor")
def _upsample_nearest(x, result, scale_factor_height=1, scale_factor_width=1):
    return _repeat(x, result)


@_operation("resize_nearest_neighbor")
def _resize_nearest(x, result, target_size_height, target_size_width):
    return _repeat(x, result)


def _repeat(x, result):
    (height, width), (new_height, new_width) = x.shape[-2:], result[-2:]
    if new_height % height or new_width % width:
        raise UnsupportedError("only resizing to the nearest by whole factors is supported")
    return lambda x: x.repeat(new_height // height, -2).repeat(new_width // width, -1)


# Classes


@_operation("classify", varying=("probabilities",))
def _classify(probabilities, classes):
    labels = np.array([str(label) for label in classes])

    def classify(probabilities):
        probabilities = probabilities.reshape(len(probabilities), len(labels))
        return labels[probabilities.argmax(-1)], probabilities

    return classify


def rounded(x: np.ndarray) -> np.ndarray:
    """`x` as float16 stores it, in float32; what is too large is infinite."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)
