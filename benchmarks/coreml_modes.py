"""What each Core ML mode costs and gives: size, operations and accuracy on CIFAR-10.

The embedded checkpoint, at its own 64x64, is exported in each mode; the saved package is run op by op, rounded to
float16 where it says so, on the 5,000 test images, beside the Keras model.

    python benchmarks/coreml_modes.py --cifar10 cifar10-images.zip --output benchmarks/results/coreml_modes.json
"""

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich import print as rich_print
from rich.progress import track
from rich.table import Table
from tflite_modes import CHECKPOINT, read_cifar10

from keras_efficientformer import from_checkpoint
from keras_efficientformer.deploy import export_coreml
from keras_efficientformer.deploy.coreml.exporter import CLASS_PROBABILITIES
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.reporting import versions_of

MODES = {
    "float32": {"precision": "float32"},
    "float16": {},
    "int8": {"compress": "int8"},
    "palette6": {"compress": "palette6"},
    "palette4": {"compress": "palette4"},
    "palette4, iOS 18": {"compress": "palette4", "minimum_ios": 18},
    "sparse": {"compress": "sparse"},
    "auto": {"compress": "auto"},
    "w8a8": {"compress": "w8a8", "minimum_ios": 17},
}
# What measures on images before it is written.
CALIBRATED = ("auto", "w8a8")
TOOLS = ("keras-efficientformer", "keras", "coremltools", "scikit-learn", "numpy")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar10", type=Path, required=True, help="zip with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--images", type=int, help="how many test images, spread over the classes; all without it")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    images, classes, calibration = read_cifar10(arguments.cifar10, arguments.images)
    model = from_checkpoint(CHECKPOINT)
    expected = model.predict(preprocess_input(images), batch_size=64, verbose=0).argmax(-1)
    keras_top1 = percentage(expected == classes)
    rows = {}
    for mode, options in MODES.items():
        if mode in CALIBRATED:
            options = options | {"calibration": calibration}
        row, found = run_mode(model, mode, options, images)
        top1 = percentage(found == classes)
        rows[mode] = row | {"top1": top1, "drop": keras_top1 - top1, "same_top1": percentage(found == expected)}
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions_of(*TOOLS),
        "images": len(images),
        "keras_top1": keras_top1,
        "modes": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(report)


def run_mode(model, mode, options, images):
    """Facts of the mode's package, and the classes (number,) that it finds in the images."""
    with tempfile.TemporaryDirectory() as folder:
        # What a mode costs is reported here, whatever it is.
        exported = export_coreml(model, folder, max_difference=float("inf"), **options)
        package = CoreMLModel(exported.path)
    started = time.process_time()
    scores = package.predict(images, progress=lambda batches: track(batches, description=mode))[CLASS_PROBABILITIES]
    facts = {
        "bytes": exported.size,
        "operations": sum(exported.operations.values()),
        "seconds": exported.seconds,
        # The time of all cores together depends little on what else the machine does.
        "cpu_ms": 1000 * (time.process_time() - started) / len(images),
    }
    return facts, scores.argmax(-1)


def percentage(hits):
    return 100 * float(np.mean(hits))


def print_table(report):
    title = f"Keras: {report['keras_top1']:.2f}% of {report['images']:,} images"
    columns = ("mode", "MB", "operations", "top-1", "against Keras", "same top-1", "export", "CPU time an image")
    table = Table(*columns, title=title)
    for mode, row in report["modes"].items():
        table.add_row(
            mode,
            f"{row['bytes'] / 1e6:.1f}",
            str(row["operations"]),
            f"{row['top1']:.2f}%",
            f"{row['top1'] - report['keras_top1']:+.2f}",
            f"{row['same_top1']:.2f}%",
            f"{row['seconds']:.0f} s",
            f"{row['cpu_ms']:.1f} ms",
        )
    rich_print(table)


if __name__ == "__main__":
    main()
