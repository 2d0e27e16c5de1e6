"""Draws a device report as a bar chart. Room: deploy/benchmark."""

from pathlib import Path
from typing import Any

from keras_efficientformer.deploy.benchmark.reports import DeviceReport, Latency
from keras_efficientformer.errors import require
from keras_efficientformer.files import finished_file


def plot_report(report: DeviceReport, path: str | Path, overwrite: bool = False) -> None:
    """Draws a report's results as PNG: a bar for each median with a whisker to the 90th percentile.

    Of an emulated CPU the bars are millions of instructions.

    Args:
        report: what to draw.
        path: the PNG file.
        overwrite: whether an existing file may be replaced.

    Raises:
        OSError: the folder is missing or cannot be written to, or the file exists and `overwrite` is False.
        ImportError: matplotlib is not installed.
    """
    figure_class = matplotlib_figure()
    results = report.results[::-1]  # matplotlib draws the first bar at the bottom
    are_instructions = report.kind == "emulator"
    lengths = [(result.instructions if are_instructions else result.median_ms) or 0.0 for result in results]
    whiskers = [0.0 if result.p90_ms is None else result.p90_ms - (result.median_ms or 0.0) for result in results]
    figure = figure_class(figsize=(8, 1.4 + 0.4 * len(results)), layout="constrained")
    axes = figure.add_subplot()
    nothing = [0.0] * len(results)
    bars = axes.barh([_name(result) for result in results], lengths, xerr=[nothing, whiskers], color="tab:blue")
    axes.bar_label(bars, [f"{length:.1f}" for length in lengths], padding=4)
    axes.set_xlabel("million instructions" if are_instructions else "milliseconds, median; whisker: 90th percentile")
    axes.set_title(f"{report.device}\n{report.os}, {report.date}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    with finished_file(path, overwrite) as partial:
        figure.savefig(partial, dpi=150)


def matplotlib_figure() -> Any:
    """matplotlib's `Figure`.

    Raises:
        ImportError: it is not installed.
    """
    return require("matplotlib.figure", "Drawing a benchmark", "litert").Figure


def _name(result: Latency) -> str:
    """What a bar is called."""
    return f"{result.file}\n{result.unit}" if result.threads is None else result.file
