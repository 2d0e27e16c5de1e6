"""The command `efficientformer export tflite`: writes a .tflite file and its report. Room: cli."""

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
from keras_efficientformer.deploy.tflite.accelerators.npu_targets import npu_target
from keras_efficientformer.deploy.tflite.modes import IO_TYPES, MODES
from keras_efficientformer.errors import require_installed


def export_tflite_command(
    model: Model,
    path: Annotated[Path, typer.Argument(help="The .tflite file, or an existing folder to name it in.")] = Path("."),
    quantize: Annotated[
        str, choice(MODES, "Quantization; auto: as few bits for weights as each layer bears.")
    ] = "none",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Folder of images to measure ranges and errors on. Default: noise."),
    ] = None,
    max_drop: MaxDrop = None,
    labels: LabelsFile = None,
    size: Size = None,
    input_sizes: InputSizes = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one inference.")] = 1,
    io: Annotated[str, choice(IO_TYPES, "Type of input and output.")] = "float32",
    preprocessing: Annotated[bool, typer.Option(help="Take raw RGB 0..255 and normalise inside.")] = True,
    feature_maps: FeatureMaps = False,
    max_difference: MaxDifference = None,
    require: Annotated[
        str | None,
        choice(("gpu",), "Write nothing that this does not compute whole and rightly, on this machine."),
    ] = None,
    npu: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="Also compile for an NPU, e.g. qualcomm:SM8750 or intel:PTL."),
    ] = None,
    page: Page = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a TFLite file for Android."""
    check_inputs(model, calibration, labels)
    check_free(path, overwrite)
    check_page(page, "litert", overwrite)
    if npu is not None:
        npu_target(npu)
    for module in MODES[quantize].modules:
        require_installed(module, "TFLite export", "litert")
    network = open_keras(model, size)
    with errors.status("Exporting"):
        report = deploy.export_tflite(
            network,
            path,
            quantize=quantize,
            calibration=calibration,
            max_drop=max_drop,
            labels=labels,
            include_preprocessing=preprocessing,
            feature_maps=feature_maps,
            input_sizes=input_sizes,
            batch_size=batch_size,
            io=io,
            max_difference=max_difference,
            require=require,
            npu=npu,
            overwrite=overwrite,
        )
        if page is not None:
            deploy.save_export_page(report, page, network, images=calibration, overwrite=overwrite)
    print(report.to_json(), end="") if as_json else output.print(report)
