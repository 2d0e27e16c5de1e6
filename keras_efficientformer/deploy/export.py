"""Writes, checks, compares and reports exported files: what both exporters do alike. Room: deploy.

What an export reads, a Keras model or what training has made of one, is a `Source`, made at its entry by `open_source`.
The exporter says how its file is written and run (`ExportJob`); `write_checked` does the rest.
"""

import contextlib
import dataclasses
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

from keras_efficientformer.conversion.state_dict import changed_since, source_of
from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.deploy.network.heads import efficientformer_in
from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.deploy.report import Difference, ExportReport, NPUReport, TensorInfo, compare
from keras_efficientformer.deploy.report_sidecar import content_hash, sidecar_of
from keras_efficientformer.errors import ExportError
from keras_efficientformer.files import finished_files, size_of
from keras_efficientformer.imagenet import imagenet_labels
from keras_efficientformer.labels import Labels, class_names
from keras_efficientformer.layers.image_normalization import Normalization, normalization_of, takes_raw_pixels
from keras_efficientformer.layers.initialization import weights_follow
from keras_efficientformer.layers.names import STAGES
from keras_efficientformer.reporting import versions_of

AUTHOR = "keras-efficientformer"
LICENSE = "Apache-2.0"
OUTPUT_DESCRIPTIONS = {
    "probabilities": "Probability of each class.",
    "logits": "Logit of each class.",
    "scores": "Score of each class, in 0..1, each by itself.",
    "features": "Feature map after the final norm.",
    "embedding": "Embedding of the image.",
    "masks": "Value of each class for every pixel.",
    "stage": "Feature map after a stage.",
}


def output_description(name: str) -> str:
    """What an output is, in a sentence; of a head of one's own, which layer's."""
    kind = name.partition("_")[0].rstrip("1234")
    return OUTPUT_DESCRIPTIONS.get(kind, f"Output of the layer {name}.")


class Source(Protocol):
    """What an export reads.

    Attributes:
        ranges: {number of a step: (smallest, largest) of its tensors}, where quantization-aware training has learnt
            them; else empty.
    """

    ranges: dict[int, list[tuple[float, float]]]

    @property
    def preprocessing(self) -> bool:
        """Whether its network can have the normalisation inside: it is known and, if trained, it was made so."""

    @property
    def checkpoint(self) -> dict[str, str] | None:
        """{"file": name, "sha256": hex digits} of the checkpoint that it was loaded from, where that is known."""

    def network(self, include_preprocessing: bool, feature_maps: bool = False) -> FusedNetwork:
        """Its fused network, as `fuse` makes it."""

    def outputs(self, images: np.ndarray, network: FusedNetwork, quantized: bool) -> list[np.ndarray]:
        """The outputs of that network for raw images.

        Args:
            images: float32 array (number, height, width, channels), values in 0..255.
            network: what `network` returned.
            quantized: whether a quantization-aware source computes as it was trained; else in float32.

        Returns:
            A float32 array (number, ...) for each output of the network, in its order, channels last.
        """


class KerasSource:
    """A Keras model, which is looked at when it is asked for something: settings are checked before."""

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self.ranges: dict[int, list[tuple[float, float]]] = {}

    @property
    def preprocessing(self) -> bool:
        return normalization_of(efficientformer_in(self._model)) is not None

    @property
    def checkpoint(self) -> dict[str, str] | None:
        return checkpoint_of(self._model)

    def network(self, include_preprocessing: bool, feature_maps: bool = False) -> FusedNetwork:
        return fuse(self._model, include_preprocessing, feature_maps)

    def outputs(self, images: np.ndarray, network: FusedNetwork, quantized: bool) -> list[np.ndarray]:
        model = self._model
        stages = [name for name in network.outputs if name in STAGES and name not in model.output_names]
        if stages:  # else the model itself is run, which need not be traced again for every export
            model = keras.Model(model.inputs, [*(model.get_layer(name).output for name in stages), *model.outputs])
        taken = (
            images if takes_raw_pixels(efficientformer_in(self._model)) else normalised(images, network.normalization)
        )
        return _as_list(_in_float32(model).predict(taken, verbose=0))


class TrainedSource:
    """A tf_keras model that `training` has made of an EfficientFormer: quantization-aware or pruned."""

    def __init__(self, model: Any) -> None:
        from keras_efficientformer.deploy.network import tf_keras_builder  # it imports TensorFlow

        self._model = model
        self._build = tf_keras_builder.build_tf_keras
        self._network = tf_keras_builder.trained_network(model)
        self.preprocessing = self._network.preprocessing
        self.ranges = tf_keras_builder.trained_ranges(model)
        self.checkpoint: dict[str, str] | None = None

    def network(self, include_preprocessing: bool, feature_maps: bool = False) -> FusedNetwork:
        if feature_maps:
            raise ValueError(f"{self._model.name} was made for training and has no feature maps of its stages.")
        if self._network.preprocessing != include_preprocessing:
            raise ValueError(
                f"{self._model.name} was made for training with include_preprocessing={self._network.preprocessing}: "
                f"export it with the same. Received: include_preprocessing={include_preprocessing}"
            )
        return self._network

    def outputs(self, images: np.ndarray, network: FusedNetwork, quantized: bool) -> list[np.ndarray]:
        # A quantization-aware model computes as TFLite's "int8" does, nearly as Core ML's "w8a8", and as no other mode.
        model = self._model if quantized else self._build(network)
        return _as_list(model.predict(network_inputs(images, network), verbose=0))


