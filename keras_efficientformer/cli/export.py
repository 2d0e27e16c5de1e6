"""`efficientformer export tflite | coreml`."""

from pathlib import Path
from typing import Annotated

import typer

from keras_efficientformer.cli.shared import Json, Labels, Model, Overwrite, Size, choice, open_keras, output
from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.deploy.coreml import TARGETS
from keras_efficientformer.deploy.coreml_modes import COMPRESSIONS, PRECISIONS
from keras_efficientformer.deploy.tflite_modes import IO_TYPES, MODES

MaxDifference = Annotated[float | None, typer.Option(help="Write nothing beyond it. Default: the mode's.")]

export = typer.Typer(help="Write a file for phones, run it and compare it with the Keras model.", no_args_is_help=True)


@export.command("tflite")
def tflite_command(
    model: Model,
    path: Annotated[Path, typer.Argument(help="The .tflite file, or an existing folder.")],
    quantize: Annotated[str, choice(MODES, "Quantization.")] = "none",
    calibration: Annotated[Path | None, typer.Option(help="Folder of images to measure ranges and errors on.")] = None,
    labels: Labels = None,
    size: Size = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one inference.")] = 1,
    io: Annotated[str, choice(IO_TYPES, "Type of input and output.")] = "float32",
    preprocessing: Annotated[bool, typer.Option(help="Take raw RGB 0..255 and normalise inside.")] = True,
    max_difference: MaxDifference = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a TFLite file for Android."""
    report = export_tflite(
        open_keras(model, size),
        path,
        quantize=quantize,
        calibration=calibration,
        labels=labels,
        include_preprocessing=preprocessing,
        batch_size=batch_size,
        io=io,
        max_difference=max_difference,
        overwrite=overwrite,
    )
    print(report.to_json(), end="") if as_json else output.print(report)


@export.command("coreml")
def coreml_package(
    model: Model,
    path: Annotated[Path, typer.Argument(help="The .mlpackage, or an existing folder to name it in.")] = Path("."),
    precision: Annotated[str, choice(PRECISIONS, "Arithmetic.")] = "float16",
    compress: Annotated[str, choice(COMPRESSIONS, "Of the weights.")] = "none",
    labels: Labels = None,
    size: Size = None,
    minimum_ios: Annotated[int, choice(TARGETS, "Oldest system that opens it.")] = 16,
    image_input: Annotated[bool, typer.Option("--image/--array", help="Type of the input: image or float32.")] = True,
    feature_maps: Annotated[bool, typer.Option("--feature-maps", help="Also output the four stages.")] = False,
    max_difference: MaxDifference = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a Core ML package for iOS."""
    report = export_coreml(
        open_keras(model, size),
        path,
        precision=precision,
        compress=compress,
        labels=labels,
        minimum_ios=minimum_ios,
        image_input=image_input,
        feature_maps=feature_maps,
        max_difference=max_difference,
        overwrite=overwrite,
    )
    print(report.to_json(), end="") if as_json else output.print(report)
