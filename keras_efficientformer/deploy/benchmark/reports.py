"""Writes and reads what was timed, on which device, with which command. Room: deploy/benchmark.

Reports are the same for TFLite and Core ML. A report is a file in benchmarks/devices/, of the schema there, and a row
for each result in the READMEs' tables.
"""

import dataclasses
import json
import platform
import re
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficientformer.files import finished_file

DEVICE_KINDS = ("phone", "computer", "emulator")
EXPORTED_NAME = re.compile(r"(?P<model>.+?_\d+(x\d+)?)_(?P<mode>[a-z][a-z0-9_]*)$")


@dataclass(frozen=True)
class Cost:
    """What operations of one kind, or one kernel, take of an inference.

    Attributes:
        name: of the operation or kernel, as the runtime calls it.
        calls: how many of them one inference runs; None where that is not known.
        amount: of one inference: milliseconds, or millions of instructions on an emulated CPU.
        share: of the whole inference, in [0, 1].
    """

    name: str
    calls: int | None
    amount: float
    share: float


@dataclass(frozen=True)
class Latency:
    """How long one inference of a file takes on one unit of a device.

    Attributes:
        file: name of the file, without its folder.
        model: name and input size of the network, e.g. "efficientformer_l1_224".
        mode: its quantization or precision, e.g. "int8", "float16".
        bytes: size of the file.
        unit: what computed it: "cpu", "gpu", "ane", "all", "cpuAndNeuralEngine", ...
        threads: of the CPU; None where the runtime chooses.
        runs: how many inferences were timed; 0 where only instructions were counted.
        median_ms, p90_ms, mean_ms, min_ms: of those runs, milliseconds; None where no run was timed, or the tool that
            timed them does not say.
        load_ms: from the file to a model that is ready to run, milliseconds; None where it was not timed.
        memory_mb: growth of the process' peak memory from before loading to after the runs, in 1e6 bytes.
        instructions: of one inference, in millions.
        note: what a reader has to know to understand the figures.
    """

    file: str
    model: str
    mode: str
    bytes: int
    unit: str
    threads: int | None
    runs: int
    median_ms: float | None
    p90_ms: float | None
    mean_ms: float | None
    min_ms: float | None
    load_ms: float | None = None
    memory_mb: float | None = None
    instructions: float | None = None
    note: str | None = None

    @classmethod
    def of(cls, samples_ms: Sequence[float], **facts: Any) -> "Latency":
        """The statistics of timed runs.

        Args:
            samples_ms: milliseconds of each run, without warm-up.
            **facts: the other attributes.

        Raises:
            ValueError: there are no samples.
        """
        samples = np.asarray(samples_ms, "float64")
        if samples.size == 0:
            raise ValueError("A latency needs at least one timed run. Received: none.")
        return cls(
            runs=samples.size,
            median_ms=float(np.median(samples)),
            p90_ms=float(np.percentile(samples, 90)),
            mean_ms=float(samples.mean()),
            min_ms=float(samples.min()),
            **facts,
        )


@dataclass(frozen=True)
class DeviceReport:
    """The results of one benchmark on one device.

    Attributes:
        device: what its maker calls it, e.g. "iPhone 12", "Pixel 8", a CPU's name.
        os: system and version, e.g. "iOS 17", "Android 14".
        soc: the chip, e.g. "Apple A14 Bionic"; None where it is not known.
        kind: "phone", "computer" or "emulator".
        date: of the measurement, ISO 8601, e.g. "2026-11-23".
        command: which gives these results again.
        versions: {tool: version} of what ran and timed the files.
        results: one for each file and unit.

    Raises:
        ValueError: `kind` is none of the three or `date` no ISO date.
    """

    device: str
    os: str
    soc: str | None
    kind: str
    date: str
    command: str
    versions: dict[str, str]
    results: tuple[Latency, ...]

    def __post_init__(self) -> None:
        if self.kind not in DEVICE_KINDS:
            raise ValueError(
                f"A device report's kind should be one of {', '.join(DEVICE_KINDS)}. Received: {self.kind!r}"
            )
        date.fromisoformat(self.date)

    @property
    def standard_name(self) -> str:
        """The file name under which benchmarks/devices/ has it: device and system, e.g. "iphone_12_ios_17.json"."""
        return report_name(self.device, self.os)

    def to_json(self) -> str:
        """The report as indented JSON, as benchmarks/devices/schema.json describes it."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "DeviceReport":
        """The report that `to_json` wrote.

        Raises:
            ValueError: it is no JSON, a field is missing, unknown or of the wrong type; the message names it.
        """
        content = _fields(cls, json.loads(text), "device report")
        results = tuple(
            Latency(**_fields(Latency, result, f"result {index}")) for index, result in enumerate(content["results"])
        )
        return cls(**content | {"results": results})

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Writes the report as JSON.

        Args:
            path: the file, or an existing folder, in which it gets its `standard_name`.
            overwrite: whether an existing file may be replaced.

        Returns:
            The file.

        Raises:
            OSError: the folder is missing or cannot be written to, or the file exists and `overwrite` is False.
        """
        path = Path(path)
        file = path / self.standard_name if path.is_dir() else path
        with finished_file(file, overwrite) as partial:
            partial.write_text(self.to_json(), encoding="utf-8")
        return file


