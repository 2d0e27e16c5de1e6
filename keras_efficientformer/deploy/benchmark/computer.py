"""Measures latency, load time and memory of .tflite files on this computer. Room: deploy/benchmark."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficientformer.deploy.benchmark import litert_memory, litert_profiler
from keras_efficientformer.deploy.benchmark.op_profile import median_profile, read_op_profile
from keras_efficientformer.deploy.benchmark.reports import (
    Cost,
    DeviceReport,
    Latency,
    model_and_mode,
    this_computer,
)
from keras_efficientformer.deploy.input_sizes import described
from keras_efficientformer.deploy.tflite.accelerators.gpu import run_on_gpu
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel, check_survival
from keras_efficientformer.deploy.tflite.sizes.signatures import signature_sizes
from keras_efficientformer.errors import DeviceError
from keras_efficientformer.images import seeded_images
from keras_efficientformer.reporting import versions_of


def benchmark_tflite(
    files: Sequence[Path],
    threads: int = 1,
    runs: int = 50,
    warmup: int = 5,
    command: str = "",
    progress: Callable[[Iterable], Iterable] = iter,
) -> DeviceReport:
    """Times files on this computer's CPU with LiteRT and XNNPACK.

    Several files are run in turns, one inference of each, so that noise hits all alike; in another order each time, for
    the first of a turn takes some 3% more than the others. What is timed is the inference alone, on seeded images; load
    time and memory are those of a fresh process for each file.

    Args:
        files: .tflite files with one image input.
        threads: of XNNPACK, >= 1.
        runs: timed inferences of each file, >= 1.
        warmup: inferences before them.
        command: for the report: what gives these results again.
        progress: wraps the turns, to show a progress bar.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is no image network that LiteRT can run, or a number is out of its range.
        ImportError: LiteRT is not installed.
    """
    _check_numbers(threads, runs, warmup)
    inferences = [_inference(file, threads) for file in files]
    samples: list[list[float]] = [[] for _ in files]
    pairs = list(zip(inferences, samples, strict=True))
    shuffle = random.Random(0).shuffle
    for turn in progress(range(warmup + runs)):
        shuffle(pairs)
        for inference, milliseconds in pairs:
            started = time.perf_counter()
            inference()
            if turn >= warmup:
                milliseconds.append(1000 * (time.perf_counter() - started))
    measured = [_run_script(litert_memory.__file__, file, threads) for file in files]
    results = [
        Latency.of(milliseconds, **file_facts(file), unit="cpu", threads=threads, note=notes_on(file), **facts)
        for file, milliseconds, facts in zip(files, samples, measured, strict=True)
    ]
    return _report(results, command)


def benchmark_on_gpu(
    files: Sequence[Path],
    runs: int = 50,
    warmup: int = 5,
    command: str = "",
    progress: Callable[[Iterable], Iterable] = iter,
) -> DeviceReport:
    """Times files on this computer's GPU with LiteRT's engine, in the arithmetic that apps get: float16 where it can.

    Each file is run in a process of its own, one after the other. A time holds the image's way to the GPU and the
    scores' way back; the load time holds the compilation of the shaders.

    Args:
        files, runs, warmup, command: as for `benchmark_tflite`.
        progress: wraps the files, to show a progress bar.

    Raises:
        OSError, ValueError, ImportError: as `benchmark_tflite`.
        DeviceError: there is no GPU driver, or the GPU does not compute all of a file.
    """
    _check_numbers(1, runs, warmup)
    return _report([_gpu_latency(file, runs, warmup) for file in progress(files)], command)


def _gpu_latency(file: Path, runs: int, warmup: int) -> Latency:
    check_survival(file)
    found = run_on_gpu(file, input_batch(LiteRTModel(file))[np.newaxis], float32=False, warmup=warmup, runs=runs)
    if found.found != "whole" or found.errors:
        raise DeviceError(
            f"{file.name} is not wholly and rightly computed on {found.adapter}, and the time of less would mislead. "
            "`efficientformer inspect FILE --gpu` says what is left out."
        )
    note = f"on {found.adapter}"
    if found.software:
        note += ", a driver that computes on the CPU: that it runs is worth knowing, its time says nothing of a GPU"
    return Latency.of(
        found.milliseconds,
        **file_facts(file),
        unit="gpu",
        threads=None,
        load_ms=found.load_ms,
        note=notes_on(file, note),
    )


def _check_numbers(threads: int, runs: int, warmup: int) -> None:
    if threads < 1 or runs < 1 or warmup < 0:
        raise ValueError(
            f"`threads` and `runs` should be >= 1 and `warmup` >= 0. Received: threads={threads}, runs={runs}, "
            f"warmup={warmup}"
        )


def _report(results: Sequence[Latency], command: str) -> DeviceReport:
    device, system = this_computer()
    return DeviceReport(
        device=device,
        os=system,
        soc=None,
        kind="computer",
        date=datetime.now(UTC).date().isoformat(),
        command=command,
        versions=versions_of("keras-efficientformer", "ai-edge-litert", "numpy"),
        results=tuple(results),
    )


def profile_tflite(file: Path, threads: int = 1) -> tuple[Cost, ...]:
    """What the operations of a file take on this computer's CPU, in milliseconds, the largest first.

    Raises:
        OSError, ValueError, ImportError: as `benchmark_tflite`.
        DeviceError: LiteRT's profiler does not work here.
    """
    check_survival(file)
    LiteRTModel(file)  # it raises a clear error for an unfit file, and the profiler would not
    profile = _run_script(litert_profiler.__file__, file, threads)
    return median_profile([read_op_profile(tables, profile["runs"]) for tables in profile["tables"]])


def file_facts(file: Path) -> dict[str, Any]:
    """What a `Latency` says about the file itself."""
    model, mode = model_and_mode(file)
    return {"file": file.name, "model": model, "mode": mode, "bytes": file.stat().st_size}


def notes_on(file: Path, *more: str) -> str | None:
    """What a `Latency` notes, besides `more`, of a .tflite file that has several input sizes: which is run."""
    sizes = [described(size) for size in signature_sizes(file).values()]
    found = [f"{file.name}: the first of its sizes, {', '.join(sizes)}; all of them are loaded"] if sizes[1:] else []
    return "; ".join((*more, *found)) or None


def input_batch(model: LiteRTModel) -> np.ndarray:
    """Seeded images as the input tensor of a file takes them: of its shape, with its batch, and its dtype."""
    (tensor,) = model.inputs
    pixels = np.resize(seeded_images(model.input_shape), tensor.shape)
    if np.issubdtype(tensor.dtype, np.integer):
        pixels = pixels + np.iinfo(tensor.dtype).min  # the whole range of int8 and uint8 stands for 0..255
    return pixels.astype(tensor.dtype)


def _inference(file: Path, threads: int) -> Callable[[], Any]:
    """A function that runs the file once, on an input that is set already."""
    batch = input_batch(LiteRTModel(file, threads))  # it raises a clear error for an unfit file
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file), num_threads=threads)
    interpreter.allocate_tensors()
    (detail,) = interpreter.get_input_details()
    interpreter.set_tensor(detail["index"], batch)
    return interpreter.invoke


def _run_script(script: str, file: Path, threads: int) -> Any:
    """What a script of this folder prints as JSON about a file, in a process of its own.

    Raises:
        DeviceError: the script fails; the message has its last line.
    """
    # With -P this folder's modules do not stand before installed packages of their names.
    command = [sys.executable, "-P", script, str(file), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise DeviceError(f"{Path(script).name} does not work on {file} with this LiteRT: {last[0]}")
    return json.loads(done.stdout)
