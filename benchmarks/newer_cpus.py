"""Instructions of one inference on an emulated Cortex-A76 and on a newer core, of every mode of both families.

The newer core ("max") has what phones since 2022 have: int8 matrix products (i8mm), bfloat16, SVE2; qemu 7.2 emulates
it. Beside L1 and V2-S0 stand plain conversions of L1 and keras.applications' MobileNetV2. 224x224, random weights, one
thread. int16x8 has no kernels of XNNPACK, so that a newer core changes nothing: it is left out, for it takes half an
hour. tflite/arm/setup.sh sets the emulator up.

    python benchmarks/newer_cpus.py --output benchmarks/results/newer_cpus.json
"""

import argparse
import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import keras
from arm_instructions import convert_plainly
from random_networks import random_network
from rich.progress import track

from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.benchmark.arm_emulator import ArmEmulator
from keras_efficientformer.deploy.tflite.modes import MODES
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.images import seeded_images
from keras_efficientformer.reporting import versions_of

CPUS = ("cortex-a76", "max")
PLAIN = ("float32", "int8")
NETWORKS = {"l1": [mode for mode in MODES if mode != "int16x8"], "v2_s0": [mode for mode in MODES if mode != "int16x8"]}
PEERS = {"plain l1": PLAIN, "mobilenet_v2": PLAIN}
LARGEST_SHOWN = 12


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    emulators = [ArmEmulator(cpu) for cpu in CPUS]
    jobs = [(network, mode) for network, modes in (NETWORKS | PEERS).items() for mode in modes]
    rows = {network: {} for network, _ in jobs}
    # TensorFlow keeps the memory of a conversion: each gets a process of its own, one after the other.
    processes = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with tempfile.TemporaryDirectory() as folder, processes:
        for network, mode in track(jobs, description="counting"):
            file = Path(folder, f"{network.replace(' ', '_')}_{mode}.tflite")
            processes.submit(write_file, network, mode, file).result()
            rows[network][mode] = {emulator.cpu: kernels_of(emulator, file) for emulator in emulators}
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions_of("keras-efficientformer", "tensorflow") | emulators[0].versions(),
        "networks": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(rows)


def write_file(network, mode, file):
    images = seeded_images((224, 224, 3))
    if network == "mobilenet_v2":
        file.write_bytes(convert_plainly(keras.applications.MobileNetV2(weights=None), mode, images / 127.5 - 1))
    elif network in NETWORKS:
        model = random_network(network)
        export_tflite(model, file, quantize=mode, calibration=images, max_difference=float("inf"))
    else:
        file.write_bytes(convert_plainly(random_network("l1"), mode, preprocess_input(images)))


def kernels_of(emulator, file):
    """{"million_instructions": all of them, "kernels": {name: those of the largest}}."""
    costs = emulator.count(file)
    return {
        "million_instructions": round(sum(cost.amount for cost in costs), 1),
        "kernels": {cost.name: round(cost.amount, 2) for cost in costs[:LARGEST_SHOWN]},
    }


def print_table(rows):
    """As rows of Markdown, for tflite/README.md."""
    print(f"| | {' | '.join(CPUS)} | ratio |\n|---|---|---|---|")
    for network, of_modes in rows.items():
        for mode, found in of_modes.items():
            older, newer = (found[cpu]["million_instructions"] for cpu in CPUS)
            print(f"| {network} `{mode}` | {older:,.1f} | {newer:,.1f} | {newer / older:.2f} |")


if __name__ == "__main__":
    main()
