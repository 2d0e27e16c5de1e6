"""Times .tflite files on an Android phone, through adb, with LiteRT's benchmark_model. Room: deploy/benchmark.

What benchmark_model prints is written in LiteRT's tflite/tools/benchmark/benchmark_model.cc (`BenchmarkModel::Run`,
`BenchmarkLoggingListener`) and, under the same name since LiteRT 2, litert/tools/benchmark_litert_model.h. Both take
flags that they do not know with a warning, so each gets the flags of both.
"""

import contextlib
import hashlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from keras_efficientformer.deploy.benchmark.computer import file_facts, notes_on
from keras_efficientformer.deploy.benchmark.op_profile import read_op_profile
from keras_efficientformer.deploy.benchmark.reports import Cost, DeviceReport, Latency
from keras_efficientformer.errors import DeviceError

PHONE_FOLDER = "/data/local/tmp/keras_efficientformer"
ELF_64_BIT, ELF_AARCH64 = 2, 183
# benchmark_model calls this many 1e6 bytes "MB".
MEBIBYTE = 1.048576
NUMBER = r"([\d.]+(?:e[+-]?\d+)?)"
RUNS_LINE = re.compile(r"\bcount=(\d+) (.*?)\bp5=\S+ median=(\d+) p95=(\d+)")
STATISTICS = re.compile(rf"\b(min|avg|curr)={NUMBER}")
LOAD = re.compile(rf"Initialized session in {NUMBER}ms")
MEMORY = re.compile(rf"Memory footprint delta .*?overall={NUMBER}|Overall footprint:\s*{NUMBER} MB")
PARTIAL = re.compile(r"partially executed by the delegate w/ (\d+) delegate kernels")


class AndroidPhone:
    """One connected phone, with benchmark_model and the files it is given in a folder that the end of `with` removes.

    Args:
        benchmark_model: LiteRT's tool, built for Android on arm64; one that prints percentiles ("median=").
        serial: which phone, where several are connected.

    Attributes:
        serial, device, os, soc: its serial number, and facts for the report.

    Raises:
        OSError: `benchmark_model` is missing or cannot be read.
        ValueError: it is no program for arm64.
        DeviceError: adb is not installed, no phone is connected or authorized, or several and none is named.
    """

    def __init__(self, benchmark_model: str | Path, serial: str | None = None) -> None:
        self._tool = Path(benchmark_model)
        _check_arm64(self._tool)
        if shutil.which("adb") is None:
            raise DeviceError("adb was not found. Install Android's platform-tools and put them on the PATH.")
        self.serial = _choose_phone(_adb("devices").stdout, serial)
        maker, model, release, chip_maker, chip = (
            self._shell("getprop", f"ro.{name}").strip()
            for name in (
                *("product.manufacturer", "product.model", "build.version.release"),
                *("soc.manufacturer", "soc.model"),
            )
        )
        self.device = f"{maker} {model}".strip()
        self.os = f"Android {release}"
        self.soc = f"{chip_maker} {chip}".strip() or None
        self._push(self._tool, "benchmark_model")
        self._shell("chmod", "755", f"{PHONE_FOLDER}/benchmark_model")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(DeviceError):  # where the cable was pulled, that error is on its way already
            self._shell("rm", "-rf", PHONE_FOLDER)

    def measure(self, file: Path, threads: int = 1, runs: int = 50, warmup: int = 5, gpu: bool = False) -> Latency:
        """Times one file.

        benchmark_model runs at least a second, so `runs` of the result may be more than asked for. It tells the median
        and the 95th percentile, not the 90th: `p90_ms` is None, and the note has the 95th.

        Args:
            file: a .tflite file.
            threads: of the CPU, >= 1.
            runs: timed inferences, >= 1.
            warmup: inferences before them.
            gpu: whether the phone's GPU computes, in place of its CPU.

        Raises:
            OSError: the file is missing.
            DeviceError: benchmark_model fails on it, or the GPU does not take it.
            ValueError: what benchmark_model printed was not understood.
        """
        sizes = notes_on(file)  # that it cannot be read is told before the phone is asked
        text = self._run(file, threads, runs, warmup, gpu)
        statistics = RUNS_LINE.findall(text)
        if not statistics:
            raise ValueError(
                f"The output of {self._tool} was not understood: expected a line 'count=... median=... p95=...', "
                f"as LiteRT 2 prints it. Take a newer build. Found: {text.strip()[-300:]!r}"
            )
        count, rest, median, p95 = statistics[-1]  # the ones before it are of the warm-up
        # Where all runs took the same time there is no min and no avg: "count=50 curr=12(all same)".
        values = {name: float(value) for name, value in STATISTICS.findall(rest)}
        load, memory = LOAD.search(text), MEMORY.search(text)
        return Latency(
            **file_facts(file),
            unit="gpu" if gpu else "cpu",
            threads=None if gpu else threads,
            runs=int(count),
            median_ms=int(median) / 1000,
            p90_ms=None,
            mean_ms=values.get("avg", values["curr"]) / 1000,
            min_ms=values.get("min", values["curr"]) / 1000,
            load_ms=float(load[1]) if load else None,
            memory_mb=float(memory[1] or memory[2]) * MEBIBYTE if memory else None,
            note=f"p95 {int(p95) / 1000:.1f} ms; benchmark_model tells no p90"
            + _delegated(text, file, gpu)
            + (f"; {sizes}" if sizes else ""),
        )

    def profile(self, file: Path, threads: int = 1, runs: int = 50, gpu: bool = False) -> tuple[Cost, ...]:
        """What the operations of a file take, in milliseconds, from a run of its own: profiling slows it down.

        Raises:
            OSError, DeviceError, ValueError: as `measure`.
        """
        return read_op_profile(
            self._run(file, threads, runs, 1, gpu, "--enable_op_profiling=true", "--use_profiler=true")
        )

    def versions(self) -> dict[str, str]:
        """{program: version} of adb, and of benchmark_model, which has none, its sha256."""
        found = re.search(r"version (\S+)", _adb("version").stdout)
        with self._tool.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        return {"adb": found[1] if found else "unknown", "benchmark_model": f"sha256 {digest}"}

    def _run(self, file: Path, threads: int, runs: int, warmup: int, gpu: bool, *more: str) -> str:
        """What benchmark_model prints when it times a file, with more flags."""
        self._push(file, file.name)
        kernels = ("--use_gpu=true", "--use_cpu=false") if gpu else ("--use_xnnpack=true", "--use_cpu=true")
        return self._shell(
            f"{PHONE_FOLDER}/benchmark_model",
            f"--graph={PHONE_FOLDER}/{file.name}",
            *(f"--num_threads={threads}", f"--num_runs={runs}", f"--warmup_runs={warmup}"),
            *kernels,
            *more,
        )

    def _push(self, file: Path, name: str) -> None:
        with file.open("rb"):  # a file that cannot be read is an OSError that names it
            pass
        self._shell("mkdir", "-p", PHONE_FOLDER)
        _adb("-s", self.serial, "push", str(file), f"{PHONE_FOLDER}/{name}")

    def _shell(self, *command: str) -> str:
        done = _adb("-s", self.serial, "shell", shlex.join(command))
        return done.stdout + done.stderr


