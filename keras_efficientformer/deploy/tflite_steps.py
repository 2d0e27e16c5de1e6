"""Which tensors of a .tflite file a step of the network has become: the bridge from learnt ranges to the quantizer.

Operations are made in a name scope for each step, `gelu_12/...`, which TensorFlow's converter keeps in the names of
tensors. Where it has merged operations, names are merged too: the tensor belongs to the last step in its name.
"""

import re
from collections import defaultdict

from keras_efficientformer.deploy.recording import FusedNetwork
from keras_efficientformer.deploy.tflite_modes import INPUT

# They give what they take, in another shape, and share its quantization.
RESHAPING = ("PAD", "RESHAPE")


class StepScopes:
    """A builder that names what another one makes after the step: operation and number."""

    def __init__(self, builder):
        self._builder = builder
        self._count = 0

    def __getattr__(self, operation):
        import tensorflow as tf

        scope = tf.name_scope(f"{operation}_{self._count}")
        self._count += 1

        def build(**arguments):
            with scope:
                return getattr(self._builder, operation)(**arguments)

        return build


def tensor_ranges(
    content: bytes, network: FusedNetwork, ranges: dict[int, list[tuple[float, float]]]
) -> dict[str, tuple[float, float]]:
    """The ranges of steps as ranges of a file's tensors.

    Args:
        content: the float32 file that the network has been converted to, its ends not yet named.
        network: which it was made of.
        ranges: {number of the step: (smallest, largest) of its tensors in the order they are made}.

    Returns:
        {name of the tensor, the ends being named as in the finished file: (smallest, largest)}.

    Raises:
        ValueError: a step has become another number of tensors than it has ranges.
    """
    from tensorflow.lite.tools import flatbuffer_utils

    file = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = file.subgraphs[0]
    names = {index: tensor.name.decode() for index, tensor in enumerate(graph.tensors)}
    # The converter names the ends as it likes.
    ends = dict(zip(graph.outputs, makers_of_outputs(network), strict=True))
    made = defaultdict(list)
    for operator in graph.operators:
        if flatbuffer_utils.opcode_to_name(file, operator.opcodeIndex) not in RESHAPING:
            for index in operator.outputs:
                made[ends[index] if index in ends else _last_step(names[index])].append(index)
    if network.steps[0].arguments["mean"] is None:
        made[0] = list(graph.inputs)
    names |= zip((*graph.inputs, *graph.outputs), (INPUT, *network.outputs), strict=True)
    found: dict[str, tuple[float, float]] = {}
    for number, points in ranges.items():
        operation = network.steps[number].operation
        # Of the inner tensors of a LayerNorm, which are float, nothing is learnt.
        tensors = made[number][-1:] if operation == "layer_norm" else made[number]
        if len(tensors) != len(points):
            raise ValueError(
                f"Step {number} of {network.name}, {operation}, has {len(points)} learnt ranges "
                f"and became {len(tensors)} tensors of the file: {[names[index] for index in tensors]}."
            )
        found |= {names[index]: point for index, point in zip(tensors, points, strict=True)}
    return found


def _last_step(name):
    """The number of the last step in a tensor's name, such as `relu_4/Relu;convolution_3/BiasAdd`."""
    return max(map(int, re.findall(r"(?:^|;)\w+_(\d+)/", name)))


def makers_of_outputs(network):
    makers = {result: number for number, step in enumerate(network.steps) for result in step.results}
    return [makers[step.arguments["x"]] for step in network.steps if step.operation == "output"]
