"""Writes and reads TFLite Metadata, which MediaPipe's ImageClassifier and Android Studio read. Room: deploy/tflite.

It is written directly: the schema (tflite-support's metadata_schema.fbs) is small, and its Python writers need either a
compiled module for old Pythons or MediaPipe itself. Class names travel as a zip archive at the end of the file.
"""

import collections
import io
import math
import os
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_efficientformer.deploy.file_facts import ENTRY, FileFacts
from keras_efficientformer.errors import require

METADATA_NAME = "TFLITE_METADATA"
LABELS_FILE = "labels.txt"
FILE_IDENTIFIER = b"M001"
MIN_PARSER_VERSION = "1.0.0"

SEGMENTER_NAME = "SEGMENTER_METADATA"
SEGMENTER_IDENTIFIER = b"V001"
# What an app has to do to the values before they are probabilities.
MASK_ACTIVATIONS = {"none": 0, "softmax": 2}

# These are values of the schema's enums and unions.
AXIS_LABELS = 2
RGB = 1
FEATURE_PROPERTIES, IMAGE_PROPERTIES = 1, 2
NORMALIZATION_OPTIONS = 1


@dataclass(frozen=True)
class ModelCard:
    """What the metadata says of a file.

    Attributes:
        name, description, version, author, license: of the model.
        input_name, input_description: of the image.
        pixel_range: smallest and largest value of the input tensor, in its own units.
        mean, std: what an app must subtract from pixels in 0..255 and then divide by. MediaPipe takes one number each,
            for all channels.
        outputs: (name, description) of each output, in the file's order.
        labels: class names, one for each value of every output, or None.
        mask_activation: of a segmentation model, one of `MASK_ACTIVATIONS`: what is left to the app; else None.
    """

    name: str
    description: str
    version: str
    author: str
    license: str
    input_name: str
    input_description: str
    pixel_range: tuple[float, float]
    mean: float
    std: float
    outputs: tuple[tuple[str, str], ...]
    labels: tuple[str, ...] | None
    mask_activation: str | None = None


def metadata_buffer(card: ModelCard) -> bytes:
    """The metadata flatbuffer, the content of the buffer that the model's entry "TFLITE_METADATA" points to."""
    import flatbuffers

    b = flatbuffers.Builder(1024)
    slots = {2: _vector(b, [_input(b, card)]), 3: _vector(b, [_output(b, card, output) for output in card.outputs])}
    if card.mask_activation is not None:
        segmenter = {0: b.CreateString(SEGMENTER_NAME), 1: b.CreateByteVector(_segmenter(card.mask_activation))}
        slots[9] = _vector(b, [_table(b, segmenter)])
    subgraph = _table(b, slots)
    model = _table(
        b,
        {
            0: b.CreateString(card.name),
            1: b.CreateString(card.description),
            2: b.CreateString(card.version),
            3: _vector(b, [subgraph]),
            4: b.CreateString(card.author),
            5: b.CreateString(card.license),
            7: b.CreateString(MIN_PARSER_VERSION),
        },
    )
    b.Finish(model, file_identifier=FILE_IDENTIFIER)
    return bytes(b.Output())


def _segmenter(activation: str) -> bytes:
    """What MediaPipe's ImageSegmenter wants to know, a flatbuffer of its own (image_segmenter_metadata_schema.fbs)."""
    import flatbuffers

    b = flatbuffers.Builder(64)
    options = _table(b, {0: _Byte(MASK_ACTIVATIONS[activation]), 1: b.CreateString(MIN_PARSER_VERSION)})
    b.Finish(options, file_identifier=SEGMENTER_IDENTIFIER)
    return bytes(b.Output())


def append_labels(content: bytes, labels: tuple[str, ...]) -> bytes:
    """`content` with a zip archive of the label file after it: readers of either format find what they look for."""
    file = io.BytesIO(content)
    file.seek(0, io.SEEK_END)
    # It is stored, with offsets from the start of the file, so that a reader can use the labels in place.
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        # The date is fixed, so that one model gives one file.
        archive.writestr(zipfile.ZipInfo(LABELS_FILE, (1980, 1, 1, 0, 0, 0)), "\n".join(labels))
    return file.getvalue()


def _input(b: Any, card: ModelCard) -> int:
    image = _table(b, {0: _Byte(RGB)})
    content = _table(b, {0: _Byte(IMAGE_PROPERTIES), 1: image})
    normalization = _table(b, {0: _floats(b, [card.mean]), 1: _floats(b, [card.std])})
    unit = _table(b, {0: _Byte(NORMALIZATION_OPTIONS), 1: normalization})
    smallest, largest = card.pixel_range
    stats = _table(b, {0: _floats(b, [largest]), 1: _floats(b, [smallest])})
    return _table(
        b,
        {
            0: b.CreateString(card.input_name),
            1: b.CreateString(card.input_description),
            3: content,
            4: _vector(b, [unit]),
            5: stats,
        },
    )


def _output(b: Any, card: ModelCard, output: tuple[str, str]) -> int:
    name, description = output
    content = _table(b, {0: _Byte(FEATURE_PROPERTIES), 1: _table(b, {})})
    slots = {0: b.CreateString(name), 1: b.CreateString(description), 3: content}
    if card.labels is not None:
        file = {
            0: b.CreateString(LABELS_FILE),
            1: b.CreateString("Class names, one in each line."),
            2: _Byte(AXIS_LABELS),
        }
        slots[6] = _vector(b, [_table(b, file)])
    return _table(b, slots)


