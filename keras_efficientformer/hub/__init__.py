"""KerasHub's classes for both families: a backbone, an image classifier and what prepares its images. Room: hub.

Importing this registers the classes, so that `keras.saving.load_model` and KerasHub's `from_preset` know them.
"""

from keras_efficientformer.errors import require_installed

# The classes are derived from KerasHub's.
require_installed("keras_hub", "keras_efficientformer.hub", "hub")

from keras_efficientformer.hub.backbone import EfficientFormerBackbone
from keras_efficientformer.hub.classifier import EfficientFormerImageClassifier
from keras_efficientformer.hub.preprocessing import (
    EfficientFormerImageClassifierPreprocessor,
    EfficientFormerImageConverter,
)

__all__ = [
    "EfficientFormerBackbone",
    "EfficientFormerImageClassifier",
    "EfficientFormerImageClassifierPreprocessor",
    "EfficientFormerImageConverter",
]
