"""The tensors of a .tflite file beside those of the float32 network, step by step; `layer_errors.py` sums them up.

The exporter builds each step in a name scope of its own (`StepScopes`), which stays in the names of tensors through
conversion and quantization. What the file says of itself is read through LiteRT alone.
"""

import itertools
import math
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_efficientformer.deploy import exporting
from keras_efficientformer.deploy.keras_builder import KerasBuilder
from keras_efficientformer.deploy.layer_errors import StepTensors, mismatch
from keras_efficientformer.deploy.litert import LiteRTModel, quantized, real_values, tensor_infos
from keras_efficientformer.deploy.network import fuse
from keras_efficientformer.deploy.tflite_steps import makers_of_outputs

# Operators whose result is their first input, stored as another type or in another shape.
PASSING = ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "PAD")
# Steps that end in another layout, and the operator that makes it: the builder may move it behind the next step, and
# then the file has no such tensor.
LAST_OPERATORS = {"talking_heads": "TRANSPOSE", "to_heads": "TRANSPOSE", "merge_heads": "TRANSPOSE"}
# Of tensors that stand for real values.
REAL = ("float32", "float16", "int8", "int16")
SCOPE = re.compile(r"(?:^|;)([a-z_]+)_(\d+)/")


class TFLiteSteps:
    """Implements `FileSteps` for .tflite files.

    Args:
        path: a file that `export_tflite` made.
        model: the Keras model it was made of.

    Raises:
        OSError, ValueError: the file is missing, none of `export_tflite`'s, or of another model.
        ImportError: LiteRT is not installed.
    """

    def __init__(self, path: Path, model: keras.Model):
        exporting.require("TFLite", "tflite", "ai_edge_litert")
        checked = LiteRTModel(path)
        self._path = path
        self._interpreter = _interpreter(path)
        (self._input,) = self._interpreter.get_input_details()
        self._tensors = {detail["index"]: detail for detail in self._interpreter.get_tensor_details()}
        operators = [o for o in self._interpreter._get_ops_details() if o["op_name"] != "DELEGATE"]
        self._origins = {int(o["outputs"][0]): int(o["inputs"][0]) for o in operators if o["op_name"] in PASSING}
        self._operators = [operator for operator in operators if operator["op_name"] not in PASSING]
        scopes = self._scopes()
        self.network = fuse(model, include_preprocessing=any(("image", 0) in found for found in scopes.values()))
        self._check(checked.input_shape == self.network.input_shape, f"an input of {list(checked.input_shape)}")
        names = tuple(output.name for output in checked.outputs)
        self._check(names == self.network.outputs, f"the outputs {', '.join(names)}")
        self._check_steps(scopes)
        makers = self._makers(scopes)
        self._results = self._find_results(makers)
        self.stored = {number: self._types(number, makers) for number in self._results}

    def compare(self, images: np.ndarray) -> Iterator[StepTensors]:
        beside = _SideBySide(KerasBuilder(images), self._run(images), self._check)
        self.network.build(beside)
        return iter(beside.tensors)

    def _scopes(self):
        """{tensor that an operator makes: [(operation, number of the step), ...]}."""
        scopes = {}
        for index in (int(index) for operator in self._operators for index in operator["outputs"]):
            found = SCOPE.findall(self._tensors[index]["name"])
            scopes[index] = [(operation, int(number)) for operation, number in found]
        if not any(scopes.values()):
            raise ValueError(
                f"{self._path} does not say which of its tensors belong to which layer: it was not made by "
                "export_tflite, or by an older version of it. Export the model again."
            )
        return scopes

    def _check(self, fits, found):
        if not fits:
            raise ValueError(mismatch(self._path, found, self.network))

    def _check_steps(self, scopes):
        steps = self.network.steps
        named = {item for found in scopes.values() for item in found}
        for operation, number in sorted(named, key=lambda item: item[1]):
            fits = number < len(steps) and steps[number].operation == operation
            self._check(fits, f"{operation} as its step {number}")

    def _makers(self, scopes):
        """{tensor: number of the step that makes it}."""
        makers = {index: max(number for _, number in found) for index, found in scopes.items() if found}
        if not self.network.preprocessing:
            makers[self._input["index"]] = 0
        # The file's ends have names of their own.
        outputs = [self._origin(detail["index"]) for detail in self._interpreter.get_output_details()]
        return makers | dict(zip(outputs, makers_of_outputs(self.network), strict=True))

    def _origin(self, index):
        while index in self._origins:
            index = self._origins[index]
        return int(index)

    def _find_results(self, makers):
        """{step: its results}: the tensors that it makes, and that another step or nobody reads."""
        readers = defaultdict(set)
        operations = {int(index): operator["op_name"] for operator in self._operators for index in operator["outputs"]}
        for operator in self._operators:
            for index in operator["inputs"]:
                readers[self._origin(index)].add(makers.get(int(operator["outputs"][0])))
        results = defaultdict(list)
        for index, maker in makers.items():
            last = LAST_OPERATORS.get(self.network.steps[maker].operation)
            if readers[index] != {maker} and last in (None, operations.get(index)):
                results[maker].append(index)
        for number, found in results.items():
            found.sort(key=lambda index: self._tensors[index]["name"])
            expected = len(self.network.steps[number].results)
            self._check(len(found) == expected, f"{len(found)} results of step {number} instead of {expected}")
        return dict(results)

    def _types(self, number, makers):
        """What the step's results and its largest constant are stored as; axes and biases do not count."""
        read = {
            self._origin(index)
            for operator in self._operators
            if makers.get(int(operator["outputs"][0])) == number
            for index in operator["inputs"]
        }
        constants = [self._tensors[index] for index in read - makers.keys() - {self._input["index"]} if index >= 0]
        weights = [tensor for tensor in constants if np.dtype(tensor["dtype"]).name in REAL]
        largest = max(weights, key=lambda tensor: np.prod(tensor["shape"]), default=None)
        stored = self._tensors[self._results[number][0]]
        return tuple(None if tensor is None else np.dtype(tensor["dtype"]).name for tensor in (stored, largest))

    def _run(self, images):
        """{step: its results, real values (images, values of one)}."""
        batch_size = self._input["shape"][0]
        (image,) = tensor_infos([self._input])
        found = {number: [[] for _ in indices] for number, indices in self._results.items()}
        for start in range(0, len(images), batch_size):
            part = quantized(images[start : start + batch_size], image)
            batch = np.zeros(self._input["shape"], self._input["dtype"])
            batch[: len(part)] = part
            self._interpreter.set_tensor(self._input["index"], batch)
            self._interpreter.invoke()
            for number, indices in self._results.items():
                for parts, index in zip(found[number], indices, strict=True):
                    (tensor,) = tensor_infos([self._tensors[index]])
                    values = real_values(self._interpreter.get_tensor(index), tensor)
                    parts.append(values.reshape(batch_size, -1)[: len(part)])
        return {number: [np.concatenate(parts) for parts in results] for number, results in found.items()}


