"""timm's EfficientFormerV2 as the reference: loud models, small ones, and for other input sizes.

`timm_reference`'s functions for weights, images and logits serve both families.
"""

import json
from pathlib import Path

import timm_reference  # first: it makes timm importable beside any torchvision
import torch

timm = timm_reference.timm

DIALECTS = Path(__file__).parents[1] / "data" / "dialects_v2.json"
VARIANTS = ("s0", "s1", "s2", "l")
SMALL = {
    "depths": (1, 1, 2, 2),
    "widths": (8, 12, 16, 24),
    "num_attention": 1,
    "mlp_ratios": ((4,), (3,), (2, 3), (4, 2)),
}


def loud_model(variant, seed=0, **arguments):
    """timm's model, "s0" to "l", in evaluation mode, loud, for 224x224 or `img_size`."""
    torch.manual_seed(seed)
    model = timm.create_model(f"efficientformerv2_{variant}", **arguments)
    timm_reference.make_loud(model, seed)
    return model.eval()


def small_model(classes=10, seed=0, size=224, **shape):
    """A network of free shape by timm's code, loud and in evaluation mode."""
    shape = {**SMALL, **shape}
    torch.manual_seed(seed)
    model = timm.models.EfficientFormerV2(
        shape["depths"],
        embed_dims=shape["widths"],
        num_vit=shape["num_attention"],
        mlp_ratios=shape["mlp_ratios"],
        num_classes=classes,
        img_size=size,
    )
    timm_reference.make_loud(model, seed)
    return model.eval()


def at_size(model, new):
    """The weights of a square model in `new`, for another input size, its tables resized by torch's own function."""
    tensors = model.state_dict()
    for name, table in new.state_dict().items():
        if name.endswith("attention_biases"):
            grid = new.get_submodule(name.rpartition(".")[0]).resolution
            side = round(tensors[name].shape[1] ** 0.5)
            old = tensors[name].reshape(1, -1, side, side)
            resized = torch.nn.functional.interpolate(old, tuple(grid), mode="bilinear", align_corners=True)
            tensors[name] = resized.reshape(table.shape)
    new.load_state_dict(tensors, strict=True)
    return new.eval()


def for_odd_sides(model, third_stage):
    """A model whose stride attention gives (height, width) of the third stage back: timm's own doubles its grid."""
    for block in model.stages[2].blocks:
        if block.token_mixer is not None:
            block.token_mixer.upsample = torch.nn.Upsample(third_stage, mode="bilinear")
    return model


def in_snap(tensors, variant):
    """timm's state dict of a published variant as snap-research's code has it, but for its buffers of indices."""
    rows = [row for row in tensor_table(variant) if row[0] is not None]
    return {snap: tensors[timm].reshape(shape) for timm, snap, shape in rows}


def tensor_table(variant):
    """What timm and snap-research's code hold: rows (timm, or None for snap's own buffers; snap; shape in snap)."""
    return json.loads(DIALECTS.read_text())["variants"][variant]["tensors"]
