"""Plans an ML Program: its operations in order, as NumPy functions with constants bound. Room: deploy/coreml.

What cannot be run, or not for several images at once, is found here, before any image is.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_efficientformer.deploy.coreml.operations import OPERATIONS, UnsupportedError, Varying
from keras_efficientformer.deploy.coreml.package import CONSTANTS, Package, PackageError


@dataclass(frozen=True, kw_only=True)
class ProgramTensor(Varying):
    """A tensor that varies from image to image.

    Attributes:
        key: of its value while the program runs.
        is_float16: whether the program declares it float16.
        name: in the program.
    """

    key: int
    is_float16: bool
    name: str


@dataclass
class PlannedOperation:
    """An operation of a program, ready to run.

    Attributes:
        name: its kind and its name in the program, for messages.
        function: of the arguments.
        arguments: each a `ProgramTensor`, a constant, or a list of these.
        outputs: the tensors that it gives.
        last_used: keys of tensors that nothing needs afterwards.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    outputs: tuple[ProgramTensor, ...]
    last_used: set[int] = field(default_factory=set)

    def run(self, tensors: dict[int, np.ndarray]) -> list[np.ndarray]:
        """The values of `outputs`, given the values of tensors by key."""
        result = self.function(*(_resolve(argument, tensors) for argument in self.arguments))
        return list(result) if len(self.outputs) > 1 else [result]


def _resolve(argument: Any, tensors: dict[int, np.ndarray]) -> Any:
    """An argument with its tensors replaced by their values."""
    if isinstance(argument, list):
        return [_resolve(item, tensors) for item in argument]
    return tensors[argument.key] if isinstance(argument, ProgramTensor) else argument


class Plan:
    """The operations of a package's program, ready to run.

    Args:
        package: the package.
        float16: whether tensors that the program declares float16 will be rounded to it, as `CoreMLModel` has it.

    Attributes:
        input: the image's tensor, (1, channels, height, width).
        operations: in the order to run them in.
        results: {output name: tensor}.

    Raises:
        PackageError: the program has not one input of four axes and a fixed size, an operation has arguments that are
            not supported, or one that cannot be computed for several images at once.
    """

    def __init__(self, package: Package, float16: bool = True):
        self._path, self._float16 = package.path, float16
        # What variables stand for, by their identity, which holds as long as the program does.
        self._values: dict[int, Any] = {}
        self.operations: list[PlannedOperation] = []
        function = package.block
        self.input = self._image(list(function.inputs.values()))
        for operation in function.operations:
            if operation.op_type not in CONSTANTS and operation.outputs[0].val is None:
                self._add(operation)
        self.results: dict[str, ProgramTensor] = {
            variable.name: self._values[id(variable)] for variable in function.outputs
        }
        self._find_last_uses()

    def _image(self, variables: list[Any]) -> ProgramTensor:
        shapes = [variable.shape for variable in variables]
        if len(shapes) != 1 or len(shapes[0]) != 4 or not all(isinstance(side, int | np.integer) for side in shapes[0]):
            raise PackageError(
                f"{self._path} is not an image network: expected one input (1, channels, height, width) of a fixed "
                f"size, found {', '.join(map(str, shapes)) or 'none'}."
            )
        return self._tensor(f"the input {variables[0].name}", variables[0], shapes[0])

    def _add(self, operation: Any) -> None:
        name = f"{operation.op_type} {operation.name}"
        arguments = {key: self._value(variable) for key, variable in operation.inputs.items() if variable is not None}
        shapes = _result_shapes(operation)
        function = self._function(name, operation.op_type, arguments, shapes[0])
        outputs = tuple(
            self._tensor(name, variable, shape) for variable, shape in zip(operation.outputs, shapes, strict=True)
        )
        ordered = tuple(arguments.get(key) for key in OPERATIONS[operation.op_type].varying)
        self.operations.append(PlannedOperation(name, function, ordered, outputs))

    def _tensor(self, name: str, variable: Any, shape: Sequence[int]) -> ProgramTensor:
        shape = tuple(int(side) for side in shape)
        if shape[:1] != (1,):
            raise PackageError(
                f"{self._path}: {name} has the shape {shape}, and programs for one image are needed, whose tensors are "
                "(1, ...). Convert the model for a batch of one."
            )
        declared = _is_float16(variable)
        tensor = ProgramTensor(
            shape=shape,
            is_rounded=declared and self._float16,
            key=id(variable),
            is_float16=declared,
            name=variable.name,
        )
        self._values[id(variable)] = tensor
        return tensor

    def _value(self, variable: Any) -> Any:
        """What a variable stands for: a `ProgramTensor`, or a constant's value; of a list, a list of these."""
        if isinstance(variable, list | tuple):
            return [self._value(item) for item in variable]
        if id(variable) not in self._values:
            self._values[id(variable)] = _constant(variable)
        return self._values[id(variable)]

    def _function(self, name: str, kind: str, arguments: dict[str, Any], shape: tuple[int, ...]) -> Callable[..., Any]:
        operation = OPERATIONS[kind]
        parameters = inspect.signature(operation.plan).parameters
        result = {"result": shape} if "result" in parameters else {}
        unknown = arguments.keys() - parameters.keys()
        tensors = {key for key, value in arguments.items() if isinstance(value, ProgramTensor)}
        changing = tensors - set(operation.varying)
        try:
            if unknown or changing:
                raise UnsupportedError(f"its arguments {', '.join(sorted(unknown | changing))} are not supported")
            return operation.plan(**arguments, **result)
        except UnsupportedError as error:
            raise PackageError(f"{self._path} cannot be run here: of {name}, {error}.") from error

    def _find_last_uses(self) -> None:
        needed = {tensor.key for tensor in self.results.values()}
        for operation in reversed(self.operations):
            flat = [item for value in operation.arguments for item in (value if isinstance(value, list) else [value])]
            keys = {item.key for item in (*flat, *operation.outputs) if isinstance(item, ProgramTensor)}
            operation.last_used = keys - needed
            needed |= keys


def _constant(variable: Any) -> Any:
    """The value of a constant, NumPy's or Python's, decompressed; float16 as float32."""
    value = _stored(variable)
    return value.astype("float32") if getattr(value, "dtype", None) == np.float16 else value


def _stored(variable: Any) -> Any:
    """The value of a constant; the arguments of a constexpr operation may be results of others."""
    if variable.val is not None:
        return variable.val
    operation = variable.op
    if operation.op_type == "constexpr_cast":
        return operation.materialized_val_inference()
    names = inspect.signature(operation.decompress).parameters
    arguments = {name: operation.inputs.get(name) for name in names}
    result = operation.decompress(
        **{name: None if argument is None else _stored(argument) for name, argument in arguments.items()}
    )
    return result[operation.outputs.index(variable)] if isinstance(result, tuple) else result


def _result_shapes(operation: Any) -> tuple[tuple[int, ...], ...]:
    if operation.op_type == "classify":
        return (1,), (1, len(operation.inputs["classes"].val))
    return tuple(variable.shape for variable in operation.outputs)


def _is_float16(variable: Any) -> bool:
    from coremltools.converters.mil.mil import types

    return types.is_tensor(variable.sym_type) and variable.dtype == types.fp16