def _interpreter(path):
    from ai_edge_litert.interpreter import Interpreter

    with warnings.catch_warnings():
        # That keeping all tensors takes memory is known.
        warnings.simplefilter("ignore", UserWarning)
        interpreter = Interpreter(str(path), num_threads=os.cpu_count(), experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    return interpreter


@dataclass(frozen=True)
class _Pair:
    """A tensor of the float32 network, and the same of the file."""

    exact: Any
    found: Any


class _SideBySide:
    """A builder of pairs: computes every step on the network's own tensors and on those of the file.

    Args:
        builder: in which tensors are values.
        found: {step: the file's results, (images, values)}; of others what has been computed is handed on.
        check: raises an error that says what was found, unless its first argument holds.

    Attributes:
        tensors: of all steps in `found`, after building.
    """

    def __init__(self, builder, found, check):
        self._builder, self._found, self._check = builder, found, check
        self._numbers = itertools.count()
        self.tensors: list[StepTensors] = []

    def __getattr__(self, operation):
        number, method = next(self._numbers), getattr(self._builder, operation)

        def build(**arguments):
            exact, expected = (method(**_one_side(arguments, side)) for side in ("exact", "found"))
            if not isinstance(exact, tuple):
                return self._pair(number, 0, exact, expected)
            both = zip(exact, expected, strict=True)
            return tuple(self._pair(number, index, *tensors) for index, tensors in enumerate(both))

        return build

    def _pair(self, number, index, exact, expected):
        if number not in self._found:
            return _Pair(exact, expected)
        found = self._found[number][index]
        size = math.prod(exact.shape[1:])
        self._check(found.shape[1] == size, f"{found.shape[1]} values of its step {number} where that has {size}")
        found = found.reshape(exact.shape)
        self.tensors.append(StepTensors(number, *map(keras.ops.convert_to_numpy, (exact, expected)), found))
        return _Pair(exact, found)


def _one_side(arguments, side):
    return {name: getattr(value, side) if isinstance(value, _Pair) else value for name, value in arguments.items()}
