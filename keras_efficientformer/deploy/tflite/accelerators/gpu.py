"""Runs a .tflite file on LiteRT's GPU engine and compares it with the CPU. Room: deploy/tflite/accelerators.

The engine (ML Drift) comes with LiteRT, and runs on any Vulkan driver, also on one that computes on the CPU, which
`tflite/gpu/setup.sh` of the source tree fetches. That a file is "fully accelerated" proves nothing: shaders that do not
compile are told on standard error alone, and the outputs are noise. So what it computes is compared.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_efficientformer.deploy.report import Difference, compare, short
from keras_efficientformer.deploy.tflite.accelerators.compiled_model import library_path, run_compiled
from keras_efficientformer.deploy.tflite.metadata import read_facts
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel, real_values
from keras_efficientformer.errors import DeviceError, listing
from keras_efficientformer.files import cache_folder
from keras_efficientformer.images import seeded_images

# Where Linux' Vulkan loader looks for drivers, and the variables that name others.
DRIVERS = ("/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d")
DRIVER_VARIABLES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
SOFTWARE_DRIVER = "driver.json"
# The largest difference from the CPU, relative to the largest value, by the types that a file computes in: the GPU
# computes quantized values in float, and the CPU what is stored in float16 sometimes in float16.
INTEGER_NOISE, FLOAT16_NOISE, FLOAT32_NOISE = 0.1, 0.02, 1e-5
INTEGERS = {"int8", "uint8", "int16"}
ADAPTER = re.compile(r"Selected adapter: (.+?), arch=.*adapterType=(.+)")
SHARES = re.compile(r"(\d+) operations will run on the GPU, and the remaining (\d+) operations will run on the CPU")
REFUSALS = re.compile(r"operations are not supported by GPU delegate:\n(.*?)\n\d+ operations will run", re.DOTALL)
# The name of a tensor at the end of a refusal: each has another.
TENSOR = re.compile(r"(?<=\.) \S+$")


def software_folder() -> Path:
    """Where `tflite/gpu/setup.sh` puts its driver; the environment variable EFFICIENTFORMER_GPU names another."""
    return cache_folder("gpu", "EFFICIENTFORMER_GPU")


@dataclass(frozen=True)
class GpuRun:
    """What LiteRT's GPU engine made of a file.

    Attributes:
        adapter: what the driver calls the GPU.
        software: whether the driver computes on the CPU, so that times say nothing of a GPU.
        found: "whole", "partial" (the CPU did the rest) or "refused" (the engine could not be made at all).
        refused: the operations that it left to the CPU and why, each kind once, with how often.
        on_cpu: how many those are.
        errors: what it could not compute, and did not say but on standard error.
        outputs: {name: array (number of inputs, *shape of the output)}, as the file stores them; empty where refused.
        load_ms: milliseconds from the file to a model that is ready, its shaders compiled; None where refused.
        milliseconds: of the timed runs.
    """

    adapter: str
    software: bool
    found: str
    refused: tuple[str, ...]
    on_cpu: int
    errors: tuple[str, ...]
    outputs: dict[str, np.ndarray]
    load_ms: float | None
    milliseconds: tuple[float, ...]


def run_on_gpu(
    file: str | os.PathLike[str],
    inputs: np.ndarray,
    float32: bool = True,
    warmup: int = 0,
    runs: int = 0,
    signature: str = "",
) -> GpuRun:
    """Runs a .tflite file with one input on this machine's GPU engine, in another process.

    Args:
        file: the path.
        inputs: array (number, *shape of the input with its batch), of its dtype.
        float32: whether float16 arithmetic is forbidden, which is LiteRT's default.
        warmup, runs: runs of the first input besides those, and how many of them are timed.
        signature: of the network that is run; "" for the file's first.

    Raises:
        DeviceError: there is no driver, or the engine ended its process.
        ImportError: LiteRT is not installed.
    """
    run = run_compiled(file, inputs, "GPU", _driver_variables(), float32, warmup, runs, signature)
    adapter = ADAPTER.search(run.log)
    if adapter is None:
        raise DeviceError(
            "LiteRT finds no GPU here: it needs a Vulkan driver (Linux), Metal or Direct3D. Without a GPU, "
            "tflite/gpu/setup.sh of the source tree fetches a driver that computes on the CPU (Debian, amd64) into "
            f"{software_folder()}."
        )
    if run.found == "crash":
        raise DeviceError(f"{file} ends LiteRT's GPU engine on {adapter[1]}: {run.message}")
    shares = SHARES.findall(run.log)
    errors = [line.partition("Validation error: ")[2] for line in run.log.splitlines() if "Validation error" in line]
    return GpuRun(
        adapter=adapter[1],
        software="Software" in adapter[2],
        found=run.found,
        refused=_refusals(run.log) or tuple(filter(None, [run.message])),
        on_cpu=int(shares[-1][1]) if shares else 0,
        errors=tuple(dict.fromkeys(errors)),
        outputs=run.outputs,
        load_ms=run.load_ms,
        milliseconds=run.milliseconds,
    )


def _driver_variables() -> dict[str, str]:
    """The environment by which the process finds a driver: the machine's own, else the one of `software_folder`."""
    folder = software_folder()
    if not (folder / "ready").exists():
        return {}
    # The folder also has a Vulkan loader, for machines without.
    variables = library_path(folder)
    has_own = any(map(os.environ.get, DRIVER_VARIABLES)) or any(any(Path(place).glob("*.json")) for place in DRIVERS)
    return variables if has_own else variables | {DRIVER_VARIABLES[1]: str(folder / SOFTWARE_DRIVER)}


