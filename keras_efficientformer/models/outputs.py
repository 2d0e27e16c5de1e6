"""Runs a few images through a Keras model, without a compilation that would take longer than they do. Room: models."""

import keras
import numpy as np

IMAGES_AT_A_TIME = 32


def outputs_of(model: keras.Model, images: np.ndarray) -> list[np.ndarray]:
    """What `predict` gives, as a list in the order of `model.outputs`.

    TensorFlow compiles EfficientFormer-L1 in a second of a core, and runs an image without in half of that. PyTorch
    compiles nothing, and JAX would compile each operation for itself: 10 seconds, where `predict` takes 3.
    """
    if keras.backend.backend() != "tensorflow":
        return keras.tree.flatten(model.predict(images, verbose=0))
    batches = (images[start : start + IMAGES_AT_A_TIME] for start in range(0, len(images), IMAGES_AT_A_TIME))
    outputs = [keras.tree.flatten(model(batch, training=False)) for batch in batches]
    return [
        np.concatenate([keras.ops.convert_to_numpy(part) for part in parts]) for parts in zip(*outputs, strict=True)
    ]
