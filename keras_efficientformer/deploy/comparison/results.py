"""What a comparison of modes has found: a row for each mode, as JSON and as a table. Room: deploy/comparison."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from keras_efficientformer.deploy.benchmark.reports import short_number
from keras_efficientformer.deploy.report import short
from keras_efficientformer.reporting import finite_only

# Five of a thousand images are half a point, whatever a sum of floats makes of them.
ROUNDING = 1e-9


@dataclass(frozen=True)
class ModeScores:
    """How a mode answers, beside the Keras model, on the same images.

    Attributes:
        top1: share of the images whose class it finds, in [0, 1]; None where the classes are not known.
        agreement: share of the images on which its largest score is Keras'.
        drop: how much less than Keras it finds, in [-1, 1], negative where it finds more; without classes the share of
            the images on which the two differ.
        error: standard error of the drop, from what each image adds to it.
        largest_difference: of all scores.
    """

    top1: float | None
    agreement: float
    drop: float
    error: float
    largest_difference: float

    @classmethod
    def of(cls, expected: np.ndarray, found: np.ndarray, targets: np.ndarray | None) -> "ModeScores":
        """Those of scores, both float arrays (images, classes), Keras' first."""
        keras_best, best = expected.argmax(-1), found.argmax(-1)
        if targets is None:
            lost = (keras_best != best).astype(float)
        else:
            lost = (keras_best == targets).astype(float) - (best == targets)
        return cls(
            top1=None if targets is None else float(np.mean(best == targets)),
            agreement=float(np.mean(keras_best == best)),
            drop=float(lost.mean()),
            error=float(lost.std() / np.sqrt(len(lost))),
            largest_difference=float(np.abs(found - expected).max()),
        )

    def keeps_within(self, points: float) -> bool:
        """Whether the drop is at most so many points."""
        return 100 * self.drop <= points + ROUNDING

    def may_exceed(self, points: float) -> bool:
        """Whether the drop may well be more than so many points on other images: with its standard error it is."""
        return 100 * (self.drop + self.error) > points + ROUNDING

    @property
    def drop_in_words(self) -> str:
        """ "0.12 ± 0.20"."""
        return f"{100 * self.drop:.2f} ± {100 * self.error:.2f}"

    def beside_keras(self, images: int) -> str:
        """The drop on so many images in a sentence's words."""
        if self.top1 is None:
            return f"another top-1 than Keras' on {self.drop_in_words}% of {images:,} images"
        points = f"{100 * abs(self.drop):.2f} ± {100 * self.error:.2f} points"
        return f"top-1 {points} {'above' if self.drop < 0 else 'below'} Keras' on {images:,} images"


@dataclass(frozen=True)
class ModeResult:
    """What was found of one mode.

    Attributes:
        mode: its name, "tflite:int8".
        failure: why there is no file, where the export was refused; then all else is None.
        file: its name.
        size: bytes.
        scores: how it answers.
        operations: of the file; of a package those that are no constants.
        partitions: how many parts of a .tflite file XNNPACK computes.
        instructions: millions of instructions of one inference on an emulated Arm CPU; None where it is not set up.
        gpu: what LiteRT's GPU engine makes of a .tflite file, `GpuCheck.found` and `GpuCheck.verdict`; None where there
            is no driver.
        npu: the verdict of LiteRT's compiler for Intel's NPUs; None where it is not installed.
        neural_engine: {rule: how many operations of a package it found} that may leave the Neural Engine.
        milliseconds: median of one inference of a .tflite file on one thread of this computer.
    """

    mode: str
    failure: str | None = None
    file: str | None = None
    size: int | None = None
    scores: ModeScores | None = None
    operations: int | None = None
    partitions: int | None = None
    instructions: float | None = None
    gpu: tuple[str, str] | None = None
    npu: str | None = None
    neural_engine: dict[str, int] | None = None
    milliseconds: float | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModeResult":
        """The result of what `dataclasses.asdict` made of one."""
        scores, gpu = values["scores"], values["gpu"]
        return cls(**values | {"scores": scores and ModeScores(**scores), "gpu": gpu and tuple(gpu)})

    @property
    def rules(self) -> str:
        """What is known of other hardware than the CPU, in words."""
        if self.neural_engine is not None:
            found = ", ".join(f"{number} {rule}" for rule, number in self.neural_engine.items())
            return f"Neural Engine: {found or 'nothing found'}"
        words = [f"GPU {self.gpu[0]}"] if self.gpu else []
        return ", ".join([*words, *([f"NPU {self.npu}"] if self.npu else [])]) or "-"


# What a mode costs, by the attribute of `ModeResult`.
CostOf = Callable[[ModeResult], float | None]


