"""What each TFLite mode costs and gives: size, accuracy on CIFAR-10 and latency on this machine's CPU.

Accuracy is the embedded checkpoint's, at its own 64x64, on the 5,000 test images, calibrated on training images only.
Latency is L1's at 224x224 with random weights, on one thread, all files in turns; medians.

    python benchmarks/tflite_modes.py --cifar10 cifar10-images.zip --output benchmarks/tflite_modes.json
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich import print as rich_print
from rich.progress import track
from rich.table import Table

from keras_efficientformer import EfficientFormerL1, from_checkpoint
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.images import seeded_images
from keras_efficientformer.deploy.litert import LiteRTModel
from keras_efficientformer.deploy.tflite_modes import MODES
from keras_efficientformer.imagenet import load_image, resize_and_crop

CHECKPOINT = Path(__file__).parents[1] / "weights" / "efficientformer_l1_cifar10.safetensors"
CALIBRATION_IMAGES = 128


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar10", type=Path, required=True, help="zip with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each file for the latency")
    parser.add_argument("--keep", type=Path, help="folder for the 224x224 files, to count their instructions")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = {mode: {} for mode in MODES}
    with tempfile.TemporaryDirectory() as folder:
        files = export_large(arguments.keep or Path(folder), rows)
        measure_latency(files, arguments.rounds, rows)
    with tempfile.TemporaryDirectory() as folder:
        measure_accuracy(arguments.cifar10, Path(folder), rows)
    report = {"date": datetime.now(UTC).date().isoformat(), "modes": rows}
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(rows)


def export_large(folder, rows):
    folder.mkdir(exist_ok=True)
    model = EfficientFormerL1(weights=None)
    for variable in model.trainable_variables:
        if variable.name == "gamma" and "/ls" in variable.path:
            # As trained models have it: at the 1e-5 of the start, int8 weights vanish, and kernels refuse their scales.
            variable.assign(np.full(variable.shape, 0.2))
    files = {}
    for mode in MODES:
        report = export_tflite(
            model,
            folder,
            quantize=mode,
            calibration=seeded_images((224, 224, 3)),
            max_difference=float("inf"),  # random weights: what is measured is the time
            overwrite=True,
        )
        rows[mode] |= {"bytes": report.size, "partitions": report.partitions}
        files[mode] = report.path
    return files


def measure_latency(files, rounds, rows):
    image = seeded_images((224, 224, 3))[:1]
    models = {mode: LiteRTModel(path, num_threads=1) for mode, path in files.items()}
    seconds = {mode: [] for mode in models}
    for turn in track(range(rounds + 1), description="latency"):
        for mode, model in models.items():
            started = time.perf_counter()
            model.predict(image)
            if turn:  # the first is the warm-up
                seconds[mode].append(time.perf_counter() - started)
    for mode, values in seconds.items():
        rows[mode]["milliseconds"] = 1000 * statistics.median(values)


def measure_accuracy(archive, folder, rows):
    images, classes, calibration = read_cifar10(archive)
    model = from_checkpoint(CHECKPOINT)
    for mode in MODES:
        report = export_tflite(model, folder, quantize=mode, calibration=calibration, overwrite=True)
        print(f"running {len(images):,} images in mode {mode}", file=sys.stderr)
        scores = LiteRTModel(report.path).predict(images)["probabilities"]
        rows[mode]["top1"] = 100 * float(np.mean(scores.argmax(-1) == classes))


def read_cifar10(archive):
    """Test images, their classes, and training images to calibrate on."""
    with zipfile.ZipFile(archive) as content:
        names = sorted(name for name in content.namelist() if name.endswith(".jpg"))
        test = [name for name in names if name.startswith("test/")]
        train = [name for name in names if name.startswith("train/")]
        train = train[:: len(train) // CALIBRATION_IMAGES][:CALIBRATION_IMAGES]
        images, calibration = (
            np.stack([resize_and_crop(load_image(content.open(n)), (64, 64), 1.0) for n in part]).astype("float32")
            for part in (test, train)
        )
    labels = sorted({name.split("/")[1] for name in test})
    return images, np.array([labels.index(name.split("/")[1]) for name in test]), calibration


def print_table(rows):
    table = Table(
        "mode", "MB at 224", "top-1, CIFAR-10", "against float32", "ms at 224, 1 thread", "XNNPACK partitions"
    )
    for mode, row in rows.items():
        drop = row["top1"] - rows["none"]["top1"]
        table.add_row(
            mode,
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['top1']:.2f}%",
            f"{drop:+.2f}",
            f"{row['milliseconds']:.1f}",
            str(row["partitions"]),
        )
    rich_print(table)


if __name__ == "__main__":
    main()
