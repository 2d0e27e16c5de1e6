"""Records single standard Keras layers in `Builder`'s operations: what heads are made of. Room: deploy/network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_efficientformer.deploy.network.folding import array, scale_and_offset
from keras_efficientformer.deploy.network.recording import Recorder, Value
from keras_efficientformer.layers.predictions import Predictions

# {activation: its operation in a builder, None where it does nothing}.
HEAD_ACTIVATIONS = {"linear": None, "relu": "relu", "gelu": "gelu", "sigmoid": "sigmoid", "softmax": "softmax"}


@dataclass(frozen=True)
class Features:
    """The last norm's output, which costs less where only its mean is wanted.

    Attributes:
        value: the features, to which the norm's scale and offset have not been applied.
        scale, offset: (channels,) of the norm.
        are_tokens: whether the value is tokens; else it is a feature map.
    """

    value: Value
    scale: np.ndarray
    offset: np.ndarray
    are_tokens: bool

    def feature_map(self, b: Recorder, sides: tuple[int, int]) -> Value:
        """The output itself, a feature map of (height, width)."""
        x = b.affine(self.value, self.scale, self.offset)
        return b.feature_map(x, *sides) if self.are_tokens else x

    def mean(self, b: Recorder) -> Value:
        """Its mean over all positions, a vector."""
        return b.affine(b.mean(self.value), self.scale, self.offset)


@dataclass(frozen=True)
class Call:
    """A layer that is called.

    Attributes:
        b: records at the layer's place.
        layer: it.
        values: what it is called on.
        all_taken, given: shapes of those and of what comes out, without the batch.
        is_shared: whether others are called on the same.
        norm: the BatchNormalization that is to be folded into it, or None.
    """

    b: Recorder
    layer: Any
    values: tuple[Value, ...]
    all_taken: Sequence[tuple[int, ...]]
    given: tuple[int, ...]
    is_shared: bool
    norm: Any

    @property
    def x(self) -> Value:
        return self.values[0]

    @property
    def taken(self) -> tuple[int, ...]:
        """The shape of `x`, without the batch."""
        return self.all_taken[0]

    def refuse(self, setting: str, found: Any, expected: str) -> None:
        """Raises ValueError for a setting of the layer that no builder has."""
        name = f"{self.layer.name}, {type(self.layer).__name__}"
        raise ValueError(f"{name}, cannot be exported with {setting}={found!r}: expected {expected}.")

    def check(self, setting: str, *allowed: Any) -> None:
        """Raises ValueError where an attribute of the layer is none of those values."""
        found = getattr(self.layer, setting)
        found = tuple(found) if isinstance(found, list) else found
        if found not in allowed:
            self.refuse(setting, found, " or ".join(map(repr, allowed)))

    def activated(self, x: Value) -> Value:
        """`x` after the layer's own activation."""
        activation = activation_of(self.layer)
        if not isinstance(activation, str) or activation not in HEAD_ACTIVATIONS:
            self.refuse("activation", activation, ", ".join(HEAD_ACTIVATIONS))
        operation = HEAD_ACTIVATIONS[activation]
        if activation == "softmax" and len(self.given) > 1:
            operation = "channel_softmax"
        return getattr(self.b, operation)(x) if operation else x

    def folded(self, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The kernel, channels last, and a bias, with the norm after the layer."""
        bias = array(self.layer.bias) if self.layer.use_bias else np.zeros(kernel.shape[-1])
        if self.norm is None:
            return kernel, bias
        scale, offset = scale_and_offset(self.norm)
        return kernel * scale, bias * scale + offset


def activation_of(layer: Any) -> Any:
    """Name of a layer's activation; None of a layer that has none."""
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    activation = getattr(layer, "activation", None)
    return None if activation is None else keras.activations.serialize(activation)


def channel_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """What the `axis` of a layer may be that is of the channels of what it takes, of a shape without the batch."""
    return -1, len(shape)


def is_plain(pooling: Any) -> bool:
    """Whether a pooling layer gives a vector of the channels that come last."""
    return pooling.data_format == "channels_last" and not pooling.keepdims


def takes_a_norm(layer: Any) -> bool:
    """Whether a BatchNormalization after a layer can be folded into it."""
    return type(layer) in FOLDABLE and activation_of(layer) == "linear"


def _dense(call: Call) -> Value:
    weights, bias = call.folded(array(call.layer.kernel))
    if len(call.taken) == 1:
        return call.activated(call.b.dense(call.x, weights, bias))
    if len(call.taken) != 3:
        call.refuse("input", call.taken, "a vector or a feature map")
    return call.activated(call.b.convolution(call.x, weights[None, None], bias))


def _convolution(call: Call) -> Value:
    call.check("groups", 1)
    weights, bias = call.folded(array(call.layer.kernel))
    return call.activated(call.b.convolution(call.x, weights, bias, _checked_stride(call)))


def _depthwise(call: Call) -> Value:
    call.check("depth_multiplier", 1)
    weights, bias = call.folded(array(call.layer.kernel)[..., 0])
    return call.activated(call.b.depthwise_convolution(call.x, weights, bias, _checked_stride(call)))


def _checked_stride(call: Call) -> int:
    """The stride of a convolution that pads by half its kernel on every side, as builders do."""
    call.check("dilation_rate", (1, 1))
    call.check("data_format", "channels_last")
    (height, width), (stride, other) = call.layer.kernel_size, call.layer.strides
    if height != width or height % 2 == 0:
        call.refuse("kernel_size", call.layer.kernel_size, "a square of odd size")
    if stride != other:
        call.refuse("strides", call.layer.strides, "one stride for both sides")
    if call.layer.padding == "valid" and height > 1:
        call.refuse("padding", "valid", "'same'")
    # With a stride, "same" pads even sides more at the end than at the start.
    for side in call.taken[:2] if height > 1 else ():
        if max((-(-side // stride) - 1) * stride + height - side, 0) != height - 1:
            call.refuse("strides", call.layer.strides, f"1, or sides that are padded alike at both ends, not {side}")
    return int(stride)


def _batch_norm(call: Call) -> Value:
    call.check("axis", *channel_axes(call.taken))
    return call.b.affine(call.x, *scale_and_offset(call.layer))


def _layer_norm(call: Call) -> Value:
    call.check("axis", *channel_axes(call.taken), (-1,), (len(call.taken),))
    call.check("rms_scaling", False)
    scale, offset = (np.broadcast_to(value, call.taken[-1:]) for value in scale_and_offset(call.layer))
    return call.b.affine(call.b.layer_norm(call.x, call.layer.epsilon), scale, offset)


def _group_norm(call: Call) -> Value:
    call.check("axis", *channel_axes(call.taken))
    call.check("groups", 1)
    scale, offset = (np.broadcast_to(value, call.taken[-1:]) for value in scale_and_offset(call.layer))
    # Of a vector, builders' norm of a whole map is their norm of its channels.
    norm = call.b.layer_norm if len(call.taken) == 1 else call.b.group_norm
    return call.b.affine(norm(call.x, call.layer.epsilon), scale, offset)


def _activation(call: Call) -> Value:
    return _relu_alone(call) if activation_of(call.layer) == "relu" else call.activated(call.x)


def _relu(call: Call) -> Value:
    for setting, allowed in (("max_value", None), ("negative_slope", 0.0), ("threshold", 0.0)):
        call.check(setting, allowed)
    return _relu_alone(call)


def _relu_alone(call: Call) -> Value:
    # Builders may end the operation before in the ReLU, and others may want its plain result.
    return call.b.relu(call.b.affine(call.x, np.ones(call.taken[-1])) if call.is_shared else call.x)


def _softmax(call: Call) -> Value:
    call.check("axis", *channel_axes(call.taken))
    return call.activated(call.x)


def _nothing(call: Call) -> Value:
    return call.x


def _mean(call: Call) -> Value:
    call.check("data_format", "channels_last")
    call.check("keepdims", False)
    return call.b.mean(call.x)


def _max(call: Call) -> Value:
    call.check("data_format", "channels_last")
    call.check("keepdims", False)
    return call.b.max(call.x)


def _upsample(call: Call) -> Value:
    if call.layer.interpolation != "nearest":
        return _resize(call)
    call.check("data_format", "channels_last")
    factor, other = call.layer.size
    if factor != other:
        call.refuse("size", call.layer.size, "one factor for both sides")
    return call.b.enlarge(call.x, int(factor))


def _resize(call: Call) -> Value:
    call.check("interpolation", "bilinear")
    call.check("data_format", "channels_last")
    for setting in ("crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias"):
        if getattr(call.layer, setting, False):
            call.refuse(setting, True, "False")
    return call.b.resize(call.x, *call.given[:2])


def _sum(call: Call) -> Value:
    # A vector is no row of a map whose channels come first, and several images' vectors are none in either format.
    if call.given != call.taken or any(len(shape) != len(call.given) for shape in call.all_taken):
        call.refuse("shapes", call.all_taken, "inputs of one shape")
    total, *others = call.values
    for value in others:
        total = call.b.add(total, value)
    return total


def _average(call: Call) -> Value:
    return call.b.affine(_sum(call), np.full(call.given[-1], 1 / len(call.values)))


def _concatenate(call: Call) -> Value:
    call.check("axis", *channel_axes(call.taken))
    joined, *others = call.values
    for value in others:
        joined = call.b.concatenate(joined, value)
    return joined


def _flatten(call: Call) -> Value:
    if len(call.taken) == 1:
        return call.x
    call.check("data_format", "channels_last")
    return call.b.flatten(call.x)


def _reshape(call: Call) -> Value:
    if len(call.given) == 1:
        return call.x if len(call.taken) == 1 else call.b.flatten(call.x)
    if len(call.given) != 3:
        call.refuse("target_shape", call.given, "a vector or a feature map")
    return call.b.reshape(call.x, *call.given)


_layers = keras.layers
FOLDABLE = (_layers.Dense, _layers.Conv2D, _layers.DepthwiseConv2D)
# What a head may be made of. Only these classes: one that inherits from them may compute something else.
LAYERS: dict[type, Callable[[Call], Value]] = {
    _layers.Dense: _dense,
    _layers.Conv2D: _convolution,
    _layers.DepthwiseConv2D: _depthwise,
    _layers.BatchNormalization: _batch_norm,
    _layers.LayerNormalization: _layer_norm,
    _layers.GroupNormalization: _group_norm,
    _layers.Activation: _activation,
    Predictions: _activation,
    _layers.ReLU: _relu,
    _layers.Softmax: _softmax,
    _layers.Identity: _nothing,
    _layers.Dropout: _nothing,
    _layers.SpatialDropout2D: _nothing,
    _layers.GlobalAveragePooling2D: _mean,
    _layers.GlobalMaxPooling2D: _max,
    _layers.UpSampling2D: _upsample,
    _layers.Resizing: _resize,
    _layers.Add: _sum,
    _layers.Average: _average,
    _layers.Concatenate: _concatenate,
    _layers.Flatten: _flatten,
    _layers.Reshape: _reshape,
}
