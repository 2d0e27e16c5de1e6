"""Remakes dialects_v2.json: which tensor of timm's EfficientFormerV2 is which tensor of snap-research's code.

Run by hand. snap-research's code is no package: give the path of `models/efficientformer_v2.py` from
https://github.com/snap-research/EfficientFormer, in which `timm.models.layers` and `.registry` are those of 2022 (see
`import_snap`). Each pair is proven: timm's model is made loud, snap's loads the tensors under their other names with
`strict=True`, and both heads' logits are compared.

    python make_dialects_v2.py path/to/snap/efficientformer_v2.py
"""

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import timm_reference  # first: it makes timm importable beside any torchvision
import timm_reference_v2

timm = timm_reference.timm
VARIANTS = ("s0", "s1", "s2", "l")
LIMIT = 1e-5
PART = r"\.(q|k|v|v_local|stride_conv|q\.proj)"
RULES = (
    (r"^stem\.conv1\.conv", "patch_embed.0"),
    (r"^stem\.conv1\.bn", "patch_embed.1"),
    (r"^stem\.conv2\.conv", "patch_embed.3"),
    (r"^stem\.conv2\.bn", "patch_embed.4"),
    (r"^stages\.3\.downsample\.conv\.", "network.5."),
    (r"^stages\.([12])\.downsample\.conv\.conv", lambda match: f"network.{2 * int(match[1]) - 1}.proj"),
    (r"^stages\.([12])\.downsample\.conv\.bn", lambda match: f"network.{2 * int(match[1]) - 1}.norm"),
    (r"^stages\.3\.downsample", "network.5"),
    (r"^stages\.(\d)\.blocks", lambda match: f"network.{2 * int(match[1])}"),
    (rf"{PART}\.conv\.", r".\1.0."),
    (rf"{PART}\.bn\.", r".\1.1."),
    (r"\.q\.local\.", ".q.local.0."),
    (r"\.proj\.conv\.", ".proj.1."),
    (r"\.proj\.bn\.", ".proj.2."),
    (r"\.mlp\.(fc1|mid|fc2)\.conv\.", r".mlp.\1."),
    (r"\.mlp\.fc([12])\.bn\.", r".mlp.norm\1."),
    (r"\.mlp\.mid\.bn\.", ".mlp.mid_norm."),
    (r"\.ls([12])\.gamma$", r".layer_scale_\1"),
    (r"^head_dist", "dist_head"),
)


def import_snap(path):
    registry = ModuleType("timm.models.registry")
    registry.register_model = lambda function: function  # else it would replace timm's own models
    sys.modules["timm.models.registry"] = registry
    sys.modules["timm.models.layers"] = timm.layers
    spec = importlib.util.spec_from_file_location("snap_efficientformer_v2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def to_snap(name):
    for pattern, new in RULES:
        name = re.sub(pattern, new, name)
    return name


def describe(variant, snap):
    """One variant's table, proven by loading and running."""
    model = timm_reference_v2.loud_model(variant)
    loud, other = model.state_dict(), getattr(snap, f"efficientformerv2_{variant}")(distillation=True)
    original = other.state_dict()
    names = {name: to_snap(name) for name in loud}
    indices = {name for name in original if name.endswith("attention_bias_idxs")}
    assert {*names.values()} | indices == {*original}
    for name in indices:  # timm keeps its own out of the state dict
        attention = model.get_submodule({v: k for k, v in names.items()}[name[:-5] + "es"].rpartition(".")[0])
        assert torch.equal(original[name], attention.attention_bias_idxs), name
    tensors = {names[name]: tensor.reshape(original[names[name]].shape) for name, tensor in loud.items()}
    other.load_state_dict(tensors | {name: original[name] for name in indices}, strict=True)
    other.eval()
    images = timm_reference.images(224, 224)
    _, *expected = timm_reference.logits(model, images)
    heads = {}
    for index, head in enumerate((other.head, other.dist_head)):
        head.register_forward_hook(lambda module, arguments, output, index=index: heads.update({index: output}))
    with torch.no_grad():
        other(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    difference = max(np.abs(heads[index].numpy() - expected[index]).max().item() for index in (0, 1))
    assert difference <= LIMIT, (variant, difference)
    rows = [[name, names[name], list(tensors[names[name]].shape)] for name in loud]
    rows += [[None, name, list(original[name].shape)] for name in sorted(indices)]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "max_logit": max(np.abs(logits).max().item() for logits in expected),
        "max_difference": difference,
        "tensors": rows,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snap", type=Path, help="snap-research's models/efficientformer_v2.py")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("dialects_v2.json"))
    arguments = parser.parse_args()
    snap = import_snap(arguments.snap)
    document = {
        "versions": {module.__name__: module.__version__.split("+")[0] for module in (torch, timm)},
        "columns": ["timm", "snap", "shape in snap"],
        "variants": {variant: describe(variant, snap) for variant in VARIANTS},
    }
    text = json.dumps(document, separators=(",", ":"))
    arguments.output.write_text(text.replace('"tensors":[', '"tensors":[\n').replace("],[", "],\n[") + "\n")
    for variant, found in document["variants"].items():
        print(variant, len(found["tensors"]), found["max_logit"], found["max_difference"])


if __name__ == "__main__":
    main()
