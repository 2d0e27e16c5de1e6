"""The command `efficientformer finetune`: its settings' options are made from `FineTuneConfig`. Room: cli."""

import dataclasses
import inspect
import json
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from keras_efficientformer import classifiers, training
from keras_efficientformer.cli.options import (
    ANY_MODEL,
    KERAS_MODEL,
    Json,
    LabelsFile,
    check_inputs,
    choice,
    errors,
    image_sides,
    left_out,
    track,
    worst_classes,
)
from keras_efficientformer.cli.options import output as console
from keras_efficientformer.reporting import facts_table
from keras_efficientformer.training.config import CHOICES, FineTuneConfig

# What a run leaves for people to look at, of which some kinds of runs have other files.
RESULTS = ("report.json", "curves.png", "confusion.png", "average_precision.png")
# Options that have a shorter name too.
SHORT_NAMES = {"learning_rate": "--lr"}


def _setting_option(field: dataclasses.Field, text: str) -> inspect.Parameter:
    """The option of a setting; left out, it is None, and the setting is the file's or has its default."""
    shown = f"{text[0].upper()}{text[1:].rstrip('.')}. Default: {field.default}."
    names = [f"--{field.name.replace('_', '-')}", *([SHORT_NAMES[field.name]] if field.name in SHORT_NAMES else [])]
    kinds = set(typing.get_args(field.type)) or {field.type}
    kind: Any
    option: Any
    if field.name in CHOICES:
        kind, option = str, choice(CHOICES[field.name], shown)
    elif field.name == "size":
        kind, option = str, typer.Option(*names, parser=_sides, metavar="<pixels>", help=shown)
    elif bool in kinds:
        kind, option = bool, typer.Option(f"{names[0]}/--no-{names[0][2:]}", help=shown)
    else:
        kind, option = (float if float in kinds else int), typer.Option(*names, help=shown)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _sides(text: str) -> int | tuple[int, int]:
    """The side of --size 224, or (height, width) of 160x224."""
    height, width = image_sides(text)
    return height if height == width else (height, width)


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each setting of `FineTuneConfig`, which it gets as `**settings`."""
    descriptions = FineTuneConfig.descriptions()
    options = [_setting_option(field, descriptions[field.name]) for field in dataclasses.fields(FineTuneConfig)]
    own = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind != parameter.VAR_KEYWORD
    ]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    command.__signature__ = inspect.Signature([*parameters, *options])  # type: ignore[attr-defined]  # typer reads it
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in (*parameters, *options)}
    return command


@_with_settings
def finetune(
    folder: Annotated[
        Path, typer.Argument(help="A subfolder of images for each class; or train and val with those; or a CSV.")
    ],
    output: Annotated[Path, typer.Option(help="The run's folder, which is made.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help=KERAS_MODEL)] = "l1",
    config: Annotated[
        str | None, typer.Option(help=r"TOML file with a table \[finetune], or imagenet: the paper's recipe.")
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="Another folder, or CSV, of the same classes. Default: val, or a share."),
    ] = None,
    labels: LabelsFile = None,
    teacher: Annotated[str | None, typer.Option(metavar="MODEL", help=f"Model to distil from: {ANY_MODEL}")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Fine-tune a model on a folder of images."""
    changes = {name: value for name, value in settings.items() if value is not None}
    chosen = FineTuneConfig.from_file(config, **changes) if config else FineTuneConfig(**changes)
    check_inputs(model, folder, validation, labels, teacher)
    report = training.finetune(
        model,
        folder,
        output,
        validation=validation,
        labels=labels,
        teacher=_open_teacher(teacher),
        config=chosen,
        resume=resume,
        verbose=0 if as_json else 1 if errors.is_terminal else 2,
        track=partial(track, description="Checking images"),
    )
    print(json.dumps(report.to_dict(), indent=2)) if as_json else console.print(_finetune_table(report, output))


def _open_teacher(source: str | None) -> Any:
    if source is None:
        return None
    # It imports Keras, which takes seconds.
    from keras_efficientformer.training.teachers import resizing

    classifier = classifiers.open_classifier(source)
    return resizing(classifier.predict, classifier.size)


def _finetune_table(report: "training.FineTuneReport", output: Path) -> Table:
    table = facts_table(f"Trained on {len(report.labels)} classes")
    table.add_row("best model", str(report.model))
    table.add_row("epoch", f"{report.best_epoch} of {len(report.history)}")
    if report.scores:
        for name, share in report.scores.summary.items():
            table.add_row(f"validation {name}", f"{share:.2%}")
    table.add_row("left out", left_out(report.skipped, report.other_files))
    written = [name for name in RESULTS if (output / name).exists()]
    table.add_row("more", ", ".join(str(output / name) for name in written))
    if report.scores:
        for label, words in worst_classes(report.scores, report.labels):
            table.add_row(label, words)
    return table
