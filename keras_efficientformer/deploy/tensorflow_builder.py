"""The TensorFlow builder: makes the fused network as TensorFlow operations that TFLite's converter takes as they are.

Channels last, batch fixed. Weights become constants, so there is nothing to freeze and no variable to lose.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class Kernels:
    """Which of several equal ways to write an operation a mode's kernels are fastest with (XNNPACK of LiteRT 2.3).

    Attributes:
        depthwise_pooling: averages as depthwise convolutions, corrected at the border: there is no int8 pooling kernel.
        matmul_variance: variances as products with a vector: a sum of squares has no float16 kernel, and everything
            after it would be float32.
        row_padding: whole rows are padded, not pixels: for kernels that do not take the padding into the convolution.
    """

    depthwise_pooling: bool = False
    matmul_variance: bool = False
    row_padding: bool = False


class TensorFlowBuilder:
    """Implements `Builder` inside a `tf.function`.

    Args:
        image: the input, a float32 tensor (batch, height, width, channels) of static shape.
        kernels: the choices between equal operations.
    """

    def __init__(self, image, kernels=Kernels()):
        self._image = image
        self._batch = image.shape[0]
        self._kernels = kernels

    def image(self, height, width, channels, mean):
        if mean is None:
            return self._image
        # Repeated along a row: kernels run over whole rows, where three values alone would be fetched pixel by pixel.
        return self._image - _constant(np.broadcast_to(mean, (1, 1, width, channels)))

    def convolution(self, x, weights, bias, stride=1):
        if weights.shape[0] > 1:
            x = self._pad(x, weights.shape[0] // 2)
        return tf.nn.bias_add(tf.nn.conv2d(x, _constant(weights), stride, "VALID"), _constant(bias))

    def depthwise_convolution(self, x, weights, bias, stride=1):
        # "SAME" pads alike on all sides with stride 1 only.
        if stride > 1:
            x = self._pad(x, weights.shape[0] // 2)
        padding = "SAME" if stride == 1 else "VALID"
        x = tf.nn.depthwise_conv2d(x, _constant(weights[..., None]), (1, stride, stride, 1), padding)
        return tf.nn.bias_add(x, _constant(bias))

    def _pad(self, x, margin):
        # Not the convolution's "SAME", which pads even sizes at the bottom and right only.
        if not self._kernels.row_padding:
            return tf.pad(x, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
        batch, height, width, channels = x.shape
        rows = tf.reshape(x, (batch, height, width * channels))
        rows = tf.pad(rows, [[0, 0], [margin, margin], [margin * channels, margin * channels]])
        return tf.reshape(rows, (batch, height + 2 * margin, width + 2 * margin, channels))

    def relu(self, x):
        return tf.nn.relu(x)

    def gelu(self, x):
        return tf.nn.gelu(x, approximate=False)

    def average_pool(self, x, size, scale):
        if self._kernels.depthwise_pooling:
            filters = np.broadcast_to((scale / size**2)[:, None], (size, size, len(scale), 1))
            sums = tf.nn.depthwise_conv2d(x, _constant(filters), (1, 1, 1, 1), "SAME")
            return sums * _constant(border_factors(*x.shape[1:3], size))
        # "SAME" with stride 1 pads alike on all sides, and leaves the padding out of the average.
        return tf.nn.avg_pool2d(x, size, 1, "SAME") * _constant(scale)

    def resize(self, x, height, width):
        return tf.image.resize(x, (height, width), "bilinear")

    def affine(self, x, scale, offset=None):
        x = x * _constant(scale)
        return x if offset is None else x + _constant(offset)

    def add(self, x, y):
        return x + (_constant(y) if isinstance(y, np.ndarray) else y)

    def tokens(self, x):
        return tf.reshape(x, (self._batch, x.shape[1] * x.shape[2], x.shape[3]))

    def feature_map(self, x, height, width):
        return tf.reshape(x, (self._batch, height, width, x.shape[2]))

    def layer_norm(self, x, epsilon):
        centred = x - tf.reduce_mean(x, -1, keepdims=True)
        channels = x.shape[-1]
        if self._kernels.matmul_variance:
            # Divided before they are squared: float16 ends at 65504, which the square of 256 exceeds.
            squares = tf.reshape(centred * (centred * _constant(1 / channels)), (-1, channels))
            variance = tf.matmul(squares, _constant(np.ones((channels, 1))))
            variance = tf.reshape(variance, (*x.shape[:-1], 1))
        else:
            variance = tf.reduce_mean(centred * centred, -1, keepdims=True)
        return centred * tf.math.rsqrt(variance + epsilon)

    def dense(self, x, weights, bias):
        rows = tf.reshape(x, (-1, x.shape[-1])) if len(x.shape) > 2 else x
        result = tf.nn.bias_add(tf.matmul(rows, _constant(weights)), _constant(bias))
        return tf.reshape(result, (*x.shape[:-1], weights.shape[1]))

    def split_heads(self, x, num_heads, sizes):
        x = tf.transpose(tf.reshape(x, (self._batch, x.shape[1], num_heads, sum(sizes))), (0, 2, 1, 3))
        # Slices of stated sizes: XNNPACK has no kernel for tf.split's operation, nor for a size of -1.
        starts = np.cumsum((0, *sizes)).tolist()
        return tuple(
            tf.slice(x, (0, 0, 0, start), (*x.shape[:3], size)) for start, size in zip(starts, sizes, strict=False)
        )

    def to_heads(self, x, num_heads):
        x = tf.reshape(x, (self._batch, x.shape[1], num_heads, x.shape[2] // num_heads))
        return tf.transpose(x, (0, 2, 1, 3))

    def scores(self, query, key):
        return tf.matmul(query, key, transpose_b=True)

    def talking_heads(self, x, weights, bias):
        # A 1x1 convolution with heads as channels: a product with a constant from the left would be cheaper, but no
        # quantized kernel takes it.
        mixed = self.convolution(tf.transpose(x, (0, 2, 3, 1)), weights[None, None], bias)
        return tf.transpose(mixed, (0, 3, 1, 2))

    def weighted_values(self, weights, value):
        return tf.matmul(weights, value)

    def merge_heads(self, x):
        _, heads, tokens, channels = x.shape
        return tf.reshape(tf.transpose(x, (0, 2, 1, 3)), (self._batch, tokens, heads * channels))

    def softmax(self, x):
        return tf.nn.softmax(x)

    def sigmoid(self, x):
        return tf.nn.sigmoid(x)

    def mean(self, x):
        return tf.reduce_mean(x, axis=tuple(range(1, len(x.shape) - 1)))

    def max(self, x):
        return tf.reduce_max(x, axis=tuple(range(1, len(x.shape) - 1)))

    def output(self, x, name):
        return tf.identity(x, name=name)


def border_factors(height, width, size):
    """(1, height, width, 1): by what zero-padded averages fall short at each position, window / real pixels in it."""
    margin = size // 2
    counts = [
        [min(place + margin, side - 1) - max(place - margin, 0) + 1 for place in range(side)]
        for side in (height, width)
    ]
    return (size**2 / np.outer(*counts))[None, :, :, None]


def _constant(array):
    return tf.constant(np.asarray(array, dtype="float32"))
