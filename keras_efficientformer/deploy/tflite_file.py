"""The inside of a .tflite file: the names, signature, metadata and labels that converters leave out."""

from functools import partial

import numpy as np

from keras_efficientformer.deploy.tflite_metadata import METADATA_NAME, ModelCard, append_labels, metadata_buffer
from keras_efficientformer.deploy.tflite_modes import INPUT, SIGNATURE

# Of a constant's first byte; the schema's `force_align`. Some kernels read int64 and vectors in place.
ALIGNMENT = 16
# What metadata and alignment may add: a builder that is too small doubles itself and copies everything.
ROOM = 1 << 20
# Metadata by which XNNPACK knows that it may compute in float16, twice as fast where the CPU can (TensorFlow's
# reduced_precision_metadata.h): operands and sums.
FLOAT16_ARITHMETIC = "reduced_precision_support", b"fp16accfp16"


def with_names(content: bytes, outputs: tuple[str, ...]) -> bytes:
    """The file with its input and outputs named and a signature; converting a function gives neither."""
    return _edited(content, lambda file, schema: _name_ends(file, schema, outputs))


def with_metadata(content: bytes, outputs: tuple[str, ...], card: ModelCard, float16_arithmetic: bool) -> bytes:
    """The file named again, which quantizing undoes, with metadata and, where the card has them, the labels."""

    def edit(file, schema):
        _name_ends(file, schema, outputs)
        _set_entry(file, schema, METADATA_NAME, metadata_buffer(card))
        if float16_arithmetic:
            _set_entry(file, schema, *FLOAT16_ARITHMETIC)
        file.description = card.description

    content = _edited(content, edit)
    return append_labels(content, card.labels) if card.labels else content


def _set_entry(file, schema, name, content):
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(content, "uint8")
    file.buffers.append(buffer)
    entry.name, entry.buffer = name, len(file.buffers) - 1
    # TensorFlow's converter may have written one: "fp16accfp32" of float16 weights, which XNNPACK ignores.
    file.metadata = [*(other for other in file.metadata or [] if other.name != name.encode()), entry]


def _edited(content, edit):
    """A .tflite file's content after `edit(file, schema)` has changed its object tree."""
    import flatbuffers
    from tensorflow.lite.tools import flatbuffer_utils

    file = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    edit(file, flatbuffer_utils.schema_fb)
    for buffer in file.buffers:
        if buffer.data is not None:
            buffer.Pack = partial(_pack_aligned, flatbuffer_utils.schema_fb, np.asarray(buffer.data, "uint8").tobytes())
    builder = flatbuffers.Builder(len(content) + ROOM)
    builder.Finish(file.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _pack_aligned(schema, data, builder):
    """Packs a buffer from a multiple of 16 bytes on, as the schema asks; Python's own packer does not see to that."""
    builder.StartVector(1, len(data), ALIGNMENT)
    builder.head -= len(data)
    builder.Bytes[builder.head : builder.head + len(data)] = data
    vector = builder.EndVector()
    schema.BufferStart(builder)
    schema.BufferAddData(builder, vector)
    return schema.BufferEnd(builder)


def _name_ends(file, schema, outputs):
    graph = file.subgraphs[0]
    signature = schema.SignatureDefT()
    signature.signatureKey = SIGNATURE
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