def front(results: Sequence[ModeResult], cost: CostOf) -> list[ModeResult]:
    """The modes that no other beats in both accuracy and cost, the cheapest first, of those whose cost is known."""
    known = [(cost(result), result.scores.drop, result) for result in results if result.scores]
    found: list[ModeResult] = []
    least = math.inf
    for _, drop, result in sorted((row for row in known if row[0] is not None), key=lambda row: row[:2]):
        if drop < least:
            found.append(result)
            least = drop
    return found


@dataclass(frozen=True)
class ComparisonReport:
    """Modes of one model, measured on the same images.

    Attributes:
        model: its name.
        folder: of the images, without those above it.
        images: how many were scored.
        of: how many there were.
        calibrated_on: on what ranges were measured, in words.
        classes_from: how it is known of which class an image is; None where it is not, and the modes' answers were
            compared with Keras' alone.
        keras_top1: share of the images whose class the Keras model finds; None where the classes are not known.
        results: a row for each mode.
        missing: {mode: what is not installed} of those that could not be made here.
        notes: what else was not measured, and why.
        recommendations: {target: the mode and the reason in a sentence}; the mode is None where none is fit.
        max_drop: points that a recommended mode's top-1 may drop by.
        device: this computer.
        date: of the comparison.
        versions: of the packages that were used.
        kept: where the files are; None where they were removed.
    """

    model: str
    folder: str
    images: int
    of: int
    calibrated_on: str
    classes_from: str | None
    keras_top1: float | None
    results: tuple[ModeResult, ...]
    missing: dict[str, str]
    notes: tuple[str, ...]
    recommendations: dict[str, tuple[str | None, str]]
    max_drop: float
    device: str
    date: str
    versions: dict[str, str] = field(default_factory=dict)
    kept: str | None = None

    @property
    def failed(self) -> tuple[ModeResult, ...]:
        """The modes whose export was refused."""
        return tuple(result for result in self.results if result.failure)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        values = dataclasses.asdict(self)
        for result in values["results"]:
            result["gpu"] = result["gpu"] and dict(zip(("found", "verdict"), result["gpu"], strict=True))
        advice = {
            target: {"mode": mode, "sentence": sentence} for target, (mode, sentence) in self.recommendations.items()
        }
        return finite_only(values | {"recommendations": advice})

    def to_json(self) -> str:
        """The report as indented JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @property
    def measured_on(self) -> str:
        """What the modes were measured on, in words."""
        some = f"{self.images:,} of {self.of:,}" if self.images < self.of else f"all {self.images:,}"
        classes = f"classes {self.classes_from}" if self.classes_from else "without classes"
        return f"{some} images of {self.folder}, {classes}; calibrated on {self.calibrated_on}"

    def __rich__(self) -> Group:
        keras = "" if self.keras_top1 is None else f"; Keras: {self.keras_top1:.2%}"
        lines = [Text(self.measured_on + keras)]
        lines += [Text(f"{result.mode}: {result.failure}") for result in self.failed]
        lines += [Text(f"{mode} was left out: {reason}") for mode, reason in self.missing.items()]
        lines += [Text(note) for note in self.notes]
        lines += [Text(sentence, style="bold") for _, sentence in self.recommendations.values()]
        return Group(self._scores_table(), self._files_table(), *lines)

    def _scores_table(self) -> Table:
        costs = {"ms here": "milliseconds", "M instr.": "instructions"}
        # What was not measured of any mode gets no column.
        costs = {
            title: name for title, name in costs.items() if any(getattr(r, name) is not None for r in self.results)
        }
        score = "top-1" if self.classes_from else "same top-1"
        headers = [Column(name, justify="right") for name in ("MB", score, "drop", *costs)]
        table = Table(Column("mode", no_wrap=True), *headers, title=Text(self.model), title_justify="left")
        for result in self.results:
            if result.scores is None or result.size is None:
                table.add_row(result.mode, "not written")
                continue
            share = result.scores.top1 if self.classes_from else result.scores.agreement
            numbers = (getattr(result, name) for name in costs.values())
            cells = ("-" if number is None else short_number(number) for number in numbers)
            megabytes = short_number(result.size / 1e6)
            table.add_row(result.mode, megabytes, f"{share:.2%}", result.scores.drop_in_words, *cells)
        return table

    def _files_table(self) -> Table:
        table = Table(
            Column("mode", no_wrap=True), Column("difference", justify="right"), "operations", "other hardware"
        )
        for result in self.results:
            if result.scores:
                parts = "" if result.partitions is None else f", {result.partitions} for XNNPACK"
                difference = short(result.scores.largest_difference)
                table.add_row(result.mode, difference, f"{result.operations}{parts}", result.rules)
        return table
