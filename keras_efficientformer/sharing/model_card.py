"""Writes a model's card: what it is, how to use it, how good it is and how it was made. Room: sharing."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_efficientformer.conversion.bindings import architecture_of
from keras_efficientformer.deploy.report import short
from keras_efficientformer.layers.image_normalization import normalization_of
from keras_efficientformer.layers.names import HEADS, PREDICTIONS
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.pages.render import render_text
from keras_efficientformer.sharing.finished_runs import FinishedRun
from keras_efficientformer.sharing.timm_config import timm_reads
from keras_efficientformer.variants import class_name, variant_name

TASK = "image-classification"
NAMES_IN_CARD = 1000
WORST_CLASSES = 5
# {score in a report: (its name in words, its type in a card's metadata)}
METRICS = {
    "top1": ("top-1 accuracy", "accuracy"),
    "top5": ("top-5 accuracy", "top_5_accuracy"),
    "mean_average_precision": ("mean average precision", "mean_average_precision"),
    "accuracy": ("label accuracy", "accuracy"),
}
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&!])")


@dataclass(frozen=True)
class CardFacts:
    """What a card is written of.

    Attributes:
        repo_id: the repository, "owner/name".
        model: the classifier.
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
    layers = {layer.name: layer for layer in model.layers}
    normalization, labels = normalization_of(model), labels_of(model)
    classes = int(layers[HEADS[0]].units)
    return render_text(
        "model_card.jinja",
        metadata=_metadata(facts).to_yaml(),
        name=facts.repo_id.partition("/")[2],
        repo_id=facts.repo_id,
        network=_network(model),
        size=f"{height}x{width}",
        channels=channels,
        classes=classes,
        labels=[escaped(label) for label in (labels or ())[:NAMES_IN_CARD]],
        more_labels=max(0, len(labels or ()) - NAMES_IN_CARD),
        parameters=model.count_params(),
        sigmoid=layers[PREDICTIONS[0]].activation is keras.activations.sigmoid,
        normalization=normalization,
        timm=timm_reads(model),
        run=run,
        data=escaped(run.data) if run and run.data else None,
        scores=[(METRICS[name][0], value) for name, value in _scores(facts).items()],
        worst=_worst(run),
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

    run, scores = facts.run, _scores(facts)
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type="imagefolder",
            dataset_name=(run and run.data) or "validation images",
            dataset_split="validation",
            metric_type=METRICS[name][1],
            metric_name=METRICS[name][0],
            metric_value=value,
        )
        for name, value in scores.items()
    ]
    return ModelCardData(
        license=facts.license,
        # The hub's button shows how timm loads it; what timm does not read would not load so.
        library_name="timm" if timm_reads(facts.model) else "keras-efficientformer",
        pipeline_tag=TASK,
        tags=[
            TASK,
            "efficientformer",
            "keras",
            "keras-efficientformer",
            *sorted({f.suffix[1:] for f in facts.exports}),
        ],
        base_model=run.base if run else None,
        metrics=sorted({METRICS[name][1] for name in scores}) or None,
        model_name=facts.repo_id.partition("/")[2],
        eval_results=results or None,
    )


def _network(model: keras.Model) -> str:
    architecture = architecture_of(model)
    variant = variant_name(architecture)
    return f"{class_name(variant)}, {architecture.paper}" if variant else f"{architecture.paper} with {architecture}"


def _scores(facts: CardFacts) -> dict[str, float]:
    """The scores of a run's report that are shares and say something."""
    found = (facts.run and facts.run.scores) or {}
    # The five best of five classes are always all of them.
    left_out = {"top5"} if facts.model.outputs[0].shape[-1] <= 5 else set()
    return {name: found[name] for name in METRICS if name in found and name not in left_out}


def _worst(run: FinishedRun | None) -> list[tuple[str, float, int]]:
    """(class, its score, images) of the classes that are found worst."""
    rows = ((run and run.scores) or {}).get("classes", [])
    measure = "average_precision" if rows and "average_precision" in rows[0] else "top1"
    rows = sorted((row for row in rows if row[measure] is not None), key=lambda row: row[measure])
    return [(escaped(row["label"]), row[measure], row["images"]) for row in rows[:WORST_CLASSES]]


def _worst_difference(report: dict[str, Any]) -> float:
    """`ExportReport.worst`, relative, of a report that was read."""
    return max(row["max"] / max(1.0, row["largest"]) for row in report["differences"])
