"""The report of an export, which is printed as a table and written beside the file as JSON. Room: deploy."""

import collections
import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from keras_efficientformer.files import bare_name
from keras_efficientformer.layers.names import MASKS
from keras_efficientformer.reporting import facts_table, finite_only

# What a package calls a segmentation model's output that has the numbers of the best classes in place of all values.
CLASS_NUMBERS = "classes"
ON_CPU = " (OpenVINO on the CPU, no NPU)"


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of an exported file.

    Attributes:
        name: as the file has it.
        shape: with the batch.
        dtype: NumPy's name of it.
        scale, zero_point: real value = scale * (stored value - zero_point); None where values are stored as they are.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class Difference:
    """How far an output of the exported file is from the Keras model's.

    Attributes:
        output: name of the output.
        max, mean: largest and mean absolute difference, in the output's units.
        largest: the largest absolute value of the Keras model's output, to judge them by.
        top1_agreement: share of the images, in [0, 1], whose largest class is the same, or of masks share of the
            pixels; None where there are not two classes at least.
    """

    output: str
    max: float
    mean: float
    largest: float
    top1_agreement: float | None

    @property
    def relative(self) -> float:
        """The largest difference, relative to the largest value where that is over 1: probabilities are left alone."""
        return self.max / max(1.0, self.largest)


@dataclass(frozen=True)
class NPUReport:
    """A file that was compiled for an NPU, made of the exported one.

    Attributes:
        target: the NPU, "maker:chip"; "intel" is OpenVINO on the CPU.
        path: the compiled file.
        size: bytes.
        sha256: of the file.
        operations: how many operations the exported file has, as the compiler counts them.
        taken: how many of these the NPU computes.
        partitions: how many parts of the graph those are; 1 where nothing lies between them.
        left: number of operations of each kind that are left to the CPU, most frequent first.
        differences: as in `ExportReport`, of the compiled file, which was run here; None where it could not be.
    """

    target: str
    path: str
    size: int
    sha256: str
    operations: int
    taken: int
    partitions: int
    left: dict[str, int]
    differences: tuple[Difference, ...] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the NPU computes everything, in one part."""
        return self.partitions == 1 and not self.left

    @property
    def verdict(self) -> str:
        """What the NPU takes, in a line: "intel takes all 82 operations in one partition; not run here"."""
        if self.is_whole:
            words = f"{self.target} takes all {self.operations} operations in one partition"
        else:
            words = f"{self.target} takes only {self.taken} of {self.operations} operations, in {self.partitions} "
            left = ", ".join(f"{number} {kind}" for kind, number in self.left.items())
            words += f"partition{'s' if self.partitions != 1 else ''}; left to the CPU: {left or 'nothing'}"
        if self.differences is None:
            return f"{words}; not run here"
        worst = max(difference.relative for difference in self.differences)
        return f"{words}; run here{ON_CPU if self.target == 'intel' else ''}: largest difference {short(worst)}"


@dataclass(frozen=True)
class SizeReport:
    """One more input size of an exported file, which shares its weights with the first one.

    Attributes:
        name: of its signature (TFLite) or function (Core ML).
        inputs, outputs, differences, operations, accelerator: as in `ExportReport`, of this size.
    """

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    differences: tuple[Difference, ...]
    operations: dict[str, int]
    accelerator: str | None = None


@dataclass(frozen=True)
class ExportReport:
    """What was exported, how it was checked and with what result.

    Attributes:
        path: the file.
        mode: its quantization or precision.
        size: bytes.
        sha256: of the file; of a package, `report_sidecar.content_hash`.
        model: name of the Keras model.
        preprocessing: whether the input is raw RGB in 0..255.
        inputs, outputs: the file's tensors.
        labels: class names, or None.
        differences: one for each output, over `images` images.
        limit: the largest `Difference.relative` at which the file would have been written.
        images: how many images the file and the model were compared on.
        images_from: where those came from.
        operations: number of operations of each kind, most frequent first.
        partitions: how many parts of the graph XNNPACK computes here; 1 where nothing is left to slower kernels; None
            for Core ML.
        requires: the oldest runtime or system that the file can be run with.
        checkpoint: file name and sha256 of the checkpoint that the model was loaded from, where that is known.
        accelerator: what an engine other than the CPU's makes of it, where the export had to run on one.
        versions: of the tools that made the file.
        seconds: how long the export took, the check included.
        npu: of the file that was compiled for an NPU, if one was asked for.
        further_sizes: the input sizes after the one that the rest of the report is of, which opens by default.
        bits: {layer of the model: bits of its weights} where they were chosen layer by layer; else None.
    """

    path: str
    mode: str
    size: int
    sha256: str
    model: str
    preprocessing: bool
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    labels: tuple[str, ...] | None
    differences: tuple[Difference, ...]
    limit: float
    images: int
    images_from: str
    operations: dict[str, int]
    partitions: int | None
    requires: str
    checkpoint: dict[str, str] | None
    accelerator: str | None
    versions: dict[str, str]
    seconds: float
    npu: NPUReport | None = None
    further_sizes: tuple[SizeReport, ...] = ()
    bits: dict[str, int] | None = None

    def to_json(self) -> str:
        """The report as indented JSON, files by their names alone; numbers that are not finite are null."""
        npu = self.npu and dataclasses.asdict(self.npu) | {"path": bare_name(self.npu.path)}
        values = dataclasses.asdict(self) | {"path": bare_name(self.path), "npu": npu}
        return json.dumps(finite_only(values), indent=2, allow_nan=False) + "\n"

    @property
    def all_differences(self) -> tuple[Difference, ...]:
        """Those of every input size, the first one's first."""
        return self.differences + tuple(difference for size in self.further_sizes for difference in size.differences)

    @property
    def worst(self) -> Difference:
        """The difference that comes nearest to the limit."""
        return max(self.all_differences, key=lambda difference: difference.relative)

    @property
    def verdict(self) -> str:
        """Whether the file may be used, in a line: "same answers as the Keras model: largest difference 1e-6, ..."."""
        shares = [d.top1_agreement for d in self.all_differences if d.top1_agreement is not None]
        words = "values close to the Keras model's" if not shares else "same answers as the Keras model"
        if shares and min(shares) < 1:
            of_what = "the pixels of " if any(tensor.name in (MASKS, CLASS_NUMBERS) for tensor in self.outputs) else ""
            words = f"same answers as the Keras model on {min(shares):.1%} of {of_what}{self.images} images"
        relative = " of the largest value" if self.worst.largest > 1 else ""
        limit = f"limit {short(self.limit)}" if math.isfinite(self.limit) else "and no limit was set"
        npu = f"; {self.npu.verdict}" if self.npu else ""
        return f"{words}: largest difference {short(self.worst.relative)}{relative}, {limit}{npu}"

    def facts(self) -> dict[str, str]:
        """What else there is to say of the file, in words, by its name."""
        partitions = f", {self.partitions} XNNPACK partition{'s' if self.partitions != 1 else ''}"
        partitions = partitions if self.partitions is not None else ""
        checkpoint = {"checkpoint": ", ".join(self.checkpoint.values())} if self.checkpoint else {}
        accelerator = {"GPU": self.accelerator} if self.accelerator else {}
        accelerator |= {f"GPU, {size.name}": size.accelerator for size in self.further_sizes if size.accelerator}
        counts = sorted(collections.Counter((self.bits or {}).values()).items())
        bits = {"bits": ", ".join(f"{bits} of {number} layers" for bits, number in counts)} if counts else {}
        npu = {"NPU": f"{Path(self.npu.path).name}, {self.npu.size / 1e6:.1f} MB"} if self.npu else {}
        return {
            "model": self.model,
            "mode": f"{self.mode}, {self.size / 1e6:.1f} MB, {sum(self.operations.values())} operations{partitions}",
            **bits,
            "input": _describe(self.inputs) + (", raw RGB 0..255" if self.preprocessing else ", normalised"),
            "output": _describe(self.outputs),
            **{size.name: _describe(size.inputs) for size in self.further_sizes},
            "needs": self.requires,
            "compared on": f"{self.images} images: {self.images_from}",
            **checkpoint,
            **accelerator,
            **npu,
            "time": f"{self.seconds:.1f} s",
        }

    def named_differences(self) -> list[tuple[str, Difference]]:
        """(output, its difference) of every input size; "logits of size_256" of those after the first one."""
        further = [(f"{d.output} of {size.name}", d) for size in self.further_sizes for d in size.differences]
        return [*((d.output, d) for d in self.differences), *further]

    def __rich__(self) -> Table:
        table = facts_table(Text(Path(self.path).name))
        rows = {"verdict": self.verdict, "file": self.path, **self.facts()}
        for output, difference in self.named_differences():
            text = f"largest difference {short(difference.max)}, mean {short(difference.mean)}"
            if difference.top1_agreement is not None:
                text += f", same top-1 on {difference.top1_agreement:.1%}"
            rows[f"{output} against Keras"] = text
        for name, text in rows.items():
            table.add_row(name, Text(text))  # it is not read as markup: paths and shapes are full of brackets
        return table


