"""Which tensors of a .tflite file a step of the network has become: the bridge from learnt ranges to the quantizer.

The builder names every tensor after its step, `gelu_12/GELU` (`tflite_builder.StepScopes`).
"""

import re
from collections import defaultdict
from typing import Any

from keras_efficientformer.deploy.recording import FusedNetwork
from keras_efficientformer.deploy.tflite_file import operators, tensor_names
from keras_efficientformer.deploy.tflite_modes import INPUT

# They give what they take, in another shape, and share its quantization.
RESHAPING = ("PAD", "RESHAPE")
# Steps of whose inner tensors nothing is learnt: those of LayerNorm are float, those of the mixer its input's border.
LAST_ONLY = ("layer_norm", "pooling_mixer")


def tensor_ranges(
    file: Any, network: FusedNetwork, ranges: dict[int, list[tuple[float, float]]]
) -> dict[str, tuple[float, float]]:
    """The ranges of steps as ranges of a file's tensors.

    Args:
        file: the float32 file (`ModelT`) that the network was built as, its ends not yet named.
        network: which it was made of.
        ranges: {number of the step: (smallest, largest) of its tensors in the order they are made}.

    Returns:
        {name of the tensor, the ends being named as in the finished file: (smallest, largest)}.

    Raises:
        ValueError: a step has become another number of tensors than it has ranges.
    """
    graph, names = file.subgraphs[0], tensor_names(file)
    made: dict[int, list[int]] = defaultdict(list)
    for kind, operator in operators(file):
        if kind not in RESHAPING:
            made[step_number(names[operator.outputs[0]])] += operator.outputs
    if network.steps[0].arguments["mean"] is None:
        made[0] = list(graph.inputs)
    finished = dict(enumerate(names)) | dict(
        zip((*graph.inputs, *graph.outputs), (INPUT, *network.outputs), strict=True)
    )
    found: dict[str, tuple[float, float]] = {}
    for number, points in ranges.items():
        operation = network.steps[number].operation
        tensors = made[number][-1:] if operation in LAST_ONLY else made[number]
        if len(tensors) != len(points):
            raise ValueError(
                f"Step {number} of {network.name}, {operation}, has {len(points)} learnt ranges "
                f"and became {len(tensors)} tensors of the file: {[names[index] for index in tensors]}."
            )
        found |= {finished[index]: point for index, point in zip(tensors, points, strict=True)}
    return found


def step_number(name: str) -> int:
    """The number of the step that a tensor's name says it belongs to."""
    found = re.match(r"[a-z_]+_(\d+)/", name)
    assert found, name
    return int(found[1])


def makers_of_outputs(network):
    makers = {result: number for number, step in enumerate(network.steps) for result in step.results}
    return [makers[step.arguments["x"]] for step in network.steps if step.operation == "output"]
