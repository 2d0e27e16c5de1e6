"""Writes a model's card: what it is, how to use it, how good it is and how it was made. Room: sharing."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_efficientformer.conversion.bindings import architecture_of
from keras_efficientformer.deploy.report import short
from keras_efficientformer.layers.image_normalization import normalization_of
from keras_efficientformer.layers.names import PREDICTIONS
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.pages.render import render_text
from keras_efficientformer.segmentation.decoder import backbone_of, is_segmenter
from keras_efficientformer.sharing.finished_runs import FinishedRun
from keras_efficientformer.sharing.timm_config import timm_reads
from keras_efficientformer.variants import class_name, variant_name

# The hub's names of what a model does.
TASK, PIXEL_TASK = "image-classification", "image-segmentation"
NAMES_IN_CARD = 1000
WORST_CLASSES = 5
# {score in a report: (its name in words, its type in a card's metadata)}
METRICS = {
    "top1": ("top-1 accuracy", "accuracy"),
    "top5": ("top-5 accuracy", "top_5_accuracy"),
    "mean_average_precision": ("mean average precision", "mean_average_precision"),
    "accuracy": ("label accuracy", "accuracy"),
}
PIXEL_METRICS = {"mean_iou": ("mean IoU", "mean_iou"), "accuracy": ("pixel accuracy", "accuracy")}
# {what rows of a report's classes hold: how a card's table heads it}, the first that they hold is shown.
CLASS_MEASURES = {"iou": "IoU", "average_precision": "average precision", "top1": "right"}
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&!])")


@dataclass(frozen=True)
class CardFacts:
    """What a card is written of.

    Attributes:
        repo_id: the repository, "owner/name".
        model: the classifier or segmentation model.
        run: that made it; None where that is not known.
        exports: {exported file: its report}.
        pictures: names of the pictures in the repository.
        license: the hub's name of one, e.g. "apache-2.0"; None states none.
    """

    repo_id: str
    model: keras.Model
    run: FinishedRun | None
    exports: dict[Path, dict[str, Any]]
    pictures: tuple[str, ...]
    license: str | None


def model_card(facts: CardFacts) -> str:
    """The text of a repository's README.md: YAML metadata and Markdown."""
    model, run = facts.model, facts.run
    height, width, channels = model.inputs[0].shape[1:]
    masks = is_segmenter(model)
    normalization, labels = normalization_of(model), labels_of(model)
    measure, worst = _worst(run)
    return render_text(
        "model_card.jinja",
        metadata=_metadata(facts).to_yaml(),
        name=facts.repo_id.partition("/")[2],
        repo_id=facts.repo_id,
        network=_network(model),
        size=f"{height}x{width}",
        channels=channels,
        masks=f"{model.outputs[0].shape[1]}x{model.outputs[0].shape[2]}" if masks else None,
        classes=model.outputs[0].shape[-1],
        labels=[escaped(label) for label in (labels or ())[:NAMES_IN_CARD]],
        more_labels=max(0, len(labels or ()) - NAMES_IN_CARD),
        parameters=model.count_params(),
        sigmoid=not masks and model.get_layer(PREDICTIONS[0]).activation is keras.activations.sigmoid,
        normalization=normalization,
        timm=timm_reads(model),
        run=run,
        data=escaped(run.data) if run and run.data else None,
        scores=[(_metrics(model)[name][0], value) for name, value in _scores(facts).items()],
        measure=measure,
        worst=worst,
        exports=[
            (file.name, report["mode"], report["size"] / 1e6, report["requires"], short(_worst_difference(report)))
            for file, report in facts.exports.items()
        ],
        pictures=facts.pictures,
        license=facts.license,
    )


def escaped(text: str) -> str:
    """A name as Markdown shows it, whatever signs it has, also in a table."""
    return MARKDOWN.sub(r"\\\1", text)


def _metadata(facts: CardFacts) -> Any:
    """The card's YAML as huggingface_hub's `ModelCardData`."""
    from huggingface_hub import EvalResult, ModelCardData

    run, scores, metrics = facts.run, _scores(facts), _metrics(facts.model)
    task = PIXEL_TASK if is_segmenter(facts.model) else TASK
    results = [
        EvalResult(
            task_type=task,
            dataset_type="imagefolder",
            dataset_name=(run and run.data) or "validation images",
            dataset_split="validation",
            metric_type=metrics[name][1],
            metric_name=metrics[name][0],
            metric_value=value,
        )
        for name, value in scores.items()
    ]
    return ModelCardData(
        license=facts.license,
        # The hub's button shows how timm loads it; what timm does not read would not load so.
        library_name="timm" if timm_reads(facts.model) else "keras-efficientformer",
        pipeline_tag=task,
        tags=[
            task,
            "efficientformer",
            "keras",
            "keras-efficientformer",
            *sorted({f.suffix[1:] for f in facts.exports}),
        ],
        base_model=run.base if run else None,
        metrics=sorted({metrics[name][1] for name in scores}) or None,
        model_name=facts.repo_id.partition("/")[2],
        eval_results=results or None,
    )


def _network(model: keras.Model) -> str:
    architecture = architecture_of(backbone_of(model) if is_segmenter(model) else model)
    variant = variant_name(architecture)
    return f"{class_name(variant)}, {architecture.paper}" if variant else f"{architecture.paper} with {architecture}"


def _metrics(model: keras.Model) -> dict[str, tuple[str, str]]:
    return PIXEL_METRICS if is_segmenter(model) else METRICS


def _scores(facts: CardFacts) -> dict[str, float]:
    """The scores of a run's report that are shares and say something."""
    found = (facts.run and facts.run.scores) or {}
    # The five best of five classes are always all of them.
    left_out = {"top5"} if facts.model.outputs[0].shape[-1] <= 5 else set()
    return {name: found[name] for name in _metrics(facts.model) if name in found and name not in left_out}


def _worst(run: FinishedRun | None) -> tuple[str, list[tuple[str, float, int]]]:
    """What classes are measured by, and (class, its score, images or pixels) of those that are found worst."""
    rows = ((run and run.scores) or {}).get("classes", [])
    if not rows:
        return "", []
    measure = next(measure for measure in CLASS_MEASURES if measure in rows[0])
    rows = sorted((row for row in rows if row[measure] is not None), key=lambda row: row[measure])
    number = "pixels" if "pixels" in rows[0] else "images"
    found = [(escaped(row["label"]), row[measure], row[number]) for row in rows[:WORST_CLASSES]]
    return CLASS_MEASURES[measure], found


def _worst_difference(report: dict[str, Any]) -> float:
    """`ExportReport.worst`, relative, of a report that was read."""
    # Reports that older versions wrote know of one input size.
    rows = itertools.chain(report["differences"], *(size["differences"] for size in report.get("further_sizes", ())))
    return max(row["max"] / max(1.0, row["largest"]) for row in rows)
