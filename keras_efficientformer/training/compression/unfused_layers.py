"""Sets layers of a fresh model from the steps of a fused network. Room: training/compression.

Each layer is set from the step that bears its location (`Step.location`), not from the order of the steps.
"""

from typing import Any

import numpy as np

from keras_efficientformer.deploy.network.fuse import ACTIVATIONS
from keras_efficientformer.deploy.network.recording import FusedNetwork

# {(location, operation): the step's arguments}.
Steps = dict[tuple[str, str], dict[str, Any]]


def steps_of(network: FusedNetwork) -> Steps:
    """The arguments of the network's steps; a sum with a table of biases is called "table", apart from other sums."""
    return {
        (step.location, "table" if isinstance(step.arguments.get("y"), np.ndarray) else step.operation): step.arguments
        for step in network.steps
    }


def model_arguments(network: FusedNetwork) -> dict[str, Any]:
    """The arguments of a model's function that do not depend on the family."""
    names = {name: activation for activation, (_, name) in ACTIVATIONS.items()}
    normalization = network.normalization
    return {
        "include_top": network.classes is not None,
        "input_shape": network.input_shape,
        "pooling": _pooling(network),
        "classes": network.classes or 1,
        "classifier_activation": names.get(network.outputs[0]),
        "name": network.name,
        "head": "both" if len(network.outputs) == 2 else "average",
        "mean": None if normalization is None else normalization.mean,
        "std": None if normalization is None else normalization.std,
        "labels": network.labels,
    }


def _pooling(network: FusedNetwork) -> str | None:
    if network.outputs != ("embedding",):
        return None
    return "max" if any(step.operation == "max" for step in network.steps) else "avg"


def deviation(network: FusedNetwork) -> np.ndarray | float:
    """What the first convolution's weights were divided by, for each channel of the image."""
    return 255.0 * np.array(network.normalization.std) if network.preprocessing and network.normalization else 1.0


def set_layer(
    layer: Any, arguments: dict[str, Any], in_factor: np.ndarray | float = 1.0, out_factor: np.ndarray | float = 1.0
) -> None:
    """Sets a convolution or dense to a step's weights, times a factor for each channel in and out."""
    layer.kernel.assign(arguments["weights"] * np.reshape(in_factor, (-1, 1)) * out_factor)
    layer.bias.assign(arguments["bias"] * out_factor)
