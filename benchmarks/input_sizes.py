"""What several input sizes in one file cost: its size with one, two and three of them, in both formats.

The network has random weights, which is as large a file as trained ones. Every size of every file is compared with
Keras at that size before the file is written, so the differences are part of the report; of .tflite files also the
memory that LiteRT takes to load one and run its first size.

    python benchmarks/input_sizes.py --output benchmarks/results/input_sizes.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image
from random_networks import random_network
from rich import print as rich_print
from rich.table import Table

from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.deploy.benchmark import litert_memory
from keras_efficientformer.images import seeded_images
from keras_efficientformer.reporting import versions_of

SIZES = [224, 256, (384, 288)]
COREML_OPTIONS = {"float32": {"precision": "float32"}, "float16": {}, "int8": {"compress": "int8"}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--variants", nargs="+", default=["l1", "v2_s0"])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = []
    for variant in arguments.variants:
        model = random_network(variant, classifier_activation=None)  # probabilities of 1000 classes differ by little
        for measure, mode in CASES:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measured(measure.__name__, variant, mode, measure(model, folder, mode)))
            if arguments.output:
                write(arguments.output, rows)
    rich_print(table(rows))


def write(path, rows):
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions_of("keras-efficientformer", "ai-edge-litert", "litert-quantizer", "coremltools"),
        "files": {f"{row['network']} {row['format']} {row['mode']}": by_size(row) for row in rows},
    }
    path.write_text(json.dumps(report, indent=2) + "\n")


def by_size(row):
    """{input size: of the file that takes this one too, and those before}."""
    columns = {"bytes": row["bytes"], "growth": [0.0, *row["growth"]]} | {
        name: row[name] for name in ("differences", "largest", "memory_mb") if name in row
    }
    values = zip(*columns.values(), strict=True)
    return {described(size): dict(zip(columns, found, strict=True)) for size, found in zip(SIZES, values, strict=True)}


def described(size):
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def tflite(model, folder, mode):
    """Exports of a .tflite file with one, two and three sizes, and the megabytes that LiteRT takes to run them."""
    # What ranges are measured on does not matter to the size.
    noise = [Image.fromarray(image.astype("uint8")) for image in seeded_images(model.inputs[0].shape[1:])]
    reports = []
    for count in (1, 2, 3):
        calibration = noise if mode == "int8" else None
        options = {"quantize": mode, "calibration": calibration, "input_sizes": SIZES[:count]}
        reports.append(export_tflite(model, folder, max_difference=limit(mode), **options))
    return reports, {"memory_mb": [memory(report.path) for report in reports]}


def memory(path):
    command = [sys.executable, "-P", litert_memory.__file__, path, "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return round(json.loads(done.stdout)["memory_mb"], 1)


def coreml(model, folder, mode):
    return [
        export_coreml(model, folder, minimum_ios=18, input_sizes=SIZES[:count], **COREML_OPTIONS[mode])
        for count in (1, 2, 3)
    ], {}


def limit(mode):
    # int8 ranges that are measured on noise alone say nothing of a trained network.
    return float("inf") if mode == "int8" else None


CASES = (
    (tflite, "none"),
    (coreml, "float32"),
    (tflite, "float16"),
    (coreml, "float16"),
    (tflite, "int8"),
    (coreml, "int8"),
    (tflite, "dynamic"),
)


def measured(kind, variant, mode, exports):
    reports, found = exports
    bytes_ = [report.size for report in reports]
    return {
        "format": kind,
        "network": variant,
        "mode": mode,
        "bytes": bytes_,
        "growth": [round(float(step), 4) for step in np.diff(bytes_) / bytes_[0]],
        "differences": [difference.relative for difference in reports[-1].all_differences],
        "largest": [difference.largest for difference in reports[-1].all_differences],
        **found,
    }


def table(rows):
    found = Table("format", "network", "mode", "224", "256 adds", "384x288 adds", "largest difference at each size")
    for row in rows:
        growths = [f"{growth:.2%}" for growth in row["growth"]]
        differences = ", ".join(f"{difference:.1e}" for difference in row["differences"])
        size = f"{row['bytes'][0] / 1e6:.1f} MB"
        found.add_row(row["format"], row["network"], row["mode"], size, *growths, differences)
    return found


if __name__ == "__main__":
    main()
