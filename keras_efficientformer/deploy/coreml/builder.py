"""Builds the fused network as MIL operations of an ML Program, laid out for the Neural Engine. Room: deploy/coreml.

Tensors are channels first, batch 1, and never transposed: tokens stay a feature map (1, channels, height, width), in
which a dense is a 1x1 convolution and a head is a run of channels ("Deploying Transformers on the Apple Neural Engine",
machinelearning.apple.com, 2022).
"""

from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb

from keras_efficientformer.deploy.coreml.step_names import operation_name, result_name


class MILBuilder:
    """Implements `Builder` inside a function of a MIL program.

    Args:
        image: the input, (1, channels, height, width) of static shape.
    """

    def __init__(self, image: Any):
        self._image = image
        self._grids: dict[int, tuple[int, int]] = {}
        self._step = ("", 0)
        self._named: set[int] = set()
        self._outputs: set[int] = set()

    def begin(self, number: int, operation: str, location: str) -> None:
        self._step = (operation, number)

    def end(self, results: tuple[Any, ...]) -> None:
        """Names what the step has made; a result that an earlier step made keeps its name, and so does the input."""
        made = [result for result in results if result.op is not None and id(result) not in self._named]
        if not made:
            return
        made[0].op.name = operation_name(*self._step)
        for index, result in enumerate(made):
            result.set_name(operation_name(*self._step) if len(made) == 1 else result_name(*self._step, index))
        self._named |= {id(result) for result in made}

    def image(self, height: int, width: int, channels: int, mean: np.ndarray | None) -> Any:
        if mean is None:
            return self._image
        return mb.sub(x=self._image, y=_per_channel(mean))

    def convolution(self, x: Any, weights: np.ndarray, bias: np.ndarray, stride: int = 1) -> Any:
        margin = weights.shape[0] // 2
        padding = {"pad_type": "custom", "pad": [margin] * 4} if margin else {"pad_type": "valid"}
        weights = np.ascontiguousarray(weights.transpose(3, 2, 0, 1))
        return mb.conv(x=x, weight=weights, bias=bias, strides=[stride, stride], **padding)

    def depthwise_convolution(self, x: Any, weights: np.ndarray, bias: np.ndarray, stride: int = 1) -> Any:
        kernels = np.ascontiguousarray(weights.transpose(2, 0, 1)[:, None])
        pad = [weights.shape[0] // 2] * 4
        return mb.conv(
            x=x, weight=kernels, bias=bias, strides=[stride, stride], pad_type="custom", pad=pad, groups=len(kernels)
        )

    def relu(self, x: Any) -> Any:
        return mb.relu(x=x)

    def gelu(self, x: Any) -> Any:
        return mb.gelu(x=x, mode="EXACT")

    def pooling_mixer(self, x: Any, size: int, own: np.ndarray, pooled: np.ndarray) -> Any:
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

    def resize(self, x: Any, height: int, width: int) -> Any:
        return mb.resize_bilinear(
            x=x, target_size_height=height, target_size_width=width, sampling_mode="UNALIGN_CORNERS"
        )

    def enlarge(self, x: Any, factor: int) -> Any:
        return mb.upsample_nearest_neighbor(x=x, scale_factor_height=factor, scale_factor_width=factor)

    def affine(self, x: Any, scale: np.ndarray, offset: np.ndarray | None = None) -> Any:
        x = mb.mul(x=x, y=_like(x, scale))
        return x if offset is None else mb.add(x=x, y=_like(x, offset))

    def add(self, x: Any, y: Any) -> Any:
        return mb.add(x=x, y=y)

    def tokens(self, x: Any) -> Any:
        return x

    def feature_map(self, x: Any, height: int, width: int) -> Any:
        return x

    def layer_norm(self, x: Any, epsilon: float) -> Any:
        return mb.layer_norm(x=x, axes=[1], epsilon=np.float32(epsilon))

    def group_norm(self, x: Any, epsilon: float) -> Any:
        return mb.layer_norm(x=x, axes=[1, 2, 3], epsilon=np.float32(epsilon))

    def dense(self, x: Any, weights: np.ndarray, bias: np.ndarray) -> Any:
        if len(x.shape) == 2:
            return mb.linear(x=x, weight=np.ascontiguousarray(weights.T), bias=bias)
        return self.convolution(x, weights[None, None], bias)

    def split_heads(self, x: Any, num_heads: int, sizes: tuple[int, ...]) -> tuple[Any, ...]:
        _, _, height, width = x.shape
        self._grids[height * width] = (height, width)
        x = mb.reshape(x=x, shape=[1, num_heads, sum(sizes), height * width])
        return tuple(mb.split(x=x, split_sizes=list(sizes), axis=2))

    def to_heads(self, x: Any, num_heads: int) -> Any:
        _, channels, height, width = x.shape
        self._grids[height * width] = (height, width)
        return mb.reshape(x=x, shape=[1, num_heads, channels // num_heads, height * width])

    def scores(self, query: Any, key: Any) -> Any:
        return mb.matmul(x=query, y=key, transpose_x=True)

    def talking_heads(self, x: Any, weights: np.ndarray, bias: np.ndarray) -> Any:
        return self.convolution(x, weights[None, None], bias)

    def weighted_values(self, weights: Any, value: Any) -> Any:
        return mb.matmul(x=value, y=weights, transpose_y=True)

    def merge_heads(self, x: Any) -> Any:
        _, heads, channels, positions = x.shape
        return mb.reshape(x=x, shape=[1, heads * channels, *self._grids[positions]])

    def softmax(self, x: Any) -> Any:
        return mb.softmax(x=x, axis=-1)

    def channel_softmax(self, x: Any) -> Any:
        return mb.softmax(x=x, axis=1)

    def sigmoid(self, x: Any) -> Any:
        return mb.sigmoid(x=x)

    def mean(self, x: Any) -> Any:
        return mb.reduce_mean(x=x, axes=[2, 3], keep_dims=False)

    def max(self, x: Any) -> Any:
        return mb.reduce_max(x=x, axes=[2, 3], keep_dims=False)

    def concatenate(self, x: Any, y: Any) -> Any:
        return mb.concat(values=[x, y], axis=1)

    def flatten(self, x: Any) -> Any:
        return mb.reshape(x=_channels_last(x), shape=[1, int(np.prod(x.shape[1:]))])

    def reshape(self, x: Any, height: int, width: int, channels: int) -> Any:
        x = mb.reshape(x=_channels_last(x), shape=[1, height, width, channels])
        return mb.transpose(x=x, perm=[0, 3, 1, 2])

    def output(self, x: Any, name: str) -> Any:
        if id(x) in self._outputs:  # each has one name
            x = mb.mul(x=x, y=_like(x, np.ones(x.shape[1])))
            self._named.add(id(x))
        x.set_name(name)
        self._outputs.add(id(x))
        return x


def _channels_last(x: Any) -> Any:
    """A feature map with its channels last; a vector as it is."""
    return mb.transpose(x=x, perm=[0, 2, 3, 1]) if len(x.shape) == 4 else x


def _per_channel(vector: np.ndarray) -> np.ndarray:
    """A vector (channels,) as float32 (1, channels, 1, 1)."""
    return np.asarray(vector, "float32").reshape(1, -1, 1, 1)


def _like(x: Any, vector: np.ndarray) -> np.ndarray:
    """The vector as float32 in the shape that broadcasts over `x`, a feature map or a vector."""
    return _per_channel(vector) if len(x.shape) == 4 else np.asarray(vector, "float32")[None]
