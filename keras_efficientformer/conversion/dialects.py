"""Lists the tensor names of timm, snap-research's code and transformers, for any depths. Room: conversion.

timm's names are also ours: the layers' attributes repeat them. `module_names` and, for EfficientFormerV2, which
transformers does not have, `module_names_v2` are the tables of names, for any depths; the rest of this file is what the
dialects need around them (heads, prefixes, how to tell them apart).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from keras_efficientformer.variants import AnyArchitecture, Architecture, ArchitectureV2

Array = TypeVar("Array")

# So begin names of tensors in mmsegmentation's checkpoints, and in no classifier's.
SEGMENTATION_HEAD = "decode_head."

STEM_NAMES = (
    ("stem.conv1", "patch_embed.0", "patch_embed.convolution1"),
    ("stem.norm1", "patch_embed.1", "patch_embed.batchnorm_before"),
    ("stem.conv2", "patch_embed.3", "patch_embed.convolution2"),
    ("stem.norm2", "patch_embed.4", "patch_embed.batchnorm_after"),
)
DOWNSAMPLE_NAMES = (
    ("conv", "proj", "projection"),
    ("norm", "norm", "norm"),
)
LAYER_SCALE_NAMES = (
    ("ls1.gamma", "layer_scale_1", "layer_scale_1"),
    ("ls2.gamma", "layer_scale_2", "layer_scale_2"),
)
META4D_NAMES = (
    *LAYER_SCALE_NAMES,
    ("mlp.fc1", "mlp.fc1", "mlp.convolution1"),
    ("mlp.norm1", "mlp.norm1", "mlp.batchnorm_before"),
    ("mlp.fc2", "mlp.fc2", "mlp.convolution2"),
    ("mlp.norm2", "mlp.norm2", "mlp.batchnorm_after"),
)
META3D_NAMES = (
    *LAYER_SCALE_NAMES,
    ("norm1", "norm1", "layernorm1"),
    ("token_mixer.qkv", "token_mixer.qkv", "token_mixer.qkv"),
    ("token_mixer.proj", "token_mixer.proj", "token_mixer.projection"),
    ("token_mixer.attention_biases", "token_mixer.attention_biases", "token_mixer.attention_biases"),
    ("token_mixer.attention_bias_idxs", "token_mixer.attention_bias_idxs", "token_mixer.attention_bias_idxs"),
    ("norm2", "norm2", "layernorm2"),
    ("mlp.fc1", "mlp.fc1", "mlp.linear_in"),
    ("mlp.fc2", "mlp.fc2", "mlp.linear_out"),
)
TOP_NAMES = (
    ("norm", "norm", "layernorm"),
    ("head", "head", "classifier"),
    ("head_dist", "dist_head", "distillation_classifier"),
)


STEM_V2_NAMES = (
    ("stem.conv1.conv", "patch_embed.0"),
    ("stem.conv1.bn", "patch_embed.1"),
    ("stem.conv2.conv", "patch_embed.3"),
    ("stem.conv2.bn", "patch_embed.4"),
)
DOWNSAMPLE_V2_NAMES = (
    ("conv.conv", "proj"),
    ("conv.bn", "norm"),
)
FFN_NAMES = (
    ("mlp.fc1.conv", "mlp.fc1"),
    ("mlp.fc1.bn", "mlp.norm1"),
    ("mlp.mid.conv", "mlp.mid"),
    ("mlp.mid.bn", "mlp.mid_norm"),
    ("mlp.fc2.conv", "mlp.fc2"),
    ("mlp.fc2.bn", "mlp.norm2"),
    ("ls2.gamma", "layer_scale_2"),
)
# Both attentions have these modules; convolution and BatchNorm are one module in timm and two steps of a sequence in
# snap's code.
ATTENTION_V2_NAMES = (
    ("k.conv", "k.0"),
    ("k.bn", "k.1"),
    ("v.conv", "v.0"),
    ("v.bn", "v.1"),
    ("v_local.conv", "v_local.0"),
    ("v_local.bn", "v_local.1"),
    ("proj.conv", "proj.1"),
    ("proj.bn", "proj.2"),
    ("attention_biases", "attention_biases"),
    ("attention_bias_idxs", "attention_bias_idxs"),
)
TALKING_ATTENTION_NAMES = (
    ("q.conv", "q.0"),
    ("q.bn", "q.1"),
    ("talking_head1", "talking_head1"),
    ("talking_head2", "talking_head2"),
    *ATTENTION_V2_NAMES,
)
STRIDE_CONV_NAMES = (
    ("stride_conv.conv", "stride_conv.0"),
    ("stride_conv.bn", "stride_conv.1"),
)
DUAL_PATH_NAMES = (
    ("conv.conv", "conv"),
    ("conv.bn", "bn"),
    ("attn.q.local", "attn.q.local.0"),
    ("attn.q.proj.conv", "attn.q.proj.0"),
    ("attn.q.proj.bn", "attn.q.proj.1"),
    *((f"attn.{timm}", f"attn.{snap}") for timm, snap in ATTENTION_V2_NAMES),
)


@dataclass(frozen=True)
class Dialect:
    """How one code base writes the state dict of one family.

    Attributes:
        name: "timm", "snap" or "transformers".
        family: the class of the architectures whose checkpoints are written so.
        column: the dialect's column in this file's tables.
        module_names: for an architecture of the family, a row of names for each module that holds tensors and each
            tensor that is no module's.
        mark: a tensor that every checkpoint of this dialect has and no other; what snap's V2 shares with its first
            family is told by the V2's mark.
        stage_prefixes: how the names of each stage's blocks begin.
        layer_scale: how the name of a layer scale ends of which each block has exactly one.
        scale_axes: number of axes of a layer scale.
        bias_indices: whether it holds `attention_bias_idxs` beside each bias table.
    """

    name: str
    family: type[AnyArchitecture]
    column: int
    module_names: Callable[[Any], Sequence[tuple[str, ...]]]
    mark: str
    stage_prefixes: tuple[str, ...]
    layer_scale: str
    scale_axes: int = 1
    bias_indices: bool = True


def _named(*dialects: Dialect) -> dict[str, Dialect]:
    return {dialect.name: dialect for dialect in dialects}


def module_names(architecture: Architecture) -> list[tuple[str, ...]]:
    """A row (timm, snap, transformers) for each module that holds tensors and each tensor that is no module's."""
    rows: list[tuple[str, ...]] = list(STEM_NAMES)
    for stage, depth in enumerate(architecture.depths):
        if stage:
            bases = (f"stages.{stage}.downsample", f"network.{2 * stage - 1}", _intermediate_stage(2 * stage - 1))
            rows += _join(bases, DOWNSAMPLE_NAMES)
        num_meta3d = architecture.num_meta3d if stage == 3 else 0
        num_meta4d = depth - num_meta3d
        for block in range(num_meta4d):
            bases = (f"stages.{stage}.blocks.{block}", f"network.{2 * stage}.{block}", _meta4d_block(stage, block))
            rows += _join(bases, META4D_NAMES)
        for block in range(num_meta3d):
            # timm and snap flatten the feature map in a module of its own, which takes the index before this one.
            index = num_meta4d + 1 + block
            meta3d = f"encoder.last_stage.meta3D_layers.blocks.{block}"
            rows += _join((f"stages.{stage}.blocks.{index}", f"network.{2 * stage}.{index}", meta3d), META3D_NAMES)
    return rows + list(TOP_NAMES)


