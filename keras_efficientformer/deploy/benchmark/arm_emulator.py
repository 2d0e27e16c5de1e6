"""Runs .tflite files in LiteRT's Arm build under qemu-user and counts instructions. Room: deploy/benchmark.

The figures are of instructions, not of time: caches and pipelines are not emulated. They repeat exactly, on any machine
and under any load. `tflite/arm/setup.sh` of the source tree sets the emulator up.
"""

import bisect
import collections
import importlib.metadata
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from keras_efficientformer.deploy.benchmark.computer import file_facts, input_batch, notes_on
from keras_efficientformer.deploy.benchmark.reports import Cost, DeviceReport, Latency
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.errors import DeviceError
from keras_efficientformer.files import cache_folder

# The values are qemu's names. The first CPU is in-order and without dot products, two have them, and the last has
# everything (i8mm, SVE2) but SME, which qemu 7.2 computes wrongly.
CPUS = {"cortex-a53": "cortex-a53", "cortex-a76": "cortex-a76", "neoverse-n1": "neoverse-n1", "max": "max,sme=off"}
LIBRARY = "ai_edge_litert/libpywrap_litert_common.so"
NOTE = "instructions of one inference on one thread, counted by qemu-user; not a time"


def default_folder() -> Path:
    """Where `tflite/arm/setup.sh` puts the emulator; the environment variable EFFICIENTFORMER_ARM names another."""
    return cache_folder("arm", "EFFICIENTFORMER_ARM")


