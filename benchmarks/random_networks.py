"""Networks with random weights, for benchmarks of what does not depend on them: time, instructions, size."""

import keras
import numpy as np

import keras_efficientformer
from keras_efficientformer.variants import class_name


def random_network(variant: str) -> keras.Model:
    """A published network ("l1", "v2_s0", ...) at 224x224 with 1000 classes."""
    model = getattr(keras_efficientformer, class_name(variant))(weights=None)
    for variable in model.trainable_variables:
        if variable.name == "gamma" and "/ls" in variable.path:
            # As trained models have it: at the 1e-5 of the start, int8 weights vanish, and kernels refuse their scales.
            variable.assign(np.full(variable.shape, 0.2))
    return model
