"""Draws a run's curves of loss and accuracy, and a confusion matrix or average precisions. Room: training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_efficientformer.errors import require
from keras_efficientformer.files import finished_file

# With more classes the names would cover each other.
CLASSES_NAMED = 40


def require_matplotlib() -> None:
    """Checks that matplotlib is there, before hours of training and not after.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    require("matplotlib", "Drawing a run's curves", "train")


def plot_curves(history: Sequence[dict[str, float]], path: Path) -> None:
    """Draws loss and accuracy over the epochs as a PNG file, in the place of an older one.

    Args:
        history: one row for each epoch, at least one: "epoch", "loss", "accuracy" and perhaps "val_loss",
            "val_accuracy"; or "val_map", which is then drawn in the place of accuracy.
        path: the file.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    second = "map" if "val_map" in history[-1] else "accuracy"
    for axes, name in zip(figure.subplots(1, 2), ("loss", second), strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if key in history[-1]:
                axes.plot(epochs, [row[key] for row in history], marker=".", label=label)
        axes.set(xlabel="epoch", title="mean average precision" if name == "map" else name)
        axes.legend()
    with finished_file(path, overwrite=True) as partial:
        figure.savefig(partial, dpi=120)


def plot_confusion(confusion: np.ndarray, labels: Sequence[str], path: Path) -> None:
    """Draws a confusion matrix, each row as shares of its class, as a PNG file, in the place of an older one.

    Args:
        confusion: integers (classes, classes), as in `Scores`.
        labels: the class names.
        path: the file.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    from matplotlib.figure import Figure

    side = min(4 + 0.3 * len(labels), 16)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    figure.colorbar(image, ax=axes, label="share of the class' images")
    axes.set(xlabel="answered", ylabel="is")
    if len(labels) <= CLASSES_NAMED:
        # A name may hold dollar signs, between which matplotlib expects a formula.
        axes.set_xticks(range(len(labels)), labels, rotation=90, parse_math=False)
        axes.set_yticks(range(len(labels)), labels, parse_math=False)
    with finished_file(path, overwrite=True) as partial:
        figure.savefig(partial, dpi=120)


def plot_average_precision(precision: np.ndarray, labels: Sequence[str], path: Path) -> None:
    """Draws each class' average precision as a bar in a PNG file, in the place of an older one.

    Args:
        precision: floats (classes,) in [0, 1], not-a-number where there is none, as in `MultiLabelScores`.
        labels: the class names.
        path: the file.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, min(2 + 0.25 * len(labels), 16)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(labels)), precision)
    mean = np.nanmean(precision)
    axes.axvline(mean, color="black", linestyle=":")
    axes.set(xlim=(0, 1), xlabel="average precision", title=f"mean average precision {mean:.1%}")
    axes.invert_yaxis()
    if len(labels) <= CLASSES_NAMED:
        axes.set_yticks(range(len(labels)), labels, parse_math=False)
    with finished_file(path, overwrite=True) as partial:
        figure.savefig(partial, dpi=120)