class ArmEmulator:
    """An emulated Arm CPU with LiteRT on it.

    Args:
        cpu: one of `CPUS`.
        folder: that `tflite/arm/setup.sh` has filled; None means `default_folder()`.

    Raises:
        ValueError: an unknown CPU.
        DeviceError: the emulator is not set up in that folder.
    """

    def __init__(self, cpu: str, folder: str | Path | None = None) -> None:
        if cpu not in CPUS:
            raise ValueError(f"The emulated CPU should be one of {', '.join(CPUS)}. Received: {cpu}")
        self.cpu = cpu
        self.folder = Path(folder or default_folder()).resolve()
        if not (self.folder / "ready").exists():
            raise DeviceError(
                f"The emulated Arm CPUs are not set up in {self.folder}. On Debian 12 run tflite/arm/setup.sh of the "
                "source tree, or name another folder in the environment variable EFFICIENTFORMER_ARM."
            )

    def predict(self, file: str | Path, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of a file on this CPU.

        Args:
            file: a .tflite file with one input.
            inputs: (number, *shape of the input tensor with its batch), of its dtype.

        Returns:
            {output name: array (number, *shape of the output tensor)}, as the file stores them.

        Raises:
            DeviceError: LiteRT failed on the emulated CPU.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self._run(Path(file), inputs, Path(folder))

    def count(self, file: str | Path) -> tuple[Cost, ...]:
        """Instructions of one inference by kernel, in millions, the largest first.

        Kernels are the functions of LiteRT's library; what runs elsewhere bears the library's name in brackets.

        Raises:
            OSError, ValueError: the file is missing or is no image network; LiteRT fails on the emulated CPU.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            batch = input_batch(LiteRTModel(file))
            # Of two inferences the second is counted: the first also prepares.
            self._run(Path(file), np.stack([batch, batch]), folder)
            modules = _modules((folder / "maps").read_text())
            blocks = [(int(a, 16), int(n)) for a, n in map(str.split, (folder / "histogram").read_text().splitlines())]
        kernels = self._kernels(blocks, modules)
        total = sum(kernels.values())
        return tuple(Cost(name, None, number / 1e6, number / total) for name, number in kernels.most_common())

    @property
    def device(self) -> str:
        """The CPU's name in reports, e.g. "Arm Cortex-A76"."""
        return f"Arm {self.cpu.title()}"

    @property
    def os(self) -> str:
        """qemu's release in reports, e.g. "qemu 7.2"."""
        return f"qemu {'.'.join(self.versions()['qemu'].split('.')[:2])}"

    def versions(self) -> dict[str, str]:
        """{program or package: version} of qemu and of the Python packages that run in it."""
        found = re.search(r"version ([\d.]+)", self._qemu("--version").stdout)
        packages = importlib.metadata.distributions(path=[str(self.folder / "site")])
        return {"qemu": found[1] if found else "unknown"} | {package.name: package.version for package in packages}

    def _run(self, file: Path, inputs: np.ndarray, folder: Path) -> dict[str, np.ndarray]:
        """The outputs of a file; what the emulator writes, `histogram` and `maps`, stays in the folder."""
        np.save(folder / "inputs.npy", inputs)
        root = self.folder / "root"
        variables = {
            "PYTHONHOME": root / "usr",
            "PYTHONPATH": self.folder / "site",
            "PYTHONDONTWRITEBYTECODE": "",  # to compile its modules anew takes most of the start
            "PYTHONHASHSEED": 0,
            "OPENBLAS_NUM_THREADS": 1,
        }
        done = self._qemu(
            *("-plugin", f"{self.folder / 'libcount.so'},histogram={folder / 'histogram'}"),
            *("-cpu", CPUS[self.cpu]),
            *(word for name, value in variables.items() for word in ("-E", f"{name}={value}")),
            *("-L", self.folder / f"root-{self.cpu}"),
            *(root / "usr/bin/python3.11", self.folder / "infer.py", file.resolve()),
            *(folder / "inputs.npy", folder / "outputs.npz", folder / "maps"),
        )
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise DeviceError(f"{file} does not run on the emulated {self.cpu}: {last[0]}")
        with np.load(folder / "outputs.npz") as outputs:
            return dict(outputs)

    def _qemu(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        program = self.folder / "qemu/usr/bin/qemu-aarch64"
        libraries = self.folder / "qemu/usr/lib/x86_64-linux-gnu"
        return subprocess.run(
            [program, *arguments],
            env=os.environ | {"LD_LIBRARY_PATH": str(libraries)},
            capture_output=True,
            text=True,
            check=False,
        )

    def _kernels(
        self, blocks: Iterable[tuple[int, int]], modules: Sequence[tuple[int, int, str]]
    ) -> collections.Counter[str]:
        """Instructions by kernel, of blocks (address, instructions) and of what `_modules` returned."""
        library = Path(LIBRARY).name
        base = min(start for start, _, name in modules if name == library)
        symbols = function_symbols(self.folder / "site" / LIBRARY)
        addresses = [address for address, _ in symbols]
        kernels: collections.Counter[str] = collections.Counter()
        for address, instructions in blocks:
            module = next((name for start, end, name in modules if start <= address < end), "?")
            known = module == library
            kernel = symbols[bisect.bisect_right(addresses, address - base) - 1][1] if known else f"[{module}]"
            kernels[kernel] += instructions
        return kernels


def count_instructions(
    files: Sequence[Path],
    emulator: ArmEmulator,
    command: str = "",
    progress: Callable[[Iterable], Iterable] = iter,
) -> tuple[DeviceReport, dict[str, tuple[Cost, ...]]]:
    """Counts the instructions of one inference of each file on one thread of an emulated CPU.

    Args:
        files: .tflite files with one image input.
        emulator: the CPU.
        command: for the report: what gives these results again.
        progress: wraps the files, to show a progress bar.

    Returns:
        The report, and {file name: its kernels' shares}.

    Raises:
        OSError, ValueError: a file is missing or is no image network; the emulated LiteRT fails on it.
    """
    kernels = {file.name: emulator.count(file) for file in progress(files)}
    report = DeviceReport(
        device=emulator.device,
        os=emulator.os,
        soc=None,
        kind="emulator",
        date=datetime.now(UTC).date().isoformat(),
        command=command,
        versions=emulator.versions(),
        results=tuple(
            Latency(
                **file_facts(file),
                unit="cpu",
                threads=1,
                runs=0,
                median_ms=None,
                p90_ms=None,
                mean_ms=None,
                min_ms=None,
                instructions=sum(cost.amount for cost in kernels[file.name]),
                note=notes_on(file, NOTE),
            )
            for file in files
        ),
    )
    return report, kernels


def _modules(maps: str) -> list[tuple[int, int, str]]:
    """(start, end, file name) of what a process has mapped from files."""
    found = []
    for line in maps.splitlines():
        fields = line.split()
        if len(fields) > 5:
            start, end = (int(side, 16) for side in fields[0].split("-"))
            found.append((start, end, Path(fields[-1]).name))
    return found


def function_symbols(library: Path) -> list[tuple[int, str]]:
    """(address, name) of a library's functions, ordered; C++ names as in the source, without types of arguments."""
    listing = subprocess.run(["nm", library], capture_output=True, text=True, check=True).stdout
    readable = subprocess.run(["c++filt", "--no-params"], input=listing, capture_output=True, text=True, check=True)
    symbols = set()
    for line in readable.stdout.splitlines():
        fields = line.split(maxsplit=2)  # names may hold spaces
        # Marks of code and data ("$x") and labels inside of assembly kernels are no functions.
        inside = len(fields) < 3 or fields[2].startswith("$") or (fields[1] == "t" and fields[2].startswith("label_"))
        if not inside and fields[1] in ("t", "T", "w", "W"):
            symbols.add((int(fields[0], 16), fields[2]))
    return sorted(symbols)
