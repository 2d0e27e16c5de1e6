"""Exports a model in many modes and measures each on the same images; what was interrupted goes on.

Files and results lie in one folder, and each result is written when its mode is done. Room: deploy/comparison.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
from filelock import FileLock, Timeout

from keras_efficientformer.deploy.benchmark.computer import benchmark_tflite
from keras_efficientformer.deploy.benchmark.reports import this_computer
from keras_efficientformer.deploy.comparison.images import ComparedImages, read_compared
from keras_efficientformer.deploy.comparison.measuring import (
    Instruments,
    class_output,
    completed,
    export_mode,
    keras_scores,
    measured,
)
from keras_efficientformer.deploy.comparison.modes import ComparedMode, chosen_modes
from keras_efficientformer.deploy.comparison.results import ComparisonReport, ModeResult
from keras_efficientformer.deploy.comparison.targets import IMAGES_SCORED, check_target_name, recommend, targets_of
from keras_efficientformer.deploy.export import RAISE_LIMIT, label_names
from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.deploy.report_sidecar import check_sidecar
from keras_efficientformer.deploy.source import open_source
from keras_efficientformer.errors import ExportError, first_line
from keras_efficientformer.files import bare_name, cache_folder, remove_unfinished, write_json
from keras_efficientformer.imagenet import CROP
from keras_efficientformer.labels import Labels
from keras_efficientformer.reporting import versions_of

RESULTS_FILE, LOCK_FILE = "results.json", ".lock"
TIMED_RUNS = 30
COMPARISON_TOOLS = (
    "keras-efficientformer", "keras", "numpy", "ai-edge-litert", "litert-quantizer", "coremltools", "scikit-learn"
)  # fmt: skip


def default_folder() -> Path:
    """Where comparisons lie until they are finished; the environment variable EFFICIENTFORMER_COMPARISONS names
    another.

    Raises:
        OSError: it does not, and there is no home folder.
    """
    folder = cache_folder("comparisons", "EFFICIENTFORMER_COMPARISONS")
    if folder.parts[0].startswith("~"):
        raise OSError("There is no home folder: keep the files in one that you choose (--keep), or set HOME.")
    return folder


def compare_modes(
    model: keras.Model,
    folder: str | os.PathLike,
    *,
    modes: Sequence[str] | None = None,
    without: Sequence[str] = (),
    calibration: str | os.PathLike | None = None,
    labels: Labels | None = None,
    images: int = IMAGES_SCORED,
    crop_fraction: float = CROP,
    targets: Sequence[str] | None = None,
    max_drop: float = 0.5,
    keep: str | os.PathLike | None = None,
    track: Callable[[Iterable], Iterable] = iter,
) -> ComparisonReport:
    """Exports a model in many modes, measures each on the same images, and recommends one for each kind of device.

    An interrupted comparison goes on with the mode that it was at when it is started again with the same model, images
    and packages; its modes may be others.

    Args:
        model: a classifier of this package, as `export_tflite` and `export_coreml` take it.
        folder: images to score: a subfolder for each class, as `training.evaluate` reads them; or those below `val`,
            `valid`, `validation` or `test`, beside `train`; or images without classes in one folder, on which answers
            are compared with Keras' alone.
        modes: names of modes, "tflite:int8", "coreml:palette4"; None means all for which everything is installed.
        without: names of modes that are left out.
        calibration: a folder of images to measure ranges on, of which 128 are taken; None means those below `train`
            or, where there are none, a quarter of the images, 128 at most, evenly spread, which are not scored.
        labels: class names in the order of the outputs; None means the model's own, else ImageNet's for 1000 classes.
        images: how many to score at most, evenly spread.
        crop_fraction: as for `imagenet.resize_and_crop`.
        targets: devices to recommend a mode for, keys of `deploy.comparison.targets.TARGET_RULES`; None means
            all that a measured mode is meant for.
        max_drop: points by which a recommended mode's top-1 may be less than Keras';
            without classes, percent of the images on which the two may differ.
        keep: folder for the exported files, which is made; None means a folder that is removed at the end.
        track: wraps the modes, e.g. `rich.progress.track`.

    Returns:
        A `ComparisonReport`. A mode whose export was refused has a row that says why.

    Raises:
        ValueError: there is no such mode or target, the model is no classifier, a number is out of its range, the
            images are unfit, or `keep` holds another comparison or is another process's just now.
        OSError: a folder is missing or cannot be written to.
        ImportError: a mode is asked for and what it needs is not installed.
    """
    chosen, missing = chosen_modes(modes, without)
    for target in targets or ():
        check_target_name(target)
    if images < 1 or not max_drop >= 0:
        raise ValueError(f"`images` should be >= 1, `max_drop` >= 0. Received: images={images}, max_drop={max_drop}")
    source = open_source(model)
    network = source.network(source.preprocessing)
    class_output(network)  # it says what is no classifier
    names = label_names(labels, network)
    scored = read_compared(
        Path(folder), network, names, None if calibration is None else Path(calibration), images, crop_fraction
    )
    store = _Store(keep, _fingerprint(model, scored))
    instruments = Instruments()
    with store.locked():
        expected = keras_scores(source, network, scored)
        _measure_all(model, network, chosen, scored, expected, store, instruments, track)
        results = _timed([store.results[mode.name] for mode in chosen], store.folder)
        if keep is None:
            shutil.rmtree(store.folder)
    return ComparisonReport(
        model=network.name,
        folder=bare_name(folder),
        images=len(scored),
        of=scored.of,
        calibrated_on=scored.calibrated_on,
        classes_from=scored.classes_from,
        keras_top1=None if scored.targets is None else float(np.mean(expected.argmax(-1) == scored.targets)),
        results=results,
        missing=missing,
        notes=tuple(instruments.missing.values()),
        recommendations={
            target: recommend(results, target, max_drop, len(scored)) for target in targets or targets_of(results)
        },
        max_drop=max_drop,
        device=this_computer()[0],
        date=datetime.now(UTC).date().isoformat(),
        versions=versions_of(*COMPARISON_TOOLS),
        kept=None if keep is None else str(keep),
    )


class _Store:
    """The folder of a comparison: its files, and the results of the modes that are done.

    Args:
        keep: the folder; None means one of `default_folder()`, called by the fingerprint.
        fingerprint: of all that results depend on.

    Attributes:
        folder: the folder.
        results: {mode: its result} of those that are done, once it is locked.
    """

    def __init__(self, keep: str | os.PathLike | None, fingerprint: str) -> None:
        self.folder = default_folder() / fingerprint[:16] if keep is None else Path(keep)
        self._file, self._fingerprint = self.folder / RESULTS_FILE, fingerprint
        self.results: dict[str, ModeResult] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder, which is this process's alone for the block, and reads what is done.

        Raises:
            ValueError: it holds another comparison, or files that are none; or another process is at it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # What is hidden is the lock, or what a killed process has left.
        if not self._file.exists() and any(path.name[0] != "." for path in self.folder.iterdir()):
            raise ValueError(
                f"{self.folder} holds files that are no comparison's: choose another folder, or a new one."
            )
        try:
            lock = FileLock(self.folder / LOCK_FILE).acquire(blocking=False)
        except Timeout:
            raise ValueError(f"Another process is at the comparison in {self.folder}: wait for it.") from None
        with lock:
            remove_unfinished(self.folder)
            if self._file.exists():
                self._read()
            else:
                self._write()
            yield

    def add(self, result: ModeResult) -> None:
        """Writes the result of a mode that is done."""
        self.results[result.mode] = result
        self._write()

    def _read(self) -> None:
        try:
            content: Any = json.loads(self._file.read_text(encoding="utf-8"))
            is_same = content["fingerprint"] == self._fingerprint
            found = [ModeResult.from_dict(values) for values in content["results"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self._file} is no comparison's: {first_line(error)}. Choose another folder, or remove this one."
            ) from error
        if not is_same:
            raise ValueError(
                f"{self.folder} holds the comparison of another model, of other images or by other releases of the "
                "packages: choose another folder, or remove this one."
            )
        # A file that somebody has taken away or changed is made again.
        self.results = {found_.mode: found_ for found_ in found if found_.file is None or self._is_whole(found_)}

    def _is_whole(self, result: ModeResult) -> bool:
        """Whether a mode's file is there as it was measured."""
        try:
            return self.path(result).exists() and check_sidecar(self.path(result))
        except ValueError:
            return False

    def path(self, result: ModeResult) -> Path:
        """The file of a mode that has one."""
        return self.folder / str(result.file)

    def _write(self) -> None:
        results = [dataclasses.asdict(result) for result in self.results.values()]
        write_json(self._file, {"fingerprint": self._fingerprint, "results": results})


