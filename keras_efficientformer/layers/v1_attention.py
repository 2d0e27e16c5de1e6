"""The attention layer of EfficientFormer (arXiv 2206.01191, equation 6). Room: layers."""

from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_efficientformer.layers.common import (
    BiasedAttention,
    SameShape,
    Shape,
    linear,
    register,
    relative_positions,
    require_channels,
)


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

    def __init__(
        self,
        dim: int,
        key_dim: int = 32,
        num_heads: int = 8,
        attn_ratio: float = 4,
        resolution: int | Sequence[int] = 7,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, key_dim, num_heads, attn_ratio, resolution, **kwargs)
        self.qkv = linear(num_heads * (2 * key_dim + self.value_dim), "qkv", self.dtype_policy)
        self.proj = linear(dim, "proj", self.dtype_policy)
        self.positions = relative_positions(self.resolution).astype("int32")

    def build(self, input_shape: Shape) -> None:
        require_channels(self, input_shape, 3, self.dim)
        tokens = self.resolution[0] * self.resolution[1]
        if input_shape[1] != tokens:
            raise ValueError(
                f"Attention {self.name!r} has a resolution of {self.resolution}, so {tokens} tokens. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.qkv.build(input_shape)
        self.proj.build((*input_shape[:-1], self.num_heads * self.value_dim))
        self._add_table(input_shape)

    def call(self, x: Any) -> Any:
        tokens = x.shape[1]
        qkv = ops.reshape(self.qkv(x), (-1, tokens, self.num_heads, 2 * self.key_dim + self.value_dim))
        q, k, v = ops.split(ops.transpose(qkv, (0, 2, 1, 3)), (self.key_dim, 2 * self.key_dim), axis=-1)
        bias = ops.take(self.attention_biases, self.positions, axis=1)
        weights = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) * self.key_dim**-0.5 + bias)
        heads = ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3))
        return self.proj(ops.reshape(heads, (-1, tokens, self.num_heads * self.value_dim)))
