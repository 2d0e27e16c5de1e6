"""Sets an EfficientFormer's stem and stages from the steps of its fused network. Room: training/compression."""

from typing import Any

import keras
import numpy as np

from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.layers.names import STAGES, STEM
from keras_efficientformer.models.efficientformer import EfficientFormer
from keras_efficientformer.training.compression.unfused_layers import (
    Steps,
    deviation,
    model_arguments,
    set_layer,
    steps_of,
)


def fresh_model(network: FusedNetwork) -> keras.Model:
    """An EfficientFormer of the network's shape, with fresh weights.

    Raises:
        ValueError: a pooling mixer's scales are such that no layer scale gives them.
    """
    _check_mixers(network)
    widths: list[int] = []
    depths: list[int] = []
    for step in network.steps:
        if step.arguments.get("stride") == 2:
            widths.append(step.arguments["weights"].shape[3])
            depths.append(0)
        elif step.operation in ("pooling_mixer", "scores"):
            depths[-1] += 1
    return EfficientFormer(
        depths[1:],  # the stem has two convolutions of stride 2
        widths[1:],
        sum(step.operation == "scores" for step in network.steps),
        **model_arguments(network),
    )


def set_body(layers: dict[str, Any], network: FusedNetwork) -> None:
    """Sets what comes before the last norm; `layers` are the fresh model's, by name."""
    steps = steps_of(network)
    set_layer(layers[STEM].step1.conv, steps[f"{STEM}.step1", "convolution"], in_factor=deviation(network))
    for name in STAGES:
        stage = layers[name]
        first, location = (
            (layers[STEM].step2, f"{STEM}.step2") if name == STAGES[0] else (stage.downsample, f"{name}.downsample")
        )
        _set_stage(stage, first, steps[location, "convolution"], steps)


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


def _set_stage(stage: Any, first: Any, first_arguments: dict[str, Any], steps: Steps) -> None:
    """Sets a stage and `first`, what comes before its blocks: the stem's second step or the stage's downsampling."""
    num_meta4d = stage.depth - stage.num_meta3d
    blocks = [(f"{stage.name}.blocks.{index}", block) for index, block in enumerate(stage.blocks)]
    mixers = [_factors(steps[f"{name}.token_mixer", "pooling_mixer"]) for name, _ in blocks[:num_meta4d]]
    # By what the stored activations are to be multiplied; after the last of the stage's mixers it is 1.
    scale = np.prod([own + pooled for own, pooled in mixers], axis=0)
    set_layer(first.conv, first_arguments, out_factor=scale)
    for (name, block), (own, pooled) in zip(blocks, mixers, strict=False):
        scale = scale / (own + pooled)
        block.ls1.gamma.assign(pooled / (own + pooled))
        set_layer(block.mlp.fc1, steps[f"{name}.mlp.fc1", "convolution"], in_factor=1 / scale)
        set_layer(block.mlp.fc2, steps[f"{name}.mlp.fc2", "convolution"], out_factor=scale)
    for name, block in blocks[num_meta4d:]:
        _set_meta3d(block, name, steps)


def _set_meta3d(block: Any, name: str, steps: Steps) -> None:
    attention, mixer = block.token_mixer, f"{name}.token_mixer"
    queries = np.arange(2 * attention.key_dim + attention.value_dim) < attention.key_dim
    unscaled = np.tile(np.where(queries, attention.key_dim**0.5, 1.0), attention.num_heads)
    set_layer(attention.qkv, steps[f"{mixer}.qkv", "dense"], out_factor=unscaled)
    # What is added to the scores, (1, heads, tokens, tokens); the table is the first token's row.
    attention.attention_biases.assign(steps[mixer, "table"]["y"][0, :, 0])
    set_layer(attention.proj, steps[f"{mixer}.proj", "dense"])
    set_layer(block.mlp.fc1, steps[f"{name}.mlp.fc1", "dense"])
    set_layer(block.mlp.fc2, steps[f"{name}.mlp.fc2", "dense"])
