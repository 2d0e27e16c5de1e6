"""What exported .tflite files give on LiteRT's GPU engine: in every mode of both families, beside a plain conversion.

The engine runs on this machine's GPU, or on the driver that tflite/gpu/setup.sh has fetched: lavapipe computes in real
float16, as phones' GPUs do, and compiles each file for a minute. The embedded checkpoint runs CIFAR-10's test images;
a V2-S0 with random weights, at 224x224, 20 of them. Each is compared with LiteRT's CPU on our float32 file.

    bash tflite/gpu/setup.sh lavapipe lavapipe
    EFFICIENTFORMER_GPU=lavapipe python benchmarks/gpu_delegate.py --cifar10 cifar10-images.zip
"""

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from arm_instructions import convert_plainly
from old_runtimes import enlarged, with_telling_classes
from random_networks import random_network
from rich.progress import track
from tflite_modes import CHECKPOINT, read_cifar10

from keras_efficientformer import from_checkpoint
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.tflite.accelerators.gpu import run_on_gpu
from keras_efficientformer.deploy.tflite.modes import MODES
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel, real_values
from keras_efficientformer.errors import DeviceError
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.reporting import versions_of

PLAIN = ("float32", "float16", "int8")
V2_IMAGES = 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar10", type=Path, required=True, help="zip with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--images", type=int, default=300, help="how many of the test images the checkpoint runs")
    parser.add_argument("--float32", action="store_true", help="forbid float16 arithmetic")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    images, _, calibration = read_cifar10(arguments.cifar10)
    images = images[:: len(images) // arguments.images][: arguments.images]
    large, large_calibration = enlarged(images[:V2_IMAGES]), enlarged(calibration[:V2_IMAGES])
    sources = {
        "v1": (from_checkpoint(CHECKPOINT), images, calibration),
        "v2": (with_telling_classes(random_network("v2_s0"), large), large, large_calibration),
    }
    rows, adapter = {}, ""
    for family, (model, pixels, calibration) in sources.items():
        with tempfile.TemporaryDirectory() as folder:
            files = export_all(model, Path(folder), calibration, plainly=family == "v1")
            expected = scores_on_cpu(files["none"], pixels)
            rows[family] = {}
            for name, file in track(files.items(), description=family):
                inputs = preprocess_input(pixels) if name.startswith("plain") else pixels
                try:
                    run = run_on_gpu(file, as_stored(file, inputs), arguments.float32)
                except DeviceError as error:  # a driver that ends the process is worth a row
                    rows[family][name] = {"found": "crash", "message": str(error).rpartition(": ")[2]}
                    continue
                rows[family][name], adapter = row_of(run, file, expected), run.adapter
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "adapter": adapter,
        "arithmetic": "float32" if arguments.float32 else "float16 where the driver has it",
        "images": {family: len(pixels) for family, (_, pixels, _) in sources.items()},
        "versions": versions_of("keras-efficientformer", "ai-edge-litert", "tensorflow"),
        "families": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(rows)


def export_all(model, folder, calibration, plainly):
    """{mode: file}, and of a plain conversion {"plain float32": file, ...}."""
    files = {mode: folder / f"{mode}.tflite" for mode in MODES}
    for mode, file in files.items():
        export_tflite(model, file, quantize=mode, calibration=calibration, max_difference=float("inf"))
    for mode in PLAIN if plainly else ():
        file = files[f"plain {mode}"] = folder / f"plain_{mode}.tflite"
        file.write_bytes(convert_plainly(model, mode, preprocess_input(calibration)))
    return files


def as_stored(file, inputs):
    """(number, 1, height, width, channels): images as the file's input takes them."""
    return np.stack([batch for batch, _ in LiteRTModel(file).batches(inputs)])


def scores_on_cpu(file, pixels):
    (scores,) = LiteRTModel(file).predict(pixels).values()
    return scores


def row_of(run, file, expected):
    """What was found of a file, its scores compared with the expected, (images, classes)."""
    row = {"found": run.found, "on_cpu": run.on_cpu, "errors": len(run.errors), "refused": list(run.refused)}
    if run.found == "refused":
        return row
    (output,) = LiteRTModel(file).outputs
    scores = real_values(run.outputs[output.name], output)[:, 0]
    same = int(np.sum(scores.argmax(-1) == expected.argmax(-1)))
    return row | {"largest_difference": float(np.abs(scores - expected).max()), "same_top1": same}


def print_table(rows):
    """As rows of Markdown, for tflite/README.md."""
    for family, of_files in rows.items():
        print(f"\n| {family} | on the GPU | largest difference | same top-1 |\n|---|---|---|---|")
        for name, row in of_files.items():
            found = row["found"] + (f", {row['errors']} errors" if row.get("errors") else "")
            figures = (f"{row['largest_difference']:.2g}", str(row["same_top1"])) if "same_top1" in row else ("-", "-")
            print("|", " | ".join((f"`{name}`", found, *figures)), "|")


if __name__ == "__main__":
    main()
