"""Reads a saved Core ML package on any OS, every damage a clear error. Room: deploy/coreml.

The folder's Manifest.json names a protobuf, `Model.proto` of https://apple.github.io/coremltools/mlmodel, and the
folder of its weights. Nothing here runs anything; `runtime.py` does.
"""

import os
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_efficientformer.errors import first_line, require

# Kinds of operations that give constants: they cost nothing while the program runs.
CONSTANTS = (
    "const",
    "constexpr_affine_dequantize",
    "constexpr_blockwise_shift_scale",
    "constexpr_cast",
    "constexpr_lut_to_dense",
    "constexpr_lut_to_sparse",
    "constexpr_sparse_blockwise_shift_scale",
    "constexpr_sparse_to_dense",
)

# What a package's function is called where it has one; in packages of several sizes that of the first.
MAIN = "main"

# What the message calls a model that is no ML Program, by its type in the protobuf.
OTHER_MODELS = {
    None: "nothing",
    "pipeline": "a pipeline of models",
    "neuralNetwork": "a neural network of before iOS 15",
}


class PackageError(ValueError):
    """A Core ML package that cannot be read or run; the message names it, what was found and what to do."""


@dataclass(frozen=True)
class Package:
    """An ML Program as it is on disk.

    Attributes:
        path: the .mlpackage folder.
        spec: its protobuf, `coremltools.proto.Model_pb2.Model`.
        program: the same with its weights, `coremltools.converters.mil.Program`.
        labels: the class names of a classifier, in the order of its probabilities, or None.
        metadata: its "description", "author", "license" and "version", and what else its maker wrote by key.
        function: the function that is meant; packages of iOS 18 and newer may have several.
    """

    path: Path
    spec: Any
    program: Any
    labels: tuple[str, ...] | None
    metadata: dict[str, str]
    function: str = MAIN

    @property
    def block(self) -> Any:
        """The function, a `coremltools.converters.mil.mil.Function`."""
        return self.program.functions[self.function]

    @property
    def description(self) -> Any:
        """The protobuf that describes the function's inputs and outputs."""
        return _descriptions(self.spec)[self.function]


def load_package(
    path: str | os.PathLike, operations: Container[str] | None = None, function: str | None = None
) -> Package:
    """Reads a package, its weights included.

    Args:
        path: the .mlpackage folder.
        operations: the kinds of operations that the caller can deal with; None means all that coremltools knows.
        function: the one that is meant, of a package of several; None means the one that opens by default.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        PackageError: it is no package, holds no ML Program, no such function or other operations than `operations`, or
            is damaged.
        ImportError: coremltools is not installed.
    """
    path = Path(path)
    spec = _read_spec(path)
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise PackageError(
            f"{path} holds {OTHER_MODELS.get(kind, kind)}, and an ML Program is needed: convert the model again for "
            "iOS 15 or newer (coremltools: convert_to='mlprogram')."
        )
    if function is None:
        function = next(iter(_descriptions(spec)))
    _check_operations(path, spec, operations, function)
    program = _read_program(path, spec)
    labels = _labels(program.functions[function])
    return Package(path, spec, program, labels, _metadata(spec.description.metadata), function)


def function_sizes(path: str | os.PathLike) -> dict[str, tuple[int, int]]:
    """{function: (height, width)} of a package's functions that take one image, the one that opens by default first.

    Raises:
        FileNotFoundError, PackageError, ImportError: as `load_package`.
    """
    inputs = {name: description.input for name, description in _descriptions(_read_spec(Path(path))).items()}
    sizes = {name: image_size(features[0]) for name, features in inputs.items() if len(features) == 1}
    return {name: size for name, size in sizes.items() if size is not None}


def image_size(feature: Any) -> tuple[int, int] | None:
    """(height, width) of a described input; None where it is no image and no array of a fixed shape."""
    if feature.type.WhichOneof("Type") == "imageType":
        return int(feature.type.imageType.height), int(feature.type.imageType.width)
    shape = tuple(map(int, feature.type.multiArrayType.shape))
    return (shape[-2], shape[-1]) if len(shape) == 4 else None


def _descriptions(spec: Any) -> dict[str, Any]:
    """{function: the protobuf of its inputs and outputs}, the one that opens by default first."""
    description = spec.description
    if not description.functions:
        return {MAIN: description}
    found = {function.name: function for function in description.functions}
    default = description.defaultFunctionName or MAIN
    return {name: found[name] for name in (default, *found) if name in found}


def _read_spec(path: Path) -> Any:
    coremltools = require("coremltools", "Reading a Core ML package", "coreml")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: the folder of a Core ML package, .mlpackage, is needed.")
    if not (path / "Manifest.json").is_file():
        found = "a folder without a Manifest.json" if path.is_dir() else "a file"
        raise PackageError(f"{path} is {found}, and the folder of a Core ML package, .mlpackage, is needed.")
    try:
        return coremltools.utils.load_spec(str(path))
    except Exception as error:  # three compiled libraries raise exceptions of their own
        raise _damaged(path, error) from error


def _check_operations(path: Path, spec: Any, operations: Container[str] | None, name: str) -> None:
    from coremltools.converters.mil import Builder

    functions = spec.mlProgram.functions
    if name not in functions or name not in _descriptions(spec):
        raise PackageError(f"{path} has no function {name}, which is the one to run. Found: {', '.join(functions)}")
    block = functions[name].block_specializations[functions[name].opset]
    kinds = {operation.type for operation in block.operations}
    known = (lambda kind: hasattr(Builder, kind)) if operations is None else operations.__contains__
    unknown = sorted(kind for kind in kinds if not known(kind))
    if unknown:
        raise PackageError(
            f"{path} holds operations that are not known here: {', '.join(unknown)}. It may be read by a newer version "
            "of coremltools and of this package, or be converted again without them."
        )


def _read_program(path: Path, spec: Any) -> Any:
    from coremltools.converters.mil.frontend.milproto.load import load

    # coremltools looks for every weight file in this one folder.
    weights = path / "Data" / "com.apple.CoreML" / "weights"
    try:
        return load(spec, spec.specificationVersion, str(weights))
    except Exception as error:  # type inference and the compiled reader of weights raise exceptions of any kind
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> PackageError:
    return PackageError(
        f"{path} cannot be read as a Core ML package: {first_line(error)}. It is incomplete or damaged: bring all of "
        "the folder again."
    )


def _labels(block: Any) -> tuple[str, ...] | None:
    for operation in block.operations:
        if operation.op_type == "classify":
            return tuple(str(label) for label in operation.inputs["classes"].val)
    return None


def _metadata(metadata: Any) -> dict[str, str]:
    return {
        "description": metadata.shortDescription,
        "author": metadata.author,
        "license": metadata.license,
        "version": metadata.versionString,
        **metadata.userDefined,
    }
