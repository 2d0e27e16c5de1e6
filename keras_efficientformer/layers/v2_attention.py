"""The attention layers of EfficientFormerV2 (arXiv 2212.08059, sections 3.3 to 3.5). Room: layers.

The module also holds the convolution with BatchNorm of which all of the second family's layers are made.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_efficientformer.layers.common import (
    CHANNELS_LAST,
    BiasedAttention,
    Composite,
    SameShape,
    Shape,
    conv2d,
    depthwise_conv2d,
    halved,
    pair,
    register,
    relative_positions,
    require_channels,
    require_positive,
)
from keras_efficientformer.layers.initialization import GlorotUniform
from keras_efficientformer.layers.normalization import batch_norm

# The paper's stride attention and its downsampling halve the sides of the feature map.
STRIDE = 2


def downsampling_positions(resolution: int | Sequence[int]) -> np.ndarray:
    """Column of the bias table for each pair of a query on every second row and column, and a key on the whole grid.

    Args:
        resolution: (height, width) of the keys' grid, or one integer for both, >= 1.

    Returns:
        int64 array (ceil(height/2)*ceil(width/2), height*width): |dy| * width + |dx|, values in [0, height*width).
    """
    height, width = pair(resolution)
    queries = np.arange(height * width).reshape(height, width)[::STRIDE, ::STRIDE].ravel()
    return relative_positions((height, width))[queries]


def _to_heads(x: Any, num_heads: int) -> Any:
    """Feature map (batch, h, w, heads * channels) -> (batch, heads, h * w, channels)."""
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height * width, num_heads, channels // num_heads))
    return ops.transpose(x, (0, 2, 1, 3))


def _from_heads(x: Any, resolution: Sequence[int]) -> Any:
    """The inverse of `_to_heads`."""
    _, heads, _, channels = x.shape
    return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, *resolution, heads * channels))


@register
class ConvNorm(Composite):
    """Convolution and BatchNorm, with a padding of kernel_size // 2 pixels on every side, as in PyTorch.

    Args:
        dim: channels out, an integer >= 1; of a depthwise convolution also the channels in.
        kernel_size: side of the kernel, an odd integer >= 1.
        strides: 1 or 2.
        depthwise: whether each channel has a kernel of its own.

    Call: float tensor (batch, h, w, channels) -> (batch, ceil(h/strides), ceil(w/strides), dim).
    """

    def __init__(
        self, dim: int, kernel_size: int = 1, strides: int = 1, depthwise: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        require_positive(dim=dim, kernel_size=kernel_size, strides=strides)
        self.dim = dim
        self.kernel_size = kernel_size
        self.strides = strides
        self.depthwise = depthwise
        policy = self.dtype_policy
        self.pad = keras.layers.ZeroPadding2D(kernel_size // 2, data_format=CHANNELS_LAST, name="pad", dtype=policy)
        kind, sizes = (depthwise_conv2d, ()) if depthwise else (conv2d, (dim,))
        self.conv = kind(*sizes, kernel_size, strides=strides, name="conv", dtype=policy)
        self.bn = batch_norm("bn", self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        batch, _, _, channels = input_shape
        self.pad.build(input_shape)
        self.conv.build((batch, None, None, channels))
        self.bn.build(self.compute_output_shape(input_shape))

    def call(self, x: Any, training: bool = False) -> Any:
        if self.kernel_size > 1:
            x = self.pad(x)
        return self.bn(self.conv(x), training=training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, height, width, _ = input_shape
        sides = (height, width) if self.strides == 1 else (halved(height), halved(width))
        return (batch, *sides, self.dim)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dim": self.dim,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "depthwise": self.depthwise,
        }


@register
class TalkingHeads(SameShape):
    """Mixes attention heads: a 1x1 convolution over them (arXiv 2003.02436; paper, section 3.3).

    Args:
        num_heads: number of heads, an integer >= 1.

    Call: float tensor (batch, num_heads, queries, keys) -> the same shape.
    """

    def __init__(self, num_heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_positive(num_heads=num_heads)
        self.num_heads = num_heads

    def build(self, input_shape: Shape) -> None:
        shape = (1, 1, self.num_heads, self.num_heads)
        self.kernel = self.add_weight(shape=shape, initializer=GlorotUniform(), name="kernel")
        self.bias = self.add_weight(shape=(self.num_heads,), initializer="zeros", name="bias")

    def call(self, x: Any) -> Any:
        return ops.einsum("bhqk,hg->bgqk", x, self.kernel[0, 0]) + self.bias[:, None, None]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_heads": self.num_heads}


class _Attention(BiasedAttention):
    """Base class of both attentions of this family, which compute their scores from feature maps."""

    def _check_input(self, input_shape: Shape) -> None:
        require_channels(self, input_shape, 4, self.dim)
        if tuple(input_shape[1:3]) != self.resolution:
            raise ValueError(
                f"{type(self).__name__} {self.name!r} has a resolution of {self.resolution}. "
                f"Received: input_shape={tuple(input_shape)}"
            )

    def _scores(self, query: Any, key: Any) -> Any:
        """Feature maps -> (batch, heads, queries, keys)."""
        query, key = _to_heads(query, self.num_heads), _to_heads(key, self.num_heads)
        bias = ops.take(self.attention_biases, self.positions.astype("int32"), axis=1)
        return ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) * self.key_dim**-0.5 + bias


@register
class AttentionV2(_Attention):
    """Multi-head self attention with locality and talking heads (paper, section 3.3), strided or not (section 3.4).

    Locality is a depthwise convolution of the values, added to the attention's result. Stride attention halves the map
    by a strided depthwise convolution before, and resizes the result, bilinear, after. The table `attention_biases`,
    (num_heads, grid height * grid width), is read at |dy| * grid width + |dx|.

    Args:
        dim: channels in and out, an integer >= 1.
        key_dim: channels of a head's query and key (reference: 32).
        num_heads: number of heads (reference: 8).
        attn_ratio: channels of a head's value, as a multiple of `key_dim` (reference: 4).
        resolution: (height, width) of the feature map, or one integer for both (reference: 7).
        strided: whether attention is computed on every second row and column (reference: in the third stage).

    Call: float tensor (batch, height, width, dim) -> the same shape.

    Raises:
        ValueError: an argument is < 1, or the input is not a feature map of this resolution and `dim` channels.
    """

    def __init__(
        self,
        dim: int,
        key_dim: int = 32,
        num_heads: int = 8,
        attn_ratio: float = 4,
        resolution: int | Sequence[int] = 7,
        strided: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, key_dim, num_heads, attn_ratio, resolution, **kwargs)
        self.strided = strided
        policy, channels = self.dtype_policy, num_heads * self.value_dim
        self.stride_conv: ConvNorm | None = None
        if strided:
            self.stride_conv = ConvNorm(dim, 3, STRIDE, depthwise=True, name="stride_conv", dtype=policy)
            self.grid = (halved(self.resolution[0]), halved(self.resolution[1]))
        self.q = ConvNorm(num_heads * key_dim, name="q", dtype=policy)
        self.k = ConvNorm(num_heads * key_dim, name="k", dtype=policy)
        self.v = ConvNorm(channels, name="v", dtype=policy)
        self.v_local = ConvNorm(channels, 3, depthwise=True, name="v_local", dtype=policy)
        self.talking_head1 = TalkingHeads(num_heads, name="talking_head1", dtype=policy)
        self.talking_head2 = TalkingHeads(num_heads, name="talking_head2", dtype=policy)
        self.proj = ConvNorm(dim, name="proj", dtype=policy)
        self.positions = relative_positions(self.grid)

    def build(self, input_shape: Shape) -> None:
        self._check_input(input_shape)
        self._add_table(input_shape)
        if self.stride_conv is not None:
            self.stride_conv.build(input_shape)
        grid_shape = (input_shape[0], *self.grid)
        tokens = self.grid[0] * self.grid[1]
        for layer in (self.q, self.k, self.v):
            layer.build((*grid_shape, self.dim))
        self.v_local.build((*grid_shape, self.v.dim))
        for layer in (self.talking_head1, self.talking_head2):
            layer.build((input_shape[0], self.num_heads, tokens, tokens))
        self.proj.build((*input_shape[:3], self.v.dim))

    def call(self, x: Any, training: bool = False) -> Any:
        if self.stride_conv is not None:
            x = self.stride_conv(x, training=training)
        scores = self._scores(self.q(x, training=training), self.k(x, training=training))
        weights = self.talking_head2(ops.softmax(self.talking_head1(scores)))
        value = self.v(x, training=training)
        x = _from_heads(ops.matmul(weights, _to_heads(value, self.num_heads)), self.grid)
        x = x + self.v_local(value, training=training)
        if self.stride_conv is not None:
            # XLA refuses the gradient that TensorFlow has in lower precisions.
            precise = keras.backend.result_type(x.dtype, "float32")
            x = ops.image.resize(
                ops.cast(x, precise), self.resolution, interpolation="bilinear", data_format=CHANNELS_LAST
            )
            x = ops.cast(x, self.compute_dtype)
        return self.proj(keras.activations.gelu(x), training=training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "strided": self.strided}


@register
class LocalGlobalQuery(Composite):
    """Queries of a map of half the sides: every second pixel plus a strided depthwise convolution (paper, section 3.5).

    Args:
        dim: channels in, an integer >= 1.
        out_dim: channels out, an integer >= 1.

    Call: float tensor (batch, h, w, dim) -> (batch, ceil(h/2), ceil(w/2), out_dim).
    """

    def __init__(self, dim: int, out_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_positive(dim=dim, out_dim=out_dim)
        self.dim = dim
        self.out_dim = out_dim
        policy = self.dtype_policy
        self.pad = keras.layers.ZeroPadding2D(1, data_format=CHANNELS_LAST, name="pad", dtype=policy)
        self.local = depthwise_conv2d(3, strides=STRIDE, name="local", dtype=policy)
        self.proj = ConvNorm(out_dim, name="proj", dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        batch, height, width, channels = input_shape
        self.pad.build(input_shape)
        self.local.build((batch, None, None, channels))
        self.proj.build((batch, halved(height), halved(width), channels))

    def call(self, x: Any, training: bool = False) -> Any:
        return self.proj(self.local(self.pad(x)) + x[:, ::STRIDE, ::STRIDE], training=training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, height, width, _ = input_shape
        return (batch, halved(height), halved(width), self.out_dim)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim, "out_dim": self.out_dim}


@register
class AttentionDownsample(_Attention):
    """Attention whose queries are of half the map's sides: one path of the dual-path downsampling (paper, section 3.5).

    The table `attention_biases`, (num_heads, height * width), is read at |dy| * width + |dx|, in the keys' pixels.

    Args:
        dim: channels in, an integer >= 1.
        out_dim: channels out, an integer >= 1.
        key_dim: channels of a head's query and key (reference: 16).
        num_heads: number of heads (reference: 8).
        attn_ratio: channels of a head's value, as a multiple of `key_dim` (reference: 4).
        resolution: (height, width) of the feature map that comes in, or one integer for both (reference: 14).

    Call: float tensor (batch, height, width, dim) -> (batch, ceil(height/2), ceil(width/2), out_dim).

    Raises:
        ValueError: an argument is < 1, or the input is not a feature map of this resolution and `dim` channels.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        key_dim: int = 16,
        num_heads: int = 8,
        attn_ratio: float = 4,
        resolution: int | Sequence[int] = 14,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, key_dim, num_heads, attn_ratio, resolution, **kwargs)
        require_positive(out_dim=out_dim)
        self.out_dim = out_dim
        policy, channels = self.dtype_policy, num_heads * self.value_dim
        self.q = LocalGlobalQuery(dim, num_heads * key_dim, name="q", dtype=policy)
        self.k = ConvNorm(num_heads * key_dim, name="k", dtype=policy)
        self.v = ConvNorm(channels, name="v", dtype=policy)
        self.v_local = ConvNorm(channels, 3, STRIDE, depthwise=True, name="v_local", dtype=policy)
        self.proj = ConvNorm(out_dim, name="proj", dtype=policy)
        self.positions = downsampling_positions(self.grid)

    def build(self, input_shape: Shape) -> None:
        self._check_input(input_shape)
        self._add_table(input_shape)
        for layer in (self.q, self.k, self.v):
            layer.build(input_shape)
        value_shape = self.v.compute_output_shape(input_shape)
        self.v_local.build(value_shape)
        self.proj.build(self.v_local.compute_output_shape(value_shape))

    def call(self, x: Any, training: bool = False) -> Any:
        scores = self._scores(self.q(x, training=training), self.k(x, training=training))
        value = self.v(x, training=training)
        local = self.v_local(value, training=training)
        x = _from_heads(ops.matmul(ops.softmax(scores), _to_heads(value, self.num_heads)), local.shape[1:3]) + local
        return self.proj(keras.activations.gelu(x), training=training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, height, width, _ = input_shape
        return (batch, halved(height), halved(width), self.out_dim)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "out_dim": self.out_dim}
