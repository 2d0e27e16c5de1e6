"""The tf_keras (Keras 2) Layers that the fused network is built of where Keras 2 has none. Room: deploy/network."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras

register = tf_keras.utils.register_keras_serializable(package="keras_efficientformer")


class _Layer(tf_keras.layers.Layer):
    """A layer some of whose inner results are tensors of their own in a TFLite file.

    `points` names them, in the order they are made: each is an attribute, the identity until a tfmot wrapper puts a
    quantization in its place.
    """

    points: tuple[str, ...] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for point in self.points:
            setattr(self, point, tf_keras.activations.linear)


@register
class Image(_Layer):
    """The image, less its mean where `has_mean`. Weight: mean (channels,), in the image's units; not trainable."""

    points = ("pixels", "constant")

    def __init__(self, has_mean: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.has_mean = has_mean

    def build(self, input_shape: Any) -> None:
        if self.has_mean:
            self.mean = self.add_weight("mean", (input_shape[-1],), trainable=False)

    def call(self, x: Any) -> Any:
        x = self.pixels(x)
        return x - self.constant(self.mean) if self.has_mean else x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "has_mean": self.has_mean}


@register
class PoolingMixer(tf_keras.layers.Layer):
    """`Builder.pooling_mixer`. Weights: pooled (channels,) and own (channels,), trainable where `trains_own`."""

    def __init__(self, size: int, trains_own: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size
        self.trains_own = trains_own

    def build(self, input_shape: Any) -> None:
        # The order matters, because a layer lists what is not trained last.
        self.pooled = self.add_weight("pooled", (input_shape[-1],))
        self.own = self.add_weight("own", (input_shape[-1],), trainable=self.trains_own)

    def call(self, x: Any) -> Any:
        return x * self.own + tf.nn.avg_pool2d(x, self.size, 1, "SAME") * self.pooled

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "size": self.size, "trains_own": self.trains_own}


@register
class Affine(_Layer):
    """x * scale, plus offset where `has_offset`. Weights: scale (channels,), offset (channels,)."""

    points = ("scaled",)

    def __init__(self, has_offset: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.has_offset = has_offset

    def build(self, input_shape: Any) -> None:
        self.scale = self.add_weight("scale", (input_shape[-1],))
        if self.has_offset:
            self.offset = self.add_weight("offset", (input_shape[-1],))

    def call(self, x: Any) -> Any:
        x = x * self.scale
        return self.scaled(x) + self.offset if self.has_offset else x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "has_offset": self.has_offset}


@register
class AddConstant(_Layer):
    """Adds the weight `constant`, of a sample's shape with a batch of one before it; not trainable."""

    points = ("table",)

    def build(self, input_shape: Any) -> None:
        self.constant = self.add_weight("constant", (1, *input_shape[1:]), trainable=False)

    def call(self, x: Any) -> Any:
        return x + self.table(self.constant)


@register
class DepthwiseConvolution(tf_keras.layers.Layer):
    """`Builder.depthwise_convolution` of an image that is padded already.

    Weights: kernel (size, size, 1, channels), whose last axis is that of the channels as in every kernel here, and bias
    (channels,).
    """

    def __init__(self, size: int, stride: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size
        self.stride = stride

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight("kernel", (self.size, self.size, 1, input_shape[-1]))
        self.bias = self.add_weight("bias", (input_shape[-1],))

    def call(self, x: Any) -> Any:
        strides = (1, self.stride, self.stride, 1)
        return tf.nn.depthwise_conv2d(x, tf.transpose(self.kernel, (0, 1, 3, 2)), strides, "VALID") + self.bias

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "size": self.size, "stride": self.stride}


@register
class Resize(tf_keras.layers.Layer):
    """`Builder.resize`."""

    def __init__(self, height: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.height = height
        self.width = width

    def call(self, x: Any) -> Any:
        return tf.image.resize(x, (self.height, self.width))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "height": self.height, "width": self.width}


@register
class LayerNorm(_Layer):
    """`Builder.layer_norm`. No weights; in float in all modes that are trained for."""

    def __init__(self, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def call(self, x: Any) -> Any:
        centred = x - tf.reduce_mean(x, -1, keepdims=True)
        return centred * tf.math.rsqrt(tf.reduce_mean(centred * centred, -1, keepdims=True) + self.epsilon)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


@register
class SplitHeads(tf_keras.layers.Layer):
    """`Builder.split_heads`: tokens -> one tensor (batch, heads, tokens, size) for each of `sizes`."""

    def __init__(self, num_heads: int, sizes: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.sizes = tuple(sizes)

    def call(self, x: Any) -> Any:
        heads = tf.reshape(x, (-1, x.shape[1], self.num_heads, sum(self.sizes)))
        return tuple(tf.split(tf.transpose(heads, (0, 2, 1, 3)), self.sizes, axis=-1))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_heads": self.num_heads, "sizes": self.sizes}


@register
class MatMul(tf_keras.layers.Layer):
    """The product of two per-head tensors, the second one transposed where `transpose`."""

    def __init__(self, transpose: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.transpose = transpose

    def call(self, pair: Sequence[Any]) -> Any:
        return tf.matmul(*pair, transpose_b=self.transpose)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "transpose": self.transpose}


@register
class MixHeads(tf_keras.layers.Layer):
    """`Builder.talking_heads`. Weights: kernel (heads in, heads out), bias (heads out,)."""

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight("kernel", (input_shape[1], input_shape[1]))
        self.bias = self.add_weight("bias", (input_shape[1],))

    def call(self, x: Any) -> Any:
        return tf.einsum("bhqk,hg->bgqk", x, self.kernel) + self.bias[:, None, None]


@register
class MergeHeads(tf_keras.layers.Layer):
    """`Builder.merge_heads`: (batch, heads, tokens, channels) -> (batch, tokens, heads * channels)."""

    def call(self, x: Any) -> Any:
        _, heads, tokens, channels = x.shape
        return tf.reshape(tf.transpose(x, (0, 2, 1, 3)), (-1, tokens, heads * channels))


@register
class Reduce(tf_keras.layers.Layer):
    """The "mean" or "max" over all positions."""

    def __init__(self, how: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.how = how

    def call(self, x: Any) -> Any:
        reduce = {"mean": tf.reduce_mean, "max": tf.reduce_max}[self.how]
        return reduce(x, axis=tuple(range(1, len(x.shape) - 1)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "how": self.how}
