"""The network's layers, named after the paper (arXiv 2206.01191): what a model is built from and users may build from.

Attribute names (`token_mixer`, `mlp.fc1`, `ls1`, ...) are those of timm's efficientformer.py, so that a checkpoint's
tensor names and these attributes read alike. All layers are channels-last and run on every Keras backend. Those without
weights are built too: where one is not, Keras' first `predict` on JAX computes the network operation by operation.
"""

import keras
import numpy as np
from keras import ops

from keras_efficientformer.initialization import GlorotUniform, TruncatedNormal
from keras_efficientformer.normalization import batch_norm, layer_norm

# Said to every layer inside: Keras' global default may change after a model was made.
CHANNELS_LAST = "channels_last"

register = keras.saving.register_keras_serializable(package="keras_efficientformer")


def linear(units, name, dtype=None, initializer=TruncatedNormal):
    """A dense layer as the reference initialises it: truncated normal of 0.02, zero biases."""
    # One initializer for each layer: Keras draws the same numbers again from one that is shared.
    return keras.layers.Dense(units, kernel_initializer=initializer(stddev=0.02), name=name, dtype=dtype)


def conv2d(*args, **kwargs):
    """A `keras.layers.Conv2D` of feature maps with their channels last."""
    return keras.layers.Conv2D(*args, kernel_initializer=GlorotUniform(), data_format=CHANNELS_LAST, **kwargs)


def depthwise_conv2d(*args, **kwargs):
    """A `keras.layers.DepthwiseConv2D` of feature maps with their channels last."""
    initializer = GlorotUniform()
    return keras.layers.DepthwiseConv2D(*args, depthwise_initializer=initializer, data_format=CHANNELS_LAST, **kwargs)


def require_channels(layer, input_shape, rank, channels):
    if len(input_shape) != rank or input_shape[-1] != channels:
        kind = "feature map (batch, height, width, channels)" if rank == 4 else "tokens (batch, tokens, channels)"
        raise ValueError(
            f"{type(layer).__name__} {layer.name!r} takes a {kind} with {channels} channels, channels last. "
            f"Received: input_shape={tuple(input_shape)}"
        )


def require_positive(**arguments):
    for name, value in arguments.items():
        if not value >= 1:
            raise ValueError(f"`{name}` should be at least 1. Received: {name}={value}")


def pair(resolution):
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    return int(height), int(width)


def halved(size):
    """Side of a feature map after one 3x3 stride-2 convolution with a padding of one pixel: ceil(size / 2)."""
    return None if size is None else (size + 1) // 2


def relative_positions(resolution):
    """Row of the attention bias table for each pair of tokens: |dy| * width + |dx| (reference: `attention_bias_idxs`).

    Args:
        resolution: (height, width) of the token grid, integers >= 1.

    Returns:
        int64 array (height*width, height*width), symmetric, values in [0, height*width).
    """
    height, width = pair(resolution)
    positions = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).reshape(2, -1)
    offsets = np.abs(positions[:, :, None] - positions[:, None, :])
    return offsets[0] * width + offsets[1]


class SameShape(keras.layers.Layer):
    """A layer that gives the shape it takes."""

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)


@register
class LayerScale(SameShape):
    """Learned factor per channel on a residual branch (CaiT, arXiv 2103.17239, section 2; paper, equations 4 and 5).

    Args:
        init_value: every factor's start, a float (reference: 1e-5).

    Call: float tensor (..., channels) -> the same shape.
    """

    def __init__(self, init_value=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.init_value = init_value

    def build(self, input_shape):
        initializer = keras.initializers.Constant(self.init_value)
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer=initializer, name="gamma")

    def call(self, x):
        return x * self.gamma

    def get_config(self):
        return {**super().get_config(), "init_value": self.init_value}


