"""The interpreter between PyTorch's state dicts and Keras models, both ways, in three dialects. NumPy only.

A model's variables are listed once, under timm's names (`bindings`); `dialects` says what the others call them. All
checks come before the first assignment, so a load that fails leaves the model as it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from keras_efficientformer.bindings import HEADS, architecture_of, bindings, listing, to_keras_layout, to_torch_layout
from keras_efficientformer.checkpoint_files import (
    Checkpoint,
    CheckpointError,
    keras_layers,
    read_tensors,
    suffix_of,
    to_numpy,
    write_tensors,
)
from keras_efficientformer.dialects import (
    ALL_DIALECTS,
    DIALECTS_V2,
    add_prefix,
    dialects_of,
    find_dialect,
    strip_prefix,
)
from keras_efficientformer.keras_weights import to_timm_names
from keras_efficientformer.layers import relative_positions
from keras_efficientformer.layers_v2 import downsampling_positions
from keras_efficientformer.variants import (
    VARIANTS,
    VARIANTS_V2,
    Architecture,
    ArchitectureV2,
    class_name,
    mlp_ratio,
    variant_name,
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointInfo",
    "LoadReport",
    "architecture_of",
    "infer_variant",
    "load_state_dict",
    "read_checkpoint",
    "source_of",
    "to_state_dict",
    "write_checkpoint",
]

# Not weights: recomputed from the input's size, and counted by PyTorch's BatchNorm for an average we do not use.
IGNORED_SUFFIXES = (".attention_bias_idxs", ".num_batches_tracked")
HEAD, HEAD_DIST = HEADS
# Keras' layers that a model of this package has at its top level, and what they are called there.
NAMED_LAYERS = {"Dense": HEADS, "BatchNormalization": ("norm",), "LayerNormalization": ("norm",)}


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
            `attention_bias_idxs`; where the file has none of them, the square of as many tokens as the bias table has;
            None without attention or where the number is no square.
    """

    dialect: str
    variant: str | None
    architecture: Architecture | ArchitectureV2
    classes: int | None
    heads: int
    resolution: tuple[int, int] | None

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(height, width) of the images, in pixels, that `resolution` is of; the largest where there are several."""
        if self.resolution is None:
            return None
        pixels = 16 if isinstance(self.architecture, ArchitectureV2) else 32
        return pixels * self.resolution[0], pixels * self.resolution[1]


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


def read_checkpoint(path) -> Checkpoint:
    """The state dict in a checkpoint file.

    Args:
        path: `.safetensors`, `.pth`, `.pt` or `.bin` (these need torch) in any dialect and under any usual wrapper
            ("model", "state_dict", "module.", averaged weights: see `checkpoint_files.WRAPPERS`); or `.keras` or
            `.weights.h5` of an EfficientFormer made by this package, whose tensors get timm's names and layouts.

    Returns:
        A dict {tensor name: NumPy array of the file's dtype} with the attributes `source` and `wrappers`.

    Raises:
        CheckpointError: the file is truncated, damaged, unsafe, of an unknown kind or without tensors.
        OSError: the file is missing or cannot be read.
        ImportError: torch is needed and not installed.
    """
    checkpoint = read_tensors(path)
    if suffix_of(path) == ".keras":
        _check_own_layers(path)
    if suffix_of(path) in (".keras", ".weights.h5"):
        return Checkpoint(to_timm_names(checkpoint), path)
    return checkpoint


def _check_own_layers(path):
    """Raises CheckpointError for layers of the user's own: weights files tell them by class and order alone."""
    layers = keras_layers(path)
    foreign = [name for kind, name in layers if kind in NAMED_LAYERS and name not in NAMED_LAYERS[kind]]
    if foreign and "stem" in [name for _, name in layers]:
        raise CheckpointError(
            f"{path} holds an EfficientFormer with layers of your own: {listing(foreign)}. Load it with "
            "keras.saving.load_model, and save the EfficientFormer alone."
        )


def write_checkpoint(path, state_dict, overwrite=False):
    """Writes what `to_state_dict` returned: `.safetensors`, or `.pth`, `.pt` or `.bin` with torch.

    snap-research's training code keeps its weights under "model", so its dialect is written so in PyTorch's formats.

    Args:
        path: the file to write; it gets its name only when complete.
        state_dict: {tensor name: contiguous NumPy array}.
        overwrite: whether an existing file may be replaced.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.
        CheckpointError: the suffix is none of the four.
        ImportError: torch is needed and not installed.
    """
    dialect = find_dialect(strip_prefix(state_dict))
    wrapper = "model" if dialect is not None and dialect.name == "snap" else None
    write_tensors(path, state_dict, overwrite, wrapper)


def infer_variant(state_dict) -> CheckpointInfo:
    """What the names and shapes of a state dict say about its model.

    Args:
        state_dict: {tensor name: array or PyTorch tensor} of either family in any of its dialects, depths and widths
            free.

    Raises:
        CheckpointError: the names are those of none of the dialects, or tensors that tell the shape are missing.
    """
    source = _source(state_dict)
    return _infer(_arrays(state_dict, source), source)


def _infer(tensors, source):
    dialect = find_dialect(tensors)
    if dialect is None:
        expected = ", ".join(f"{dialect.mark} ({_title(dialect)})" for dialect in ALL_DIALECTS)
        raise CheckpointError(
            f"{source} is not an EfficientFormer in a known dialect: found {listing(sorted(tensors))}; expected a "
            f"tensor named {expected}. Other networks are not read by this loader."
        )
    infer = _infer_architecture_v2 if dialect in DIALECTS_V2.values() else _infer_architecture
    architecture = infer(tensors, dialect, source)
    names = _tensor_names(architecture, dialect)
    heads = [tensors[names[f"{head}.bias"]] for head in HEADS if names[f"{head}.bias"] in tensors]
    return CheckpointInfo(
        dialect=dialect.name,
        variant=variant_name(architecture),
        architecture=architecture,
        classes=heads[0].size if heads else None,
        heads=len(heads),
        resolution=_infer_resolution(tensors, names),
    )


def load_state_dict(model, state_dict, progress=iter) -> LoadReport:
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
    source = _source(state_dict)
    model_bindings = bindings(model)
    tensors = _arrays(state_dict, source)
    info = _infer(tensors, source)
    _check_architecture(info, architecture_of(model), source)
    dialect = dialects_of(info.architecture)[info.dialect]
    names = _tensor_names(info.architecture, dialect)

    wanted = {names[binding.name]: binding for binding in model_bindings}
    ignored = _ignored(tensors, names, wanted)
    _check_heads(info, wanted, names, source)
    _check_names(tensors, wanted, ignored, source)
    _check_values({name: tensors[name] for name in wanted}, source)
    values, resized = _fit(tensors, wanted, dialect, source)
    for name, binding in progress(list(wanted.items())):
        binding.variable.assign(values.pop(name))
    model._checkpoint_source = getattr(state_dict, "source", None)
    return LoadReport(info, source, len(wanted), tuple(sorted(ignored)), tuple(resized))


def source_of(model) -> str | None:
    """Path of the checkpoint file that was last loaded into the model in this process, None where it is not known."""
    return getattr(model, "_checkpoint_source", None)


def to_state_dict(model, dialect="timm") -> dict[str, np.ndarray]:
    """The model's weights as a PyTorch state dict.

    Buffers are made again, so that torch's strict `load_state_dict` accepts the result: in timm's
    `efficientformer_*`, in snap-research's code and in transformers' `EfficientFormerForImageClassificationWithTeacher`
    (with one head, snap's without distillation and `EfficientFormerForImageClassification`). timm has no model with
    one head: there a single head is written twice, which timm averages to the same logits. transformers has no V2.

    Args:
        model: an EfficientFormer or EfficientFormerV2 (`keras.Model`).
        dialect: "timm", "snap" or "transformers".

    Returns:
        {tensor name: contiguous array}, float32 weights and int64 buffers.

    Raises:
        ValueError: a dialect that the model's family does not have, or a model that is not an EfficientFormer of this
            package.
    """
    architecture = architecture_of(model)
    dialects = dialects_of(architecture)
    if dialect not in dialects:
        raise ValueError(f"`dialect` should be one of {', '.join(dialects)}. Received: dialect={dialect!r}")
    target = dialects[dialect]
    tensors = {}
    for binding in bindings(model):
        tensor = to_torch_layout(np.array(binding.variable, dtype="float32"), binding.kind)
        if binding.kind == "scale":
            tensor = tensor.reshape(-1, *(1,) * (target.scale_axes - 1))
        tensors[binding.name] = tensor
        module, _, leaf = binding.name.rpartition(".")
        if leaf == "running_var":
            tensors[f"{module}.num_batches_tracked"] = np.zeros((), dtype="int64")
        if binding.kind == "table" and target.bias_indices:
            tensors[f"{module}.attention_bias_idxs"] = binding.positions.astype("int64")
    if dialect == "timm" and f"{HEAD}.weight" in tensors and f"{HEAD_DIST}.weight" not in tensors:
        tensors |= {f"{HEAD_DIST}.{leaf}": tensors[f"{HEAD}.{leaf}"].copy() for leaf in ("weight", "bias")}
    names = _tensor_names(architecture, target)
    return {add_prefix(names[name], target): tensor for name, tensor in tensors.items()}


def _tensor_names(architecture, dialect):
    """{timm's tensor name: the dialect's}, for every tensor that an EfficientFormer of this shape can have."""
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {}
    for row in dialect.module_names(architecture):
        timm, other = row[0], row[dialect.column]
        names[timm] = other  # rows that are tensors themselves: layer scales, bias tables
        names |= {f"{timm}.{leaf}": f"{other}.{leaf}" for leaf in leaves}
    return names


def _source(state_dict):
    return getattr(state_dict, "source", "the state dict")


def _arrays(state_dict, source):
    """{name: NumPy array} without transformers' outer prefix, of arrays or of PyTorch's tensors."""
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(
            f"{source} should be a state dict, {{tensor name: array}}: found a {type(state_dict).__name__}. "
            "`read_checkpoint` makes one of a file."
        )
    tensors = strip_prefix({name: to_numpy(value) for name, value in state_dict.items()})
    unfit = [f"{name}: {type(tensor).__name__}" for name, tensor in tensors.items() if not hasattr(tensor, "ndim")]
    if unfit:
        raise CheckpointError(f"{source} should hold arrays alone: found {listing(unfit)}.")
    return tensors


def _title(dialect):
    return f"{dialect.name}, EfficientFormerV2" if dialect in DIALECTS_V2.values() else dialect.name


def _count_in_stages(tensors, dialect, suffix):
    """How many tensors with this end of a name each stage's blocks have."""
    return tuple(
        sum(name.startswith(prefix) and name.endswith(suffix) for name in tensors) for prefix in dialect.stage_prefixes
    )


def _infer_architecture(tensors, dialect, source):
    depths = _count_in_stages(tensors, dialect, dialect.layer_scale)
    num_meta3d = sum(name.endswith(".token_mixer.qkv.weight") for name in tensors)
    # A shape that cannot be, so with tensors missing, is reported as such by the strict checks against a model's names.
    names = _tensor_names(Architecture(depths, (0, 0, 0, 0), min(num_meta3d, depths[3])), dialect)
    telling = ["stem.conv2", *(f"stages.{stage}.downsample.conv" for stage in (1, 2, 3))]
    kernels = _kernels(tensors, [names[f"{module}.weight"] for module in telling], source)
    return Architecture(depths, tuple(len(kernel) for kernel in kernels), num_meta3d)


def _infer_architecture_v2(tensors, dialect, source):
    depths = _count_in_stages(tensors, dialect, dialect.layer_scale)
    num_attention = max(_count_in_stages(tensors, dialect, ".token_mixer.talking_head1.weight"))
    no_ratios = tuple((0.0,) * depth for depth in depths)
    names = _tensor_names(ArchitectureV2(depths, (0, 0, 0, 0), num_attention, no_ratios), dialect)
    telling = ["stem.conv2.conv", *(f"stages.{stage}.downsample.conv.conv" for stage in (1, 2, 3))]
    kernels = _kernels(tensors, [names[f"{module}.weight"] for module in telling], source)
    ratios = []
    for stage, depth in enumerate(depths):
        expanding = [names[f"stages.{stage}.blocks.{block}.mlp.fc1.conv.weight"] for block in range(depth)]
        ratios.append(tuple(mlp_ratio(len(k), len(kernels[stage])) for k in _kernels(tensors, expanding, source)))
    return ArchitectureV2(depths, tuple(len(kernel) for kernel in kernels), num_attention, tuple(ratios))


def _kernels(tensors, names, source):
    """The convolutions of these names, whose shapes tell the network's."""
    missing = [name for name in names if name not in tensors or tensors[name].ndim != 4]
    if missing:
        raise CheckpointError(
            f"{source} is not a complete EfficientFormer: the tensors {listing(missing)}, which tell its widths, are "
            "missing or do not have the four axes of a convolution. Bring the whole checkpoint."
        )
    return [tensors[name] for name in names]


def _infer_resolution(tensors, names):
    # In V2 several grids have tables; the one before the last stage is always there.
    downsampling = names.get("stages.3.downsample.attn.attention_biases")
    tables = [downsampling] if downsampling else [name for name in tensors if name.endswith(".attention_biases")]
    # Any table with indices tells more than one without.
    tables.sort(key=lambda name: _indices_of(name) not in tensors)
    return _resolution_of_table(tensors, tables[0]) if tables else None


def _indices_of(table):
    return table.removesuffix("attention_biases") + "attention_bias_idxs"


def _resolution_of_table(tensors, name):
    """(height, width) of the grid that a bias table is of; None where nothing tells it."""
    if _indices_of(name) in tensors:
        return _resolution_of_indices(np.asarray(tensors[_indices_of(name)]))
    if name not in tensors or tensors[name].ndim != 2:
        return None
    side = round(tensors[name].shape[-1] ** 0.5)
    return (side, side) if side * side == tensors[name].shape[-1] else None


def _resolution_of_indices(indices):
    if indices.ndim != 2:
        return None
    tokens = indices.shape[1]
    widths = (width for width in range(1, tokens + 1) if tokens % width == 0)
    shapes = ((tokens // width, width) for width in widths)
    kinds = (relative_positions, downsampling_positions)
    return next((shape for shape in shapes if any(np.array_equal(kind(shape), indices) for kind in kinds)), None)


def _describe(architecture):
    family = "EfficientFormerV2" if isinstance(architecture, ArchitectureV2) else "EfficientFormer"
    name = variant_name(architecture)
    if name:
        return f"{family}-{name.removeprefix('v2_').upper()} ({architecture})"
    return f"an {family} with {architecture}"


def _check_architecture(info, expected, source):
    if info.architecture == expected:
        return
    table, free = VARIANTS, "EfficientFormer(...)"
    if isinstance(info.architecture, ArchitectureV2):
        table, free = VARIANTS_V2, "EfficientFormerV2(...)"
    known = " or ".join(map(class_name, table))
    advice = f"Use {class_name(info.variant)}" if info.variant else f"Use {known} or {free}"
    found, wanted = _describe(info.architecture), _describe(expected)
    if found == wanted:
        found, wanted = (f"MLP ratios {architecture.mlp_ratios}" for architecture in (info.architecture, expected))
    raise CheckpointError(
        f"{source} is of another model: found {found}, expected {wanted}. "
        f"{advice} for it; if it should be the expected one, tensors are missing from the file."
    )


def _ignored(tensors, names, wanted):
    buffers = {name for name in tensors if name.endswith(IGNORED_SUFFIXES)}
    heads = {names[f"{head}.{leaf}"] for head in HEADS for leaf in ("weight", "bias")}
    # A second head is left out only beside a first one that is read, or where the model has no classifier at all.
    return buffers | (heads & tensors.keys()) - wanted.keys()


def _check_heads(info, wanted, names, source):
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


def _check_names(tensors, wanted, ignored, source):
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


def _check_values(tensors, source):
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


def _is_float(tensor):
    # ml_dtypes' bfloat16 is of NumPy's kind "V" or "f", depending on its version.
    return tensor.dtype.kind == "f" or tensor.dtype.name == "bfloat16"


def _is_finite(tensor):
    with np.errstate(over="ignore"):  # in float32, as which it is loaded, a larger float64 is infinite
        return np.isfinite(np.asarray(tensor, dtype="float32")).all()


def _fit(tensors, wanted, dialect, source):
    """The values in Keras' layouts and the model's sizes, and a line for each resized table."""
    values, resized, misfits = {}, [], []
    for name, binding in wanted.items():
        value = to_keras_layout(np.asarray(tensors[name], dtype="float32"), binding.kind)
        if binding.kind == "scale" and value.shape[1:] == (1,) * (dialect.scale_axes - 1):
            value = value.reshape(-1)
        if binding.kind == "table" and value.ndim == 2:
            resolution = _resolution_of_table(tensors, name)
            if _is_other_table(value, binding, resolution, told=_indices_of(name) in tensors):
                _check_resolution(value, resolution, name, source)
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


def _is_other_table(table, binding, resolution, told):
    """Whether a table belongs to another grid of tokens than the model's."""
    if resolution is None or not told:  # nothing but its length says of which grid it is
        return table.shape[-1] != binding.variable.shape[-1]
    # A row and a column of tokens have the same indices, and so the same table.
    line = 1 in resolution and resolution == binding.resolution[::-1]
    return resolution != binding.resolution and not line


def _check_resolution(table, resolution, name, source):
    unknown = resolution is None or (1 in resolution and resolution != (1, 1))
    if unknown or table.shape[-1] != resolution[0] * resolution[1]:
        raise CheckpointError(
            f"{source}: the attention bias table {name} {table.shape} has to be resized, and the file does not say of "
            "which (height, width) it is. Load it at the input size it was trained at."
        )


def resize_bias_table(table, resolution, new_resolution):
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


def _interpolation(size, new_size):
    """Matrix (new_size, size) of linear interpolation between aligned ends."""
    positions = np.linspace(0, size - 1, new_size)
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(size)[None, :]))
