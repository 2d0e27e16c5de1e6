"""The Keras builder: computes the fused network step by step, in float32, on any backend. Room: deploy/network.

The tensors of .tflite files are compared with what it computes, and ranges are measured on it. Channels last.
"""

from typing import Any

import numpy as np
from keras import ops

from keras_efficientformer.deploy.network.builder import StepHooks, Tensor
from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.layers.common import CHANNELS_LAST

# Images of as many pixels are computed at once.
PIXELS_AT_ONCE = 8 * 224 * 224


class KerasBuilder(StepHooks):
    """Implements `Builder` on the backend's tensors.

    Args:
        image: the input, a float32 array or tensor (batch, height, width, channels).
    """

    def __init__(self, image: Any) -> None:
        self._image = ops.convert_to_tensor(image, "float32")

    def image(self, height: int, width: int, channels: int, mean: np.ndarray | None) -> Tensor:
        return self._image if mean is None else ops.subtract(self._image, mean)

    def convolution(self, x: Tensor, weights: np.ndarray, bias: np.ndarray, stride: int = 1) -> Tensor:
        return ops.add(ops.conv(_pad(x, weights), weights, stride, "valid", CHANNELS_LAST), bias)

    def depthwise_convolution(self, x: Tensor, weights: np.ndarray, bias: np.ndarray, stride: int = 1) -> Tensor:
        return ops.add(ops.depthwise_conv(_pad(x, weights), weights[..., None], stride, "valid", CHANNELS_LAST), bias)

    def relu(self, x: Tensor) -> Tensor:
        return ops.relu(x)

    def gelu(self, x: Tensor) -> Tensor:
        return ops.gelu(x, approximate=False)

    def pooling_mixer(self, x: Tensor, size: int, own: np.ndarray, pooled: np.ndarray) -> Tensor:
        # "same" with stride 1 pads alike on all sides, and leaves the padding out of the average.
        average = ops.average_pool(x, size, 1, "same", CHANNELS_LAST)
        return ops.add(ops.multiply(x, own), ops.multiply(average, pooled))

    def resize(self, x: Tensor, height: int, width: int) -> Tensor:
        return ops.image.resize(x, (height, width), "bilinear", data_format=CHANNELS_LAST)

    def enlarge(self, x: Tensor, factor: int) -> Tensor:
        return ops.repeat(ops.repeat(x, factor, axis=1), factor, axis=2)

    def affine(self, x: Tensor, scale: np.ndarray, offset: np.ndarray | None = None) -> Tensor:
        x = ops.multiply(x, scale)
        return x if offset is None else ops.add(x, offset)

    def add(self, x: Tensor, y: Tensor | np.ndarray) -> Tensor:
        return ops.add(x, y)

    def tokens(self, x: Tensor) -> Tensor:
        return ops.reshape(x, (x.shape[0], x.shape[1] * x.shape[2], x.shape[3]))

    def feature_map(self, x: Tensor, height: int, width: int) -> Tensor:
        return ops.reshape(x, (x.shape[0], height, width, x.shape[2]))

    def layer_norm(self, x: Tensor, epsilon: float) -> Tensor:
        return _normalised(x, (-1,), epsilon)

    def group_norm(self, x: Tensor, epsilon: float) -> Tensor:
        return _normalised(x, (1, 2, 3), epsilon)

    def dense(self, x: Tensor, weights: np.ndarray, bias: np.ndarray) -> Tensor:
        return ops.add(ops.matmul(x, weights), bias)

    def split_heads(self, x: Tensor, num_heads: int, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        return tuple(ops.split(self.to_heads(x, num_heads), np.cumsum(sizes)[:-1].tolist(), axis=-1))

    def to_heads(self, x: Tensor, num_heads: int) -> Tensor:
        x = ops.reshape(x, (x.shape[0], x.shape[1], num_heads, x.shape[2] // num_heads))
        return ops.transpose(x, (0, 2, 1, 3))

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        return ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))

    def talking_heads(self, x: Tensor, weights: np.ndarray, bias: np.ndarray) -> Tensor:
        mixed = self.convolution(ops.transpose(x, (0, 2, 3, 1)), weights[None, None], bias)
        return ops.transpose(mixed, (0, 3, 1, 2))

    def weighted_values(self, weights: Tensor, value: Tensor) -> Tensor:
        return ops.matmul(weights, value)

    def merge_heads(self, x: Tensor) -> Tensor:
        batch, heads, tokens, channels = x.shape
        return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (batch, tokens, heads * channels))

    def softmax(self, x: Tensor) -> Tensor:
        return ops.softmax(x)

    def channel_softmax(self, x: Tensor) -> Tensor:
        return ops.softmax(x, axis=-1)

    def sigmoid(self, x: Tensor) -> Tensor:
        return ops.sigmoid(x)

    def mean(self, x: Tensor) -> Tensor:
        return ops.mean(x, axis=tuple(range(1, len(x.shape) - 1)))

    def max(self, x: Tensor) -> Tensor:
        return ops.max(x, axis=tuple(range(1, len(x.shape) - 1)))

    def concatenate(self, x: Tensor, y: Tensor) -> Tensor:
        return ops.concatenate([x, y], axis=-1)

    def flatten(self, x: Tensor) -> Tensor:
        return ops.reshape(x, (x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]))

    def reshape(self, x: Tensor, height: int, width: int, channels: int) -> Tensor:
        return ops.reshape(x, (x.shape[0], height, width, channels))

    def output(self, x: Tensor, name: str) -> Tensor:
        return x


def _normalised(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    centred = ops.subtract(x, ops.mean(x, axis=axes, keepdims=True))
    return centred * ops.rsqrt(ops.mean(ops.square(centred), axis=axes, keepdims=True) + epsilon)


def _pad(x: Tensor, weights: np.ndarray) -> Tensor:
    # The convolution's own "same" would pad even sizes at the bottom and right only.
    margin = weights.shape[0] // 2
    return ops.pad(x, [[0, 0], [margin, margin], [margin, margin], [0, 0]])


class _Measuring(KerasBuilder):
    """Remembers the smallest and largest value of each result of each step."""

    def __init__(self, image: Any) -> None:
        super().__init__(image)
        self.ends: dict[int, list[tuple[float, float]]] = {}
        self._number = 0

    def begin(self, number: int, operation: str, location: str) -> None:
        self._number = number

    def end(self, results: tuple[Tensor, ...]) -> None:
        self.ends[self._number] = [(float(ops.min(result)), float(ops.max(result))) for result in results]


def measured_ranges(network: FusedNetwork, inputs: np.ndarray) -> dict[int, list[tuple[float, float]]]:
    """The ranges of a network's activations on images.

    Args:
        network: what `fuse` returned.
        inputs: float32 array (number, height, width, channels), at least one, in the network's input range.

    Returns:
        {number of a step: [(smallest, largest) of each of its results]}, of all steps and images.
    """
    size = max(1, PIXELS_AT_ONCE // (inputs.shape[1] * inputs.shape[2]))
    ranges: dict[int, list[tuple[float, float]]] = {}
    for start in range(0, len(inputs), size):
        builder = _Measuring(inputs[start : start + size])
        network.build(builder)
        for number, ends in builder.ends.items():
            known = ranges.get(number, ends)
            ranges[number] = [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(known, ends, strict=True)]
    return ranges
