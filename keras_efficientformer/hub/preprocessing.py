"""What prepares raw images for the backbone, as KerasHub's layers. Room: hub."""

from collections.abc import Sequence
from typing import Any

import keras
import keras_hub

from keras_efficientformer.hub.backbone import EfficientFormerBackbone
from keras_efficientformer.layers.image_normalization import Normalization


@keras.saving.register_keras_serializable(package="keras_efficientformer")
class EfficientFormerImageConverter(keras_hub.layers.ImageConverter):
    """Resizes raw images and normalises them as `imagenet.preprocess_input` does.

    Args:
        image_size: (h, w) to which images are resized, antialiased and bicubic unless `kwargs` say otherwise; `None`
            leaves their size as it is.
        scale: by which pixels are multiplied, for each channel; `None` means ImageNet's, 1 / (255 std).
        offset: what is added then, for each channel; `None` means ImageNet's, -mean / std.
        **kwargs: as of `keras_hub.layers.ImageConverter`.

    Takes images (h, w, channels) or (batch, h, w, channels), values in 0..255; gives float ones.
    """

    backbone_cls = EfficientFormerBackbone

    def __init__(
        self,
        image_size: Sequence[int] | None = None,
        scale: Sequence[float] | None = None,
        offset: Sequence[float] | None = None,
        interpolation: str = "bicubic",
        antialias: bool = True,
        **kwargs: Any,
    ) -> None:
        default_scale, default_offset = scale_and_offset(Normalization())
        super().__init__(
            image_size=image_size,
            scale=default_scale if scale is None else scale,
            offset=default_offset if offset is None else offset,
            interpolation=interpolation,
            antialias=antialias,
            **kwargs,
        )


def scale_and_offset(normalization: Normalization) -> tuple[list[float], list[float]]:
    """A normalisation as `pixel * scale + offset`, for each channel."""
    scale = [1 / (255 * std) for std in normalization.std]
    offset = [-mean / std for mean, std in zip(normalization.mean, normalization.std, strict=True)]
    return scale, offset


@keras.saving.register_keras_serializable(package="keras_efficientformer")
class EfficientFormerImageClassifierPreprocessor(keras_hub.models.ImageClassifierPreprocessor):
    """Prepares the images of a data set for `EfficientFormerImageClassifier`, and leaves labels and weights alone.

    It takes the arguments of `keras_hub.models.ImageClassifierPreprocessor`. The first of them, `image_converter`, is
    an `EfficientFormerImageConverter`; `None` leaves images as they are.
    """

    backbone_cls = EfficientFormerBackbone
    image_converter_cls = EfficientFormerImageConverter
