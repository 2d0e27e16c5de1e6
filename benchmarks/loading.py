"""What it costs to start: import time beside Keras' own; on each backend, time and memory of converting a checkpoint.

Every figure is of a fresh process; imports are measured in turns and given as medians.

    python benchmarks/loading.py --output benchmarks/loading.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from rich import print as rich_print
from rich.progress import track
from rich.table import Table

IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
# The checkpoint is written by the process that is measured no longer: its peak would be counted too.
WRITE = """
import sys
from keras_efficientformer import EfficientFormer{0}, conversion
conversion.write_checkpoint(sys.argv[1], conversion.to_state_dict(EfficientFormer{0}(weights=None)))
"""
CONVERT = """
import os, resource, sys, time
import keras_efficientformer
from keras_efficientformer import from_checkpoint
# What the backend allocates at its first use is no cost of converting.
keras_efficientformer.EfficientFormer((1, 1, 1, 1), (8, 8, 8, 8), input_shape=(32, 32, 3))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
model = from_checkpoint(sys.argv[1])
loaded = time.perf_counter() - started
model.save(sys.argv[1] + ".keras")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(loaded, time.perf_counter() - started, (after - before) * 1024 / os.path.getsize(sys.argv[1]))
"""

VARIANTS = ("L1", "L3", "L7")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="imports of each kind")
    parser.add_argument("--backends", nargs="+", default=["tensorflow", "jax", "torch"], help="Keras' backends")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "import_seconds": measure_imports(arguments.rounds),
        "conversion": {backend: measure_conversions(backend) for backend in arguments.backends},
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    table = Table("measure", "value")
    for module, seconds in report["import_seconds"].items():
        table.add_row(f"import {module}", f"{statistics.median(seconds):.2f} s")
    for backend, variants in report["conversion"].items():
        for variant, (loaded, saved, memory) in variants.items():
            text = f"{loaded:.1f} s, saved as .keras after {saved:.1f} s, peak memory {memory:.2f} x the checkpoint"
            table.add_row(f"convert {variant} ({backend})", text)
    rich_print(table)


def measure_imports(rounds):
    seconds = {"keras": [], "keras_efficientformer": []}
    for _ in track(range(rounds), description="imports"):
        for module, values in seconds.items():
            values.append(float(run(IMPORT.format(module))))
    return seconds


def measure_conversions(backend):
    """{variant: [seconds until loaded, until saved too, peak memory as a multiple of the checkpoint]}."""
    return {variant: measure_conversion(variant, backend) for variant in track(VARIANTS, description=backend)}


def measure_conversion(variant, backend):
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.safetensors")
        run(WRITE.format(variant), path)
        return [float(value) for value in run(CONVERT, path, backend=backend).split()]


def run(code, *arguments, backend="tensorflow"):
    command, environment = [sys.executable, "-c", code, *arguments], os.environ | {"KERAS_BACKEND": backend}
    finished = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    return finished.stdout


if __name__ == "__main__":
    main()
