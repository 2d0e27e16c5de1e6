"""Reads which input sizes a .tflite file has signatures for, and the network of each. Room: deploy/tflite/sizes.

LiteRT's Python interface lists the operators of a file's first network only; those of the others are read here.
"""

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_efficientformer.errors import first_line, require


@dataclass(frozen=True)
class SignatureNetwork:
    """The network of a signature.

    Attributes:
        subgraph: its number in the file.
        outputs: the numbers of the outputs' tensors, in the network's order.
        operators: of each operator "op_name", and the numbers of its "inputs" and "outputs", as LiteRT says them.
    """

    subgraph: int
    outputs: tuple[int, ...]
    operators: tuple[dict[str, Any], ...]


def signature_sizes(path: str | os.PathLike[str]) -> dict[str, tuple[int, int]]:
    """{signature: (height, width)} of a .tflite file's signatures that take one image, in the file's order.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is damaged.
        ImportError: LiteRT is not installed.
    """
    model = _read(path)
    with _damage(path):
        graphs = {key: model.Subgraphs(number) for key, number in _subgraphs(model).items()}
        images = {key: graph.Tensors(graph.Inputs(0)) for key, graph in graphs.items() if graph.InputsLength() == 1}
        return {key: (image.Shape(1), image.Shape(2)) for key, image in images.items() if image.ShapeLength() == 4}


def signature_network(path: str | os.PathLike[str], key: str) -> SignatureNetwork:
    """The network of the signature that is called `key`.

    Raises:
        ValueError: the file has no such signature, or as `signature_sizes`.
        OSError, ImportError: as `signature_sizes`.
    """
    model = _read(path)
    with _damage(path):
        subgraphs = _subgraphs(model)
        if key in subgraphs:
            graph = model.Subgraphs(subgraphs[key])
            outputs = tuple(graph.Outputs(number) for number in range(graph.OutputsLength()))
            return SignatureNetwork(subgraphs[key], outputs, tuple(_operators(model, graph)))
    raise ValueError(f"{path} has no signature {key!r}. Found: {', '.join(subgraphs) or 'none'}.")


def _read(path: str | os.PathLike[str]) -> Any:
    """The schema's `Model` of a file, whose parts are read when they are asked for."""
    schema = require("ai_edge_litert.schema_py_generated", "Reading a .tflite file", "litert")
    content = Path(path).read_bytes()
    with _damage(path):
        return schema.Model.GetRootAs(content)


def _subgraphs(model: Any) -> dict[str, int]:
    """{signature: number of its subgraph}."""
    signatures = (model.SignatureDefs(number) for number in range(model.SignatureDefsLength()))
    return {signature.SignatureKey().decode(): signature.SubgraphIndex() for signature in signatures}


def _operators(model: Any, graph: Any) -> Iterator[dict[str, Any]]:
    schema = require("ai_edge_litert.schema_py_generated", "Reading a .tflite file", "litert")
    kinds = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    for operator in map(graph.Operators, range(graph.OperatorsLength())):
        code = model.OperatorCodes(operator.OpcodeIndex())
        yield {
            "op_name": kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())],
            "inputs": [operator.Inputs(number) for number in range(operator.InputsLength())],
            "outputs": [operator.Outputs(number) for number in range(operator.OutputsLength())],
        }


@contextlib.contextmanager
def _damage(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error) as error:
        raise ValueError(f"{path} is a damaged .tflite file: {first_line(error)}") from error
