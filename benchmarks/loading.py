"""What it costs to start: import time beside Keras' own; on each backend, time and memory of converting a checkpoint.

Every figure is of a fresh process; imports are measured in turns and given as medians. Linux only.

    python benchmarks/loading.py --output benchmarks/results/loading.json
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
import json, os, re, sys, time
import keras_efficientformer
from keras_efficientformer import from_checkpoint

def peak():
    # Not getrusage's ru_maxrss, which starts at the size of the process that started this one.
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

def cost():
    seconds, memory = time.perf_counter() - started, (peak() - before) / os.path.getsize(sys.argv[1])
    return {"seconds": round(seconds, 2), "peak_to_file": round(memory, 2)}

# What the backend allocates at its first use is no cost of converting.
keras_efficientformer.EfficientFormer((1, 1, 1, 1), (8, 8, 8, 8), input_shape=(32, 32, 3))
before, started = peak(), time.perf_counter()
model = from_checkpoint(sys.argv[1])
loaded = cost()
model.save(sys.argv[1] + ".keras")
print(json.dumps({"loaded": loaded, "saved": cost()}))
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
        for variant, steps in variants.items():
            for step, cost in steps.items():
                text = f"{cost['seconds']:.1f} s, peak memory {cost['peak_to_file']:.2f} x the checkpoint"
                table.add_row(f"{variant} {step} ({backend})", text)
    rich_print(table)


def measure_imports(rounds):
    seconds = {"keras": [], "keras_efficientformer": []}
    for _ in track(range(rounds), description="imports"):
        for module, values in seconds.items():
            values.append(float(run(IMPORT.format(module))))
    return seconds


def measure_conversions(backend):
    """{variant: {"loaded" or then "saved" as .keras: seconds and peak memory as a multiple of the checkpoint}}."""
    return {variant: measure_conversion(variant, backend) for variant in track(VARIANTS, description=backend)}


def measure_conversion(variant, backend):
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.safetensors")
        run(WRITE.format(variant), path)
        return json.loads(run(CONVERT, path, backend=backend))


def run(code, *arguments, backend="tensorflow"):
    command, environment = [sys.executable, "-c", code, *arguments], os.environ | {"KERAS_BACKEND": backend}
    finished = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    return finished.stdout


if __name__ == "__main__":
    main()
