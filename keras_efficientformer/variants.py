"""Defines the shapes of both families' networks and lists the published variants. Room: top level.

The two classes hold the words and numbers in which the families differ; where code differs, each room keeps a table by
class.
"""

import math
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Architecture:
    """Shape of an EfficientFormer (paper, section 4 and table 6; reference: snap-research/EfficientFormer).

    Attributes:
        depths: blocks in each of the four stages, integers >= 0; the last stage has at least `num_meta3d`.
        widths: channels of each of the four stages, integers >= 1; the first is even (the stem starts at half of it).
        num_meta3d: how many of the last stage's blocks, counted from its end, are `Meta3D` (>= 0).
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    num_meta3d: int

    family: ClassVar[str] = "EfficientFormer"
    paper: ClassVar[str] = "EfficientFormer (arXiv 2206.01191)"
    model_prefix: ClassVar[str] = "efficientformer_"
    # An image has this many pixels for each row of the grid that `CheckpointInfo.resolution` is of.
    table_stride: ClassVar[int] = 32

    def __str__(self) -> str:
        return f"depths {self.depths}, widths {self.widths}, {self.num_meta3d} Meta3D blocks"


@dataclass(frozen=True)
class ArchitectureV2:
    """Shape of an EfficientFormerV2 (arXiv 2212.08059, section 3; reference: snap-research/EfficientFormer).

    Attributes:
        depths: blocks in each of the four stages, integers >= 0.
        widths: channels of each of the four stages, integers >= 1; the first is even (the stem starts at half of it).
        num_attention: how many blocks of the third and of the fourth stage, counted from their ends, have attention
            (>= 0); all of a stage's blocks where it has fewer, which one of the two may.
        mlp_ratios: for each stage, for each of its blocks: the FFN's hidden channels as a multiple of the width.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    num_attention: int
    mlp_ratios: tuple[tuple[float, ...], ...]

    family: ClassVar[str] = "EfficientFormerV2"
    paper: ClassVar[str] = "EfficientFormerV2 (arXiv 2212.08059)"
    model_prefix: ClassVar[str] = "efficientformer"
    # An image has this many pixels for each row of the grid that `CheckpointInfo.resolution` is of.
    table_stride: ClassVar[int] = 16

    def __str__(self) -> str:
        return f"depths {self.depths}, widths {self.widths}, {self.num_attention} attention blocks in a stage"


AnyArchitecture = Architecture | ArchitectureV2


def mlp_ratio(hidden: int, dim: int) -> float:
    """The ratio of which `int(dim * ratio)` is `hidden`: rounding down, hidden / dim is not always one."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


VARIANTS: dict[str, Architecture] = {
    "l1": Architecture(depths=(3, 2, 6, 4), widths=(48, 96, 224, 448), num_meta3d=1),
    "l3": Architecture(depths=(4, 4, 12, 6), widths=(64, 128, 320, 512), num_meta3d=4),
    "l7": Architecture(depths=(6, 6, 18, 8), widths=(96, 192, 384, 768), num_meta3d=8),
}

VARIANTS_V2: dict[str, ArchitectureV2] = {
    "v2_s0": ArchitectureV2(
        depths=(2, 2, 6, 4),
        widths=(32, 48, 96, 176),
        num_attention=2,
        mlp_ratios=((4,) * 2, (4,) * 2, (4, 3, 3, 3, 4, 4), (4, 3, 3, 4)),
    ),
    "v2_s1": ArchitectureV2(
        depths=(3, 3, 9, 6),
        widths=(32, 48, 120, 224),
        num_attention=2,
        mlp_ratios=((4,) * 3, (4,) * 3, (4, 4, 3, 3, 3, 3, 4, 4, 4), (4, 4, 3, 3, 4, 4)),
    ),
    "v2_s2": ArchitectureV2(
        depths=(4, 4, 12, 8),
        widths=(32, 64, 144, 288),
        num_attention=4,
        mlp_ratios=((4,) * 4, (4,) * 4, (4,) * 2 + (3,) * 6 + (4,) * 4, (4, 4, 3, 3, 3, 3, 4, 4)),
    ),
    "v2_l": ArchitectureV2(
        depths=(5, 5, 15, 10),
        widths=(40, 80, 192, 384),
        num_attention=6,
        mlp_ratios=((4,) * 5, (4,) * 5, (4,) * 4 + (3,) * 7 + (4,) * 4, (4,) * 3 + (3,) * 4 + (4,) * 3),
    ),
}


ALL_VARIANTS: dict[str, AnyArchitecture] = {**VARIANTS, **VARIANTS_V2}


def variant_name(architecture: AnyArchitecture) -> str | None:
    """The key of `architecture` in `ALL_VARIANTS`, or None for a shape of one's own."""
    return next((name for name, published in ALL_VARIANTS.items() if published == architecture), None)


def variants_of(family: type[AnyArchitecture]) -> tuple[str, ...]:
    """The keys of a family's published variants: of `Architecture` "l1", "l3" and "l7"."""
    return tuple(name for name, published in ALL_VARIANTS.items() if isinstance(published, family))


def class_name(variant: str) -> str:
    """The public function that makes a variant: "l1" -> "EfficientFormerL1", "v2_s0" -> "EfficientFormerV2S0"."""
    return f"EfficientFormer{variant.upper().replace('_', '')}"


def model_name(variant: str) -> str:
    """What a variant's model is called, as in timm: "efficientformer_l1", "efficientformerv2_s0"."""
    return f"{ALL_VARIANTS[variant].model_prefix}{variant}"
