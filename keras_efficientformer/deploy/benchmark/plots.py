"""Draws a device report as a bar chart. Room: deploy/benchmark."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_efficientformer.deploy.benchmark.reports import DeviceReport, Latency, short_number
from keras_efficientformer.errors import require
from keras_efficientformer.files import finished_file

MEDIAN_COLOUR, P90_COLOUR = "tab:blue", "lightsteelblue"
# So much of a row is a bar's, the rest is air.
MEDIAN_HEIGHT, P90_HEIGHT = 0.5, 0.2


def plot_report(report: DeviceReport, path: str | Path, overwrite: bool = False) -> None:
    """Draws a report's results as PNG: a bar for each median, a thin one below it for the 90th percentile.

    The number at a median's end is followed by how many times as fast it is as the first result. Of an emulated CPU
    the bars are millions of instructions, and what follows is how many times as many there are.

    Args:
        report: what to draw.
        path: the PNG file.
        overwrite: whether an existing file may be replaced.

    Raises:
        OSError: the folder is missing or cannot be written to, or the file exists and `overwrite` is False.
        ImportError: matplotlib is not installed.
    """
    figure_class = matplotlib_figure()
    results = report.results
    are_instructions = report.kind == "emulator"
    lengths = [result.instructions if are_instructions else result.median_ms for result in results]
    figure = figure_class(figsize=(8, 1.6 + 0.55 * len(results)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(
        range(len(results)), [length or 0.0 for length in lengths], MEDIAN_HEIGHT, color=MEDIAN_COLOUR, label="median"
    )
    axes.bar_label(bars, _captions(lengths, are_instructions), padding=4)
    if any(result.p90_ms is not None for result in results):
        below = (MEDIAN_HEIGHT + P90_HEIGHT) / 2
        places = [place + below for place in range(len(results))]
        p90 = [result.p90_ms or 0.0 for result in results]
        thin = axes.barh(places, p90, P90_HEIGHT, color=P90_COLOUR, label="90th percentile")
        texts = ["" if result.p90_ms is None else f"{short_number(result.p90_ms)} ms" for result in results]
        axes.bar_label(thin, texts, padding=4, fontsize="x-small", color="dimgrey")
        figure.legend(loc="outside lower right", ncols=2, frameon=False)
    # A file's name may hold dollar signs, between which matplotlib expects a formula.
    axes.set_yticks(range(len(results)), map(_name, results), parse_math=False)
    axes.invert_yaxis()  # matplotlib draws the first bar at the bottom
    axes.margins(x=0.3)  # room for the captions
    axes.set_xlabel("million instructions of one inference" if are_instructions else "milliseconds of one inference")
    figure.suptitle(f"{report.device}\n{report.os}, {report.date}", x=0.01, ha="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    with finished_file(path, overwrite) as partial:
        figure.savefig(partial, dpi=150, bbox_inches="tight")


def matplotlib_figure() -> Any:
    """matplotlib's `Figure`.

    Raises:
        ImportError: it is not installed.
    """
    return require("matplotlib.figure", "Drawing a benchmark", "litert").Figure


def _captions(lengths: Sequence[float | None], are_instructions: bool) -> list[str]:
    """What stands at the bars' ends: the number with its unit, and how it compares with the first."""
    first, unit = lengths[0], "M" if are_instructions else "ms"
    captions = []
    for place, length in enumerate(lengths):
        caption = "not measured" if length is None else f"{short_number(length)} {unit}"
        if place and first and length:
            factor = f"{length / first:.2f}x as many" if are_instructions else f"{first / length:.2f}x as fast"
            caption += f", {factor}"
        captions.append(caption)
    return captions


def _name(result: Latency) -> str:
    """What a bar is called."""
    return f"{result.file}\n{result.unit}" if result.threads is None else result.file
