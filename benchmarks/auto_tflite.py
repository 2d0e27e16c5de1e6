"""TFLite's chosen bits beside the modes that have the same bits everywhere: size and accuracy on CIFAR-10.

The embedded checkpoint, at its own 64x64, is exported in each mode, calibrated on 128 training images, and run in
LiteRT on the 5,000 test images; beside ours stands what litert-quantizer makes of the float32 file with int4 weights
for all, on every tenth image, because XNNPACK does not compute it. Answers are compared with the float32 file's, which
are Keras'.

    python benchmarks/auto_tflite.py --cifar10 cifar10-images.zip --output benchmarks/results/auto_tflite.json
"""

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from litert_quantizer import quantizer, recipe
from tflite_modes import CHECKPOINT, read_cifar10

from keras_efficientformer import from_checkpoint
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.reporting import versions_of

FLOAT32, PLAIN_INT4 = "none", "plain int4"
EVERY = {PLAIN_INT4: 10}
MODES = {
    FLOAT32: {},
    "auto": {"quantize": "auto"},
    "dynamic": {"quantize": "dynamic"},
    "int8": {"quantize": "int8"},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar10", type=Path, required=True, help="zip with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    images, classes, calibration = read_cifar10(arguments.cifar10)
    model, rows, found = from_checkpoint(CHECKPOINT), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for mode, options in MODES.items():
            started = time.process_time()
            # What a mode costs is reported here, whatever it is.
            options = options | {"calibration": calibration, "max_difference": float("inf")}
            exported = export_tflite(model, folder, **options)
            rows[mode] = {"bytes": exported.size, "export_cpu_seconds": round(time.process_time() - started, 1)}
            rows[mode] |= {"bits": exported.bits} if exported.bits else {}
            found[mode] = answers(mode, Path(exported.path), images, rows[mode])
        plain = Path(folder, "plain_int4.tflite")
        export_tflite(model, plain)
        tool = quantizer.Quantizer(bytearray(plain.read_bytes()), recipe.dynamic_wi4_afp32())
        plain.write_bytes(bytes(tool.quantize().quantized_model))
        rows[PLAIN_INT4] = {"bytes": plain.stat().st_size}
        found[PLAIN_INT4] = answers(PLAIN_INT4, plain, images, rows[PLAIN_INT4])
    for mode, row in rows.items():
        every = EVERY.get(mode, 1)
        exact, right = found[FLOAT32][::every], classes[::every]
        row["top1"] = percentage(found[mode] == right)
        row["against_float32"] = round(row["top1"] - percentage(exact == right), 2)
        row["same_top1"] = percentage(found[mode] == exact)
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions_of("keras", "ai-edge-litert", "litert-quantizer", "numpy"),
        "images": len(images),
        "modes": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(rows)


def answers(mode, file, images, row):
    """The classes (number,) that a file finds; its row gets the number of XNNPACK's parts."""
    print(f"running mode {mode}", file=sys.stderr)
    opened = LiteRTModel(file)
    row["partitions"] = opened.partitions()
    return opened.predict(images[:: EVERY.get(mode, 1)])["probabilities"].argmax(-1)


def percentage(hits):
    return round(100 * float(np.mean(hits)), 2)


def print_table(rows):
    """As rows of Markdown, for tflite/README.md."""
    print("| mode | size | top-1 | against float32 | same top-1 | layers of 4, 8, 16 bits | XNNPACK partitions |")
    print("|---|---|---|---|---|---|---|")
    for mode, row in rows.items():
        bits = list(row.get("bits", {}).values())
        cells = (
            f"`{mode}`",
            f"{row['bytes'] / 1e6:.1f} MB",
            f"{row['top1']:.2f}%",
            f"{row['against_float32']:+.2f}",
            f"{row['same_top1']:.2f}%",
            ", ".join(str(bits.count(count)) for count in (4, 8, 16)) if bits else "-",
            str(row["partitions"]),
        )
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
