"""The command `efficientformer export coreml`: writes a Core ML package and its report. Room: cli."""

from pathlib import Path
from typing import Annotated

import typer

from keras_efficientformer import deploy
from keras_efficientformer.cli.options import (
    FeatureMaps,
    InputSizes,
    Json,
    LabelsFile,
    MaxDifference,
    MaxDrop,
    Model,
    Overwrite,
    Page,
    Size,
    check_free,
    check_inputs,
    check_page,
    choice,
    errors,
    open_keras,
    output,
)
from keras_efficientformer.cli.quiet import import_coremltools_alone
from keras_efficientformer.deploy.coreml.modes import COMPRESSIONS, COREML_PRECISIONS, MASK_OUTPUTS, TARGETS
from keras_efficientformer.errors import require_installed


def export_coreml_command(
    model: Model,
    path: Annotated[Path, typer.Argument(help="The .mlpackage, or an existing folder to name it in.")] = Path("."),
    precision: Annotated[str, choice(COREML_PRECISIONS, "Arithmetic.")] = "float16",
    compress: Annotated[
        str, choice(COMPRESSIONS, "Of the weights; w8a8: of activations too; auto: as few bits as each layer bears.")
    ] = "none",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Folder of images to measure ranges and errors on. Default: noise."),
    ] = None,
    max_drop: MaxDrop = None,
    labels: LabelsFile = None,
    size: Size = None,
    input_sizes: InputSizes = None,
    minimum_ios: Annotated[int, choice(TARGETS, "Oldest system that opens it.")] = 16,
    image_input: Annotated[bool, typer.Option("--image/--array", help="Type of the input: image or float32.")] = True,
    feature_maps: FeatureMaps = False,
    mask_output: Annotated[
        str, choice(MASK_OUTPUTS, "Of a segmentation model: all classes' values or the best.")
    ] = "values",
    max_difference: MaxDifference = None,
    page: Page = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a Core ML package for iOS."""
    check_inputs(model, calibration, labels)
    check_free(path, overwrite)
    check_page(page, "coreml", overwrite)
    require_installed("coremltools", "Core ML export", "coreml")
    import_coremltools_alone(compresses=compress != "none")
    network = open_keras(model, size)
    with errors.status("Exporting"):
        report = deploy.export_coreml(
            network,
            path,
            precision=precision,
            compress=compress,
            calibration=calibration,
            max_drop=max_drop,
            labels=labels,
            minimum_ios=minimum_ios,
            image_input=image_input,
            feature_maps=feature_maps,
            input_sizes=input_sizes,
            mask_output=mask_output,
            max_difference=max_difference,
            overwrite=overwrite,
        )
        if page is not None:
            deploy.save_export_page(report, page, network, images=calibration, overwrite=overwrite)
    print(report.to_json(), end="") if as_json else output.print(report)