def open_source(model: Any) -> Source:
    """What an export reads of a model: a Keras model's, or a tf_keras model's that training has made.

    Raises:
        ValueError: the model is no EfficientFormer of this package, or has not been trained yet.
    """
    # Whoever has a tf_keras model has imported tf_keras, which costs seconds and is not always installed.
    tf_keras = sys.modules.get("tf_keras")
    return TrainedSource(model) if tf_keras and isinstance(model, tf_keras.Model) else KerasSource(model)


@dataclass(frozen=True)
class Opened:
    """A written file, opened again and run on images.

    Attributes:
        inputs, outputs: its tensors.
        operations: number of operations of each kind, most frequent first.
        partitions: as in `ExportReport`.
        results: {output of the network: float32 array (images, ...), channels last}.
        accelerator: as in `ExportReport`.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operations: dict[str, int]
    partitions: int | None
    results: dict[str, np.ndarray]
    accelerator: str | None = None


@dataclass(frozen=True)
class NPUJob:
    """What is compiled for an NPU besides.

    Attributes:
        file: the path to write.
        make: compiles the exported file, the first path, to the second, and runs that on raw images as the exported
            file was run. It returns the report without differences, and the results or, where it cannot be run here,
            None.
    """

    file: Path
    make: Callable[[Path, Path, Opened, np.ndarray], tuple[NPUReport, dict[str, np.ndarray] | None]]


@dataclass(frozen=True)
class ExportJob:
    """One export.

    Attributes:
        source: what is exported.
        network: of the source.
        file: the path to write.
        mode: its name in the report.
        labels: class names, or None.
        limit: the largest `Difference.relative` at which the file is written.
        images: reads the raw images to compare on, and says where they came from.
        write: writes the file to a path; it gets those images too.
        run: opens the written file and runs it on raw images.
        tools: packages whose versions the report has.
        requires: as in `ExportReport`.
        overwrite: whether existing files may be replaced.
        quantized: whether the file computes as a quantization-aware source does.
        may_replace: as for `finished_files`.
        started: `time.perf_counter()` at the start of the export.
        npu: what is compiled for an NPU of the file, or None.
    """

    source: Source
    network: FusedNetwork
    file: Path
    mode: str
    labels: tuple[str, ...] | None
    limit: float
    images: Callable[[], tuple[np.ndarray, str]]
    write: Callable[[Path, np.ndarray], None]
    run: Callable[[Path, np.ndarray], Opened]
    tools: tuple[str, ...]
    requires: str
    overwrite: bool
    started: float
    quantized: bool = False
    may_replace: Callable[[Path], bool] = Path.is_file
    npu: NPUJob | None = None


def write_checked(job: ExportJob) -> ExportReport:
    """Writes a file, runs it, compares it with the model, and gives it and its report their names if it may have them.

    What is compiled of it for an NPU is compared alike, where it can be run here, and gets its name at the same time.

    Raises:
        ExportError: it differs too much from the model, or cannot be compiled. Nothing is written.
        OSError: a file exists and may not be replaced, or cannot be written.
    """
    files = [job.file, sidecar_of(job.file), *([job.npu.file] if job.npu else [])]
    with finished_files(files, job.overwrite, job.may_replace) as (partial, sidecar, *compiled):
        images, images_from = job.images()
        job.write(partial, images)
        opened = job.run(partial, images)
        expected = job.source.outputs(images, job.network, job.quantized)
        differences = compare_outputs(expected, job.network, opened.results)
        check(differences, job.limit, job.file)
        npu = None
        if job.npu:
            npu = _npu_report(job, expected, *job.npu.make(partial, compiled[0], opened, images))
        report = ExportReport(
            path=str(job.file),
            mode=job.mode,
            size=size_of(partial),
            sha256=content_hash(partial),
            model=job.network.name,
            preprocessing=job.network.preprocessing,
            inputs=opened.inputs,
            outputs=opened.outputs,
            labels=job.labels,
            differences=differences,
            limit=job.limit,
            images=len(images),
            images_from=images_from,
            operations=opened.operations,
            partitions=opened.partitions,
            requires=job.requires,
            checkpoint=job.source.checkpoint,
            accelerator=opened.accelerator,
            versions=versions_of(*job.tools),
            seconds=round(time.perf_counter() - job.started, 2),
            npu=npu,
        )
        sidecar.write_text(report.to_json())
    return report


def _npu_report(
    job: ExportJob, expected: Sequence[np.ndarray], report: NPUReport, results: dict[str, np.ndarray] | None
) -> NPUReport:
    """The report of a compiled file with its differences, where it was run; it raises where they are too large."""
    if results is None:
        return report
    differences = compare_outputs(expected, job.network, results)
    check(differences, job.limit, Path(report.path))
    return dataclasses.replace(report, differences=differences)


def label_names(labels: Labels | None, network: FusedNetwork) -> tuple[str, ...] | None:
    """Class names in the order of the outputs, as `class_names` reads them; None means the model's own, else ImageNet's
    for 1000 classes.

    Raises:
        ValueError: their number is not that of the classes, or as `class_names`.
        OSError: a file cannot be read.
    """
    if labels is None and (network.labels or network.classes != len(imagenet_labels())):
        return network.labels
    if labels is None:
        return tuple(name for _, name in imagenet_labels())
    if network.classes is None:
        raise ValueError("The model has no classifier that labels could be for: leave them out.")
    return class_names(labels, network.classes)


def warn_without_labels(network: FusedNetwork, labels: tuple[str, ...] | None) -> None:
    """Warns of a classifier that is exported without its classes' names."""
    if network.classes is not None and labels is None:
        warnings.warn(
            f"No labels: apps will show numbers in place of the {network.classes} classes' names. Pass labels.",
            stacklevel=3,
        )


