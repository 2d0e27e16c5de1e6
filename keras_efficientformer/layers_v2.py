"""The layers of EfficientFormerV2 (arXiv 2212.08059): what its models are built from and users may build from.

What both families share (layer scale, stochastic depth, dense heads) is in `layers`. Attribute names are those of
timm's efficientformer_v2.py, as there. All layers are channels-last and run on every Keras backend.
"""

import keras
import numpy as np
from keras import ops

from keras_efficientformer.initialization import GlorotUniform
from keras_efficientformer.layers import (
    CHANNELS_LAST,
    BiasedAttention,
    LayerScale,
    SameShape,
    StochasticDepth,
    conv2d,
    depthwise_conv2d,
    halved,
    pair,
    register,
    relative_positions,
    require_channels,
    require_positive,
)
from keras_efficientformer.normalization import batch_norm

# The paper's stride attention halves the grid, and its downsampling the map.
STRIDE = 2


def downsampling_positions(resolution):
    """Row of the bias table for each pair of a query on every second row and column, and a key on the whole grid.

    Args:
        resolution: (height, width) of the keys' grid, integers >= 1.

    Returns:
        int64 array (ceil(height/2)*ceil(width/2), height*width): |dy| * width + |dx|, values in [0, height*width).
    """
    height, width = pair(resolution)
    queries = np.arange(height * width).reshape(height, width)[::STRIDE, ::STRIDE].ravel()
    return relative_positions((height, width))[queries]


def _to_heads(x, num_heads):
    """Feature map (batch, h, w, heads * channels) -> (batch, heads, h * w, channels)."""
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height * width, num_heads, channels // num_heads))
    return ops.transpose(x, (0, 2, 1, 3))


def _from_heads(x, resolution):
    """The inverse of `_to_heads`."""
    _, heads, _, channels = x.shape
    return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, *resolution, heads * channels))


@register
class ConvNorm(keras.layers.Layer):
    """Convolution and BatchNorm, with a padding of kernel_size // 2 pixels on every side, as in PyTorch.

    Args:
        dim: channels out, an integer >= 1; of a depthwise convolution also the channels in.
        kernel_size: side of the kernel, an odd integer >= 1.
        strides: 1 or 2.
        depthwise: whether each channel has a kernel of its own.

    Call: float tensor (batch, h, w, channels) -> (batch, ceil(h/strides), ceil(w/strides), dim).
    """

    def __init__(self, dim, kernel_size=1, strides=1, depthwise=False, **kwargs):
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

    def build(self, input_shape):
        batch, _, _, channels = input_shape
        self.pad.build(input_shape)
        self.conv.build((batch, None, None, channels))
        self.bn.build(self.compute_output_shape(input_shape))

    def call(self, x, training=False):
        if self.kernel_size > 1:
            x = self.pad(x)
        return self.bn(self.conv(x), training=training)

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        sides = (height, width) if self.strides == 1 else (halved(height), halved(width))
        return (batch, *sides, self.dim)

    def get_config(self):
        return {
            **super().get_config(),
            "dim": self.dim,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "depthwise": self.depthwise,
        }


