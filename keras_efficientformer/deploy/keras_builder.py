"""The Keras builder: computes the fused network at once, in float32, step by step, on any backend.

It is what the tensors of .tflite files are compared with. Channels last.
"""

import numpy as np
from keras import ops

CHANNELS_LAST = "channels_last"


class KerasBuilder:
    """Implements `Builder` on the backend's tensors.

    Args:
        image: the input, a float32 array or tensor (batch, height, width, channels).
    """

    def __init__(self, image):
        self._image = ops.convert_to_tensor(image, "float32")

    def image(self, height, width, channels, mean):
        return self._image if mean is None else ops.subtract(self._image, mean)

    def convolution(self, x, weights, bias, stride=1):
        return ops.add(ops.conv(_pad(x, weights), weights, stride, "valid", CHANNELS_LAST), bias)

    def depthwise_convolution(self, x, weights, bias, stride=1):
        return ops.add(ops.depthwise_conv(_pad(x, weights), weights[..., None], stride, "valid", CHANNELS_LAST), bias)

    def relu(self, x):
        return ops.relu(x)

    def gelu(self, x):
        return ops.gelu(x, approximate=False)

    def pooling_mixer(self, x, size, own, pooled):
        # "same" with stride 1 pads alike on all sides, and leaves the padding out of the average.
        average = ops.average_pool(x, size, 1, "same", CHANNELS_LAST)
        return ops.add(ops.multiply(x, own), ops.multiply(average, pooled))

    def resize(self, x, height, width):
        return ops.image.resize(x, (height, width), "bilinear", data_format=CHANNELS_LAST)

    def affine(self, x, scale, offset=None):
        x = ops.multiply(x, scale)
        return x if offset is None else ops.add(x, offset)

    def add(self, x, y):
        return ops.add(x, y)

    def tokens(self, x):
        return ops.reshape(x, (x.shape[0], x.shape[1] * x.shape[2], x.shape[3]))

    def feature_map(self, x, height, width):
        return ops.reshape(x, (x.shape[0], height, width, x.shape[2]))

    def layer_norm(self, x, epsilon):
        centred = ops.subtract(x, ops.mean(x, axis=-1, keepdims=True))
        return centred * ops.rsqrt(ops.mean(ops.square(centred), axis=-1, keepdims=True) + epsilon)

    def dense(self, x, weights, bias):
        return ops.add(ops.matmul(x, weights), bias)

    def split_heads(self, x, num_heads, sizes):
        return tuple(ops.split(self.to_heads(x, num_heads), np.cumsum(sizes)[:-1].tolist(), axis=-1))

    def to_heads(self, x, num_heads):
        x = ops.reshape(x, (x.shape[0], x.shape[1], num_heads, x.shape[2] // num_heads))
        return ops.transpose(x, (0, 2, 1, 3))

    def scores(self, query, key):
        return ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))

    def talking_heads(self, x, weights, bias):
        mixed = self.convolution(ops.transpose(x, (0, 2, 3, 1)), weights[None, None], bias)
        return ops.transpose(mixed, (0, 3, 1, 2))

    def weighted_values(self, weights, value):
        return ops.matmul(weights, value)

    def merge_heads(self, x):
        batch, heads, tokens, channels = x.shape
        return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (batch, tokens, heads * channels))

    def softmax(self, x):
        return ops.softmax(x)

    def sigmoid(self, x):
        return ops.sigmoid(x)

    def mean(self, x):
        return ops.mean(x, axis=tuple(range(1, len(x.shape) - 1)))

    def max(self, x):
        return ops.max(x, axis=tuple(range(1, len(x.shape) - 1)))

    def output(self, x, name):
        return x


def _pad(x, weights):
    # Not the convolution's "same", which pads even sizes at the bottom and right only.
    margin = weights.shape[0] // 2
    return ops.pad(x, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
