"""Convolution, pooling and resizing of ML Programs in NumPy. Room: deploy/coreml/operations."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from keras_efficientformer.deploy.coreml.operations.table import (
    Integer,
    Operand,
    PlannedFunction,
    Real,
    UnsupportedError,
    check_false,
    operation,
)


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


def _windows(
    x: Operand,
    kernel: np.ndarray | tuple[int, ...],
    strides: np.ndarray,
    pad_type: str,
    pad: np.ndarray | None,
    dilations: np.ndarray | tuple[int, ...] = (1, 1),
) -> _Windows:
    """The windows of a convolution or pooling with MIL's arguments."""
    if len(x.shape) != 4 or len(kernel) != 2:
        raise UnsupportedError(f"its input is {list(x.shape)}, and only images of two dimensions are supported")
    pairs = _pair(x.shape[2:]), _pair(kernel), _pair(strides), _pair(dilations)
    vertical, horizontal = (0, 0), (0, 0)
    if pad_type == "custom" and pad is not None:
        vertical, horizontal = _pair(pad[:2]), _pair(pad[2:])
    elif pad_type in ("same", "same_lower"):
        vertical, horizontal = (_same(*sides, before=pad_type == "same_lower") for sides in zip(*pairs, strict=True))
    elif pad_type not in ("custom", "valid"):
        raise UnsupportedError(f"its pad_type is {pad_type}, and custom, valid, same and same_lower are supported")
    return _Windows(*pairs, (vertical, horizontal))


def _pair(sides: np.ndarray | tuple[int, ...]) -> tuple[int, int]:
    first, second = sides
    return int(first), int(second)


