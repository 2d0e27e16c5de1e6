"""The table of published variants: one row each, from which models, checkpoints and exports take their shape."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Shape of an EfficientFormer (paper, section 4 and table 6; reference: snap-research/EfficientFormer).

    Attributes:
        depths: blocks in each of the four stages, integers >= 0; the last stage has at least `num_meta3d`.
        widths: channels of each of the four stages, integers >= 1; the first is even (the stem starts at half of it).
        num_meta3d: how many of the last stage's blocks, counted from its end, are `Meta3D` (>= 0).
    """

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    num_meta3d: int


VARIANTS: dict[str, Architecture] = {
    "l1": Architecture(depths=(3, 2, 6, 4), widths=(48, 96, 224, 448), num_meta3d=1),
    "l3": Architecture(depths=(4, 4, 12, 6), widths=(64, 128, 320, 512), num_meta3d=4),
    "l7": Architecture(depths=(6, 6, 18, 8), widths=(96, 192, 384, 768), num_meta3d=8),
}


def variant_name(architecture: Architecture) -> str | None:
    """The key of `architecture` in `VARIANTS`, or None for a shape of one's own."""
    return next((name for name, known in VARIANTS.items() if known == architecture), None)