def benchmark_on_phone(
    files: Sequence[Path],
    phone: AndroidPhone,
    threads: int = 1,
    runs: int = 50,
    warmup: int = 5,
    gpu: bool = False,
    command: str = "",
    progress: Callable[[Iterable], Iterable] = iter,
) -> DeviceReport:
    """Times files on a connected phone, one after the other.

    Args:
        files: .tflite files.
        phone: the phone, opened.
        threads, runs, warmup, gpu: as for `AndroidPhone.measure`.
        command: for the report: what gives these results again.
        progress: wraps the files, to show a progress bar.

    Raises:
        OSError, DeviceError, ValueError: as `AndroidPhone.measure`.
    """
    return DeviceReport(
        device=phone.device,
        os=phone.os,
        soc=phone.soc,
        kind="phone",
        date=datetime.now(UTC).date().isoformat(),
        command=command,
        results=tuple(phone.measure(file, threads, runs, warmup, gpu) for file in progress(files)),
        versions=phone.versions(),
    )


def _check_arm64(tool: Path) -> None:
    with tool.open("rb") as content:
        header = content.read(20)
    if header[:4] != b"\x7fELF" or header[4] != ELF_64_BIT or int.from_bytes(header[18:20], "little") != ELF_AARCH64:
        raise ValueError(
            f"{tool} is not a program for arm64 phones: found a file that starts with {header[:4]!r}, expected "
            "LiteRT's benchmark_model, built for Android on arm64."
        )


def _adb(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["adb", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line or "error" in line]
        said = said or (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise DeviceError(f"adb {' '.join(arguments)} failed: {' '.join(said)}")
    return done


def _choose_phone(listing: str, serial: str | None) -> str:
    """The serial number of the phone to use, from what `adb devices` prints."""
    states = dict(line.split("\t", 1) for line in listing.splitlines() if "\t" in line)
    if not states:
        raise DeviceError("No Android phone is connected. Plug one in, with USB debugging on (developer options).")
    if serial is None and len(states) > 1:
        raise DeviceError(f"Several phones are connected: {', '.join(states)}. Name one with --serial.")
    serial = serial or next(iter(states))
    if serial not in states:
        raise DeviceError(f"No phone {serial} is connected. Connected: {', '.join(states)}.")
    if states[serial] == "unauthorized":
        raise DeviceError(f"The phone {serial} does not trust this computer yet. Unlock it and allow USB debugging.")
    if states[serial] != "device":
        raise DeviceError(f"The phone {serial} cannot be used: adb says {states[serial]!r}. Reconnect it.")
    return serial


def _delegated(text: str, file: Path, gpu: bool) -> str:
    """What the GPU has taken of the file, for the note; that it took nothing is an error."""
    if not gpu:
        return ""
    if "will not be executed by the delegate" in text:
        raise DeviceError(f"The phone's GPU takes no operation of {file}. Export it with --quantize float16 or none.")
    partial = PARTIAL.search(text)
    return f"; partly on the CPU, in {partial[1]} GPU kernels" if partial else ""
