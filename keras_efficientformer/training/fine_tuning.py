"""Fine-tuning: a pretrained network learns the classes of your images, and can be stopped and resumed at any moment.

The loop is its own, not `Model.fit`, for one reason: `fit` cannot start in the middle of an epoch. The steps are Keras'
(`train_on_batch`), and so are the optimizer, the losses, the callbacks and the augmentation. Whatever is drawn is a
function of the seed and the step, or is part of the checkpoint; a run that was killed ends with the same bits as one
that was not.
"""

import dataclasses
import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_efficientformer.checkpoint_files import finished_file
from keras_efficientformer.classifiers import open_model
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.training import plots
from keras_efficientformer.training.batches import (
    Batches,
    LoaderBatches,
    TrainingImages,
    ValidationImages,
    augmented,
    prefetched,
)
from keras_efficientformer.training.config import FineTuneConfig
from keras_efficientformer.training.devices import Devices, open_devices
from keras_efficientformer.training.image_folder import read_folder, read_validation, without_unreadable
from keras_efficientformer.training.scores import NotFiniteError, Scores, score
from keras_efficientformer.training.student import Network, averaged_weights, compile_student, set_trainable
from keras_efficientformer.training.teachers import Teacher, open_teacher
from keras_efficientformer.training.training_state import (
    FILE,
    Progress,
    TrainingError,
    all_finite,
    assign,
    read_state,
    remove_unfinished,
    write_state,
)

__all__ = ["FineTuneReport", "TrainingError", "finetune"]

BEST = "best.keras"
MONITOR = "val_accuracy"
REMEDY = "Lower learning_rate, set clip_norm, or use float32"


@dataclass(frozen=True)
class FineTuneReport:
    """What a run came to.

    Attributes:
        model: path of the best model: a .keras file with softmax, for normalised images.
        labels: class names, in the order of its outputs.
        best_epoch: the epoch, from 1, that it was saved after.
        scores: of it, on the validation images; None where there were none.
        history: one row for each epoch: learning_rate, loss, accuracy, val_loss, val_accuracy, val_top5, seconds.
        skipped: {path: reason} of images that were left out.
    """

    model: Path
    labels: tuple[str, ...]
    best_epoch: int
    scores: Scores | None
    history: tuple[dict[str, float], ...]
    skipped: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return {
            "model": str(self.model),
            "labels": list(self.labels),
            "best_epoch": self.best_epoch,
            "scores": self.scores.to_dict(self.labels) if self.scores else None,
            "history": list(self.history),
            "skipped": self.skipped,
        }


def finetune(
    model: Any,
    data: Any,
    output: Any,
    *,
    validation: Any = None,
    labels: Sequence[str] | None = None,
    teacher: Any = None,
    config: FineTuneConfig | None = None,
    resume: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int = 1,
    track: Callable = iter,
) -> FineTuneReport:
    """Fine-tunes an EfficientFormer on images of your classes.

    The run's folder gets `best.keras` (softmax, the classes' own head, averaged weights with `ema`), `labels.txt`,
    `config.json` (settings, versions), `history.json`, `report.json`, `curves.png`, `confusion.png` and
    `checkpoint.npz`, from which a run that was stopped, at whatever moment, goes on with `resume`.

    Args:
        model: a `keras.Model` of this package, which stays as it is; the path of one or of a checkpoint; or "l1",
            "l3", "l7", "v2_s0", "v2_s1", "v2_s2", "v2_l". Where several processes train together, a path or a name.
        data: a folder with a subfolder of images for each class, or with `train` and perhaps `val` alone; or a
            `keras.utils.PyDataset`, `tf.data.Dataset`, PyTorch `DataLoader` or other sized iterable of
            (images, labels): raw RGB (batch, height, width, 3) in 0..255 and integers (batch,) or rows of
            probabilities (batch, classes).
        output: the run's folder, which is made, outside of the images' folders; all processes must see it.
        validation: a folder or loader to choose the best model by; None means `val` beside `train`, or else a share of
            each class held out, or, with a loader, nothing: then the last epoch's model is the best.
        labels: the class names, which a loader needs.
        teacher: for distillation (paper, section 5; DeiT, arXiv 2012.12877, section 4): a `keras.Model` of normalised
            images; any callable, raw RGB images (batch, height, width, 3) in 0..255 -> scores (batch, classes); or an
            array of scores (images, classes), a row for each image of the folder in the order of `list_images`. A
            second head learns the teacher's choices; the saved model averages the two.
        config: the settings; None means the defaults.
        resume: go on with the run that is in `output`, with the same arguments.
        callbacks: Keras callbacks for the training model, e.g. your own logging. They should not change it.
        verbose: as in Keras' `fit`: 0 shows nothing, 1 progress bars, 2 a line for each epoch.
        track: wraps the check of all images, e.g. `rich.progress.track`.

    Returns:
        A `FineTuneReport`.

    Raises:
        ValueError: an argument, the folder or an image is unfit; or training came to a loss, weights or answers that
            are not finite (`TrainingError`): the last good checkpoint and best.keras stay.
        FileExistsError: `output` holds a run and `resume` is False.
        OSError: a file cannot be read or written; the checkpoint before stays.
        ImportError: matplotlib, or what `model` needs, is not installed.
    """
    plots.require_matplotlib()
    config = config or FineTuneConfig()
    output = Path(output)
    devices = open_devices(config.devices, config.batch_size)  # before anything is computed
    _check_output(output, resume)
    _check_outside(output, data, validation)
    keras.utils.set_random_seed(config.seed)

    source = Network.of(model if isinstance(model, keras.Model) else open_model(model), config)
    data = _open_data(data, validation, labels, config, source.size, devices, track)
    teacher = open_teacher(teacher, len(data.labels), data.listed)
    run = _Run(config, output, devices, data, source, teacher, callbacks, verbose)
    restored = run.restore() if resume else None
    if devices.process == 0:
        output.mkdir(parents=True, exist_ok=True)
        remove_unfinished(output)
        _write_text(output / "labels.txt", "".join(f"{label}\n" for label in data.labels))
        _write_json(output / "config.json", {"config": config.to_dict(), "versions": _versions()})
    run.train(restored)
    return run.report()


