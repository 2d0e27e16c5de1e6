"""What the commands share: consoles, options that mean the same everywhere, and how they open a model. Room: cli."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import track as progress_bar
from rich.table import Table
from rich.text import Text

from keras_efficientformer import models
from keras_efficientformer.cli.quiet import import_coremltools_alone, import_keras_alone
from keras_efficientformer.conversion.formats import check_torch_for
from keras_efficientformer.errors import require_installed
from keras_efficientformer.files import check_target
from keras_efficientformer.pages.render import require_page_tools
from keras_efficientformer.reporting import facts_table, in_words
from keras_efficientformer.training.config import BEST_FILE

if TYPE_CHECKING:  # its import takes seconds
    import keras

    from keras_efficientformer.training.scores import AnyScores

# Nothing is read as markup, because paths, shapes and class names are full of brackets.
output = Console(markup=False, emoji=False)
errors = Console(stderr=True)

WORST_SHOWN = 10
# What running a file of that suffix needs, as for `require`.
RUNTIMES = {
    ".tflite": ("ai_edge_litert", "Running a .tflite file", "litert"),
    ".mlpackage": ("coremltools", "Reading a Core ML package", "coreml"),
}

Tracked = TypeVar("Tracked")

MODEL_NAMES = "l1, l3, l7, v2_s0, v2_s1, v2_s2, v2_l (ImageNet, downloaded), l1:imagenet-300, hf://owner/name"
KERAS_MODEL = f"{MODEL_NAMES}, a .keras or checkpoint file."
ANY_MODEL = f"{MODEL_NAMES}, a .keras, checkpoint, .tflite or .mlpackage file."


def check_inputs(*inputs: str | Path | None) -> None:
    """Raises for the name of a model that stands for none or for a folder of others, for a path that does not exist,
    and for a package that is needed to read a model's file and not installed, before anything is done.

    Args:
        inputs: names of models as `str`, files and folders as `Path`; None is passed over.
    """
    for given in inputs:
        if isinstance(given, str):
            source = models.model_source(given)
            if isinstance(source, Path):
                _check_no_folder(source)
                check_torch_for(source)
            if isinstance(source, Path) and source.suffix in RUNTIMES:
                require_installed(*RUNTIMES[source.suffix])
        elif given is not None and not given.exists():
            raise FileNotFoundError(f"{given} does not exist.")


def _check_no_folder(model: Path) -> None:
    if model.is_dir() and model.suffix != ".mlpackage":
        best = model / BEST_FILE
        hint = f", here {best}" if best.exists() else ""
        raise IsADirectoryError(f"{model} is a folder: give the path of a model's file{hint}.")


Model = Annotated[str, typer.Argument(metavar="MODEL", help=KERAS_MODEL, show_default=True)]
ModelOption = Annotated[str, typer.Option(metavar="MODEL", help=ANY_MODEL)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]


def image_sides(text: str) -> tuple[int, int]:
    """(height, width) of "224" or "160x224", in pixels."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise typer.BadParameter(f"A size should be a number of pixels or HEIGHTxWIDTH. Received: {text}")
    return int(sides[0]), int(sides[-1])


# `image_sides` of it, or None.
Size = Annotated[
    Any,
    typer.Option(
        parser=image_sides,
        metavar="<pixels>",
        help="Input size in pixels, 224 or 160x224 (height x width). Default: the model's own.",
    ),
]


def several_sizes(text: str) -> list[tuple[int, int]]:
    """[(height, width), ...] of "224,256,384x288", in pixels."""
    return [image_sides(size.strip()) for size in text.split(",")]


