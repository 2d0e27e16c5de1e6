"""Says what of each layer quantization-aware training quantizes, and to which ranges. Room: training/compression.

That is exactly what is int8 in the file of `export_tflite(..., "int8")`.

tfmot knows a few built-in layers, quantizes a Dense per tensor and starts every range at -6..6, from which it moves by
a thousandth a batch. Here every layer has a `QuantizeConfig`, weights are quantized per channel as LiteRT has them,
and a range starts with the first batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from keras_efficientformer.deploy.network.recording import FusedNetwork, Step, Value
from keras_efficientformer.deploy.network.tf_keras_layers import (
    AddConstant,
    Affine,
    DepthwiseConvolution,
    Image,
    MixHeads,
    register,
)
from keras_efficientformer.training.compression.tfmot import load_tfmot

tfmot_keras: Any = load_tfmot().quantization.keras
Quantizer: Any = tfmot_keras.quantizers.Quantizer
QuantizeConfig: Any = tfmot_keras.QuantizeConfig
QuantizeScheme: Any = tfmot_keras.QuantizeScheme
QuantizeLayoutTransform: Any = tfmot_keras.QuantizeLayoutTransform
QuantizeRegistry: Any = tfmot_keras.QuantizeRegistry

# A moving range keeps this much of itself from batch to batch.
DECAY = 0.99
ENDS = ("min", "max")

# These operations are integer in the file, from their first input to their output. The others (LayerNorm, softmax,
# attention's products, means) are float, and quantized only where an integer operation takes their result.
INTEGER_OPERATIONS = (
    *("image", "convolution", "depthwise_convolution", "relu", "gelu", "pooling_mixer", "affine", "add", "dense"),
    "talking_heads",
)
# What these give has the range of what they take: it is the same in another shape, or of another size.
RESHAPES = ("tokens", "feature_map", "resize", "output")


class CurrentRange(Quantizer):
    """Quantizes to the range that the values have now: weights and constants, of which nothing need be learnt.

    Args:
        per_channel: symmetric, one scale for each of the last axis, as weights have; else one range, zero included.
    """

    def __init__(self, per_channel: bool) -> None:
        self.per_channel = per_channel

    def build(self, tensor_shape: Any, name: str, layer: tf_keras.layers.Layer) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        if self.per_channel:
            limit = tf.stop_gradient(tf.reduce_max(tf.abs(inputs), axis=tuple(range(inputs.shape.rank - 1))))
            return tf.quantization.fake_quant_with_min_max_vars_per_channel(inputs, -limit, limit, narrow_range=True)
        return tf.quantization.fake_quant_with_min_max_vars(inputs, *map(tf.stop_gradient, _ends(inputs)))

    def get_config(self) -> dict[str, Any]:
        return {"per_channel": self.per_channel}


class LearntRange(Quantizer):
    """Quantizes to a moving average of the batches' smallest and largest values, zero included.

    The first batch sets the range; until then values pass as they are.

    Args:
        point: what the variables are called after, so that those of one layer can be told apart.
    """

    def __init__(self, point: str) -> None:
        self.point = point

    def build(self, tensor_shape: Any, name: str, layer: tf_keras.layers.Layer) -> dict[str, Any]:
        return {end: layer.add_weight(f"{self.point}_{end}", (), initializer="zeros", trainable=False) for end in ENDS}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        low, high = (weights[end] for end in ENDS)
        if training:
            decay = tf.where(high > low, DECAY, 0.0)
            new_low, new_high = _ends(inputs)
            low = low.assign(decay * low + (1 - decay) * new_low)
            high = high.assign(decay * high + (1 - decay) * new_high)
        return tf.where(high > low, tf.quantization.fake_quant_with_min_max_vars(inputs, low, high), inputs)

    def get_config(self) -> dict[str, Any]:
        return {"point": self.point}


def _ends(values: Any) -> tuple[Any, Any]:
    """The smallest and the largest of values and zero."""
    return tf.minimum(tf.reduce_min(values), 0.0), tf.maximum(tf.reduce_max(values), 0.0)


# Raw images are whole numbers in 0..255, and stay so.
PIXELS = tfmot_keras.quantizers.FixedQuantizer(num_bits=8, init_min=0.0, init_max=255.0, narrow_range=False)


@register
class LayerQuantization(QuantizeConfig):
    """What of one layer is quantized, and how.

    Args:
        weights: {attribute: "channels" or "whole"}, per channel or with one range for all.
        points: {attribute: "learnt", "whole" or "pixels"}, inner results in the order in which the layer makes them.
        output: whether the layer's result is.
    """

    def __init__(self, weights: dict[str, str], points: dict[str, str], output: bool) -> None:
        self.weights = weights
        self.points = points
        self.output = output

    def get_weights_and_quantizers(self, layer: tf_keras.layers.Layer) -> list[tuple[Any, Any]]:
        return [(getattr(layer, name), CurrentRange(how == "channels")) for name, how in self.weights.items()]

    def get_activations_and_quantizers(self, layer: tf_keras.layers.Layer) -> list[tuple[Any, Any]]:
        made: dict[str, Callable[[str], Any]] = {
            "learnt": LearntRange,
            "whole": lambda _: CurrentRange(False),
            "pixels": lambda _: PIXELS,
        }
        return [(getattr(layer, name), made[how](name)) for name, how in self.points.items()]

    def set_quantize_weights(self, layer: tf_keras.layers.Layer, quantize_weights: Sequence[Any]) -> None:
        for name, weight in zip(self.weights, quantize_weights, strict=True):
            setattr(layer, name, weight)

    def set_quantize_activations(self, layer: tf_keras.layers.Layer, quantize_activations: Sequence[Any]) -> None:
        for name, activation in zip(self.points, quantize_activations, strict=True):
            setattr(layer, name, activation)

    def get_output_quantizers(self, layer: tf_keras.layers.Layer) -> list[Any]:
        return [LearntRange("output")] if self.output else []

    def get_config(self) -> dict[str, Any]:
        return {"weights": self.weights, "points": self.points, "output": self.output}


def quantization_of(layer: tf_keras.layers.Layer, output: bool) -> LayerQuantization | None:
    """What is quantized of a layer of `build_tf_keras`, or None.

    Args:
        layer: the layer, built.
        output: whether its result is quantized, which depends on the layers around (`quantized_steps`).
    """
    weights, points = {}, {}
    if isinstance(layer, tf_keras.layers.Conv2D | tf_keras.layers.Dense | DepthwiseConvolution | MixHeads):
        weights = {"kernel": "channels"}
    elif isinstance(layer, AddConstant):
        points = {"table": "whole"} if output else {}
    elif isinstance(layer, Affine):
        weights = {"scale": "whole"} | ({"offset": "whole"} if layer.has_offset else {})
        points = {"scaled": "learnt"} if layer.has_offset else {}
    elif isinstance(layer, Image):
        points = {"pixels": "pixels", "constant": "whole"} if layer.has_mean else {"pixels": "learnt"}
        output = layer.has_mean
    return LayerQuantization(weights, points, output) if weights or points or output else None


def quantized_steps(network: FusedNetwork) -> set[int]:
    """Numbers of the steps whose result is quantized in an int8 file.

    Raises:
        ValueError: a pooling mixer has other windows than 3x3, of which the file quantizes more.
    """
    sizes = {step.arguments["size"] for step in network.steps if step.operation == "pooling_mixer"} - {3}
    if sizes:
        raise ValueError(
            f"{network.name} has pooling mixers of the sizes {sorted(sizes)}: quantization-aware training knows those "
            "of 3x3 pixels only. Export the model with calibration images instead."
        )
    steps = network.steps
    makers = {result: number for number, step in enumerate(steps) for result in step.results}

    def origin(value: Value) -> int:
        """The number of the step that gave a value the range that it has."""
        step = steps[makers[value]]
        return origin(step.arguments["x"]) if step.operation in RESHAPES else makers[value]

    integer = [number for number, step in enumerate(steps) if _is_integer(step, lambda value: steps[makers[value]])]
    quantized = set(integer)
    for number in integer:
        taken = {origin(value) for value in steps[number].arguments.values() if isinstance(value, Value)}
        # A relu becomes a part of the convolution before it.
        quantized = quantized - taken if steps[number].operation == "relu" else quantized | taken
    return quantized


def _is_integer(step: Step, maker: Callable[[Value], Step]) -> bool:
    """Whether the file computes a step in integers; `maker` gives the step that made a value."""
    if isinstance(step.arguments.get("y"), np.ndarray):
        # Attention's biases are added to scores: a product, which is float, or what talking heads made of it.
        return maker(step.arguments["x"]).operation == "talking_heads"
    return step.operation in INTEGER_OPERATIONS


class Scheme(QuantizeScheme):
    """Quantizes what is annotated and changes nothing else: tfmot's own transformations merge BatchNorm and ReLU."""

    def get_layout_transformer(self) -> Any:
        return _KeepLayout()

    def get_quantize_registry(self) -> Any:
        return _NoDefaults()


class _KeepLayout(QuantizeLayoutTransform):
    """Changes nothing of the model."""

    def apply(self, model: tf_keras.Model, layer_quantize_map: Any) -> tuple[tf_keras.Model, Any]:
        return model, layer_quantize_map


class _NoDefaults(QuantizeRegistry):
    """Quantizes no layer by itself: each that is annotated has a `QuantizeConfig`."""

    def supports(self, layer: tf_keras.layers.Layer) -> bool:
        return False

    def get_quantize_config(self, layer: tf_keras.layers.Layer) -> Any:
        raise AssertionError(f"{layer.name} is annotated without a QuantizeConfig")
