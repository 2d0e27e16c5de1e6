"""EfficientFormer (arXiv 2206.01191) for Keras 3: public names only. Exporters: `keras_efficientformer.deploy`."""

from keras_efficientformer.efficientformer import (
    EfficientFormer,
    EfficientFormerL1,
    EfficientFormerL3,
    EfficientFormerL7,
)
from keras_efficientformer.imagenet import decode_predictions, preprocess_input
from keras_efficientformer.layers import Attention, LayerScale, Meta3D, Meta4D, StochasticDepth

__all__ = [
    "Attention",
    "EfficientFormer",
    "EfficientFormerL1",
    "EfficientFormerL3",
    "EfficientFormerL7",
    "LayerScale",
    "Meta3D",
    "Meta4D",
    "StochasticDepth",
    "decode_predictions",
    "preprocess_input",
]

__version__ = "0.1.0"
