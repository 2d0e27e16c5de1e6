"""The MIL builder: makes the fused network as operations of Core ML's ML Program, as the Neural Engine likes them.

Channels first, batch 1, and no transposes: tokens stay a feature map (1, channels, height, width), in which a dense
is a 1x1 convolution and a head is a run of channels ("Deploying Transformers on the Apple Neural Engine",
machinelearning.apple.com, 2022).
"""

import numpy as np
from coremltools.converters.mil import Builder as mb


class MILBuilder:
    """Implements `Builder` inside a function of a MIL program.

    Args:
        image: the input, (1, channels, height, width) of static shape.
    """

    def __init__(self, image):
        self._image = image
        self._grids: dict[int, tuple[int, int]] = {}

    def image(self, height, width, channels, mean):
        if mean is None:
            return self._image
        return mb.sub(x=self._image, y=_per_channel(mean))

    def convolution(self, x, weights, bias, stride=1):
        margin = weights.shape[0] // 2
        padding = {"pad_type": "custom", "pad": [margin] * 4} if margin else {"pad_type": "valid"}
        weights = np.ascontiguousarray(weights.transpose(3, 2, 0, 1))
        return mb.conv(x=x, weight=weights, bias=bias, strides=[stride, stride], **padding)

    def relu(self, x):
        return mb.relu(x=x)

    def gelu(self, x):
        return mb.gelu(x=x, mode="EXACT")

    def pooling_mixer(self, x, size, own, pooled):
        average = mb.avg_pool(
            x=x,
            kernel_sizes=[size, size],
            strides=[1, 1],
            pad_type="custom",
            pad=[size // 2] * 4,
            exclude_padding_from_average=True,
        )
        average = mb.mul(x=average, y=_per_channel(pooled))
        return mb.add(x=x if np.all(own == 1) else mb.mul(x=x, y=_per_channel(own)), y=average)

    def affine(self, x, scale, offset=None):
        x = mb.mul(x=x, y=_like(x, scale))
        return x if offset is None else mb.add(x=x, y=_like(x, offset))

    def add(self, x, y):
        return mb.add(x=x, y=y)

    def tokens(self, x):
        return x

    def feature_map(self, x, height, width):
        return x

    def layer_norm(self, x, epsilon):
        return mb.layer_norm(x=x, axes=[1], epsilon=np.float32(epsilon))

    def dense(self, x, weights, bias):
        if len(x.shape) == 2:
            return mb.linear(x=x, weight=np.ascontiguousarray(weights.T), bias=bias)
        return self.convolution(x, weights[None, None], bias)

    def split_heads(self, x, num_heads, sizes):
        _, _, height, width = x.shape
        self._grids[height * width] = (height, width)
        x = mb.reshape(x=x, shape=[1, num_heads, sum(sizes), height * width])
        return tuple(mb.split(x=x, split_sizes=list(sizes), axis=2))

    def scores(self, query, key):
        return mb.matmul(x=query, y=key, transpose_x=True)

    def weighted_values(self, weights, value):
        return mb.matmul(x=value, y=weights, transpose_y=True)

    def merge_heads(self, x):
        _, heads, channels, positions = x.shape
        return mb.reshape(x=x, shape=[1, heads * channels, *self._grids[positions]])

    def softmax(self, x):
        return mb.softmax(x=x, axis=-1)

    def sigmoid(self, x):
        return mb.sigmoid(x=x)

    def mean(self, x):
        return mb.reduce_mean(x=x, axes=[2, 3], keep_dims=False)

    def max(self, x):
        return mb.reduce_max(x=x, axes=[2, 3], keep_dims=False)

    def output(self, x, name):
        x.set_name(name)
        return x

    def depthwise_convolution(self, x, weights, bias, stride=1):
        kernels = np.ascontiguousarray(weights.transpose(2, 0, 1)[:, None])
        pad = [weights.shape[0] // 2] * 4
        return mb.conv(
            x=x, weight=kernels, bias=bias, strides=[stride, stride], pad_type="custom", pad=pad, groups=len(kernels)
        )

    def resize(self, x, height, width):
        return mb.resize_bilinear(
            x=x, target_size_height=height, target_size_width=width, sampling_mode="UNALIGN_CORNERS"
        )

    def to_heads(self, x, num_heads):
        _, channels, height, width = x.shape
        self._grids[height * width] = (height, width)
        return mb.reshape(x=x, shape=[1, num_heads, channels // num_heads, height * width])

    def talking_heads(self, x, weights, bias):
        return self.convolution(x, weights[None, None], bias)


def _per_channel(vector):
    return np.asarray(vector, "float32").reshape(1, -1, 1, 1)


def _like(x, vector):
    """The vector in the shape that broadcasts over `x`, a feature map or a vector."""
    return _per_channel(vector) if len(x.shape) == 4 else np.asarray(vector, "float32")[None]
