"""The command `efficientformer finetune`: its settings' options are made from `FineTuneConfig`. Room: cli."""

import contextlib
import dataclasses
import inspect
import json
import os
import shlex
import sys
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group

from keras_efficientformer import models, training
from keras_efficientformer.cli.options import (
    ANY_MODEL,
    KERAS_MODEL,
    Json,
    LabelsFile,
    Masks,
    PaletteFile,
    check_inputs,
    choice,
    errors,
    image_sides,
    left_out,
    say,
    track,
    worst_classes,
)
from keras_efficientformer.cli.options import output as console
from keras_efficientformer.cli.quiet import import_keras_alone
from keras_efficientformer.pages.render import require_page_tools
from keras_efficientformer.reporting import facts_table
from keras_efficientformer.training.config import CHOICES, CONFIG_FILE, FineTuneConfig, check_nameable, read_run

DEFAULT_MODEL = "l1"
# Arguments of `finetune` that are paths where they come from the command line.
PATHS = ("data", "validation", "masks", "palette", "labels")
# What a run leaves for people to look at, of which some kinds of runs have other files.
RESULTS = ("report.html", "report.json", "curves.png", "confusion.png", "average_precision.png")
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
    output: Annotated[Path, typer.Option(help="The run's folder, which is made.")],
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A subfolder of images for each class; or train and val with those; or a CSV; or, with --masks, any. "
            "With --resume the run's."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help=f"{KERAS_MODEL} Default: {DEFAULT_MODEL}.")] = None,
    config: Annotated[
        str | None, typer.Option(help=r"TOML file with a table \[finetune], or imagenet: the paper's recipe.")
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="Another folder, or CSV, of the same classes. Default: val, or a share."),
    ] = None,
    masks: Masks = None,
    palette: PaletteFile = None,
    labels: LabelsFile = None,
    teacher: Annotated[str | None, typer.Option(metavar="MODEL", help=f"Model to distil from: {ANY_MODEL}")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder: it knows all other options.")
    ] = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Fine-tune a model on a folder of images."""
    given: dict[str, Any] = {
        "data": folder,
        "model": model,
        "validation": validation,
        "masks": masks,
        "palette": palette,
        "labels": labels,
        "teacher": teacher,
    }
    check_inputs(*given.values())
    require_page_tools("train")
    changes = {name: value for name, value in settings.items() if value is not None}
    if folder is None and not resume:
        raise typer.BadParameter("A folder of images is needed, or --resume and the run's folder.")
    if resume and (output / CONFIG_FILE).exists():
        arguments, chosen = _of_run(output, given, config, changes)
        check_inputs(*arguments.values())
    else:
        chosen = FineTuneConfig.from_file(config, **changes) if config else FineTuneConfig(**changes)
        arguments = given | {"model": model or DEFAULT_MODEL}
    if arguments["data"] is None:
        read_run(output)  # it says what is missing
    import_keras_alone()
    try:
        # Keras shows its progress on standard output, where the report goes alone.
        with contextlib.redirect_stdout(sys.stderr):
            report = training.finetune(
                arguments.pop("model"),
                arguments.pop("data"),
                output,
                **arguments,
                config=chosen,
                resume=resume,
                verbose=0 if as_json else 1 if errors.is_terminal else 2,
                track=partial(track, description="Checking images"),
            )
    except KeyboardInterrupt:
        if (output / CONFIG_FILE).exists():
            say(f"Stopped. Go on with: efficientformer finetune --resume --output {shlex.quote(str(output))}")
        raise
    print(json.dumps(report.to_dict(), indent=2)) if as_json else console.print(_finetune_table(report, output))


def _of_run(
    output: Path, given: dict[str, Any], config: str | None, changes: dict[str, Any]
) -> tuple[dict[str, Any], FineTuneConfig]:
    """The arguments and settings that a run was started with.

    Raises:
        ValueError: an option is given that differs from them; the message names it.
    """
    saved, settings = read_run(output)
    check_nameable(output)
    if config:
        changes = dataclasses.asdict(FineTuneConfig.from_file(config, **changes))
    pairs = {name: (saved.get(name), value) for name, value in given.items() if value is not None}
    differing = {name: pair for name, pair in pairs.items() if not _is_same(*pair)}
    differing |= {
        name: (getattr(settings, name), value) for name, value in changes.items() if getattr(settings, name) != value
    }
    if differing:
        listed = ", ".join(f"{name} was {before}, is {now}" for name, (before, now) in differing.items())
        raise ValueError(
            f"The run in {output} cannot go on with other options: {listed}. Leave them out; --resume needs none."
        )
    # Paths, as the command line gives them; names of models stay text.
    paths = {name: value and Path(value) for name, value in saved.items() if name in PATHS}
    return saved | paths, settings


def _is_same(saved: str | None, given: str | Path) -> bool:
    """Whether both are one file, or name one model."""
    if saved is None:
        return False
    if os.path.realpath(saved) == os.path.realpath(given):
        return True
    return isinstance(given, str) and models.model_source(saved) == models.model_source(given)


def _finetune_table(report: "training.FineTuneReport", output: Path) -> Group:
    table = facts_table(f"Trained on {len(report.labels)} classes")
    table.add_row("best model", str(report.model))
    table.add_row("epoch", f"{report.best_epoch} of {len(report.history)}")
    if report.scores:
        for name, share in report.scores.summary.items():
            table.add_row(f"validation {name}", f"{share:.2%}")
    table.add_row("left out", left_out(report.skipped, report.other_files))
    written = [name for name in RESULTS if (output / name).exists()]
    table.add_row("more", ", ".join(str(output / name) for name in written))
    return Group(table, worst_classes(report.scores, report.labels)) if report.scores else Group(table)
