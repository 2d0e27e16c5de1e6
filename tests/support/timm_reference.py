"""timm as the reference: its models with loud weights, so that no tensor can be lost or swapped without a trace.

Fresh weights would hide mistakes: biases start at zero, layer scales at 1e-5 and BatchNorm statistics at 0 and 1.
"""

import copy
import functools
import json
from pathlib import Path

import numpy as np
import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # a torchvision whose compiled part does not load beside this torch: timm needs only the names
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm
import timm.models.efficientformer
from timm.models.efficientformer import Attention

DIALECTS = Path(__file__).parents[1] / "data" / "dialects.json"


def loud_model(variant, seed=0, **arguments):
    """timm's model in evaluation mode, loud, for 224x224."""
    torch.manual_seed(seed)
    model = timm.create_model(f"efficientformer_{variant}", **arguments)
    make_loud(model, seed)
    return model.eval()


def small_model(depths=(1, 1, 1, 2), widths=(8, 16, 24, 32), num_meta3d=1, classes=10, seed=0):
    """A network of free depths and widths by timm's code, loud and in evaluation mode, for 224x224."""
    torch.manual_seed(seed)
    model = timm.models.efficientformer.EfficientFormer(depths, widths, num_vit=num_meta3d, num_classes=classes)
    make_loud(model, seed)
    return model.eval()


def at_resolution(model, resolution):
    """A copy of a 224x224 model for a token grid of (height, width), its tables resized by torch's own function."""
    model = copy.deepcopy(model)
    for block in model.stages[3].blocks:
        if isinstance(getattr(block, "token_mixer", None), Attention):
            old = block.token_mixer
            new = Attention(block.norm1.normalized_shape[0], resolution=tuple(resolution))
            new.qkv, new.proj = old.qkv, old.proj
            table = old.attention_biases.reshape(1, -1, 7, 7)
            table = torch.nn.functional.interpolate(table, tuple(resolution), mode="bilinear", align_corners=True)
            new.attention_biases = torch.nn.Parameter(table.reshape(old.num_heads, -1))
            block.token_mixer = new
    return model.eval()


def make_loud(model, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                uniform(tensor, 0.5, 2.0)
            elif name.endswith("gamma"):
                uniform(tensor, 0.05, 0.5)
            elif name.endswith("attention_biases"):
                uniform(tensor, -2.0, 2.0)
            elif name.endswith(("bias", "running_mean")):
                uniform(tensor, -0.3, 0.3)
            elif name.endswith("weight") and tensor.ndim == 1:
                uniform(tensor, 0.5, 1.5)


def state_dict(model):
    """{tensor name: NumPy array}, as timm itself would save it."""
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


@functools.cache
def tensor_table(variant):
    """What timm, snap-research's code and transformers hold: rows (timm, snap, transformers, shape, dtype)."""
    return json.loads(DIALECTS.read_text())["variants"][variant]["tensors"]


def in_dialect(tensors, variant, dialect):
    """timm's state dict of a published variant under the names that "timm", "snap" or "transformers" has for it."""
    column = ("timm", "snap", "transformers").index(dialect)
    return {row[column]: tensors[row[0]] for row in tensor_table(variant)}


def logits(model, images):
    """Logits of `images`, NumPy (batch, h, w, 3): (their mean, the first head's, the second head's)."""
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        heads = model.head(features).numpy(), model.head_dist(features).numpy()
        return model(x).numpy(), *heads


def images(*sides, batch=2, seed=0):
    """Seeded normal noise (batch, h, w, 3), float32: what preprocessed images look like to a network."""
    return np.random.default_rng(seed).standard_normal((batch, *sides, 3)).astype("float32")
