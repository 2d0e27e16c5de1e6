"""Draws a run's curves, and a confusion matrix or average precisions. Room: training."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficientformer.files import finished_file
from keras_efficientformer.training.config import FineTuneConfig

TITLES = {
    "loss": "loss",
    "accuracy": "accuracy",
    "map": "mean average precision",
    "miou": "mean IoU",
    "learning_rate": "learning rate",
}
# With more classes the names would cover each other, and the counts.
CLASSES_NAMED = 40
CLASSES_COUNTED = 20
NAME_LENGTH = 30
# Inches of the confusion matrix: of a cell with a count or a name, of a letter of a name, and of what stands around.
CELL, LETTER, AROUND = 0.45, 0.09, 1.6
SMALLEST_MATRIX, LARGEST_MATRIX = 2.5, 11.0
# From nothing to this blue: it can be told from a white page and from a dark one.
BLUE = (0.03, 0.32, 0.61)
# Rare mistakes are to be seen too, so colours follow the square root of a share. Above this one they are too dark for
# black letters.
DARK_SHARE = 0.5


def plot_curves(history: Sequence[dict[str, float]], best_epoch: int, config: FineTuneConfig, path: Path) -> None:
    """Draws loss, accuracy and learning rate over the epochs as a PNG file, in the place of an older one.

    Args:
        history: one row for each epoch, at least one: "epoch", "loss", "accuracy", "learning_rate" and perhaps
            "val_loss", "val_accuracy"; or "val_map" or "val_miou", which is then drawn in the place of accuracy.
        best_epoch: the epoch, from 1, that is marked as the best.
        config: of the run, which says why the training loss lies higher.
        path: the file.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    names = curves_of(history)
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        draw_curve(axes, name, history, best_epoch)
    figure.supxlabel(textwrap.fill(loss_remark(config), 190), fontsize="small", x=0.01, ha="left")
    with finished_file(path, overwrite=True) as partial:
        figure.savefig(partial, dpi=120)


def curves_of(history: Sequence[dict[str, float]]) -> tuple[str, ...]:
    """What there is to draw of a run: keys of `TITLES`."""
    measure = next((name for name in ("miou", "map") if f"val_{name}" in history[-1]), "accuracy")
    return "loss", measure, "learning_rate"


def draw_curve(axes: Any, name: str, history: Sequence[dict[str, float]], best_epoch: int) -> None:
    """Draws one of `curves_of` into matplotlib's axes; the arguments are those of `plot_curves`."""
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in history]
    axes.axvline(best_epoch, color="tab:green", linestyle=":", label=f"best epoch: {best_epoch}")
    for key, label, colour in ((name, "training", "tab:blue"), (f"val_{name}", "validation", "tab:orange")):
        if key in history[-1]:
            axes.plot(epochs, [row[key] for row in history], marker=".", label=label, color=colour)
    axes.set(xlabel="epoch", title=TITLES[name], ylim=(0, None) if name == "learning_rate" else None)
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if name != "learning_rate":
        axes.legend()


def loss_remark(config: FineTuneConfig) -> str:
    """A sentence that says why a run's training loss lies higher than that of validation."""
    settings = {
        "random crops": config.min_crop < 1,
        "random flips": config.flip,
        "changes of colours": config.color_jitter > 0,
        "RandAugment": config.rand_augment > 0,
        "MixUp": config.mixup > 0,
        "CutMix": config.cutmix > 0,
        f"label smoothing of {config.label_smoothing:g}": config.label_smoothing > 0,
        f"stochastic depth of up to {config.drop_path:g}": config.drop_path > 0,
        "class weights": config.class_weight != "none",
    }
    harder = [name for name, is_used in settings.items() if is_used]
    made = f" and made harder by {', '.join(harder)}" if harder else ""
    return (
        f"Training is measured while the network learns{made}; validation after the epoch, without any of that. "
        "So training may lie worse than validation though nothing is wrong."
    )


def plot_confusion(confusion: np.ndarray, labels: Sequence[str], path: Path, counted: str = "images") -> None:
    """Draws a confusion matrix as a PNG file, in the place of an older one.

    Args:
        confusion: integers (classes, classes), as in `Scores`.
        labels: the class names.
        path: the file.
        counted: what the integers are numbers of.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    figure = confusion_figure(confusion, labels, counted)
    with finished_file(path, overwrite=True) as partial:
        figure.savefig(partial, dpi=120, bbox_inches="tight")


def confusion_figure(confusion: np.ndarray, labels: Sequence[str], counted: str = "images") -> Any:
    """A confusion matrix as matplotlib's `Figure`; the arguments are those of `plot_confusion`.

    Each row's colours are shares of its class; up to 20 classes have their counts in the cells.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure

    classes, are_named = len(labels), len(labels) <= CLASSES_NAMED
    names = [_shortened(label) for label in labels] if are_named else []
    matrix = min(max(CELL * classes, SMALLEST_MATRIX), LARGEST_MATRIX)
    side = matrix + AROUND + LETTER * max(map(len, names), default=3)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    colours = LinearSegmentedColormap.from_list("share", [(*BLUE, 0.0), (*BLUE, 1.0)])
    image = axes.imshow(shares, norm=PowerNorm(0.5, 0, 1), cmap=colours, interpolation="none")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=matrix / side, aspect=30)
    number = "" if are_named else ", number of the class"
    right, total = int(np.trace(confusion)), int(confusion.sum())
    title = f"Confusion matrix: {right:,} of {total:,} {counted} right"
    axes.set(xlabel=f"predicted{number}", ylabel=f"true{number}", title=title)
    if are_named:
        # A name may hold dollar signs, between which matplotlib expects a formula.
        axes.set_xticks(range(classes), names, rotation=90, parse_math=False)
        axes.set_yticks(range(classes), names, parse_math=False)
    if classes <= CLASSES_COUNTED:
        for (true, predicted), share in np.ndenumerate(shares):
            style = {"color": "white"} if share > DARK_SHARE else {"alpha": 1.0 if share else 0.4}
            count = f"{confusion[true, predicted]}"
            axes.text(predicted, true, count, ha="center", va="center", fontsize="small", **style)
    return figure


def plot_average_precision(precision: np.ndarray, labels: Sequence[str], path: Path) -> None:
    """Draws each class' average precision as a bar in a PNG file, in the place of an older one.

    Args:
        precision: floats (classes,) in [0, 1], not-a-number where there is none, as in `MultiLabelScores`.
        labels: the class names.
        path: the file.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    figure = precision_figure(precision, labels)
    with finished_file(path, overwrite=True) as partial:
        figure.savefig(partial, dpi=120)


def precision_figure(precision: np.ndarray, labels: Sequence[str]) -> Any:
    """Average precisions as matplotlib's `Figure`; the arguments are those of `plot_average_precision`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, min(2 + 0.25 * len(labels), 16)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(labels)), precision)
    mean = np.nanmean(precision)
    axes.axvline(mean, color="tab:green", linestyle=":")
    axes.set(xlim=(0, 1.12), xlabel="average precision", title=f"mean average precision {mean:.1%}")
    axes.invert_yaxis()
    if len(labels) <= CLASSES_NAMED:
        axes.bar_label(bars, [f"{value:.2f}" for value in precision], padding=4, fontsize="small")
        axes.set_yticks(range(len(labels)), map(_shortened, labels), parse_math=False)
    return figure


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"
