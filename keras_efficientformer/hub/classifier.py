"""A KerasHub image classifier on the backbone. Room: hub."""

import os
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_efficientformer.hub.backbone import EfficientFormerBackbone
from keras_efficientformer.hub.preprocessing import (
    EfficientFormerImageClassifierPreprocessor,
    EfficientFormerImageConverter,
    scale_and_offset,
)
from keras_efficientformer.hub.presets import is_keras_preset, network_of
from keras_efficientformer.layers.image_normalization import normalization_of
from keras_efficientformer.layers.names import HEADS


@keras.saving.register_keras_serializable(package="keras_efficientformer")
class EfficientFormerImageClassifier(keras_hub.models.ImageClassifier):
    """A KerasHub image classifier on an `EfficientFormerBackbone`.

    The arguments are those of `keras_hub.models.ImageClassifier`. It has one head: the published networks answer with
    the mean of two, which are linear, so that one with the mean of their weights gives the same logits.

    Takes what its `preprocessor` takes, raw images in 0..255 of any size; called as a function, it takes images that
    are prepared, float (batch, *backbone.image_shape). Gives logits, float (batch, num_classes), or what `activation`
    makes of them.
    """

    backbone_cls = EfficientFormerBackbone
    preprocessor_cls = EfficientFormerImageClassifierPreprocessor

    @classmethod
    def from_preset(
        cls, preset: str | os.PathLike[str], load_weights: bool = True, **kwargs: Any
    ) -> "EfficientFormerImageClassifier":
        """A classifier from a preset of KerasHub, or from a checkpoint by this package's converter.

        Args:
            preset: as for `EfficientFormerBackbone.from_preset`.
            load_weights: whether the preset's weights are loaded; else they are random.
            **kwargs: `num_classes` of a new head; `image_shape` and `dtype` of the backbone; what else the
                constructor takes.

        Raises:
            ValueError: the checkpoint has no head, and `num_classes` is not given; or as of the backbone.
            OSError: as of the backbone.
        """
        preset, image_shape = os.fspath(preset), kwargs.pop("image_shape", None)
        if not is_keras_preset(preset):
            return cls._from_network(network_of(preset, load_weights, image_shape), load_weights, **kwargs)
        # KerasHub assigns weights as they are, so that the preset's own size comes first.
        classifier = super().from_preset(preset, load_weights, **kwargs)
        return classifier if image_shape is None else classifier._at_image_shape(image_shape)

    @classmethod
    def _from_network(
        cls, network: keras.Model, load_weights: bool, dtype: Any = None, **kwargs: Any
    ) -> "EfficientFormerImageClassifier":
        """A classifier of the shape of an EfficientFormer; arguments as of `from_preset`."""
        layers = {layer.name: layer for layer in network.layers}
        heads = [layers[name] for name in HEADS if name in layers]
        new_head = "num_classes" in kwargs
        if not heads and not new_head:
            raise ValueError(f"{network.name} has no classes: pass `num_classes`, for a new head.")
        arguments = {"preprocessor": _preprocessor_of(network), **kwargs}
        if not new_head:
            arguments["num_classes"] = heads[0].units
        backbone = EfficientFormerBackbone.from_network(network, load_weights, dtype=dtype)
        classifier = cls(backbone=backbone, **arguments)
        if load_weights and not new_head:
            weights = zip(*map(_dense_weights, heads), strict=True)
            classifier.output_dense.set_weights([np.mean(values, axis=0) for values in weights])
        return classifier

    def _at_image_shape(self, image_shape: tuple[int, int, int]) -> "EfficientFormerImageClassifier":
        """This classifier where it takes images of that shape, else one on `backbone.at_image_shape`."""
        backbone = self.backbone.at_image_shape(image_shape)
        if backbone is self.backbone:
            return self
        resized = type(self).from_config({**self.get_config(), "backbone": backbone})
        resized.output_dense.set_weights(_dense_weights(self.output_dense))
        if isinstance(resized.preprocessor, keras_hub.models.Preprocessor) and resized.preprocessor.image_size:
            resized.preprocessor.image_size = image_shape[:2]
        return resized


def _dense_weights(layer: keras.layers.Dense) -> list[np.ndarray]:
    """Kernel and bias of a dense layer; with LoRA on it, the kernel that it computes with."""
    return [keras.ops.convert_to_numpy(value) for value in (layer.kernel, layer.bias)]


def _preprocessor_of(network: keras.Model) -> EfficientFormerImageClassifierPreprocessor | None:
    """What prepares raw images as a network takes them; None where nobody has said how they are normalised."""
    normalization = normalization_of(network)
    if normalization is None:
        return None
    scale, offset = scale_and_offset(normalization)
    converter = EfficientFormerImageConverter(network.input_shape[1:3], scale, offset)
    return EfficientFormerImageClassifierPreprocessor(converter)
