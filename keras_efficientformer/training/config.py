"""The settings of a fine-tuning run, from Python, the command line or a TOML file. Room: training.

`FineTuneConfig` is their one source: the command takes its options, defaults and help from it. A run writes them down
with what it was started on, so that it goes on without being told again.
"""

import dataclasses
import importlib.resources
import inspect
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from keras_efficientformer.errors import first_line
from keras_efficientformer.models.sources import model_source

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
CLASS_WEIGHTS = ("none", "balanced")
DEVICES = ("one", "all")
# In the run's folder: its settings, what it was started on, and versions; its best model; what came of it.
CONFIG_FILE, BEST_FILE, REPORT_FILE = "config.json", "best.keras", "report.json"
# What settings may be that are words.
CHOICES = {"class_weight": CLASS_WEIGHTS, "precision": PRECISIONS, "devices": DEVICES}


class Expected(NamedTuple):
    """What a setting should be: in words, and whether a value is that."""

    words: str
    fits: Callable[[Any], bool]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(lowest: int) -> Expected:
    return Expected(f"an integer >= {lowest}", lambda value: _is_integer(value) and value >= lowest)


def _number(words: str, fits: Callable[[Any], bool]) -> Expected:
    def is_one(value: Any) -> bool:
        return (isinstance(value, float) or _is_integer(value)) and math.isfinite(value) and fits(value)

    return Expected(f"a number {words}", is_one)


def _optional(expected: Expected) -> Expected:
    return Expected(f"{expected.words}, or None", lambda value: value is None or expected.fits(value))


def _one_of(choices: Sequence[str]) -> Expected:
    return Expected(f"one of {', '.join(choices)}", lambda value: value in choices)


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, tuple | list) and len(value) == 2 else [value]
    return all(_is_integer(side) and side >= 1 for side in sides)


SIZE = Expected("an integer >= 1 or two of them, (height, width)", _is_size)
SWITCH = Expected("True or False", lambda value: isinstance(value, bool))
POSITIVE = _number("above 0", lambda value: value > 0)
NOT_NEGATIVE = _number("that is at least 0", lambda value: value >= 0)
SHARE = _number("in the range [0, 1]", lambda value: 0 <= value <= 1)
POSITIVE_SHARE = _number("in the range (0, 1]", lambda value: 0 < value <= 1)
SHARE_BELOW_1 = _number("in the range [0, 1)", lambda value: 0 <= value < 1)

EXPECTED = {
    "epochs": _integer(1),
    "freeze_epochs": _integer(0),
    "batch_size": _integer(1),
    "learning_rate": POSITIVE,
    "final_learning_rate": NOT_NEGATIVE,
    "warmup_epochs": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "clip_norm": _optional(POSITIVE),
    "label_smoothing": SHARE_BELOW_1,
    "ema": SHARE_BELOW_1,
    "drop_path": SHARE_BELOW_1,
    "class_weight": _one_of(CHOICES["class_weight"]),
    "multi_label": SWITCH,
    "distillation": SHARE,
    "keep_head": SWITCH,
    "size": _optional(SIZE),
    "min_crop": POSITIVE_SHARE,
    "crop_fraction": POSITIVE_SHARE,
    "flip": SWITCH,
    "color_jitter": SHARE,
    "rand_augment": SHARE,
    "mixup": NOT_NEGATIVE,
    "cutmix": SHARE,
    "precision": _one_of(CHOICES["precision"]),
    "validation_split": _number("in the range (0, 1)", lambda value: 0 < value < 1),
    "patience": _optional(_integer(0)),
    "save_every": _integer(1),
    "skip_bad": SWITCH,
    "tensorboard": SWITCH,
    "seed": _integer(0),
    "devices": _one_of(CHOICES["devices"]),
}


