"""The names in a .tflite file, made and parsed: of its ends, and of the tensors of each step. Room: deploy/tflite.

Every tensor is named after the step that makes it, `gelu_12/GELU` for step 12: the name of the operator within the
step's scope. Converters and quantizers that join tensors join their names too, with ";" between them.
"""

import re

INPUT = "image"
SIGNATURE = "serving_default"
# The sum of attention's scores and biases is called so within its scope.
ADD_TABLE = "ADD_TABLE"

_SCOPE = re.compile(r"(?:^|;)([a-z_]+)_(\d+)/")


def scope(operation: str, number: int) -> str:
    """What the names of a step's tensors start with, without the slash: "gelu_12"."""
    return f"{operation}_{number}"


def scope_pattern(operation: str) -> str:
    """A regular expression for the names of all tensors that steps of one operation make, as recipes take it."""
    return rf"{operation}_\d+/"


def steps_in(name: str) -> list[tuple[str, int]]:
    """(operation, number) of the steps that a tensor's name says it belongs to, in its order; often one."""
    return [(operation, int(number)) for operation, number in _SCOPE.findall(name)]
