"""Makes and parses the names of a step's tensors in a Core ML package, `step12_gelu`. Room: deploy/coreml.

coremltools' own names count through a whole process. What its conversion to float16 makes anew it names after the
operation that it replaces, with "_cast_fp16" at the end; of several results each has its number at the end. Where a
result is rounded to int8, what is rounded stands for the step, and is the later one.
"""

import re
from typing import Any

# What a name ends in that coremltools' conversion to float16 has made.
FLOAT16_CAST = "_cast_fp16"
_NAME = re.compile(rf"step(\d+)_[a-z_]+?(?:_(\d+)_rounded)?(?:{FLOAT16_CAST})?")


def operation_name(operation: str, number: int) -> str:
    """The name of the operation that a step becomes, and of its result: "step12_gelu"."""
    return f"step{number}_{operation}"


def result_name(operation: str, number: int, index: int) -> str:
    """The name of one of several results: "step7_split_heads_0"."""
    return f"{operation_name(operation, number)}_{index}"


def int8_name(name: str) -> str:
    """The name of a result as it is stored: "step12_gelu_int8"; it is no step's."""
    return f"{name}_int8"


def rounded_name(name: str) -> str:
    """The name of a result that was rounded to int8, again as a number: "step12_gelu_rounded"."""
    return f"{name}_rounded"


def step_results(block: Any) -> dict[int, tuple[int, int]]:
    """{identity of a variable: (number of a step, which of its results it is)} of an ML Program's function."""
    return {
        id(variable): (int(found[1]), int(found[2] or index))
        for operation in block.operations
        if (found := _NAME.fullmatch(operation.name))
        for index, variable in enumerate(operation.outputs)
    }
