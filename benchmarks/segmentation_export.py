"""A segmentation model in .tflite files: ours beside what Keras' own `model.export(format="litert")` makes of it.

Semantic FPN on an L1 at 256x256, 21 classes, random weights. Counts are of the files; instructions of one inference on
an emulated Cortex-A76 (tflite/arm/setup.sh), one thread; seconds and memory those of the process that writes the file.

    python benchmarks/segmentation_export.py --output benchmarks/results/segmentation_export.json
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import keras
from random_networks import without_constants
from rich import print as rich_print
from rich.progress import track
from rich.table import Table

from keras_efficientformer import EfficientFormerL1
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.benchmark.arm_emulator import ArmEmulator
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.images import seeded_images
from keras_efficientformer.reporting import versions_of
from keras_efficientformer.segmentation import SemanticFPN

CPU = "cortex-a76"
SHAPE = (256, 256, 3)
CLASSES = 21
OURS = {"ours, float32": "none", "ours, float16": "float16", "ours, dynamic": "dynamic", "ours, int8": "int8"}
KERAS = "Keras' export, float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    emulator, rows = ArmEmulator(CPU), {}
    # Libraries keep the memory of a conversion: each gets a process of its own, one after the other.
    processes = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with tempfile.TemporaryDirectory() as folder, processes:
        for number, kind in enumerate(track((*OURS, KERAS), description="Writing and counting")):
            file = Path(folder, f"{number}.tflite")
            cost = processes.submit(write_file, kind, file).result()
            opened = LiteRTModel(file)
            rows[kind] = {
                "megabytes": round(file.stat().st_size / 1e6, 2),
                "operations": sum(opened.operations().values()),
                "xnnpack_partitions": opened.partitions(),
                "million_instructions": round(sum(cost.amount for cost in emulator.count(file)), 1),
                **cost,
            }
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": CPU,
        "versions": versions_of("keras-efficientformer", "keras", "tensorflow", "ai-edge-litert") | emulator.versions(),
        "files": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(rows)


def write_file(kind: str, file: Path) -> dict[str, float]:
    """Seconds that writing took, after Keras was imported and the model made, and the process's largest memory."""
    model, images = random_segmenter(), seeded_images(SHAPE)
    started = time.perf_counter()
    if kind == KERAS:
        model.export(str(file), format="litert", verbose=False)
    else:
        # Random weights: what is measured is the work.
        labels = map(str, range(CLASSES))
        export_tflite(model, file, quantize=OURS[kind], labels=labels, calibration=images, max_difference=float("inf"))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": round(seconds, 1), "peak_gigabytes": round(peak, 2)}


def random_segmenter() -> keras.Model:
    """Always the same weights."""
    keras.utils.set_random_seed(0)
    backbone = EfficientFormerL1(weights=None, include_top=False, input_shape=SHAPE)
    return without_constants(SemanticFPN(backbone, CLASSES))


def print_table(rows: dict[str, dict[str, float]]) -> None:
    columns = ("MB", "operations", "XNNPACK partitions", "M instructions", "s to write", "GB of memory")
    table = Table("file", *columns)
    for kind, row in rows.items():
        table.add_row(kind, *map(str, row.values()))
    rich_print(table)


if __name__ == "__main__":
    main()
