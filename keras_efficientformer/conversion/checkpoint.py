"""Reads and writes checkpoints, and infers from names and shapes which network one is of. Room: conversion."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np

from keras_efficientformer.conversion.dialects import (
    ALL_DIALECTS,
    Dialect,
    find_dialect,
    is_of_segmentation,
    strip_prefix,
)
from keras_efficientformer.conversion.formats import (
    KERAS_SUFFIXES,
    Checkpoint,
    arrays_by_name,
    read_tensors,
    suffix_of,
    write_tensors,
)
from keras_efficientformer.conversion.keras_config import keras_layers, stated_in_keras
from keras_efficientformer.conversion.keras_files import to_timm_names
from keras_efficientformer.conversion.stated import NOTHING_STATED
from keras_efficientformer.errors import CheckpointError, listing
from keras_efficientformer.layers.common import relative_positions
from keras_efficientformer.layers.names import HEADS, MASKS, STEM
from keras_efficientformer.layers.v2_attention import downsampling_positions
from keras_efficientformer.variants import AnyArchitecture, Architecture, ArchitectureV2, mlp_ratio, variant_name

# timm's checkpoints of the second family have no indices, and were published for this size.
PUBLISHED_SIZE = (224, 224)
# The tables of both families belong to grids of as many pixels: tokens of the last stages, and of V2 those that its
# downsampling reads.
TABLE_STRIDES = (16, 32, 64)
# A model of this package has layers of these Keras classes at its top level, under these names alone.
NAMED_LAYERS = {"Dense": HEADS, "BatchNormalization": ("norm",), "LayerNormalization": ("norm",)}
# A model that is a layer of another is of one of these.
MODELS = ("Functional", "Sequential")
# Layers of these classes come before its stem, and no others.
FIRST_LAYERS = ("InputLayer", "ImageNormalization")


@dataclass(frozen=True)
class CheckpointInfo:
    """What a state dict says about its model, read from names and shapes.

    Attributes:
        dialect: "timm", "snap" or "transformers".
        variant: "l1", "l3", "l7", "v2_s0", "v2_s1", "v2_s2", "v2_l", or None for another shape.
        architecture: depths, widths and number of `Meta3D` blocks, or of V2 depths, widths, attention and MLP ratios.
        classes: number of classes, or None without a classifier.
        heads: number of classifiers, 0, 1 or 2.
        resolution: (height, width) of the last stage's tokens, of V2 of the third stage's feature map, from
            `attention_bias_idxs`; where the file has none of them, from the input size that it says it is of, else that
            of 224x224 if the bias table is as long; None without attention or where nothing tells it.
        channels: of the images.
        declared_size: (height, width) of the images that the file says it is of, or None.
    """

    dialect: str
    variant: str | None
    architecture: AnyArchitecture
    classes: int | None
    heads: int
    resolution: tuple[int, int] | None
    channels: int = 3
    declared_size: tuple[int, int] | None = None

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(height, width) of the images, in pixels: the declared one, else the largest that `resolution` is of."""
        if self.declared_size is not None:
            return self.declared_size
        if self.resolution is None:
            return None
        pixels = self.architecture.table_stride
        return pixels * self.resolution[0], pixels * self.resolution[1]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads the state dict in a checkpoint file.

    Args:
        path: `.safetensors`, `.pth`, `.pt` or `.bin` (these need torch) in any dialect and under any usual wrapper
            ("model", "state_dict", "module.", averaged weights: see `formats.WRAPPERS`); or `.keras` or
            `.weights.h5` of an EfficientFormer made by this package, whose tensors get timm's names and layouts.

    Returns:
        A dict {tensor name: NumPy array of the file's dtype} with the attributes `source` and `wrappers`.

    Raises:
        CheckpointError: the file is truncated, damaged, unsafe, of an unknown kind or without tensors.
        OSError: the file is missing or cannot be read.
        ImportError: torch is needed and not installed.
    """
    checkpoint, suffix = read_tensors(path), suffix_of(path)
    if suffix not in KERAS_SUFFIXES:
        return checkpoint
    _check_own_layers(path)
    _check_not_integers(path, checkpoint)
    size, stated = stated_in_keras(path) if suffix == ".keras" else (None, NOTHING_STATED)
    return Checkpoint(to_timm_names(checkpoint), path, input_size=size, stated=stated)


def _check_own_layers(path: str | os.PathLike[str]) -> None:
    """Raises CheckpointError for layers of the user's own, which a model that is made of the file would not have.

    Weights files tell layers by class and order alone.
    """
    layers = keras_layers(path)
    if any(name == MASKS for _, name in layers):
        raise CheckpointError(
            f"{path} holds a segmentation model, and an EfficientFormer alone was expected. Read .weights.h5 with an "
            "equal model's `load_weights`, .keras with keras.saving.load_model; commands take .keras and .safetensors."
        )
    names = [name for _, name in layers]
    if STEM not in names:
        _check_no_models(path, layers)
        return  # the layers of older files have no names
    before = layers[: names.index(STEM)] if suffix_of(path) == ".keras" else []
    foreign = [name for kind, name in before if kind not in FIRST_LAYERS]
    foreign += [name for kind, name in layers if kind in NAMED_LAYERS and name not in NAMED_LAYERS[kind]]
    if any(foreign):
        raise CheckpointError(
            f"{path} holds an EfficientFormer with layers of your own: {listing(foreign)}. Load it with "
            "keras.saving.load_model, and save the EfficientFormer alone."
        )


def _check_not_integers(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Raises CheckpointError for a file of a model that Keras has quantized: its kernels are integers."""
    layers = {name: tensor for name, tensor in tensors.items() if name.startswith("layers/")}
    # Seeds and resolutions are integers too, but have one axis.
    integers = [name for name, tensor in layers.items() if tensor.dtype.kind in "iu" and tensor.ndim > 1]
    if integers:
        raise CheckpointError(
            f"{path} holds a model that Keras has quantized, in {listing(integers)}. Bring the model as it was before "
            "`model.quantize`."
        )


def _check_no_models(path: str | os.PathLike[str], layers: Sequence[tuple[str, str]]) -> None:
    """Raises CheckpointError where an EfficientFormer may be within one of a file's layers."""
    models = [name for kind, name in layers if kind in MODELS]
    if models:
        raise CheckpointError(
            f"{path} holds a model that has others as its layers: {listing(models)}. Load it with "
            "keras.saving.load_model, and save the EfficientFormer among them alone."
        )


def write_checkpoint(
    path: str | os.PathLike[str], state_dict: Mapping[str, np.ndarray], overwrite: bool = False
) -> None:
    """Writes what `to_state_dict` or `read_checkpoint` returned: `.safetensors`, or `.pth`, `.pt` or `.bin` with torch.

    snap-research's training code keeps its weights under "model", so its dialect is written so in PyTorch's formats.

    Args:
        path: the file to write; it gets its name only when complete.
        state_dict: {tensor name: NumPy array or PyTorch tensor}.
        overwrite: whether an existing file may be replaced.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.
        CheckpointError: the suffix is none of the four.
        ImportError: torch is needed and not installed.
    """
    dialect = find_dialect(strip_prefix(state_dict))
    wrapper = "model" if dialect is not None and dialect.name == "snap" else None
    stated = getattr(state_dict, "stated", NOTHING_STATED)
    write_tensors(path, state_dict, overwrite, wrapper, input_size_of(state_dict), stated)


def infer_variant(state_dict: Mapping[str, Any]) -> CheckpointInfo:
    """Infers from the names and shapes of a state dict which network it is of.

    Args:
        state_dict: {tensor name: array or PyTorch tensor} of either family in any of its dialects, depths and widths
            free.

    Raises:
        CheckpointError: the names are those of none of the dialects, or tensors that tell the shape are missing.
    """
    source = source_name(state_dict)
    return infer_from_tensors(arrays_of(state_dict, source), source, input_size_of(state_dict))


def input_size_of(state_dict: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) of the images that a state dict says it is of; None where it does not."""
    return getattr(state_dict, "input_size", None)


def infer_from_tensors(
    tensors: Mapping[str, np.ndarray], source: str, input_size: tuple[int, int] | None = None
) -> CheckpointInfo:
    """What `infer_variant` returns, from what `arrays_of` returns; error messages begin with `source`."""
    dialect = find_dialect(tensors)
    if dialect is None and is_of_segmentation(tensors):
        raise CheckpointError(
            f"{source} is of a segmentation model, mmsegmentation's: `keras_efficientformer.segmentation."
            "from_checkpoint` makes the model of it, and so does every command."
        )
    if dialect is None:
        expected = ", ".join(f"{dialect.mark} ({dialect.name}, {dialect.family.family})" for dialect in ALL_DIALECTS)
        raise CheckpointError(
            f"{source} is not an EfficientFormer in a known dialect: found {listing(sorted(tensors))}; expected a "
            f"tensor named {expected}. Other networks are not read by this loader."
        )
    architecture = _SHAPE_READERS[dialect.family](tensors, dialect, source)
    names = names_in_dialect(architecture, dialect)
    # Of half a head the checks against a model say what is missing.
    parts = [[f"{head}.{leaf}" for leaf in ("bias", "weight")] for head in HEADS]
    found = [[tensors[names[name]] for name in head if names[name] in tensors] for head in parts]
    heads = [head[0] for head in found if head]
    return CheckpointInfo(
        dialect=dialect.name,
        variant=variant_name(architecture),
        architecture=architecture,
        classes=(len(heads[0]) if heads[0].ndim else 1) if heads else None,
        heads=len(heads),
        resolution=_infer_resolution(tensors, names, input_size),
        channels=_channels(tensors, names),
        declared_size=input_size,
    )


def names_in_dialect(architecture: AnyArchitecture, dialect: Dialect) -> dict[str, str]:
    """{timm's tensor name: the dialect's}, for every tensor that an EfficientFormer of this shape can have."""
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {}
    for row in dialect.module_names(architecture):
        timm, other = row[0], row[dialect.column]
        # Some rows are tensors themselves: layer scales and bias tables.
        names[timm] = other
        names |= {f"{timm}.{leaf}": f"{other}.{leaf}" for leaf in leaves}
    return names


def source_name(state_dict: Mapping[str, Any]) -> str:
    """What error messages call a state dict: the file that it was read from, or "the state dict"."""
    return getattr(state_dict, "source", "the state dict")


def arrays_of(state_dict: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """The tensors of a state dict, NumPy's or PyTorch's, as NumPy arrays without transformers' outer prefix.

    Raises:
        CheckpointError: it is no mapping, or holds other things than arrays; the message begins with `source`.
    """
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(
            f"{source} should be a state dict, {{tensor name: array}}: found a {type(state_dict).__name__}. "
            "`read_checkpoint` makes one of a file."
        )
    unfit = [
        f"{name}: {type(value).__name__}"
        for name, value in state_dict.items()
        if not isinstance(name, str) or not hasattr(value, "ndim")
    ]
    if unfit:
        raise CheckpointError(f"{source} should hold arrays alone, under their names: found {listing(unfit)}.")
    return strip_prefix(arrays_by_name(state_dict, source))


def _count_in_stages(tensors: Mapping[str, np.ndarray], dialect: Dialect, suffix: str) -> tuple[int, ...]:
    """How many tensors with this end of a name each stage's blocks have."""
    return tuple(
        sum(name.startswith(prefix) and name.endswith(suffix) for name in tensors) for prefix in dialect.stage_prefixes
    )


def _infer_architecture(tensors: Mapping[str, np.ndarray], dialect: Dialect, source: str) -> Architecture:
    depths = _count_in_stages(tensors, dialect, dialect.layer_scale)
    num_meta3d = sum(name.endswith(".token_mixer.qkv.weight") for name in tensors)
    # Where tensors are missing the shape may be impossible; the checks against a model's names report that.
    names = names_in_dialect(Architecture(depths, (0, 0, 0, 0), min(num_meta3d, depths[3])), dialect)
    telling = ["stem.conv2", *(f"stages.{stage}.downsample.conv" for stage in (1, 2, 3))]
    kernels = _kernels(tensors, [names[f"{module}.weight"] for module in telling], source)
    return Architecture(depths, tuple(len(kernel) for kernel in kernels), num_meta3d)


def _infer_architecture_v2(tensors: Mapping[str, np.ndarray], dialect: Dialect, source: str) -> ArchitectureV2:
    depths = _count_in_stages(tensors, dialect, dialect.layer_scale)
    num_attention = max(_count_in_stages(tensors, dialect, ".token_mixer.talking_head1.weight"))
    no_ratios = tuple((0.0,) * depth for depth in depths)
    names = names_in_dialect(ArchitectureV2(depths, (0, 0, 0, 0), num_attention, no_ratios), dialect)
    telling = ["stem.conv2.conv", *(f"stages.{stage}.downsample.conv.conv" for stage in (1, 2, 3))]
    kernels = _kernels(tensors, [names[f"{module}.weight"] for module in telling], source)
    ratios = []
    for stage, depth in enumerate(depths):
        expanding = [names[f"stages.{stage}.blocks.{block}.mlp.fc1.conv.weight"] for block in range(depth)]
        ratios.append(tuple(mlp_ratio(len(k), len(kernels[stage])) for k in _kernels(tensors, expanding, source)))
    return ArchitectureV2(depths, tuple(len(kernel) for kernel in kernels), num_attention, tuple(ratios))


# The keys are the classes of the families' architectures.
_SHAPE_READERS: dict[type[AnyArchitecture], Callable[[Mapping[str, np.ndarray], Dialect, str], AnyArchitecture]] = {
    Architecture: _infer_architecture,
    ArchitectureV2: _infer_architecture_v2,
}


def _kernels(tensors: Mapping[str, np.ndarray], names: Sequence[str], source: str) -> list[np.ndarray]:
    """The convolutions of these names, whose shapes tell the network's."""
    missing = [name for name in names if name not in tensors or tensors[name].ndim != 4]
    if missing:
        raise CheckpointError(
            f"{source} is not a complete EfficientFormer: the tensors {listing(missing)}, which tell its widths, are "
            "missing or do not have the four axes of a convolution. Bring the whole checkpoint."
        )
    return [tensors[name] for name in names]


def _channels(tensors: Mapping[str, np.ndarray], names: Mapping[str, str]) -> int:
    """How many channels the first convolution takes; three where it is missing, which later checks say."""
    kernel = next((tensors[name] for name in _first_convolution(names) if name in tensors), None)
    return int(kernel.shape[1]) if kernel is not None and kernel.ndim == 4 and kernel.shape[1] else 3


def _first_convolution(names: Mapping[str, str]) -> list[str]:
    """What the weights of the first convolution are called, in either family."""
    return [names[name] for name in ("stem.conv1.weight", "stem.conv1.conv.weight") if name in names]


def adapt_channels(state_dict: Mapping[str, Any], channels: int) -> Checkpoint:
    """A state dict for RGB images as one for images of other channels, by timm's rule (`adapt_input_conv`).

    Args:
        state_dict: of three channels, or of `channels`, which is returned as it is.
        channels: for one, the filters' sum over colours; for more, the filters repeated, and scaled by 3 / channels.

    Raises:
        CheckpointError: the state dict is for other images than RGB.
        ValueError: `channels` is no integer >= 1.
    """
    if not isinstance(channels, Integral) or channels < 1:
        raise ValueError(f"`channels` should be an integer >= 1. Received: channels={channels!r}")
    source = source_name(state_dict)
    tensors = arrays_of(state_dict, source)
    info = infer_from_tensors(tensors, source, input_size_of(state_dict))
    if info.channels not in (3, channels):
        raise CheckpointError(
            f"{source} is for images of {info.channels} channels, and only those for RGB can be adapted to {channels}."
        )
    wrappers, stated = getattr(state_dict, "wrappers", ()), getattr(state_dict, "stated", NOTHING_STATED)
    adapted = Checkpoint(tensors, source, wrappers, input_size_of(state_dict), stated)
    if info.channels == channels:
        return adapted
    # What was said of three channels says nothing of others.
    adapted.stated = replace(stated, mean=None, std=None)
    dialect = next(one for one in ALL_DIALECTS if (one.name, one.family) == (info.dialect, type(info.architecture)))
    (name,) = [name for name in _first_convolution(names_in_dialect(info.architecture, dialect)) if name in tensors]
    kernel = np.asarray(tensors[name], "float32")
    if channels == 1:
        adapted[name] = kernel.sum(axis=1, keepdims=True)
    else:
        adapted[name] = np.tile(kernel, (1, -(-channels // 3), 1, 1))[:, :channels] * np.float32(3 / channels)
    return adapted


def _infer_resolution(
    tensors: Mapping[str, np.ndarray], names: Mapping[str, str], input_size: tuple[int, int] | None
) -> tuple[int, int] | None:
    # In V2 several grids have tables, of which only the one before the last stage is always there.
    downsampling = names.get("stages.3.downsample.attn.attention_biases")
    tables = [downsampling] if downsampling else [name for name in tensors if name.endswith(".attention_biases")]
    # A table with indices is read first, because the length of one without tells no shape.
    tables.sort(key=lambda name: indices_name(name) not in tensors)
    return resolution_of_table(tensors, tables[0], input_size) if tables else None


def indices_name(table: str) -> str:
    """The name of the buffer of indices that belongs to a bias table of this name."""
    return table.removesuffix("attention_biases") + "attention_bias_idxs"


def resolution_of_table(
    tensors: Mapping[str, np.ndarray], name: str, input_size: tuple[int, int] | None = None
) -> tuple[int, int] | None:
    """(height, width) of the grid that the bias table `name` is of: from its indices, else from the input size.

    Args:
        tensors: the state dict.
        name: of the table.
        input_size: (height, width) of the images that the state dict says it is of; None means the published 224x224.

    Returns:
        None where its indices are of no known kind, or where it has none and no grid of such images is as large: a
        table's length alone does not tell a square from other shapes.
    """
    if indices_name(name) in tensors:
        return _resolution_of_indices(np.asarray(tensors[indices_name(name)]))
    if name not in tensors or tensors[name].ndim != 2:
        return None
    height, width = input_size or PUBLISHED_SIZE
    grids = [(-(-height // stride), -(-width // stride)) for stride in TABLE_STRIDES]
    return next((grid for grid in grids if grid[0] * grid[1] == tensors[name].shape[-1]), None)


def _resolution_of_indices(indices: np.ndarray) -> tuple[int, int] | None:
    if indices.ndim != 2:
        return None
    tokens = indices.shape[1]
    widths = (width for width in range(1, tokens + 1) if tokens % width == 0)
    shapes = ((tokens // width, width) for width in widths)
    kinds = (relative_positions, downsampling_positions)
    return next((shape for shape in shapes if any(np.array_equal(kind(shape), indices) for kind in kinds)), None)
