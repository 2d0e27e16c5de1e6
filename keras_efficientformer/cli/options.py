"""What the commands share: consoles, options that mean the same everywhere, and how they open a model. Room: cli."""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import keras
import typer
from rich.console import Console
from rich.progress import track as progress_bar

from keras_efficientformer.models.opening import PUBLISHED, open_model
from keras_efficientformer.reporting import facts_table

# Nothing is read as markup, because paths, shapes and class names are full of brackets.
output = Console(markup=False, emoji=False)
errors = Console(stderr=True)

Tracked = TypeVar("Tracked")

Model = Annotated[
    str,
    typer.Argument(
        help=f"{', '.join(PUBLISHED)} (ImageNet, downloaded), l1:imagenet-300, a .keras or checkpoint file."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
Size = Annotated[str | None, typer.Option(help="Input size, 224 or 160x224 (height x width). Default: its own.")]
MaxDifference = Annotated[float | None, typer.Option(help="Write nothing beyond it. Default: the mode's.")]
LabelsFile = Annotated[Path | None, typer.Option(help="Text file with one class name in each line.")]


def choice(names: Iterable[str | int], meaning: str) -> Any:
    """An option whose value is one of these."""
    values = {str(name): name for name in names}

    def parse(text: str | int) -> str | int:
        if str(text) not in values:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(values)}.")
        return values[str(text)]

    return typer.Option(parser=parse, metavar="<choice>", help=f"{meaning} One of {', '.join(values)}.")


def open_keras(source: str, size: str | None) -> keras.Model:
    """The model that a command's argument names, at the input size `size`, "224" or "160x224"; None means its own."""
    return open_model(source, image_shape(size), progress=partial(track, description="Loading weights"))


def image_shape(size: str | None) -> tuple[int, int] | None:
    """(height, width) of --size, in pixels; None where it is not given. The channels are the model's."""
    return None if size is None else image_sides(size)


def image_sides(text: str) -> tuple[int, int]:
    """(height, width) of "224" or "160x224", in pixels."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise typer.BadParameter(f"--size should be a number of pixels or HEIGHTxWIDTH. Received: {text}")
    return int(sides[0]), int(sides[-1])


def track(sequence: Iterable[Tracked], description: str) -> Iterable[Tracked]:
    """The same items, with a progress bar on standard error where that is a terminal."""
    return progress_bar(sequence, description, console=errors, transient=True, disable=not errors.is_terminal)


def left_out(skipped: Mapping[str, str], other_files: Mapping[str, int]) -> str:
    """One line on the files of a folder that were left out."""
    others = ", ".join(f"{number} {suffix or 'without a suffix'}" for suffix, number in list(other_files.items())[:5])
    total = sum(other_files.values())
    return f"{len(skipped)} unreadable images, {total} files that are none" + (f" ({others})" if others else "")


def print_facts(report: dict[str, Any], as_json: bool, title: str) -> None:
    """Prints a command's report as a table, or as JSON."""
    if as_json:
        print(json.dumps(report, indent=2))
        return
    table = facts_table(title)
    for name, value in report.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
    output.print(table)
