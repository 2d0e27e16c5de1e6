"""The tf_keras builder: makes the fused network as trainable Keras 2 Layers. Room: deploy/network.

tensorflow-model-optimization (tfmot) annotates and wraps Layers of a tf_keras Functional model and sees nothing else:
every operation is a Layer, named after its step, so that `gelu_12` is step 12. Weights are float32 variables; what
training must not change (the mean of the images, the biases of attention) are variables that are not trainable.

The file also reads what training has made of the weights back into a `FusedNetwork`, which every exporter takes.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tf_keras

from keras_efficientformer.deploy.network.builder import StepHooks, Tensor
from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.deploy.network.tf_keras_layers import (
    AddConstant,
    Affine,
    DepthwiseConvolution,
    Image,
    LayerNorm,
    MatMul,
    MergeHeads,
    MixHeads,
    PoolingMixer,
    Reduce,
    Resize,
    SplitHeads,
)

# Layers call the weights of a step's arguments so, where it is not the argument's own name.
_VARIABLES = {"weights": "kernel", "y": "constant"}


def build_tf_keras(network: FusedNetwork) -> tf_keras.Model:
    """The network as a trainable Functional model of tf_keras (Keras 2).

    Args:
        network: what `fuse` returned.

    Returns:
        A model from float32 images (batch, height, width, channels), raw RGB in 0..255 where the network has the
        preprocessing inside, to its output, or a list of two. Its attribute `fused_network` is `network`; copies made
        by `tf_keras.models.clone_model` or from a saved file lack it.

    Raises:
        ValueError: the network has operations that are not built here: it is a segmentation model's or of a head of
            one's own.
    """
    builder: Any = TfKerasBuilder()
    missing = {step.operation for step in network.steps if not hasattr(builder, step.operation)}
    if missing:
        raise ValueError(
            f"{network.name} has {', '.join(sorted(missing))}, for which there are no tf_keras layers: expected an "
            "EfficientFormer or EfficientFormerV2 alone. Fine-tune it in Keras instead."
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


def layer_name(operation: str, number: int) -> str:
    """The name of the layer that a step becomes: "gelu_12"."""
    return f"{operation}_{number}"


def step_of_layer(layer: tf_keras.layers.Layer) -> int | None:
    """The number of the step that a layer, wrapped or not, is named after; None for padding, input and outputs."""
    number = layer.name.rpartition("_")[2]
    return int(number) if number.isdigit() else None


def _steps(model: tf_keras.Model) -> Iterator[tuple[int, tf_keras.layers.Layer]]:
    """(number of the step, layer) of every layer that is named after one."""
    return ((number, layer) for layer in model.layers if (number := step_of_layer(layer)) is not None)


def _variable_name(variable: Any) -> str:
    return variable.name.partition(":")[0].rpartition("/")[2]


def _trained(arguments: dict[str, Any], values: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        name: values[_VARIABLES.get(name, name)].reshape(argument.shape)
        if isinstance(argument, np.ndarray)
        else argument
        for name, argument in arguments.items()
    }


class TfKerasBuilder(StepHooks):
    """Implements what of `Builder` both families need, with Layers.

    Attributes:
        input: the model's symbolic input, once `image` has been called.
    """

    def __init__(self) -> None:
        self.input: Tensor | None = None
        self._name = ""

    def begin(self, number: int, operation: str, location: str) -> None:
        self._name = layer_name(operation, number)

    def _add(
        self,
        x: Tensor | list[Tensor],
        kind: Callable[..., Any],
        *arguments: Any,
        weights: Sequence[np.ndarray | None] = (),
        **settings: Any,
    ) -> Any:
        layer = kind(*arguments, name=self._name, **settings)
        result = layer(x)
        layer.set_weights([weight for weight in weights if weight is not None])
        return result

    def image(self, height: int, width: int, channels: int, mean: np.ndarray | None) -> Tensor:
        self.input = tf_keras.Input((height, width, channels), name="image")
        return self._add(self.input, Image, mean is not None, weights=[mean])

    def convolution(self, x: Tensor, weights: np.ndarray, bias: np.ndarray, stride: int = 1) -> Tensor:
        size = weights.shape[0]
        settings = (weights.shape[3], size, stride)
        return self._add(self._padded(x, size), tf_keras.layers.Conv2D, *settings, weights=[weights, bias])

    def depthwise_convolution(self, x: Tensor, weights: np.ndarray, bias: np.ndarray, stride: int = 1) -> Tensor:
        size = weights.shape[0]
        return self._add(self._padded(x, size), DepthwiseConvolution, size, stride, weights=[weights[:, :, None], bias])

    def _padded(self, x: Tensor, size: int) -> Tensor:
        return tf_keras.layers.ZeroPadding2D(size // 2, name=f"{self._name}_padding")(x) if size > 1 else x

    def relu(self, x: Tensor) -> Tensor:
        return self._add(x, tf_keras.layers.ReLU)

    def gelu(self, x: Tensor) -> Tensor:
        return self._add(x, tf_keras.layers.Activation, "gelu")

    def pooling_mixer(self, x: Tensor, size: int, own: np.ndarray, pooled: np.ndarray) -> Tensor:
        return self._add(x, PoolingMixer, size, not np.all(own == 1), weights=[pooled, own])

    def resize(self, x: Tensor, height: int, width: int) -> Tensor:
        return self._add(x, Resize, height, width)

    def affine(self, x: Tensor, scale: np.ndarray, offset: np.ndarray | None = None) -> Tensor:
        return self._add(x, Affine, offset is not None, weights=[scale, offset])

    def add(self, x: Tensor, y: Tensor | np.ndarray) -> Tensor:
        if isinstance(y, np.ndarray):
            return self._add(x, AddConstant, weights=[y])
        return self._add([x, y], tf_keras.layers.Add)

    def tokens(self, x: Tensor) -> Tensor:
        return self._add(x, tf_keras.layers.Reshape, (x.shape[1] * x.shape[2], x.shape[3]))

    def feature_map(self, x: Tensor, height: int, width: int) -> Tensor:
        return self._add(x, tf_keras.layers.Reshape, (height, width, x.shape[2]))

    def layer_norm(self, x: Tensor, epsilon: float) -> Tensor:
        return self._add(x, LayerNorm, epsilon)

    def dense(self, x: Tensor, weights: np.ndarray, bias: np.ndarray) -> Tensor:
        return self._add(x, tf_keras.layers.Dense, weights.shape[1], weights=[weights, bias])

    def split_heads(self, x: Tensor, num_heads: int, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        return self._add(x, SplitHeads, num_heads, sizes)

    def to_heads(self, x: Tensor, num_heads: int) -> Tensor:
        (heads,) = self.split_heads(x, num_heads, (x.shape[2] // num_heads,))
        return heads

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        return self._add([query, key], MatMul, True)

    def talking_heads(self, x: Tensor, weights: np.ndarray, bias: np.ndarray) -> Tensor:
        return self._add(x, MixHeads, weights=[weights, bias])

    def weighted_values(self, weights: Tensor, value: Tensor) -> Tensor:
        return self._add([weights, value], MatMul, False)

    def merge_heads(self, x: Tensor) -> Tensor:
        return self._add(x, MergeHeads)

    def softmax(self, x: Tensor) -> Tensor:
        return self._add(x, tf_keras.layers.Softmax)

    def sigmoid(self, x: Tensor) -> Tensor:
        return self._add(x, tf_keras.layers.Activation, "sigmoid")

    def mean(self, x: Tensor) -> Tensor:
        return self._add(x, Reduce, "mean")

    def max(self, x: Tensor) -> Tensor:
        return self._add(x, Reduce, "max")

    def output(self, x: Tensor, name: str) -> Tensor:
        return tf_keras.layers.Activation("linear", name=name)(x)
