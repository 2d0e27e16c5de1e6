"""Draws a comparison of modes: accuracy against size and against cost, the front marked. Room: deploy/comparison."""

import os
from collections.abc import Sequence
from typing import Any

from keras_efficientformer.deploy.benchmark.plots import matplotlib_figure
from keras_efficientformer.deploy.comparison.modes import TFLITE
from keras_efficientformer.deploy.comparison.results import ComparisonReport, CostOf, ModeResult, front
from keras_efficientformer.deploy.comparison.targets import INSTRUCTIONS, MEGABYTES, MILLISECONDS
from keras_efficientformer.files import finished_file

TFLITE_COLOUR, COREML_COLOUR, FRONT_COLOUR = "tab:blue", "tab:orange", "dimgrey"
# Modes that lose more than so many times the allowed drop stand at the lower edge with their figure: drawn to scale
# they would press all others together.
DROPS_SHOWN = 4.0
# Names stand above the axes, neighbours' in different lines of so many; in units of the axes' height.
LINES, LINE_HEIGHT = 7, 0.05


def plot_comparison(report: ComparisonReport, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Draws a comparison as PNG: how many points each mode loses, against its size and against its cost on a CPU.

    Bars are standard errors. A line joins the modes that no other beats in both.

    Args:
        report: what to draw.
        path: the PNG file.
        overwrite: whether an existing file may be replaced.

    Raises:
        OSError: the folder is missing or cannot be written to, or the file exists and `overwrite` is False.
        ImportError: matplotlib is not installed.
    """
    figure = matplotlib_figure()(figsize=(11, 5.5), layout="constrained")
    written = [result for result in report.results if result.scores]
    tflite = [result for result in written if result.mode.startswith(TFLITE)]
    counted = bool(tflite) and all(result.instructions is not None for result in tflite)
    cost = INSTRUCTIONS if counted else MILLISECONDS
    words = "million Arm instructions of one inference" if counted else "milliseconds of one inference on this computer"
    left, right = figure.subplots(1, 2, sharey=True)
    lowest = -DROPS_SHOWN * max(report.max_drop, 0.1)
    _panel(left, written, MEGABYTES.of, "megabytes", lowest)
    _panel(right, tflite, cost.of, words, lowest)
    left.set_ylabel(
        "points of top-1 beside Keras" if report.classes_from else "agreement with Keras' top-1, in percent, less 100"
    )
    for axes in (left, right):
        axes.axhline(-report.max_drop, color="lightgrey", linestyle=":", zorder=0)
    handles = [
        left.scatter([], [], color=face, edgecolors=edge, label=name)
        for face, edge, name in (
            (TFLITE_COLOUR, TFLITE_COLOUR, "TFLite"),
            (COREML_COLOUR, COREML_COLOUR, "Core ML"),
            ("white", FRONT_COLOUR, "another is at least as good in both"),
        )
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=3, frameon=False)
    figure.suptitle(
        f"{report.model}, on {report.images:,} images of {report.folder}, {report.date}",
        x=0.99,
        ha="right",
        fontsize="medium",
        parse_math=False,
    )
    with finished_file(path, overwrite) as partial:
        figure.savefig(partial, dpi=110, bbox_inches="tight")


def _panel(axes: Any, results: Sequence[ModeResult], cost: CostOf, words: str, lowest: float) -> None:
    """Points and names of the modes whose cost is known, and the line of the front."""
    places = {
        result.mode: (cost(result), max(-100 * result.scores.drop, lowest))
        for result in results
        if result.scores and cost(result) is not None
    }
    best = [places[result.mode] for result in front(results, cost)]
    axes.plot(*zip(*best, strict=True) if best else ((), ()), color=FRONT_COLOUR, linewidth=1, zorder=1)
    ordered = sorted((result for result in results if result.mode in places), key=lambda result: places[result.mode])
    for number, result in enumerate(ordered):
        assert result.scores is not None
        place = places[result.mode]
        colour = TFLITE_COLOUR if result.mode.startswith(TFLITE) else COREML_COLOUR
        is_shown = -100 * result.scores.drop >= lowest
        axes.errorbar(
            *place,
            yerr=100 * result.scores.error if is_shown else None,
            fmt="o" if is_shown else "v",
            color=colour,
            markerfacecolor=colour if place in best else "white",
            elinewidth=0.6,
            zorder=2,
        )
        name = result.mode.partition(":")[2] + ("" if is_shown else f" {-100 * result.scores.drop:.1f}")
        axes.annotate(
            name,
            place,
            (place[0], 1 + LINE_HEIGHT * (number % LINES)),
            textcoords=("data", "axes fraction"),
            ha="center",
            fontsize="x-small",
            color=colour,
            arrowprops={"arrowstyle": "-", "color": "lightgrey", "linewidth": 0.5},
        )
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.1)
    ticks = [step * 10.0**power for power in range(-3, 6) for step in (1, 2, 5)]
    low, high = axes.get_xlim()
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(words)
    axes.spines[["top", "right"]].set_visible(False)
