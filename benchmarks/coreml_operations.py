"""Operations and sizes of our Core ML packages beside timm's network, traced and converted by coremltools.

Both have the same weights, float16, for iOS 16, 224x224, an image in and logits out; ours also as a classifier.

    python benchmarks/coreml_operations.py --output benchmarks/results/coreml_operations.json
"""

import argparse
import collections
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import coremltools as ct
from rich import print as rich_print
from rich.table import Table

import keras_efficientformer as kef
from keras_efficientformer import conversion
from keras_efficientformer.deploy import export_coreml
from keras_efficientformer.reporting import versions_of

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
import timm_reference
import torch

MODELS = {"l1": kef.EfficientFormerL1, "l3": kef.EfficientFormerL3, "l7": kef.EfficientFormerL7}
TOOLS = ("keras-efficientformer", "coremltools", "timm", "torch")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--variants", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = {}
    for variant in arguments.variants:
        with tempfile.TemporaryDirectory() as folder:
            rows[variant] = compare(variant, Path(folder))
    report = {"date": datetime.now(UTC).date().isoformat(), "versions": versions_of(*TOOLS), "variants": rows}
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(rows)


def compare(variant, folder):
    """Facts of timm's package and of our two: {"timm": ..., "logits": ..., "classifier": ...}."""
    reference = timm_reference.loud_model(variant)
    tensors = timm_reference.state_dict(reference)
    packages = {"timm": folder / "timm.mlpackage"}
    convert_traced(reference).save(str(packages["timm"]))
    del reference
    for name, activation in (("logits", None), ("classifier", "softmax")):
        model = MODELS[variant](weights=None, classifier_activation=activation)
        conversion.load_state_dict(model, tensors)
        packages[name] = folder / f"{name}.mlpackage"
        export_coreml(model, packages[name])
    return {name: facts(package) for name, package in packages.items()}


def convert_traced(model):
    """The way that coremltools documents for PyTorch: https://apple.github.io/coremltools/docs-guides."""
    shape = (1, 3, 224, 224)
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.zeros(shape))
    # One scale for all channels, as coremltools has it; ours is exact, but that is no matter of operations.
    deviation, means = 0.226, (0.485, 0.456, 0.406)
    image = ct.ImageType("image", shape, scale=1 / (255 * deviation), bias=[-mean / deviation for mean in means])
    return ct.convert(
        traced,
        inputs=[image],
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )


def facts(package):
    kinds = count_operations(package)
    size = sum(file.stat().st_size for file in package.rglob("*") if file.is_file())
    return {"operations": sum(kinds.values()), "bytes": size, "kinds": dict(kinds.most_common())}


def count_operations(package):
    """A Counter of the kinds of operations of a saved package, without constants, compressed or not."""
    program = ct.models.MLModel(str(package), skip_model_load=True).get_spec().mlProgram
    function = program.functions["main"]
    operations = function.block_specializations[function.opset].operations
    return collections.Counter(
        operation.type for operation in operations if operation.type != "const" and "constexpr" not in operation.type
    )


def print_table(rows):
    table = Table("network", "timm, traced", "ours, logits", "ours, classifier", "fewer", "MB, timm", "MB, ours")
    for variant, row in rows.items():
        fewer = 1 - row["logits"]["operations"] / row["timm"]["operations"]
        counts = (str(row[name]["operations"]) for name in ("timm", "logits", "classifier"))
        sizes = (f"{row[name]['bytes'] / 1e6:.1f}" for name in ("timm", "logits"))
        table.add_row(variant, *counts, f"{fewer:.1%}", *sizes)
    rich_print(table)


if __name__ == "__main__":
    main()
