"""The tf_keras builder: makes the fused network as Keras 2 Layers, which tensorflow-model-optimization can train.

tfmot annotates and wraps Layers of a tf_keras Functional model and sees nothing else, so every operation is a Layer,
named after its step: `gelu_12` is step 12. Weights are float32 variables; what training must not change (the image's
mean and the attention's biases) are variables that are not trainable.

The file also reads what training has made of the weights back into a `FusedNetwork`, which every exporter takes.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from keras_efficientformer.deploy.recording import FusedNetwork

# What layers call the weights of a step's arguments, where it is not the argument's own name.
_VARIABLES = {"weights": "kernel", "y": "constant"}

register = tf_keras.utils.register_keras_serializable(package="keras_efficientformer")


def build_tf_keras(network: FusedNetwork) -> tf_keras.Model:
    """The network as a trainable Functional model of tf_keras (Keras 2).

    Args:
        network: what `fuse` returned.

    Returns:
        A model from float32 images (batch, height, width, channels), raw RGB in 0..255 where the network has the
        preprocessing inside, to its output, or a list of two. Its attribute `fused_network` is `network`; copies made
        by `tf_keras.models.clone_model` or from a saved file lack it.

    Raises:
        ValueError: the network has operations that are not built here: it is an EfficientFormerV2's.
    """
    builder: Any = TfKerasBuilder()
    missing = {step.operation for step in network.steps if not hasattr(builder, step.operation)}
    if missing:
        raise ValueError(
            f"{network.name} has {', '.join(sorted(missing))}, for which there are no tf_keras layers: expected an "
            "EfficientFormer of the first family. Fine-tune it in Keras instead."
        )
    outputs = list(network.build(builder).values())
    model = tf_keras.Model(builder.input, outputs[0] if len(outputs) == 1 else outputs, name=network.name)
    model.fused_network = network
    return model


def trained_network(model: tf_keras.Model) -> FusedNetwork:
    """The network of a model that `build_tf_keras` made, with the weights that the model, wrapped or not, has now.

    Raises:
        ValueError: the model is another one, or training has left weights that are not finite.
    """
    network = getattr(model, "fused_network", None)
    if network is None:
        raise ValueError(
            f"{model.name!r} is a tf_keras model without a fused network: expected what quantize_aware, "
            "prune_low_magnitude or strip_pruning returned. They are not kept in a saved file or a clone: make the "
            "model again, load its weights, and pass that."
        )
    values = {
        number: {_variable_name(weight): weight.numpy() for weight in layer.weights} for number, layer in _steps(model)
    }
    wrong = [name for number, layer in values.items() for name, value in layer.items() if not np.isfinite(value).all()]
    if wrong:
        raise ValueError(f"{model.name} has {len(wrong)} weights that are NaN or infinite: train it with a lower rate.")
    steps = (
        dataclasses.replace(step, arguments=_trained(step.arguments, values.get(number, {})))
        for number, step in enumerate(network.steps)
    )
    return dataclasses.replace(network, steps=tuple(steps))


def trained_ranges(model: tf_keras.Model) -> dict[int, list[tuple[float, float]]]:
    """What quantization-aware training has learnt about activations.

    Returns:
        {number of the step: [(smallest, largest) of each tensor it makes that is quantized, in the order they are
        made]}; empty where the model is not quantization-aware.

    Raises:
        ValueError: the model is quantization-aware and has not been trained for a single batch.
    """
    ranges = {}
    for number, layer in _steps(model):
        ends = {_variable_name(weight): float(weight.numpy()) for weight in layer.weights if not weight.shape.rank}
        points = [name.removesuffix("_min") for name in ends if name.endswith("_min")]
        if points:
            ranges[number] = [(ends[f"{point}_min"], ends[f"{point}_max"]) for point in points]
    if ranges and not any(high > low for points in ranges.values() for low, high in points):
        raise ValueError(
            f"{model.name} has not seen a batch of images, so it knows no ranges of activations: train it with "
            "compile(...) and fit(...) first."
        )
    return ranges


def _steps(model):
    """(number of the step, layer) of every layer that is named after one."""
    for layer in model.layers:
        number = layer.name.rpartition("_")[2]
        if number.isdigit():
            yield int(number), layer


def _variable_name(variable):
    return variable.name.partition(":")[0].rpartition("/")[2]


def _trained(arguments, values):
    return {
        name: values[_VARIABLES.get(name, name)] if isinstance(argument, np.ndarray) else argument
        for name, argument in arguments.items()
    }


class TfKerasBuilder:
    """Implements what of `Builder` the first family needs, with Layers.

    Attributes:
        input: the model's symbolic input, once `image` has been called.
    """

    def __init__(self):
        self.input = None
        self._count = 0

    def _add(self, x, operation, kind, *arguments, weights=(), **settings):
        layer = kind(*arguments, name=f"{operation}_{self._count}", **settings)
        self._count += 1
        result = layer(x)
        layer.set_weights([weight for weight in weights if weight is not None])
        return result

    def image(self, height, width, channels, mean):
        self.input = tf_keras.Input((height, width, channels), name="image")
        return self._add(self.input, "image", Image, mean is not None, weights=[mean])

    def convolution(self, x, weights, bias, stride=1):
        size = weights.shape[0]
        if size > 1:
            x = tf_keras.layers.ZeroPadding2D(size // 2, name=f"convolution_{self._count}_padding")(x)
        return self._add(
            x, "convolution", tf_keras.layers.Conv2D, weights.shape[3], size, stride, weights=[weights, bias]
        )

    def relu(self, x):
        return self._add(x, "relu", tf_keras.layers.ReLU)

    def gelu(self, x):
        return self._add(x, "gelu", tf_keras.layers.Activation, "gelu")

    def pooling_mixer(self, x, size, own, pooled):
        return self._add(x, "pooling_mixer", PoolingMixer, size, not np.all(own == 1), weights=[pooled, own])

    def affine(self, x, scale, offset=None):
        return self._add(x, "affine", Affine, offset is not None, weights=[scale, offset])

    def add(self, x, y):
        if isinstance(y, np.ndarray):
            return self._add(x, "add", AddConstant, weights=[y])
        return self._add([x, y], "add", tf_keras.layers.Add)

    def tokens(self, x):
        return self._add(x, "tokens", tf_keras.layers.Reshape, (x.shape[1] * x.shape[2], x.shape[3]))

    def feature_map(self, x, height, width):
        return self._add(x, "feature_map", tf_keras.layers.Reshape, (height, width, x.shape[2]))

    def layer_norm(self, x, epsilon):
        return self._add(x, "layer_norm", LayerNorm, epsilon)

    def dense(self, x, weights, bias):
        return self._add(x, "dense", tf_keras.layers.Dense, weights.shape[1], weights=[weights, bias])

    def split_heads(self, x, num_heads, sizes):
        return self._add(x, "split_heads", SplitHeads, num_heads, sizes)

    def scores(self, query, key):
        return self._add([query, key], "scores", MatMul, True)

    def weighted_values(self, weights, value):
        return self._add([weights, value], "weighted_values", MatMul, False)

    def merge_heads(self, x):
        return self._add(x, "merge_heads", MergeHeads)

    def softmax(self, x):
        return self._add(x, "softmax", tf_keras.layers.Softmax)

    def sigmoid(self, x):
        return self._add(x, "sigmoid", tf_keras.layers.Activation, "sigmoid")

    def mean(self, x):
        return self._add(x, "mean", Reduce, "mean")

    def max(self, x):
        return self._add(x, "max", Reduce, "max")

    def output(self, x, name):
        self._count += 1
        return tf_keras.layers.Activation("linear", name=name)(x)


class _Layer(tf_keras.layers.Layer):
    """A layer some of whose inner results are tensors of their own in a TFLite file.

    `points` names them, in the order they are made: each is an attribute, the identity until a tfmot wrapper puts a
    quantization in its place.
    """

    points: tuple[str, ...] = ()

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        for point in self.points:
            setattr(self, point, tf_keras.activations.linear)


@register
class Image(_Layer):
    """The image, less its mean where `has_mean`. Weight: mean (channels,), in the image's units; not trainable."""

    points = ("pixels", "constant")

    def __init__(self, has_mean, **kwargs):
        super().__init__(**kwargs)
        self.has_mean = has_mean

    def build(self, input_shape):
        if self.has_mean:
            self.mean = self.add_weight("mean", (input_shape[-1],), trainable=False)

    def call(self, x):
        x = self.pixels(x)
        return x - self.constant(self.mean) if self.has_mean else x

    def get_config(self):
        return {**super().get_config(), "has_mean": self.has_mean}


