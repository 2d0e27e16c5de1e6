"""Exports a mode and measures its file: what it answers, weighs and costs, and what other hardware makes of it.

What is not installed here, an emulator, a driver, a compiler, is found once and said once. Room: deploy/comparison.
"""

import collections
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np

from keras_efficientformer.deploy.benchmark.arm_emulator import ArmEmulator
from keras_efficientformer.deploy.comparison.images import ComparedImages, as_taken
from keras_efficientformer.deploy.comparison.modes import TFLITE, ComparedMode
from keras_efficientformer.deploy.comparison.results import ModeResult, ModeScores
from keras_efficientformer.deploy.coreml.exporter import CLASS_PROBABILITIES, RGB_CHANNELS, export_coreml
from keras_efficientformer.deploy.coreml.package import load_package
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.deploy.report import ExportReport
from keras_efficientformer.deploy.source import Source, network_inputs
from keras_efficientformer.deploy.tflite.accelerators.gpu import check_on_gpu
from keras_efficientformer.deploy.tflite.accelerators.npu import compile_file
from keras_efficientformer.deploy.tflite.accelerators.npu_targets import INTEL_CPU, npu_target
from keras_efficientformer.deploy.tflite.exporter import export_tflite
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.errors import DeviceError, ExportError, first_line

ARM_CPU = "cortex-a76"
# Outputs that hold a value for each class.
CLASS_OUTPUTS = ("probabilities", "logits", "scores")
# So many images at once are float32.
IMAGES_AT_ONCE = 256

Asked = TypeVar("Asked")


def class_output(network: FusedNetwork) -> str:
    """The output of a network that classifies.

    Raises:
        ValueError: it has none, or one class alone, which is every image's best.
    """
    found = [name for name in network.outputs if name in CLASS_OUTPUTS]
    if network.classes is None or not found:
        raise ValueError(
            f"{network.name} is no classifier, and modes are compared by the classes that they find. Its outputs: "
            f"{', '.join(network.outputs)}."
        )
    if network.classes == 1:
        raise ValueError(
            f"{network.name} has one class, which is the best of every image whatever the mode: export each mode, and "
            "read the differences in its report."
        )
    return found[0]


def keras_scores(source: Source, network: FusedNetwork, images: ComparedImages) -> np.ndarray:
    """The Keras model's scores, float32 (images, classes)."""
    place = network.outputs.index(class_output(network))
    return _in_chunks(images, lambda pixels: source.outputs(as_taken(pixels, network), network, False)[place])


def _file_scores(file: Path, network: FusedNetwork, images: ComparedImages) -> np.ndarray:
    model: LiteRTModel | CoreMLModel = LiteRTModel(file) if file.suffix == ".tflite" else CoreMLModel(file)
    names = [output.name for output in model.outputs]
    name = CLASS_PROBABILITIES if CLASS_PROBABILITIES in names else class_output(network)
    return _in_chunks(images, lambda pixels: model.predict(network_inputs(as_taken(pixels, network), network))[name])


def _in_chunks(images: ComparedImages, answer: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    starts = range(0, len(images), IMAGES_AT_ONCE)
    return np.concatenate([answer(images.pixels[start : start + IMAGES_AT_ONCE]) for start in starts])


def export_mode(
    mode: ComparedMode,
    model: keras.Model,
    network: FusedNetwork,
    folder: Path,
    images: ComparedImages,
) -> ExportReport:
    """Writes a mode's file into an existing folder, in the place of an older one.

    Args:
        mode: the mode.
        model: what is exported.
        network: of the model.
        folder: the folder.
        images: to calibrate on, and the names of the classes.

    Raises:
        ExportError: the file differs too much from the model. It is not written.
    """
    shared: dict[str, Any] = {
        "include_preprocessing": network.preprocessing,
        "labels": images.labels,
        "overwrite": True,
    }
    if mode.calibrated:
        shared["calibration"] = as_taken(images.calibration, network)
    if mode.format == TFLITE:
        return export_tflite(model, folder, **mode.options, **shared)
    image_input = network.preprocessing and network.input_shape[2] == RGB_CHANNELS
    return export_coreml(model, folder, image_input=image_input, **mode.options, **shared)


class Instruments:
    """What there is here to measure .tflite files with besides LiteRT: an emulated Arm CPU, a GPU's driver, Intel's
    compiler for NPUs.

    Attributes:
        missing: {what is not measured: why}, of what was found not to be there or not to work; it is not asked again.
    """

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}

    def instructions(self, file: Path) -> float | None:
        """As `ModeResult.instructions`."""
        return self._ask("Arm instructions", lambda: sum(cost.amount for cost in ArmEmulator(ARM_CPU).count(file)))

    def gpu(self, file: Path) -> tuple[str, str] | None:
        """As `ModeResult.gpu`."""
        found = self._ask("GPU", lambda: check_on_gpu(file))
        return None if found is None else (found.found, found.verdict)

    def npu(self, file: Path) -> str | None:
        """As `ModeResult.npu`."""
        target = self._ask("NPU", lambda: npu_target(INTEL_CPU))
        if target is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = compile_file(file, Path(folder) / file.name, target)
            except ExportError as error:
                return f"refused: {first_line(error)}"
        return "whole" if found.is_whole else f"{found.taken} of {found.operations} in {found.partitions}"

    def _ask(self, what: str, question: Callable[[], Asked]) -> Asked | None:
        if what in self.missing:
            return None
        try:
            return question()
        except (DeviceError, ImportError) as error:
            self.missing[what] = f"{what}: not measured. {error}"
            return None


def measured(
    mode: ComparedMode,
    report: ExportReport,
    network: FusedNetwork,
    images: ComparedImages,
    expected: np.ndarray,
    instruments: Instruments,
) -> ModeResult:
    """What is found of an exported file, but for the time that it takes, for which all files are run in turns.

    Args:
        mode: its mode.
        report: of the export.
        network: that was exported.
        images: to score it on.
        expected: the Keras model's scores for these, float32 (images, classes).
        instruments: what else it is measured with.
    """
    file = Path(report.path)
    result = ModeResult(
        mode=mode.name,
        file=file.name,
        size=report.size,
        scores=ModeScores.of(expected, _file_scores(file, network, images), images.targets),
        operations=sum(report.operations.values()),
        partitions=report.partitions,
        neural_engine=None if mode.format == TFLITE else _neural_engine(file),
    )
    return completed(result, file.parent, instruments)


def completed(result: ModeResult, folder: Path, instruments: Instruments) -> ModeResult:
    """The result of a mode, whose file is in that folder, with what instruments find of a .tflite file and it lacks."""
    if not result.mode.startswith(f"{TFLITE}:") or result.file is None:
        return result
    file = folder / result.file
    return replace(
        result,
        instructions=instruments.instructions(file) if result.instructions is None else result.instructions,
        gpu=instruments.gpu(file) if result.gpu is None else result.gpu,
        npu=instruments.npu(file) if result.npu is None else result.npu,
    )


def _neural_engine(file: Path) -> dict[str, int]:
    from keras_efficientformer.deploy.coreml.lint import lint  # it imports coremltools

    return dict(collections.Counter(finding.rule for finding in lint(load_package(file).program)).most_common())