def _fingerprint(model: keras.Model, images: ComparedImages) -> str:
    """The sha256 of all that results depend on, but for the machine."""
    total = hashlib.sha256(images.content_hash.encode())
    for weights in model.get_weights():
        total.update(np.ascontiguousarray(weights).tobytes())
    total.update(json.dumps([model.get_config(), images.labels, versions_of(*COMPARISON_TOOLS)], default=str).encode())
    return total.hexdigest()


def _measure_all(
    model: keras.Model,
    network: FusedNetwork,
    modes: Sequence[ComparedMode],
    images: ComparedImages,
    expected: np.ndarray,
    store: _Store,
    instruments: Instruments,
    track: Callable[[Iterable], Iterable],
) -> None:
    """Exports and measures the modes whose results the store lacks."""
    for mode in modes:  # what can be measured since the last time
        if mode.name in store.results:
            found = completed(store.results[mode.name], store.folder, instruments)
            if found != store.results[mode.name]:
                store.add(found)
    for mode in track([mode for mode in modes if mode.name not in store.results]):
        try:
            report = export_mode(mode, model, network, store.folder, images)
        except ExportError as error:
            store.add(ModeResult(mode.name, failure=_refusal(error, store.folder)))
            continue
        store.add(measured(mode, report, network, images, expected, instruments))


def _refusal(error: ExportError, folder: Path) -> str:
    """Why an export was refused, without what a report does not show, the folder, and advice for single exports."""
    return first_line(str(error).removesuffix(RAISE_LIMIT)).replace(f"{folder}{os.sep}", "")


def _timed(results: Sequence[ModeResult], folder: Path) -> tuple[ModeResult, ...]:
    """The results with the time that .tflite files take here, all of them run in turns."""
    files = [folder / result.file for result in results if result.file and result.file.endswith(".tflite")]
    if not files:
        return tuple(results)
    timed = {latency.file: latency.median_ms for latency in benchmark_tflite(files, runs=TIMED_RUNS).results}
    return tuple(dataclasses.replace(result, milliseconds=timed.get(result.file or "")) for result in results)