@register
class StemV2(keras.layers.Layer):
    """Patch embedding: twice a 3x3 stride-2 convolution, BatchNorm and GELU (paper, section 3.1).

    Args:
        dim: channels out, an even integer >= 2; the first convolution has half of them.

    Call: float tensor (batch, h, w, channels) -> (batch, ceil(h/4), ceil(w/4), dim).

    Raises:
        ValueError: `dim` is odd or < 2.
    """

    def __init__(self, dim, **kwargs):
        super().__init__(**kwargs)
        if dim < 2 or dim % 2:
            raise ValueError(f"`dim` of the stem should be an even integer >= 2. Received: dim={dim}")
        self.dim = dim
        self.conv1 = ConvNorm(dim // 2, 3, 2, name="conv1", dtype=self.dtype_policy)
        self.conv2 = ConvNorm(dim, 3, 2, name="conv2", dtype=self.dtype_policy)

    def build(self, input_shape):
        self.conv1.build(input_shape)
        self.conv2.build(self.conv1.compute_output_shape(input_shape))

    def call(self, x, training=False):
        x = keras.activations.gelu(self.conv1(x, training=training))
        return keras.activations.gelu(self.conv2(x, training=training))

    def compute_output_shape(self, input_shape):
        return self.conv2.compute_output_shape(self.conv1.compute_output_shape(input_shape))

    def get_config(self):
        return {**super().get_config(), "dim": self.dim}


@register
class UnifiedFFN(SameShape):
    """Feed-forward network with a depthwise convolution that mixes tokens in place of pooling (paper, section 3.1).

    1x1 convolution, 3x3 depthwise convolution, 1x1 convolution, each with BatchNorm, the first two with GELU.

    Args:
        dim: channels in and out, an integer >= 1.
        hidden_dim: channels between, an integer >= 1.

    Call: float tensor (batch, h, w, dim) -> the same shape.
    """

    def __init__(self, dim, hidden_dim, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.fc1 = ConvNorm(hidden_dim, name="fc1", dtype=self.dtype_policy)
        self.mid = ConvNorm(hidden_dim, 3, depthwise=True, name="mid", dtype=self.dtype_policy)
        self.fc2 = ConvNorm(dim, name="fc2", dtype=self.dtype_policy)

    def build(self, input_shape):
        hidden_shape = (*input_shape[:-1], self.hidden_dim)
        self.fc1.build(input_shape)
        self.mid.build(hidden_shape)
        self.fc2.build(hidden_shape)

    def call(self, x, training=False):
        x = keras.activations.gelu(self.fc1(x, training=training))
        x = keras.activations.gelu(self.mid(x, training=training))
        return self.fc2(x, training=training)

    def get_config(self):
        return {**super().get_config(), "dim": self.dim, "hidden_dim": self.hidden_dim}


@register
class TalkingHeads(SameShape):
    """Mixes attention heads: a 1x1 convolution over them (arXiv 2003.02436; paper, section 3.3).

    Args:
        num_heads: number of heads, an integer >= 1.

    Call: float tensor (batch, num_heads, queries, keys) -> the same shape.
    """

    def __init__(self, num_heads, **kwargs):
        super().__init__(**kwargs)
        require_positive(num_heads=num_heads)
        self.num_heads = num_heads

    def build(self, input_shape):
        shape = (1, 1, self.num_heads, self.num_heads)
        self.kernel = self.add_weight(shape=shape, initializer=GlorotUniform(), name="kernel")
        self.bias = self.add_weight(shape=(self.num_heads,), initializer="zeros", name="bias")

    def call(self, x):
        return ops.einsum("bhqk,hg->bgqk", x, self.kernel[0, 0]) + self.bias[:, None, None]

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads}


class _Attention(BiasedAttention):
    """What both attentions of this family share: feature maps in, scores from them."""

    def _check_input(self, input_shape):
        require_channels(self, input_shape, 4, self.dim)
        if tuple(input_shape[1:3]) != self.resolution:
            raise ValueError(
                f"{type(self).__name__} {self.name!r} has a resolution of {self.resolution}. "
                f"Received: input_shape={tuple(input_shape)}"
            )

    def _scores(self, query, key):
        """Feature maps -> (batch, heads, queries, keys)."""
        query, key = _to_heads(query, self.num_heads), _to_heads(key, self.num_heads)
        bias = ops.take(self.attention_biases, self._positions.astype("int32"), axis=1)
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

    def __init__(self, dim, key_dim=32, num_heads=8, attn_ratio=4, resolution=7, strided=False, **kwargs):
        super().__init__(dim, key_dim, num_heads, attn_ratio, resolution, **kwargs)
        self.strided = strided
        policy, channels = self.dtype_policy, num_heads * self.value_dim
        self.stride_conv = None
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
        self._positions = relative_positions(self.grid)

    def build(self, input_shape):
        self._check_input(input_shape)
        self._add_table()
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

    def call(self, x, training=False):
        if self.stride_conv is not None:
            x = self.stride_conv(x, training=training)
        scores = self._scores(self.q(x, training=training), self.k(x, training=training))
        weights = self.talking_head2(ops.softmax(self.talking_head1(scores)))
        value = self.v(x, training=training)
        x = _from_heads(ops.matmul(weights, _to_heads(value, self.num_heads)), self.grid)
        x = x + self.v_local(value, training=training)
        if self.stride_conv is not None:
            x = ops.image.resize(x, self.resolution, interpolation="bilinear", data_format=CHANNELS_LAST)
        return self.proj(keras.activations.gelu(x), training=training)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "strided": self.strided}


