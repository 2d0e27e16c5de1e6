"""The command `efficientformer app ios`: writes a project for Xcode. Room: cli/apps."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import typer

from keras_efficientformer import apps
from keras_efficientformer.cli.apps.phones import AppName, PhoneModel, ProjectFolder, open_for
from keras_efficientformer.cli.options import (
    Crop,
    Json,
    LabelsFile,
    MaxDifference,
    Overwrite,
    Size,
    check_inputs,
    choice,
    errors,
    print_facts,
    say,
)
from keras_efficientformer.cli.quiet import import_coremltools_alone
from keras_efficientformer.deploy.coreml.modes import COMPRESSIONS
from keras_efficientformer.errors import require_installed


def ios_command(
    model: PhoneModel,
    folder: ProjectFolder,
    name: AppName = None,
    app_id: Annotated[str | None, typer.Option("--id", help="Bundle identifier, as com.example.birds.")] = None,
    labels: LabelsFile = None,
    size: Size = None,
    crop: Crop = None,
    compress: Annotated[str | None, choice(COMPRESSIONS, "Of the weights. Default: none.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of images to measure ranges and errors on. Default: noise.")
    ] = None,
    max_difference: MaxDifference = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a project for Xcode: an app that classifies or segments photos and what the camera sees."""
    check_inputs(labels, calibration)
    require_installed("coremltools", "An app for iOS", "coreml")
    import_coremltools_alone(compresses=compress not in (None, "none"))
    network, own_crop = open_for(".mlpackage", model, folder, size, overwrite)
    with errors.status("Writing the project"):
        app = apps.write_ios_app(
            network,
            folder,
            name=name,
            app_id=app_id,
            labels=labels,
            crop=crop or own_crop,
            compress=compress,
            calibration=calibration,
            max_difference=max_difference,
            overwrite=overwrite,
        )
    print_facts(dataclasses.asdict(app), as_json, "App")
    say(f"On a Mac: cd {shlex.quote(str(folder))} && xcodegen generate && open Sample.xcodeproj")
