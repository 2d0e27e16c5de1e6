"""The door to tensorflow-model-optimization, which changes the process it is imported into.

Its import sets TF_USE_LEGACY_KERAS=1, which would turn `tf.keras` into Keras 2 for whoever asks for it later, in this
process and its children. Here `tf.keras` is settled before, and the environment is put back afterwards.
"""

import os


def load_tfmot():
    """The module `tensorflow_model_optimization`.

    Raises:
        ImportError: it, tf_keras or TensorFlow is not installed; the message says what to install.
    """
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    try:
        import tensorflow as tf

        tf.keras.version()  # settles which Keras it is: TensorFlow looks only once
        import tensorflow_model_optimization as tfmot
    except ImportError as error:
        raise ImportError(
            f"Quantization-aware training and pruning need {error.name}: pip install 'keras-efficientformer[train]'"
        ) from error
    finally:
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
        if before is not None:
            os.environ["TF_USE_LEGACY_KERAS"] = before
    return tfmot
