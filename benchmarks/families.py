"""Both families and MobileNetV2: parameters, multiply-adds, operations, sizes, instructions on an emulated phone CPU.

All networks have random weights and take 224x224 RGB pixels. MobileNetV2 is keras.applications', which TensorFlow's
converter makes .tflite files of ("plain" in arm_instructions.py); its Core ML package is the one that
`efficientformer benchmark coreml` times. Instructions are those of one inference on one thread of a Cortex-A76 under
qemu, which tflite/arm/setup.sh sets up.

    python benchmarks/families.py --output benchmarks/results/families.json
"""

import argparse
import json
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import keras
import numpy as np
from arm_instructions import CPU, OURS, convert_plainly
from random_networks import random_network
from rich.progress import track

from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.deploy.benchmark.arm_emulator import ArmEmulator
from keras_efficientformer.deploy.benchmark.mobilenet_reference import export_mobilenet_v2
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.deploy.network.keras_builder import KerasBuilder
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.images import seeded_images
from keras_efficientformer.reporting import versions_of
from keras_efficientformer.variants import VARIANTS, VARIANTS_V2

MOBILENET = "mobilenet_v2"
TOOLS = ("keras-efficientformer", "tensorflow", "litert-quantizer", "coremltools")


class CountingBuilder(KerasBuilder):
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
    networks = [*VARIANTS_V2, MOBILENET, *VARIANTS]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=networks, default=networks)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    emulator = ArmEmulator(CPU)
    rows = {}
    # TensorFlow keeps the memory of a conversion: each network gets a process of its own.
    processes = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    print_header()
    with processes, ThreadPoolExecutor(os.cpu_count()) as emulations:
        for network in track(arguments.networks, description="networks"):
            with tempfile.TemporaryDirectory() as folder:
                row = processes.submit(write_files, network, Path(folder)).result()
                # Emulated files do not disturb each other: it is instructions that are counted, not time.
                counts = emulations.map(emulator.count, [file.pop("path") for file in row["files"].values()])
                for file, kernels in zip(row["files"].values(), counts, strict=True):
                    file["million_instructions"] = round(sum(cost.amount for cost in kernels), 1)
            rows[network] = row
            print_row(network, row)
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": CPU,
        "versions": versions_of(*TOOLS) | emulator.versions(),
        "networks": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def write_files(network, folder):
    """Writes the .tflite and Core ML files of a network; its row, which instructions are still to be counted for."""
    model = keras.applications.MobileNetV2(weights=None) if network == MOBILENET else random_network(network)
    images = seeded_images((224, 224, 3))
    package = folder / "coreml.mlpackage"
    files = {}
    for mode in OURS:
        path = folder / f"{mode}.tflite"
        if network == MOBILENET:
            path.write_bytes(convert_plainly(model, mode, images / 127.5 - 1))
        else:
            export_tflite(model, path, quantize=OURS[mode], calibration=images, max_difference=float("inf"))
        file = LiteRTModel(path)
        operations = sum(file.operations().values())
        files[mode] = {
            "path": path,
            "bytes": path.stat().st_size,
            "operations": operations,
            "partitions": file.partitions(),
        }
    if network == MOBILENET:
        package = export_mobilenet_v2(folder)
    else:
        export_coreml(model, package, max_difference=float("inf"))
    return {
        "parameters": int(sum(np.prod(weight.shape) for weight in model.trainable_weights)),
        "macs": mobilenet_macs(model) if network == MOBILENET else fused_macs(model),
        "core_ml": {
            "bytes": sum(item.stat().st_size for item in package.rglob("*") if item.is_file()),
            "operations": sum(CoreMLModel(package).operations().values()),
        },
        "files": files,
    }


def fused_macs(model):
    network = fuse(model)
    builder = CountingBuilder(np.zeros((1, *network.input_shape)))
    network.build(builder)
    return builder.macs


def mobilenet_macs(model):
    kinds = keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense
    kernels = [layer for layer in model.layers if isinstance(layer, kinds)]
    return int(sum(layer.kernel.shape.num_elements() * np.prod(layer.output.shape[1:-1]) for layer in kernels))


def print_header():
    """The table is Markdown, for the READMEs."""
    print("| network | parameters | MACs | Core ML operations, float16 |", *(f"`{mode}` |" for mode in OURS))
    print("|---|---|---|---|" + "---|" * len(OURS), flush=True)


def print_row(network, row):
    core_ml = f"{row['core_ml']['operations']}, {row['core_ml']['bytes'] / 1e6:.1f} MB"
    files = (f"{file['million_instructions']:,.1f} M, {file['bytes'] / 1e6:.1f} MB" for file in row["files"].values())
    facts = f"{row['parameters'] / 1e6:.1f} M", f"{row['macs'] / 1e9:.2f} G", core_ml
    print("|", " | ".join([network, *facts, *files]), "|", flush=True)


if __name__ == "__main__":
    main()
