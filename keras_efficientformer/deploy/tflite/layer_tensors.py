"""Computes the tensors of a .tflite file beside those of the float32 network, step by step. Room: deploy/tflite.

The builder names every tensor after its step (`step_names`), and that name stays through quantization. What the file
says of itself is read through LiteRT, but for the types of its tensors.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_efficientformer.deploy.network.file_steps import StepTensors, mismatch
from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.deploy.network.keras_builder import KerasBuilder
from keras_efficientformer.deploy.network.recording import FusedNetwork, Value
from keras_efficientformer.deploy.tflite.metadata import tensor_types
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.deploy.tflite.step_names import steps_in

# The result of these operators is their first input, stored as another type or in another shape.
PASSING = ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "PAD")
# These steps end in another layout, which the operator makes: the builder may move it behind the next step, and then
# the file has no such tensor.
LAST_OPERATORS = {"talking_heads": "TRANSPOSE", "to_heads": "TRANSPOSE", "merge_heads": "TRANSPOSE"}
# Tensors of these types stand for real values.
REAL = ("float32", "float16", "int4", "int8", "int16")


# This maps a tensor that an operator makes to [(operation, number of the step), ...].
Scopes = dict[int, list[tuple[str, int]]]


class TFLiteSteps:
    """Implements `FileSteps` for .tflite files.

    Args:
        file: one that `export_tflite` made, opened with `keep_tensors`.
        model: the Keras model it was made of.

    Raises:
        ValueError: the file is none of `export_tflite`'s, or of another model.
    """

    def __init__(self, file: LiteRTModel, model: keras.Model) -> None:
        self._file = file
        self._input, self._outputs = file.ends()
        self._tensors = file.tensor_details()
        self._stored_types = tensor_types(file.path, file.subgraph)
        operators = file.operator_details()
        self._origins = {int(o["outputs"][0]): int(o["inputs"][0]) for o in operators if o["op_name"] in PASSING}
        self._operators = [operator for operator in operators if operator["op_name"] not in PASSING]
        scopes = self._scopes()
        self.network = fuse(model, include_preprocessing=any(("image", 0) in found for found in scopes.values()))
        self._check(file.input_shape == self.network.input_shape, f"an input of {list(file.input_shape)}")
        names = tuple(output.name for output in file.outputs)
        self._check(names == self.network.outputs, f"the outputs {', '.join(names)}")
        self._check_steps(scopes)
        makers = self._makers(scopes)
        self._results = self._find_results(makers)
        self.stored = {number: self._types(number, makers) for number in self._results}

    def compare(self, images: np.ndarray) -> Iterator[StepTensors]:
        builder, found = KerasBuilder(images), self._run(images)
        # The first has the float32 network's own tensors; the second has those of the file where it has them.
        exact: dict[Value, Any] = {}
        stored: dict[Value, Any] = {}
        for number, step in enumerate(self.network.steps):
            ours, expected = step.build(builder, exact), step.build(builder, stored)
            exact |= zip(step.results, ours, strict=True)
            stored |= zip(step.results, expected, strict=True)
            for index, values in enumerate(found.get(number, ())):
                size = math.prod(ours[index].shape[1:])
                text = f"{values.shape[1]} values of its step {number} where that has {size}"
                self._check(values.shape[1] == size, text)
                values = values.reshape(ours[index].shape)
                exact_values, expected_values = map(keras.ops.convert_to_numpy, (ours[index], expected[index]))
                yield StepTensors(number, exact_values, expected_values, values)
                stored[step.results[index]] = values

    def _scopes(self) -> Scopes:
        """The steps that the name of each tensor says it belongs to."""
        scopes: Scopes = {}
        for index in (int(index) for operator in self._operators for index in operator["outputs"]):
            scopes[index] = steps_in(self._tensors[index]["name"])
        if not any(scopes.values()):
            raise ValueError(
                f"{self._file.path} does not say which of its tensors belong to which layer: it was not made by "
                "export_tflite, or by an older version of it. Export the model again."
            )
        return scopes

    def _check(self, fits: bool, found: str) -> None:
        if not fits:
            raise ValueError(mismatch(self._file.path, found, self.network))

    def _check_steps(self, scopes: Scopes) -> None:
        steps = self.network.steps
        named = {item for found in scopes.values() for item in found}
        for operation, number in sorted(named, key=lambda item: item[1]):
            fits = number < len(steps) and steps[number].operation == operation
            self._check(fits, f"{operation} as its step {number}")

    def _makers(self, scopes: Scopes) -> dict[int, int]:
        """{tensor: number of the step that makes it}."""
        makers = {index: max(number for _, number in found) for index, found in scopes.items() if found}
        if not self.network.preprocessing:
            makers[self._input] = 0
        # The file's ends have names of their own, which say nothing of steps.
        outputs = [self._origin(index) for index in self._outputs]
        return makers | dict(zip(outputs, _makers_of_outputs(self.network), strict=True))

    def _origin(self, index: int) -> int:
        while index in self._origins:
            index = self._origins[index]
        return int(index)

    def _find_results(self, makers: dict[int, int]) -> dict[int, list[int]]:
        """{step: its results}: the tensors that it makes, and that another step or nobody reads."""
        readers: dict[int, set[int | None]] = defaultdict(set)
        operations = {int(index): operator["op_name"] for operator in self._operators for index in operator["outputs"]}
        for operator in self._operators:
            for index in operator["inputs"]:
                readers[self._origin(index)].add(makers.get(int(operator["outputs"][0])))
        results: dict[int, list[int]] = defaultdict(list)
        for index, maker in makers.items():
            last = LAST_OPERATORS.get(self.network.steps[maker].operation)
            if readers[index] != {maker} and last in (None, operations.get(index)):
                results[maker].append(index)
        for number, found in results.items():
            found.sort(key=lambda index: self._tensors[index]["name"])
            expected = len(self.network.steps[number].results)
            self._check(len(found) == expected, f"{len(found)} results of step {number} instead of {expected}")
        return dict(results)

    def _types(self, number: int, makers: dict[int, int]) -> tuple[str, str | None]:
        """What the step's results and its largest constant are stored as; axes and biases do not count."""
        read = {
            self._origin(index)
            for operator in self._operators
            if makers.get(int(operator["outputs"][0])) == number
            for index in operator["inputs"]
        }
        types = self._stored_types
        constants = [index for index in read - makers.keys() - {self._input} if index >= 0]
        weights = [index for index in constants if types[index] in REAL]
        largest = max(weights, key=lambda index: np.prod(self._tensors[index]["shape"]), default=None)
        return types[self._results[number][0]], None if largest is None else types[largest]

    def _run(self, images: np.ndarray) -> dict[int, list[np.ndarray]]:
        """{step: its results, real values (images, values of one)}."""
        found = self._file.tensors(images, [index for indices in self._results.values() for index in indices])
        return {number: [found[index] for index in indices] for number, indices in self._results.items()}


def _makers_of_outputs(network: FusedNetwork) -> list[int]:
    """The numbers of the steps that make what the outputs are."""
    makers = {result: number for number, step in enumerate(network.steps) for result in step.results}
    return [makers[step.arguments["x"]] for step in network.steps if step.operation == "output"]
