"""The command `efficientformer benchmark tflite`, on a computer, phone or emulated CPU. Room: cli/measurements."""

import csv
import dataclasses
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from keras_efficientformer.cli.options import Json, Overwrite, choice, output, track
from keras_efficientformer.deploy.benchmark.android_phone import AndroidPhone, benchmark_on_phone
from keras_efficientformer.deploy.benchmark.arm_emulator import CPUS, ArmEmulator, count_instructions
from keras_efficientformer.deploy.benchmark.computer import benchmark_on_gpu, benchmark_tflite, profile_tflite
from keras_efficientformer.deploy.benchmark.plots import matplotlib_figure, plot_report
from keras_efficientformer.deploy.benchmark.reports import (
    Cost,
    DeviceReport,
    report_name,
    short_number,
    this_computer,
)
from keras_efficientformer.files import check_target, finished_file

SHOWN = 20
LITERT_UNITS = ("cpu", "gpu")

Profiles = Mapping[str, tuple[Cost, ...]]


def benchmark_tflite_command(
    files: Annotated[list[Path], typer.Argument(help=".tflite files. Several are run in turns on this computer.")],
    adb: Annotated[
        Path | None, typer.Option(help="Time on a phone, with this build of LiteRT's benchmark_model for Android.")
    ] = None,
    serial: Annotated[str | None, typer.Option(help="Which phone, where several are connected.")] = None,
    unit: Annotated[str, choice(LITERT_UNITS, "What computes, on the phone or this computer.")] = "cpu",
    gpu: Annotated[bool, typer.Option("--gpu", help="The same as --unit gpu.")] = False,
    emulate: Annotated[
        str | None, typer.Option(help=f"Count instructions on an emulated Arm CPU: {', '.join(CPUS)}.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the CPU.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Timed inferences of each file.")] = 50,
    warmup: Annotated[int, typer.Option(min=0, help="Inferences before them.")] = 5,
    profile: Annotated[bool, typer.Option("--profile", help="Say what each kind of operation takes.")] = False,
    save: Annotated[
        Path | None, typer.Option("--output", help="Existing folder for the report, as JSON and PNG.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Time .tflite files: on this computer, with --adb on a phone, with --emulate in instructions of an Arm CPU."""
    gpu = gpu or unit == "gpu"
    if adb is None and serial:
        raise typer.BadParameter("--serial is of phones, and needs --adb with a benchmark_model.")
    if emulate is not None and (adb is not None or threads != 1 or gpu):
        raise typer.BadParameter("--emulate counts on one thread of a CPU: leave out --adb, --threads and --unit.")
    if gpu and profile and adb is None:
        raise typer.BadParameter(
            "--profile is of CPUs and phones: this computer's GPU engine tells no operation's time."
        )
    if save is not None:
        _check_output(save)
    # The report's command is for others to read, so it lacks folders and serial numbers.
    options = [
        f"--adb={adb.name}" if adb else "",
        "--unit=gpu" if gpu else "",
        f"--emulate={emulate}" if emulate else "",
    ]
    options += [] if emulate else [f"--threads={threads}", f"--runs={runs}", f"--warmup={warmup}"]
    names = [file.name for file in files]
    command = shlex.join(["efficientformer", "benchmark", "tflite", *names, *filter(None, options)])
    profiles: Profiles = {}

    def check_free(device: str, system: str) -> None:
        """Minutes may be spent on measuring afterwards."""
        for file in () if save is None else _files(save, report_name(device, system), profile):
            check_target(file, overwrite)

    if emulate is not None:
        emulator = ArmEmulator(emulate)
        check_free(emulator.device, emulator.os)
        report, profiles = count_instructions(files, emulator, command, lambda steps: track(steps, "Counting"))
    elif adb is not None:
        with AndroidPhone(adb, serial) as phone:
            check_free(phone.device, phone.os)
            timing = f"Timing on {phone.device}"
            report = benchmark_on_phone(
                files, phone, threads, runs, warmup, gpu, command, lambda steps: track(steps, timing)
            )
            if profile:
                profiles = {file.name: phone.profile(file, threads, runs, gpu) for file in files}
    elif gpu:
        check_free(*this_computer())
        report = benchmark_on_gpu(files, runs, warmup, command, lambda steps: track(steps, "Timing"))
    else:
        check_free(*this_computer())
        report = benchmark_tflite(files, threads, runs, warmup, command, lambda steps: track(steps, "Timing"))
        if profile:
            profiles = {file.name: profile_tflite(file, threads) for file in files}
    _print(report, profiles if profile else {}, as_json)
    if save is not None:
        _save(report, profiles if profile else {}, save, overwrite)


def _print(report: DeviceReport, profiles: Profiles, as_json: bool) -> None:
    if as_json:
        costs = {file: [dataclasses.asdict(cost) for cost in profile] for file, profile in profiles.items()}
        print(json.dumps({"report": dataclasses.asdict(report), "profiles": costs}, indent=2))
        return
    output.print(_results(report))
    for note in dict.fromkeys(result.note for result in report.results if result.note):
        output.print(note)
    for file, profile in profiles.items():
        output.print(_costs(file, profile, "M instructions" if report.kind == "emulator" else "ms"))


def _results(report: DeviceReport) -> Table:
    columns = {
        "median ms": "median_ms",
        "p90 ms": "p90_ms",
        "min ms": "min_ms",
        "load ms": "load_ms",
        "memory MB": "memory_mb",
        "M instructions": "instructions",
    }
    # What was not measured on this device at all gets no column.
    columns = {
        title: name for title, name in columns.items() if any(getattr(r, name) is not None for r in report.results)
    }
    title = f"{report.device}, {report.os}" + (f", {report.soc}" if report.soc else "")
    headers = [Column(name, justify="right") for name in columns]
    table = Table(Column("file", overflow="fold"), "unit", "runs", *headers, title=title, title_justify="left")
    for result in report.results:
        unit = result.unit if result.threads is None else f"{result.unit} x{result.threads}"
        values = (getattr(result, name) for name in columns.values())
        figures = ("-" if value is None else short_number(value) for value in values)
        table.add_row(result.file, unit, str(result.runs or "-"), *figures)
    return table


def _costs(file: str, profile: tuple[Cost, ...], unit: str) -> Table:
    table = Table(
        Column("operation", overflow="fold"),
        *(Column(name, justify="right") for name in ("calls", unit, "share")),
        title=file,
        title_justify="left",
    )
    rest = profile[SHOWN:]
    more = [Cost(f"{len(rest)} more", None, sum(c.amount for c in rest), sum(c.share for c in rest))] if rest else []
    for cost in [*profile[:SHOWN], *more]:
        calls = "-" if cost.calls is None else str(cost.calls)
        table.add_row(cost.name, calls, f"{cost.amount:.2f}", f"{cost.share:.1%}")
    return table


def _check_output(folder: Path) -> None:
    """Raises where a report cannot be saved, before minutes are spent on measuring."""
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder {folder} does not exist. Make it first, or choose another.")
    matplotlib_figure()


def _files(folder: Path, name: str, profile: bool) -> list[Path]:
    """The report, its picture, and with a profile the table of operations."""
    report = folder / name
    table = [report.with_name(f"{report.stem}_profile.csv")] if profile else []
    return [report, report.with_suffix(".png"), *table]


def _save(report: DeviceReport, profiles: Profiles, folder: Path, overwrite: bool) -> None:
    file, picture, *tables = _files(folder, report.standard_name, bool(profiles))
    report.save(file, overwrite)
    plot_report(report, picture, overwrite)
    for table in tables:
        with finished_file(table, overwrite) as partial, partial.open("w", newline="", encoding="utf-8") as content:
            writer = csv.writer(content)
            writer.writerow(["file", *(field.name for field in dataclasses.fields(Cost))])
            writer.writerows([name, *dataclasses.astuple(cost)] for name, costs in profiles.items() for cost in costs)
