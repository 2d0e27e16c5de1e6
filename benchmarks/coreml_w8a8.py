"""What int8 arithmetic costs in Core ML packages: accuracy on CIFAR-10, size, and what of a package is int8.

The embedded checkpoint, at its own 64x64, is exported as w8a8, calibrated on 128 training images, and with `--qat`
after the epoch of quantization-aware training of `qat.py`. Beside them stands what coremltools' own passes, those of
linear_quantize_activations and linear_quantize_weights, make of our float16 package with the ranges of the same images:
coremltools itself would run the package to measure them, which takes a Mac. All packages then run the test images in
our checker. The published L1, with random weights, says how large a package of 1000 classes is.

    python benchmarks/coreml_w8a8.py --cifar10 cifar10-images.zip --qat --output benchmarks/results/coreml_w8a8.json
"""

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import coremltools
import numpy as np
from coremltools.converters.mil.mil.passes.graph_pass import PassOption
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
from coremltools.models.utils import _apply_graph_pass
from coremltools.optimize import coreml as optimize
from rich.progress import track
from tflite_modes import CHECKPOINT, read_cifar10

from keras_efficientformer import EfficientFormerL1, from_checkpoint
from keras_efficientformer.deploy import export_coreml
from keras_efficientformer.deploy.coreml.exporter import CLASS_PROBABILITIES
from keras_efficientformer.deploy.coreml.int8.coverage import int8_counts
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.files import size_of
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.reporting import versions_of

TOOLS = ("keras-efficientformer", "keras", "coremltools", "numpy")
SPECIFICATION_OF_IOS_17 = 8
# The epoch of benchmarks/qat.py, as it runs by itself.
TRAINING = {"images": 5000, "batch": 50, "rate": 1e-5, "seed": 0}
W8A8 = {"compress": "w8a8", "minimum_ios": 17, "max_difference": float("inf")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar10", type=Path, required=True, help="zip with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--images", type=int, help="how many test images, spread over the classes; all without it")
    parser.add_argument("--qat", action="store_true", help="also train for an epoch, which takes a quarter of an hour")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    images, classes, calibration = read_cifar10(arguments.cifar10, arguments.images)
    model = from_checkpoint(CHECKPOINT)
    expected = model.predict(preprocess_input(images), batch_size=64, verbose=0).argmax(-1)
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            "w8a8": export_coreml(model, Path(folder) / "w8a8.mlpackage", calibration=calibration, **W8A8).path,
            "coremltools' passes": passes_of_coremltools(model, Path(folder), calibration),
        }
        if arguments.qat:
            path = Path(folder) / "qat.mlpackage"
            paths["w8a8 after QAT"] = export_coreml(trained(arguments.cifar10), path, **W8A8).path
        rows = {name: measured(name, path, images, classes, expected) for name, path in paths.items()}
        rows["w8a8, L1 at 224"] = l1_at_224(Path(folder))
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions_of(*TOOLS),
        "images": len(images),
        "calibration_images": len(calibration),
        "keras_top1": percentage(expected == classes),
        "packages": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(report)


def trained(archive):
    # It imports TensorFlow and tf_keras, which nothing else here needs.
    import qat

    settings = argparse.Namespace(cifar10=archive, **TRAINING)
    model, _ = qat.train(from_checkpoint(CHECKPOINT), settings)
    return model


def passes_of_coremltools(model, folder, calibration):
    """The package that coremltools makes of ours in float16, weights and activations quantized."""
    plain = export_coreml(model, folder / "float16.mlpackage", minimum_ios=17).path
    tensors = CoreMLModel(plain).tensors(calibration)
    # A classifier's labels have no range.
    numbers = {name: value for name, value in tensors.items() if value.dtype.kind == "f"}
    ranges = {name: {"rmin": value.min(), "rmax": value.max()} for name, value in numbers.items()}
    config = optimize.OptimizationConfig(
        optimize.experimental.OpActivationLinearQuantizerConfig(mode="linear_symmetric")
    )
    passes = []
    for end in ("prefix", "suffix"):
        found = PASS_REGISTRY[f"compression::insert_{end}_quantize_dequantize_pair"]
        found.set_options([PassOption("config", config), PassOption("activation_stats", ranges)])
        passes.append(found)
    passes.append(PASS_REGISTRY["common::dequantize_quantize_pair_elimination"])
    package = coremltools.models.MLModel(plain, skip_model_load=True)
    package = _apply_graph_pass(package, passes, spec_version=SPECIFICATION_OF_IOS_17, skip_model_load=True)
    weights = optimize.OptimizationConfig(optimize.OpLinearQuantizerConfig(mode="linear_symmetric"))
    path = folder / "coremltools.mlpackage"
    optimize.linear_quantize_weights(package, weights).save(str(path))
    return path


def measured(name, path, images, classes, expected):
    package = CoreMLModel(path)
    scores = package.predict(images, progress=lambda batches: track(batches, description=name))[CLASS_PROBABILITIES]
    found = scores.argmax(-1)
    accuracy = {"top1": percentage(found == classes), "same_top1": percentage(found == expected)}
    return accuracy | facts(path, package)


def facts(path, package):
    return {
        "bytes": size_of(Path(path)),
        "operations": package.operations(),
        "computed_in_int8": int8_counts(package.program),
    }


def l1_at_224(folder):
    """Facts of the published L1 as w8a8; its weights, and so its ranges, are random."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3)).astype("float32")
    path = export_coreml(EfficientFormerL1(weights=None), folder / "l1.mlpackage", calibration=noise, **W8A8).path
    return facts(path, CoreMLModel(path))


def percentage(hits):
    return 100 * float(np.mean(hits))


def print_table(report):
    """As rows of Markdown, for coreml/README.md."""
    print(f"Keras: {report['keras_top1']:.2f}% of {report['images']:,} images")
    print("| package | size | top-1 | against Keras | same top-1 | pairs | conv | matmul | linear | add |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, row in report["packages"].items():
        accuracy = "- | - | -"
        if "top1" in row:
            drop = row["top1"] - report["keras_top1"]
            accuracy = f"{row['top1']:.2f}% | {drop:+.2f} | {row['same_top1']:.2f}%"
        counts = (row["computed_in_int8"][kind] for kind in ("conv", "matmul", "linear", "add"))
        pairs = f"{row['operations']['quantize']} / {row['operations']['dequantize']}"
        print(f"| {name} | {row['bytes'] / 1e6:.1f} MB | {accuracy} | {pairs} | {' | '.join(counts)} |")


if __name__ == "__main__":
    main()