def _refusals(log: str) -> tuple[str, ...]:
    found = REFUSALS.findall(log)
    counted = Counter(TENSOR.sub("", line.strip()) for line in found[-1].splitlines()) if found else Counter()
    return tuple(f"{reason} ({times} times)" if times > 1 else reason for reason, times in counted.most_common())


@dataclass(frozen=True)
class GpuCheck:
    """What a file gives on LiteRT's GPU engine, beside LiteRT's CPU.

    Attributes:
        adapter, software, refused, errors: as in `GpuRun`.
        operations, on_cpu: how many operations the file has, and how many of them the GPU refuses.
        found: "whole", "partial", "refused", as in `GpuRun`; or "wrong", whole or in part.
        differences: from the CPU, one for each output; none where refused.
        limit: the largest difference, relative to the largest value, at which it is not "wrong".
    """

    adapter: str
    software: bool
    found: str
    operations: int
    on_cpu: int
    refused: tuple[str, ...]
    errors: tuple[str, ...]
    differences: tuple[Difference, ...]
    limit: float

    @property
    def passes(self) -> bool:
        """Whether the GPU computes all of it, and rightly."""
        return self.found == "whole"

    @property
    def verdict(self) -> str:
        """What was found, in a sentence."""
        place = f"{self.adapter}{', a driver that computes on the CPU' if self.software else ''}"
        worst = max((d.max for d in self.differences), default=0.0)
        difference = f"largest difference from LiteRT's CPU {short(worst)}"
        if self.found == "whole":
            return f"whole: all {self.operations} operations on {place}; {difference}"
        if self.found == "refused":
            return f"refused by LiteRT's GPU engine on {place}: {listing(self.refused)}"
        words = (
            f"{self.found}: {self.operations - self.on_cpu} of {self.operations} operations on {place}; {difference}"
        )
        words += f"; left to the CPU: {listing(self.refused)}" if self.refused else ""
        return words + (f"; the engine says: {self.errors[0]}" if self.errors else "")


def check_on_gpu(
    file: str | os.PathLike[str], images: np.ndarray | None = None, signature: str | None = None
) -> GpuCheck:
    """Runs a .tflite file on this machine's GPU engine in float32 arithmetic, and compares it with LiteRT's CPU.

    Args:
        file: the path of an image network that LiteRT survives (`check_survival`).
        images: float array (number, height, width, channels) as the file takes them; None means four seeded ones.
        signature: as of `LiteRTModel`.

    Raises:
        OSError: the file is missing, or there is no GPU driver (`DeviceError`).
        ValueError: it is no image network that LiteRT can run.
        ImportError: LiteRT is not installed.
    """
    model = LiteRTModel(file, signature=signature)
    if images is None:
        images = seeded_images(model.input_shape)
        facts = read_facts(model.path)
        images = facts.inputs(images) if facts is not None and facts.mean else images
    run = run_on_gpu(file, np.stack([batch for batch, _ in model.batches(images)]), signature=signature or "")
    expected = model.predict(images)
    limit = _noise(model)
    differences = []
    for tensor in model.outputs if run.outputs else ():
        values = real_values(run.outputs[tensor.name], tensor)
        values = values.reshape(-1, *expected[tensor.name].shape[1:])[: len(images)]
        differences.append(compare(tensor.name, expected[tensor.name], values, classes=values.ndim == 2))
    # Not `Difference.relative`, which leaves probabilities alone: those of a thousand classes are small, and noise too.
    is_wrong = bool(run.errors) or any(not d.max <= limit * d.largest for d in differences)
    return GpuCheck(
        adapter=run.adapter,
        software=run.software,
        found="wrong" if is_wrong else run.found,
        operations=sum(model.operations().values()),
        on_cpu=run.on_cpu,
        refused=run.refused,
        errors=run.errors,
        differences=tuple(differences),
        limit=limit,
    )


def _noise(model: LiteRTModel) -> float:
    types = model.dtypes()
    if types & INTEGERS:
        return INTEGER_NOISE
    return FLOAT16_NOISE if "float16" in types else FLOAT32_NOISE
