"""The drawing board of the benchmarks: a device report as a picture."""

from pathlib import Path

from keras_efficientformer.checkpoint_files import finished_file
from keras_efficientformer.deploy.measurements import DeviceReport


def plot_report(report: DeviceReport, path: str | Path, overwrite: bool = False) -> None:
    """Draws a report's results as PNG: a bar for each median with a whisker to the 90th percentile.

    Of an emulated CPU the bars are millions of instructions.

    Raises:
        OSError: the folder is missing or cannot be written to, or the file exists and `overwrite` is False.
        ImportError: matplotlib is not installed.
    """
    figure_class = require_matplotlib()
    results = report.results[::-1]  # the first at the top
    counted = report.kind == "emulator"
    lengths = [(result.instructions if counted else result.median_ms) or 0.0 for result in results]
    whiskers = [0.0 if result.p90_ms is None else result.p90_ms - (result.median_ms or 0.0) for result in results]
    figure = figure_class(figsize=(8, 1.4 + 0.4 * len(results)), layout="constrained")
    axes = figure.add_subplot()
    nothing = [0.0] * len(results)
    bars = axes.barh([_name(result) for result in results], lengths, xerr=[nothing, whiskers], color="tab:blue")
    axes.bar_label(bars, [f"{length:.1f}" for length in lengths], padding=4)
    axes.set_xlabel("million instructions" if counted else "milliseconds, median; whisker: 90th percentile")
    axes.set_title(f"{report.device}\n{report.os}, {report.date}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    with finished_file(path, overwrite) as partial:
        figure.savefig(partial, dpi=150)


def require_matplotlib():
    """matplotlib's `Figure`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Drawing plots needs matplotlib: pip install 'keras-efficientformer[train]'") from error
    return Figure


def _name(result):
    return f"{result.file}\n{result.unit}" if result.threads is None else result.file
