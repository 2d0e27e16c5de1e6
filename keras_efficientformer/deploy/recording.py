"""A network as a list of steps: what a description says once, and every builder is told again.

Recording rounds the folded weights to float32, once, and takes them out of the model: what is built later is the model
as it was when it was fused.
"""

import copy
import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from keras_efficientformer.deploy.builder import Builder, Tensor


@dataclass(frozen=True)
class Value:
    """Stands for a tensor while a network is recorded: the number of the result that will be it."""

    number: int


@dataclass(frozen=True)
class Step:
    """One operation of `Builder`, its arguments, and the values it gives.

    Attributes:
        location: where in the Keras model it comes from, such as `stage3.blocks.2.mlp.fc1`.
    """

    operation: str
    arguments: dict[str, Any]
    results: tuple[Value, ...]
    location: str = ""


class Recorder:
    """A builder that builds nothing and remembers everything; the last steps name the outputs."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._numbers = itertools.count()
        self._location: tuple[str, ...] = ()

    def at(self, location: str) -> "Recorder":
        """The same recorder, for what lies at `location` within the place that this one is for."""
        inner = copy.copy(self)
        inner._location = (*self._location, location)
        return inner

    def __getattr__(self, operation):
        if operation.startswith("_") or not hasattr(Builder, operation):
            raise AttributeError(f"Builder has no operation {operation!r}")
        return partial(self._record, operation)

    def _record(self, operation, *values, **arguments):
        names = list(Builder.__dict__[operation].__annotations__)
        arguments = {name: _rounded(value) for name, value in (*zip(names, values, strict=False), *arguments.items())}
        count = len(arguments["sizes"]) if operation == "split_heads" else 1
        results = tuple(Value(next(self._numbers)) for _ in range(count))
        self.steps.append(Step(operation, arguments, results, ".".join(self._location)))
        return results if operation == "split_heads" else results[0]


def _rounded(argument):
    return argument.astype("float32") if isinstance(argument, np.ndarray) else argument


@dataclass(frozen=True)
class FusedNetwork:
    """A network that any builder can build.

    Attributes:
        name: of the model.
        paper: its family's name and paper.
        input_shape: (height, width, channels) of the image.
        preprocessing: whether the image is raw RGB in 0..255; else it is normalised as `preprocess_input` does.
        outputs: names of the outputs, in the order of the Keras model's.
        classes: number of classes, or None without a classifier.
        steps: the network, in an order in which every value is made before it is used.
    """

    name: str
    paper: str
    input_shape: tuple[int, int, int]
    preprocessing: bool
    outputs: tuple[str, ...]
    classes: int | None
    steps: tuple[Step, ...]

    def build(self, builder: Builder) -> dict[str, Tensor]:
        """Tells the network to a builder; returns {output name: tensor} in the order of `outputs`."""
        values: dict[Value, Tensor] = {}
        outputs = {}
        for step in self.steps:
            arguments = {
                name: values[argument] if isinstance(argument, Value) else argument
                for name, argument in step.arguments.items()
            }
            made = getattr(builder, step.operation)(**arguments)
            values |= zip(step.results, made if len(step.results) > 1 else (made,), strict=True)
            if step.operation == "output":
                outputs[step.arguments["name"]] = made
        return outputs
