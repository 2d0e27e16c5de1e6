"""Times loading and prediction of Core ML packages on an iPhone or Mac, unit by unit. Room: deploy/benchmark.

The timing is coremltools' own: `MLModelBenchmarker`, on a phone over `remote_device`, and Core ML's compute plan for
the operations. It feeds arrays and reads arrays only, so what is timed is a twin of the package that is shipped:
tensor in, logits out.
"""

import asyncio
import collections
import contextlib
import dataclasses
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from keras_efficientformer.deploy.benchmark.apple_device import (
    UNITS,
    AppleDevice,
    check_team,
    reason_of,
    start_model_runner,
)
from keras_efficientformer.deploy.benchmark.reports import DeviceReport, Latency, model_and_mode
from keras_efficientformer.deploy.coreml.exporter import export_coreml
from keras_efficientformer.deploy.coreml.modes import COMPRESSIONS
from keras_efficientformer.deploy.source import changed_copy
from keras_efficientformer.errors import DeviceError, require
from keras_efficientformer.files import size_of
from keras_efficientformer.images import seeded_images
from keras_efficientformer.layers.names import PREDICTIONS
from keras_efficientformer.reporting import versions_of

# The paper gives these milliseconds on an iPhone 12 (arXiv 2206.01191, Table 1; MobileNetV2's in its first version).
PAPER_MS = {
    "efficientformer_l1_224": 1.6,
    "efficientformer_l3_224": 3.0,
    "efficientformer_l7_224": 7.0,
    "mobilenet_v2_224": 1.7,
}
OPERATIONS_SHOWN = 10
# Packages are timed as they are exported by default, where that is possible.
DEFAULT_IOS = 16


@dataclass(frozen=True)
class OperationCost:
    """What the compute plan says of one operation of a package.

    Attributes:
        file: name of the package.
        unit: the compute units it was loaded for, one of `UNITS`.
        output: name of the operation's first output.
        operation: its kind, e.g. "conv".
        device: what Core ML prefers for it: "Neural Engine", "GPU" or "CPU"; None where it does not say.
        share: its part of the estimated cost, in 0..1; None where there is no estimate.
        milliseconds: that part of the median prediction.
    """

    file: str
    unit: str
    output: str
    operation: str
    device: str | None
    share: float | None
    milliseconds: float | None


