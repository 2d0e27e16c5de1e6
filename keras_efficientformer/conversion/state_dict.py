"""Loads PyTorch state dicts into Keras models, strictly, and makes them of models. Room: conversion; NumPy only.

A model's variables are listed once, under timm's names (`bindings`); `dialects` says what the others call them. All
checks come before the first assignment, so a load that fails leaves the model as it was.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from keras_efficientformer.conversion.bindings import (
    Binding,
    architecture_of,
    bindings,
    to_keras_layout,
    to_torch_layout,
)
from keras_efficientformer.conversion.checkpoint import (
    FIRST_LAYERS,
    CheckpointInfo,
    arrays_of,
    indices_name,
    infer_from_tensors,
    input_size_of,
    names_in_dialect,
    resolution_of_table,
    source_name,
)
from keras_efficientformer.conversion.dialects import add_prefix, dialects_of
from keras_efficientformer.conversion.formats import StateDict
from keras_efficientformer.conversion.stated import Stated
from keras_efficientformer.errors import CheckpointError, listing
from keras_efficientformer.layers.image_normalization import normalization_of
from keras_efficientformer.layers.keras_quantization import check_without_lora
from keras_efficientformer.layers.names import HEADS, MASKS, PREDICTIONS, STEM
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.variants import AnyArchitecture, ArchitectureV2, class_name, variant_name, variants_of

# These buffers are no weights: the first is recomputed from the input's size, and PyTorch's BatchNorm counts the second
# for an average that is not used here.
IGNORED_SUFFIXES = (".attention_bias_idxs", ".num_batches_tracked")
HEAD, HEAD_DIST = HEADS


@dataclass(frozen=True)
class LoadReport:
    """What `load_state_dict` did.

    Attributes:
        info: what the checkpoint is.
        source: the file, or "the state dict".
        loaded: number of tensors that went into the model.
        ignored: names of tensors that belong to no weight of this model: buffers, and heads that it does not have.
        resized: one line for each attention bias table that was resized.
    """

    info: CheckpointInfo
    source: str
    loaded: int
    ignored: tuple[str, ...]
    resized: tuple[str, ...] = field(default=())


def load_state_dict(
    model: keras.Model,
    state_dict: Mapping[str, Any],
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> LoadReport:
    """Loads a PyTorch state dict into a model of this package, strictly.

    Every variable of the model is written exactly once and every tensor is used, but for buffers
    (`attention_bias_idxs`, `num_batches_tracked`) and for heads that the model does not have (`include_top=False`, or
    the second one with `head="single"`). Attention bias tables of another resolution are resized, bilinear with
    aligned corners, so that offset 0 stays offset 0. Nothing is assigned before everything has been checked.

    Args:
        model: an EfficientFormer (`keras.Model`).
        state_dict: {tensor name: array of a floating-point dtype}, as `read_checkpoint` returns it, or PyTorch's own.
        progress: wraps the iteration over the model's variables, e.g. `rich.progress.track`.

    Returns:
        A `LoadReport`.

    Raises:
        CheckpointError: names or shapes differ from the model's, values are not finite, or the dtype is no
            floating-point one; the message lists the first ten and how many more.
        ValueError: the model is not an EfficientFormer of this package.
    """
    source = source_name(state_dict)
    model_bindings = bindings(model)
    check_without_lora(model)
    tensors = arrays_of(state_dict, source)
    info = infer_from_tensors(tensors, source, input_size_of(state_dict))
    _check_architecture(info, architecture_of(model), source)
    dialect = dialects_of(info.architecture)[info.dialect]
    names = names_in_dialect(info.architecture, dialect)

    wanted = {names[binding.name]: binding for binding in model_bindings}
    ignored = _ignored(tensors, names, wanted)
    _check_heads(info, wanted, names, source)
    values, resized = fitting(tensors, wanted, ignored, source, dialect.scale_axes, input_size_of(state_dict))
    for name, binding in progress(list(wanted.items())):
        binding.variable.assign(values.pop(name))
    remember_source(model, getattr(state_dict, "source", None))
    return LoadReport(info, source, len(wanted), tuple(sorted(ignored)), tuple(resized))


def remember_source(model: keras.Model, source: str | None) -> None:
    """Has `source_of` name the file that a model was just read from; None for a model that is made of another one."""
    model._checkpoint_source = source
    # Most models that are made of others have no file that a report would name.
    model._checkpoint_digest = None if source is None else _digest(model)


def source_of(model: keras.Model) -> str | None:
    """Path of the checkpoint or .keras file that the model was last read from in this process, None where it is not
    known."""
    return getattr(model, "_checkpoint_source", None)


def changed_since(model: keras.Model) -> bool:
    """Whether a model's weights are others than those of the checkpoint that `source_of` names."""
    return getattr(model, "_checkpoint_digest", None) != _digest(model)


