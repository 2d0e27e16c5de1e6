"""The second family's models: `EfficientFormerV2` of any shape, and the published S0, S1, S2, L (arXiv 2212.08059)."""

import numpy as np

from keras_efficientformer.assembly import assemble, check_depths_and_widths, document, entry_point
from keras_efficientformer.layers_v2 import StageV2, StemV2
from keras_efficientformer.normalization import batch_norm
from keras_efficientformer.variants import VARIANTS_V2, ArchitectureV2

_TEXTS = {
    "norm": "BatchNorm",
    "dialects": "timm's or snap-research's",
    "references": (
        "Rethinking Vision Transformers for MobileNet Size and Speed (arXiv 2212.08059), section 3;\n"
        "        snap-research/EfficientFormer; timm's efficientformer_v2.py."
    ),
}


def EfficientFormerV2(
    depths,
    widths,
    num_attention,
    mlp_ratios,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="efficientformerv2",
    *,
    head="average",
    drop_path_rate=0.0,
):
    architecture = ArchitectureV2(tuple(depths), tuple(widths), num_attention, tuple(map(tuple, mlp_ratios)))
    _check_architecture(architecture)
    return assemble(
        _backbone,
        architecture,
        include_top,
        weights,
        input_tensor,
        input_shape,
        pooling,
        classes,
        classifier_activation,
        name,
        head,
        drop_path_rate,
    )


document(
    EfficientFormerV2,
    "An EfficientFormerV2 of any depths and widths.",
    _TEXTS,
    own="""
        depths: blocks in each of the four stages, four integers >= 0.
        widths: channels of the four stages, four integers >= 1, the first even.
        num_attention: how many blocks of the third and of the fourth stage, counted from their ends, have attention
            (`AttentionV2`); all of a stage's blocks where it has fewer, which one of the two may.
        mlp_ratios: for each stage, for each of its blocks: the FFN's hidden channels as a multiple of the width.""",
)


def _published(variant, summary):
    return entry_point(EfficientFormerV2, VARIANTS_V2, variant, summary, _TEXTS)


EfficientFormerV2S0 = _published("v2_s0", "EfficientFormerV2-S0: 3.6 million parameters, 0.4 GMACs at 224x224.")
EfficientFormerV2S1 = _published("v2_s1", "EfficientFormerV2-S1: 6.2 million parameters, 0.7 GMACs at 224x224.")
EfficientFormerV2S2 = _published("v2_s2", "EfficientFormerV2-S2: 12.7 million parameters, 1.2 GMACs at 224x224.")
EfficientFormerV2L = _published("v2_l", "EfficientFormerV2-L: 26.3 million parameters, 2.6 GMACs at 224x224.")


def _backbone(x, architecture, drop_path_rate):
    """Feature map (batch, h, w, 3) -> normalised features (batch, ceil(h/32), ceil(w/32), widths[-1])."""
    rates = np.linspace(0, drop_path_rate, sum(architecture.depths)).tolist()
    x = StemV2(architecture.widths[0], name="stem")(x)
    for index, (width, ratios) in enumerate(zip(architecture.widths, architecture.mlp_ratios, strict=True)):
        drop_path, rates = rates[: len(ratios)], rates[len(ratios) :]
        stage = StageV2(
            width,
            ratios,
            num_attention=min(architecture.num_attention, len(ratios)) if index >= 2 else 0,
            strided=index == 2,
            downsample=(None, "convolution", "convolution", "dual-path")[index],
            drop_path=drop_path,
            name=f"stage{index + 1}",
        )
        x = stage(x)
    return batch_norm("norm", None)(x)


def _check_architecture(architecture):
    depths, mlp_ratios = architecture.depths, architecture.mlp_ratios
    check_depths_and_widths(depths, architecture.widths)
    if not 0 <= architecture.num_attention <= max(depths[2:]):
        raise ValueError(
            "`num_attention` should be between 0 and the depth of the third or fourth stage, whichever is deeper. "
            f"Received: num_attention={architecture.num_attention}, depths={depths}"
        )
    if tuple(map(len, mlp_ratios)) != depths or any(ratio <= 0 for ratios in mlp_ratios for ratio in ratios):
        raise ValueError(
            "`mlp_ratios` should have for each stage one number > 0 for each of its blocks. "
            f"Received: mlp_ratios={mlp_ratios}, depths={depths}"
        )
