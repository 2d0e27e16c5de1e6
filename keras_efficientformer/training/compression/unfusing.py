"""Turns a fused network back into an EfficientFormer whose foldable layers are identities. Room: training/compression.

Each layer is set from the step that bears its location (`Step.location`), not from the order of the steps.
"""

from typing import Any

import keras
import numpy as np

from keras_efficientformer.conversion.bindings import layers_of
from keras_efficientformer.deploy.network.fuse import ACTIVATIONS
from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.layers.names import HEADS, NORM, STAGES, STEM
from keras_efficientformer.layers.normalization import NORM_EPSILON
from keras_efficientformer.models.efficientformer import EfficientFormer

# {(location, operation): the step's arguments}.
Steps = dict[tuple[str, str], dict[str, Any]]


def unfuse(network: FusedNetwork) -> keras.Model:
    """An EfficientFormer that computes what the fused network does, its images normalised by `preprocess_input`.

    Args:
        network: of an EfficientFormer (`deploy.network.fuse`), its weights as they were or trained.

    Raises:
        ValueError: a pooling mixer's scales are such that no layer scale gives them.
    """
    _check_mixers(network)
    model = _model(network)
    layers = layers_of(model)
    for variable in model.weights:
        if variable.name == "moving_variance":
            variable.assign(np.full(variable.shape, 1 - NORM_EPSILON))  # so that BatchNorm divides by 1
    steps: Steps = {(step.location, step.operation): step.arguments for step in network.steps}

    std = 255.0 * np.array(network.normalization.std) if network.preprocessing and network.normalization else 1.0
    _set(layers[STEM].step1.conv, steps[f"{STEM}.step1", "convolution"], in_factor=std)
    for name in STAGES:
        stage = layers[name]
        first, location = (
            (layers[STEM].step2, f"{STEM}.step2") if name == STAGES[0] else (stage.downsample, f"{name}.downsample")
        )
        _set_stage(stage, first, steps[location, "convolution"], steps)
    _set_end(layers, network, steps)
    return model


def _model(network: FusedNetwork) -> keras.Model:
    """An EfficientFormer of the network's shape, with fresh weights."""
    widths: list[int] = []
    depths: list[int] = []
    for step in network.steps:
        if step.arguments.get("stride") == 2:
            widths.append(step.arguments["weights"].shape[3])
            depths.append(0)
        elif step.operation in ("pooling_mixer", "scores"):
            depths[-1] += 1
    names = {name: activation for activation, (_, name) in ACTIVATIONS.items()}
    normalization = network.normalization
    return EfficientFormer(
        depths[1:],  # the stem has two convolutions of stride 2
        widths[1:],
        sum(step.operation == "scores" for step in network.steps),
        include_top=network.classes is not None,
        input_shape=network.input_shape,
        pooling=_pooling(network),
        classes=network.classes or 1,
        classifier_activation=names.get(network.outputs[0]),
        name=network.name,
        head="both" if len(network.outputs) == 2 else "average",
        mean=None if normalization is None else normalization.mean,
        std=None if normalization is None else normalization.std,
        labels=network.labels,
    )


def _pooling(network: FusedNetwork) -> str | None:
    if network.outputs != ("embedding",):
        return None
    return "max" if any(step.operation == "max" for step in network.steps) else "avg"


def _factors(arguments: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(factor of the input, factor of its average), float64 (channels,), of a pooling mixer."""
    return arguments["own"].astype("float64"), arguments["pooled"].astype("float64")


def _check_mixers(network: FusedNetwork) -> None:
    sums = [sum(_factors(step.arguments)) for step in network.steps if step.operation == "pooling_mixer"]
    lowest = min((np.min(total) for total in sums), default=1.0)
    if lowest <= 0:
        raise ValueError(
            f"{network.name} has a pooling mixer whose two factors add up to {lowest:.3g}: no layer scale gives a sum "
            "that is not positive. Train with a lower learning rate."
        )


def _set(
    layer: Any, arguments: dict[str, Any], in_factor: np.ndarray | float = 1.0, out_factor: np.ndarray | float = 1.0
) -> None:
    """Sets a convolution or dense to a step's weights, times a factor for each channel in and out."""
    layer.kernel.assign(arguments["weights"] * np.reshape(in_factor, (-1, 1)) * out_factor)
    layer.bias.assign(arguments["bias"] * out_factor)


def _set_stage(stage: Any, first: Any, first_arguments: dict[str, Any], steps: Steps) -> None:
    """Sets a stage and `first`, what comes before its blocks: the stem's second step or the stage's downsampling."""
    num_meta4d = stage.depth - stage.num_meta3d
    blocks = [(f"{stage.name}.blocks.{index}", block) for index, block in enumerate(stage.blocks)]
    mixers = [_factors(steps[f"{name}.token_mixer", "pooling_mixer"]) for name, _ in blocks[:num_meta4d]]
    # By what the stored activations are to be multiplied; after the last of the stage's mixers it is 1.
    scale = np.prod([own + pooled for own, pooled in mixers], axis=0)
    _set(first.conv, first_arguments, out_factor=scale)
    for (name, block), (own, pooled) in zip(blocks, mixers, strict=False):
        scale = scale / (own + pooled)
        block.ls1.gamma.assign(pooled / (own + pooled))
        _set(block.mlp.fc1, steps[f"{name}.mlp.fc1", "convolution"], in_factor=1 / scale)
        _set(block.mlp.fc2, steps[f"{name}.mlp.fc2", "convolution"], out_factor=scale)
        block.ls2.gamma.assign(np.ones(block.dim))
    for name, block in blocks[num_meta4d:]:
        _set_meta3d(block, name, steps)


def _set_meta3d(block: Any, name: str, steps: Steps) -> None:
    attention, mixer = block.token_mixer, f"{name}.token_mixer"
    queries = np.arange(2 * attention.key_dim + attention.value_dim) < attention.key_dim
    unscaled = np.tile(np.where(queries, attention.key_dim**0.5, 1.0), attention.num_heads)
    _set(attention.qkv, steps[f"{mixer}.qkv", "dense"], out_factor=unscaled)
    # What is added to the scores, (1, heads, tokens, tokens); the table is the first token's row.
    attention.attention_biases.assign(steps[mixer, "add"]["y"][0, :, 0])
    _set(attention.proj, steps[f"{mixer}.proj", "dense"])
    _set(block.mlp.fc1, steps[f"{name}.mlp.fc1", "dense"])
    _set(block.mlp.fc2, steps[f"{name}.mlp.fc2", "dense"])
    for layer_scale in (block.ls1, block.ls2):
        layer_scale.gamma.assign(np.ones(block.dim))


def _set_end(layers: dict[str, Any], network: FusedNetwork, steps: Steps) -> None:
    if network.classes is None:
        arguments = steps["", "affine"]
        layers[NORM].gamma.assign(arguments["scale"])
        layers[NORM].beta.assign(arguments["offset"])
        return
    for head in HEADS:  # of an average of two, both are the one that it was folded into
        _set(layers[head], steps.get((head, "dense"), steps[HEADS[0], "dense"]))
