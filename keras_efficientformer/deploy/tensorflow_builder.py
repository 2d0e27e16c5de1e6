"""The TensorFlow builder: makes the fused network as TensorFlow operations that TFLite's converter takes as they are.

Channels last, batch fixed. Weights become constants, so there is nothing to freeze and no variable to lose.
"""

import numpy as np
import tensorflow as tf


class TensorFlowBuilder:
    """Implements `Builder` inside a `tf.function`.

    Args:
        image: the input, a float32 tensor (batch, height, width, channels) of static shape.
    """

    def __init__(self, image):
        self._image = image
        self._batch = image.shape[0]

    def image(self, height, width, channels, mean):
        if mean is None:
            return self._image
        # Repeated along a row: kernels run over whole rows, where three values alone would be fetched pixel by pixel.
        return self._image - _constant(np.broadcast_to(mean, (1, 1, width, channels)))

    def convolution(self, x, weights, bias, stride=1):
        margin = weights.shape[0] // 2
        if margin:
            # Not "SAME", which pads even sizes at the bottom and right only.
            x = tf.pad(x, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
        return tf.nn.bias_add(tf.nn.conv2d(x, _constant(weights), stride, "VALID"), _constant(bias))

    def relu(self, x):
        return tf.nn.relu(x)

    def gelu(self, x):
        return tf.nn.gelu(x, approximate=False)

    def average_pool(self, x, size, scale):
        # "SAME" with stride 1 pads alike on all sides, and leaves the padding out of the average.
        return tf.nn.avg_pool2d(x, size, 1, "SAME") * _constant(scale)

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

    def scores(self, query, key):
        return tf.matmul(query, key, transpose_b=True)

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


def _constant(array):
    return tf.constant(np.asarray(array, dtype="float32"))
