"""The tensors of a Core ML package beside those of the float32 network, step by step; `layer_errors.py` sums them up.

The network is built anew as an ML Program in float32, which nothing optimises or rounds, and computed operation by
operation as the package is; tensors of one name correspond.
"""

from collections.abc import Iterator
from pathlib import Path

import coremltools
import keras
import numpy as np
from coremltools.converters.mil import Builder as mb

from keras_efficientformer.deploy.coreml import takes_rgb
from keras_efficientformer.deploy.coreml_builder import MILBuilder
from keras_efficientformer.deploy.coreml_lint import dtype_name
from keras_efficientformer.deploy.coreml_model import CoreMLModel
from keras_efficientformer.deploy.coreml_package import CONSTANTS, Package, load_package
from keras_efficientformer.deploy.coreml_plan import Plan
from keras_efficientformer.deploy.coreml_steps import StepNames, step_results
from keras_efficientformer.deploy.layer_errors import StepTensors, mismatch
from keras_efficientformer.deploy.network import fuse

# How a constant is stored, by the operation that unpacks it.
STORAGE = {
    "constexpr_affine_dequantize": "int8",
    "constexpr_blockwise_shift_scale": "int8",
    "constexpr_lut_to_dense": "palette",
    "constexpr_sparse_to_dense": "sparse",
}


class CoreMLSteps:
    """Implements `FileSteps` for Core ML packages.

    Args:
        path: a package that `export_coreml` made.
        model: the Keras model it was made of.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it cannot be read (`PackageError`), is none of `export_coreml`'s, or of another model.
    """

    def __init__(self, path: Path, model: keras.Model):
        self._path, self._package = path, CoreMLModel(path)
        program = load_package(path).program
        made = step_results(program)
        if not made:
            raise ValueError(
                f"{path} does not say which of its tensors belong to which layer: it was not made by export_coreml, or "
                "by an older version of it. Export the model again."
            )
        names = [output.name for output in self._package.outputs]
        self.network = fuse(model, include_preprocessing=takes_rgb(model), feature_maps="stage1" in names)
        shape = self._package.input_shape
        self._check(shape == self.network.input_shape, f"an input of {list(shape)}")
        reference = _program(self.network)
        self._steps = step_results(reference)
        self._plan = Plan(Package(path, None, reference, None, {}))
        tensors = [tensor for step in self._plan.steps for tensor in step.outputs]
        shapes = {self._steps[tensor.key]: tensor.shape for tensor in tensors if tensor.key in self._steps}
        self._names = {}
        self.stored = {}
        for operation in program.functions["main"].operations:
            for variable in operation.outputs:
                if result := made.get(id(variable)):
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
        for step in self._plan.steps:
            for tensor, ours, theirs in zip(step.outputs, step.run(exact), step.run(expected), strict=True):
                exact[tensor.key], expected[tensor.key] = ours, theirs
                result = self._steps.get(tensor.key)
                if result in self._names:
                    found = package[self._names[result]]
                    yield StepTensors(result[0], ours, theirs, found)
                    expected[tensor.key] = found
            for key in step.last_used:
                del exact[key], expected[key]

    def _check(self, fits, found):
        if not fits:
            raise ValueError(mismatch(self._path, found, self.network))


def _program(network):
    height, width, channels = network.input_shape
    image = mb.TensorSpec(shape=(1, channels, height, width))

    @mb.program(input_specs=[image], opset_version=coremltools.target.iOS16)
    def program(image):
        return tuple(network.build(StepNames(MILBuilder(image))).values())

    mb.name_count.clear()  # as coremltools' own conversions do, or the next export would go on counting
    return program


def _types(operation, variable):
    """What a result and the largest constant that it is computed with are stored as; vectors do not count."""
    constants = [
        value
        for value in operation.inputs.values()
        if getattr(value, "op", None) is not None and value.op.op_type in CONSTANTS and value.rank > 1
    ]
    largest = max(constants, key=lambda value: np.prod(value.shape), default=None)
    weights = None if largest is None else STORAGE.get(largest.op.op_type, dtype_name(largest))
    return dtype_name(variable), weights
