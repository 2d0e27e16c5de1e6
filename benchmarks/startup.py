"""What the command costs before and beside its work: CPU seconds and peak memory of each, in processes of their own.

The commands run in turns; medians are given. `--before` names the folder of another version of this project, which is
measured in the same turns. Linux only.

    python benchmarks/startup.py --before ../older --output benchmarks/results/startup.json
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from rich import print as rich_print
from rich.progress import track
from rich.table import Column, Table

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "weights" / "efficientformer_l1_cifar10.safetensors"
# Earlier versions had no program of its own.
PROGRAM = "from {} import main; main()"
PROGRAM_MODULES = ("efficientformer_command", "keras_efficientformer.cli")
EXPORT = """
import sys
from keras_efficientformer import from_checkpoint
from keras_efficientformer.deploy import export_coreml, export_tflite
model = from_checkpoint(sys.argv[1])
export_tflite(model, "m.tflite")
export_coreml(model, "m.mlpackage")
"""
COMMANDS = {
    "--help": ["--help"],
    "a typo": ["predikt", "photo.png"],
    "a wrong path": ["convert", "missing.pth", "m.keras"],
    "predict, .tflite": ["predict", "photo.png", "--model", "m.tflite"],
    "predict, .mlpackage": ["predict", "photo.png", "--model", "m.mlpackage"],
    "predict, checkpoint": ["predict", "photo.png", "--model", str(CHECKPOINT)],
}


def environment(version):
    return {**os.environ, "PYTHONPATH": str(version), "TF_CPP_MIN_LOG_LEVEL": "3"}


def cost(version, arguments, folder):
    """(CPU seconds, peak memory in MB) of a command of a version, with the processes that it starts."""
    module = PROGRAM_MODULES[not (version / f"{PROGRAM_MODULES[0]}.py").exists()]
    code = f"""
import os, resource, subprocess, sys
subprocess.run([sys.executable, "-P", "-c", {PROGRAM.format(module)!r}, *sys.argv[1:]], capture_output=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
"""
    command = [sys.executable, "-P", "-c", code, *arguments]
    seconds, kilobytes = subprocess.check_output(command, cwd=folder, env=environment(version), text=True).split()
    return float(seconds), int(kilobytes) / 1000


def measure(versions, repeats, folder):
    """{command: {version: {"cpu_seconds", "peak_mb"}}}, medians."""
    turns = [(name, version) for _ in range(repeats) for name in COMMANDS for version in versions]
    found = {turn: [] for turn in turns}
    for name, version in track(turns, "Starting"):
        found[name, version].append(cost(versions[version], COMMANDS[name], folder))
    rows = {name: {} for name in COMMANDS}
    for (name, version), costs in found.items():
        seconds, megabytes = (statistics.median(values) for values in zip(*costs, strict=True))
        rows[name][version] = {"cpu_seconds": round(seconds, 2), "peak_mb": round(megabytes)}
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, help="folder of another version of this project")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    versions = {"now": ROOT} | ({"before": arguments.before.resolve()} if arguments.before else {})
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-P", "-c", EXPORT, str(CHECKPOINT)], cwd=folder, env=environment(ROOT), check=True
        )
        photo = "import skimage.data, PIL.Image; PIL.Image.fromarray(skimage.data.chelsea()).save('photo.png')"
        subprocess.run([sys.executable, "-c", photo], cwd=folder, check=True)
        rows = measure(versions, arguments.repeats, folder)
    titles = [Column(f"{version}: {unit}", justify="right") for version in versions for unit in ("CPU s", "MB")]
    table = Table("command", *titles, title="Start of the command", title_justify="left")
    for name, found in rows.items():
        table.add_row(name, *(str(value) for version in versions for value in found[version].values()))
    rich_print(table)
    if arguments.output:
        content = {
            "date": datetime.now(UTC).date().isoformat(),
            "python": platform.python_version(),
            "machine": f"{os.cpu_count()} cores of {platform.machine()}",
            "repeats": arguments.repeats,
            "commands": rows,
        }
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
