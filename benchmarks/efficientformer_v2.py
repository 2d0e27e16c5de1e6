"""The two families side by side: parameters, multiply-adds, operations, sizes, instructions on an emulated phone CPU.

All networks have random weights and take 224x224 RGB pixels. Instructions are those of one inference on one thread of a
Cortex-A76 under qemu (tflite/arm/setup.sh sets it up; without it the columns stay empty).

    python benchmarks/efficientformer_v2.py --output benchmarks/efficientformer_v2.json
"""

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich import print as rich_print
from rich.progress import track
from rich.table import Table

import keras_efficientformer
from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.deploy.arm_emulator import ArmEmulator, default_folder
from keras_efficientformer.deploy.images import seeded_images
from keras_efficientformer.deploy.network import fuse
from keras_efficientformer.deploy.tensorflow_builder import TensorFlowBuilder
from keras_efficientformer.variants import VARIANTS, VARIANTS_V2, class_name

MODES = ("none", "float16", "dynamic", "int8")
CPU = "cortex-a76"


class CountingBuilder(TensorFlowBuilder):
    """Counts the multiply-adds of products while it builds the network."""

    macs = 0

    def convolution(self, x, weights, bias, stride=1):
        result = super().convolution(x, weights, bias, stride)
        self.macs += result.shape[1] * result.shape[2] * weights.size
        return result

    def depthwise_convolution(self, x, weights, bias, stride=1):
        result = super().depthwise_convolution(x, weights, bias, stride)
        self.macs += result.shape[1] * result.shape[2] * weights.size
        return result

    def dense(self, x, weights, bias):
        self.macs += int(np.prod(x.shape[1:-1])) * weights.size
        return super().dense(x, weights, bias)

    def scores(self, query, key):
        self.macs += int(np.prod(query.shape)) * key.shape[2]
        return super().scores(query, key)

    def weighted_values(self, weights, value):
        self.macs += int(np.prod(weights.shape)) * value.shape[3]
        return super().weighted_values(weights, value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=[*VARIANTS, *VARIANTS_V2], help="such as l1 v2_s0")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = {}
    for variant in track(arguments.networks, description="networks"):
        with tempfile.TemporaryDirectory() as folder:
            rows[variant] = measure(variant, folder)
        print_table(rows)
    if arguments.output:
        report = {"date": datetime.now(UTC).date().isoformat(), "cpu": CPU, "networks": rows}
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def measure(variant, folder):
    model = getattr(keras_efficientformer, class_name(variant))(weights=None)
    for variable in model.trainable_variables:
        if variable.name == "gamma" and "/ls" in variable.path:
            variable.assign(np.full(variable.shape, 0.2))  # as trained: at the 1e-5 of the start, int8 weights vanish
    row = {
        "parameters": int(sum(np.prod(weight.shape) for weight in model.trainable_weights)),
        "macs": count_macs(model),
        "core_ml": core_ml(model, folder),
    }
    emulator = ArmEmulator(CPU) if (default_folder() / "ready").exists() else None
    for mode in MODES:
        calibration = seeded_images((224, 224, 3)) if mode == "int8" else None
        report = export_tflite(model, folder, quantize=mode, calibration=calibration, max_difference=float("inf"))
        row[mode] = {"bytes": report.size, "operations": sum(report.operations.values()), "parts": report.partitions}
        if emulator:
            row[mode]["millions"] = round(sum(cost.amount for cost in emulator.count(report.path)), 1)
    return row


def count_macs(model):
    network = fuse(model)
    with tf.Graph().as_default():
        builder = CountingBuilder(tf.zeros((1, *network.input_shape)))
        network.build(builder)
    return builder.macs


def core_ml(model, folder):
    report = export_coreml(model, folder, precision="float16", max_difference=float("inf"))
    return {"bytes": report.size, "operations": sum(report.operations.values())}


def print_table(rows):
    table = Table("network", "parameters", "GMACs", "Core ML operations", *(f"{mode}: MB, M instr." for mode in MODES))
    for variant, row in rows.items():
        files = [f"{row[mode]['bytes'] / 1e6:.1f}, {row[mode].get('millions', '')}" for mode in MODES]
        facts = f"{row['parameters'] / 1e6:.1f} M", f"{row['macs'] / 1e9:.2f}", str(row["core_ml"]["operations"])
        table.add_row(variant, *facts, *files)
    rich_print(table)


if __name__ == "__main__":
    main()
