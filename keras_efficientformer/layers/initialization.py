"""Initializes kernels as the reference does, or as zeros where loaded weights replace them at once. Room: layers.

Numbers that are drawn only to be replaced cost memory and time: on JAX, which compiles a function for each kernel's
shape, they are most of what it takes to load a model.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

_weights_follow = contextvars.ContextVar("weights_follow", default=False)


@contextlib.contextmanager
def weights_follow() -> Iterator[None]:
    """Makes zeros of the kernels of layers built inside; the caller has to set all of them afterwards."""
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)


class _Draw(keras.initializers.Initializer):
    """Gives zeros inside `weights_follow`, and elsewhere what the next base class draws."""

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        if _weights_follow.get():
            return ops.convert_to_tensor(np.zeros(shape, "float32"), dtype)
        return super().__call__(shape, dtype=dtype)


@keras.saving.register_keras_serializable(package="keras_efficientformer")
class GlorotUniform(_Draw, keras.initializers.GlorotUniform):
    """Keras' default for kernels, drawn only where no weights follow."""


@keras.saving.register_keras_serializable(package="keras_efficientformer")
class TruncatedNormal(_Draw, keras.initializers.TruncatedNormal):
    """The reference's initializer of dense kernels, drawn only where no weights follow."""