@register
class PoolingMixer(tf_keras.layers.Layer):
    """`Builder.pooling_mixer`. Weights: pooled (channels,) and own (channels,), trainable where `trains_own`."""

    def __init__(self, size, trains_own, **kwargs):
        super().__init__(**kwargs)
        self.size = size
        self.trains_own = trains_own

    def build(self, input_shape):
        # In this order: a layer lists what is not trained last.
        self.pooled = self.add_weight("pooled", (input_shape[-1],))
        self.own = self.add_weight("own", (input_shape[-1],), trainable=self.trains_own)

    def call(self, x):
        return x * self.own + tf.nn.avg_pool2d(x, self.size, 1, "SAME") * self.pooled

    def get_config(self):
        return {**super().get_config(), "size": self.size, "trains_own": self.trains_own}


@register
class Affine(_Layer):
    """x * scale, plus offset where `has_offset`. Weights: scale (channels,), offset (channels,)."""

    points = ("scaled",)

    def __init__(self, has_offset, **kwargs):
        super().__init__(**kwargs)
        self.has_offset = has_offset

    def build(self, input_shape):
        self.scale = self.add_weight("scale", (input_shape[-1],))
        if self.has_offset:
            self.offset = self.add_weight("offset", (input_shape[-1],))

    def call(self, x):
        x = x * self.scale
        return self.scaled(x) + self.offset if self.has_offset else x

    def get_config(self):
        return {**super().get_config(), "has_offset": self.has_offset}