def short(number: float) -> str:
    """ "1e-6", "0.0034"."""
    return re.sub(r"e([+-])0", r"e\1", f"{number:.2g}")


def _describe(tensors: tuple[TensorInfo, ...]) -> str:
    return "; ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in tensors)


def compare(output: str, expected: np.ndarray, found: np.ndarray, classes: bool) -> Difference:
    """The difference between the Keras model's output and the exported file's.

    Args:
        output: its name.
        expected, found: the two, float arrays of one shape (images, ...); or the second has, in place of the values of
            all classes, the number of the best one, whose difference is the share of an image's pixels with another.
        classes: whether their last axis is that of classes, so that the largest is compared too.
    """
    if found.ndim < expected.ndim:
        others = (found != expected.argmax(-1)).mean(axis=(1, 2))
        return Difference(output, float(others.max()), float(others.mean()), 1.0, 1.0 - float(others.mean()))
    distance = np.abs(np.asarray(expected, "float64") - np.asarray(found, "float64"))
    # Of one class it is always the same.
    is_told_apart = classes and expected.shape[-1] > 1
    agreement = float(np.mean(expected.argmax(-1) == found.argmax(-1))) if is_told_apart else None
    # A NaN would compare as smaller than any limit.
    largest = float(np.max(distance)) if np.isfinite(distance).all() else float("inf")
    return Difference(output, largest, float(np.mean(distance)), float(np.abs(expected).max()), agreement)