@register
class LocalGlobalQuery(keras.layers.Layer):
    """Queries of a map of half the sides: every second pixel plus a strided depthwise convolution (paper, section 3.5).

    Args:
        dim: channels in, an integer >= 1.
        out_dim: channels out, an integer >= 1.

    Call: float tensor (batch, h, w, dim) -> (batch, ceil(h/2), ceil(w/2), out_dim).
    """

    def __init__(self, dim, out_dim, **kwargs):
        super().__init__(**kwargs)
        require_positive(dim=dim, out_dim=out_dim)
        self.dim = dim
        self.out_dim = out_dim
        policy = self.dtype_policy
        self.pad = keras.layers.ZeroPadding2D(1, data_format=CHANNELS_LAST, name="pad", dtype=policy)
        self.local = depthwise_conv2d(3, strides=STRIDE, name="local", dtype=policy)
        self.proj = ConvNorm(out_dim, name="proj", dtype=self.dtype_policy)

    def build(self, input_shape):
        batch, height, width, channels = input_shape
        self.pad.build(input_shape)
        self.local.build((batch, None, None, channels))
        self.proj.build((batch, halved(height), halved(width), channels))

    def call(self, x, training=False):
        return self.proj(self.local(self.pad(x)) + x[:, ::STRIDE, ::STRIDE], training=training)

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        return (batch, halved(height), halved(width), self.out_dim)

    def get_config(self):
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

    def __init__(self, dim, out_dim, key_dim=16, num_heads=8, attn_ratio=4, resolution=14, **kwargs):
        super().__init__(dim, key_dim, num_heads, attn_ratio, resolution, **kwargs)
        require_positive(out_dim=out_dim)
        self.out_dim = out_dim
        policy, channels = self.dtype_policy, num_heads * self.value_dim
        self.q = LocalGlobalQuery(dim, num_heads * key_dim, name="q", dtype=policy)
        self.k = ConvNorm(num_heads * key_dim, name="k", dtype=policy)
        self.v = ConvNorm(channels, name="v", dtype=policy)
        self.v_local = ConvNorm(channels, 3, STRIDE, depthwise=True, name="v_local", dtype=policy)
        self.proj = ConvNorm(out_dim, name="proj", dtype=policy)
        self._positions = downsampling_positions(self.grid)

    def build(self, input_shape):
        self._check_input(input_shape)
        self._add_table()
        for layer in (self.q, self.k, self.v):
            layer.build(input_shape)
        value_shape = self.v.compute_output_shape(input_shape)
        self.v_local.build(value_shape)
        self.proj.build(self.v_local.compute_output_shape(value_shape))

    def call(self, x, training=False):
        scores = self._scores(self.q(x, training=training), self.k(x, training=training))
        value = self.v(x, training=training)
        local = self.v_local(value, training=training)
        x = _from_heads(ops.matmul(ops.softmax(scores), _to_heads(value, self.num_heads)), local.shape[1:3]) + local
        return self.proj(keras.activations.gelu(x), training=training)

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        return (batch, halved(height), halved(width), self.out_dim)

    def get_config(self):
        return {**super().get_config(), "out_dim": self.out_dim}


