"""The phrase book: what each tensor is called by timm, by snap-research's code and by transformers.

timm's names are also ours: the layers' attributes repeat them. `module_names` is the one table of names, for any
depths; the rest of this file is what the dialects need around it (heads, prefixes, how to tell them apart).
"""

from dataclasses import dataclass

from keras_efficientformer.variants import Architecture

STEM = (
    ("stem.conv1", "patch_embed.0", "patch_embed.convolution1"),
    ("stem.norm1", "patch_embed.1", "patch_embed.batchnorm_before"),
    ("stem.conv2", "patch_embed.3", "patch_embed.convolution2"),
    ("stem.norm2", "patch_embed.4", "patch_embed.batchnorm_after"),
)
DOWNSAMPLE = (
    ("conv", "proj", "projection"),
    ("norm", "norm", "norm"),
)
LAYER_SCALES = (
    ("ls1.gamma", "layer_scale_1", "layer_scale_1"),
    ("ls2.gamma", "layer_scale_2", "layer_scale_2"),
)
META4D = (
    *LAYER_SCALES,
    ("mlp.fc1", "mlp.fc1", "mlp.convolution1"),
    ("mlp.norm1", "mlp.norm1", "mlp.batchnorm_before"),
    ("mlp.fc2", "mlp.fc2", "mlp.convolution2"),
    ("mlp.norm2", "mlp.norm2", "mlp.batchnorm_after"),
)
META3D = (
    *LAYER_SCALES,
    ("norm1", "norm1", "layernorm1"),
    ("token_mixer.qkv", "token_mixer.qkv", "token_mixer.qkv"),
    ("token_mixer.proj", "token_mixer.proj", "token_mixer.projection"),
    ("token_mixer.attention_biases", "token_mixer.attention_biases", "token_mixer.attention_biases"),
    ("token_mixer.attention_bias_idxs", "token_mixer.attention_bias_idxs", "token_mixer.attention_bias_idxs"),
    ("norm2", "norm2", "layernorm2"),
    ("mlp.fc1", "mlp.fc1", "mlp.linear_in"),
    ("mlp.fc2", "mlp.fc2", "mlp.linear_out"),
)
TOP = (
    ("norm", "norm", "layernorm"),
    ("head", "head", "classifier"),
    ("head_dist", "dist_head", "distillation_classifier"),
)


@dataclass(frozen=True)
class Dialect:
    """How one code base writes a state dict.

    Attributes:
        name: "timm", "snap" or "transformers".
        column: the dialect's column in this file's tables.
        mark: a tensor that every checkpoint of this dialect has, and no other.
        stage_prefixes: how the names of each stage's blocks begin.
        layer_scale: how the name of a block's first layer scale ends; each block has exactly one.
    """

    name: str
    column: int
    mark: str
    stage_prefixes: tuple[str, ...]
    layer_scale: str


DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect("timm", 0, "stem.conv1.weight", tuple(f"stages.{stage}.blocks." for stage in range(4)), ".ls1.gamma"),
        Dialect("snap", 1, "patch_embed.0.weight", tuple(f"network.{2 * s}." for s in range(4)), ".layer_scale_1"),
        Dialect(
            "transformers",
            2,
            "patch_embed.convolution1.weight",
            (*(f"encoder.intermediate_stages.{2 * s}." for s in range(3)), "encoder.last_stage."),
            ".layer_scale_1",
        ),
    )
}

# transformers' classifiers keep the network in an attribute of this name; its bare model does not.
TRANSFORMERS_PREFIX = "efficientformer."


def find_dialect(names) -> Dialect | None:
    """The dialect in which `names`, an iterable of tensor names, are written; None if it is none of the three."""
    names = set(names)
    return next((dialect for dialect in DIALECTS.values() if dialect.mark in names), None)


def module_names(architecture: Architecture) -> list[tuple[str, str, str]]:
    """A row (timm, snap, transformers) for each module that holds tensors and each tensor that is no module's."""
    rows = list(STEM)
    for stage, depth in enumerate(architecture.depths):
        if stage:
            bases = (f"stages.{stage}.downsample", f"network.{2 * stage - 1}", _intermediate_stage(2 * stage - 1))
            rows += _join(bases, DOWNSAMPLE)
        num_meta3d = architecture.num_meta3d if stage == 3 else 0
        num_meta4d = depth - num_meta3d
        for block in range(num_meta4d):
            bases = (f"stages.{stage}.blocks.{block}", f"network.{2 * stage}.{block}", _meta4d_block(stage, block))
            rows += _join(bases, META4D)
        for block in range(num_meta3d):
            # timm and snap flatten the feature map in a module of its own, which takes the index before this one.
            index = num_meta4d + 1 + block
            meta3d = f"encoder.last_stage.meta3D_layers.blocks.{block}"
            rows += _join((f"stages.{stage}.blocks.{index}", f"network.{2 * stage}.{index}", meta3d), META3D)
    return rows + list(TOP)


def _join(bases, rows):
    return [tuple(f"{base}.{name}" for base, name in zip(bases, row, strict=True)) for row in rows]


def _intermediate_stage(index):
    return f"encoder.intermediate_stages.{index}"


def _meta4d_block(stage, block):
    place = _intermediate_stage(2 * stage) if stage < 3 else "encoder.last_stage"
    return f"{place}.meta4D_layers.blocks.{block}"


def strip_prefix(state_dict: dict) -> dict:
    """`state_dict` without transformers' outer prefix, so that both its classes' names read alike."""
    return {name.removeprefix(TRANSFORMERS_PREFIX): tensor for name, tensor in state_dict.items()}


def add_prefix(name: str, dialect: Dialect) -> str:
    """The name that `dialect`'s image classifier gives to a tensor, from the one in this file's tables."""
    if dialect.name != "transformers" or name.startswith((TOP[1][2], TOP[2][2])):
        return name
    return TRANSFORMERS_PREFIX + name
