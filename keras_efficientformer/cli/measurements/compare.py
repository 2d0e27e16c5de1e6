"""The command `efficientformer compare`: which mode of export to take, measured on images. Room: cli/measurements."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from keras_efficientformer import deploy
from keras_efficientformer.cli.options import (
    Crop,
    Json,
    LabelsFile,
    Model,
    Overwrite,
    Size,
    check_inputs,
    choice,
    open_keras,
    output,
    say,
    track,
)
from keras_efficientformer.cli.quiet import import_coremltools_alone
from keras_efficientformer.deploy.benchmark.plots import matplotlib_figure
from keras_efficientformer.deploy.comparison.modes import COREML, chosen_modes
from keras_efficientformer.deploy.comparison.targets import IMAGES_SCORED, TARGET_RULES
from keras_efficientformer.files import check_target, finished_file
from keras_efficientformer.labels import labels_beside
from keras_efficientformer.models.sources import crop_of

# In the folder of --output.
REPORT_FILE, PICTURE_FILE = "modes.json", "modes.png"


def compare(
    model: Model,
    folder: Annotated[
        Path,
        typer.Argument(help="A subfolder of images for each class; or train and val with those; or images alone."),
    ],
    mode: Annotated[
        list[str] | None,
        typer.Option(metavar="MODE", help="tflite:int8, coreml:palette4, ...; may be repeated. Default: all."),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="MODE", help="A mode to leave out; may be repeated.")
    ] = None,
    target: Annotated[
        list[str] | None,
        choice(TARGET_RULES, "What to recommend a mode for; may be repeated. Default: all.", "--for"),
    ] = None,
    max_drop: Annotated[float, typer.Option(min=0.0, help="Points of top-1 that a recommended mode may lose.")] = 0.5,
    images: Annotated[int, typer.Option(min=1, help="How many to score at most, evenly spread.")] = IMAGES_SCORED,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Folder of images to measure ranges on. Default: train, or a part that is not scored."),
    ] = None,
    labels: LabelsFile = None,
    size: Size = None,
    crop: Crop = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for the exported files, which is made. Default: they are removed.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--output", help="Existing folder for the report, as JSON and PNG.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Export a model in many modes, measure each on images, and say which to take. An interrupted one goes on."""
    check_inputs(model, folder, calibration, labels)
    try:
        modes, _ = chosen_modes(mode, without or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if save is not None:
        _check_output(save, overwrite)
    if any(found.format == COREML for found in modes):
        import_coremltools_alone(compresses=True)
    network = open_keras(model, size)
    try:
        report = deploy.compare_modes(
            network,
            folder,
            modes=mode,
            without=without or (),
            calibration=calibration,
            labels=labels or labels_beside(model),
            images=images,
            crop_fraction=crop or crop_of(model),
            targets=target,
            max_drop=max_drop,
            keep=keep,
            track=partial(track, description="Comparing"),
        )
    except KeyboardInterrupt:
        say("Stopped. The modes that are done are kept: the same command goes on with the others.")
        raise
    print(report.to_json(), end="") if as_json else output.print(report)
    if save is not None:
        with finished_file(save / REPORT_FILE, overwrite) as partial_file:
            partial_file.write_text(report.to_json(), encoding="utf-8")
        deploy.plot_comparison(report, save / PICTURE_FILE, overwrite)
    is_without_advice = target and any(found is None for found, _ in report.recommendations.values())
    if report.failed or is_without_advice:
        raise SystemExit(1)


def _check_output(folder: Path, overwrite: bool) -> None:
    """Raises where the report cannot be saved, before minutes are spent on measuring."""
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder {folder} does not exist. Make it first, or choose another.")
    for name in (REPORT_FILE, PICTURE_FILE):
        check_target(folder / name, overwrite)
    matplotlib_figure()
