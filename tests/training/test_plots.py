"""The pictures of a run: what is drawn and said in them, and that nothing is cut off."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from keras_efficientformer.training import FineTuneConfig
from keras_efficientformer.training.plots import confusion_figure, draw_curve, loss_remark, plot_confusion, plot_curves

LONG = "a name that is so long that it would take the whole picture"


def history(epochs, validation=True):
    rows = [{"epoch": n, "loss": 2 / n, "accuracy": 1 - 1 / n, "learning_rate": 0.1 / n} for n in range(1, epochs + 1)]
    return [row | ({"val_loss": 1.5 / row["epoch"], "val_accuracy": 0.5} if validation else {}) for row in rows]


@pytest.mark.parametrize("epochs", [1, 3, 30])
def test_curves_have_whole_epochs_and_the_best_one(epochs):
    figure = Figure()
    axes = figure.subplots()
    draw_curve(axes, "loss", history(epochs), best_epoch=1)
    figure.draw_without_rendering()
    shown = [label.get_text() for label in axes.get_xticklabels()]
    ticks = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    assert ticks
    assert all(tick == int(tick) and 1 <= tick <= epochs for tick in ticks)
    assert all("." not in text for text in shown)
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == ["best epoch: 1", "training", "validation"]
    assert list(lines["validation"].get_ydata()) == [1.5 / n for n in range(1, epochs + 1)]
    assert list(lines["best epoch: 1"].get_xdata()) == [1, 1]


def test_curves_of_a_run_without_validation(tmp_path):
    figure = Figure()
    axes = figure.subplots()
    draw_curve(axes, "learning_rate", history(4, validation=False), best_epoch=4)
    assert list(axes.get_lines()[-1].get_ydata()) == [0.1 / n for n in (1, 2, 3, 4)]
    plot_curves(history(4, validation=False), 4, FineTuneConfig(), tmp_path / "curves.png")
    assert min(Image.open(tmp_path / "curves.png").size) > 300


def test_the_remark_names_what_makes_training_harder():
    plain = {"min_crop": 1.0, "flip": False, "label_smoothing": 0.0, "drop_path": 0.0}
    assert "made harder" not in loss_remark(FineTuneConfig(**plain))
    assert "harder by random flips, label smoothing of 0.2, stochastic depth of up to 0.3;" in loss_remark(
        FineTuneConfig(**plain | {"flip": True, "label_smoothing": 0.2, "drop_path": 0.3})
    )
    assert "by MixUp, CutMix, class weights;" in loss_remark(
        FineTuneConfig(**plain, mixup=0.2, cutmix=0.5, class_weight="balanced")
    )


@pytest.mark.parametrize("classes", [2, 20, 21, 41])
def test_confusion_matrix(classes):
    confusion = np.arange(classes**2).reshape(classes, classes)
    labels = [LONG, *(f"${n}$" for n in range(1, classes))]  # dollars are no formulas
    figure = confusion_figure(confusion, labels)
    figure.draw_without_rendering()
    drawn, axes = figure.get_tightbbox(), figure.axes[0]  # in inches
    assert 0 <= drawn.x0 < drawn.x1 <= figure.get_figwidth(), "something is cut off"
    assert 0 <= drawn.y0 < drawn.y1 <= figure.get_figheight(), "something is cut off"
    labelled = [*axes.get_xticklabels(), axes.title, axes.xaxis.label, axes.yaxis.label]
    written = [text.get_text() for text in labelled]
    number = ", number of the class" if classes > 40 else ""
    assert {f"true{number}", f"predicted{number}"} <= set(written)
    right, total = np.trace(confusion), confusion.sum()
    assert f"Confusion matrix: {right:,} of {total:,} images right" in written
    assert [name in written for name in ("a name that is so long that i…", "$1$")] == [classes <= 40] * 2
    cells = {text.get_position()[::-1]: text.get_text() for text in axes.texts}
    assert cells == ({} if classes > 20 else {place: str(count) for place, count in np.ndenumerate(confusion)})


def test_confusion_matrix_as_a_file(tmp_path):
    plot_confusion(np.eye(2, dtype=int), ["a$_$b", "pay $^ now $"], tmp_path / "confusion.png")
    assert min(Image.open(tmp_path / "confusion.png").size) > 300
