"""Takes a Semantic FPN apart: its backbone, the arguments it was made with, its own weights. Room: segmentation."""

from dataclasses import asdict
from typing import Any

import keras
import numpy as np

from keras_efficientformer.conversion.bindings import architecture_of, family_of_stage
from keras_efficientformer.layers.names import BODY_LAYERS, MASKS, NORM, NORMALIZATION, STAGES
from keras_efficientformer.layers.normalization import batch_norm, layer_norm
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.variants import ArchitectureV2

# The layer whose weights are of the classes.
LOGITS_LAYER = "logits"
FINEST = "P2"
NAME_END = "_semantic_fpn"


def is_segmenter(model: keras.Model) -> bool:
    """Whether a model gives masks alone, as those of `SemanticFPN` do."""
    # Sequential and subclassed models have no names of outputs.
    return getattr(model, "output_names", None) == [MASKS] and len(model.outputs[0].shape) == 4


def backbone_of(model: keras.Model) -> keras.Model:
    """The EfficientFormer that a Semantic FPN stands on, without its top; layers are shared.

    Its last norm, which conversion expects and a Semantic FPN does without, is a fresh one.
    """
    stage = model.get_layer(STAGES[-1])
    norm = batch_norm(NORM, None) if family_of_stage(stage) is ArchitectureV2 else layer_norm(NORM)
    return keras.Model(model.input, norm(stage.output), name=model.name.removesuffix(NAME_END))


def decoder_arguments(model: keras.Model) -> dict[str, Any]:
    """The arguments of `SemanticFPN` after its classes with which another one has the same layers.

    Raises:
        ValueError: the model gives masks by other layers.
    """
    layers = {layer.name: layer for layer in model.layers}
    missing = {*STAGES, f"{FINEST}_lateral", f"{FINEST}_head1_conv", "head_dropout", LOGITS_LAYER} - layers.keys()
    if missing:
        raise ValueError(f"{model.name} is no SemanticFPN: it lacks the layers {', '.join(sorted(missing))}.")
    norm = layers.get(f"{FINEST}_norm")
    enlarged = layers.get("logits_enlarged")
    return {
        "pyramid_channels": layers[f"{FINEST}_lateral"].filters,
        "head_channels": layers[f"{FINEST}_head1_conv"].filters,
        "feature_norm": None if norm is None else "batch" if _is_batch_norm(norm) else "group",
        "output_stride": 4 // enlarged.size[0] if enlarged else 4,
        "dropout": layers["head_dropout"].rate,
    }


def facts_of(model: keras.Model) -> dict[str, Any]:
    """What a Semantic FPN is, as plain values that JSON takes.

    Raises:
        ValueError: the model gives masks by other layers.
    """
    arguments, labels = decoder_arguments(model), labels_of(model)
    height, width, channels = model.inputs[0].shape[1:]
    return {
        "model": model.name,
        "architecture": asdict(architecture_of(backbone_of(model))),
        "classes": model.outputs[0].shape[-1],
        **arguments,
        "channels": channels,
        "input_size": [height, width],
        "labels": list(labels) if labels else None,
    }


def _is_batch_norm(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def decoder_weights(model: keras.Model) -> dict[str, list[np.ndarray]]:
    """{layer: its weights} of what a Semantic FPN has besides its backbone."""
    own = [layer for layer in model.layers if layer.name not in (*BODY_LAYERS, NORMALIZATION)]
    # A dropout's only variable is its seed.
    return {layer.name: layer.get_weights() for layer in own if layer.count_params() and "dropout" not in layer.name}


def set_decoder_weights(model: keras.Model, weights: dict[str, list[np.ndarray]]) -> None:
    """Puts what `decoder_weights` gave into the layers of those names."""
    for name, values in weights.items():
        model.get_layer(name).set_weights(values)