@dataclass(frozen=True)
class CoreMLBenchmark:
    """What was timed: the report for benchmarks/devices/, and the cost of every operation."""

    report: DeviceReport
    operations: tuple[OperationCost, ...]

    def to_json(self) -> str:
        """Both, as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        report = self.report
        table = Table("file", "unit", "load", "median", "p90", "runs", "paper, iPhone 12", "planned for")
        table.title = f"{report.device}, {report.os}, {report.date}"
        for row in report.results:
            paper = PAPER_MS.get(row.model)
            times = (f"{row.load_ms:.1f} ms", f"{row.median_ms:.2f} ms", f"{row.p90_ms:.2f} ms", str(row.runs))
            table.add_row(row.file, row.unit, *times, f"{paper} ms" if paper else "-", row.note)
        yield table
        for file in dict.fromkeys(row.file for row in report.results):
            fastest = min((row for row in report.results if row.file == file), key=lambda row: row.median_ms or 0.0)
            yield self._dearest(file, fastest.unit)

    def _dearest(self, file: str, unit: str) -> Table:
        """The operations of a file that take the largest shares of a prediction on a unit."""
        table = Table("operation", "output", "device", "share", "ms", title=f"Dearest operations of {file} on {unit}")
        costs = [cost for cost in self.operations if (cost.file, cost.unit) == (file, unit)]
        shares = [(cost.share, cost) for cost in costs if cost.share is not None]
        for share, cost in sorted(shares, key=lambda pair: -pair[0])[:OPERATIONS_SHOWN]:
            table.add_row(cost.operation, cost.output, cost.device or "-", f"{share:.1%}", f"{cost.milliseconds:.3f}")
        return table


def benchmark_coreml(
    packages: Sequence[str | os.PathLike],
    device: AppleDevice,
    *,
    team: str | None = None,
    units: Sequence[str] = tuple(UNITS),
    runs: int = 50,
    loads: int = 3,
    command: str = "",
    progress: Callable[[Iterable], Iterable] = iter,
) -> CoreMLBenchmark:
    """Times packages on an iPhone or a Mac, each on each unit in turn.

    On a phone coremltools sends the input anew for each prediction, so that its chip rests before each: predictions
    back to back, as of a camera's images, take less than what this measures, not more.

    Args:
        packages: ML Programs with arrays in and arrays out, as `export_twin` and `export_mobilenet_v2` write them.
        device: what `apple_device.connected_iphone` or `this_mac` returned.
        team: identifier of the development team that signs the app on the phone; unused on a Mac.
        units: of `UNITS`, to load the packages for.
        runs: how many predictions are timed for each package and unit, after one that is not.
        loads: how many loads are timed; the first one for a Neural Engine compiles the package for it.
        command: for the report: what gives these results again.
        progress: wraps the measurements, to show a progress bar.

    Raises:
        ValueError: a unit is unknown, `runs` or `loads` are under 1, or a package takes images or returns classes.
        DeviceError: the phone cannot be prepared, or does not answer, or Core ML cannot load a package.
        ImportError: coremltools is not installed.
    """
    unknown = [unit for unit in units if unit not in UNITS]
    if unknown or not units:
        raise ValueError(f"Compute units should be of {', '.join(UNITS)}. Received: {', '.join(unknown) or 'none'}")
    if min(runs, loads) < 1:
        raise ValueError(f"`runs` and `loads` should be at least 1. Received: runs={runs}, loads={loads}")
    require("coremltools", "Core ML export", "coreml")
    signing_team = "" if device.remote is None else check_team(team)
    files = [Path(package) for package in packages]
    for file in files:
        _check_package(file)
    measured = asyncio.run(_measure_all(files, device, signing_team, units, runs, loads, progress))
    report = DeviceReport(
        device=device.name,
        os=device.os,
        soc=device.soc,
        kind=device.kind,
        date=datetime.now(UTC).date().isoformat(),
        command=command,
        versions=versions_of("keras-efficientformer", "coremltools"),
        results=tuple(latency for latency, _ in measured),
    )
    return CoreMLBenchmark(report, tuple(cost for _, costs in measured for cost in costs))


def export_twin(
    model: keras.Model, folder: str | os.PathLike, precision: str = "float16", compress: str = "none"
) -> Path:
    """Exports what `MLModelBenchmarker` can feed and read: the model's package with a tensor input and logits.

    Args:
        model: an EfficientFormer of this package with a classifier.
        folder: an existing folder, in which the package gets its standard name.
        precision, compress: as for `export_coreml`; the ranges of "w8a8" are those of seeded noise.

    Returns:
        The package.

    Raises:
        ValueError, OSError, ImportError, ExportError: as `export_coreml`.
    """
    twin, kind = logits_model(model), COMPRESSIONS[compress]
    with warnings.catch_warnings():
        # Whatever the images that ranges are measured on, int8 takes the same time.
        warnings.filterwarnings("ignore", "Only .* calibration images")
        report = export_coreml(
            twin,
            folder,
            image_input=False,
            precision=precision,
            compress=compress,
            calibration=seeded_images(twin.input_shape[1:]) if kind.int8_activations else None,
            minimum_ios=max(DEFAULT_IOS, kind.minimum_ios),
        )
    return Path(report.path)


def logits_model(model: keras.Model) -> keras.Model:
    """A copy of a model whose outputs are logits.

    Raises:
        ValueError: the model has no classifier.
    """
    config = model.get_config()
    heads = [layer for layer in config["layers"] if layer["name"] in PREDICTIONS]
    if not heads:
        raise ValueError(f"{model.name} has no classifier, whose logits could be timed. Make it with include_top=True.")
    for head in heads:
        head["config"]["activation"] = "linear"
    return changed_copy(model, config)


def _check_package(package: Path) -> None:
    import coremltools as ct

    description = ct.models.MLModel(str(package), skip_model_load=True).get_spec().description
    kinds = {feature.name: feature.type.WhichOneof("Type") for feature in (*description.input, *description.output)}
    others = [f"{name} ({kind})" for name, kind in kinds.items() if kind != "multiArrayType"]
    if others:
        raise ValueError(
            f"{package} has {', '.join(others)}, and coremltools times packages with arrays in and out only. "
            "Time its twin, with the same layers and weights: export_twin."
        )


async def _measure_all(
    packages: Sequence[Path],
    device: AppleDevice,
    team: str,
    units: Sequence[str],
    runs: int,
    loads: int,
    progress: Callable[[Iterable], Iterable],
) -> list[tuple[Latency, list[OperationCost]]]:
    """What `_measure` returns for each package on each unit; `team` signs the app that runs them on a phone."""
    with tempfile.TemporaryDirectory() as folder:
        if device.remote is not None:
            device = await start_model_runner(device, team, Path(folder))
        try:
            return [
                await _measure(package, unit, device, runs, loads)
                for package, unit in progress([(package, unit) for package in packages for unit in units])
            ]
        finally:
            if device.remote is not None:
                device.remote.session.stop()


async def _measure(
    package: Path, unit: str, device: AppleDevice, runs: int, loads: int
) -> tuple[Latency, list[OperationCost]]:
    """The latency of a package on a unit, and the costs of its operations."""
    import coremltools as ct
    from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

    model = ct.models.MLModel(str(package), skip_model_load=True, compute_units=ct.ComputeUnit[UNITS[unit]])
    benchmarker = MLModelBenchmarker(model, device.remote)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # coremltools draws two bars for each prediction
            load, prediction, operations = await _benchmark(benchmarker, runs, loads)
    except Exception as error:  # coremltools and Core ML raise many kinds
        raise DeviceError(
            f"{package.name} could not be timed on {unit} of the {device.name}: {reason_of(error)}. A phone must stay "
            "plugged in and unlocked, with the app ModelRunner in front."
        ) from error
    costs = _operation_costs(package.name, unit, operations, prediction.statistics.median)
    name, mode = model_and_mode(package)
    latency = Latency.of(
        prediction.samples,
        file=package.name,
        model=name,
        mode=mode,
        bytes=size_of(package),
        unit=unit,
        threads=None,
        load_ms=load.statistics.median,
        note=_placement(costs),
    )
    return latency, costs


async def _benchmark(benchmarker: Any, runs: int, loads: int) -> tuple[Any, Any, Any]:
    """coremltools' measurements of loading, of prediction, and of each operation."""
    try:
        return (
            await benchmarker.benchmark_load(loads),
            await benchmarker.benchmark_predict(iterations=runs, warmup=True),
            await benchmarker.benchmark_operation_execution(),
        )
    finally:
        # The garbage collector would leave it loaded on the phone: coremltools' __del__ awaits nothing.
        if benchmarker._loaded_model is not None:
            await benchmarker._loaded_model.unload()


