"""The arithmetic of folding, shared by the descriptions of all networks: layers as float64 arrays, with their norms in.

Nothing of the Keras model is changed; every function returns new arrays.
"""

import keras
import numpy as np


def array(variable):
    """A variable's value, float64."""
    return np.asarray(keras.ops.convert_to_numpy(variable), dtype="float64")


def dense(layer):
    """Weights (in, out) and bias of a dense."""
    return array(layer.kernel), array(layer.bias)


def scale_and_offset(norm):
    """What a norm multiplies by and adds at the end, per channel: of a BatchNorm, that is all it does."""
    scale, offset = array(norm.gamma), array(norm.beta)
    if not isinstance(norm, keras.layers.BatchNormalization):
        return scale, offset
    scale = scale / np.sqrt(array(norm.moving_variance) + norm.epsilon)
    return scale, offset - array(norm.moving_mean) * scale


def fold_norm(conv, norm):
    """Weights and bias of a convolution with the BatchNorm that follows it: HWIO, or (h, w, channels) if depthwise."""
    scale, offset = scale_and_offset(norm)
    kernel = array(conv.kernel)
    if isinstance(conv, keras.layers.DepthwiseConv2D):
        kernel = kernel[..., 0]
    return kernel * scale, array(conv.bias) * scale + offset


def fold_into(norm, layer):
    """Weights (in, out) and bias of a dense with the scale and offset of the norm before it."""
    weights, bias = dense(layer)
    scale, offset = scale_and_offset(norm)
    return weights * scale[:, None], bias + offset @ weights
