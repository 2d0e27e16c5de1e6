"""The command `efficientformer app web`: writes a page that runs exported files in a browser. Room: cli/apps."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import typer

from keras_efficientformer import apps
from keras_efficientformer.cli.options import Json, LabelsFile, Overwrite, check_inputs, errors, print_facts, say
from keras_efficientformer.imagenet import CROP


def web_command(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL", help=".tflite files, between which the page offers the choice."),
    ],
    folder: Annotated[Path, typer.Argument(help="Folder to make, for any web server.")],
    labels: LabelsFile = None,
    crop: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the resized image's side that classifiers see.")
    ] = CROP,
    modules: Annotated[
        Path | None,
        typer.Option("--node-modules", help="Folder with LiteRT.js, as npm ci fills it. Default: npm fetches it now."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a page that classifies or segments photos, folders and the camera's pictures in a browser, offline."""
    check_inputs(labels, modules)
    with errors.status("Writing the page"):
        app = apps.write_web_app(models, folder, labels, crop, modules, overwrite)
    print_facts(dataclasses.asdict(app), as_json, "Page")
    say(f"Serve it: python -m http.server --directory {shlex.quote(str(folder))}, and open http://localhost:8000")
