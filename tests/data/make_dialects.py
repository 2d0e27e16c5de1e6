"""Remakes dialects.json: which tensor of timm is which tensor of snap-research's code and of transformers.

Run by hand, in an environment of its own: transformers dropped EfficientFormer after 4.57 and that release needs
huggingface_hub < 1, which the package's environment cannot have. snap-research's code is no package: give the path of
`models/efficientformer.py` from https://github.com/snap-research/EfficientFormer (see README.md, beside this file).

    python make_dialects.py path/to/snap/efficientformer.py
"""

import argparse
import importlib.util
import json
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

try:
    import torchvision
except RuntimeError:  # a torchvision whose compiled part does not load beside this torch: timm needs only the names
    for op in ("nms", "qnms"):
        torch.library.define(f"torchvision::{op}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

import timm
import timm.layers
import transformers
from transformers.models.deprecated.efficientformer import (
    EfficientFormerConfig,
    EfficientFormerForImageClassificationWithTeacher,
)

VARIANTS = {  # depths, widths, Meta3D blocks at the end of the last stage
    "l1": ([3, 2, 6, 4], [48, 96, 224, 448], 1),
    "l3": ([4, 4, 12, 6], [64, 128, 320, 512], 4),
    "l7": ([6, 6, 18, 8], [96, 192, 384, 768], 8),
}
HEADS = {
    "timm": ("head", "head_dist"),
    "snap": ("head", "dist_head"),
    "transformers": ("classifier", "distillation_classifier"),
}
COLUMNS = ["timm", "snap", "transformers", "shape", "dtype"]
LIMIT = 1e-5


def import_snap(path):
    """The module at `path`, whose imports follow a timm of 2022."""
    registry = ModuleType("timm.models.registry")
    registry.register_model = lambda function: function  # else it would replace timm's own models
    sys.modules["timm.models.registry"] = registry
    for name in ("timm.models.layers", "timm.models.layers.helpers"):
        sys.modules[name] = timm.layers
    spec = importlib.util.spec_from_file_location("snap_efficientformer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(variant, snap):
    """The same variant made by each of the three codes."""
    depths, widths, meta3d = VARIANTS[variant]
    config = EfficientFormerConfig(
        depths=depths,
        hidden_sizes=widths,
        hidden_size=widths[-1],
        dim=widths[-1],
        num_meta3d_blocks=meta3d,
        layer_norm_eps=1e-5,  # the default, 1e-12, is not what the checkpoints were trained with
        num_labels=1000,
    )
    return {
        "timm": timm.create_model(f"efficientformer_{variant}"),
        "snap": getattr(snap, f"efficientformer_{variant}")(distillation=True),
        "transformers": EfficientFormerForImageClassificationWithTeacher(config),
    }


def make_loud(model, seed=0):
    """Random values everywhere, large enough for every tensor to show in the logits."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like, scale):
        return torch.randn(like.shape, generator=generator) * scale

    def uniform(like, low, high):
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.randint(1, 1000, (), generator=generator)
        elif not tensor.is_floating_point():
            continue
        elif name.endswith("running_var"):
            state[name] = uniform(tensor, 0.5, 2.0)
        elif name.endswith("gamma"):
            state[name] = uniform(tensor, 0.2, 0.6)
        elif name.endswith("attention_biases"):
            state[name] = normal(tensor, 1.0)
        elif name.endswith(("bias", "running_mean")):
            state[name] = normal(tensor, 0.2)
        elif tensor.ndim == 1:  # the scale of a normalisation
            state[name] = uniform(tensor, 0.5, 1.5)
        else:
            state[name] = normal(tensor, tensor[0].numel() ** -0.5)
    model.load_state_dict(state, strict=True)


def substitute(name, rules):
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def to_snap(name):
    name = re.sub(r"^stages\.(\d)\.blocks", lambda m: f"network.{2 * int(m[1])}", name)
    name = re.sub(r"^stages\.(\d)\.downsample", lambda m: f"network.{2 * int(m[1]) - 1}", name)
    return substitute(
        name,
        [
            (r"^stem\.conv1", "patch_embed.0"),
            (r"^stem\.norm1", "patch_embed.1"),
            (r"^stem\.conv2", "patch_embed.3"),
            (r"^stem\.norm2", "patch_embed.4"),
            (r"^(network\.[135])\.conv", r"\1.proj"),
            (r"ls([12])\.gamma$", r"layer_scale_\1"),
            (r"^head_dist", "dist_head"),
        ],
    )


def to_transformers(name, meta4d):
    """`meta4d`: how many blocks of the last stage come before Flat, which takes an index in timm but none here."""

    def block(match):
        stage, index = int(match[1]), int(match[2])
        if stage < 3:
            return f"encoder.intermediate_stages.{2 * stage}.meta4D_layers.blocks.{index}"
        if index < meta4d:
            return f"encoder.last_stage.meta4D_layers.blocks.{index}"
        return f"encoder.last_stage.meta3D_layers.blocks.{index - meta4d - 1}"

    name = re.sub(r"^stages\.(\d)\.blocks\.(\d+)", block, name)
    name = re.sub(r"^stages\.(\d)\.downsample", lambda m: f"encoder.intermediate_stages.{2 * int(m[1]) - 1}", name)
    name = substitute(
        name,
        [
            (r"^stem\.conv", "patch_embed.convolution"),
            (r"^stem\.norm1", "patch_embed.batchnorm_before"),
            (r"^stem\.norm2", "patch_embed.batchnorm_after"),
            (r"^(encoder\.intermediate_stages\.[135])\.conv", r"\1.projection"),
            (r"ls([12])\.gamma$", r"layer_scale_\1"),
            (r"(meta4D_layers\.blocks\.\d+\.mlp)\.fc", r"\1.convolution"),
            (r"(meta4D_layers\.blocks\.\d+\.mlp)\.norm1", r"\1.batchnorm_before"),
            (r"(meta4D_layers\.blocks\.\d+\.mlp)\.norm2", r"\1.batchnorm_after"),
            (r"(meta3D_layers\.blocks\.\d+)\.norm", r"\1.layernorm"),
            (r"token_mixer\.proj", "token_mixer.projection"),
            (r"mlp\.fc1", "mlp.linear_in"),
            (r"mlp\.fc2", "mlp.linear_out"),
            (r"^norm\.", "layernorm."),
            (r"^head\.", "classifier."),
            (r"^head_dist\.", "distillation_classifier."),
        ],
    )
    return name if "classifier" in name else f"efficientformer.{name}"


@torch.no_grad()
def logits(dialect, model, images):
    """What the two heads and, in evaluation, the model itself give."""
    outputs = {}
    heads = [model.get_submodule(name) for name in HEADS[dialect]]
    handles = [head.register_forward_hook(lambda head, args, out: outputs.update({head: out})) for head in heads]
    average = model(images)
    for handle in handles:
        handle.remove()
    average = getattr(average, "logits", average)
    return dict(
        zip(("classification", "distillation", "average"), [*(outputs[head] for head in heads), average], strict=True)
    )


def quietest(model, images):
    """The tensor that shows least in the logits, and how far they move when its values are shifted by one place."""
    state, effects = model.state_dict(), {}
    reference = logits("timm", model, images)
    for name, tensor in state.items():
        if tensor.is_floating_point():
            original = tensor.clone()
            tensor.copy_(original.roll(1, dims=-1 if name.endswith("attention_biases") else 0))
            model.eval()  # drops the cached bias
            changed = logits("timm", model, images)
            effects[name] = max((changed[k] - reference[k]).abs().max().item() for k in reference)
            tensor.copy_(original)
    model.eval()
    return min(effects.items(), key=lambda item: item[1])


def describe(variant, snap, quick):
    """One variant's table, proven by loading and running."""
    depths, widths, meta3d = VARIANTS[variant]
    models = build(variant, snap)
    original = {dialect: model.state_dict() for dialect, model in models.items()}
    for dialect, model in models.items():  # no buffer stays out of the state dict
        assert {name for name, _ in [*model.named_parameters(), *model.named_buffers()]} == {*original[dialect]}
    make_loud(models["timm"])
    models["timm"].eval()
    loud = models["timm"].state_dict()

    names = {"timm": {name: name for name in loud}}
    for dialect, rename in (("snap", to_snap), ("transformers", partial(to_transformers, meta4d=depths[-1] - meta3d))):
        names[dialect] = {name: rename(name) for name in loud}
        for name, tensor in loud.items():  # made by their own code, before anything of timm's is loaded
            other = original[dialect][names[dialect][name]]
            assert (other.shape, other.dtype) == (tensor.shape, tensor.dtype), name
            assert tensor.is_floating_point() or tensor.ndim == 0 or torch.equal(other, tensor), name
        models[dialect].load_state_dict({names[dialect][k]: v for k, v in loud.items()}, strict=True)
        models[dialect].eval()

    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    reference = logits("timm", models["timm"], images)
    differences = {}
    for dialect in ("snap", "transformers"):
        found = logits(dialect, models[dialect], images)
        differences[dialect] = {k: (found[k] - reference[k]).abs().max().item() for k in reference}
        assert max(differences[dialect].values()) <= LIMIT, (variant, dialect, differences)
    if not quick:
        name, effect = quietest(models["timm"], images[:1])
        print(f"{variant}: shifting {name}, the quietest tensor, moves the logits by {effect:.1e}")
        assert effect > 10 * LIMIT, (variant, name, effect)

    return {
        "depths": depths,
        "widths": widths,
        "meta3d": meta3d,
        "parameters": sum(p.numel() for p in models["timm"].parameters()),
        "order": {d: [*map(list(names[d].values()).index, original[d])] for d in ("snap", "transformers")},
        "max_logit": reference["average"].abs().max().item(),
        "max_differences": differences,
        "tensors": [
            [*(names[d][name] for d in COLUMNS[:3]), list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
            for name, tensor in loud.items()
        ],
    }


def dumps(document):
    """JSON with a line for each tensor."""
    text = json.dumps(document, separators=(",", ":"))
    return text.replace('"tensors":[', '"tensors":[\n').replace('],["', '],\n["').replace(',"l', ',\n"l') + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snap", type=Path, help="snap-research's models/efficientformer.py")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("dialects.json"))
    parser.add_argument("--quick", action="store_true", help="skip the check that every tensor shows in the logits")
    arguments = parser.parse_args()
    snap = import_snap(arguments.snap)
    document = {
        "versions": {m.__name__: m.__version__.split("+")[0] for m in (torch, timm, transformers)},
        "columns": COLUMNS,
        "variants": {},
    }
    for variant in VARIANTS:
        document["variants"][variant] = describe(variant, snap, arguments.quick)
        print(variant, document["variants"][variant]["max_differences"], flush=True)
    arguments.output.write_text(dumps(document))
    print(arguments.output, arguments.output.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
