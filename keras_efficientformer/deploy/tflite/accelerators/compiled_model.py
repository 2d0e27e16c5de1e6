"""Runs .tflite files on accelerators, each in a process of its own. Room: deploy/tflite/accelerators.

What an engine refuses and gets wrong it says on standard error only, a driver may end the process, and where its
libraries lie has to be known before it starts.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_efficientformer.deploy.tflite.accelerators import compiled_process
from keras_efficientformer.errors import DeviceError, first_line

# A GPU driver that computes on the CPU compiles the shaders of a large network for minutes.
RUN_SECONDS = 1800


@dataclass(frozen=True)
class CompiledRun:
    """What became of a file.

    Attributes:
        found: "whole", "partial" (the CPU did the rest), "refused" (no model could be made) or "crash".
        message: of what was refused, or the last words before a crash; else empty.
        log: what LiteRT said on standard error.
        outputs: {name: array (number of inputs, *shape of the output)}, as the file stores them.
        load_ms: milliseconds from the file to a model that is ready; None where there was none.
        milliseconds: of the timed runs.
    """

    found: str
    message: str
    log: str
    outputs: dict[str, np.ndarray]
    load_ms: float | None = None
    milliseconds: tuple[float, ...] = ()


def run_compiled(
    file: str | os.PathLike[str],
    inputs: np.ndarray,
    units: str,
    variables: Mapping[str, str],
    float32: bool = True,
    warmup: int = 0,
    runs: int = 0,
    signature: str = "",
) -> CompiledRun:
    """Runs a .tflite file with one input in LiteRT's CompiledModel.

    Args:
        file: the path.
        inputs: array (number, *shape of the input with its batch), of its dtype.
        units: names of LiteRT's accelerators, "GPU" or "NPU,CPU".
        variables: of the environment, by which the process finds libraries.
        float32: whether a GPU's float16 arithmetic is forbidden, which is LiteRT's default.
        warmup, runs: runs of the first input besides those, and how many of them are timed.
        signature: of the network that is run; "" for the file's first.

    Raises:
        DeviceError: it takes longer than half an hour.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "inputs.npy", inputs)
        arguments = (os.fspath(file), folder, units, str(int(float32)), str(warmup), str(runs), signature)
        done = _run_process(*arguments, variables=variables)
        if done.returncode != 0:
            return CompiledRun("crash", _last_words(done), done.stderr, {})
        said = json.loads(done.stdout.splitlines()[-1])
        if said["found"] == "refused":
            return CompiledRun("refused", said["message"].strip().replace("\n", " "), done.stderr, {})
        with np.load(Path(folder) / "outputs.npz") as outputs:
            times = said["load_ms"], tuple(said["milliseconds"])
            return CompiledRun(said["found"], "", done.stderr, dict(outputs), *times)


def _run_process(*arguments: str, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    # With -P this folder's modules do not stand before installed packages of their names.
    command = [sys.executable, "-P", compiled_process.__file__, *arguments]
    try:
        return subprocess.run(
            command,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=RUN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{arguments[0]} keeps LiteRT busy for more than {RUN_SECONDS} s.") from error


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    # LiteRT goes on to speak after an error in Python.
    return first_line(next((line for line in lines[::-1] if re.match(r"\w+Error\b", line)), lines[-1]))


def library_path(folder: Path) -> dict[str, str]:
    """The variable of the environment by which Linux finds libraries in a folder, after those that it finds already."""
    return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, [os.environ.get("LD_LIBRARY_PATH"), str(folder)]))}