def report_name(device: str, system: str) -> str:
    """`DeviceReport.standard_name` of a device that has not been measured yet."""
    return re.sub("[^a-z0-9]+", "_", f"{device} {system}".lower()).strip("_") + ".json"


def this_computer() -> tuple[str, str]:
    """The name of this computer's CPU, and its system with the version, e.g. "macOS 15.1"."""
    if sys.platform == "darwin":
        return platform.processor() or platform.machine(), f"macOS {platform.mac_ver()[0]}"
    if not sys.platform.startswith("linux"):
        return platform.processor(), f"{platform.system()} {platform.release()}"
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return cpu[1] if cpu else platform.machine(), platform.freedesktop_os_release()["PRETTY_NAME"]


def model_and_mode(file: str | Path) -> tuple[str, str]:
    """Network and mode of an exported file by its standard name.

    "efficientformer_l1_224_int8.tflite" gives ("efficientformer_l1_224", "int8"); of another name all of it is the
    network, and the mode "unknown".
    """
    stem = Path(file).name.rpartition(".")[0] or Path(file).name
    found = EXPORTED_NAME.match(stem)
    return (found["model"], found["mode"]) if found else (stem, "unknown")


def read_reports(folder: str | Path) -> list[DeviceReport]:
    """The reports of a folder such as benchmarks/devices/, in the order of their names.

    Raises:
        ValueError: one is damaged; the message names it.
    """
    reports = []
    for file in sorted(path for path in Path(folder).glob("*.json") if path.name != "schema.json"):
        try:
            reports.append(DeviceReport.from_json(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    return reports


def markdown_table(reports: Iterable[DeviceReport]) -> str:
    """The results of reports as the READMEs show them, one row for each, ending in a newline."""
    lines = [
        "| device | system | file | unit | median | p90 | load | memory | instructions | date |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        for result in report.results:
            unit = result.unit if result.threads is None else f"{result.unit}, {counted(result.threads, 'thread')}"
            cells = (
                report.device,
                report.os,
                f"`{result.file}`",
                unit,
                _with_unit(result.median_ms, "ms"),
                _with_unit(result.p90_ms, "ms"),
                _with_unit(result.load_ms, "ms"),
                _with_unit(result.memory_mb, "MB"),
                _with_unit(result.instructions, "M"),
                report.date,
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def counted(number: int, noun: str) -> str:
    """ "1 thread", "4 threads"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def short_number(value: float) -> str:
    """A figure with one decimal, or below 10 with two: small networks take parts of a millisecond."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _with_unit(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.1f} {unit}"


def _fields(kind: type, content: Any, what: str) -> dict[str, Any]:
    """The fields of a dataclass in JSON, all of them and no others."""
    if not isinstance(content, Mapping):
        raise ValueError(f"The {what} should be an object of fields. Received: {type(content).__name__}")
    types = typing.get_type_hints(kind)
    missing, unknown = sorted(types.keys() - content.keys()), sorted(content.keys() - types.keys())
    if missing or unknown:
        raise ValueError(
            f"The {what} has not the fields it should have: missing {', '.join(missing) or 'none'}; "
            f"unknown {', '.join(unknown) or 'none'}."
        )
    for name, value in content.items():
        if not _is_a(value, types[name]):
            raise ValueError(f"The {what} has a {name} of the wrong type. Received: {value!r}")
    return dict(content)


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of the type that a dataclass gives its field."""
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list)
    # JSON does not tell 1 from 1.0; and true is an int to Python, though not to JSON.
    numbers = kind | int if isinstance(1.0, kind) else kind
    return isinstance(value, numbers) and not isinstance(value, bool)
