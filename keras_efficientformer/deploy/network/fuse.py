"""Folds a Keras model into the network that phones run, described once for all targets. Room: deploy/network.

It is the same function as the Keras model's, with everything folded, in float64 and exactly, that can be: BatchNorm
into the convolution before it, layer scales into what comes before them, the last norm into the classifier, both heads
into one, ImageNet's normalisation into the first convolution. `v1.py` and `v2.py` describe the families' bodies; image,
classifier and outputs are here. Nothing of the Keras model is changed.
"""

from typing import Any

import keras
import numpy as np

from keras_efficientformer.conversion.bindings import family_of_stage, layers_of
from keras_efficientformer.deploy.network import v1, v2
from keras_efficientformer.deploy.network.folding import array, fold_into, scale_and_offset
from keras_efficientformer.deploy.network.head_layers import Features
from keras_efficientformer.deploy.network.heads import check_readable, describe_head, efficientformer_in
from keras_efficientformer.deploy.network.recording import FusedNetwork, Recorder, Value
from keras_efficientformer.errors import listing
from keras_efficientformer.layers.image_normalization import normalization_of
from keras_efficientformer.layers.keras_quantization import check_not_quantized
from keras_efficientformer.layers.names import (
    AVERAGE_POOL,
    BODY_LAYERS,
    HEAD_AVERAGE,
    HEADS,
    MAX_POOL,
    NORM,
    NORMALIZATION,
    PREDICTIONS,
    STAGES,
)
from keras_efficientformer.variants import Architecture, ArchitectureV2

# Each description is found by the class of its family's architectures.
DESCRIPTIONS = {Architecture: v1.describe, ArchitectureV2: v2.describe}

# {activation of the last layer: (its operation in a builder, the name of the output)}; the others are not exported.
ACTIVATIONS = {"linear": (None, "logits"), "softmax": ("softmax", "probabilities"), "sigmoid": ("sigmoid", "scores")}

# Models with a classifier end in these layers, and models without in those.
CLASSIFIER_ENDS, FEATURE_ENDS = set(PREDICTIONS), {NORM, AVERAGE_POOL, MAX_POOL}


def fuse(model: keras.Model, include_preprocessing: bool = True, feature_maps: bool = False) -> FusedNetwork:
    """The fused network of an EfficientFormer.

    Args:
        model: an EfficientFormer of this package, on any backend, alone or with a head of standard layers on it
            (`head_layers.LAYERS`); it is read, not changed.
        include_preprocessing: whether the network takes raw RGB pixels in 0..255 and normalises them itself.
        feature_maps: whether the outputs of the stages are outputs of the network too, before the model's own.

    Returns:
        The network; its weights are float32.

    Raises:
        ValueError: the model is no EfficientFormer, or has layers that are not exported or weights that are not
            finite, ends in an activation other than none, softmax or sigmoid, or takes images of other than three
            channels where preprocessing is included.
    """
    network = efficientformer_in(model)
    check_readable(model)
    layers = {layer.name: layer for layer in network.layers}
    is_whole = network is model and not more_than_own(model)
    if feature_maps and not is_whole:
        raise ValueError(
            f"{model.name} is not an EfficientFormer alone: in place of `feature_maps`, give it the stages as outputs."
        )
    check_not_quantized(model)
    _check_finite(model)
    input_shape: tuple[int, int, int] = tuple(model.inputs[0].shape[1:])
    normalization = normalization_of(network)
    if include_preprocessing and normalization is None:
        raise ValueError(
            f"ImageNet's normalisation is for RGB images, and the model takes {input_shape[2]} channels. "
            "Export it with include_preprocessing=False and normalise its input yourself, or make it with `mean` and "
            "`std` of its own."
        )
    recorder, family = Recorder(), family_of_stage(layers[STAGES[0]])
    mean, std = None, np.ones(())
    if include_preprocessing and normalization is not None:
        mean, std = 255.0 * np.array(normalization.mean), 255.0 * np.array(normalization.std)
    x = recorder.at("image").image(*input_shape, mean)
    if is_whole:
        keep = (lambda name, value: recorder.output(value, name)) if feature_maps else None
        x = DESCRIPTIONS[family](recorder, x, layers, std, keep)
        describe_end = _classifier if HEADS[0] in layers else _features
        outputs = (*(STAGES if feature_maps else ()), *describe_end(recorder, x, model, layers))
        classes = int(layers[HEADS[0]].units) if HEADS[0] in layers else None
    else:
        stages: dict[str, Value] = {}
        x = DESCRIPTIONS[family](recorder, x, layers, std, stages.__setitem__)
        features = Features(x, *scale_and_offset(layers[NORM]), _ends_in_tokens(layers)) if NORM in layers else None
        outputs, classes = describe_head(recorder, model, layers, features, stages)
    return FusedNetwork(
        name=model.name,
        paper=family.paper,
        input_shape=input_shape,
        preprocessing=include_preprocessing,
        normalization=normalization,
        outputs=outputs,
        classes=classes,
        # A head of one's own may stand on the classifier, whose names are not its.
        labels=getattr(model.outputs[0]._keras_history.operation, "labels", None) if classes else None,
        steps=recorder.needed(),
    )


