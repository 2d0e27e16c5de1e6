"""What LiteRT's compiler for Intel's NPUs takes of .tflite files: partitions, refused operations, sizes, differences.

The embedded checkpoint (v1) and a V2-S0 with random weights (v2) are exported in every mode and compiled; "plain int8"
is what TensorFlow's converter makes of the same Keras model with its own full-integer quantization. OpenVINO computes
on the CPU, without bfloat16; differences are the largest of the probabilities of 20 of CIFAR-10's test images from
Keras', of the file in LiteRT and of the compiled one.

    python benchmarks/npu.py --cifar10 cifar10-images.zip --output benchmarks/results/npu.json
"""

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from arm_instructions import convert_plainly
from old_runtimes import networks_and_images
from rich.progress import track

from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.tflite.accelerators.npu import compile_file, run_file
from keras_efficientformer.deploy.tflite.accelerators.npu_targets import npu_target
from keras_efficientformer.deploy.tflite.modes import MODES
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.reporting import versions_of

TARGET = "intel"
PLAIN = "plain int8"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar10", type=Path, required=True, help="zip with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = {family: measure(family, *of) for family, of in networks_and_images(arguments.cifar10).items()}
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions_of(
            "keras-efficientformer", "tensorflow", "ai-edge-litert", "litert-quantizer", "openvino"
        ),
        "target": TARGET,
        "families": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    for family, row in rows.items():
        print_table(family, row)


def measure(family, model, images, calibration):
    """{mode: facts} of a network."""
    expected, row = model.predict(preprocess_input(images), verbose=0), {}
    with tempfile.TemporaryDirectory() as folder:
        for mode in track([*MODES, PLAIN], description=family):
            file, pixels = Path(folder, f"{mode}.tflite"), images
            if mode == PLAIN:
                file.write_bytes(convert_plainly(model, "int8", preprocess_input(calibration)))
                pixels = preprocess_input(images)
            else:
                export_tflite(model, file, quantize=mode, calibration=calibration)
            row[mode] = facts(file, pixels, expected)
    return row


def facts(file, images, expected):
    target, compiled = npu_target(TARGET), file.with_name("compiled.tflite")
    report = compile_file(file, compiled, target)
    (here,) = LiteRTModel(file).predict(images).values()
    (there,) = run_file(compiled, images, 1, target).values()
    return {
        "operations": report.operations,
        "taken": report.taken,
        "partitions": report.partitions,
        "left": report.left,
        "bytes": file.stat().st_size,
        "compiled_bytes": report.size,
        "litert_from_keras": float(np.abs(here - expected).max()),
        "compiled_from_keras": float(np.abs(there - expected).max()),
        "compiled_same_top1": float(np.mean(there.argmax(1) == expected.argmax(1))),
    }


def print_table(family, row):
    """As rows of Markdown, for tflite/README.md."""
    print(f"\n| {family} | operations taken | partitions | file | compiled | LiteRT from Keras | compiled from Keras |")
    print("|---|---|---|---|---|---|---|")
    for mode, cell in row.items():
        name = mode if mode == PLAIN else f"`{mode}`"
        left = ", ".join(f"{number} {kind}" for kind, number in cell["left"].items())
        taken = f"{cell['taken']} of {cell['operations']}" + (f", not {left}" if left else "")
        sizes = (f"{cell[key] / 1e6:.1f} MB" for key in ("bytes", "compiled_bytes"))
        litert, compiled = (f"{cell[key]:.2g}" for key in ("litert_from_keras", "compiled_from_keras"))
        same = f"{compiled}, {cell['compiled_same_top1']:.0%}"
        print(f"| {name} | {taken} | {cell['partitions']} |", " | ".join([*sizes, litert, same]), "|")


if __name__ == "__main__":
    main()