def _operation_costs(file: str, unit: str, operations: Iterable[Any], median: float) -> list[OperationCost]:
    """What each operation takes of the median prediction, in milliseconds, by coremltools' measurements of it."""
    # coremltools has an entry for each output, so an operation with three is there three times; constants cost nothing.
    computing = {info.spec.outputs[0].name: info for info in operations if info.spec.type != "const"}
    samples = {name: sum(info.measurement.samples) for name, info in computing.items() if info.measurement.samples}
    total = sum(samples.values())
    costs = []
    for name, info in computing.items():
        share = samples[name] / total if name in samples and total else None
        milliseconds = None if share is None else share * median
        costs.append(OperationCost(file, unit, name, info.spec.type, _preferred(info), share, milliseconds))
    return costs


def _preferred(info: Any) -> str | None:
    """The kind of device that Core ML prefers for an operation."""
    from coremltools.models import compute_device

    names = {
        compute_device.MLNeuralEngineComputeDevice: "Neural Engine",
        compute_device.MLGPUComputeDevice: "GPU",
        compute_device.MLCPUComputeDevice: "CPU",
    }
    usage = info.compute_device_usage
    return None if usage is None else names[type(usage.preferred_compute_device)]


def _placement(costs: Sequence[OperationCost]) -> str:
    """Where the plan puts the operations: "Neural Engine 125, CPU 2 of 127 operations"."""
    counts = collections.Counter(cost.device or "unknown" for cost in costs)
    return ", ".join(f"{device} {count}" for device, count in counts.most_common()) + f" of {len(costs)} operations"
