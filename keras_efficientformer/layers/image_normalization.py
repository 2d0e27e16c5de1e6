"""Says how a model's images are normalised, inside the model or before it. Room: layers.

A model of ImageNet's normalisation whose images are normalised before it needs no layer for that, and has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_efficientformer.imagenet import MEAN, STD, checked_normalization, preprocess_input
from keras_efficientformer.layers.names import NORMALIZATION


@dataclass(frozen=True)
class Normalization:
    """`(pixel / 255 - mean) / std` for each channel.

    Attributes:
        mean, std: one number for each channel, in units of pixels scaled to 0..1.

    Raises:
        ValueError: they are not as many numbers each, not finite, or a deviation is not positive.
    """

    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD

    def __post_init__(self) -> None:
        for name, values in zip(("mean", "std"), checked_normalization(self.mean, self.std), strict=True):
            object.__setattr__(self, name, values)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Raw images, values in 0..255, of shape (..., channels), as float32 normalised ones."""
        return preprocess_input(images, mean=self.mean, std=self.std)


@keras.saving.register_keras_serializable(package="keras_efficientformer")
class ImageNormalization(keras.layers.Layer):
    """Normalises raw images, or remembers how those are normalised that it is given.

    Args:
        mean, std: as of `Normalization`.
        inside: whether it takes raw pixels and normalises; else it gives what it takes.

    Input and output: float (batch, height, width, channels).
    """

    def __init__(
        self, mean: Sequence[float] = MEAN, std: Sequence[float] = STD, inside: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.normalization = Normalization(tuple(mean), tuple(std))
        self.inside = inside

    def call(self, images: Any) -> Any:
        if not self.inside:
            return images
        mean, std = np.array(self.normalization.mean), np.array(self.normalization.std)
        scale, offset = (
            keras.ops.convert_to_tensor(value.astype("float32"), self.compute_dtype)
            for value in (1 / (255 * std), -mean / std)
        )
        return keras.ops.cast(images, self.compute_dtype) * scale + offset

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "mean": list(self.normalization.mean),
            "std": list(self.normalization.std),
            "inside": self.inside,
        }


def normalization_of(model: keras.Model) -> Normalization | None:
    """How a model's raw images are normalised, inside it or before; None where nobody has said so: not for RGB."""
    layer = _layer(model)
    if layer is not None:
        return layer.normalization
    return Normalization() if model.inputs[0].shape[-1] == len(MEAN) else None


def takes_raw_pixels(model: keras.Model) -> bool:
    """Whether a model takes raw pixels in 0..255 and normalises them itself."""
    layer = _layer(model)
    return layer is not None and layer.inside


def normalization_arguments(model: keras.Model) -> dict[str, Any]:
    """The arguments of `EfficientFormer` with which another model takes the same images in the same way."""
    layer = _layer(model)
    if layer is None:
        return {}
    return {
        "include_preprocessing": layer.inside,
        "mean": layer.normalization.mean,
        "std": layer.normalization.std,
    }


def model_inputs(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Raw images as a model takes them.

    Args:
        model: an EfficientFormer of this package.
        images: float array (number, height, width, channels), values in 0..255.

    Raises:
        ValueError: nobody has said how its images are normalised.
    """
    if takes_raw_pixels(model):
        return images
    normalization = normalization_of(model)
    if normalization is None:
        raise ValueError(
            f"{model.name} takes images of {model.inputs[0].shape[-1]} channels, and nobody has said how they are "
            "normalised: make it with `mean` and `std`, one number for each channel of pixels scaled to 0..1."
        )
    return normalization(images)


def _layer(model: keras.Model) -> ImageNormalization | None:
    found = [layer for layer in model.layers if layer.name == NORMALIZATION and isinstance(layer, ImageNormalization)]
    return found[0] if found else None
