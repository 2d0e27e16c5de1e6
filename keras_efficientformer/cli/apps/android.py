"""The command `efficientformer app android`: writes a project for Android Studio. Room: cli/apps."""

import dataclasses
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
from keras_efficientformer.deploy.tflite.modes import MODES
from keras_efficientformer.errors import require_installed


def android_command(
    model: PhoneModel,
    folder: ProjectFolder,
    name: AppName = None,
    app_id: Annotated[str | None, typer.Option("--id", help="Application id, as com.example.birds.")] = None,
    labels: LabelsFile = None,
    size: Size = None,
    crop: Crop = None,
    quantize: Annotated[str | None, choice(MODES, "Quantization. Default: float16.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of images to measure ranges and errors on. Default: noise.")
    ] = None,
    max_difference: MaxDifference = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a project for Android Studio: an app that classifies or segments photos and what the camera sees."""
    check_inputs(labels, calibration)
    require_installed("ai_edge_litert", "An app for Android", "litert")
    for module in MODES[quantize].modules if quantize else ():
        require_installed(module, "TFLite export", "litert")
    network, own_crop = open_for(".tflite", model, folder, size, overwrite)
    with errors.status("Writing the project"):
        app = apps.write_android_app(
            network,
            folder,
            name=name,
            app_id=app_id,
            labels=labels,
            crop=crop or own_crop,
            quantize=quantize,
            calibration=calibration,
            max_difference=max_difference,
            overwrite=overwrite,
        )
    print_facts(dataclasses.asdict(app), as_json, "App")
    say(f"Open {folder} in Android Studio, connect a phone and press Run.")
