"""mmsegmentation's FPN and FPNHead in PyTorch, transcribed, on the stages of timm's networks.

The modules have the names that checkpoints of snap-research's segmentation code have. Room: tests/segmentation.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class ConvModule(nn.Module):
    def __init__(self, inputs, outputs, size, with_norm):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=not with_norm)
        if with_norm:
            self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return functional.relu(self.bn(self.conv(x))) if hasattr(self, "bn") else self.conv(x)


class FPN(nn.Module):
    def __init__(self, widths, channels):
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(width, channels, 1, False) for width in widths)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3, False) for _ in widths)

    def forward(self, maps):
        laterals = [convolution(x) for convolution, x in zip(self.lateral_convs, maps, strict=True)]
        for level in (3, 2, 1):
            size = laterals[level - 1].shape[2:]
            laterals[level - 1] = laterals[level - 1] + functional.interpolate(laterals[level], size=size)
        return [convolution(x) for convolution, x in zip(self.fpn_convs, laterals, strict=True)]


class FPNHead(nn.Module):
    def __init__(self, channels, head_channels, classes):
        super().__init__()
        self.scale_heads = nn.ModuleList()
        for level in range(4):
            modules = []
            for step in range(max(level, 1)):
                modules.append(ConvModule(head_channels if step else channels, head_channels, 3, True))
                if level:
                    modules.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.scale_heads.append(nn.Sequential(*modules))
        self.conv_seg = nn.Conv2d(head_channels, classes, 1)

    def forward(self, maps):
        return self.conv_seg(sum(head(x) for head, x in zip(self.scale_heads, maps, strict=True)))


class SemanticFPNReference(nn.Module):
    """The logits of every pixel, of images (batch, 3, height, width).

    Args:
        stages: gives a timm network's (stem, stages).
        group_norms: whether the outputs of the stages are normed, as in the first family.
    """

    def __init__(self, network, classes, channels, head_channels, group_norms):
        super().__init__()
        self.network = network
        widths = [feature["num_chs"] for feature in network.feature_info]
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) if group_norms else nn.Identity() for width in widths)
        self.neck, self.decode_head = FPN(widths, channels), FPNHead(channels, head_channels, classes)

    def forward(self, images):
        x, maps = self.network.stem(images), []
        for number, (stage, norm) in enumerate(zip(self.network.stages, self.norms, strict=True)):
            x = stage(x)
            height, width = (side // 2 ** (number + 2) for side in images.shape[2:])
            shown = x.transpose(1, 2).unflatten(2, (height, width)) if x.ndim == 3 else x
            maps.append(norm(shown))
        logits = self.decode_head(self.neck(maps))
        return functional.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)

    def checkpoint(self, names):
        """Its tensors under the names of snap-research's segmentation code.

        Args:
            names: {timm's name of a tensor of the network: snap's}.
        """
        found = {}
        for name, tensor in self.network.state_dict().items():
            if name not in names or name.startswith(("norm.", "head")):
                continue
            table = name.endswith(("attention_biases", "attention_bias_idxs"))
            found[f"backbone.{names[name]}{'_seg' if table else ''}"] = tensor
        for number, norm in enumerate(self.norms):
            found |= {f"backbone.norm{2 * number}.{name}": tensor for name, tensor in norm.state_dict().items()}
        for part in ("neck", "decode_head"):
            found |= {f"{part}.{name}": tensor for name, tensor in getattr(self, part).state_dict().items()}
        return found


def make_loud(module, seed=0):
    """Gives norms and biases values that show; the network is loud already."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.5)


def logits_of(reference, images):
    """Logits (batch, h, w, classes) of images (batch, h, w, 3), NumPy."""
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        return reference.eval()(x).numpy().transpose(0, 2, 3, 1)