def file_path(path: str | os.PathLike, network: FusedNetwork, mode: str, suffix: str) -> Path:
    """`path`, or within an existing folder the standard name, e.g. `efficientformer_l1_224_float32.tflite`.

    Raises:
        ValueError: the path neither ends in `suffix` nor is an existing folder.
    """
    path = Path(path)
    if path.suffix == suffix:
        return path
    if not path.is_dir():
        raise ValueError(f"The file's name ends in {suffix}, or the path is an existing folder. Received: {path}")
    height, width, _ = network.input_shape
    size = f"{height}" if height == width else f"{height}x{width}"
    return path / f"{network.name}_{size}_{mode}{suffix}"


def network_inputs(images: np.ndarray, network: FusedNetwork) -> np.ndarray:
    """Raw images, float32 (number, height, width, channels) in 0..255, as the network takes them."""
    return images if network.preprocessing else normalised(images, network.normalization)


def normalised(images: np.ndarray, normalization: Normalization | None) -> np.ndarray:
    """Raw images, float32 (number, height, width, channels) in 0..255, normalised."""
    # Where nobody has said how, any range that networks are used to will do for a comparison.
    return images / 127.5 - 1.0 if normalization is None else normalization(images)


def _in_float32(model: keras.Model) -> keras.Model:
    """The model, or where it computes in another precision a copy that does not: what it stands for is compared."""
    if {layer.compute_dtype for layer in model.layers} == {"float32"}:
        return model
    return changed_copy(model, _with_float32_policies(model.get_config()))


def changed_copy(model: keras.Model, config: dict[str, Any]) -> keras.Model:
    """A model of that configuration with the weights of `model`."""
    with weights_follow():
        copy = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    return copy


def _with_float32_policies(config: Any) -> Any:
    if isinstance(config, list | tuple):
        return type(config)(map(_with_float32_policies, config))
    if not isinstance(config, dict):
        return config
    return {name: "float32" if name == "dtype" else _with_float32_policies(value) for name, value in config.items()}


def compare_outputs(
    expected: Sequence[np.ndarray], network: FusedNetwork, found: dict[str, np.ndarray]
) -> tuple[Difference, ...]:
    """How far the exported file's outputs are from the model's, arrays (images, ...), in the order of the network's."""
    return tuple(
        compare(name, output, found[name], network.classes is not None and name not in STAGES)
        for name, output in zip(network.outputs, expected, strict=True)
    )


def check(differences: tuple[Difference, ...], limit: float, path: Path) -> None:
    """Raises `ExportError` where a difference is over the limit."""
    for difference in differences:
        if not difference.relative <= limit:
            raise ExportError(
                f"{path} was not written: its output {difference.output} differs from the Keras model's by "
                f"{difference.max:.3g} (relative {difference.relative:.3g}, mean {difference.mean:.3g}), and the limit "
                f"is {limit:.3g}. Raise max_difference if that is acceptable."
            )


def checkpoint_of(model: keras.Model) -> dict[str, str] | None:
    """File name and sha256 of the checkpoint that the model was loaded from, where that is known; and whether its
    weights were changed since."""
    source = source_of(model)
    if source is None:
        return None
    found = {"file": Path(source).name, "sha256": "unknown: the file is gone"}
    with contextlib.suppress(OSError):
        found["sha256"] = content_hash(source)
    return found | ({"weights": "changed since"} if changed_since(model) else {})


def _as_list(outputs: Any) -> list[np.ndarray]:
    """One output, or what Keras gives of several: a list, a tuple or a dictionary, in the order of `model.outputs`."""
    return keras.tree.flatten(outputs)
