"""Writes, checks, compares and reports exported files: what both exporters do alike. Room: deploy.

What an export reads is a `Source` (`source.py`). The exporter says how its file is written and run (`ExportJob`);
`write_checked` does the rest.
"""

import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_efficientformer.deploy.input_sizes import short_size, size_name
from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.deploy.report import Difference, ExportReport, NPUReport, SizeReport, TensorInfo, compare
from keras_efficientformer.deploy.report_sidecar import content_hash, sidecar_of
from keras_efficientformer.deploy.source import SizedNetwork, Source
from keras_efficientformer.errors import ExportError, listing
from keras_efficientformer.files import finished_files, size_of
from keras_efficientformer.imagenet import imagenet_labels
from keras_efficientformer.labels import Labels, class_names
from keras_efficientformer.layers.names import STAGES
from keras_efficientformer.reporting import versions_of

# What to do about a file that differs too much; whoever sets no limit leaves it out.
RAISE_LIMIT = " Raise max_difference (--max-difference) if that is acceptable."
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
class FurtherSize:
    """An input size of an export after the first one.

    Attributes:
        sized: what is exported at that size.
        images: the raw images to compare on, the same ones each time.
        run: opens this size of the written file and runs it on raw images.
    """

    sized: SizedNetwork
    images: Callable[[], np.ndarray]
    run: Callable[[Path, np.ndarray], Opened]

    @property
    def name(self) -> str:
        """Of the file's signature or function."""
        return size_name(self.sized.size)


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
        write: writes the file to a path; it gets those images too, and says which bits it has chosen, as `ExportReport`
            does.
        run: opens the written file and runs it on raw images.
        tools: packages whose versions the report has.
        requires: as in `ExportReport`.
        overwrite: whether existing files may be replaced.
        quantized: whether the file computes as a quantization-aware source does.
        may_replace: as for `finished_files`.
        started: `time.perf_counter()` at the start of the export.
        npu: what is compiled for an NPU of the file, or None.
        further: the input sizes after the one of `network`.
    """

    source: Source
    network: FusedNetwork
    file: Path
    mode: str
    labels: tuple[str, ...] | None
    limit: float
    images: Callable[[], tuple[np.ndarray, str]]
    write: Callable[[Path, np.ndarray], dict[str, int] | None]
    run: Callable[[Path, np.ndarray], Opened]
    tools: tuple[str, ...]
    requires: str
    overwrite: bool
    started: float
    quantized: bool = False
    may_replace: Callable[[Path], bool] = Path.is_file
    npu: NPUJob | None = None
    further: tuple[FurtherSize, ...] = ()


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
        bits = job.write(partial, images)
        opened = job.run(partial, images)
        expected = job.source.outputs(images, job.network, job.quantized)
        differences = compare_outputs(expected, job.network, opened.results)
        check(differences, job.limit, job.file)
        further_sizes = tuple(_size_report(job, size, partial) for size in job.further)
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
            further_sizes=further_sizes,
            bits=bits,
        )
        sidecar.write_text(report.to_json())
    return report


def _size_report(job: ExportJob, further: FurtherSize, file: Path) -> SizeReport:
    """The report of one more size of a written file; it raises where its differences are too large."""
    images, sized = further.images(), further.sized
    opened = further.run(file, images)
    expected = sized.source.outputs(images, sized.network, job.quantized)
    differences = compare_outputs(expected, sized.network, opened.results)
    check(differences, job.limit, job.file, further.name)
    return SizeReport(further.name, opened.inputs, opened.outputs, differences, opened.operations, opened.accelerator)


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
        ValueError: their number is not that of the classes, one is empty or cannot be written, or as `class_names`.
        OSError: a file cannot be read.
    """
    if labels is not None and network.classes is None:
        raise ValueError("The model has no classifier that labels could be for: leave them out.")
    if labels is not None:
        names: tuple[str, ...] | None = class_names(labels, network.classes)
    elif network.labels or network.classes != len(imagenet_labels()):
        names = network.labels
    else:
        names = tuple(name for _, name in imagenet_labels())
    # Files hold one name in a line, and whoever reads them takes empty lines at the end for none.
    unnamed = [str(number) for number, name in enumerate(names or ()) if not name.strip()]
    if unnamed:
        raise ValueError(f"Labels should name every class, and those of {listing(unnamed)} are empty.")
    # Those of folders whose names are no UTF-8 cannot be written; an ASCII message can be shown everywhere.
    unwritable = [ascii(name) for name in names or () if name != name.encode(errors="ignore").decode()]
    if unwritable:
        raise ValueError(f"Labels should be text that UTF-8 has: pass other ones. Received: {listing(unwritable)}")
    return names


def warn_without_labels(network: FusedNetwork, labels: tuple[str, ...] | None) -> None:
    """Warns of a classifier that is exported without its classes' names."""
    if network.classes is not None and labels is None:
        warnings.warn(
            f"No labels: apps will show numbers in place of the {network.classes} classes' names. Pass labels.",
            stacklevel=3,
        )


def file_path(path: str | os.PathLike, sizes: Sequence[SizedNetwork], mode: str, suffix: str) -> Path:
    """`path`, or within an existing folder the standard name, e.g. `efficientformer_l1_224_float32.tflite`; of several
    input sizes `efficientformer_l1_224_384x288_float32.tflite`.

    Raises:
        ValueError: the path neither ends in `suffix` nor is an existing folder.
    """
    path = Path(path)
    if path.suffix == suffix:
        return path
    if not path.is_dir():
        raise ValueError(f"The file's name ends in {suffix}, or the path is an existing folder. Received: {path}")
    names = [short_size(sized.size) for sized in sizes]
    return path / f"{'_'.join((sizes[0].network.name, *names, mode))}{suffix}"


def compare_outputs(
    expected: Sequence[np.ndarray], network: FusedNetwork, found: dict[str, np.ndarray]
) -> tuple[Difference, ...]:
    """How far the exported file's outputs are from the model's, arrays (images, ...), in the order of the network's."""
    return tuple(
        compare(name, output, found[name], network.classes is not None and name not in STAGES)
        for name, output in zip(network.outputs, expected, strict=True)
    )


def check(differences: tuple[Difference, ...], limit: float, path: Path, size: str = "") -> None:
    """Raises `ExportError` where a difference is over the limit, of the input size of that name, or of the first."""
    where = f" of {size}" if size else ""
    for difference in differences:
        if not difference.relative <= limit:
            raise ExportError(
                f"{path} was not written: its output {difference.output}{where} differs from the Keras model's by "
                f"{difference.max:.3g} (relative {difference.relative:.3g}, mean {difference.mean:.3g}), and the limit "
                f"is {limit:.3g}.{RAISE_LIMIT}"
            )
