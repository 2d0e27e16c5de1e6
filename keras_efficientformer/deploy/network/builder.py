"""The interface between networks and targets: the operations that a description calls and a builder makes.

Room: deploy/network. A description (`v1.py`, `v2.py`) calls these operations with folded weights and knows no target; a
builder makes each one in its framework and layout and knows no network. Tensors are whatever its framework has.

Feature maps have (height, width, channels), tokens (number, channels), vectors (channels), each with a batch before
them; in which order a builder keeps these axes is its own matter. Weights and vectors are float64 NumPy arrays.
"""

from typing import Any, Protocol

import numpy as np

Tensor = Any


class StepHooks:
    """A builder's `begin` and `end` where it does not matter to it which step begins and ends."""

    def begin(self, number: int, operation: str, location: str) -> None:
        pass

    def end(self, results: tuple[Tensor, ...]) -> None:
        pass


class Builder(Protocol):
    """What every target implements. Whether anything is quantized is the exporter's choice, made afterwards."""

    def begin(self, number: int, operation: str, location: str) -> None:
        """Told before each step: its number in the network, its operation, and where in the Keras model it is."""

    def end(self, results: tuple[Tensor, ...]) -> None:
        """Told after each step: the tensors that it gave."""

    def image(self, height: int, width: int, channels: int, mean: np.ndarray | None) -> Tensor:
        """The network's input, a feature map; `mean` (channels,), in the input's units, is subtracted from it."""

    def convolution(self, x: Tensor, weights: np.ndarray, bias: np.ndarray, stride: int = 1) -> Tensor:
        """Convolution with HWIO weights of odd size k, and a padding of k // 2 pixels on every side."""

    def depthwise_convolution(self, x: Tensor, weights: np.ndarray, bias: np.ndarray, stride: int = 1) -> Tensor:
        """Convolution of each channel by itself, weights (k, k, channels) of odd k, padded by k // 2 on every side."""

    def relu(self, x: Tensor) -> Tensor:
        """max(x, 0)."""

    def gelu(self, x: Tensor) -> Tensor:
        """The exact GELU, x * Phi(x)."""

    def pooling_mixer(self, x: Tensor, size: int, own: np.ndarray, pooled: np.ndarray) -> Tensor:
        """own * x + pooled * average, both (channels,); the average is of size x size windows (size odd, stride 1),
        over the real pixels only."""

    def resize(self, x: Tensor, height: int, width: int) -> Tensor:
        """A feature map of another size, bilinear; pixels are areas, whose centres are at halves."""

    def enlarge(self, x: Tensor, factor: int) -> Tensor:
        """A feature map of `factor` times the size in both directions, in which pixels are repeated."""

    def affine(self, x: Tensor, scale: np.ndarray, offset: np.ndarray | None = None) -> Tensor:
        """x * scale + offset, both (channels,)."""

    def add(self, x: Tensor, y: Tensor | np.ndarray) -> Tensor:
        """The sum of two tensors of one shape, or of attention scores and a constant (1, heads, queries, keys)."""

    def tokens(self, x: Tensor) -> Tensor:
        """A feature map as tokens, row by row."""

    def feature_map(self, x: Tensor, height: int, width: int) -> Tensor:
        """The inverse of `tokens`."""

    def layer_norm(self, x: Tensor, epsilon: float) -> Tensor:
        """(x - mean) / sqrt(variance + epsilon) over channels; its scale and offset are folded into what follows."""

    def group_norm(self, x: Tensor, epsilon: float) -> Tensor:
        """(x - mean) / sqrt(variance + epsilon) over a whole feature map, positions and channels: of one group."""

    def dense(self, x: Tensor, weights: np.ndarray, bias: np.ndarray) -> Tensor:
        """Tokens or a vector times weights (channels in, channels out), plus bias."""

    def split_heads(self, x: Tensor, num_heads: int, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Tokens laid out head by head, each with parts of these sizes, as one per-head tensor for each part."""

    def to_heads(self, x: Tensor, num_heads: int) -> Tensor:
        """Tokens laid out head by head as one per-head tensor: `split_heads` for one part."""

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Per-head dot products of every query with every key: (batch, heads, queries, keys)."""

    def talking_heads(self, x: Tensor, weights: np.ndarray, bias: np.ndarray) -> Tensor:
        """Scores or attention weights, mixed over heads: weights (heads in, heads out), plus bias (heads out,)."""

    def weighted_values(self, weights: Tensor, value: Tensor) -> Tensor:
        """Per-head sums of values under attention weights."""

    def merge_heads(self, x: Tensor) -> Tensor:
        """Per-head tensors as tokens, head after head: the inverse of `to_heads`."""

    def softmax(self, x: Tensor) -> Tensor:
        """Softmax over the last axis of scores, or over the channels of a vector."""

    def channel_softmax(self, x: Tensor) -> Tensor:
        """Softmax over the channels of a feature map, for each position by itself."""

    def sigmoid(self, x: Tensor) -> Tensor:
        """1 / (1 + exp(-x))."""

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all positions of a feature map or of tokens: a vector."""

    def max(self, x: Tensor) -> Tensor:
        """The maximum over all positions of a feature map or of tokens: a vector."""

    def concatenate(self, x: Tensor, y: Tensor) -> Tensor:
        """Two feature maps of one size, or two vectors: the channels of `x`, then those of `y`."""

    def flatten(self, x: Tensor) -> Tensor:
        """A feature map as a vector: row by row, pixel by pixel, each with its channels."""

    def reshape(self, x: Tensor, height: int, width: int, channels: int) -> Tensor:
        """A vector or a feature map as a feature map of another shape: values row by row, pixel by pixel."""

    def output(self, x: Tensor, name: str) -> Tensor:
        """Names an output of the network."""
