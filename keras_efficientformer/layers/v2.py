"""The layers of EfficientFormerV2 (arXiv 2212.08059), except its attentions. Room: layers.

Layer scale and stochastic depth, which both families share, are in `common`, the attentions in `v2_attention`.
Attribute names are those of timm's efficientformer_v2.py. All layers are channels-last and run on every Keras backend.
"""

from collections.abc import Sequence
from typing import Any, cast

import keras

from keras_efficientformer.layers.common import (
    Composite,
    LayerScale,
    SameShape,
    Shape,
    StochasticDepth,
    pair,
    register,
    require_channels,
    require_positive,
)
from keras_efficientformer.layers.keras_quantization import check_savable
from keras_efficientformer.layers.v2_attention import STRIDE, AttentionDownsample, AttentionV2, ConvNorm


@register
class StemV2(Composite):
    """Patch embedding: twice a 3x3 stride-2 convolution, BatchNorm and GELU (paper, section 3.1).

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
        self.conv1 = ConvNorm(dim // 2, 3, 2, name="conv1", dtype=self.dtype_policy)
        self.conv2 = ConvNorm(dim, 3, 2, name="conv2", dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        self.conv1.build(input_shape)
        self.conv2.build(self.conv1.compute_output_shape(input_shape))

    def call(self, x: Any, training: bool = False) -> Any:
        x = keras.activations.gelu(self.conv1(x, training=training))
        return keras.activations.gelu(self.conv2(x, training=training))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return self.conv2.compute_output_shape(self.conv1.compute_output_shape(input_shape))

    def get_config(self) -> dict[str, Any]:
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

    def __init__(self, dim: int, hidden_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_positive(dim=dim, hidden_dim=hidden_dim)
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.fc1 = ConvNorm(hidden_dim, name="fc1", dtype=self.dtype_policy)
        self.mid = ConvNorm(hidden_dim, 3, depthwise=True, name="mid", dtype=self.dtype_policy)
        self.fc2 = ConvNorm(dim, name="fc2", dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        hidden_shape = (*input_shape[:-1], self.hidden_dim)
        self.fc1.build(input_shape)
        self.mid.build(hidden_shape)
        self.fc2.build(hidden_shape)

    def call(self, x: Any, training: bool = False) -> Any:
        x = keras.activations.gelu(self.fc1(x, training=training))
        x = keras.activations.gelu(self.mid(x, training=training))
        return self.fc2(x, training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim, "hidden_dim": self.hidden_dim}


@register
class DownsampleV2(Composite):
    """Embedding between two stages: a strided convolution, and beside it attention (paper, section 3.5, "dual-path").

    Args:
        dim: channels out, an integer >= 1.
        attention: whether it has the second path (reference: before the last stage).

    Call: float tensor (batch, h, w, channels) -> (batch, ceil(h/2), ceil(w/2), dim).
    """

    def __init__(self, dim: int, attention: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim = dim
        self.attention = attention
        self.conv = ConvNorm(dim, 3, STRIDE, name="conv", dtype=self.dtype_policy)
        self.attn: AttentionDownsample | None = None

    def build(self, input_shape: Shape) -> None:
        self.conv.build(input_shape)
        if self.attention:
            # `StageV2` has refused unknown sides, and `conv` an unknown number of channels.
            _, height, width, channels = cast("tuple[int, int, int, int]", input_shape)
            self.attn = AttentionDownsample(
                channels, self.dim, resolution=(height, width), name="attn", dtype=self.dtype_policy
            )
            self.attn.build(input_shape)

    def call(self, x: Any, training: bool = False) -> Any:
        embedded = self.conv(x, training=training)
        return embedded if self.attn is None else self.attn(x, training=training) + embedded

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return self.conv.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
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
        dim: int,
        mlp_ratio: float = 4.0,
        attention: bool = False,
        strided: bool = False,
        resolution: int | Sequence[int] = 7,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-5,
        **kwargs: Any,
    ) -> None:
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
        self.token_mixer: AttentionV2 | None = None
        if attention:
            self.token_mixer = AttentionV2(
                dim, resolution=self.resolution, strided=strided, name="token_mixer", dtype=policy
            )
            self.ls1 = LayerScale(layer_scale_init_value, name="ls1", dtype=policy)
            self.drop_path1 = StochasticDepth(drop_path, name="drop_path1", dtype=policy)
        self.mlp = UnifiedFFN(dim, int(dim * mlp_ratio), name="mlp", dtype=policy)
        self.ls2 = LayerScale(layer_scale_init_value, name="ls2", dtype=policy)
        self.drop_path2 = StochasticDepth(drop_path, name="drop_path2", dtype=policy)

    def build(self, input_shape: Shape) -> None:
        require_channels(self, input_shape, 4, self.dim)
        if self.token_mixer is not None:
            for layer in (self.token_mixer, self.ls1, self.drop_path1):
                layer.build(input_shape)
        for layer in (self.mlp, self.ls2, self.drop_path2):
            layer.build(input_shape)

    def call(self, x: Any, training: bool = False) -> Any:
        if self.token_mixer is not None:
            x = x + self.drop_path1(self.ls1(self.token_mixer(x, training=training)), training=training)
        return x + self.drop_path2(self.ls2(self.mlp(x, training=training)), training=training)

    def get_config(self) -> dict[str, Any]:
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
class StageV2(Composite):
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
        dim: int,
        mlp_ratios: Sequence[float],
        num_attention: int = 0,
        strided: bool = False,
        downsample: str | None = "convolution",
        drop_path: Sequence[float] | None = None,
        layer_scale_init_value: float = 1e-5,
        **kwargs: Any,
    ) -> None:
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
        self.downsample: DownsampleV2 | None = None
        if downsample is not None:
            self.downsample = DownsampleV2(
                dim, attention=downsample == "dual-path", name="downsample", dtype=self.dtype_policy
            )
        self._downsample = downsample
        self.blocks: list[BlockV2] = []

    def build(self, input_shape: Shape) -> None:
        self._check_sides(input_shape)
        if self.downsample is not None:
            self.downsample.build(input_shape)
            input_shape = self.downsample.compute_output_shape(input_shape)
        require_channels(self, input_shape, 4, self.dim)
        settings: dict[str, Any] = {"layer_scale_init_value": self.layer_scale_init_value, "dtype": self.dtype_policy}
        for index, (mlp_ratio, drop_path) in enumerate(zip(self.mlp_ratios, self.drop_path, strict=True)):
            if index >= self.depth - self.num_attention:
                # An attention's bias table has the size of its grid, which only the input's shape tells.
                settings |= {"attention": True, "strided": self.strided, "resolution": input_shape[1:3]}
            block = BlockV2(self.dim, mlp_ratio, drop_path=drop_path, name=f"blocks_{index}", **settings)
            block.build(input_shape)
            self.blocks.append(block)

    def _check_sides(self, input_shape: Shape) -> None:
        attention = self.num_attention or self._downsample == "dual-path"
        if attention and None in tuple(input_shape[1:3]):
            raise ValueError(
                f"Stage {self.name!r} has attention and needs an input of known height and width. "
                f"Received: input_shape={tuple(input_shape)}"
            )

    def call(self, x: Any, training: bool = False) -> Any:
        if self.downsample is not None:
            x = self.downsample(x, training=training)
        for block in self.blocks:
            x = block(x, training=training)
        return x

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        if self.downsample is not None:
            return self.downsample.compute_output_shape(input_shape)
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        check_savable(self)
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
