"""Networks with random weights, for benchmarks of what does not depend on them: time, instructions, size."""

import keras
import numpy as np

import keras_efficientformer
from keras_efficientformer.variants import class_name

NOISE = 0.02


def random_network(variant: str, **arguments) -> keras.Model:
    """A published network ("l1", "v2_s0", ...) at 224x224 with 1000 classes; always the same weights.

    Args:
        variant: its name.
        arguments: more arguments of its function.
    """
    keras.utils.set_random_seed(0)
    return without_constants(getattr(keras_efficientformer, class_name(variant))(weights=None, **arguments))


def without_constants(model: keras.Model) -> keras.Model:
    """The model with no variable that is the constant which training starts from.

    Zero biases would be left out of files, and at a layer scale of 1e-5 int8 weights vanish and kernels refuse their
    scales.
    """
    numbers = np.random.default_rng(0)
    for variable in model.trainable_variables:
        value = keras.ops.convert_to_numpy(variable)
        if np.ptp(value) == 0:
            start = 0.2 if variable.name == "gamma" and "/ls" in variable.path else value
            variable.assign(start + numbers.normal(0, NOISE, value.shape))
    return model
