"""Trains, validates and saves one fine-tuning run, from its start or from its checkpoint. Room: training.

The loop is its own, not `Model.fit`, for one reason: `fit` cannot start in the middle of an epoch. The steps are Keras'
(`train_on_batch`), and so are the optimizer, the losses, the callbacks and the augmentation. Whatever is drawn is a
function of the seed and the step, or is part of the checkpoint; a run that was killed ends with the same bits as one
that was not.
"""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_efficientformer.files import Interrupts, finished_file, write_json
from keras_efficientformer.images import of_channels
from keras_efficientformer.layers.image_normalization import model_inputs
from keras_efficientformer.opening import open_model
from keras_efficientformer.training.config import BEST_FILE, REPORT_FILE, FineTuneConfig
from keras_efficientformer.training.data.batches import Batches, augmented, prefetched
from keras_efficientformer.training.devices import Devices
from keras_efficientformer.training.plots import plot_average_precision, plot_confusion, plot_curves
from keras_efficientformer.training.run_page import write_run_page
from keras_efficientformer.training.run_state import (
    CHECKPOINT_FILE,
    Progress,
    TrainingError,
    all_finite,
    assign,
    check_same,
    read_state,
    write_state,
)
from keras_efficientformer.training.scores import AnyScores, Look, MultiLabelScores, NotFiniteError, score, score_masks
from keras_efficientformer.training.student import (
    AnyNetwork,
    averaged_weights,
    compile_student,
    pixel_weights,
    set_trainable,
)
from keras_efficientformer.training.teachers import Teacher
from keras_efficientformer.training.worst_images import WorstImages, WorstMasks

# The best epoch is the one with the highest of the first of these that its history has: of masks, of several labels for
# an image, and of one.
MONITORS = ("val_miou", "val_map", "val_accuracy")
REMEDY = "Lower learning_rate, set clip_norm, or use float32"