# `several_sizes` of it, or None.
InputSizes = Annotated[
    Any,
    typer.Option(
        parser=several_sizes,
        metavar="<pixels>",
        help="Several input sizes in one file, e.g. 224,256,384x288, the model's own among them. The first one opens.",
    ),
]
Crop = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=1.0,
        help="Share of the resized image's side that is kept. Default: the one that the model's weights were "
        "measured with or the config.json beside them, timm's or a run's, states, else 0.95.",
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out, and end with 0 nevertheless.")]
Page = Annotated[Path | None, typer.Option(help="Also write an HTML page of the export. It runs the file once more.")]
FeatureMaps = Annotated[bool, typer.Option("--feature-maps", help="Also output the four stages.")]
MaxDifference = Annotated[float | None, typer.Option(help="Write nothing beyond it. Default: the mode's.")]
MaxDrop = Annotated[
    float | None,
    typer.Option(min=0, max=100, help="Of auto: percentage of the images whose class may change. Default: 1."),
]
Masks = Annotated[
    Path | None,
    typer.Option(help="Folder of masks, PNG files of class numbers (255: ignored) or colours, called as the images."),
]
PaletteFile = Annotated[
    Path | None,
    typer.Option(help="Text file, a class' name and its colour in the masks in each line: sky #87ceeb."),
]
LabelsFile = Annotated[
    Path | None,
    typer.Option(help="Text file, a class name in each line. Default: the model's own names."),
]


def choice(names: Iterable[str | int], meaning: str, *flags: str) -> Any:
    """An option whose value is one of these; `flags` are its names where they are not the parameter's."""
    values = {str(name): name for name in names}

    def parse(text: str | int) -> str | int:
        if str(text) not in values:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(values)}.")
        return values[str(text)]

    return typer.Option(*flags, parser=parse, metavar="<choice>", help=f"{meaning} One of {', '.join(values)}.")


def open_keras(source: str, size: tuple[int, int] | None) -> "keras.Model":
    """The model that a command's argument names, at the input size (height, width); None means its own."""
    import_keras_alone()
    from keras_efficientformer.opening import open_model  # it imports Keras, which takes seconds

    return open_model(source, size, progress=partial(track, description="Loading weights"))


def prepare_for(source: str) -> None:
    """Imports what a model's file needs without what that would bring along."""
    suffix = Path(source).suffix
    if suffix == ".mlpackage":
        import_coremltools_alone()
    elif suffix != ".tflite":
        import_keras_alone()


def check_free(path: Path, overwrite: bool) -> None:
    """Raises FileExistsError for a file or package that a command would have to replace, before it does anything."""
    if path.exists() and path.suffix and not overwrite:
        raise FileExistsError(f"{path} exists. Choose another name, or pass --overwrite.")


def check_page(page: Path | None, extra: str, overwrite: bool) -> None:
    """Checks that --page can be made and have its name, before a command does anything.

    Args:
        page: the HTML file; None where it is not asked for.
        extra: the extra of this package that brings what it is made with.
        overwrite: whether an existing file may be replaced.
    """
    if page is not None:
        require_page_tools(extra)
        check_target(page, overwrite)


def say(line: str) -> None:
    """Prints a line on standard error as it is: paths and class names are full of brackets."""
    errors.print(line, markup=False, highlight=False, soft_wrap=True)


def track(sequence: Iterable[Tracked], description: str) -> Iterable[Tracked]:
    """The same items, with a progress bar on standard error where that is a terminal."""
    return progress_bar(sequence, description, console=errors, transient=True, disable=not errors.is_terminal)


def left_out(skipped: Mapping[str, str], other_files: Mapping[str, int]) -> str:
    """One line on the files of a folder that were left out."""
    others = ", ".join(f"{number} {suffix or 'without a suffix'}" for suffix, number in list(other_files.items())[:5])
    total = sum(other_files.values())
    return f"{len(skipped)} unreadable images, {total} files that are none" + (f" ({others})" if others else "")


def worst_classes(scores: "AnyScores", labels: Sequence[str]) -> Table:
    """The classes that are found worst, of those with images, each with its scores in words."""
    found = scores.worst(labels)
    table = facts_table(f"Worst classes: {len(found[:WORST_SHOWN])} of {len(found)}")
    for label, words in found[:WORST_SHOWN]:
        table.add_row(Text(label), words)
    return table


def print_facts(report: dict[str, Any], as_json: bool, title: str) -> None:
    """Prints a command's report as a table, or as JSON."""
    if as_json:
        print(json.dumps(report, indent=2))
        return
    table = facts_table(title)
    for name, value in report.items():
        table.add_row(name.replace("_", " "), in_words(name, value))
    output.print(table)
