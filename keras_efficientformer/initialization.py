"""How kernels start: drawn as the reference draws them, or as zeros where other weights replace them at once.

Numbers that are drawn only to be replaced cost memory and time: on JAX, which compiles a function for each kernel's
shape, they are most of what it takes to load a model.
"""

import contextlib
import contextvars

import keras
import numpy as np
from keras import ops

_weights_follow = contextvars.ContextVar("weights_follow", default=False)


@contextlib.contextmanager
def weights_follow():
    """The kernels of layers built inside are zeros: whoever says this sets all of them before he hands the model on."""
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)


class _Draw(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        if _weights_follow.get():
            return ops.convert_to_tensor(np.zeros(shape, "float32"), dtype)
        return super().__call__(shape, dtype=dtype)


@keras.saving.register_keras_serializable(package="keras_efficientformer")
class GlorotUniform(_Draw, keras.initializers.GlorotUniform):
    """Keras' default for kernels, drawn only where no weights follow."""


@keras.saving.register_keras_serializable(package="keras_efficientformer")
class TruncatedNormal(_Draw, keras.initializers.TruncatedNormal):
    """The reference's start of dense layers, drawn only where no weights follow."""