def _digest(model: keras.Model) -> int:
    """A number that changes with the weights."""
    total = 0
    for variable in model.weights:
        total = zlib.crc32(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).view("uint8").data, total)
    return total


def to_state_dict(model: keras.Model, dialect: str = "timm") -> StateDict:
    """The model's weights as a PyTorch state dict.

    Buffers are made again, so that torch's strict `load_state_dict` accepts the result: in timm's
    `efficientformer_*`, in snap-research's code and in transformers' `EfficientFormerForImageClassificationWithTeacher`
    (with one head, snap's without distillation and `EfficientFormerForImageClassification`). timm has no model with
    one head: there a single head is written twice, which timm averages to the same logits. transformers has no V2.

    Args:
        model: an EfficientFormer or EfficientFormerV2 (`keras.Model`).
        dialect: "timm", "snap" or "transformers".

    Returns:
        {tensor name: contiguous array}, float32 weights and int64 buffers; as a `StateDict`, which also says for which
            input size it is, and so do the files that `write_checkpoint` writes of it; .safetensors files also say the
            labels, the normalisation and the classifier's activation.

    Raises:
        ValueError: a dialect that the model's family does not have, or a model that is not an EfficientFormer of this
            package, or has layers before it, which no state dict holds.
    """
    architecture = architecture_of(model)
    _check_first(model)
    dialects = dialects_of(architecture)
    if dialect not in dialects:
        raise ValueError(f"`dialect` should be one of {', '.join(dialects)}. Received: dialect={dialect!r}")
    target = dialects[dialect]
    tensors: dict[str, np.ndarray] = {}
    for binding in bindings(model):
        tensor = to_torch_layout(binding.value, binding.kind)
        if binding.kind == "scale":
            tensor = tensor.reshape(-1, *(1,) * (target.scale_axes - 1))
        tensors[binding.name] = tensor
        module, _, leaf = binding.name.rpartition(".")
        if leaf == "running_var":
            tensors[f"{module}.num_batches_tracked"] = np.zeros((), dtype="int64")
        if binding.positions is not None and target.bias_indices:
            tensors[f"{module}.attention_bias_idxs"] = binding.positions.astype("int64")
    if dialect == "timm" and f"{HEAD}.weight" in tensors and f"{HEAD_DIST}.weight" not in tensors:
        tensors |= {f"{HEAD_DIST}.{leaf}": tensors[f"{HEAD}.{leaf}"].copy() for leaf in ("weight", "bias")}
    names = names_in_dialect(architecture, target)
    height, width = model.inputs[0].shape[1:3]
    renamed = {add_prefix(names[name], target): tensor for name, tensor in tensors.items()}
    return StateDict(renamed, (height, width), stated_of(model))


def _check_first(model: keras.Model) -> None:
    """Raises ValueError where layers of the user's own come before a model's stem."""
    operations = list(getattr(model, "operations", ()))
    before = operations[: [operation.name for operation in operations].index(STEM)] if operations else []
    foreign = [operation.name for operation in before if type(operation).__name__ not in FIRST_LAYERS]
    if foreign:
        raise ValueError(
            f"{model.name} has layers before its EfficientFormer: {listing(foreign)}. A state dict would not say what "
            "they do: pass `keras.Model(model.get_layer('stem').input, model.output)`, or make the model anew with "
            "include_preprocessing=True, or with its `mean` and `std`."
        )


def stated_of(model: keras.Model) -> Stated:
    """What is said of a model beside its tensors."""
    normalization = normalization_of(model)
    heads = [layer for layer in model.layers if layer.name in (PREDICTIONS[0], MASKS)]
    activation = keras.activations.serialize(heads[0].activation) if heads else None
    return Stated(
        labels_of(model),
        None if normalization is None else tuple(normalization.mean),
        None if normalization is None else tuple(normalization.std),
        # Functions of one's own have no name by which another process would find them.
        activation if isinstance(activation, str) and hasattr(keras.activations, activation) else None,
    )


def _describe(architecture: AnyArchitecture) -> str:
    family = architecture.family
    name = variant_name(architecture)
    if name:
        return f"{family}-{name.removeprefix('v2_').upper()} ({architecture})"
    return f"an {family} with {architecture}"