@dataclass(frozen=True)
class _Data:
    labels: tuple[str, ...]
    training: Batches
    validation: Batches | None
    class_counts: np.ndarray | None = None
    listed: int | None = None
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self):
        """What must be the same when a run goes on."""
        counts = None if self.class_counts is None else self.class_counts.tolist()
        return {"labels": list(self.labels), "steps": self.training.steps, "images": counts}


class _Run:
    """A run while it goes on."""

    def __init__(self, config, output, devices: Devices, data: _Data, source: Network, teacher: Teacher | None, *shown):
        self.config, self.output, self.devices, self.data, self.teacher = config, output, devices, data, teacher
        self.user_callbacks, self.verbose = shown
        self.checkpoint = output / FILE
        self.progress = Progress()
        # What users get: another model than the one that is trained, in float32 and outside of all strategies.
        head = "average" if teacher else source.head
        with _dtype_policy("float32"):
            self.deployed = source.build(len(data.labels), head=head, activation="softmax")
        with devices.scope(), _dtype_policy(config.precision):
            head = "both" if teacher else source.head
            self.student = source.build(len(data.labels), head=head, drop_path=config.drop_path)
            self.student.set_weights(self.deployed.get_weights())
            devices.prepare(self.student)
        self.class_weights = _class_weights(config.class_weight, data)

    def train(self, restored):
        values, saved_phase = restored or (None, None)
        frozen = self.config.freeze_epochs
        callbacks = self._callbacks()
        for phase, end in enumerate((frozen, self.config.epochs)):
            if self.progress.stopped or self.progress.epoch >= end:
                continue
            with self.devices.scope():
                set_trainable(self.student, phase == 1)
                compile_student(
                    self.student,
                    self.config,
                    warmup=round(self.config.warmup_epochs * self.data.training.steps),
                    steps=(end - frozen) * self.data.training.steps if phase else None,
                    distilled=self.teacher is not None,
                )
                if values is not None:
                    variables = self._variables() if saved_phase == phase else self.student.variables
                    assign(variables, values[: len(variables)], self.checkpoint)
                    values = None
            while self.progress.epoch < end and not self.progress.stopped:
                self._train_epoch(phase, callbacks)
        callbacks.on_train_end()

    def _train_epoch(self, phase, callbacks):
        progress, started = self.progress, time.perf_counter()
        epoch, steps = progress.epoch, self.data.training.steps
        callbacks.on_epoch_begin(epoch)
        for images, targets, weights in prefetched(self._batches(epoch, progress.step)):
            self._require_finite("The images' sum is", "Check the loader", np.sum(images))
            self._require_divisible(len(images))
            callbacks.on_train_batch_begin(progress.step)
            with self.devices.scope():
                found = self.devices.step(self.student, (images, targets, weights))
            logs = self._count(found)
            callbacks.on_train_batch_end(progress.step - 1, logs)
            if progress.step % self.config.save_every == 0 and progress.step < steps:
                self._save(phase)
        if progress.step < steps:
            raise TrainingError(f"The loader ended after {progress.step} of its {steps} batches in epoch {epoch + 1}.")
        self._require_finite_weights()
        with self.devices.scope():
            rate = float(keras.ops.convert_to_numpy(self.student.optimizer.learning_rate))
        row = {"learning_rate": rate, **logs, **self._validate()}
        seconds = round(time.perf_counter() - started, 3)
        progress.history.append({"epoch": epoch + 1, **row, "seconds": seconds})
        progress.epoch, progress.step, progress.totals = epoch + 1, 0, {}
        if self.devices.process == 0 and best_epoch(progress.history) == epoch + 1:
            with finished_file(self.output / BEST, overwrite=True) as partial:
                self.deployed.save(partial)
        callbacks.on_epoch_end(epoch, row)
        progress.stopped = bool(self.student.stop_training)
        self._save(phase)
        if self.devices.process == 0:
            _write_json(self.output / "history.json", progress.history)

    def _batches(self, epoch, first_step) -> Iterator[tuple]:
        """(normalised images, targets, weights or None) of an epoch from a step on."""
        classes = len(self.data.labels)
        batches = self.data.training.epoch(epoch, first_step)
        fixed = self.teacher.labels if self.teacher and self.teacher.fixed else None
        extend = (lambda batch: np.hstack([batch.labels, fixed(batch)])) if fixed else (lambda batch: batch.labels)
        for batch in augmented(batches, self.config, epoch, first_step, extend):
            labels, choices = batch.labels[:, :classes], batch.labels[:, classes:]
            weights = None if self.class_weights is None else labels @ self.class_weights
            if self.teacher:
                targets = (labels, choices if fixed else self.teacher.labels(batch))
                weights = None if weights is None else (weights, weights)
            else:
                targets = labels
            yield preprocess_input(batch.images), targets, weights

    def _require_finite(self, what, remedy, number):
        if not math.isfinite(number):
            raise self._error(f"{what} {number} at {self._coming_step()}", remedy)

    def _require_divisible(self, images):
        devices = self.devices.replicas // self.devices.processes
        if images % devices:
            raise TrainingError(
                f"The loader's batch at {self._coming_step()} has {images} images, which cannot be divided evenly "
                f"among {devices} devices. Leave such a batch out (drop_remainder, drop_last), or use devices='one'."
            )

    def _require_finite_weights(self):
        if not all_finite(self._variables()):
            raise self._error(f"Weights are not finite after {self._last_step()}", REMEDY)

    def _error(self, found, remedy):
        kept = " and ".join(str(path) for path in (self.checkpoint, self.output / BEST) if path.exists())
        before = f"what was saved before, {kept}, is as it was" if kept else "nothing was saved before"
        return TrainingError(f"{found}. {remedy}; {before}.")

    def _coming_step(self):
        return f"step {self.progress.step + 1} of epoch {self.progress.epoch + 1}"

    def _last_step(self):
        epoch, step = self.progress.epoch, self.progress.step
        return f"step {step} of epoch {epoch + 1}" if step else f"the last step of epoch {epoch}"

    def _count(self, found):
        progress = self.progress
        self._require_finite("The loss is", REMEDY, found["loss"])
        accuracy = next(value for name, value in found.items() if name.endswith("accuracy"))
        progress.step += 1
        for name, value in (("loss", found["loss"]), ("accuracy", accuracy)):
            progress.totals[name] = progress.totals.get(name, 0.0) + float(value)
        return {name: total / progress.step for name, total in progress.totals.items()}

    def _validate(self):
        with self.devices.scope():
            weights = averaged_weights(self.student)
        self.deployed.set_weights(weights)
        if self.data.validation is None:
            return {}
        try:
            scores = score(self.deployed, self.data.validation, self.progress.epoch)
        except NotFiniteError as error:
            raise self._error(
                f"Answers to validation images are not finite after {self._last_step()}", REMEDY
            ) from error
        return {"val_loss": scores.loss, "val_accuracy": scores.top1, "val_top5": scores.top5}

    def _variables(self):
        return [*self.student.variables, *self.student.optimizer.variables]

    def _save(self, phase):
        self._require_finite_weights()
        if self.devices.process:
            return
        progress = dataclasses.asdict(self.progress)
        state = {"config": self.config.to_dict(), "data": self.data.fingerprint, "phase": phase, "progress": progress}
        write_state(self.checkpoint, self._variables(), state, self._last_step())

    def restore(self):
        """Values and phase of the checkpoint, or None where there is none yet."""
        if not self.checkpoint.exists():
            return None
        values, state = read_state(self.checkpoint)
        for name, found in (("config", self.config.to_dict()), ("data", self.data.fingerprint)):
            differing = [key for key, value in found.items() if value != state[name].get(key)]
            if differing:
                listing = ", ".join(f"{key} was {state[name].get(key)!r}, is {found[key]!r}" for key in differing)
                raise ValueError(f"The run in {self.output} cannot go on with other settings or images: {listing}.")
        self.progress = Progress(**state["progress"])
        return values, state["phase"]

    def _callbacks(self):
        callbacks = list(self.user_callbacks)
        if self.config.patience is not None:
            stopping = keras.callbacks.EarlyStopping(
                MONITOR, patience=self.config.patience, mode="max", start_from_epoch=self.config.freeze_epochs
            )
            callbacks.append(stopping)
        if self.config.tensorboard and self.devices.process == 0:
            callbacks.append(keras.callbacks.TensorBoard(self.output / "tensorboard", write_graph=False))
        self.student.stop_training = False
        callbacks = keras.callbacks.CallbackList(
            callbacks,
            add_progbar=self.verbose > 0 and self.devices.process == 0,
            model=self.student,
            epochs=self.config.epochs,
            steps=self.data.training.steps,
            verbose=int(self.verbose),
        )
        callbacks.on_train_begin()
        if self.config.patience is not None:
            for epoch, row in enumerate(self.progress.history):  # the epochs that it saw before the run was stopped
                stopping.on_epoch_end(epoch, row)
        return callbacks

    def report(self):
        history = self.progress.history
        scores = None
        if self.data.validation is not None:
            scores = score(open_model(self.output / BEST), self.data.validation, len(history))
        labels = self.data.labels
        report = FineTuneReport(
            self.output / BEST, labels, best_epoch(history), scores, tuple(history), self.data.skipped
        )
        if self.devices.process == 0:
            _write_json(self.output / "report.json", report.to_dict())
            plots.plot_curves(history, self.output / "curves.png")
            if scores:
                plots.plot_confusion(scores.confusion, labels, self.output / "confusion.png")
        return report