# A model with one head takes one array of a batch, and one with two heads a pair.
PerHead = np.ndarray | tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class RunData:
    """The images that a run trains and validates on.

    Attributes:
        labels: the class names, in the order of the model's outputs.
        training: batches to train on.
        validation: batches to choose the best model by, or None.
        class_counts: int64 (classes,), how many training images, or pixels of masks, each class has; None for a loader.
        digests: {"training", "validation": `ImageSet.digest` of the folder's images}; empty for a loader.
        images_listed: how many images the training folder has, with those held out or left out; None for a loader.
        skipped: {path from the images' folder on: reason} of images that were left out.
        other_files: {suffix: number} of files in the training folder that are called as no image.
        masks: whether the batches' labels are masks.
    """

    labels: tuple[str, ...]
    training: Batches
    validation: Batches | None
    class_counts: np.ndarray | None = None
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    images_listed: int | None = None
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    other_files: dict[str, int] = dataclasses.field(default_factory=dict)
    masks: bool = False

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What must be the same when a run goes on, as plain values."""
        counts = None if self.class_counts is None else self.class_counts.tolist()
        return {"labels": list(self.labels), "steps": self.training.steps, "images": counts, "files": self.digests}


@dataclass(frozen=True)
class FineTuneReport:
    """The results of a run.

    Attributes:
        model: path of the best model: a .keras file with softmax, or with a sigmoid for several labels, which knows its
            classes' names.
        labels: class names, in the order of its outputs.
        best_epoch: the epoch, from 1, that it was saved after.
        scores: of it, on the validation images; None where there were none.
        history: one row for each epoch: learning_rate, loss, accuracy, val_loss, val_accuracy, val_top5, seconds; for
            several labels val_map in the place of val_top5, and accuracy is that of each label of each image; with
            masks val_miou, and accuracy is that of each pixel.
        skipped: {path from the images' folder on: reason} of images that were left out.
        other_files: {suffix: number} of files in the training folder that are called as no image.
    """

    model: Path
    labels: tuple[str, ...]
    best_epoch: int
    scores: AnyScores | None
    history: tuple[dict[str, float], ...]
    skipped: dict[str, str]
    other_files: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON; the model by its name in the run's folder."""
        return {
            "model": self.model.name,
            "labels": list(self.labels),
            "best_epoch": self.best_epoch,
            "scores": self.scores.to_dict(self.labels) if self.scores else None,
            "history": list(self.history),
            "skipped": self.skipped,
            "other_files": self.other_files,
        }


class Run:
    """One fine-tuning run: the model that is trained, the model that is saved, and how far training has come.

    Args:
        config: its settings.
        output: its folder, which must exist when `train` is called.
        devices: what training steps run on; process 0 alone writes files.
        data: its images.
        source: the pretrained network that both models start from.
        teacher: what labels the images for the second head, or None: then there is no second head to train.
        user_callbacks: Keras callbacks for the trained model.
        verbose: as in Keras' `fit`: 0, 1 or 2.

    Attributes:
        student: the model that is trained, with logits, compiled by `train`.
        deployed: the model that is validated and saved, in float32 with softmax or a sigmoid.
        progress: how far the run has come.

    Raises:
        ValueError: the classifier that is kept has other classes, or "balanced" class weights have no class counts.
    """

    def __init__(
        self,
        config: FineTuneConfig,
        output: Path,
        devices: Devices,
        data: RunData,
        source: AnyNetwork,
        teacher: Teacher | None,
        user_callbacks: Sequence[keras.callbacks.Callback],
        verbose: int,
    ) -> None:
        self.config, self.output, self.devices, self.data, self.teacher = config, output, devices, data, teacher
        self.user_callbacks, self.verbose = user_callbacks, verbose
        self.checkpoint = output / CHECKPOINT_FILE
        self.progress = Progress()
        # Users get another model than the one that is trained, in float32 and outside of all strategies.
        head = "average" if teacher else source.head
        with _dtype_policy("float32"):
            activation = "sigmoid" if config.multi_label else "softmax"
            self.deployed = source.build(data.labels, head=head, activation=activation)
        with devices.scope(), _dtype_policy(config.precision):
            head = "both" if teacher else source.head
            self.student = source.build(data.labels, head=head, drop_path=config.drop_path)
            self.student.set_weights(self.deployed.get_weights())
            devices.prepare(self.student)
        self.class_weights = _class_weights(config.class_weight, data)

    def train(self, restored: tuple[list[np.ndarray], int] | None) -> None:
        """Trains to the run's end, and writes its checkpoints, best model and history.

        Args:
            restored: what `restore` returned; None for a new run.

        Raises:
            TrainingError: a loss, weights or answers are not finite, or a loader's batch is unfit or missing.
            CheckpointError: the checkpoint is of another network.
            OSError: a file cannot be written.
        """
        with Interrupts() as interrupts:
            self._train(restored, interrupts)

    def _train(self, restored: tuple[list[np.ndarray], int] | None, interrupts: Interrupts) -> None:
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
                    masks=self.data.masks,
                    share=self.devices.share,
                )
                if values is not None:
                    variables = self._variables() if saved_phase == phase else self.student.variables
                    assign(variables, values[: len(variables)], self.checkpoint)
                    values = None
            self._announce(phase)
            while self.progress.epoch < end and not self.progress.stopped:
                self._train_epoch(phase, callbacks, interrupts)
        callbacks.on_train_end()

    def _announce(self, phase: int) -> None:
        """Says what the first step of a phase does before any progress is seen; PyTorch compiles nothing."""
        if self.verbose and self.devices.process == 0 and keras.backend.backend() != "torch":
            trained = "all layers" if phase else "the classifier alone"
            print(f"Compiling the training step for {trained}; this takes a while.", flush=True)

    def _train_epoch(self, phase: int, callbacks: keras.callbacks.CallbackList, interrupts: Interrupts) -> None:
        """Trains to the end of the epoch that is going on, validates and saves; phase 0 trains the heads alone."""
        progress, started = self.progress, time.perf_counter()
        epoch, steps = progress.epoch, self.data.training.steps
        callbacks.on_epoch_begin(epoch)
        for images, targets, weights in prefetched(self._batches(epoch, progress.step)):
            self._require_finite("The images' sum is", "Check the loader", np.sum(images))
            self._require_divisible(len(images))
            callbacks.on_train_batch_begin(progress.step)
            with self.devices.scope():
                found = self.devices.step(self.student, (images, targets, weights))
            logs = self._add_step(found)
            callbacks.on_train_batch_end(progress.step - 1, logs)
            interrupts.check()
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
            with finished_file(self.output / BEST_FILE, overwrite=True) as partial:
                self.deployed.save(partial)
        callbacks.on_epoch_end(epoch, row)
        progress.stopped = bool(self.student.stop_training)
        self._save(phase)
        if self.devices.process == 0:
            write_json(self.output / "history.json", progress.history)

    def _batches(self, epoch: int, first_step: int) -> Iterator[tuple[np.ndarray, PerHead, PerHead | None]]:
        """(normalised images, targets, weights or None) of an epoch from a step on."""
        classes = len(self.data.labels)
        batches = self.data.training.epoch(epoch, first_step)
        fixed = self.teacher.labels if self.teacher and self.teacher.fixed else None
        extend = (lambda batch: np.hstack([batch.labels, fixed(batch)])) if fixed else (lambda batch: batch.labels)
        for batch in augmented(batches, self.config, epoch, first_step, extend):
            images = model_inputs(self.student, of_channels(batch.images, self.student.inputs[0].shape[3]))
            if self.data.masks:
                yield images, batch.labels, pixel_weights(batch.labels, self.class_weights)
                continue
            labels, choices = batch.labels[:, :classes], batch.labels[:, classes:]
            weights = None if self.class_weights is None else labels @ self.class_weights
            if self.teacher:
                targets = (labels, choices if fixed else self.teacher.labels(batch))
                yield images, targets, None if weights is None else (weights, weights)
            else:
                yield images, labels, weights

    def _require_finite(self, what: str, remedy: str, number: float) -> None:
        if not math.isfinite(number):
            raise self._error(f"{what} {number} at {self._coming_step()}", remedy)

    def _require_divisible(self, images: int) -> None:
        devices = self.devices.replicas // self.devices.processes
        if images % devices:
            raise TrainingError(
                f"The loader's batch at {self._coming_step()} has {images} images, which cannot be divided evenly "
                f"among {devices} devices. Leave such a batch out (drop_remainder, drop_last), or use devices='one'."
            )

    def _require_finite_weights(self) -> None:
        if not all_finite(self._variables()):
            raise self._error(f"Weights are not finite after {self._last_step()}", REMEDY)

    def _error(self, found: str, remedy: str) -> TrainingError:
        """An error that says what was found, what to do, and which files of the run are there."""
        kept = " and ".join(str(path) for path in (self.checkpoint, self.output / BEST_FILE) if path.exists())
        before = f"what was saved before, {kept}, is as it was" if kept else "nothing was saved before"
        return TrainingError(f"{found}. {remedy}; {before}.")

    def _coming_step(self) -> str:
        return f"step {self.progress.step + 1} of epoch {self.progress.epoch + 1}"

    def _last_step(self) -> str:
        epoch, step = self.progress.epoch, self.progress.step
        return f"step {step} of epoch {epoch + 1}" if step else f"the last step of epoch {epoch}"

    def _add_step(self, found: dict[str, float]) -> dict[str, float]:
        """Counts a step and what it reported; returns the means over the epoch so far."""
        progress = self.progress
        self._require_finite("The loss is", REMEDY, found["loss"])
        accuracy = next(value for name, value in found.items() if name.endswith("accuracy"))
        progress.step += 1
        for name, value in (("loss", found["loss"]), ("accuracy", accuracy)):
            progress.totals[name] = progress.totals.get(name, 0.0) + float(value)
        return {name: total / progress.step for name, total in progress.totals.items()}

    def _validate(self) -> dict[str, float]:
        """Gives the deployed model the trained weights and scores it; nothing without validation images."""
        with self.devices.scope():
            weights = averaged_weights(self.student)
        self.deployed.set_weights(weights)
        if self.data.validation is None:
            return {}
        try:
            scores = self._score(self.deployed, self.data.validation)
        except NotFiniteError as error:
            raise self._error(
                f"Answers to validation images are not finite after {self._last_step()}", REMEDY
            ) from error
        return scores.row

    def _score(self, model: keras.Model, validation: Batches, look: Look | None = None) -> AnyScores:
        """Scores of a model on the validation images; arguments and errors are those of `score`."""
        if self.data.masks:
            return score_masks(model, validation, self.progress.epoch, look)
        return score(model, validation, self.progress.epoch, self.config.multi_label, look)

    def _variables(self) -> list[Any]:
        """What the checkpoint holds, the model's variables first."""
        return [*self.student.variables, *self.student.optimizer.variables]

    def _save(self, phase: int) -> None:
        """Writes the checkpoint, in process 0."""
        self._require_finite_weights()
        if self.devices.process:
            return
        state = {**self._fingerprint(), "phase": phase, "progress": dataclasses.asdict(self.progress)}
        write_state(self.checkpoint, self._variables(), state, self._last_step())

    def _fingerprint(self) -> dict[str, dict[str, Any]]:
        """What must be the same when the run goes on."""
        arguments = {"teacher": self.teacher is not None}
        return {"config": self.config.to_dict(), "data": self.data.fingerprint, "arguments": arguments}

    def restore(self) -> tuple[list[np.ndarray], int] | None:
        """Takes over the checkpoint's progress; returns its variables' values and phase, or None where there is none.

        Raises:
            ValueError: the checkpoint is of a run with other settings or images; the message names them.
            CheckpointError: the file is damaged.
            OSError: it cannot be read, or the best model so far is gone.
        """
        if not self.checkpoint.exists():
            return None
        values, state = read_state(self.checkpoint)
        check_same(state, self._fingerprint(), self.output)
        self.progress = Progress(**state["progress"])
        return values, state["phase"]

    def _callbacks(self) -> keras.callbacks.CallbackList:
        """The run's callbacks, told that training begins."""
        chosen = list(self.user_callbacks)
        if self.config.patience is not None:
            stopping = keras.callbacks.EarlyStopping(
                MONITORS[0 if self.data.masks else 1 if self.config.multi_label else 2],
                patience=self.config.patience,
                mode="max",
                start_from_epoch=self.config.freeze_epochs % self.config.epochs,  # 0 where all epochs are frozen ones
            )
            chosen.append(stopping)
        if self.config.tensorboard and self.devices.process == 0:
            chosen.append(keras.callbacks.TensorBoard(self.output / "tensorboard", write_graph=False))
        self.student.stop_training = False
        callbacks = keras.callbacks.CallbackList(
            chosen,
            add_progbar=self.verbose > 0 and self.devices.process == 0,
            model=self.student,
            epochs=self.config.epochs,
            steps=self.data.training.steps,
            verbose=int(self.verbose),
        )
        callbacks.on_train_begin()
        if self.config.patience is not None:
            for epoch, row in enumerate(self.progress.history):  # it saw these epochs before the run was stopped
                stopping.on_epoch_end(epoch, row)
        return callbacks

    def report(self) -> FineTuneReport:
        """Scores the best model, and writes the report, its plots and its page."""
        history = self.progress.history
        scores = images = None
        if self.data.validation is not None:
            best = open_model(self.output / BEST_FILE)
            images = WorstMasks() if self.data.masks else WorstImages(self.config.multi_label)
            scores = self._score(best, self.data.validation, images.look)
        labels = self.data.labels
        found = self.data.skipped, self.data.other_files
        report = FineTuneReport(self.output / BEST_FILE, labels, best_epoch(history), scores, tuple(history), *found)
        if self.devices.process == 0:
            content = report.to_dict()
            write_json(self.output / REPORT_FILE, content)
            plot_curves(history, report.best_epoch, self.config, self.output / "curves.png")
            if isinstance(scores, MultiLabelScores):
                plot_average_precision(scores.average_precision, labels, self.output / "average_precision.png")
            elif scores:
                counted = "pixels" if self.data.masks else "images"
                plot_confusion(scores.confusion, labels, self.output / "confusion.png", counted)
            write_run_page(self.output, content, self.config, scores, images, self.data.validation)
        return report


def best_epoch(history: Sequence[dict[str, float]]) -> int:
    """The epoch, from 1, with the highest of `MONITORS`, the first of equals; without validation the last."""
    monitor = next((name for name in MONITORS if name in history[-1]), None)
    return len(history) if monitor is None else 1 + int(np.argmax([row[monitor] for row in history]))


def _class_weights(kind: str, data: RunData) -> np.ndarray | None:
    """float32 (classes,): the weight of each class' images or pixels in the loss; None where all count alike."""
    if kind == "none":
        return None
    if data.class_counts is None:
        raise ValueError("class_weight='balanced' needs a folder: a loader does not say how many images a class has.")
    # A class that a palette has may have no pixels, and needs no weight.
    counts = np.maximum(data.class_counts, 1)
    return (counts.sum() / (len(data.labels) * counts)).astype("float32")


@contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    """Makes a dtype policy Keras' default within the block."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
