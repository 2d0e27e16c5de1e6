"""The public functions that make a model of either family, or open one from a file. Room: models."""

from keras_efficientformer.models.efficientformer import (
    EfficientFormer,
    EfficientFormerL1,
    EfficientFormerL3,
    EfficientFormerL7,
)
from keras_efficientformer.models.efficientformer_v2 import (
    EfficientFormerV2,
    EfficientFormerV2L,
    EfficientFormerV2S0,
    EfficientFormerV2S1,
    EfficientFormerV2S2,
)
from keras_efficientformer.models.opening import from_checkpoint, open_model

__all__ = [
    "EfficientFormer",
    "EfficientFormerL1",
    "EfficientFormerL3",
    "EfficientFormerL7",
    "EfficientFormerV2",
    "EfficientFormerV2L",
    "EfficientFormerV2S0",
    "EfficientFormerV2S1",
    "EfficientFormerV2S2",
    "from_checkpoint",
    "open_model",
]
