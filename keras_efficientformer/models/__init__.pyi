from .efficientformer import (
    EfficientFormer,
    EfficientFormerL1,
    EfficientFormerL3,
    EfficientFormerL7,
)
from .efficientformer_v2 import (
    EfficientFormerV2,
    EfficientFormerV2L,
    EfficientFormerV2S0,
    EfficientFormerV2S1,
    EfficientFormerV2S2,
)
from .opening import from_checkpoint
from .pyramid import feature_pyramid
from .sources import HubModel, PublishedModel, crop_of, local_file, model_source

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
    "HubModel",
    "PublishedModel",
    "crop_of",
    "feature_pyramid",
    "from_checkpoint",
    "local_file",
    "model_source",
]
