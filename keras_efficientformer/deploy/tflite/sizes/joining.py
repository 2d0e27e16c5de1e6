"""Joins the .tflite files of several input sizes into one that stores weights once. Room: deploy/tflite/sizes.

Each is made and quantized by itself, so that its ranges are measured at its own size; what is then equal byte by byte,
as the weights are, is stored once.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np


def join(files: Sequence[Any]) -> Any:
    """The first of several files (`ModelT`) with the subgraph and the signature of each of the others, in their order.

    Args:
        files: each of one subgraph, which has a name, and with one signature; they are changed.
    """
    joined, *others = files
    codes = {_operator(code): number for number, code in reversed(list(enumerate(joined.operatorCodes)))}
    places = {_content(buffer): number for number, buffer in reversed(list(enumerate(joined.buffers)))}
    for file in others:
        (graph,), (signature,) = file.subgraphs, file.signatureDefs
        for tensor in graph.tensors:
            buffer = file.buffers[tensor.buffer]
            content = _content(buffer)
            if content not in places:
                places[content] = len(joined.buffers)
                joined.buffers.append(buffer)
            tensor.buffer = places[content]
        for operator in graph.operators:
            code = file.operatorCodes[operator.opcodeIndex]
            if _operator(code) not in codes:
                codes[_operator(code)] = len(joined.operatorCodes)
                joined.operatorCodes.append(code)
            operator.opcodeIndex = codes[_operator(code)]
        signature.subgraphIndex = len(joined.subgraphs)
        joined.subgraphs.append(graph)
        joined.signatureDefs.append(signature)
    return joined


def _operator(code: Any) -> tuple[int, Any]:
    """What operator an `OperatorCodeT` stands for, whatever its version."""
    return code.builtinCode, code.customCode


def _content(buffer: Any) -> bytes:
    """What tells a constant from others; of a tensor that is none, nothing."""
    if buffer.data is None or not len(buffer.data):
        return b""
    return hashlib.sha256(np.asarray(buffer.data, "uint8").tobytes()).digest()