def _check_architecture(info: CheckpointInfo, expected: AnyArchitecture, source: str) -> None:
    if info.architecture == expected:
        return
    known = " or ".join(map(class_name, variants_of(type(info.architecture))))
    advice = f"Use {class_name(info.variant)}" if info.variant else f"Use {known} or {info.architecture.family}(...)"
    architecture = info.architecture
    found, wanted = _describe(architecture), _describe(expected)
    # The description of a V2 leaves out its many MLP ratios, so they are said where nothing else differs.
    if found == wanted and isinstance(architecture, ArchitectureV2) and isinstance(expected, ArchitectureV2):
        found, wanted = f"MLP ratios {architecture.mlp_ratios}", f"MLP ratios {expected.mlp_ratios}"
    raise CheckpointError(
        f"{source} is of another model: found {found}, expected {wanted}. "
        f"{advice} for it; if it should be the expected one, tensors are missing from the file."
    )


def _ignored(tensors: Mapping[str, np.ndarray], names: Mapping[str, str], wanted: Mapping[str, Binding]) -> set[str]:
    buffers = {name for name in tensors if name.endswith(IGNORED_SUFFIXES)}
    heads = {names[f"{head}.{leaf}"] for head in HEADS for leaf in ("weight", "bias")}
    # A second head is left out only beside a first one that is read, or where the model has no classifier at all.
    return buffers | (heads & tensors.keys()) - wanted.keys()


def _check_heads(info: CheckpointInfo, wanted: Mapping[str, Binding], names: Mapping[str, str], source: str) -> None:
    heads = sum(names[f"{head}.weight"] in wanted for head in HEADS)
    if heads == 0:
        return
    if info.heads == 0:
        raise CheckpointError(
            f"{source} has no classifier and the model has {heads}: build it with include_top=False for this file."
        )
    if heads == 2 and info.heads == 1:
        raise CheckpointError(
            f'{source} has a single head and the model expects two: build it with head="single" for this checkpoint.'
        )
    classes = int(wanted[names[f"{HEAD}.bias"]].variable.shape[0])
    if info.classes != classes:
        raise CheckpointError(
            f"{source} has {info.classes} classes and the model expects {classes}: build it with "
            f"classes={info.classes}, or with include_top=False to leave the classifier out."
        )


