"""The command `efficientformer predict`: classifies photographs. Room: cli/photographs."""

import csv
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Column, Table

from keras_efficientformer import classifiers, models
from keras_efficientformer.cli.options import (
    Crop,
    Json,
    LabelsFile,
    ModelOption,
    Overwrite,
    Size,
    SkipBad,
    check_inputs,
    output,
    prepare_for,
    say,
)
from keras_efficientformer.cli.photographs.annotated_copies import AnnotatedCopies
from keras_efficientformer.cli.photographs.batches import answers_of, read_batches, tell_bad
from keras_efficientformer.imagenet import decode_predictions, default_names, imagenet_labels
from keras_efficientformer.labels import class_names, labels_beside
from keras_efficientformer.layers.names import MASKS
from keras_efficientformer.photographs import find_photographs

# Of one class: its index "class", its "label", and its "wordnet_id" or None and "score", or, in a mask, its "share".
Answer = dict[str, Any]


def predict(
    images: Annotated[
        list[str], typer.Argument(help="Image files, folders, patterns such as '*.jpg', http(s) URLs, - for stdin.")
    ],
    model: ModelOption = "l1",
    top: Annotated[int, typer.Option(min=1, help="How many classes to print.")] = 5,
    labels: LabelsFile = None,
    size: Size = None,
    crop: Crop = None,
    skip_bad: SkipBad = False,
    save: Annotated[
        Path | None, typer.Option(help="Folder for copies of the images with label and score, or masks, drawn on them.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values, a line for each class.")] = False,
) -> None:
    """Classify photographs, or their pixels."""
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv are two ways to print the same: choose one.")
    if save is not None and save.exists() and not save.is_dir():
        raise NotADirectoryError(f"{save} is a file: --save needs a folder.")
    check_inputs(model, labels)
    photographs = find_photographs(images)
    copies = None if save is None else AnnotatedCopies(save, photographs, overwrite)
    names = class_names(labels) if labels else None
    prepare_for(model)
    network = classifiers.open_classifier(model, size)
    if network.output == "features":
        raise ValueError(f"{model} has no classifier: it gives features. Embeddings have pooling='avg'.")
    if network.output == "embedding" and (save is not None or not as_json):
        raise ValueError(
            f"{model} has no classifier: it gives embedding. With --json, and without --save, that of each image is "
            "printed."
        )
    names = names or network.labels or _names_beside(model)
    if network.output == MASKS:
        if crop is not None:
            raise ValueError(f"{model} gives masks of whole images: leave --crop out.")
    elif crop is None:
        crop = models.crop_of(model)
    results: dict[str, Any] = {}
    bad: dict[str, str] = {}
    for batch in read_batches(photographs, network.size, crop, bad, with_copies=save is not None):
        scores = answers_of(network, batch, model)
        rows = _rows(scores, network.output, top, names)
        for photograph, row, answer in zip(batch, rows, scores, strict=True):
            results[photograph.name] = row
            if copies is None or photograph.copy is None:
                continue
            if network.output == MASKS:
                copies.write_masked(photograph.name, photograph.copy, answer.argmax(-1), row, answer.shape[-1])
            else:
                copies.write(photograph.name, photograph.copy, row[0])
    if as_json:
        print(json.dumps(results, indent=2))
    elif as_csv:
        _print_csv(results)
    elif results:
        seen = f"images of {network.size[0]}x{network.size[1]} pixels" + (f", crop {crop:g}" if crop else "")
        output.print(_table(results, f"{model}, {seen}"))
    tell_bad(bad, skip_bad)


def _names_beside(model: str) -> tuple[str, ...] | None:
    """The names in a `labels.txt` beside the model's file, which has none itself."""
    labels = labels_beside(model)
    if labels is None:
        return None
    say(f"{model} does not say what its classes are called: {labels} does.")
    return class_names(labels)


def _rows(scores: np.ndarray, kind: str, top: int, names: tuple[str, ...] | None) -> list[Any]:
    """What is printed of each photograph; `kind` is `Classifier.output`."""
    if kind == "embedding":
        return scores.tolist()
    return [_shares(answer, top, names) for answer in scores] if kind == MASKS else _answers(scores, top, names)


def _shares(scores: np.ndarray, top: int, names: tuple[str, ...] | None) -> list[Answer]:
    """The classes that most pixels of an image are of; `scores` are (height, width, classes)."""
    classes = scores.shape[-1]
    names = class_names(names or tuple(map(str, range(classes))), classes)
    shares = np.bincount(scores.argmax(-1).ravel(), minlength=classes) / scores[..., 0].size
    order = [int(place) for place in np.argsort(-shares, kind="stable")[:top] if shares[place]]
    return [{"class": place, "label": names[place], "share": float(shares[place])} for place in order]


def _answers(scores: np.ndarray, top: int, names: tuple[str, ...] | None) -> list[list[Answer]]:
    """The classes with the highest scores of each image, as `decode_predictions` orders them."""
    classes = scores.shape[-1]
    ids, imagenet = zip(*imagenet_labels(), strict=True)
    names = class_names(names or default_names(classes), classes)
    return [
        [
            {
                "class": int(index),
                "label": name,
                "wordnet_id": ids[int(index)] if names == imagenet else None,
                "score": score,
            }
            for index, name, score in row
        ]
        for row in decode_predictions(scores, top=top, labels=names)
    ]


def _table(results: dict[str, list[Answer]], title: str) -> Table:
    number = next(key for answers in results.values() for key in ("share", "score") if key in answers[0])
    table = Table(Column("image", overflow="fold"), "class", Column(number, justify="right"), title=title)
    table.title_justify = "left"
    are_logits = any(not 0 <= answer[number] <= 1 for answers in results.values() for answer in answers)
    for name, answers in results.items():
        for index, answer in enumerate(answers):
            shown = f"{answer[number]:.3f}" if are_logits else f"{answer[number]:.1%}"
            last = index == len(answers) - 1
            table.add_row(name if index == 0 else "", answer["label"], shown, end_section=last)
    return table


def _print_csv(results: dict[str, list[Answer]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    is_masks = any("share" in answer for answers in results.values() for answer in answers)
    columns = ["share"] if is_masks else ["wordnet_id", "score"]
    writer.writerow(["image", "rank", "class", "label", *columns])
    for name, answers in results.items():
        for rank, answer in enumerate(answers, 1):
            writer.writerow([name, rank, *answer.values()])
