"""Reads and writes .tflite files: schema objects, names, signature, metadata and labels. Room: deploy/tflite."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert.tools import flatbuffer_utils

from keras_efficientformer.deploy.file_facts import ENTRY, FileFacts
from keras_efficientformer.deploy.tflite.graph import schema, set_metadata, text
from keras_efficientformer.deploy.tflite.metadata import METADATA_NAME, ModelCard, append_labels, metadata_buffer
from keras_efficientformer.deploy.tflite.step_names import INPUT, SIGNATURE
from keras_efficientformer.deploy.tflite.versions import set_versions

# A constant's first byte lies at a multiple of it, the schema's `force_align`: some kernels read int64 and vectors in
# place.
ALIGNMENT = 16
# Everything but the constants may take so many bytes: a builder that is too small doubles itself and copies everything.
ROOM = 1 << 20
# This metadata says with which release of TensorFlow Lite a file can be run; its tools read it, its runtimes do not.
RUNTIME_NAME = "min_runtime_version"
# This metadata tells XNNPACK that operands and sums may be float16, which is twice as fast where the CPU can
# (TensorFlow's reduced_precision_metadata.h).
FLOAT16_ARITHMETIC = "reduced_precision_support", b"fp16accfp16"


class SharingBuilder(flatbuffers.Builder):
    """Writes strings, and vectors that are NumPy arrays, that are equal to earlier ones only once."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._vectors: dict[tuple[str, bytes], int] = {}
        self._strings: dict[str | bytes, int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        key = x.dtype.str, x.tobytes()
        if key not in self._vectors:
            self._vectors[key] = super().CreateNumpyVector(x)
        return self._vectors[key]

    def CreateString(self, s: str | bytes, encoding: str = "utf-8", errors: str = "strict") -> int:
        if s not in self._strings:
            self._strings[s] = super().CreateString(s, encoding, errors)
        return self._strings[s]


def read(content: bytes) -> Any:
    """A .tflite file's content as the schema's `ModelT`."""
    return flatbuffer_utils.read_model_from_bytearray(bytearray(content))


def pack(file: Any) -> bytes:
    """A `ModelT` as a .tflite file's content, its constants aligned."""
    constants = [buffer for buffer in file.buffers if buffer.data is not None]
    for buffer in constants:
        buffer.Pack = partial(_pack_aligned, np.asarray(buffer.data, "uint8"))
    # Networks at several sizes have the same scales and names, of some 21,000 channels in L1.
    kind = SharingBuilder if len(file.subgraphs) > 1 else flatbuffers.Builder
    builder = kind(sum(len(buffer.data) + ALIGNMENT for buffer in constants) + ROOM)
    builder.Finish(file.Pack(builder), file_identifier=b"TFL3")
    return bytes(memoryview(builder.Bytes)[builder.Head() :])


def name_ends(file: Any, outputs: tuple[str, ...], key: str = SIGNATURE) -> None:
    """Names the input and outputs of a file of one network and gives it the signature called `key`. Quantizing keeps
    that, but renames outputs."""
    graph = file.subgraphs[0]
    signature = schema.SignatureDefT()
    signature.signatureKey = key
    signature.subgraphIndex = 0
    signature.inputs, signature.outputs = [], []
    ends = ((graph.inputs, (INPUT,), signature.inputs), (graph.outputs, outputs, signature.outputs))
    for indices, names, entries in ends:
        for index, name in zip(indices, names, strict=True):
            graph.tensors[index].name = name
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, index
            entries.append(entry)
    file.signatureDefs = [signature]


def finish(file: Any, card: ModelCard, facts: FileFacts, runtime: str, float16_arithmetic: bool) -> bytes:
    """The finished content of a file with its ends named: versions, metadata and, where the card has them, labels."""
    set_metadata(file, RUNTIME_NAME, runtime.encode())
    set_metadata(file, METADATA_NAME, metadata_buffer(card))
    # The labels have a place of their own in the file, which other tools know.
    set_metadata(file, ENTRY, replace(facts, labels=None).to_json().encode())
    file.description = card.description
    content = computable(file, float16_arithmetic)
    return append_labels(content, card.labels) if card.labels else content


def computable(file: Any, float16_arithmetic: bool) -> bytes:
    """The content of a file with its ends named that LiteRT computes, whatever else it lacks."""
    set_versions(file)
    if float16_arithmetic:
        set_metadata(file, *FLOAT16_ARITHMETIC)
    return pack(file)


def operators(file: Any) -> Iterator[tuple[str, Any]]:
    """(kind, operator) of everything that a file (`ModelT`) of one network computes, in its order: ("CONV_2D",
    `OperatorT`)."""
    for operator in file.subgraphs[0].operators:
        yield flatbuffer_utils.opcode_to_name(file, operator.opcodeIndex), operator


def tensor_names(file: Any) -> list[str]:
    """The names of the tensors of a file of one network, by their numbers."""
    return [text(tensor.name) for tensor in file.subgraphs[0].tensors]


def _pack_aligned(data: np.ndarray, builder: flatbuffers.Builder) -> int:
    """Packs a buffer from a multiple of 16 bytes on, as the schema asks; Python's own packer does not see to that."""
    builder.StartVector(1, len(data), ALIGNMENT)
    builder.head -= len(data)
    builder.Bytes[builder.head : builder.head + len(data)] = data.data
    vector = builder.EndVector()
    schema.BufferStart(builder)
    schema.BufferAddData(builder, vector)
    return schema.BufferEnd(builder)
