"""Which tensors of a Core ML package a step of the network has become: they bear its number, `step12_gelu`.

coremltools' own names count through a whole process. What the conversion to float16 makes anew it names after the
operation that it replaces, with "_cast_fp16" at the end.
"""

import itertools
import re
from typing import Any

NAME = re.compile(r"step(\d+)_[a-z_]+(_cast_fp16)?")


class StepNames:
    """A builder that names what a `MILBuilder` makes after the step; a result that is an argument keeps its name."""

    def __init__(self, builder):
        self._builder = builder
        self._numbers = itertools.count()

    def __getattr__(self, operation):
        number, method = next(self._numbers), getattr(self._builder, operation)
        name = f"step{number}_{operation}"

        def build(**arguments):
            made = method(**arguments)
            if isinstance(made, tuple):
                made[0].op.name = name
                for index, result in enumerate(made):
                    result.set_name(f"{name}_{index}")
            elif made.op is not None and all(made is not argument for argument in arguments.values()):
                made.op.name = name
                made.set_name(name)
            return made

        return build


def step_results(program: Any) -> dict[int, tuple[int, int]]:
    """{identity of a variable: (number of a step, which of its results it is)} of an ML Program's main function."""
    return {
        id(variable): (int(found[1]), index)
        for operation in program.functions["main"].operations
        if (found := NAME.fullmatch(operation.name))
        for index, variable in enumerate(operation.outputs)
    }
