"""Gathers what a fine-tuning run's page shows, and writes it. Room: training."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_efficientformer.files import size_of
from keras_efficientformer.pages.pictures import jpeg_uri, svg
from keras_efficientformer.pages.render import write_page
from keras_efficientformer.training.config import FineTuneConfig
from keras_efficientformer.training.data.batches import Batches, ValidationImages
from keras_efficientformer.training.plots import (
    TITLES,
    confusion_figure,
    curves_of,
    draw_curve,
    loss_remark,
    precision_figure,
)
from keras_efficientformer.training.scores import AnyScores, MaskScores, MultiLabelScores
from keras_efficientformer.training.worst_images import JudgedImage, WorstImages, WorstMasks

ROWS_SHOWN = 10


def write_run_page(
    folder: Path,
    report: dict[str, Any],
    config: FineTuneConfig,
    scores: AnyScores | None,
    images: WorstImages | WorstMasks | None,
    validation: Batches | None,
) -> None:
    """Writes `report.html` into a run's folder, in the place of an older one.

    Args:
        folder: of the run, which holds the best model.
        report: what `report.json` holds.
        config: the run's settings.
        scores: of the best model on the validation images; None where there are none.
        images: those it was worst at.
        validation: where they came from; a folder's images have names.

    Raises:
        OSError: it cannot be written.
    """
    history, best, labels = report["history"], report["best_epoch"], report["labels"]
    names = validation.names if isinstance(validation, ValidationImages) else ()
    shown = partial(_shown, labels=labels, names=names)
    write_page(
        "run.html",
        folder / "report.html",
        overwrite=True,
        title=f"Fine-tuned on {len(labels)} classes",
        verdict=_verdict(report, scores),
        classes=len(labels),
        counted=_counted(scores),
        summary=_summary(folder, report, scores),
        curves=[svg(partial(_curve, name, history, best), f"{TITLES[name]} by epoch") for name in curves_of(history)],
        remark=loss_remark(config),
        answers=_answers(scores, labels),
        mistakes=None
        if scores is None or isinstance(scores, MultiLabelScores)
        else _mistakes(scores.confusion, labels),
        worst_classes=scores.worst(labels)[:ROWS_SHOWN] if scores else [],
        confident=[shown(image) for image in images.confident] if isinstance(images, WorstImages) else None,
        worst=[shown(image) for image in images.worst] if images else [],
        settings=config.to_dict(),
        skipped=report["skipped"],
    )


def _verdict(report: dict[str, Any], scores: AnyScores | None) -> str:
    epochs = f"best epoch {report['best_epoch']} of {len(report['history'])}"
    if scores is None:
        return f"Not validated: the model is that of the last epoch, {epochs}"
    if isinstance(scores, MaskScores):
        return f"{scores.mean_iou:.2%} mean IoU on the validation images, {epochs}"
    if isinstance(scores, MultiLabelScores):
        return f"{scores.mean_average_precision:.2%} mean average precision on the validation images, {epochs}"
    right, total = int(np.trace(scores.confusion)), int(scores.confusion.sum())
    return f"{scores.top1:.2%} of the validation images are right: {right:,} of {total:,}, {epochs}"


def _summary(folder: Path, report: dict[str, Any], scores: AnyScores | None) -> dict[str, str]:
    seconds = sum(row["seconds"] for row in report["history"])
    rows = {
        "model": f"{report['model']}, {size_of(folder / report['model']) / 1e6:.1f} MB",
        "classes": ", ".join(report["labels"][:ROWS_SHOWN]) + (", ..." if len(report["labels"]) > ROWS_SHOWN else ""),
        "time": f"{seconds / 60:.1f} min on {keras.backend.backend()}",
    }
    if scores:
        shares = [f"{name} {share:.2%}" for name, share in scores.summary.items()]
        rows["validation"] = ", ".join([*shares, *([] if scores.loss is None else [f"loss {scores.loss:.4g}"])])
    return rows


def _counted(scores: AnyScores | None) -> str:
    """What a confusion matrix counts."""
    return "pixels" if isinstance(scores, MaskScores) else "images"


def _curve(name: str, history: Sequence[dict[str, float]], best_epoch: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 3.4), layout="constrained")
    draw_curve(figure.subplots(), name, history, best_epoch)
    return figure


def _answers(scores: AnyScores | None, labels: Sequence[str]) -> tuple[str, Any] | None:
    """What the picture of the answers is called, and the picture."""
    if scores is None:
        return None
    if isinstance(scores, MultiLabelScores):
        return "Average precision", svg(
            partial(precision_figure, scores.average_precision, labels), "average precision"
        )
    return "Confusion matrix", svg(
        partial(confusion_figure, scores.confusion, labels, _counted(scores)), "confusion matrix"
    )


def _mistakes(confusion: np.ndarray, labels: Sequence[str]) -> list[tuple[str, str, int]]:
    """(true, predicted, images) of the pairs that are taken for each other most often."""
    counts = confusion * (1 - np.eye(len(labels), dtype="int64"))
    order = np.argsort(-counts, axis=None, kind="stable")[:ROWS_SHOWN]
    places = np.transpose(np.unravel_index(order, counts.shape))
    return [(labels[true], labels[found], int(counts[true, found])) for true, found in places if counts[true, found]]


def _shown(image: JudgedImage, labels: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """What a page says of an image."""

    def words(classes: Sequence[tuple[int, float]]) -> str:
        return ", ".join(f"{labels[place]} {score:.1%}" for place, score in classes) or "none"

    return {
        "uri": jpeg_uri(image.pixels),
        "name": names[image.place] if names else f"image {image.place + 1}",
        "predicted": words(image.predicted),
        "true": words(image.true),
    }
