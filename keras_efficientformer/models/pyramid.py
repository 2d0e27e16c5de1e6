"""Makes a model of the stages' feature maps, as detectors and segmenters take them. Room: models."""

from collections.abc import Sequence

import keras

from keras_efficientformer.conversion.bindings import layers_of
from keras_efficientformer.layers.names import STAGES

# "P2" has one value for every 2**2 pixels of a side, and so on.
LEVELS = dict(zip(("P2", "P3", "P4", "P5"), STAGES, strict=True))


def feature_pyramid(backbone: keras.Model, levels: Sequence[str] = tuple(LEVELS)) -> keras.Model:
    """A model of a network's feature maps at several scales, which shares its layers and weights.

    Args:
        backbone: an EfficientFormer of either family, with or without the top.
        levels: some of "P2", "P3", "P4" and "P5", in any order: the outputs of the four stages, with strides of 4, 8,
            16 and 32 pixels.

    Returns:
        A model from the backbone's images to a dictionary {level: feature map}, each float (batch, height, width,
        channels). Both exporters take it, and so do heads of standard layers on its outputs.

    Raises:
        ValueError: the model is no EfficientFormer of this package, or `levels` are empty, unknown or repeated.
    """
    layers = layers_of(backbone)
    if not levels or len(set(levels)) < len(levels) or not LEVELS.keys() >= set(levels):
        raise ValueError(f"`levels` should be some of {', '.join(LEVELS)}, each once. Received: levels={levels!r}")
    # The outputs of exports are named after the layers that give them.
    maps = {level: keras.layers.Identity(name=level)(layers[LEVELS[level]].output) for level in levels}
    return keras.Model(backbone.input, maps, name=f"{backbone.name}_pyramid")
