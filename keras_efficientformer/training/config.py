"""The settings of a training run: one frozen dataclass, from Python, from the command line or from a TOML file."""

import dataclasses
import importlib.resources
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
CLASS_WEIGHTS = ("none", "balanced")
DEVICES = ("one", "all")


@dataclass(frozen=True)
class FineTuneConfig:
    """Settings of `finetune`. The defaults are for a few thousand photographs and pretrained weights.

    Attributes:
        epochs: passes over the training images, an integer >= 1, `freeze_epochs` among them.
        freeze_epochs: first epochs in which only the new head learns, at a constant `learning_rate`.
        batch_size: images in one step, over all devices and processes together.
        learning_rate: of AdamW, at its highest: a linear warm-up, then half a cosine down to `final_learning_rate`.
        final_learning_rate: where the cosine ends.
        warmup_epochs: length of the warm-up in epochs, a float >= 0, after the frozen ones.
        weight_decay: AdamW's, on the kernels of convolutions and dense layers alone: biases, norms, layer scales and
            attention biases have none.
        clip_norm: the gradient is scaled down to this global norm; None leaves it.
        label_smoothing: of the cross-entropy, in [0, 1).
        ema: decay of a moving average of the trained weights, in [0, 1); 0 means none. With it the average is what
            is validated and saved as the best model.
        drop_path: rate of stochastic depth of the last block, in [0, 1).
        class_weight: "none", or "balanced": each class counts alike, however many images it has.
        distillation: weight in [0, 1] of the teacher's labels in the loss, where there is a teacher.
        keep_head: start from the model's own classifier, which must have as many classes as the data.
        size: side or (height, width) of the images in pixels; None means the model's own.
        min_crop: smallest share of an image's area that a random crop keeps, in (0, 1]; 1 means the centre crop of
            evaluation (Inception, arXiv 1409.4842, section 6).
        crop_fraction: of the evaluation's centre crop, as in `imagenet.resize_and_crop`.
        flip: whether to mirror half of the images left to right.
        rand_augment: magnitude of `keras.layers.RandAugment` in [0, 1], two operations; 0 means none. Keras draws the
            operations once for each batch and their strengths once for each image.
        mixup: alpha of `keras.layers.MixUp`; 0 means none. With `cutmix` too, each batch gets one of the two.
        cutmix: alpha of `keras.layers.CutMix` in [0, 1]; 0 means none.
        precision: "float32", "mixed_bfloat16" or "mixed_float16" (with dynamic loss scaling).
        validation_split: share of each class that is held out where there is no val folder, in (0, 1).
        patience: epochs without a better validation accuracy after which training stops; None means never.
        save_every: steps between two checkpoints, an integer >= 1; the end of an epoch always has one.
        skip_bad: leave unreadable images out, instead of refusing to start.
        tensorboard: write logs for TensorBoard into the run's folder.
        seed: of everything that is drawn.
        devices: "one", or "all": data-parallel over all devices of this process, and over the processes that TF_CONFIG
            (TensorFlow) or KERAS_DISTRIBUTION_* (JAX) in the environment tell of.

    Raises:
        ValueError: a setting is out of its range.
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
    distillation: float = 0.5
    keep_head: bool = False
    size: int | tuple[int, int] | None = None
    min_crop: float = 0.35
    crop_fraction: float = 0.95
    flip: bool = True
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

    def __post_init__(self):
        for name in ("epochs", "batch_size", "save_every"):
            self._require(name, getattr(self, name) >= 1, "an integer >= 1")
        self._require("freeze_epochs", 0 <= self.freeze_epochs <= self.epochs, "between 0 and epochs")
        for name in ("learning_rate", "crop_fraction", "min_crop"):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in ("crop_fraction", "min_crop", "rand_augment", "cutmix", "distillation"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in the range [0, 1]")
        for name in ("warmup_epochs", "weight_decay", "mixup", "final_learning_rate"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("label_smoothing", "ema", "drop_path"):
            self._require(name, 0 <= getattr(self, name) < 1, "in the range [0, 1)")
        self._require("validation_split", 0 < self.validation_split < 1, "in the range (0, 1)")
        for name, choices in (("precision", PRECISIONS), ("class_weight", CLASS_WEIGHTS), ("devices", DEVICES)):
            self._require(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")

    def _require(self, name, fits, expected):
        if not fits:
            raise ValueError(f"`{name}` should be {expected}. Received: {name}={getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, ready for JSON."""
        return {**dataclasses.asdict(self), "size": list(self.size) if isinstance(self.size, tuple) else self.size}

    @classmethod
    def from_file(cls, path: str | os.PathLike, **changes: Any) -> "FineTuneConfig":
        """The settings in the table `[finetune]` of a TOML file, some of them changed.

        Args:
            path: the file, or "imagenet": the recipe of the paper and of its repository, which is part of the package.
            **changes: settings that replace the file's.

        Raises:
            ValueError: the file is no TOML, has no such table, or names a setting that there is not.
            OSError: the file cannot be read.
        """
        recipes = importlib.resources.files("keras_efficientformer") / "data"
        file = recipes / "recipe_imagenet.toml" if str(path) == "imagenet" else Path(path)
        try:
            settings = tomllib.loads(file.read_text(encoding="utf-8"))["finetune"]
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not a TOML file: {error}.") from error
        except KeyError as error:
            raise ValueError(f"{path} has no table [finetune], which a training recipe has.") from error
        unknown = sorted(settings.keys() - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"{path} has settings that there are not: {', '.join(unknown)}.")
        return cls(**settings | changes)
