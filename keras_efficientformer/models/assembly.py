"""Assembles a model around a family's backbone: arguments and their checks, input, top, weights. Room: models.

A family brings its backbone, a function of an image, and says what its shape is (`variants`); the rest is here.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import keras
import numpy as np

from keras_efficientformer import conversion
from keras_efficientformer.conversion import pretrained
from keras_efficientformer.imagenet import imagenet_labels
from keras_efficientformer.labels import Labels, class_names
from keras_efficientformer.layers.common import linear
from keras_efficientformer.layers.image_normalization import ImageNormalization, Normalization
from keras_efficientformer.layers.initialization import weights_follow
from keras_efficientformer.layers.names import AVERAGE_POOL, HEAD_AVERAGE, HEADS, MAX_POOL, NORMALIZATION, PREDICTIONS
from keras_efficientformer.layers.predictions import Predictions
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
    include_preprocessing: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    labels: Labels | None = None

    def __post_init__(self) -> None:
        require_channels_last()
        if self.weights is not None and not isinstance(self.weights, str | os.PathLike):
            raise ValueError(f"`weights` should be `None`, a name or a path. Received: weights={self.weights!r}")
        if self.pooling not in (None, *POOLINGS):
            raise ValueError(f"`pooling` should be None, 'avg' or 'max'. Received: pooling={self.pooling!r}")
        if self.include_top and (not is_integer(self.classes) or self.classes < 1):
            raise ValueError(f"`classes` should be an integer >= 1. Received: classes={self.classes}")
        if self.head not in HEAD_CHOICES:
            raise ValueError(f"`head` should be one of {HEAD_CHOICES}. Received: head={self.head!r}")
        if not isinstance(self.drop_path_rate, Real) or not 0 <= self.drop_path_rate < 1:
            raise ValueError(
                f"`drop_path_rate` should be in the range [0, 1). Received: drop_path_rate={self.drop_path_rate}"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"`mean` and `std` go together. Received: mean={self.mean}, std={self.std}")
        if self.labels is not None and not self.include_top:
            raise ValueError("A model without the top has no classes that `labels` could be of: leave them out.")


def require_channels_last() -> None:
    """Raises ValueError where Keras is set to channels first, as layers that are made then would be."""
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "EfficientFormer is channels-last only. Received: keras.config.image_data_format()='channels_first'; "
            "call keras.config.set_image_data_format('channels_last') first."
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

    labels = _labels(architecture, arguments)
    x = _normalized(image, arguments)
    with contextlib.nullcontext() if state_dict is None else weights_follow():
        x = backbone(x, architecture, arguments.drop_path_rate)
    if arguments.include_top:
        x = _classifier(x, arguments.classes, arguments.classifier_activation, arguments.head, labels)
    elif arguments.pooling is not None:
        layer, name = POOLINGS[arguments.pooling]
        x = layer(name=name)(x)
    inputs = [image] if arguments.input_tensor is None else keras.utils.get_source_inputs(arguments.input_tensor)
    model = keras.Model(inputs[0] if len(inputs) == 1 else inputs, x, name=arguments.name)

    if state_dict is not None:
        conversion.load_state_dict(model, state_dict)
    return model


def _labels(architecture: AnyArchitecture, arguments: ModelArguments) -> tuple[str, ...] | None:
    """The names of the classes: those that were given, or ImageNet's with its weights."""
    if arguments.labels is not None:
        return class_names(arguments.labels, int(arguments.classes))
    variant = variant_name(architecture)
    of_imagenet = variant is not None and arguments.weights in pretrained.names(variant)
    return tuple(name for _, name in imagenet_labels()) if of_imagenet and arguments.include_top else None