class _Byte(int):
    """An enum's value, which a table holds itself; everything else is the offset of what was written before."""


def _table(b: Any, slots: dict[int, int]) -> int:
    b.StartObject(max(slots, default=-1) + 1)
    for slot, value in slots.items():
        if isinstance(value, _Byte):
            b.PrependUint8Slot(slot, value, 0)
        else:
            b.PrependUOffsetTRelativeSlot(slot, value, 0)
    return b.EndObject()


def _vector(b: Any, offsets: Sequence[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return b.EndVector()


def _floats(b: Any, values: Sequence[float]) -> int:
    b.StartVector(4, len(values), 4)
    for value in reversed(values):
        b.PrependFloat32(value)
    return b.EndVector()


def normalization(buffer: bytes) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The mean and the deviation that a metadata flatbuffer has for its first input, for each channel or for all.

    None where it has none. It raises errors of `struct` and `flatbuffers` where it is damaged.
    """
    from flatbuffers import encode, number_types, table

    root = table.Table(buffer, encode.Get(number_types.UOffsetTFlags.packer_type, buffer, 0))

    def child(parent: Any, slot: int) -> Any:
        """The table that a slot of another holds."""
        offset = parent.Offset(4 + 2 * slot)
        return offset and table.Table(buffer, parent.Indirect(parent.Pos + offset))

    def items(parent: Any, slot: int) -> list[Any]:
        offset = parent.Offset(4 + 2 * slot)
        if not offset:
            return []
        start = parent.Vector(offset)
        return [table.Table(buffer, parent.Indirect(start + 4 * n)) for n in range(parent.VectorLen(offset))]

    def floats(parent: Any, slot: int) -> tuple[float, ...]:
        offset = parent.Offset(4 + 2 * slot)
        if not offset:
            return ()
        start, length = parent.Vector(offset), parent.VectorLen(offset)
        return tuple(parent.Get(number_types.Float32Flags, start + 4 * number) for number in range(length))

    for subgraph in items(root, 3)[:1]:
        for image in items(subgraph, 2)[:1]:
            for unit in items(image, 4):
                kind = unit.Offset(4)
                if kind and unit.Get(number_types.Uint8Flags, unit.Pos + kind) == NORMALIZATION_OPTIONS:
                    options = child(unit, 1)
                    return floats(options, 0), floats(options, 1)
    return None


def read_facts(path: str | os.PathLike[str]) -> FileFacts | None:
    """The facts of a .tflite file, of ours or with TFLite Metadata of anybody's; None where it says nothing.

    Raises:
        ValueError: its metadata or labels are damaged.
        OSError: it cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        entries = _entries(content)
        labels = _labels(content)
        if ENTRY in entries:
            facts = FileFacts.from_json(entries[ENTRY])
            return FileFacts(facts.mean, facts.std, labels)
        found = normalization(entries[METADATA_NAME]) if METADATA_NAME in entries else None
    except (ValueError, TypeError, IndexError, zipfile.BadZipFile, struct.error) as error:
        raise ValueError(f"{path} is a damaged .tflite file: {error}") from error
    if found is None:
        return FileFacts((), (), labels) if labels else None
    return FileFacts(*found, labels)


def weight_types(path: str | os.PathLike[str]) -> dict[str, int]:
    """{type: how many values of it a .tflite file holds as constants}, the most first; LiteRT itself calls int4 int8.

    Raises:
        OSError: it cannot be read.
    """
    model, names = _model(Path(path).read_bytes()), _type_names()
    found: collections.Counter[str] = collections.Counter()
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            if model.Buffers(tensor.Buffer()).DataLength():
                # A single value has no shape.
                found[names[tensor.Type()]] += math.prod(map(tensor.Shape, range(tensor.ShapeLength())))
    return dict(found.most_common())


def tensor_types(path: str | os.PathLike[str], subgraph: int) -> tuple[str, ...]:
    """The types of the tensors of one of a .tflite file's networks, by their numbers; LiteRT itself calls int4 int8.

    Raises:
        OSError: it cannot be read.
    """
    graph, names = _model(Path(path).read_bytes()).Subgraphs(subgraph), _type_names()
    return tuple(names[graph.Tensors(number).Type()] for number in range(graph.TensorsLength()))


def _model(content: bytes) -> Any:
    """The schema's `Model` of a file, whose parts are read when they are asked for."""
    return require("ai_edge_litert.schema_py_generated", "Reading a .tflite file", "litert").Model.GetRootAs(content)


def _type_names() -> dict[int, str]:
    """{number that a file has for a type of tensors: NumPy's name of it, or "int4"}."""
    schema = require("ai_edge_litert.schema_py_generated", "Reading a .tflite file", "litert")
    return {number: name.lower() for name, number in vars(schema.TensorType).items() if isinstance(number, int)}


def _entries(content: bytes) -> dict[str, bytes]:
    """{name: content} of a file's metadata."""
    model, found = _model(content), {}
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        data = model.Buffers(entry.Buffer()).DataAsNumpy()
        found[(entry.Name() or b"").decode()] = b"" if isinstance(data, int) else data.tobytes()
    return found


def _labels(content: bytes) -> tuple[str, ...] | None:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return None
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if LABELS_FILE not in archive.namelist():
            return None
        return tuple(archive.read(LABELS_FILE).decode().rstrip("\n").split("\n"))
