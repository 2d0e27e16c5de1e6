"""Time and memory of exporting float32 .tflite files: ours on each Keras backend, beside TensorFlow's converter.

Every figure is of a fresh process that makes a network with random weights at 224x224 and exports it: seconds of the
export, its check in LiteRT included, and the peak memory of the whole process. Linux only.

    python benchmarks/export_cost.py --output benchmarks/results/export_cost.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from rich import print as rich_print
from rich.progress import track
from rich.table import Table

from keras_efficientformer.reporting import versions_of
from keras_efficientformer.variants import VARIANTS

HERE = Path(__file__).resolve().parent
CONVERTER = "TensorFlow's converter"
MAKERS = ("tensorflow", "jax", "torch", CONVERTER)
EXPORT = """
import re, sys, time
from random_networks import random_network
variant, file, plain = sys.argv[1:]
model = random_network(variant)
started = time.perf_counter()
if plain == "True":
    from arm_instructions import convert_plainly
    open(file, "wb").write(convert_plainly(model, "float32", None))
else:
    from keras_efficientformer.deploy import export_tflite
    export_tflite(model, file)
seconds = time.perf_counter() - started
# Not getrusage's ru_maxrss, which starts at the size of the process that started this one.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
print(seconds, peak * 1024 / 1e9)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    runs = [(variant, maker) for variant in arguments.variants for maker in MAKERS]
    rows = {variant: {} for variant in arguments.variants}
    for variant, maker in track(runs, description="exporting"):
        seconds, gigabytes = measure(variant, maker)
        rows[variant][maker] = {"seconds": round(seconds, 1), "gigabytes": round(gigabytes, 2)}
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions_of("keras-efficientformer", "keras", "tensorflow", "jax", "torch", "ai-edge-litert"),
        "exports": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    table = Table("network", *MAKERS, title="float32 .tflite: seconds, peak memory")
    for variant, row in rows.items():
        table.add_row(variant, *(f"{row[maker]['seconds']} s, {row[maker]['gigabytes']} GB" for maker in MAKERS))
    rich_print(table)


def measure(variant, maker):
    """(seconds, gigabytes) of one export."""
    plain = maker == CONVERTER
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", EXPORT, variant, Path(folder, "model.tflite"), str(plain)],
            env=os.environ | {"KERAS_BACKEND": "tensorflow" if plain else maker, "PYTHONPATH": str(HERE)},
            capture_output=True,
            text=True,
            check=True,
        )
    seconds, gigabytes = map(float, done.stdout.split()[-2:])
    return seconds, gigabytes


if __name__ == "__main__":
    main()