@register
class StochasticDepth(SameShape):
    """Drops a residual branch for whole samples while training, and scales the kept ones by 1 / (1 - rate).

    Source: Deep Networks with Stochastic Depth, arXiv 1603.09382; timm's `DropPath`.

    Args:
        rate: probability in [0, 1) that a sample's branch is dropped; 0 makes the layer the identity.
        seed: int or None, the seed of the layer's own generator.

    Call: float tensor (batch, ...) -> the same shape.

    Raises:
        ValueError: `rate` is outside [0, 1).
    """

    def __init__(self, rate, seed=None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` should be in the range [0, 1). Received: rate={rate}")
        self.rate = float(rate)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed) if rate else None

    def call(self, x, training=False):
        if not training or not self.rate:
            return x
        per_sample = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        return keras.random.dropout(x, self.rate, noise_shape=per_sample, seed=self.seed_generator)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@register
class PaddedConv(keras.layers.Layer):
    """3x3 stride-2 convolution and BatchNorm: the stem's two steps and the embedding between stages (paper, figure 2).

    The padding is one pixel on every side, as in PyTorch; Keras' "same" pads even sizes at the bottom and right only.

    Args:
        dim: channels out, an integer >= 1.

    Call: float tensor (batch, h, w, channels) -> (batch, ceil(h/2), ceil(w/2), dim).
    """

    def __init__(self, dim, **kwargs):
        super().__init__(**kwargs)
        require_positive(dim=dim)
        self.dim = dim
        self.pad = keras.layers.ZeroPadding2D(1, data_format=CHANNELS_LAST, name="pad", dtype=self.dtype_policy)
        self.conv = conv2d(dim, 3, strides=2, name="conv", dtype=self.dtype_policy)
        self.norm = batch_norm("norm", self.dtype_policy)

    def build(self, input_shape):
        batch, height, width, channels = input_shape
        self.pad.build(input_shape)
        self.conv.build((batch, None, None, channels))
        self.norm.build((batch, halved(height), halved(width), self.dim))

    def call(self, x, training=False):
        return self.norm(self.conv(self.pad(x)), training=training)

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        return (batch, halved(height), halved(width), self.dim)

    def get_config(self):
        return {**super().get_config(), "dim": self.dim}


@register
class Downsample(PaddedConv):
    """Embedding between two stages: halves the sides and sets the width (paper, section 4, "Embedding")."""


@register
class Stem(keras.layers.Layer):
    """Patch embedding: twice a 3x3 stride-2 convolution, BatchNorm and ReLU (paper, section 4.1, "Conv stem").

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
        self.step1 = PaddedConv(dim // 2, name="step1", dtype=self.dtype_policy)
        self.step2 = PaddedConv(dim, name="step2", dtype=self.dtype_policy)

    def build(self, input_shape):
        self.step1.build(input_shape)
        self.step2.build(self.step1.compute_output_shape(input_shape))

    def call(self, x, training=False):
        x = ops.relu(self.step1(x, training=training))
        return ops.relu(self.step2(x, training=training))

    def compute_output_shape(self, input_shape):
        return self.step2.compute_output_shape(self.step1.compute_output_shape(input_shape))

    def get_config(self):
        return {**super().get_config(), "dim": self.dim}


@register
class Pooling(SameShape):
    """The token mixer of `Meta4D`: average pooling minus its input (PoolFormer, arXiv 2111.11418, section 3.2).

    At the border the average is over the real pixels only (`count_include_pad=False`).

    Args:
        pool_size: side of the window, an odd integer >= 1 (reference: 3).

    Call: float tensor (batch, h, w, channels) -> the same shape.

    Raises:
        ValueError: `pool_size` is even or < 1.
    """

    def __init__(self, pool_size=3, **kwargs):
        super().__init__(**kwargs)
        require_positive(pool_size=pool_size)
        if pool_size % 2 == 0:
            raise ValueError(f"`pool_size` should be odd. Received: pool_size={pool_size}")
        self.pool_size = pool_size

    def call(self, x):
        return ops.average_pool(x, self.pool_size, strides=1, padding="same", data_format=CHANNELS_LAST) - x

    def get_config(self):
        return {**super().get_config(), "pool_size": self.pool_size}


@register
class ConvMlp(SameShape):
    """MLP of `Meta4D`: 1x1 convolution, BatchNorm, GELU, 1x1 convolution, BatchNorm (paper, equation 4).

    Args:
        dim: channels in and out, an integer >= 1.
        hidden_dim: channels between, an integer >= 1.

    Call: float tensor (batch, h, w, dim) -> the same shape.
    """

    def __init__(self, dim, hidden_dim, **kwargs):
        super().__init__(**kwargs)
        require_positive(dim=dim, hidden_dim=hidden_dim)
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.fc1 = conv2d(hidden_dim, 1, name="fc1", dtype=self.dtype_policy)
        self.norm1 = batch_norm("norm1", self.dtype_policy)
        self.fc2 = conv2d(dim, 1, name="fc2", dtype=self.dtype_policy)
        self.norm2 = batch_norm("norm2", self.dtype_policy)

    def build(self, input_shape):
        hidden_shape = (*input_shape[:-1], self.hidden_dim)
        self.fc1.build(input_shape)
        self.norm1.build(hidden_shape)
        self.fc2.build(hidden_shape)
        self.norm2.build(input_shape)

    def call(self, x, training=False):
        x = keras.activations.gelu(self.norm1(self.fc1(x), training=training))
        return self.norm2(self.fc2(x), training=training)

    def get_config(self):
        return {**super().get_config(), "dim": self.dim, "hidden_dim": self.hidden_dim}


@register
class Mlp(SameShape):
    """MLP of `Meta3D`: dense, GELU, dense (paper, equation 5).

    Args:
        dim: channels in and out, an integer >= 1.
        hidden_dim: channels between, an integer >= 1.

    Call: float tensor (batch, tokens, dim) -> the same shape.
    """

    def __init__(self, dim, hidden_dim, **kwargs):
        super().__init__(**kwargs)
        require_positive(dim=dim, hidden_dim=hidden_dim)
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.fc1 = linear(hidden_dim, "fc1", self.dtype_policy)
        self.fc2 = linear(dim, "fc2", self.dtype_policy)

    def build(self, input_shape):
        self.fc1.build(input_shape)
        self.fc2.build((*input_shape[:-1], self.hidden_dim))

    def call(self, x):
        return self.fc2(keras.activations.gelu(self.fc1(x)))

    def get_config(self):
        return {**super().get_config(), "dim": self.dim, "hidden_dim": self.hidden_dim}


class BiasedAttention(keras.layers.Layer):
    """What all attentions share: their sizes, and a table of biases that files hold with its resolution.

    `grid` is (height, width) of the keys' positions, to which the table belongs.
    """

    def __init__(self, dim, key_dim, num_heads, attn_ratio, resolution, **kwargs):
        super().__init__(**kwargs)
        self.resolution = pair(resolution)
        require_positive(dim=dim, key_dim=key_dim, num_heads=num_heads, resolution=min(self.resolution))
        self.dim = dim
        self.key_dim = key_dim
        self.num_heads = num_heads
        self.attn_ratio = attn_ratio
        self.value_dim = int(attn_ratio * key_dim)
        require_positive(value_dim=self.value_dim)
        self.grid = self.resolution

    def _add_table(self):
        shape = (self.num_heads, self.grid[0] * self.grid[1])
        self.attention_biases = self.add_weight(shape=shape, initializer="zeros", name="attention_biases")

    def save_own_variables(self, store):
        """Saves the table with its resolution."""
        super().save_own_variables(store)
        # Of a table alone, nobody could tell a grid of 4x9 tokens from one of 6x6.
        store["resolution"] = np.array(self.grid)

    def load_own_variables(self, store):
        """Loads a table of the same resolution; a ValueError says both where they differ."""
        grid = tuple(int(side) for side in store["resolution"])
        if grid != self.grid:
            raise ValueError(
                f"{type(self).__name__} {self.name!r} has a resolution of {self.grid} and the file's is {grid}. "
                "To resize its biases, pass the file as `weights` when the model is made."
            )
        self.attention_biases.assign(store["0"])

    def get_config(self):
        return {
            **super().get_config(),
            "dim": self.dim,
            "key_dim": self.key_dim,
            "num_heads": self.num_heads,
            "attn_ratio": self.attn_ratio,
            "resolution": self.resolution,
        }


@register
class Attention(BiasedAttention, SameShape):
    """Multi-head self attention with a learned bias per offset (paper, equation 6; LeViT, arXiv 2104.01136).

    The dense `qkv` is laid out head by head, each [q k v]. The table `attention_biases`, (num_heads, height*width),
    is read at |dy| * width + |dx|.

    Args:
        dim: channels in and out, an integer >= 1.
        key_dim: channels of a head's query and key (reference: 32).
        num_heads: number of heads (reference: 8).
        attn_ratio: channels of a head's value, as a multiple of `key_dim` (reference: 4).
        resolution: (height, width) of the token grid, or one integer for both (reference: 7).

    Call: float tensor (batch, height*width, dim) -> the same shape.

    Raises:
        ValueError: an argument is < 1, or the input is not height*width tokens of `dim` channels.
    """

    def __init__(self, dim, key_dim=32, num_heads=8, attn_ratio=4, resolution=7, **kwargs):
        super().__init__(dim, key_dim, num_heads, attn_ratio, resolution, **kwargs)
        self.qkv = linear(num_heads * (2 * key_dim + self.value_dim), "qkv", self.dtype_policy)
        self.proj = linear(dim, "proj", self.dtype_policy)
        self._relative_positions = relative_positions(self.resolution).astype("int32")

    def build(self, input_shape):
        require_channels(self, input_shape, 3, self.dim)
        tokens = self.resolution[0] * self.resolution[1]
        if input_shape[1] != tokens:
            raise ValueError(
                f"Attention {self.name!r} has a resolution of {self.resolution}, so {tokens} tokens. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.qkv.build(input_shape)
        self.proj.build((*input_shape[:-1], self.num_heads * self.value_dim))
        self._add_table()

    def call(self, x):
        tokens = x.shape[1]
        qkv = ops.reshape(self.qkv(x), (-1, tokens, self.num_heads, 2 * self.key_dim + self.value_dim))
        q, k, v = ops.split(ops.transpose(qkv, (0, 2, 1, 3)), (self.key_dim, 2 * self.key_dim), axis=-1)
        bias = ops.take(self.attention_biases, self._relative_positions, axis=1)
        weights = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) * self.key_dim**-0.5 + bias)
        heads = ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3))
        return self.proj(ops.reshape(heads, (-1, tokens, self.num_heads * self.value_dim)))


class _MetaBlock(SameShape):
    """What both blocks share: x + ls1(token_mixer(.)), then x + ls2(mlp(.)), each under stochastic depth."""

    def __init__(self, dim, mlp_ratio=4.0, drop_path=0.0, layer_scale_init_value=1e-5, **kwargs):
        super().__init__(**kwargs)
        require_positive(dim=dim)
        self.dim = dim
        self.mlp_ratio = mlp_ratio
        self.drop_path = drop_path
        self.layer_scale_init_value = layer_scale_init_value
        self.ls1 = LayerScale(layer_scale_init_value, name="ls1", dtype=self.dtype_policy)
        self.ls2 = LayerScale(layer_scale_init_value, name="ls2", dtype=self.dtype_policy)
        self.drop_path1 = StochasticDepth(drop_path, name="drop_path1", dtype=self.dtype_policy)
        self.drop_path2 = StochasticDepth(drop_path, name="drop_path2", dtype=self.dtype_policy)

    def get_config(self):
        return {
            **super().get_config(),
            "dim": self.dim,
            "mlp_ratio": self.mlp_ratio,
            "drop_path": self.drop_path,
            "layer_scale_init_value": self.layer_scale_init_value,
        }


@register
class Meta4D(_MetaBlock):
    """MetaFormer block on a feature map: pooling as token mixer, convolutional MLP (paper, section 4, equation 4).

    Args:
        dim: channels in and out, an integer >= 1.
        pool_size: window of the pooling mixer, an odd integer (reference: 3).
        mlp_ratio: the MLP's hidden channels as a multiple of `dim` (reference: 4).
        drop_path: rate of stochastic depth in [0, 1).
        layer_scale_init_value: start of both layer scales (reference: 1e-5).

    Call: float tensor (batch, h, w, dim) -> the same shape.

    Raises:
        ValueError: `drop_path` is outside [0, 1), or the input is not a feature map of `dim` channels.
    """

    def __init__(self, dim, pool_size=3, mlp_ratio=4.0, drop_path=0.0, layer_scale_init_value=1e-5, **kwargs):
        super().__init__(dim, mlp_ratio, drop_path, layer_scale_init_value, **kwargs)
        self.pool_size = pool_size
        self.token_mixer = Pooling(pool_size, name="token_mixer", dtype=self.dtype_policy)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), name="mlp", dtype=self.dtype_policy)

    def build(self, input_shape):
        require_channels(self, input_shape, 4, self.dim)
        for layer in (self.token_mixer, self.ls1, self.drop_path1, self.mlp, self.ls2, self.drop_path2):
            layer.build(input_shape)

    def call(self, x, training=False):
        x = x + self.drop_path1(self.ls1(self.token_mixer(x)), training=training)
        return x + self.drop_path2(self.ls2(self.mlp(x, training=training)), training=training)

    def get_config(self):
        return {**super().get_config(), "pool_size": self.pool_size}


@register
class Meta3D(_MetaBlock):
    """MetaFormer block on tokens: attention as token mixer, linear MLP (paper, section 4, equations 5 and 6).

    Args:
        dim: channels in and out, an integer >= 1.
        resolution: (height, width) of the token grid, or one integer for both (reference: 7).
        mlp_ratio: the MLP's hidden channels as a multiple of `dim` (reference: 4).
        drop_path: rate of stochastic depth in [0, 1).
        layer_scale_init_value: start of both layer scales (reference: 1e-5).

    Call: float tensor (batch, height*width, dim), tokens in row-major order -> the same shape.

    Raises:
        ValueError: `drop_path` is outside [0, 1), or the input is not height*width tokens of `dim` channels.
    """

    def __init__(self, dim, resolution=7, mlp_ratio=4.0, drop_path=0.0, layer_scale_init_value=1e-5, **kwargs):
        super().__init__(dim, mlp_ratio, drop_path, layer_scale_init_value, **kwargs)
        self.resolution = pair(resolution)
        self.norm1 = layer_norm("norm1", self.dtype_policy)
        self.token_mixer = Attention(dim, resolution=self.resolution, name="token_mixer", dtype=self.dtype_policy)
        self.norm2 = layer_norm("norm2", self.dtype_policy)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), name="mlp", dtype=self.dtype_policy)

    def build(self, input_shape):
        require_channels(self, input_shape, 3, self.dim)
        for layer in (self.norm1, self.token_mixer, self.ls1, self.drop_path1):
            layer.build(input_shape)
        for layer in (self.norm2, self.mlp, self.ls2, self.drop_path2):
            layer.build(input_shape)

    def call(self, x, training=False):
        x = x + self.drop_path1(self.ls1(self.token_mixer(self.norm1(x))), training=training)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))), training=training)

    def get_config(self):
        return {**super().get_config(), "resolution": self.resolution}


@register
class Stage(keras.layers.Layer):
    """One of the network's four stages: an embedding (not in the first), then `Meta4D` and at last `Meta3D` blocks.

    Args:
        dim: channels out, an integer >= 1.
        depth: number of blocks, an integer >= 0.
        num_meta3d: how many of them, counted from the end, are `Meta3D`.
        downsample: whether the stage starts with a `Downsample`.
        drop_path: one rate of stochastic depth for each block, in [0, 1).
        layer_scale_init_value: start of all layer scales (reference: 1e-5).

    Call: float tensor (batch, h, w, channels) -> (batch, h', w', dim), h' = ceil(h/2) with `downsample`, else h.

    Raises:
        ValueError: `num_meta3d` exceeds `depth`, or `drop_path` has another length than `depth`.
    """

    def __init__(
        self, dim, depth, num_meta3d=0, downsample=True, drop_path=None, layer_scale_init_value=1e-5, **kwargs
    ):
        super().__init__(**kwargs)
        if not 0 <= num_meta3d <= depth:
            raise ValueError(
                f"`num_meta3d` should be between 0 and the stage's depth. "
                f"Received: num_meta3d={num_meta3d}, depth={depth}"
            )
        self.drop_path = [0.0] * depth if drop_path is None else list(drop_path)
        if len(self.drop_path) != depth:
            raise ValueError(
                f"`drop_path` should have one rate for each block. Received: drop_path={drop_path}, depth={depth}"
            )
        self.dim = dim
        self.depth = depth
        self.num_meta3d = num_meta3d
        self.layer_scale_init_value = layer_scale_init_value
        self.downsample = Downsample(dim, name="downsample", dtype=self.dtype_policy) if downsample else None
        self.blocks = []

    def build(self, input_shape):
        if self.downsample is not None:
            self.downsample.build(input_shape)
            input_shape = self.downsample.compute_output_shape(input_shape)
        require_channels(self, input_shape, 4, self.dim)
        batch, height, width, _ = input_shape
        # A Meta3D's bias table has the size of its token grid, which only the input's shape tells.
        self.resolution = (height, width)
        if self.num_meta3d and None in self.resolution:
            raise ValueError(
                f"Stage {self.name!r} has attention and needs an input of known height and width. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        for index, rate in enumerate(self.drop_path):
            settings = {
                "drop_path": rate,
                "layer_scale_init_value": self.layer_scale_init_value,
                "name": f"blocks_{index}",
                "dtype": self.dtype_policy,
            }
            if index < self.depth - self.num_meta3d:
                block = Meta4D(self.dim, **settings)
                block.build(input_shape)
            else:
                block = Meta3D(self.dim, self.resolution, **settings)
                block.build((batch, height * width, self.dim))
            self.blocks.append(block)

    def call(self, x, training=False):
        if self.downsample is not None:
            x = self.downsample(x, training=training)
        first_meta3d = self.depth - self.num_meta3d
        for block in self.blocks[:first_meta3d]:
            x = block(x, training=training)
        if not self.num_meta3d:
            return x
        height, width = self.resolution
        x = ops.reshape(x, (-1, height * width, self.dim))
        for block in self.blocks[first_meta3d:]:
            x = block(x, training=training)
        return ops.reshape(x, (-1, height, width, self.dim))

    def compute_output_shape(self, input_shape):
        if self.downsample is not None:
            return self.downsample.compute_output_shape(input_shape)
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "dim": self.dim,
            "depth": self.depth,
            "num_meta3d": self.num_meta3d,
            "downsample": self.downsample is not None,
            "drop_path": self.drop_path,
            "layer_scale_init_value": self.layer_scale_init_value,
        }