@dataclass(frozen=True)
class FineTuneConfig:
    """Settings of `finetune`. The defaults are for a few thousand photographs and pretrained weights.

    Attributes:
        epochs: passes over the training images, an integer >= 1, `freeze_epochs` among them.
        freeze_epochs: first epochs in which only the new head learns, at a constant `learning_rate`.
        batch_size: images in one step, over all devices and processes together.
        learning_rate: of AdamW, at its highest: a linear warm-up, then half a cosine down to `final_learning_rate`.
        final_learning_rate: where the cosine ends, at most `learning_rate`.
        warmup_epochs: length of the warm-up in epochs, a float >= 0, after the frozen ones.
        weight_decay: AdamW's, on the kernels of convolutions and dense layers alone: biases, norms, layer scales and
            attention biases have none.
        clip_norm: the gradient is scaled down to this global norm; None leaves it.
        label_smoothing: of the cross-entropy, in [0, 1).
        ema: decay of a moving average of the trained weights, in [0, 1); 0 means none. With it the average is what
            is validated and saved as the best model.
        drop_path: rate of stochastic depth of the last block, in [0, 1).
        class_weight: "none", or "balanced": each class counts alike, however many images, or pixels of masks, it has.
        multi_label: images may have several labels or none: folders are called by all of them, joined by "+", or a CSV
            file says them; binary cross-entropy, a sigmoid, and the best model by mean average precision.
        distillation: weight in [0, 1] of the teacher's labels in the loss, where there is a teacher.
        keep_head: start from the model's own classifier, which must have as many classes as the data.
        size: side or (height, width) of the images in pixels, with masks multiples of 32; None means the model's own.
        min_crop: smallest share of an image's area that a random crop keeps, in (0, 1]; 1 means the centre crop of
            evaluation (Inception, arXiv 1409.4842, section 6), or, with masks, the whole image.
        crop_fraction: of the evaluation's centre crop, as in `imagenet.resize_and_crop`; with masks there is none.
        flip: whether to mirror half of the images left to right.
        color_jitter: strength in [0, 1] of `keras.layers.RandomColorJitter`: brightness, contrast, saturation, hue; 0
            means none.
        rand_augment: magnitude of `keras.layers.RandAugment` in [0, 1], two operations; 0 means none. Keras draws the
            operations once for each batch and their strengths once for each image. They shift and turn images too, so
            masks do not go with it, and neither with the next two.
        mixup: alpha of `keras.layers.MixUp`; 0 means none. With `cutmix` too, each batch gets one of the two.
        cutmix: alpha of `keras.layers.CutMix` in [0, 1]; 0 means none.
        precision: "float32", "mixed_bfloat16" or "mixed_float16" (with dynamic loss scaling).
        validation_split: share of each class that is held out where there is no val folder, in (0, 1).
        patience: epochs without a better validation accuracy, mean average precision with `multi_label` or mean IoU
            with masks, after which training stops, an integer >= 0; None means never.
        save_every: steps between two checkpoints, an integer >= 1; the end of an epoch always has one.
        skip_bad: leave unreadable images out, instead of refusing to start.
        tensorboard: write logs for TensorBoard into the run's folder.
        seed: of everything that is drawn.
        devices: "one", or "all": data-parallel over all devices of this process, and over the processes that TF_CONFIG
            (TensorFlow) or KERAS_DISTRIBUTION_* (JAX) in the environment tell of.

    Raises:
        ValueError: a setting is of another type, or out of its range.
    """

    epochs: int = 20
    freeze_epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_epochs: float = 1.0
    weight_decay: float = 0.05
    clip_norm: float | None = 1.0
    label_smoothing: float = 0.1
    ema: float = 0.0
    drop_path: float = 0.0
    class_weight: str = "none"
    multi_label: bool = False
    distillation: float = 0.5
    keep_head: bool = False
    size: int | tuple[int, int] | None = None
    min_crop: float = 0.35
    crop_fraction: float = 0.95
    flip: bool = True
    color_jitter: float = 0.0
    rand_augment: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    precision: str = "float32"
    validation_split: float = 0.2
    patience: int | None = None
    save_every: int = 200
    skip_bad: bool = False
    tensorboard: bool = False
    seed: int = 0
    devices: str = "one"

    def __post_init__(self) -> None:
        for name, (words, fits) in EXPECTED.items():
            self._require(name, fits(getattr(self, name)), words)
        if isinstance(self.size, list):  # as TOML and JSON have it
            object.__setattr__(self, "size", tuple(self.size))
        self._require("freeze_epochs", self.freeze_epochs <= self.epochs, "an integer between 0 and epochs")
        # Where all epochs are frozen ones, the rate is constant.
        falls = self.final_learning_rate <= self.learning_rate or self.freeze_epochs == self.epochs
        self._require("final_learning_rate", falls, f"at most learning_rate, here {self.learning_rate}: lower it too")
        # The weight of an image is that of its one class.
        alike = not self.multi_label or self.class_weight == "none"
        self._require("class_weight", alike, "'none' with multi_label, where images have no one class")

    def _require(self, name: str, fits: bool, expected: str) -> None:
        if not fits:
            raise ValueError(f"`{name}` should be {expected}. Received: {name}={getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, ready for JSON."""
        return {**dataclasses.asdict(self), "size": list(self.size) if isinstance(self.size, tuple) else self.size}

    @classmethod
    def descriptions(cls) -> dict[str, str]:
        """{setting: what it is, in words}, from this class' docstring: help and documentation say the same."""
        attributes = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
        found = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE)
        return {name: re.sub(r"\s+", " ", text) for name, text in found}

    @classmethod
    def from_file(cls, path: str | os.PathLike, **changes: Any) -> "FineTuneConfig":
        """The settings in the table `[finetune]` of a TOML file, some of them changed.

        Args:
            path: the file, or "imagenet": the recipe of the paper and of its repository, which is part of the package.
            **changes: settings that replace the file's.

        Raises:
            ValueError: the file is no TOML, has no such table, names a setting that there is not, or one does not fit.
            OSError: the file cannot be read.
        """
        recipes = importlib.resources.files("keras_efficientformer") / "data"
        file = recipes / "recipe_imagenet.toml" if str(path) == "imagenet" else Path(path)
        try:
            settings = tomllib.loads(file.read_text(encoding="utf-8")).get("finetune")
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a TOML file: {error}.") from error
        if not isinstance(settings, dict):
            raise ValueError(f"{path} has no table [finetune], which a training recipe has.")
        unknown = sorted(settings.keys() - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"{path} has settings that there are not: {', '.join(unknown)}.")
        return cls(**settings | changes)


