"""The TFLite builder: makes the fused network as the operators of a .tflite file, written directly.

Channels last, batch fixed. No converter stands between: what is described is what is in the file, operator by
operator, and no framework is needed, nor the memory of one.
"""

import math

import numpy as np

from keras_efficientformer.deploy.pooling_filters import border_factors, fused_mixer_filters
from keras_efficientformer.deploy.tflite_graph import Graph, Tensor, schema
from keras_efficientformer.deploy.tflite_modes import ADD_TABLE, INPUT, PLAIN, Kernels

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID


class TFLiteBuilder:
    """Implements `Builder`.

    Args:
        batch_size: of the file.
        kernels: the choices between equal operations.
        float16_weights: whether weights are stored in float16.

    Attributes:
        graph: the file so far.
    """

    def __init__(self, batch_size: int = 1, kernels: Kernels = PLAIN, float16_weights: bool = False):
        self.graph = Graph(float16_weights)
        self._batch = batch_size
        self._kernels = kernels
        # What a tensor has been before, and how to order its axes to have that again.
        self._reshaped: dict[Tensor, Tensor] = {}
        self._transposed: dict[Tensor, tuple[Tensor, list[int]]] = {}

    def image(self, height, width, channels, mean):
        image = self.graph.input(INPUT, (self._batch, height, width, channels))
        if mean is None:
            return image
        # Repeated along a row: kernels run over whole rows, where three values alone would be fetched pixel by pixel.
        return self._elementwise("SUB", image, np.broadcast_to(mean, (1, 1, width, channels)))

    def convolution(self, x, weights, bias, stride=1):
        if weights.shape[0] > 1:
            x = self._pad(x, weights.shape[0] // 2)
        shape = (*_strided(x, weights.shape[0], stride), weights.shape[3])
        inputs = [x, self.graph.weights(weights.transpose(3, 0, 1, 2)), self.graph.weights(bias)]
        return self.graph.operator("CONV_2D", inputs, shape, padding=VALID, strideH=stride, strideW=stride)

    def depthwise_convolution(self, x, weights, bias, stride=1):
        # SAME pads alike on all sides with stride 1 only.
        if stride == 1:
            return self._depthwise(x, weights, bias, padding=SAME)
        return self._depthwise(self._pad(x, weights.shape[0] // 2), weights, bias, (stride, stride))

    def _depthwise(self, x, weights, bias, strides=(1, 1), padding=VALID):
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

    def _pad(self, x, margin):
        # Not the convolution's SAME, which pads even sizes at the bottom and right only.
        batch, height, width, channels = x.shape
        padded = (batch, height + 2 * margin, width + 2 * margin, channels)
        if not self._kernels.row_padding:
            return self._zeros_around(x, [0, margin, margin, 0], padded)
        rows = self._reshape(x, (batch, height, width * channels))
        rows = self._zeros_around(rows, [0, margin, margin * channels], (*padded[:2], padded[2] * channels))
        return self._reshape(rows, padded)

    def _zeros_around(self, x, margins, shape):
        return self.graph.operator("PAD", [x, self._integers([[margin, margin] for margin in margins])], shape)

    def relu(self, x):
        self.graph.fuse_relu(x)
        return x

    def gelu(self, x):
        return self.graph.operator("GELU", [x], x.shape)

    def pooling_mixer(self, x, size, own, pooled):
        if self._kernels.pooling == "fused" and size == 3:
            border = self._averaging_border(self._averaging_border(x, axis=1), axis=2)
            return self._depthwise(border, fused_mixer_filters(own, pooled), np.zeros(len(own)))
        average = self._scaled_average(x, size, pooled)
        return self._elementwise("ADD", x if np.all(own == 1) else self.affine(x, own), average)

    def _scaled_average(self, x, size, scale):
        if self._kernels.pooling == "average":
            # SAME with stride 1 pads alike on all sides, and leaves the padding out of the average.
            sides = {"filterHeight": size, "filterWidth": size, "strideH": 1, "strideW": 1}
            return self.affine(self.graph.operator("AVERAGE_POOL_2D", [x], x.shape, padding=SAME, **sides), scale)
        border = border_factors(*x.shape[1:3], size)
        filters = np.broadcast_to(scale / size**2, (size, size, len(scale)))
        if np.ptp(border) == 0:  # the whole map lies in every window
            return self._depthwise(x, filters * border.max(), np.zeros(len(scale)), padding=SAME)
        return self._elementwise("MUL", self._depthwise(x, filters, np.zeros(len(scale)), padding=SAME), border)

    def _averaging_border(self, x, axis):
        """`x` with one more row (or column) at both ends, the mean of the two next to it: so that the average of three
        is there the average of the two that are real."""
        side = x.shape[axis]
        if side == 1:
            return self._joined([x, x, x], axis)
        # The means of the first two and of the last two, in one convolution that strides from end to end.
        window, strides = [1, 1], [1, 1]
        window[axis - 1], strides[axis - 1] = 2, max(side - 2, 1)
        halves = np.full((*window, x.shape[3]), 0.5)
        ends = self._depthwise(x, halves, np.zeros(x.shape[3]), strides)
        first, last = (ends, ends) if side == 2 else (self._slice(ends, axis, 0, 1), self._slice(ends, axis, 1, 1))
        return self._joined([first, x, last], axis)

    def _joined(self, parts, axis):
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.graph.operator("CONCATENATION", parts, tuple(shape), axis=axis)

    def resize(self, x, height, width):
        inputs, shape = [x, self._integers([height, width])], (self._batch, height, width, x.shape[3])
        return self.graph.operator("RESIZE_BILINEAR", inputs, shape, halfPixelCenters=True)

    def affine(self, x, scale, offset=None):
        x = self._elementwise("MUL", x, scale)
        return x if offset is None else self._elementwise("ADD", x, offset)

    def add(self, x, y):
        if x in self._transposed and isinstance(y, np.ndarray):
            # Added before the transposition, which quantized files do in float32, to what may still be integers.
            x, order = self._transposed[x]
            return self._transpose(self._elementwise("ADD", x, y.transpose(order)), np.argsort(order).tolist())
        return self._elementwise("ADD", x, y, ADD_TABLE if isinstance(y, np.ndarray) else None)

    def _elementwise(self, kind, x, y, name=None):
        """Of `x` with a tensor or constant that broadcasts to its shape."""
        return self.graph.operator(kind, [x, self.graph.weights(y) if isinstance(y, np.ndarray) else y], x.shape, name)

    def tokens(self, x):
        return self._reshape(x, (self._batch, x.shape[1] * x.shape[2], x.shape[3]))

    def feature_map(self, x, height, width):
        return self._reshape(x, (self._batch, height, width, x.shape[2]))

    def layer_norm(self, x, epsilon):
        centred = self._elementwise("SUB", x, self._channel_mean(x))
        variance = self._variance(centred, epsilon)
        deviation = self.graph.operator("RSQRT", [variance], variance.shape)
        return self._elementwise("MUL", centred, deviation)

    def _variance(self, centred, epsilon):
        """That of channels around zero, plus epsilon: (..., 1)."""
        channels = centred.shape[-1]
        if self._kernels.matmul_variance:
            # Divided before they are squared: float16 ends at 65504, which the square of 256 exceeds.
            small = self._elementwise("MUL", centred, np.array(1 / channels))
            return self.dense(self._elementwise("MUL", centred, small), np.ones((channels, 1)), np.array([epsilon]))
        squares = self._elementwise("MUL", centred, centred)
        return self._elementwise("ADD", self._channel_mean(squares), np.array(epsilon))

    def _channel_mean(self, x):
        return self._reduce("MEAN", x, (len(x.shape) - 1,), keepDims=True)

    def _reduce(self, kind, x, axes, keepDims=False):  # noqa: N803 (the schema's name)
        kept = tuple(1 if axis in axes else side for axis, side in enumerate(x.shape) if keepDims or axis not in axes)
        return self.graph.operator(kind, [x, self._integers(axes)], kept, keepDims=keepDims)

    def dense(self, x, weights, bias):
        inputs = [x, self.graph.weights(weights.T), self.graph.weights(bias)]
        return self.graph.operator(
            "FULLY_CONNECTED", inputs, (*x.shape[:-1], weights.shape[1]), keepNumDims=len(x.shape) > 2
        )

    def split_heads(self, x, num_heads, sizes):
        x = self._heads_first(x, num_heads)
        starts = np.cumsum((0, *sizes)).tolist()
        # Slices of stated sizes: XNNPACK has no kernel for SPLIT_V, nor for a size of -1.
        return tuple(self._slice(x, 3, start, size) for start, size in zip(starts, sizes, strict=False))

    def to_heads(self, x, num_heads):
        return self._heads_first(x, num_heads)

    def _heads_first(self, x, num_heads):
        batch, tokens, channels = x.shape
        return self._transpose(self._reshape(x, (batch, tokens, num_heads, channels // num_heads)), (0, 2, 1, 3))

    def _slice(self, x, axis, start, size):
        begin, shape = [0] * len(x.shape), list(x.shape)
        begin[axis], shape[axis] = start, size
        return self.graph.operator("SLICE", [x, self._integers(begin), self._integers(shape)], tuple(shape))

    def scores(self, query, key):
        shape = (*query.shape[:3], key.shape[2])
        return self.graph.operator("BATCH_MATMUL", [query, key], shape, adjY=True)

    def talking_heads(self, x, weights, bias):
        # A 1x1 convolution with heads as channels: a product with a constant from the left would be cheaper, but no
        # quantized kernel takes it.
        mixed = self.convolution(self._transpose(x, (0, 2, 3, 1)), weights[None, None], bias)
        return self._transpose(mixed, (0, 3, 1, 2))

    def weighted_values(self, weights, value):
        return self.graph.operator("BATCH_MATMUL", [weights, value], (*weights.shape[:3], value.shape[3]))

    def merge_heads(self, x):
        batch, heads, tokens, channels = x.shape
        return self._reshape(self._transpose(x, (0, 2, 1, 3)), (batch, tokens, heads * channels))

    def softmax(self, x):
        return self.graph.operator("SOFTMAX", [x], x.shape, beta=1.0)

    def sigmoid(self, x):
        return self.graph.operator("LOGISTIC", [x], x.shape)

    def mean(self, x):
        return self._reduce("MEAN", x, tuple(range(1, len(x.shape) - 1)))

    def max(self, x):
        return self._reduce("REDUCE_MAX", x, tuple(range(1, len(x.shape) - 1)))

    def output(self, x, name):
        self.graph.output(x)
        return x

    def _reshape(self, x, shape):
        assert math.prod(shape) == math.prod(x.shape)
        x = self._reshaped.get(x, x)  # one after another is one
        result = self.graph.operator("RESHAPE", [x, self._integers(shape)], shape, newShape=list(shape))
        self._reshaped[result] = x
        return result

    def _transpose(self, x, order):
        result = self.graph.operator("TRANSPOSE", [x, self._integers(order)], tuple(x.shape[axis] for axis in order))
        self._transposed[result] = x, np.argsort(order).tolist()
        return result

    def _integers(self, values):
        return self.graph.constant(np.array(values, "int32"))


class StepScopes:
    """A `TFLiteBuilder` whose tensors are named after the step that makes them: `gelu_12/GELU` is of step 12."""

    def __init__(self, builder: TFLiteBuilder):
        self._builder = builder
        self._count = 0

    def __getattr__(self, operation):
        self._builder.graph.scope = f"{operation}_{self._count}"
        self._count += 1
        return getattr(self._builder, operation)


def _strided(x, size, stride):
    """(batch, height, width) of what a window of this size, moved by `stride`, makes of a padded map."""
    batch, height, width, _ = x.shape
    return batch, (height - size) // stride + 1, (width - size) // stride + 1