def best_epoch(history: Sequence[dict[str, float]]) -> int:
    """The epoch, from 1, with the highest validation accuracy, the first of equals; without validation the last."""
    if MONITOR not in history[-1]:
        return len(history)
    return 1 + int(np.argmax([row[MONITOR] for row in history]))


def _open_data(data, validation, labels, config, size, devices, track) -> _Data:
    if not isinstance(data, str | Path):
        return _open_loaders(data, validation, labels, config, size, track)
    if labels is not None:
        raise ValueError("`labels` are the names of the subfolders where the data are a folder. Leave them out.")
    if not isinstance(validation, str | Path | None):
        raise ValueError(f"`validation` should be a folder where the data are one. Received: {validation!r}")
    names, training, held_out, listed = read_folder(data, validation, config.validation_split, config.seed)
    training, skipped = without_unreadable(training, names, config.skip_bad, track)
    held_out, skipped_too = without_unreadable(held_out, names, config.skip_bad, track)
    return _Data(
        tuple(names),
        TrainingImages(training, len(names), size, config, devices.process, devices.processes),
        ValidationImages(held_out, len(names), size, config.crop_fraction, config.batch_size),
        np.bincount(training.targets, minlength=len(names)),
        listed,
        skipped | skipped_too,
    )


def _open_loaders(data, validation, labels, config, size, track):
    names = () if labels is None else tuple(str(label) for label in labels)
    if not names:
        raise ValueError("A loader does not say what its classes are called: pass `labels`, their names in order.")
    if validation is None and config.patience is not None:
        raise ValueError("`patience` needs images to validate on: pass `validation`, or leave patience out.")
    held_out, skipped = None, {}
    if isinstance(validation, str | Path):
        images, skipped = without_unreadable(read_validation(validation, names), names, config.skip_bad, track)
        held_out = ValidationImages(images, len(names), size, config.crop_fraction, config.batch_size)
    elif validation is not None:
        held_out = LoaderBatches(validation, len(names), size)
    return _Data(names, LoaderBatches(data, len(names), size), held_out, skipped=skipped)