def fitting(
    tensors: Mapping[str, np.ndarray],
    wanted: Mapping[str, Binding],
    ignored: set[str],
    source: str,
    scale_axes: int = 1,
    input_size: tuple[int, int] | None = None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The values for a model's variables, in Keras' layouts and the model's sizes; nothing is assigned.

    Args:
        tensors: of a checkpoint, as `arrays_of` returns them.
        wanted: {tensor name: the variable that gets it}.
        ignored: names of tensors that no variable gets.
        source: what error messages call the checkpoint.
        scale_axes: number of axes that layer scales have in its dialect.
        input_size: (height, width) of the images that it says it is of.

    Returns:
        {tensor name: value}, and a line for each attention bias table that was resized.

    Raises:
        CheckpointError: tensors are missing, are more than the model has, are not finite, of no floating-point dtype or
            of other shapes.
    """
    _check_names(tensors, wanted, ignored, source)
    _check_values({name: tensors[name] for name in wanted}, source)
    return _fit(tensors, wanted, source, scale_axes, input_size)


def _check_names(
    tensors: Mapping[str, np.ndarray], wanted: Mapping[str, Binding], ignored: set[str], source: str
) -> None:
    missing = sorted(wanted.keys() - tensors.keys())
    extra = sorted(tensors.keys() - wanted.keys() - ignored)
    found = []
    if missing:
        found.append(f"{len(missing)} missing ({listing([f'{n} {wanted[n].torch_shape}' for n in missing])})")
    if extra:
        found.append(
            f"{len(extra)} that the model does not have ({listing([f'{n} {tensors[n].shape}' for n in extra])})"
        )
    if found:
        raise CheckpointError(
            f"{source} does not fit the model: of {len(wanted)} expected tensors found {' and '.join(found)}. "
            "Nothing was loaded; bring the whole checkpoint of this very model."
        )


def _check_values(tensors: Mapping[str, np.ndarray], source: str) -> None:
    wrong = [f"{name} {tensor.dtype}" for name, tensor in tensors.items() if not _is_float(tensor)]
    if wrong:
        raise CheckpointError(
            f"{source} holds weights of other dtypes than float16, bfloat16, float32 and float64: {listing(wrong)}. "
            "Nothing was loaded; save the weights before they are quantized."
        )
    wrong = [f"{name} {tensor.shape}" for name, tensor in tensors.items() if not _is_finite(tensor)]
    if wrong:
        raise CheckpointError(
            f"{source} holds values that are NaN or infinite in {len(wrong)} of {len(tensors)} tensors: "
            f"{listing(wrong)}. Nothing was loaded; training broke down before it was saved: use an earlier one."
        )
    wrong = [name for name, tensor in tensors.items() if name.endswith(".running_var") and (tensor < 0).any()]
    if wrong:
        raise CheckpointError(
            f"{source} holds variances below 0: {listing(wrong)}. Nothing was loaded; it is damaged: bring it again."
        )


def _is_float(tensor: np.ndarray) -> bool:
    # ml_dtypes' bfloat16 is of NumPy's kind "V" or "f", depending on its version.
    return tensor.dtype.kind == "f" or tensor.dtype.name == "bfloat16"


def _is_finite(tensor: np.ndarray) -> bool:
    # It is checked as float32, as which it is loaded, because a larger float64 becomes infinite there.
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.asarray(tensor, dtype="float32")).all())


def _fit(
    tensors: Mapping[str, np.ndarray],
    wanted: Mapping[str, Binding],
    source: str,
    scale_axes: int,
    input_size: tuple[int, int] | None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    values: dict[str, np.ndarray] = {}
    resized, misfits = [], []
    for name, binding in wanted.items():
        value = to_keras_layout(np.asarray(tensors[name], dtype="float32"), binding.kind)
        if binding.kind == "scale" and value.shape[1:] == (1,) * (scale_axes - 1):
            value = value.reshape(-1)
        # Only bias tables have a resolution.
        if binding.resolution is not None and value.ndim == 2:
            found = resolution_of_table(tensors, name, input_size)
            told = indices_name(name) in tensors or input_size is not None
            if _is_other_table(value, found, binding.resolution, told):
                resolution = _checked_resolution(value, found, name, source)
                value = resize_bias_table(value, resolution, binding.resolution)
                resized.append(f"{name}: {resolution} -> {binding.resolution}")
        if value.shape != tuple(binding.variable.shape):
            misfits.append(f"{name}: found {tensors[name].shape}, expected {binding.torch_shape}")
        values[name] = value
    if misfits:
        raise CheckpointError(
            f"{source} has {len(misfits)} tensors of other shapes: {listing(misfits)}. Nothing was loaded; bring the "
            "checkpoint of this very model."
        )
    return values, resized


def _is_other_table(
    table: np.ndarray, resolution: tuple[int, int] | None, expected: tuple[int, int], told: bool
) -> bool:
    """Whether a table belongs to another grid of tokens than the model's, which is `expected`."""
    # Without indices nothing but the table's length says of which grid it is.
    if resolution is None or not told:
        return table.shape[-1] != expected[0] * expected[1]
    # A row and a column of tokens have the same indices, and so the same table.
    line = 1 in resolution and resolution == expected[::-1]
    return resolution != expected and not line


def _checked_resolution(
    table: np.ndarray, resolution: tuple[int, int] | None, name: str, source: str
) -> tuple[int, int]:
    """The resolution, where it is known for certain and the table has its size; else raises CheckpointError."""
    # The indices of a line of tokens do not tell a row from a column.
    line = resolution is not None and 1 in resolution and resolution != (1, 1)
    if resolution is None or line or table.shape[-1] != resolution[0] * resolution[1]:
        raise CheckpointError(
            f"{source}: the attention bias table {name} {table.shape} has to be resized, and the file does not say of "
            "which (height, width) it is. Load it at the input size it was trained at."
        )
    return resolution


def resize_bias_table(table: np.ndarray, resolution: tuple[int, int], new_resolution: tuple[int, int]) -> np.ndarray:
    """Resizes attention bias tables, bilinear with aligned corners: offset 0 and the largest stay what they are.

    Args:
        table: float array (heads, height*width).
        resolution: its (height, width).
        new_resolution: the wanted (height, width).

    Returns:
        float32 array (heads, new height * new width).
    """
    grid = np.asarray(table, dtype="float64").reshape(-1, *resolution)
    grid = np.einsum("hyx,Yy,Xx->hYX", grid, *map(_interpolation, resolution, new_resolution))
    return grid.reshape(len(table), -1).astype("float32")


def _interpolation(size: int, new_size: int) -> np.ndarray:
    """Matrix (new_size, size) of linear interpolation between aligned ends."""
    positions = np.linspace(0, size - 1, new_size)
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(size)[None, :]))
