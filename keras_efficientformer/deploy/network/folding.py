"""Folds norms into convolutions and denses, as float64 arrays. Room: deploy/network.

Nothing of the Keras model is changed; every function returns new arrays.
"""

from typing import Any

import keras
import numpy as np


def array(variable: Any) -> np.ndarray:
    """A variable's value as a float64 array of its shape."""
    return np.asarray(keras.ops.convert_to_numpy(variable), dtype="float64")


def dense(layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """Weights (channels in, channels out) and bias (channels out,) of a dense."""
    return array(layer.kernel), array(layer.bias)


def scale_and_offset(norm: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """What a norm multiplies by and adds at the end, both (channels,): of a BatchNorm, that is all it does.

    Of a LayerNorm without scale or offset it is a single 1 or 0.
    """
    scale = np.ones(()) if norm.gamma is None else array(norm.gamma)
    offset = np.zeros(()) if norm.beta is None else array(norm.beta)
    if not isinstance(norm, keras.layers.BatchNormalization):
        return scale, offset
    scale = scale / np.sqrt(array(norm.moving_variance) + norm.epsilon)
    return scale, offset - array(norm.moving_mean) * scale


def fold_norm(conv: keras.layers.Layer, norm: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias (channels,) of a convolution with the BatchNorm that follows it.

    The weights are HWIO, or (height, width, channels) where the convolution is depthwise.
    """
    scale, offset = scale_and_offset(norm)
    kernel = array(conv.kernel)
    if isinstance(conv, keras.layers.DepthwiseConv2D):
        kernel = kernel[..., 0]
    return kernel * scale, array(conv.bias) * scale + offset


def fold_into(norm: keras.layers.Layer, layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """Weights (channels in, channels out) and bias of a dense with the scale and offset of the norm before it."""
    weights, bias = dense(layer)
    scale, offset = scale_and_offset(norm)
    return weights * scale[:, None], bias + offset @ weights
