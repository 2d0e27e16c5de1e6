"""What each TFLite mode costs and gives: size, accuracy on CIFAR-10, latency here, instructions on an emulated Arm CPU.

Accuracy is the embedded checkpoint's, at its own 64x64, on the 5,000 test images, calibrated on training images only.
Latency and instructions are L1's at 224x224 with random weights, on one thread: all files in turns, medians; and a
Cortex-A76 under qemu, which tflite/arm/setup.sh sets up.

    python benchmarks/tflite_modes.py --cifar10 cifar10-images.zip --output benchmarks/results/tflite_modes.json
"""

import argparse
import json
import sys
import tempfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from random_networks import random_network
from rich.progress import track

from keras_efficientformer import from_checkpoint
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.benchmark.arm_emulator import ArmEmulator
from keras_efficientformer.deploy.benchmark.computer import benchmark_tflite
from keras_efficientformer.deploy.tflite.modes import MODES
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.imagenet import load_image, resize_and_crop
from keras_efficientformer.images import seeded_images
from keras_efficientformer.reporting import versions_of

CHECKPOINT = Path(__file__).parents[1] / "weights" / "efficientformer_l1_cifar10.safetensors"
CALIBRATION_IMAGES = 128
CPU = "cortex-a76"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar10", type=Path, required=True, help="zip with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each file for the latency")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    emulator = ArmEmulator(CPU)
    rows = {mode: {} for mode in MODES}
    with tempfile.TemporaryDirectory() as folder:
        files = export_large(Path(folder), rows)
        timed = benchmark_tflite(list(files.values()), runs=arguments.rounds, warmup=1, progress=track)
        for mode, result in zip(files, timed.results, strict=True):
            rows[mode]["milliseconds"] = round(result.median_ms, 2)
        for mode, file in track(files.items(), description="instructions"):
            rows[mode]["million_instructions"] = round(sum(cost.amount for cost in emulator.count(file)), 1)
    with tempfile.TemporaryDirectory() as folder:
        measure_accuracy(from_checkpoint(CHECKPOINT), arguments.cifar10, Path(folder), rows)
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": timed.device,
        "versions": versions_of("tensorflow", "litert-quantizer", "ai-edge-litert") | emulator.versions(),
        "modes": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(rows)


def export_large(folder, rows):
    model, images = random_network("l1"), seeded_images((224, 224, 3))
    files = {}
    for mode in MODES:
        # Random weights: what is measured is the work.
        report = export_tflite(model, folder, quantize=mode, calibration=images, max_difference=float("inf"))
        rows[mode] |= {"bytes": report.size, "partitions": report.partitions}
        files[mode] = Path(report.path)
    return files


def measure_accuracy(model, archive, folder, rows):
    images, classes, calibration = read_cifar10(archive)
    for mode in MODES:
        report = export_tflite(model, folder, quantize=mode, calibration=calibration)
        print(f"running {len(images):,} images in mode {mode}", file=sys.stderr)
        scores = LiteRTModel(report.path).predict(images)["probabilities"]
        rows[mode]["top1"] = round(100 * float(np.mean(scores.argmax(-1) == classes)), 2)


def read_cifar10(archive, images=None):
    """Test images, all or so many that are spread over the classes, their classes, and training images to calibrate
    on."""
    with zipfile.ZipFile(archive) as content:
        names = sorted(name for name in content.namelist() if name.endswith(".jpg"))
        test = [name for name in names if name.startswith("test/")]
        labels = sorted({name.split("/")[1] for name in test})
        if images:
            test = [test[place] for place in np.linspace(0, len(test) - 1, images).astype(int)]
        train = [name for name in names if name.startswith("train/")]
        train = train[:: len(train) // CALIBRATION_IMAGES][:CALIBRATION_IMAGES]
        tests, calibration = (
            np.stack([resize_and_crop(load_image(content.open(n)), (64, 64), 1.0) for n in part]).astype("float32")
            for part in (test, train)
        )
    return tests, np.array([labels.index(name.split("/")[1]) for name in test]), calibration


def print_table(rows):
    """As rows of Markdown, for tflite/README.md."""
    print("| mode | size | top-1 | against float32 | x86, 1 thread | Arm instructions | XNNPACK partitions |")
    print("|---|---|---|---|---|---|---|")
    for mode, row in rows.items():
        cells = (
            f"`{mode}`",
            f"{row['bytes'] / 1e6:.1f} MB",
            f"{row['top1']:.2f}%",
            f"{row['top1'] - rows['none']['top1']:+.2f}",
            f"{row['milliseconds']:.1f} ms",
            f"{row['million_instructions']:,.1f} M",
            str(row["partitions"]),
        )
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