@register
class DownsampleV2(keras.layers.Layer):
    """Embedding between two stages: a strided convolution, and beside it attention (paper, section 3.5, "dual-path").

    Args:
        dim: channels out, an integer >= 1.
        attention: whether it has the second path (reference: before the last stage).

    Call: float tensor (batch, h, w, channels) -> (batch, ceil(h/2), ceil(w/2), dim).
    """

    def __init__(self, dim, attention=False, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim
        self.attention = attention
        self.conv = ConvNorm(dim, 3, STRIDE, name="conv", dtype=self.dtype_policy)
        self.attn = None

    def build(self, input_shape):
        self.conv.build(input_shape)
        if self.attention:
            _, height, width, channels = input_shape
            self.attn = AttentionDownsample(
                channels, self.dim, resolution=(height, width), name="attn", dtype=self.dtype_policy
            )
            self.attn.build(input_shape)

    def call(self, x, training=False):
        embedded = self.conv(x, training=training)
        return embedded if self.attn is None else self.attn(x, training=training) + embedded

    def compute_output_shape(self, input_shape):
        return self.conv.compute_output_shape(input_shape)

    def get_config(self):
        return {**super().get_config(), "dim": self.dim, "attention": self.attention}


@register
class BlockV2(SameShape):
    """x + ls1(mhsa(x)) where there is attention, then x + ls2(ffn(x)), each under stochastic depth (paper, figure 2).

    Args:
        dim: channels in and out, an integer >= 1.
        mlp_ratio: the FFN's hidden channels as a multiple of `dim` (reference: 4 or 3).
        attention: whether the block has an `AttentionV2` before its FFN.
        strided: whether that is stride attention.
        resolution: (height, width) of the feature map, or one integer for both; used with attention only.
        drop_path: rate of stochastic depth in [0, 1).
        layer_scale_init_value: start of the layer scales (reference: 1e-5).

    Call: float tensor (batch, h, w, dim) -> the same shape.

    Raises:
        ValueError: `drop_path` is outside [0, 1), or the input is not a feature map of `dim` channels.
    """

    def __init__(
        self,
        dim,
        mlp_ratio=4.0,
        attention=False,
        strided=False,
        resolution=7,
        drop_path=0.0,
        layer_scale_init_value=1e-5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        require_positive(dim=dim)
        self.dim = dim
        self.mlp_ratio = mlp_ratio
        self.attention = attention
        self.strided = strided
        self.resolution = pair(resolution)
        self.drop_path = drop_path
        self.layer_scale_init_value = layer_scale_init_value
        policy = self.dtype_policy
        self.token_mixer = None
        if attention:
            self.token_mixer = AttentionV2(
                dim, resolution=self.resolution, strided=strided, name="token_mixer", dtype=policy
            )
            self.ls1 = LayerScale(layer_scale_init_value, name="ls1", dtype=policy)
            self.drop_path1 = StochasticDepth(drop_path, name="drop_path1", dtype=policy)
        self.mlp = UnifiedFFN(dim, int(dim * mlp_ratio), name="mlp", dtype=policy)
        self.ls2 = LayerScale(layer_scale_init_value, name="ls2", dtype=policy)
        self.drop_path2 = StochasticDepth(drop_path, name="drop_path2", dtype=policy)

    def build(self, input_shape):
        require_channels(self, input_shape, 4, self.dim)
        if self.token_mixer is not None:
            for layer in (self.token_mixer, self.ls1, self.drop_path1):
                layer.build(input_shape)
        for layer in (self.mlp, self.ls2, self.drop_path2):
            layer.build(input_shape)

    def call(self, x, training=False):
        if self.token_mixer is not None:
            x = x + self.drop_path1(self.ls1(self.token_mixer(x, training=training)), training=training)
        return x + self.drop_path2(self.ls2(self.mlp(x, training=training)), training=training)

    def get_config(self):
        return {
            **super().get_config(),
            "dim": self.dim,
            "mlp_ratio": self.mlp_ratio,
            "attention": self.attention,
            "strided": self.strided,
            "resolution": self.resolution,
            "drop_path": self.drop_path,
            "layer_scale_init_value": self.layer_scale_init_value,
        }


@register
class StageV2(keras.layers.Layer):
    """One of the network's four stages: an embedding (not in the first), then blocks, the last of them with attention.

    Args:
        dim: channels out, an integer >= 1.
        mlp_ratios: the FFN's hidden channels as a multiple of `dim`, for each block.
        num_attention: how many of the blocks, counted from the end, have attention.
        strided: whether that is stride attention (reference: in the third stage).
        downsample: None, "convolution" or "dual-path" (reference: before the last stage).
        drop_path: one rate of stochastic depth for each block, in [0, 1).
        layer_scale_init_value: start of all layer scales (reference: 1e-5).

    Call: float tensor (batch, h, w, channels) -> (batch, h', w', dim), h' = ceil(h/2) with `downsample`, else h.

    Raises:
        ValueError: `num_attention` exceeds the number of blocks, `drop_path` has another length than `mlp_ratios`, or
            the stage has attention and the input's height or width is unknown.
    """

    def __init__(
        self,
        dim,
        mlp_ratios,
        num_attention=0,
        strided=False,
        downsample="convolution",
        drop_path=None,
        layer_scale_init_value=1e-5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.mlp_ratios = list(mlp_ratios)
        self.depth = len(self.mlp_ratios)
        if not 0 <= num_attention <= self.depth:
            raise ValueError(
                f"`num_attention` should be between 0 and the stage's depth. "
                f"Received: num_attention={num_attention}, depth={self.depth}"
            )
        self.drop_path = [0.0] * self.depth if drop_path is None else list(drop_path)
        if len(self.drop_path) != self.depth:
            raise ValueError(
                f"`drop_path` should have one rate for each block. Received: drop_path={drop_path}, depth={self.depth}"
            )
        if downsample not in (None, "convolution", "dual-path"):
            raise ValueError(
                f"`downsample` should be None, 'convolution' or 'dual-path'. Received: downsample={downsample!r}"
            )
        self.dim = dim
        self.num_attention = num_attention
        self.strided = strided
        self.layer_scale_init_value = layer_scale_init_value
        self.downsample = None
        if downsample is not None:
            self.downsample = DownsampleV2(
                dim, attention=downsample == "dual-path", name="downsample", dtype=self.dtype_policy
            )
        self._downsample = downsample
        self.blocks = []

    def build(self, input_shape):
        self._check_sides(input_shape)
        if self.downsample is not None:
            self.downsample.build(input_shape)
            input_shape = self.downsample.compute_output_shape(input_shape)
        require_channels(self, input_shape, 4, self.dim)
        settings = {"layer_scale_init_value": self.layer_scale_init_value, "dtype": self.dtype_policy}
        for index, (mlp_ratio, drop_path) in enumerate(zip(self.mlp_ratios, self.drop_path, strict=True)):
            if index >= self.depth - self.num_attention:
                # An attention's bias table has the size of its grid, which only the input's shape tells.
                settings |= {"attention": True, "strided": self.strided, "resolution": input_shape[1:3]}
            block = BlockV2(self.dim, mlp_ratio, drop_path=drop_path, name=f"blocks_{index}", **settings)
            block.build(input_shape)
            self.blocks.append(block)

    def _check_sides(self, input_shape):
        attention = self.num_attention or self._downsample == "dual-path"
        if attention and None in tuple(input_shape[1:3]):
            raise ValueError(
                f"Stage {self.name!r} has attention and needs an input of known height and width. "
                f"Received: input_shape={tuple(input_shape)}"
            )

    def call(self, x, training=False):
        if self.downsample is not None:
            x = self.downsample(x, training=training)
        for block in self.blocks:
            x = block(x, training=training)
        return x

    def compute_output_shape(self, input_shape):
        if self.downsample is not None:
            return self.downsample.compute_output_shape(input_shape)
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "dim": self.dim,
            "mlp_ratios": self.mlp_ratios,
            "num_attention": self.num_attention,
            "strided": self.strided,
            "downsample": self._downsample,
            "drop_path": self.drop_path,
            "layer_scale_init_value": self.layer_scale_init_value,
        }
