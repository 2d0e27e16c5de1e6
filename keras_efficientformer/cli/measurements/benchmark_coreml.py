"""The command `efficientformer benchmark coreml`, on an iPhone or this Mac. Room: cli/measurements."""

import shlex
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from keras_efficientformer.cli.options import (
    Json,
    Model,
    Overwrite,
    Size,
    check_inputs,
    choice,
    open_keras,
    output,
    track,
)
from keras_efficientformer.cli.quiet import import_coremltools_alone
from keras_efficientformer.deploy import benchmark as timing
from keras_efficientformer.deploy.benchmark.apple_device import UNITS, check_team, connected_iphone, this_mac
from keras_efficientformer.deploy.benchmark.reports import report_name
from keras_efficientformer.deploy.coreml.modes import COMPRESSIONS, COREML_PRECISIONS
from keras_efficientformer.files import check_target

MAC = "mac"


def benchmark_coreml_command(
    model: Model = "l1",
    device: Annotated[
        str | None, typer.Option(help=f"Name of a connected iPhone, or {MAC} for this Mac. Default: the one iPhone.")
    ] = None,
    team: Annotated[
        str | None, typer.Option(help="Development team that signs the app on the phone, e.g. A1B2C3D4E5.")
    ] = None,
    precision: Annotated[str, choice(COREML_PRECISIONS, "Arithmetic.")] = "float16",
    compress: Annotated[str, choice(COMPRESSIONS, "Of the model's weights.")] = "none",
    unit: Annotated[list[str] | None, choice(UNITS, "May be repeated. Default: each.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed predictions for each package and unit.")] = 50,
    size: Size = None,
    save: Annotated[
        Path | None, typer.Option("--output", help="JSON file, or an existing folder such as benchmarks/devices.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Time a model and MobileNetV2 with Core ML on an iPhone connected to this Mac, or on this Mac."""
    check_inputs(model)
    if save is not None and not save.parent.is_dir():
        raise FileNotFoundError(f"The folder {save.parent} does not exist. Make it first, or choose another.")
    import_coremltools_alone(compresses=compress != "none")
    target = this_mac() if device == MAC else connected_iphone(device)
    if target.remote is not None:
        check_team(team)  # it is checked before a model is downloaded
    if save is not None:
        check_target(save / report_name(target.name, target.os) if save.is_dir() else save, overwrite)
    # The report's command is for others to read, so it lacks the names of phones and teams.
    options = [f"--precision={precision}", f"--compress={compress}", f"--runs={runs}"]
    options += [f"--size={size}"] if size else []
    with tempfile.TemporaryDirectory() as folder:
        twin = timing.export_twin(open_keras(model, size), folder, precision, compress)
        benchmark = timing.benchmark_coreml(
            [twin, timing.export_mobilenet_v2(folder, precision)],
            target,
            team=team,
            units=unit or tuple(UNITS),
            runs=runs,
            command=shlex.join(["efficientformer", "benchmark", "coreml", model, *options]),
            progress=lambda steps: track(steps, f"Timing on {target.name}"),
        )
    print(benchmark.to_json(), end="") if as_json else output.print(benchmark)
    if save is not None:
        benchmark.report.save(save, overwrite)