def portable_arguments(output: Path, **arguments: Any) -> dict[str, str | None]:
    """What a run was started on, as `CONFIG_FILE` has it: names as they are, paths from the run's folder on.

    Args:
        output: the run's folder.
        arguments: of `finetune`; what is neither a name nor a path, such as a loader, becomes None.
    """
    return {
        name: value if name in ("model", "teacher") and _is_name(value) else _portable(output, value)
        for name, value in arguments.items()
    }


def _is_name(model: Any) -> bool:
    """Whether it is the name of a model, which it stays where a file or folder, the run's perhaps, is called so too."""
    return isinstance(model, str) and not isinstance(model_source(model), Path)


def given_as_objects(**arguments: Any) -> list[str]:
    """Which arguments of `finetune` are objects, such as a model or a loader, that no file can name."""
    return [name for name, value in arguments.items() if not isinstance(value, str | os.PathLike | None)]


def check_nameable(output: str | os.PathLike) -> None:
    """Checks that a run was started on names and paths alone, so that `read_run` gives all that it needs to go on.

    Raises:
        ValueError: an argument was an object; the message names it.
    """
    content = json.loads((Path(output) / CONFIG_FILE).read_text(encoding="utf-8"))
    # A version before this one did not say which they were.
    objects = content.get("objects") or [name for name in ("model", "data") if content["arguments"].get(name) is None]
    if objects:
        raise ValueError(
            f"The run in {output} was started from Python with objects that {CONFIG_FILE} cannot name: "
            f"{', '.join(objects)}. Go on from Python with the same ones, by resume=True."
        )


def _portable(output: Path, value: Any) -> str | None:
    if not isinstance(value, str | os.PathLike):
        return None
    path = os.path.expanduser(value)
    if not os.path.exists(path):
        return os.fspath(value)
    try:
        relative = os.path.relpath(os.path.realpath(path), os.path.realpath(output))
    except ValueError:  # on Windows, of another drive
        return os.path.abspath(path)
    return Path(relative).as_posix() if relative.startswith(os.pardir) else f"./{Path(relative).as_posix()}"


def is_run(output: Path) -> bool:
    """Whether a folder holds a run, which has written down its settings."""
    try:
        return "config" in json.loads((output / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def read_run(output: str | os.PathLike) -> tuple[dict[str, str | None], FineTuneConfig]:
    """What the run in a folder was started on, and its settings.

    Returns:
        {argument of `finetune`: name or path, or None where it had none or no path}, and the settings.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: its `CONFIG_FILE` is damaged, or of a version that did not write what it was started on.
    """
    path = Path(output) / CONFIG_FILE
    if not path.exists():
        raise FileNotFoundError(f"{output} holds no run to go on with: it has no {CONFIG_FILE}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        config = content["config"]
        settings = FineTuneConfig(**config)
        arguments = {name: _from_run(Path(output), value) for name, value in content["arguments"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} does not say what the run was started on ({first_line(error)}): give its images, model and "
            "settings again."
        ) from error
    return arguments, settings


def _from_run(output: Path, value: str | None) -> str | None:
    if value is None or not value.startswith("."):
        return value
    # Of a folder that is a link, the folders above are those of where it leads to, as when the path was written.
    return os.path.relpath(os.path.join(os.path.realpath(output), value))
