"""Latency of EfficientFormer-L1 at 224x224, float32, on this machine's CPU: our .tflite file beside other exporters'.

All have random weights and are run in turns on one thread; only ours normalises the image. The peers work in
environments of their own, made on the first run under .peers/ in the project: some 10 GB, less where pip finds
PyTorch's CPU index.

    python benchmarks/tflite_peers.py --output benchmarks/tflite_peers.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from rich import print as rich_print
from rich.progress import track
from rich.table import Table

from keras_efficientformer import EfficientFormerL1
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.plots import plot_report
from keras_efficientformer.deploy.report import versions_of
from keras_efficientformer.deploy.tflite_benchmark import benchmark_tflite

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent / ".peers"
PEERS = {
    "keras_cv_attention_models": ("keras-cv-attention-models==1.4.3", "tensorflow==2.21.0", "tf_keras==2.21.0"),
    "litert_torch": ("litert-torch==0.10.0", "timm==1.0.31", "torch==2.14.1", "torchvision==0.29.2"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="timed turns of each file")
    parser.add_argument("--output", type=Path, help="JSON file to write; a plot, .png, is written beside it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        makers = export_all(Path(folder))
        report = benchmark_tflite(
            [Path(folder, f"{name}.tflite") for name in makers],
            runs=arguments.rounds,
            warmup=10,
            progress=lambda turns: track(turns, description="timing"),
        )
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
        facts = {"date": report.date, "device": report.device, "os": report.os, "rounds": arguments.rounds}
        content = facts | {"versions": report.versions, "exporters": rows}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")
        plot_report(report, arguments.output.with_suffix(".png"), overwrite=True)
    print_table(rows)


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
