"""Sets an EfficientFormerV2's stem and stages from the steps of its fused network. Room: training/compression."""

import itertools
from typing import Any

import keras
import numpy as np

from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.layers.names import STAGES, STEM
from keras_efficientformer.models.efficientformer_v2 import EfficientFormerV2
from keras_efficientformer.training.compression.unfused_layers import (
    Steps,
    deviation,
    model_arguments,
    set_layer,
    steps_of,
)
from keras_efficientformer.variants import mlp_ratio

# Talking heads of a larger condition than this lose more of the biases' digits than float32 has to spare.
LARGEST_CONDITION = 1e4


def fresh_model(network: FusedNetwork) -> keras.Model:
    """An EfficientFormerV2 of the network's shape, with fresh weights.

    Raises:
        ValueError: talking heads have become such that no table of biases gives what is added behind them.
    """
    steps = steps_of(network)
    _check_talking_heads(network)
    before = [f"{STEM}.conv2", *(f"{name}.downsample.conv" for name in STAGES[1:])]
    widths = [steps[location, "convolution"]["weights"].shape[3] for location in before]
    hidden = [
        [steps[f"{block}.mlp.fc1", "convolution"]["weights"].shape[3] for block in _blocks(steps, name)]
        for name in STAGES
    ]
    return EfficientFormerV2(
        [len(channels) for channels in hidden],
        widths,
        max(sum((f"{block}.token_mixer", "scores") in steps for block in _blocks(steps, name)) for name in STAGES),
        [[mlp_ratio(each, width) for each in channels] for channels, width in zip(hidden, widths, strict=True)],
        **model_arguments(network),
    )


def _blocks(steps: Steps, stage: str) -> list[str]:
    """The locations of a stage's blocks, in their order."""
    names = (f"{stage}.blocks.{index}" for index in itertools.count())
    return list(itertools.takewhile(lambda name: (f"{name}.mlp.fc1", "convolution") in steps, names))


def _check_talking_heads(network: FusedNetwork) -> None:
    matrices = [step.arguments["weights"] for step in network.steps if step.operation == "talking_heads"]
    largest = max((np.linalg.cond(matrix) for matrix in matrices[::2]), default=1.0)
    if largest > LARGEST_CONDITION:
        raise ValueError(
            f"{network.name} has talking heads whose matrix is of the condition {largest:.3g}: no table of biases "
            "gives what is added to the scores behind them. Train with a lower learning rate."
        )


def set_body(layers: dict[str, Any], network: FusedNetwork) -> None:
    """Sets what comes before the last norm; `layers` are the fresh model's, by name."""
    steps = steps_of(network)
    stem = layers[STEM]
    set_layer(stem.conv1.conv, steps[f"{STEM}.conv1", "convolution"], in_factor=deviation(network))
    _set(stem.conv2, f"{STEM}.conv2", steps)
    for name in STAGES:
        if layers[name].downsample is not None:
            _set_downsample(layers[name].downsample, f"{name}.downsample", steps)
        for block, location in zip(layers[name].blocks, _blocks(steps, name), strict=True):
            if block.token_mixer is not None:
                _set_attention(block.token_mixer, f"{location}.token_mixer", steps)
            for part in ("fc1", "mid", "fc2"):
                _set(getattr(block.mlp, part), f"{location}.mlp.{part}", steps)


def _set(layer: Any, location: str, steps: Steps, out_factor: float = 1.0) -> None:
    """Sets a convolution with BatchNorm, whose norm is an identity."""
    if layer.depthwise:
        _set_depthwise(layer.conv, steps[location, "depthwise_convolution"])
    else:
        set_layer(layer.conv, steps[location, "convolution"], out_factor=out_factor)


def _set_depthwise(layer: Any, arguments: dict[str, Any]) -> None:
    layer.kernel.assign(arguments["weights"][..., None])
    layer.bias.assign(arguments["bias"])


def _set_downsample(downsample: Any, location: str, steps: Steps) -> None:
    _set(downsample.conv, f"{location}.conv", steps)
    if downsample.attn is None:
        return
    attention, inside = downsample.attn, f"{location}.attn"
    _set_depthwise(attention.q.local, _without_shortcut(steps[f"{inside}.q.local", "depthwise_convolution"]))
    _set(attention.q.proj, f"{inside}.q.proj", steps, out_factor=attention.key_dim**0.5)
    for part in ("k", "v", "v_local", "proj"):
        _set(getattr(attention, part), f"{inside}.{part}", steps)
    attention.attention_biases.assign(_table(steps[inside, "table"], attention.positions))


def _without_shortcut(arguments: dict[str, Any]) -> dict[str, Any]:
    """A query's depthwise convolution without the pixel itself, which the layer adds."""
    weights = arguments["weights"].astype("float64")
    weights[1, 1] -= 1.0
    return arguments | {"weights": weights}


def _set_attention(attention: Any, location: str, steps: Steps) -> None:
    if attention.stride_conv is not None:
        _set(attention.stride_conv, f"{location}.stride_conv", steps)
    for part in ("v", "v_local", "proj"):
        _set(getattr(attention, part), f"{location}.{part}", steps)
    for layer, arguments in zip((attention.q, attention.k), _queries_and_keys(attention, location, steps), strict=True):
        set_layer(layer.conv, arguments)
    before, after = (steps[f"{location}.{name}", "talking_heads"] for name in ("talking_head1", "talking_head2"))
    set_layer(attention.talking_head1, before | {"weights": before["weights"][None, None]})
    set_layer(attention.talking_head2, after | {"weights": after["weights"][None, None]})
    # What is added behind the first talking heads is what they make of the table.
    behind = _table(steps[location, "table"], attention.positions)
    attention.attention_biases.assign(np.linalg.solve(before["weights"].T.astype("float64"), behind))


def _queries_and_keys(attention: Any, location: str, steps: Steps) -> list[dict[str, Any]]:
    """The two convolutions of one whose channels are, head by head, a query's and a key's."""
    arguments = steps[f"{location}.qk", "convolution"]
    heads, size = attention.num_heads, attention.key_dim
    halves = {
        name: np.split(array.reshape(*array.shape[:-1], heads, 2 * size), 2, axis=-1)
        for name, array in arguments.items()
        if isinstance(array, np.ndarray)
    }
    return [
        {name: half[index].reshape(*half[index].shape[:-2], -1) * factor for name, half in halves.items()}
        for index, factor in enumerate((size**0.5, 1.0))
    ]


def _table(arguments: dict[str, Any], positions: np.ndarray) -> np.ndarray:
    """The table, float64 (heads, columns), whose column for each query and key is `positions`."""
    (added,) = arguments["y"].astype("float64")
    table = np.empty((len(added), positions.max() + 1))
    table[:, positions] = added
    return table
