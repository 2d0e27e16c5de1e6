"""Computes the tensors of a Core ML package beside those of the float32 network, step by step. Room: deploy/coreml.

The network is built anew as an ML Program in float32, which nothing optimises or rounds, and computed operation by
operation as the package is; tensors of one name correspond.
"""

from collections.abc import Iterator
from typing import Any

import coremltools
import keras
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Operation, Program, Var

from keras_efficientformer.deploy.coreml.builder import MILBuilder
from keras_efficientformer.deploy.coreml.package import CONSTANTS, MAIN, Package
from keras_efficientformer.deploy.coreml.plan import Plan
from keras_efficientformer.deploy.coreml.program import dtype_name
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.coreml.step_names import FLOAT16_CAST, step_results
from keras_efficientformer.deploy.network.file_steps import StepTensors, mismatch
from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.deploy.report import CLASS_NUMBERS

# These operations unpack constants, which are stored in these ways.
STORAGE = {
    "constexpr_affine_dequantize": "int8",
    "constexpr_blockwise_shift_scale": "int8",
    "constexpr_lut_to_dense": "palette",
    "constexpr_sparse_to_dense": "sparse",
}


class CoreMLSteps:
    """Implements `FileSteps` for Core ML packages.

    Args:
        package: one that `export_coreml` made.
        model: the Keras model it was made of.

    Raises:
        ValueError: the package is none of `export_coreml`'s, or of another model.
    """

    def __init__(self, package: CoreMLModel, model: keras.Model):
        self._path, self._package = package.path, package
        made = step_results(package.block)
        if not made:
            raise ValueError(
                f"{self._path} does not say which of its tensors belong to which layer: it was not made by "
                "export_coreml, or by an older version of it. Export the model again."
            )
        names = [output.name for output in self._package.outputs]
        normalised_inside = any(number == 0 for number, _ in made.values())
        network = fuse(model, include_preprocessing=normalised_inside, feature_maps="stage1" in names)
        self.network = network.without_softmax() if CLASS_NUMBERS in names else network
        shape = self._package.input_shape
        self._check(shape == self.network.input_shape, f"an input of {list(shape)}")
        reference = _program(self.network)
        self._steps = step_results(reference.functions[MAIN])
        self._plan = Plan(Package(self._path, None, reference, None, {}))
        tensors = [tensor for operation in self._plan.operations for tensor in operation.outputs]
        shapes = {self._steps[tensor.key]: tensor.shape for tensor in tensors if tensor.key in self._steps}
        # coremltools joins a norm and the factors after it; an output that it makes so has the output's name alone.
        ends = {output.name: self._steps[id(output)] for output in reference.functions[MAIN].outputs}
        self._names: dict[tuple[int, int], str] = {}
        self.stored: dict[int, tuple[str, str | None]] = {}
        for operation in package.block.operations:
            for variable in operation.outputs:
                end = ends.get(variable.name.removesuffix(FLOAT16_CAST))
                result = made.get(id(variable)) or (end if end not in self._names else None)
                if result:
                    fits = shapes.get(result) == tuple(variable.shape)
                    self._check(fits, f"{operation.name} of {list(variable.shape)}")
                    self._names[result] = variable.name
                    self.stored[result[0]] = _types(operation, variable)
        last = max(shapes)[0]
        self._check(last in self.stored, f"no step {last} and the outputs {', '.join(names)}")

    def compare(self, images: np.ndarray) -> Iterator[StepTensors]:
        package = self._package.tensors(images)
        image = images.transpose(0, 3, 1, 2).astype("float32")
        exact, expected = {self._plan.input.key: image}, {self._plan.input.key: image}
        for operation in self._plan.operations:
            results = operation.run(exact), operation.run(expected)
            for tensor, ours, theirs in zip(operation.outputs, *results, strict=True):
                exact[tensor.key], expected[tensor.key] = ours, theirs
                result = self._steps.get(tensor.key)
                if result in self._names:
                    found = package[self._names[result]]
                    yield StepTensors(result[0], ours, theirs, found)
                    expected[tensor.key] = found
            for key in operation.last_used:
                del exact[key], expected[key]

    def _check(self, fits: bool, found: str) -> None:
        if not fits:
            raise ValueError(mismatch(self._path, found, self.network))


def _program(network: FusedNetwork) -> Program:
    """The network as an ML Program in float32, as the builder writes it."""
    height, width, channels = network.input_shape
    image = mb.TensorSpec(shape=(1, channels, height, width))

    @mb.program(input_specs=[image], opset_version=coremltools.target.iOS16)
    def program(image: Any) -> tuple[Any, ...]:
        return tuple(network.build(MILBuilder(image)).values())

    # coremltools' own conversions do so too: else the next export's names would go on counting.
    mb.name_count.clear()
    return program


def _types(operation: Operation, variable: Var) -> tuple[str, str | None]:
    """What a result and the largest constant that it is computed with are stored as; vectors do not count."""
    if operation.op_type == "dequantize":
        # What only moves int8 values has no weights, and no number that it rounds.
        exact = getattr(operation.input.op, "input", None)
        weights = _types(exact.op, exact)[1] if exact is not None and exact.op else None
        return dtype_name(operation.input), weights
    constants = [
        value
        for value in operation.inputs.values()
        if getattr(value, "op", None) is not None and value.op.op_type in CONSTANTS and value.rank > 1
    ]
    largest = max(constants, key=lambda value: np.prod(value.shape), default=None)
    weights = None if largest is None else STORAGE.get(largest.op.op_type, dtype_name(largest))
    return dtype_name(variable), weights