def module_names_v2(architecture: ArchitectureV2) -> list[tuple[str, ...]]:
    """A row (timm, snap) for each module that holds tensors and each tensor that is no module's."""
    rows: list[tuple[str, ...]] = list(STEM_V2_NAMES)
    for stage, depth in enumerate(architecture.depths):
        if stage:
            bases = (f"stages.{stage}.downsample", f"network.{2 * stage - 1}")
            rows += _join(bases, DUAL_PATH_NAMES if stage == 3 else DOWNSAMPLE_V2_NAMES)
        num_attention = architecture.num_attention if stage >= 2 else 0
        for block in range(depth):
            bases = (f"stages.{stage}.blocks.{block}", f"network.{2 * stage}.{block}")
            rows += _join(bases, FFN_NAMES)
            if block >= depth - num_attention:
                mixers = tuple(f"{base}.token_mixer" for base in bases)
                rows += _join(bases, (("ls1.gamma", "layer_scale_1"),))
                strided = STRIDE_CONV_NAMES if stage == 2 else ()
                rows += _join(mixers, (*TALKING_ATTENTION_NAMES, *strided))
    return rows + [row[:2] for row in TOP_NAMES]


def _join(bases: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [tuple(f"{base}.{name}" for base, name in zip(bases, row, strict=True)) for row in rows]


def _intermediate_stage(index: int) -> str:
    return f"encoder.intermediate_stages.{index}"


def _meta4d_block(stage: int, block: int) -> str:
    place = _intermediate_stage(2 * stage) if stage < 3 else "encoder.last_stage"
    return f"{place}.meta4D_layers.blocks.{block}"


_TIMM_STAGES = tuple(f"stages.{stage}.blocks." for stage in range(4))
_SNAP_STAGES = tuple(f"network.{2 * stage}." for stage in range(4))
_TRANSFORMERS_STAGES = (*(f"encoder.intermediate_stages.{2 * stage}." for stage in range(3)), "encoder.last_stage.")

DIALECTS = _named(
    Dialect("timm", Architecture, 0, module_names, "stem.conv1.weight", _TIMM_STAGES, ".ls1.gamma"),
    Dialect("snap", Architecture, 1, module_names, "patch_embed.0.weight", _SNAP_STAGES, ".layer_scale_1"),
    Dialect(
        "transformers",
        Architecture,
        2,
        module_names,
        "patch_embed.convolution1.weight",
        _TRANSFORMERS_STAGES,
        ".layer_scale_1",
    ),
)
DIALECTS_V2 = _named(
    Dialect(
        "timm",
        ArchitectureV2,
        0,
        module_names_v2,
        "stem.conv1.conv.weight",
        _TIMM_STAGES,
        ".ls2.gamma",
        bias_indices=False,
    ),
    Dialect(
        "snap",
        ArchitectureV2,
        1,
        module_names_v2,
        "network.5.conv.weight",
        _SNAP_STAGES,
        ".layer_scale_2",
        scale_axes=3,
    ),
)
# They are tried in this order, because snap's V2 has the mark of snap's first family too.
ALL_DIALECTS = (*DIALECTS_V2.values(), *DIALECTS.values())

# transformers' classifiers keep the network in an attribute of this name; its bare model does not.
TRANSFORMERS_PREFIX = "efficientformer."


def dialects_of(architecture: AnyArchitecture) -> dict[str, Dialect]:
    """The dialects that there are for a network's family, by name."""
    return _named(*(dialect for dialect in ALL_DIALECTS if isinstance(architecture, dialect.family)))


def is_of_segmentation(tensors: Iterable[str]) -> bool:
    """Whether tensors of these names are a segmentation model's, as mmsegmentation has them."""
    return any(name.startswith(SEGMENTATION_HEAD) for name in tensors)


def find_dialect(names: Iterable[str]) -> Dialect | None:
    """The dialect and family in which `names`, an iterable of tensor names, are written; None if it is none of them."""
    names = set(names)
    return next((dialect for dialect in ALL_DIALECTS if dialect.mark in names), None)


def strip_prefix(state_dict: Mapping[str, Array]) -> dict[str, Array]:
    """`state_dict` without transformers' outer prefix, so that both its classes' names read alike."""
    return {name.removeprefix(TRANSFORMERS_PREFIX): tensor for name, tensor in state_dict.items()}


def add_prefix(name: str, dialect: Dialect) -> str:
    """The name that `dialect`'s image classifier gives to a tensor, from the one in this file's tables."""
    if dialect.name != "transformers" or name.startswith((TOP_NAMES[1][2], TOP_NAMES[2][2])):
        return name
    return TRANSFORMERS_PREFIX + name