def check_whole(model: keras.Model) -> None:
    """Raises ValueError where a model is none of ours, computes more than its EfficientFormer, or ends within it."""
    layers_of(model)
    found = more_than_own(model)
    if found:
        raise ValueError(
            f"{model!r} is not an EfficientFormer of this package alone: found {found}. Pass the EfficientFormer "
            "itself, made with your `classes`, `classifier_activation` and `head`, and with include_preprocessing=True "
            "where it is to take raw pixels. Exports take heads of your own."
        )


def more_than_own(model: keras.Model) -> str:
    """What a model has besides its EfficientFormer, or lacks of it, in words; nothing where it is one alone."""
    layers = {layer.name: layer for layer in model.layers}
    own = {NORMALIZATION, *BODY_LAYERS, *HEADS, HEAD_AVERAGE, *CLASSIFIER_ENDS, *FEATURE_ENDS}
    foreign = [
        layer.name for layer in model.layers if not (layer.name in own or isinstance(layer, keras.layers.InputLayer))
    ]
    ends = CLASSIFIER_ENDS if HEADS[0] in layers else FEATURE_ENDS
    others = [name for name in model.output_names if name not in ends]
    if foreign:
        return f"the layers {listing(foreign)}"
    return f"the outputs {listing(others)}" if others else ""


def _ends_in_tokens(layers: dict[str, Any]) -> bool:
    """Whether the features are tokens, not a feature map."""
    return bool(getattr(layers[STAGES[-1]], "num_meta3d", 0))


def _classifier(b: Recorder, x: Value, model: keras.Model, layers: dict[str, Any]) -> tuple[str, ...]:
    """`x`: the features, to which the last norm's scale and offset have not been applied."""
    folded = [fold_into(layers[NORM], layers[name]) for name in HEADS if name in layers]
    if HEAD_AVERAGE in layers:
        weights, biases = zip(*folded, strict=True)
        folded = [(np.mean(weights, axis=0), np.mean(biases, axis=0))]
    activation = keras.activations.serialize(layers[PREDICTIONS[0]].activation)
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"The model ends in the activation {activation!r}, which exports do not have: "
            f"use one of {', '.join(ACTIVATIONS)}."
        )
    operation, name = ACTIVATIONS[activation]
    names = (name, f"{name}_distillation")[: len(folded)]
    pooled = b.at("pool").mean(x)
    for name, head, folded_head in zip(names, HEADS, folded, strict=False):
        logits = b.at(head).dense(pooled, *folded_head)
        b.output(getattr(b.at(PREDICTIONS[0]), operation)(logits) if operation else logits, name)
    return names


def _features(b: Recorder, x: Value, model: keras.Model, layers: dict[str, Any]) -> tuple[str, ...]:
    """`x`: the features, to which the last norm's scale and offset have not been applied."""
    scale, offset = scale_and_offset(layers[NORM])
    if AVERAGE_POOL in layers:
        b.output(b.affine(b.mean(x), scale, offset), "embedding")
        return ("embedding",)
    x = b.affine(x, scale, offset)
    if MAX_POOL in layers:
        b.output(b.max(x), "embedding")
        return ("embedding",)
    if _ends_in_tokens(layers):
        x = b.feature_map(x, *model.outputs[0].shape[1:3])
    b.output(x, "features")
    return ("features",)


def _check_finite(model: keras.Model) -> None:
    wrong = [variable.path for variable in model.weights if not np.isfinite(array(variable)).all()]
    if wrong:
        raise ValueError(f"{model.name} has weights that are NaN or infinite: {listing(wrong)}. Nothing was exported.")