def _normalized(image: Any, arguments: ModelArguments) -> Any:
    """The image after a layer that normalises it or says how it is; without one where that goes without saying."""
    if not arguments.include_preprocessing and not keras.backend.is_float_dtype(image.dtype):
        raise ValueError(
            f"Normalised images are floating-point numbers. Received: input_tensor of dtype {image.dtype}; pass "
            "include_preprocessing=True for raw pixels, or cast it."
        )
    if arguments.mean is not None and arguments.std is not None:
        normalization = Normalization(arguments.mean, arguments.std)
    elif arguments.include_preprocessing:
        normalization = Normalization()
    else:
        return image
    channels = image.shape[-1]
    if len(normalization.mean) != channels:
        raise ValueError(
            f"The input has {channels} channels, and its normalisation {len(normalization.mean)}: pass `mean` and "
            f"`std` with a number for each channel. Received: mean={arguments.mean}, std={arguments.std}"
        )
    if not arguments.include_preprocessing and normalization == Normalization():
        return image
    # Raw pixels would lose digits in a mixed policy's precision.
    dtype = keras.config.dtype_policy().variable_dtype
    layer = ImageNormalization(
        normalization.mean, normalization.std, arguments.include_preprocessing, dtype=dtype, name=NORMALIZATION
    )
    return layer(image)


def depths_and_widths(depths: Sequence[int], widths: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both as Python's integers, which Keras asks for, where NumPy's may have been given.

    Raises:
        ValueError: no network of either family can have them.
    """
    if not _are_four(depths, 0):
        raise ValueError(f"`depths` should be four integers >= 0. Received: depths={depths}")
    if not _are_four(widths, 1) or widths[0] % 2:
        raise ValueError(f"`widths` should be four integers >= 1, the first even. Received: widths={widths}")
    return tuple(map(int, depths)), tuple(map(int, widths))


def _are_four(values: Any, least: int) -> bool:
    """Whether they are four integers that are not below `least`."""
    is_list = isinstance(values, Sequence | np.ndarray) and len(values) == 4
    return is_list and all(is_integer(value) and value >= least for value in values)


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, Python's or NumPy's, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def with_channels(input_shape: Sequence[int], channels: int) -> tuple[int, ...]:
    """(h, w) or (h, w, channels) as (h, w, channels), those channels where none are given.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(input_shape, Sequence | np.ndarray) or len(input_shape) not in (2, 3):
        raise ValueError(
            "`input_shape` must be a tuple of two or three integers, (height, width) or (height, width, channels). "
            f"Received: input_shape={input_shape}"
        )
    return (*input_shape, channels)[:3]


def _classifier(x: Any, classes: int, activation: Any, head: str, labels: tuple[str, ...] | None) -> Any:
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
        Predictions(activation, labels, dtype=dtype, name=n)(x) for n, x in zip(PREDICTIONS, logits, strict=False)
    ]
    return outputs if head == "both" else outputs[0]


def _image_input(input_tensor: Any, input_shape: Sequence[int] | None) -> Any:
    if input_tensor is not None and not keras.backend.is_keras_tensor(input_tensor):
        raise ValueError(
            "`input_tensor` must be a Keras tensor, such as `keras.Input((224, 224, 3))`. Received: "
            f"input_tensor of type {type(input_tensor).__name__}"
        )
    if input_tensor is not None and input_shape is None:
        input_shape = tuple(input_tensor.shape[1:])
    shape: tuple[Any, ...] = (DEFAULT_SIZE, DEFAULT_SIZE, 3)
    if input_shape is not None:
        shape = tuple(input_shape) if isinstance(input_shape, Sequence) else (input_shape,)
    if len(shape) != 3 or any(not isinstance(side, Integral) for side in shape):
        raise ValueError(
            "`input_shape` must be a tuple of three integers (height, width, channels): the attention biases belong "
            f"to one input size. Received: input_shape={input_shape}"
        )
    if min(shape[:2]) < MIN_SIZE:
        raise ValueError(f"Input size must be at least {MIN_SIZE}x{MIN_SIZE}; Received: input_shape={shape}")
    if shape[2] < 1:
        raise ValueError(f"The input must have at least one channel; Received: input_shape={shape}")
    if input_tensor is None:
        return keras.layers.Input(shape=shape)
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