@register
class AddConstant(tf_keras.layers.Layer):
    """Adds the weight `constant`, of a sample's shape with a batch of one before it; not trainable."""

    def build(self, input_shape):
        self.constant = self.add_weight("constant", (1, *input_shape[1:]), trainable=False)

    def call(self, x):
        return x + self.constant


@register
class LayerNorm(_Layer):
    """`Builder.layer_norm`. No weights; in float in all modes that are trained for."""

    def __init__(self, epsilon, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def call(self, x):
        centred = x - tf.reduce_mean(x, -1, keepdims=True)
        return centred * tf.math.rsqrt(tf.reduce_mean(centred * centred, -1, keepdims=True) + self.epsilon)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


@register
class SplitHeads(tf_keras.layers.Layer):
    """`Builder.split_heads`: tokens -> one tensor (batch, heads, tokens, size) for each of `sizes`."""

    def __init__(self, num_heads, sizes, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.sizes = tuple(sizes)

    def call(self, x):
        heads = tf.reshape(x, (-1, x.shape[1], self.num_heads, sum(self.sizes)))
        return tuple(tf.split(tf.transpose(heads, (0, 2, 1, 3)), self.sizes, axis=-1))

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads, "sizes": self.sizes}


@register
class MatMul(tf_keras.layers.Layer):
    """The product of two per-head tensors, the second one transposed where `transpose`."""

    def __init__(self, transpose, **kwargs):
        super().__init__(**kwargs)
        self.transpose = transpose

    def call(self, pair):
        return tf.matmul(*pair, transpose_b=self.transpose)

    def get_config(self):
        return {**super().get_config(), "transpose": self.transpose}


@register
class MergeHeads(tf_keras.layers.Layer):
    """`Builder.merge_heads`: (batch, heads, tokens, channels) -> (batch, tokens, heads * channels)."""

    def call(self, x):
        _, heads, tokens, channels = x.shape
        return tf.reshape(tf.transpose(x, (0, 2, 1, 3)), (-1, tokens, heads * channels))


@register
class Reduce(tf_keras.layers.Layer):
    """The "mean" or "max" over all positions."""

    def __init__(self, how, **kwargs):
        super().__init__(**kwargs)
        self.how = how

    def call(self, x):
        reduce = {"mean": tf.reduce_mean, "max": tf.reduce_max}[self.how]
        return reduce(x, axis=tuple(range(1, len(x.shape) - 1)))

    def get_config(self):
        return {**super().get_config(), "how": self.how}
