"""Turns a fused network back into a model whose foldable layers are identities. Room: training/compression.

The bodies of the two families are set in `unfusing_v1.py` and `unfusing_v2.py`; norms and heads are here.
"""

from typing import Any

import keras
import numpy as np

from keras_efficientformer.conversion.bindings import layers_of
from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.layers.common import LayerScale
from keras_efficientformer.layers.names import HEADS, NORM
from keras_efficientformer.layers.normalization import NORM_EPSILON
from keras_efficientformer.training.compression import unfusing_v1, unfusing_v2
from keras_efficientformer.training.compression.unfused_layers import set_layer, steps_of
from keras_efficientformer.variants import Architecture, ArchitectureV2

# What makes and sets each family's models, by the family's paper, which a network knows.
FAMILIES: dict[str, Any] = {Architecture.paper: unfusing_v1, ArchitectureV2.paper: unfusing_v2}


def unfuse(network: FusedNetwork) -> keras.Model:
    """A model that computes what the fused network does, its images normalised by `preprocess_input`.

    Args:
        network: of an EfficientFormer of either family (`deploy.network.fuse`), its weights as they were or trained.

    Raises:
        ValueError: a pooling mixer's scales are such that no layer scale gives them, or talking heads have become such
            that no table of biases gives what is added behind them.
    """
    family = FAMILIES[network.paper]
    model = family.fresh_model(network)
    for variable in model.weights:
        if variable.name == "moving_variance":
            variable.assign(np.full(variable.shape, 1 - NORM_EPSILON))  # so that BatchNorm divides by 1
    for layer in model._flatten_layers():
        if isinstance(layer, LayerScale):
            layer.gamma.assign(np.ones(layer.gamma.shape))
    layers = layers_of(model)
    family.set_body(layers, network)
    _set_end(layers, network)
    return model


def _set_end(layers: dict[str, Any], network: FusedNetwork) -> None:
    steps = steps_of(network)
    if network.classes is None:
        arguments = steps["", "affine"]
        layers[NORM].gamma.assign(arguments["scale"])
        layers[NORM].beta.assign(arguments["offset"])
        return
    for head in HEADS:  # of an average of two, both are the one that it was folded into
        set_layer(layers[head], steps.get((head, "dense"), steps[HEADS[0], "dense"]))