def _same(size: int, kernel: int, stride: int, dilation: int, before: bool) -> tuple[int, int]:
    """The padding on both sides with which there are size / stride windows; `before` gets the odd pixel, or not."""
    total = max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    pads = (total // 2, total - total // 2)
    return pads[::-1] if before else pads


@operation("conv")
def _convolution(
    x: Operand,
    weight: np.ndarray,
    strides: np.ndarray,
    pad_type: str,
    dilations: np.ndarray,
    groups: Integer,
    pad: np.ndarray | None = None,
    bias: np.ndarray | None = None,
) -> PlannedFunction:
    windows = _windows(x, weight.shape[2:], strides, pad_type, pad, dilations)
    groups, outputs, inputs = int(groups), weight.shape[0], x.shape[1]
    offset = np.zeros(outputs, "float32") if bias is None else bias
    if groups == inputs == outputs:
        return _depthwise(windows, weight, offset)
    matrices = weight.reshape(groups, outputs // groups, -1)

    def convolve(x: np.ndarray) -> np.ndarray:
        columns = np.empty((inputs, math.prod(windows.kernel), *windows.count, len(x)), "float32")
        for column, view in zip(columns.swapaxes(0, 1), windows.views(x), strict=True):
            column[:] = np.moveaxis(view, 0, -1)
        return multiply(columns, len(x))

    def convolve_pixels(x: np.ndarray) -> np.ndarray:
        return multiply(np.moveaxis(x, 0, -1), len(x))

    def multiply(columns: np.ndarray, images: int) -> np.ndarray:
        result = np.matmul(matrices, columns.reshape(groups, matrices.shape[2], -1)).reshape(outputs, -1)
        result += offset[:, None]
        return np.moveaxis(result.reshape(outputs, *windows.count, images), -1, 0)

    pixels = windows.kernel == windows.strides == (1, 1) and windows.pad == ((0, 0), (0, 0))
    return convolve_pixels if pixels else convolve


def _depthwise(windows: _Windows, weight: np.ndarray, offset: np.ndarray) -> PlannedFunction:
    factors = weight.reshape(len(weight), -1).T[:, None, :, None, None]

    def convolve(x: np.ndarray) -> np.ndarray:
        result = _sum(products(x))
        result += offset[:, None, None]
        return result

    def products(x: np.ndarray) -> Iterator[np.ndarray]:
        product = None
        for view, factor in zip(windows.views(x), factors, strict=True):
            product = np.multiply(view, factor, out=product)
            yield product

    return convolve


@operation("avg_pool")
def _average_pool(
    x: Operand,
    kernel_sizes: np.ndarray,
    strides: np.ndarray,
    pad_type: str,
    exclude_padding_from_average: bool,
    ceil_mode: bool,
    pad: np.ndarray | None = None,
) -> PlannedFunction:
    check_false(ceil_mode=ceil_mode)
    windows = _windows(x, kernel_sizes, strides, pad_type, pad)
    real = np.ones((1, 1, *windows.size), "float32")
    pixels = sum(windows.views(real, outside=0.0 if exclude_padding_from_average else 1.0))
    return lambda x: _sum(windows.views(x)) / pixels


def _sum(arrays: Iterator[np.ndarray]) -> np.ndarray:
    """The sum of arrays of one shape, each of which is taken before the next is made."""
    result = next(arrays).copy("K")
    for array in arrays:
        result += array
    return result


@operation("max_pool")
def _max_pool(
    x: Operand,
    kernel_sizes: np.ndarray,
    strides: np.ndarray,
    pad_type: str,
    ceil_mode: bool,
    pad: np.ndarray | None = None,
) -> PlannedFunction:
    check_false(ceil_mode=ceil_mode)
    windows = _windows(x, kernel_sizes, strides, pad_type, pad)
    # NumPy's maximum of all views at once would need an array of them all; this one needs two of their size.
    return lambda x: _largest(windows.views(x, outside=-np.inf))


def _largest(views: Iterator[np.ndarray]) -> np.ndarray:
    """The elementwise maximum of arrays of one shape."""
    result = next(views).copy("K")
    for view in views:
        np.maximum(result, view, out=result)
    return result


@operation("upsample_bilinear")
def _upsample_bilinear(
    x: Operand,
    result: tuple[int, ...],
    scale_factor_height: Real = 1,
    scale_factor_width: Real = 1,
    align_corners: bool = True,
) -> PlannedFunction:
    return _resize_linearly(x, result, "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS")


@operation("resize_bilinear")
def _resize_bilinear(
    x: Operand,
    result: tuple[int, ...],
    target_size_height: Integer,
    target_size_width: Integer,
    sampling_mode: str = "DEFAULT",
) -> PlannedFunction:
    return _resize_linearly(x, result, sampling_mode)


@operation("resize")
def _resize(
    x: Operand,
    result: tuple[int, ...],
    shape: np.ndarray,
    resized_dims: Integer,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> PlannedFunction:
    if interpolation_mode != "LINEAR" or result[:-2] != tuple(x.shape[:-2]):
        raise UnsupportedError("only the linear resizing of two dimensions is supported")
    return _resize_linearly(x, result, sampling_mode)


def _resize_linearly(x: Operand, result: tuple[int, ...], sampling_mode: str) -> PlannedFunction:
    """Bilinear resizing to `result`, as two matrix products."""
    rows, columns = (
        _interpolation(before, after, sampling_mode) for before, after in zip(x.shape[-2:], result[-2:], strict=True)
    )
    return lambda x: rows @ x @ columns.T


def _interpolation(before: int, after: int, sampling_mode: str) -> np.ndarray:
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
    # At a point between two old pixels, each counts by how near it is.
    points = np.clip(points, 0, before - 1)
    return np.maximum(1 - np.abs(points[:, None] - np.arange(before)), 0).astype("float32")


@operation("upsample_nearest_neighbor")
def _upsample_nearest(
    x: Operand, result: tuple[int, ...], scale_factor_height: Real = 1, scale_factor_width: Real = 1
) -> PlannedFunction:
    return _repeat(x, result)


@operation("resize_nearest_neighbor")
def _resize_nearest(
    x: Operand, result: tuple[int, ...], target_size_height: Integer, target_size_width: Integer
) -> PlannedFunction:
    return _repeat(x, result)


def _repeat(x: Operand, result: tuple[int, ...]) -> PlannedFunction:
    """Resizing to `result` by repeating pixels, whole times."""
    (height, width), (new_height, new_width) = x.shape[-2:], result[-2:]
    if new_height % height or new_width % width:
        raise UnsupportedError("only resizing to the nearest by whole factors is supported")
    return lambda x: x.repeat(new_height // height, -2).repeat(new_width // width, -1)
