"""The TFLite builder: makes the fused network as the operators of a .tflite file. Room: deploy/tflite.

Channels last, batch fixed. The operators are written directly, without a converter: what is described is what is in the
file, operator by operator, and no framework is needed, nor the memory of one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_efficientformer.deploy.network.rounding.linear import LinearStep
from keras_efficientformer.deploy.tflite.graph import Graph, GraphTensor, schema
from keras_efficientformer.deploy.tflite.modes import PLAIN, Kernels, is_matrix
from keras_efficientformer.deploy.tflite.pooling_filters import border_factors, fused_mixer_filters
from keras_efficientformer.deploy.tflite.step_names import ADD_TABLE, INPUT, scope

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID


class TFLiteBuilder:
    """Implements `Builder`.

    Args:
        batch_size: of the file.
        kernels: the choices between equal operations.
        float16_weights: whether weights are stored in float16.
        linear: {number of a step: the step} of those whose weights are stored as integers.

    Attributes:
        graph: the file so far.
    """

    def __init__(
        self,
        batch_size: int = 1,
        kernels: Kernels = PLAIN,
        float16_weights: bool = False,
        linear: Mapping[int, LinearStep] | None = None,
    ) -> None:
        self.graph = Graph(float16_weights)
        self._linear = linear or {}
        self._stored: LinearStep | None = None
        self._batch = batch_size
        self._kernels = kernels
        # Both are keyed by a result and hold what it was made of: two reshapes in a row become one, and constants are
        # added before a transposition, for which the order of axes that undoes it is kept.
        self._reshaped: dict[GraphTensor, GraphTensor] = {}
        self._transposed: dict[GraphTensor, tuple[GraphTensor, list[int]]] = {}
        # And these are feature maps that were made as one row of pixels.
        self._rows: dict[GraphTensor, GraphTensor] = {}

    def begin(self, number: int, operation: str, location: str) -> None:
        self.graph.scope = scope(operation, number)
        self._stored = self._linear.get(number)

    def end(self, results: tuple[GraphTensor, ...]) -> None:
        """Does nothing: the tensors have their names from the start."""

    def image(self, height: int, width: int, channels: int, mean: np.ndarray | None) -> GraphTensor:
        image = self.graph.input(INPUT, (self._batch, height, width, channels))
        if mean is None:
            return image
        # The mean is repeated along a row, because kernels run over whole rows and would fetch three values pixel by
        # pixel.
        return self._elementwise("SUB", image, np.broadcast_to(mean, (1, 1, width, channels)))

    def convolution(self, x: GraphTensor, weights: np.ndarray, bias: np.ndarray, stride: int = 1) -> GraphTensor:
        # XNNPACK has int4 kernels for matrices alone.
        if self._stored and is_matrix(weights, stride):
            return self._connected(x, weights[0, 0], bias)
        if self._kernels.row_convolutions and (weights.shape[0], stride) == (1, 1):
            # A single row is what a stride from row to row makes of a single row.
            return self._as_map(self._convolve(self._as_row(x), weights, bias, (2, 1)), x)
        if weights.shape[0] > 1:
            x = self._pad(x, weights.shape[0] // 2)
        return self._convolve(x, weights, bias, (stride, stride))

    def _convolve(self, x: GraphTensor, weights: np.ndarray, bias: np.ndarray, strides: tuple[int, int]) -> GraphTensor:
        shape = (*_strided(x, weights.shape[0], strides), weights.shape[3])
        inputs = [x, *self._constants(weights, bias)]
        return self.graph.operator("CONV_2D", inputs, shape, padding=VALID, strideH=strides[0], strideW=strides[1])

    def _as_row(self, x: GraphTensor) -> GraphTensor:
        """A feature map as one row of its pixels."""
        batch, height, width, channels = x.shape
        if x in self._rows or height == 1:
            return self._rows.get(x, x)
        return self._reshape(x, (batch, 1, height * width, channels))

    def _as_map(self, row: GraphTensor, like: GraphTensor) -> GraphTensor:
        """A row of pixels as a feature map as high and wide as another; what follows may take the row."""
        if like.shape[1] == 1:
            return row
        result = self._reshape(row, (*like.shape[:3], row.shape[3]))
        self._rows[result] = row
        return result

    def depthwise_convolution(
        self, x: GraphTensor, weights: np.ndarray, bias: np.ndarray, stride: int = 1
    ) -> GraphTensor:
        # SAME pads alike on all sides with stride 1 only.
        if stride == 1:
            return self._depthwise(x, weights, bias, padding=SAME)
        return self._depthwise(self._pad(x, weights.shape[0] // 2), weights, bias, (stride, stride))

    def _depthwise(
        self,
        x: GraphTensor,
        weights: np.ndarray,
        bias: np.ndarray,
        strides: Sequence[int] = (1, 1),
        padding: int = VALID,
    ) -> GraphTensor:
        batch, height, width, channels = x.shape
        if padding == VALID:
            sides = zip((height, width), weights.shape, strides, strict=False)
            height, width = ((side - size) // stride + 1 for side, size, stride in sides)
        return self.graph.operator(
            "DEPTHWISE_CONV_2D",
            [x, self.graph.weights(weights[None]), self.graph.weights(bias)],
            (batch, height, width, channels),
            padding=padding,
            strideH=strides[0],
            strideW=strides[1],
            depthMultiplier=1,
        )

    def _pad(self, x: GraphTensor, margin: int) -> GraphTensor:
        # The convolution's own SAME would pad even sizes at the bottom and right only.
        batch, height, width, channels = x.shape
        padded = (batch, height + 2 * margin, width + 2 * margin, channels)
        if not self._kernels.row_padding:
            return self._zeros_around(x, [0, margin, margin, 0], padded)
        rows = self._reshape(x, (batch, height, width * channels))
        rows = self._zeros_around(rows, [0, margin, margin * channels], (*padded[:2], padded[2] * channels))
        return self._reshape(rows, padded)

    def _zeros_around(self, x: GraphTensor, margins: list[int], shape: tuple[int, ...]) -> GraphTensor:
        return self.graph.operator("PAD", [x, self._integers([[margin, margin] for margin in margins])], shape)

    def relu(self, x: GraphTensor) -> GraphTensor:
        if not self.graph.ends_in_convolution(x):
            return self._pointwise("RELU", x)
        self.graph.fuse_relu(x)
        return x

    def gelu(self, x: GraphTensor) -> GraphTensor:
        return self._pointwise("GELU", x)

    def _pointwise(self, kind: str, x: GraphTensor) -> GraphTensor:
        """An operator on each value by itself."""
        if x in self._rows:
            return self._as_map(self._pointwise(kind, self._rows[x]), x)
        return self.graph.operator(kind, [x], x.shape)

    def pooling_mixer(self, x: GraphTensor, size: int, own: np.ndarray, pooled: np.ndarray) -> GraphTensor:
        if self._kernels.pooling == "fused" and size == 3:
            border = self._averaging_border(self._averaging_border(x, axis=1), axis=2)
            return self._depthwise(border, fused_mixer_filters(own, pooled), np.zeros(len(own)))
        average = self._scaled_average(x, size, pooled)
        return self._elementwise("ADD", x if np.all(own == 1) else self.affine(x, own), average)

    def _scaled_average(self, x: GraphTensor, size: int, scale: np.ndarray) -> GraphTensor:
        if self._kernels.pooling == "average":
            # SAME with stride 1 pads alike on all sides, and leaves the padding out of the average.
            sides: dict[str, Any] = {"filterHeight": size, "filterWidth": size, "strideH": 1, "strideW": 1}
            return self.affine(self.graph.operator("AVERAGE_POOL_2D", [x], x.shape, padding=SAME, **sides), scale)
        _, height, width, _ = x.shape
        border = border_factors(height, width, size)
        filters = np.broadcast_to(scale / size**2, (size, size, len(scale)))
        if np.ptp(border) == 0:  # the whole map lies in every window
            return self._depthwise(x, filters * border.max(), np.zeros(len(scale)), padding=SAME)
        return self._elementwise("MUL", self._depthwise(x, filters, np.zeros(len(scale)), padding=SAME), border)

    def _averaging_border(self, x: GraphTensor, axis: int) -> GraphTensor:
        """`x` with one more row (or column) at both ends, the mean of the two next to it: so that the average of three
        is there the average of the two that are real."""
        side = x.shape[axis]
        if side == 1:
            return self._joined([x, x, x], axis)
        # One convolution that strides from end to end gives the means of the first two and of the last two.
        window, strides = [1, 1], [1, 1]
        window[axis - 1], strides[axis - 1] = 2, max(side - 2, 1)
        halves = np.full((*window, x.shape[3]), 0.5)
        ends = self._depthwise(x, halves, np.zeros(x.shape[3]), strides)
        first, last = (ends, ends) if side == 2 else (self._slice(ends, axis, 0, 1), self._slice(ends, axis, 1, 1))
        return self._joined([first, x, last], axis)

    def _joined(self, parts: list[GraphTensor], axis: int) -> GraphTensor:
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.graph.operator("CONCATENATION", parts, tuple(shape), axis=axis)

    def resize(self, x: GraphTensor, height: int, width: int) -> GraphTensor:
        inputs, shape = [x, self._integers([height, width])], (self._batch, height, width, x.shape[3])
        return self.graph.operator("RESIZE_BILINEAR", inputs, shape, halfPixelCenters=True)

    def enlarge(self, x: GraphTensor, factor: int) -> GraphTensor:
        # XNNPACK has no kernel for RESIZE_NEAREST_NEIGHBOR: repeated pixels lie like repeated channels, and repeated
        # rows like rows that are repeated within one.
        batch, height, width, channels = x.shape
        x = self._reshape(self._joined([x] * factor, axis=3), (batch, height, factor * width * channels))
        return self._reshape(self._joined([x] * factor, axis=2), (batch, factor * height, factor * width, channels))

    def affine(self, x: GraphTensor, scale: np.ndarray, offset: np.ndarray | None = None) -> GraphTensor:
        x = self._elementwise("MUL", x, scale)
        return x if offset is None else self._elementwise("ADD", x, offset)

    def add(self, x: GraphTensor, y: GraphTensor | np.ndarray) -> GraphTensor:
        if isinstance(y, GraphTensor):
            if x in self._rows or y in self._rows:
                return self._as_map(self._elementwise("ADD", self._as_row(x), self._as_row(y)), x)
            return self._elementwise("ADD", x, y)
        if x in self._transposed:
            # It is added before the transposition, which quantized files do in float32, to what may still be integers.
            x, order = self._transposed[x]
            return self._transpose(self._elementwise("ADD", x, y.transpose(order)), np.argsort(order).tolist())
        return self._elementwise("ADD", x, y, ADD_TABLE)

    def _elementwise(
        self, kind: str, x: GraphTensor, y: GraphTensor | np.ndarray, name: str | None = None
    ) -> GraphTensor:
        """An operator on `x` and a tensor or constant that broadcasts to its shape."""
        return self.graph.operator(kind, [x, self.graph.weights(y) if isinstance(y, np.ndarray) else y], x.shape, name)

    def tokens(self, x: GraphTensor) -> GraphTensor:
        return self._reshape(x, (self._batch, x.shape[1] * x.shape[2], x.shape[3]))

    def feature_map(self, x: GraphTensor, height: int, width: int) -> GraphTensor:
        return self._reshape(x, (self._batch, height, width, x.shape[2]))

    def layer_norm(self, x: GraphTensor, epsilon: float) -> GraphTensor:
        centred = self._elementwise("SUB", x, self._channel_mean(x))
        return self._divided(centred, self._variance(centred, epsilon))

    def group_norm(self, x: GraphTensor, epsilon: float) -> GraphTensor:
        centred = self._elementwise("SUB", x, self._total_mean(x))
        # One factor is divided first, because float16 ends at 65504, which the square of 256 exceeds.
        small = self._elementwise("MUL", centred, np.array(1 / 256))
        mean = self._total_mean(self._elementwise("MUL", centred, small))
        variance = self._elementwise("ADD", self._elementwise("MUL", mean, np.array(256.0)), np.array(epsilon))
        return self._divided(centred, variance)

    def _divided(self, centred: GraphTensor, variance: GraphTensor) -> GraphTensor:
        """Channels whose mean is zero, divided by the root of their variance."""
        deviation = self.graph.operator("RSQRT", [variance], variance.shape)
        return self._elementwise("MUL", centred, deviation)

    def _total_mean(self, x: GraphTensor) -> GraphTensor:
        """The mean over positions and channels: (batch, 1, 1, 1)."""
        return self._channel_mean(self._reduce("MEAN", x, (1, 2), keepDims=True))

    def _variance(self, centred: GraphTensor, epsilon: float) -> GraphTensor:
        """The variance of channels whose mean is zero, plus epsilon: (..., 1)."""
        channels = centred.shape[-1]
        if self._kernels.matmul_variance:
            # One factor is divided first, because float16 ends at 65504, which the square of 256 exceeds.
            small = self._elementwise("MUL", centred, np.array(1 / channels))
            return self.dense(self._elementwise("MUL", centred, small), np.ones((channels, 1)), np.array([epsilon]))
        squares = self._elementwise("MUL", centred, centred)
        return self._elementwise("ADD", self._channel_mean(squares), np.array(epsilon))

    def _channel_mean(self, x: GraphTensor) -> GraphTensor:
        return self._reduce("MEAN", x, (len(x.shape) - 1,), keepDims=True)

    def _reduce(
        self,
        kind: str,
        x: GraphTensor,
        axes: tuple[int, ...],
        keepDims: bool = False,  # noqa: N803 (the schema's name)
    ) -> GraphTensor:
        kept = tuple(1 if axis in axes else side for axis, side in enumerate(x.shape) if keepDims or axis not in axes)
        return self.graph.operator(kind, [x, self._integers(axes)], kept, keepDims=keepDims)

    def dense(self, x: GraphTensor, weights: np.ndarray, bias: np.ndarray) -> GraphTensor:
        if self._kernels.convolved_dense:
            row = self._reshape(x, (self._batch, 1, math.prod(x.shape[1:-1]), x.shape[-1]))
            return self._reshape(self.convolution(row, weights[None, None], bias), (*x.shape[:-1], weights.shape[1]))
        return self._connected(x, weights, bias)

    def _connected(self, x: GraphTensor, weights: np.ndarray, bias: np.ndarray) -> GraphTensor:
        inputs = [x, *self._constants(weights, bias)]
        return self.graph.operator(
            "FULLY_CONNECTED", inputs, (*x.shape[:-1], weights.shape[1]), keepNumDims=len(x.shape) > 2
        )

    def _constants(self, weights: np.ndarray, bias: np.ndarray) -> tuple[GraphTensor, GraphTensor]:
        """Weights (..., outputs) with outputs first, and a bias."""
        if self._stored is None:
            return self.graph.weights(_outputs_first(weights)), self.graph.weights(bias)
        integers = _outputs_first(self._stored.integers.reshape(weights.shape))
        return self.graph.integers(integers, self._stored.bits, self._stored.scale), self.graph.constant(bias)

    def split_heads(self, x: GraphTensor, num_heads: int, sizes: tuple[int, ...]) -> tuple[GraphTensor, ...]:
        x = self._heads_first(x, num_heads)
        starts = np.cumsum((0, *sizes)).tolist()
        # These are slices of stated sizes, because XNNPACK has no kernel for SPLIT_V, nor for a size of -1.
        return tuple(self._slice(x, 3, start, size) for start, size in zip(starts, sizes, strict=False))

    def to_heads(self, x: GraphTensor, num_heads: int) -> GraphTensor:
        return self._heads_first(x, num_heads)

    def _heads_first(self, x: GraphTensor, num_heads: int) -> GraphTensor:
        batch, tokens, channels = x.shape
        return self._transpose(self._reshape(x, (batch, tokens, num_heads, channels // num_heads)), (0, 2, 1, 3))

    def _slice(self, x: GraphTensor, axis: int, start: int, size: int) -> GraphTensor:
        begin, shape = [0] * len(x.shape), list(x.shape)
        begin[axis], shape[axis] = start, size
        return self.graph.operator("SLICE", [x, self._integers(begin), self._integers(shape)], tuple(shape))

    def scores(self, query: GraphTensor, key: GraphTensor) -> GraphTensor:
        shape = (*query.shape[:3], key.shape[2])
        return self.graph.operator("BATCH_MATMUL", [query, key], shape, adjY=True)

    def talking_heads(self, x: GraphTensor, weights: np.ndarray, bias: np.ndarray) -> GraphTensor:
        # It is a 1x1 convolution with heads as channels: a product with a constant from the left would be cheaper, but
        # no quantized kernel takes it.
        mixed = self.convolution(self._transpose(x, (0, 2, 3, 1)), weights[None, None], bias)
        return self._transpose(mixed, (0, 3, 1, 2))

    def weighted_values(self, weights: GraphTensor, value: GraphTensor) -> GraphTensor:
        return self.graph.operator("BATCH_MATMUL", [weights, value], (*weights.shape[:3], value.shape[3]))

    def merge_heads(self, x: GraphTensor) -> GraphTensor:
        batch, heads, tokens, channels = x.shape
        return self._reshape(self._transpose(x, (0, 2, 1, 3)), (batch, tokens, heads * channels))

    def softmax(self, x: GraphTensor) -> GraphTensor:
        return self.graph.operator("SOFTMAX", [x], x.shape, beta=1.0)

    def channel_softmax(self, x: GraphTensor) -> GraphTensor:
        return self.softmax(x)

    def sigmoid(self, x: GraphTensor) -> GraphTensor:
        return self.graph.operator("LOGISTIC", [x], x.shape)

    def mean(self, x: GraphTensor) -> GraphTensor:
        return self._reduce("MEAN", x, tuple(range(1, len(x.shape) - 1)))

    def max(self, x: GraphTensor) -> GraphTensor:
        return self._reduce("REDUCE_MAX", x, tuple(range(1, len(x.shape) - 1)))

    def concatenate(self, x: GraphTensor, y: GraphTensor) -> GraphTensor:
        return self._joined([x, y], axis=len(x.shape) - 1)

    def flatten(self, x: GraphTensor) -> GraphTensor:
        return self._reshape(x, (self._batch, math.prod(x.shape[1:])))

    def reshape(self, x: GraphTensor, height: int, width: int, channels: int) -> GraphTensor:
        return self._reshape(x, (self._batch, height, width, channels))

    def output(self, x: GraphTensor, name: str) -> GraphTensor:
        self.graph.output(x)
        return x

    def _reshape(self, x: GraphTensor, shape: tuple[int, ...]) -> GraphTensor:
        assert math.prod(shape) == math.prod(x.shape)
        x = self._reshaped.get(x, x)  # two in a row become one
        result = self.graph.operator("RESHAPE", [x, self._integers(shape)], shape, newShape=list(shape))
        self._reshaped[result] = x
        return result

    def _transpose(self, x: GraphTensor, order: Sequence[int]) -> GraphTensor:
        result = self.graph.operator("TRANSPOSE", [x, self._integers(order)], tuple(x.shape[axis] for axis in order))
        self._transposed[result] = x, np.argsort(order).tolist()
        return result

    def _integers(self, values: Sequence[int] | Sequence[Sequence[int]]) -> GraphTensor:
        return self.graph.constant(np.array(values, "int32"))


def _outputs_first(weights: np.ndarray) -> np.ndarray:
    return np.moveaxis(weights, -1, 0)


def _strided(x: GraphTensor, size: int, strides: tuple[int, int]) -> tuple[int, int, int]:
    """(batch, height, width) of what a window of this size, moved by `strides`, makes of a padded map."""
    batch, height, width, _ = x.shape
    return batch, (height - size) // strides[0] + 1, (width - size) // strides[1] + 1
