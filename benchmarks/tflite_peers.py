"""Latency of EfficientFormer-L1 at 224x224, float32, on this machine's CPU: our .tflite file beside other exporters'.

All have random weights and are run in turns on one thread, in several processes one after the other, because where a
process happens to have a file's weights in memory moves its median by 2 or 3%; only ours normalises the image. Figures
are medians over the processes. The peers work in environments of their own, made on the first run under .peers/ in the
project: some 10 GB, less where pip finds PyTorch's CPU index.

    python benchmarks/tflite_peers.py --output benchmarks/results/tflite_peers.json
"""

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import venv
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from rich import print as rich_print
from rich.progress import track
from rich.table import Table

from keras_efficientformer import EfficientFormerL1
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.benchmark.computer import benchmark_tflite
from keras_efficientformer.deploy.benchmark.plots import plot_report
from keras_efficientformer.reporting import versions_of

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent / ".peers"
PEERS = {
    "keras_cv_attention_models": ("keras-cv-attention-models==1.4.3", "tensorflow==2.21.0", "tf_keras==2.21.0"),
    "litert_torch": ("litert-torch==0.10.0", "timm==1.0.31", "torch==2.14.1", "torchvision==0.29.2"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="timed turns of each file in each process")
    parser.add_argument("--processes", type=int, default=5, help="how many processes time all files")
    parser.add_argument("--output", type=Path, help="JSON file to write; a plot, .png, is written beside it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        makers = export_all(Path(folder))
        files = [Path(folder, f"{name}.tflite") for name in makers]
        report = time_in_processes(files, arguments.rounds, arguments.processes)
    best = min(result.median_ms for result in report.results)
    rows = {
        name: {
            "made_by": maker,
            "bytes": result.bytes,
            "median_ms": result.median_ms,
            "p90_ms": result.p90_ms,
            "to_best": result.median_ms / best,
        }
        for (name, maker), result in zip(makers.items(), report.results, strict=True)
    }
    if arguments.output:
        facts = {"date": report.date, "device": report.device, "os": report.os}
        facts |= {"rounds": arguments.rounds, "processes": arguments.processes}
        content = facts | {"versions": report.versions, "exporters": rows}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")
        plot_report(report, arguments.output.with_suffix(".png"), overwrite=True)
    print_table(rows)


def time_in_processes(files, rounds, processes):
    """The report of a benchmark whose medians and percentiles are medians over that many fresh processes."""
    start_anew = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, start_anew, max_tasks_per_child=1) as pool:
        timings = [pool.submit(benchmark_tflite, files, runs=rounds, warmup=10) for _ in range(processes)]
        reports = [timing.result() for timing in track(timings, description="timing")]
    runs_of_each = zip(*(report.results for report in reports), strict=True)
    results = tuple(
        replace(
            runs[0],
            median_ms=statistics.median(run.median_ms for run in runs),
            p90_ms=statistics.median(run.p90_ms for run in runs),
        )
        for runs in runs_of_each
    )
    return replace(reports[0], results=results)


def export_all(folder):
    """Writes a file NAME.tflite for each exporter; returns {name: {package: version} of what made it}."""
    model = EfficientFormerL1(weights=None)
    export_tflite(model, folder / "keras_efficientformer.tflite")
    model.export(str(folder / "keras_export.tflite"), format="litert", verbose=False)
    makers = {
        "keras_efficientformer": versions_of("keras-efficientformer", "ai-edge-litert"),
        "keras_export": versions_of("keras", "tensorflow"),
    }
    for peer, requirements in track(PEERS.items(), description="peers"):
        python = make_environment(ENVIRONMENTS / peer, requirements)
        script = HERE / "peers" / f"export_with_{peer}.py"
        subprocess.run([python, script, folder / f"{peer}.tflite"], check=True, stdout=subprocess.DEVNULL)
        makers[peer] = dict(requirement.split("==") for requirement in requirements)
    return makers


def make_environment(folder, requirements):
    """The Python of a virtual environment that holds the requirements; made where it is not there yet."""
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    if not installed.exists() or installed.read_text().split() != list(requirements):
        venv.create(folder, clear=True, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
        subprocess.run([*pip, *requirements], check=True)
        installed.write_text("\n".join(requirements) + "\n")
    return python


def print_table(rows):
    table = Table("exporter", "MB", "median", "p90", "median / best")
    for name, row in rows.items():
        times = (f"{row[time]:.1f} ms" for time in ("median_ms", "p90_ms"))
        table.add_row(name, f"{row['bytes'] / 1e6:.1f}", *times, f"{row['to_best']:.3f}")
    rich_print(table)


if __name__ == "__main__":
    main()
