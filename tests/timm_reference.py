"""timm as the reference: its models with loud weights, so that no tensor can be lost or swapped without a trace.

Fresh weights would hide mistakes: biases start at zero, layer scales at 1e-5 and BatchNorm statistics at 0 and 1.
"""

import numpy as np
import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # a torchvision whose compiled part does not load beside this torch: timm needs only the names
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm
from timm.models.efficientformer import Attention


def loud_model(variant, resolution=(7, 7), seed=0, **arguments):
    """timm's model in evaluation mode, loud, with attention tables of `resolution` (height, width)."""
    torch.manual_seed(seed)
    model = timm.create_model(f"efficientformer_{variant}", **arguments)
    for block in model.stages[3].blocks:
        if hasattr(block, "mlp") and isinstance(block.token_mixer, Attention) and tuple(resolution) != (7, 7):
            block.token_mixer = Attention(block.norm1.normalized_shape[0], resolution=tuple(resolution))
    make_loud(model, seed)
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
