"""EfficientFormer (arXiv 2206.01191) and V2 (2212.08059) for Keras 3: public names only. Exporters: `deploy`."""

import sys

from keras_efficientformer.backend_choice import choose_backend, missing_backend

# Keras takes its backend when it is imported.
choose_backend()

# Importing Keras takes seconds, so that the command asks each room for what it needs when it needs it. For everyone
# else the layers are registered here, and `keras.saving.load_model` knows them.
if "efficientformer_command" not in sys.modules:
    try:
        import keras  # noqa: F401
    except ImportError as error:
        missing = missing_backend(error)
        if missing is None:
            raise
        # Where Keras failed is thirty lines that say no more.
        raise missing from None

    from keras_efficientformer.imagenet import decode_predictions, preprocess_input
    from keras_efficientformer.layers.common import LayerScale, StochasticDepth
    from keras_efficientformer.layers.v1 import Meta3D, Meta4D
    from keras_efficientformer.layers.v1_attention import Attention
    from keras_efficientformer.layers.v2 import BlockV2, DownsampleV2, UnifiedFFN
    from keras_efficientformer.layers.v2_attention import (
        AttentionDownsample,
        AttentionV2,
        LocalGlobalQuery,
        TalkingHeads,
    )
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
    from keras_efficientformer.models.opening import from_checkpoint
    from keras_efficientformer.models.pyramid import feature_pyramid

__all__ = [
    "Attention",
    "AttentionDownsample",
    "AttentionV2",
    "BlockV2",
    "DownsampleV2",
    "EfficientFormer",
    "EfficientFormerL1",
    "EfficientFormerL3",
    "EfficientFormerL7",
    "EfficientFormerV2",
    "EfficientFormerV2L",
    "EfficientFormerV2S0",
    "EfficientFormerV2S1",
    "EfficientFormerV2S2",
    "LayerScale",
    "LocalGlobalQuery",
    "Meta3D",
    "Meta4D",
    "StochasticDepth",
    "TalkingHeads",
    "UnifiedFFN",
    "decode_predictions",
    "feature_pyramid",
    "from_checkpoint",
    "preprocess_input",
]

__version__ = "0.1.0"
