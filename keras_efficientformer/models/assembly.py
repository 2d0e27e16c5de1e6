"""Assembles a model around a family's backbone: arguments and their checks, input, top, weights. Room: models.

A family brings its backbone, a function of an image, and says what its shape is (`variants`); the rest is here.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import keras

from keras_efficientformer import conversion
from keras_efficientformer.conversion import pretrained
from keras_efficientformer.layers.common import linear
from keras_efficientformer.layers.initialization import weights_follow
from keras_efficientformer.layers.names import AVERAGE_POOL, HEAD_AVERAGE, HEADS, MAX_POOL, PREDICTIONS
from keras_efficientformer.variants import AnyArchitecture, variant_name

DEFAULT_SIZE = 224
MIN_SIZE = 32
# These are the values of `head`.
HEAD_CHOICES = ("average", "both", "single")
# Each value of `pooling` has its layer's class and name.
POOLINGS = {
    "avg": (keras.layers.GlobalAveragePooling2D, AVERAGE_POOL),
    "max": (keras.layers.GlobalMaxPooling2D, MAX_POOL),
}


@dataclass(frozen=True)
class ModelArguments:
    """The arguments that all functions of both families share; `EfficientFormer` says what they mean.

    Raises:
        ValueError: one is out of its range, or Keras is set to channels first.
    """

    include_top: bool = True
    weights: str | os.PathLike[str] | None = None
    input_tensor: Any = None
    input_shape: tuple[int, int, int] | None = None
    pooling: str | None = None
    classes: int = 1000
    classifier_activation: Any = "softmax"
    name: str | None = None
    head: str = "average"
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        if keras.config.image_data_format() != "channels_last":
            raise ValueError(
                "EfficientFormer is channels-last only. Received: keras.config.image_data_format()='channels_first'; "
                "call keras.config.set_image_data_format('channels_last') first."
            )
        if self.weights is not None and not isinstance(self.weights, str | os.PathLike):
            raise ValueError(f"`weights` should be `None`, a name or a path. Received: weights={self.weights!r}")
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise ValueError(f"`pooling` should be None, 'avg' or 'max'. Received: pooling={self.pooling!r}")
        if self.include_top and (not isinstance(self.classes, Integral) or self.classes < 1):
            raise ValueError(f"`classes` should be an integer >= 1. Received: classes={self.classes}")
        if self.head not in HEAD_CHOICES:
            raise ValueError(f"`head` should be one of {HEAD_CHOICES}. Received: head={self.head!r}")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(
                f"`drop_path_rate` should be in the range [0, 1). Received: drop_path_rate={self.drop_path_rate}"
            )


def assemble(
    backbone: Callable[[Any, Any, float], Any], architecture: AnyArchitecture, arguments: ModelArguments
) -> keras.Model:
    """The model around a backbone.

    Args:
        backbone: (image, architecture, drop_path_rate) -> normalised features (batch, h, w, channels).
        architecture: the network's shape.
        arguments: the others.

    Raises:
        ValueError: the input's shape is out of its range, or the weights do not fit.
        OSError: the weights cannot be read or downloaded.
    """
    image = _image_input(arguments.input_tensor, arguments.input_shape)
    state_dict = _read_weights(architecture, arguments, image.shape[-1])

    with contextlib.nullcontext() if state_dict is None else weights_follow():
        x = backbone(image, architecture, arguments.drop_path_rate)
    if arguments.include_top:
        x = _classifier(x, arguments.classes, arguments.classifier_activation, arguments.head)
    elif arguments.pooling is not None:
        layer, name = POOLINGS[arguments.pooling]
        x = layer(name=name)(x)
    inputs = [image] if arguments.input_tensor is None else keras.utils.get_source_inputs(arguments.input_tensor)
    model = keras.Model(inputs[0] if len(inputs) == 1 else inputs, x, name=arguments.name)

    if state_dict is not None:
        conversion.load_state_dict(model, state_dict)
    return model


def check_depths_and_widths(depths: Sequence[int], widths: Sequence[int]) -> None:
    """Raises ValueError for what no network of either family can be."""
    if len(depths) != 4 or any(depth < 0 for depth in depths):
        raise ValueError(f"`depths` should be four integers >= 0. Received: depths={depths}")
    if len(widths) != 4 or any(width < 1 for width in widths) or widths[0] % 2:
        raise ValueError(f"`widths` should be four integers >= 1, the first even. Received: widths={widths}")


def _classifier(x: Any, classes: int, activation: Any, head: str) -> Any:
    """Features (batch, h, w, channels) -> probabilities or logits (batch, classes), or two of them."""
    x = keras.layers.GlobalAveragePooling2D(name=AVERAGE_POOL)(x)
    # Keras refuses NumPy's integers.
    classes = int(classes)
    # They are drawn even where weights follow, because a model can be given another's weights with a new classifier.
    draw = keras.initializers.TruncatedNormal
    logits = [linear(classes, HEADS[0], initializer=draw)(x)]
    if head != "single":
        logits.append(linear(classes, HEADS[1], initializer=draw)(x))
    if head == "average":
        logits = [keras.layers.Average(name=HEAD_AVERAGE)(logits)]
    # Under a mixed policy the probabilities are float32, as Keras' guide to mixed precision asks for.
    dtype = keras.config.dtype_policy().variable_dtype
    outputs = [
        keras.layers.Activation(activation, dtype=dtype, name=n)(x) for n, x in zip(PREDICTIONS, logits, strict=False)
    ]
    return outputs if head == "both" else outputs[0]


def _image_input(input_tensor: Any, input_shape: Sequence[int] | None) -> Any:
    if input_tensor is not None and input_shape is None:
        input_shape = tuple(input_tensor.shape[1:])
    shape = (DEFAULT_SIZE, DEFAULT_SIZE, 3) if input_shape is None else tuple(input_shape)
    if len(shape) != 3 or any(not isinstance(side, Integral) for side in shape):
        raise ValueError(
            "`input_shape` must be a tuple of three integers (height, width, channels): the attention biases belong "
            f"to one input size. Received: input_shape={input_shape}"
        )
    if min(shape[:2]) < MIN_SIZE:
        raise ValueError(f"Input size must be at least {MIN_SIZE}x{MIN_SIZE}; Received: input_shape={shape}")
    if input_tensor is None:
        return keras.layers.Input(shape=shape)
    if not keras.backend.is_keras_tensor(input_tensor):
        return keras.layers.Input(tensor=input_tensor, shape=shape)
    if tuple(input_tensor.shape[1:]) != shape:
        raise ValueError(
            f"`input_tensor` and `input_shape` differ. Received: input_tensor of shape {tuple(input_tensor.shape)}, "
            f"input_shape={shape}"
        )
    return input_tensor


def _read_weights(
    architecture: AnyArchitecture, arguments: ModelArguments, channels: int
) -> conversion.Checkpoint | None:
    """The state dict that `weights` names, or None. Read before the model is built, so that mistakes cost no wait."""
    weights = arguments.weights
    if weights is None:
        return None
    variant = variant_name(architecture)
    if variant is None or weights not in pretrained.names(variant):
        if not os.path.exists(weights):
            raise pretrained.unknown_weights(variant, weights)
        return conversion.read_checkpoint(weights)
    _check_pretrained(arguments, channels)
    return conversion.read_checkpoint(pretrained.download(variant, weights))


def _check_pretrained(arguments: ModelArguments, channels: int) -> None:
    """Raises ValueError for arguments that ImageNet's weights are not for."""
    weights, classes, activation = arguments.weights, arguments.classes, arguments.classifier_activation
    if arguments.include_top and classes != 1000:
        raise ValueError(
            f"If using `weights={weights!r}` with `include_top=True`, `classes` should be 1000. "
            f"Received classes={classes}"
        )
    allowed = (keras.activations.softmax, keras.activations.linear)
    if arguments.include_top and keras.activations.get(activation) not in allowed:
        raise ValueError(
            "Only `None` and `softmax` activations are allowed for the `classifier_activation` argument when using "
            f"pretrained weights, with `include_top=True`; Received: classifier_activation={activation}"
        )
    if channels != 3:
        raise ValueError(f"The input must have 3 channels for `weights={weights!r}`; Received: channels={channels}")
