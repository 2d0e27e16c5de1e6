"""Imports tensorflow-model-optimization without leaving its changes in the process. Room: training/compression.

Its import sets TF_USE_LEGACY_KERAS=1, which would turn `tf.keras` into Keras 2 for whoever asks for it later, in this
process and its children. Here `tf.keras` is settled before, and the environment is put back afterwards.
"""

import os
from typing import Any

from keras_efficientformer.errors import require

JOB = "Quantization-aware training or pruning"


def load_tfmot() -> Any:
    """The module `tensorflow_model_optimization`.

    Raises:
        ImportError: it, tf_keras or TensorFlow is not installed; the message says what to install.
    """
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    try:
        # This settles which Keras `tf.keras` is, for TensorFlow looks only once.
        require("tensorflow", JOB, "train").keras.version()
        return require("tensorflow_model_optimization", JOB, "train")
    finally:
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
        if before is not None:
            os.environ["TF_USE_LEGACY_KERAS"] = before
