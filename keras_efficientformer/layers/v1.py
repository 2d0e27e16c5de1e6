"""The layers of EfficientFormer, named after the paper (arXiv 2206.01191). Room: layers.

Attribute names (`token_mixer`, `mlp.fc1`, `ls1`, ...) are those of timm's efficientformer.py, so that a checkpoint's
tensor names and these attributes read alike. All layers are channels-last and run on every Keras backend. Those without
weights are built too: where one is not, Keras' first `predict` on JAX computes the network operation by operation.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import keras
from keras import ops

from keras_efficientformer.layers.common import (
    CHANNELS_LAST,
    Composite,
    LayerScale,
    SameShape,
    Shape,
    StochasticDepth,
    conv2d,
    halved,
    linear,
    pair,
    register,
    require_channels,
    require_positive,
)
from keras_efficientformer.layers.keras_quantization import check_savable
from keras_efficientformer.layers.normalization import batch_norm, layer_norm
from keras_efficientformer.layers.v1_attention import Attention


@register
class PaddedConv(Composite):
    """3x3 stride-2 convolution and BatchNorm: the stem's two steps and the embedding between stages (paper, figure 2).

    The padding is one pixel on every side, as in PyTorch; Keras' "same" pads even sizes at the bottom and right only.

    Args:
        dim: channels out, an integer >= 1.

    Call: float tensor (batch, h, w, channels) -> (batch, ceil(h/2), ceil(w/2), dim).
    """

    def __init__(self, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_positive(dim=dim)
        self.dim = dim
        self.pad = keras.layers.ZeroPadding2D(1, data_format=CHANNELS_LAST, name="pad", dtype=self.dtype_policy)
        self.conv = conv2d(dim, 3, strides=2, name="conv", dtype=self.dtype_policy)
        self.norm = batch_norm("norm", self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        batch, height, width, channels = input_shape
        self.pad.build(input_shape)
        self.conv.build((batch, None, None, channels))
        self.norm.build((batch, halved(height), halved(width), self.dim))

    def call(self, x: Any, training: bool = False) -> Any:
        return self.norm(self.conv(self.pad(x)), training=training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, height, width, _ = input_shape
        return (batch, halved(height), halved(width), self.dim)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim}


@register
class Downsample(PaddedConv):
    """Embedding between two stages: halves the sides and sets the width (paper, section 4, "Embedding")."""


@register
class Stem(Composite):
    """Patch embedding: twice a 3x3 stride-2 convolution, BatchNorm and ReLU (paper, section 4.1, "Conv stem").

    Args:
        dim: channels out, an even integer >= 2; the first convolution has half of them.

    Call: float tensor (batch, h, w, channels) -> (batch, ceil(h/4), ceil(w/4), dim).

    Raises:
        ValueError: `dim` is odd or < 2.
    """

    def __init__(self, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if dim < 2 or dim % 2:
            raise ValueError(f"`dim` of the stem should be an even integer >= 2. Received: dim={dim}")
        self.dim = dim
        self.step1 = PaddedConv(dim // 2, name="step1", dtype=self.dtype_policy)
        self.step2 = PaddedConv(dim, name="step2", dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        self.step1.build(input_shape)
        self.step2.build(self.step1.compute_output_shape(input_shape))

    def call(self, x: Any, training: bool = False) -> Any:
        x = ops.relu(self.step1(x, training=training))
        return ops.relu(self.step2(x, training=training))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return self.step2.compute_output_shape(self.step1.compute_output_shape(input_shape))

    def get_config(self) -> dict[str, Any]:
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

    def __init__(self, pool_size: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_positive(pool_size=pool_size)
        if pool_size % 2 == 0:
            raise ValueError(f"`pool_size` should be odd. Received: pool_size={pool_size}")
        self.pool_size = pool_size

    def call(self, x: Any) -> Any:
        return ops.average_pool(x, self.pool_size, strides=1, padding="same", data_format=CHANNELS_LAST) - x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pool_size": self.pool_size}


@register
class ConvMlp(SameShape):
    """MLP of `Meta4D`: 1x1 convolution, BatchNorm, GELU, 1x1 convolution, BatchNorm (paper, equation 4).

    Args:
        dim: channels in and out, an integer >= 1.
        hidden_dim: channels between, an integer >= 1.

    Call: float tensor (batch, h, w, dim) -> the same shape.
    """

    def __init__(self, dim: int, hidden_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_positive(dim=dim, hidden_dim=hidden_dim)
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.fc1 = conv2d(hidden_dim, 1, name="fc1", dtype=self.dtype_policy)
        self.norm1 = batch_norm("norm1", self.dtype_policy)
        self.fc2 = conv2d(dim, 1, name="fc2", dtype=self.dtype_policy)
        self.norm2 = batch_norm("norm2", self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        hidden_shape = (*input_shape[:-1], self.hidden_dim)
        self.fc1.build(input_shape)
        self.norm1.build(hidden_shape)
        self.fc2.build(hidden_shape)
        self.norm2.build(input_shape)

    def call(self, x: Any, training: bool = False) -> Any:
        x = keras.activations.gelu(self.norm1(self.fc1(x), training=training))
        return self.norm2(self.fc2(x), training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim, "hidden_dim": self.hidden_dim}


@register
class Mlp(SameShape):
    """MLP of `Meta3D`: dense, GELU, dense (paper, equation 5).

    Args:
        dim: channels in and out, an integer >= 1.
        hidden_dim: channels between, an integer >= 1.

    Call: float tensor (batch, tokens, dim) -> the same shape.
    """

    def __init__(self, dim: int, hidden_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_positive(dim=dim, hidden_dim=hidden_dim)
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.fc1 = linear(hidden_dim, "fc1", self.dtype_policy)
        self.fc2 = linear(dim, "fc2", self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        self.fc1.build(input_shape)
        self.fc2.build((*input_shape[:-1], self.hidden_dim))

    def call(self, x: Any) -> Any:
        return self.fc2(keras.activations.gelu(self.fc1(x)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim, "hidden_dim": self.hidden_dim}


class _MetaBlock(SameShape):
    """Base class of both blocks: x + ls1(token_mixer(.)), then x + ls2(mlp(.)), each under stochastic depth."""

    def __init__(
        self,
        dim: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-5,
        **kwargs: Any,
    ) -> None:
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

    def get_config(self) -> dict[str, Any]:
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

    def __init__(
        self,
        dim: int,
        pool_size: int = 3,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, mlp_ratio, drop_path, layer_scale_init_value, **kwargs)
        self.pool_size = pool_size
        self.token_mixer = Pooling(pool_size, name="token_mixer", dtype=self.dtype_policy)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), name="mlp", dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        require_channels(self, input_shape, 4, self.dim)
        for layer in (self.token_mixer, self.ls1, self.drop_path1, self.mlp, self.ls2, self.drop_path2):
            layer.build(input_shape)

    def call(self, x: Any, training: bool = False) -> Any:
        x = x + self.drop_path1(self.ls1(self.token_mixer(x)), training=training)
        return x + self.drop_path2(self.ls2(self.mlp(x, training=training)), training=training)

    def get_config(self) -> dict[str, Any]:
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

    def __init__(
        self,
        dim: int,
        resolution: int | Sequence[int] = 7,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, mlp_ratio, drop_path, layer_scale_init_value, **kwargs)
        self.resolution = pair(resolution)
        self.norm1 = layer_norm("norm1", self.dtype_policy)
        self.token_mixer = Attention(dim, resolution=self.resolution, name="token_mixer", dtype=self.dtype_policy)
        self.norm2 = layer_norm("norm2", self.dtype_policy)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), name="mlp", dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        require_channels(self, input_shape, 3, self.dim)
        for layer in (self.norm1, self.token_mixer, self.ls1, self.drop_path1):
            layer.build(input_shape)
        for layer in (self.norm2, self.mlp, self.ls2, self.drop_path2):
            layer.build(input_shape)

    def call(self, x: Any, training: bool = False) -> Any:
        x = x + self.drop_path1(self.ls1(self.token_mixer(self.norm1(x))), training=training)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))), training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "resolution": self.resolution}


@register
class Stage(Composite):
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
        self,
        dim: int,
        depth: int,
        num_meta3d: int = 0,
        downsample: bool = True,
        drop_path: Sequence[float] | None = None,
        layer_scale_init_value: float = 1e-5,
        **kwargs: Any,
    ) -> None:
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
        self.blocks: list[Meta4D | Meta3D] = []

    def build(self, input_shape: Shape) -> None:
        if self.num_meta3d:
            # Of a larger feature map the tokens would become those of several images.
            self.input_spec = keras.layers.InputSpec(shape=(None, *input_shape[1:]))
        if self.downsample is not None:
            self.downsample.build(input_shape)
            input_shape = self.downsample.compute_output_shape(input_shape)
        require_channels(self, input_shape, 4, self.dim)
        batch, height, width, _ = input_shape
        # A Meta3D's bias table has the size of its token grid, which only the input's shape tells.
        # Without attention a side may be None, and the resolution is not used.
        self.resolution = cast("tuple[int, int]", (height, width))
        if self.num_meta3d and None in self.resolution:
            raise ValueError(
                f"Stage {self.name!r} has attention and needs an input of known height and width. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        for index, rate in enumerate(self.drop_path):
            settings: dict[str, Any] = {
                "drop_path": rate,
                "layer_scale_init_value": self.layer_scale_init_value,
                "name": f"blocks_{index}",
                "dtype": self.dtype_policy,
            }
            if index < self.depth - self.num_meta3d:
                block: Meta4D | Meta3D = Meta4D(self.dim, **settings)
                block.build(input_shape)
            else:
                block = Meta3D(self.dim, self.resolution, **settings)
                block.build((batch, math.prod(self.resolution), self.dim))
            self.blocks.append(block)

    def call(self, x: Any, training: bool = False) -> Any:
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

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        if self.downsample is not None:
            return self.downsample.compute_output_shape(input_shape)
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        check_savable(self)
        return {
            **super().get_config(),
            "dim": self.dim,
            "depth": self.depth,
            "num_meta3d": self.num_meta3d,
            "downsample": self.downsample is not None,
            "drop_path": self.drop_path,
            "layer_scale_init_value": self.layer_scale_init_value,
        }