def _class_weights(kind, data):
    if kind == "none":
        return None
    if data.class_counts is None:
        raise ValueError("class_weight='balanced' needs a folder: a loader does not say how many images a class has.")
    return (data.class_counts.sum() / (len(data.labels) * data.class_counts)).astype("float32")


def _check_output(output, resume):
    if resume or not output.exists():
        return
    if not output.is_dir():
        raise NotADirectoryError(f"{output} is a file: the run needs a folder.")
    if any((output / name).exists() for name in (FILE, BEST)):  # else it ended before it had anything to keep
        raise FileExistsError(f"{output} holds a run. Go on with it (--resume, resume=True), or choose another folder.")


def _check_outside(output, *folders):
    for folder in folders:
        if isinstance(folder, str | Path) and output.resolve().is_relative_to(Path(folder).resolve()):
            raise ValueError(
                f"The run's folder {output} is in the images' folder {folder}, where it would be taken for a class. "
                "Choose one outside."
            )


@contextmanager
def _dtype_policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _versions():
    backend = keras.backend.backend()
    packages = ("keras", backend, "numpy", "pillow")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), "backend": backend, **versions}


def _write_json(path, content):
    _write_text(path, json.dumps(content, indent=2) + "\n")


def _write_text(path, text):
    with finished_file(path, overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8")
