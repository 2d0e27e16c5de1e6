"""Writes and reads a run's checkpoint: weights, seeds, optimizer and progress in one file. Room: training.

The file gets its name when all of it is on the disk, so whatever stops a run, the last complete one is there.
"""

import json
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_efficientformer.errors import CheckpointError
from keras_efficientformer.files import finished_file
from keras_efficientformer.training.config import BEST_FILE

CHECKPOINT_FILE = "checkpoint.npz"
STATE = "state"


class TrainingError(ValueError):
    """Training cannot go on: the message says at which step, what was found, and what to do."""


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: the epoch that is going on, from 0.
        step: how many of its steps are done.
        totals: sums over those steps of what each reported.
        history: one row for each epoch that is done.
        stopped: whether it ended early.
    """

    epoch: int = 0
    step: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: bool = False


def write_state(path: Path, variables: Iterable[Any], state: dict[str, Any], where: str) -> None:
    """Writes a checkpoint in the place of the one before, which stays if this fails.

    Args:
        path: the file.
        variables: `keras.Variable`s, in an order that is the same in every run.
        state: plain values.
        where: the step, for messages.

    Raises:
        OSError: the disk is full, or another reason not to write; the old file is as it was.
    """
    arrays = {f"{index:05d}": keras.ops.convert_to_numpy(variable) for index, variable in enumerate(variables)}
    try:
        with finished_file(path, overwrite=True) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **{STATE: np.array(json.dumps(state))}, **arrays)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        kept = f"the one before it is kept. Make room and go on with --resume ({path})"
        raise OSError(
            error.errno, f"The checkpoint after {where} was not written ({error.strerror}); {kept}"
        ) from error


def all_finite(variables: Iterable[Any]) -> bool:
    """Whether no value of the variables is infinite or not a number."""
    return all(np.isfinite(keras.ops.convert_to_numpy(variable)).all() for variable in variables)


def read_state(path: Path) -> tuple[list[np.ndarray], dict[str, Any]]:
    """What `write_state` wrote: the variables' values and the plain ones.

    Raises:
        CheckpointError: the file is damaged.
        OSError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in sorted(set(file.files) - {STATE})], json.loads(str(file[STATE]))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is no checkpoint of a training run: {error}. Start the run anew.") from error


def check_same(state: dict[str, Any], run: dict[str, dict[str, Any]], output: Path) -> None:
    """Checks that a checkpoint is of the run that is to go on with it.

    Args:
        state: as `read_state` gives it.
        run: {part of the state: {name: value}}; what older checkpoints do not say is passed over.
        output: the run's folder.

    Raises:
        ValueError: values are others; the message names them.
        FileNotFoundError: the best model so far is gone.
    """
    pairs = {
        name: (state[part][name], value)
        for part, values in run.items()
        for name, value in values.items()
        if name in state.get(part, ())
    }
    differing = [_difference(name, *pair) for name, pair in pairs.items() if pair[0] != pair[1]]
    if differing:
        raise ValueError(f"The run in {output} cannot go on with other settings or images: {', '.join(differing)}.")
    done = len(state.get("progress", {}).get("history", ()))
    if done and not (output / BEST_FILE).exists():
        raise FileNotFoundError(
            f"{output / BEST_FILE}, the best model of the {done} epochs that are done, is not there any more. Put it "
            "back, or start anew in another folder."
        )


def _difference(name: str, before: Any, now: Any) -> str:
    if name == "files":
        return f"the images for {' and '.join(part for part in now if now[part] != before.get(part))} are others"
    return f"{name} was {before!r}, is {now!r}"


def assign(variables: list[Any], values: list[np.ndarray], path: Path) -> None:
    """Puts values into variables.

    Raises:
        CheckpointError: their shapes are not the variables'.
    """
    expected, found = [tuple(variable.shape) for variable in variables], [value.shape for value in values]
    if expected != found:
        raise CheckpointError(
            f"{path} belongs to another network: it holds {len(found)} values, expected {len(expected)}."
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
