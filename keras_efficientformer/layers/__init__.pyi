from .common import LayerScale, StochasticDepth
from .v1 import ConvMlp, Downsample, Meta3D, Meta4D, Mlp, Pooling, Stage, Stem
from .v1_attention import Attention
from .v2 import BlockV2, DownsampleV2, StageV2, StemV2, UnifiedFFN
from .v2_attention import (
    AttentionDownsample,
    AttentionV2,
    ConvNorm,
    LocalGlobalQuery,
    TalkingHeads,
)

__all__ = [
    "Attention",
    "AttentionDownsample",
    "AttentionV2",
    "BlockV2",
    "ConvMlp",
    "ConvNorm",
    "Downsample",
    "DownsampleV2",
    "LayerScale",
    "LocalGlobalQuery",
    "Meta3D",
    "Meta4D",
    "Mlp",
    "Pooling",
    "Stage",
    "StageV2",
    "Stem",
    "StemV2",
    "StochasticDepth",
    "TalkingHeads",
    "UnifiedFFN",
]
