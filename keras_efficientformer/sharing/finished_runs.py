"""Reads what a finished run's folder says of its model, without Keras. Room: sharing."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_efficientformer.conversion.pretrained import PRETRAINED
from keras_efficientformer.errors import first_line
from keras_efficientformer.files import bare_name
from keras_efficientformer.models.sources import PublishedModel, model_source
from keras_efficientformer.training.config import BEST_FILE, CONFIG_FILE, REPORT_FILE, FineTuneConfig, read_run

# Of a run's pictures, those that stand in a card.
PICTURES = ("curves.png", "confusion.png", "average_precision.png")


@dataclass(frozen=True)
class FinishedRun:
    """What is known of how a model was made and how good it is.

    Attributes:
        folder: of the run.
        scores: of its model on the images it was chosen by, as `report.json` has them; None where there were none.
        best_epoch, epochs: which epoch the model is of, and how many were trained.
        config: the settings.
        changed: {setting: (value, default)} of those that differ from the defaults.
        base: the repository on the hub whose weights it started from, "owner/name"; None where that is not known.
        published: whether those are weights that this package knows, all of which are under Apache 2.0.
        data: the name of the images' folder or file, without the folders above it; None for loaders.
        versions: {package: version}.
    """

    folder: Path
    scores: dict[str, Any] | None
    best_epoch: int
    epochs: int
    config: FineTuneConfig
    changed: dict[str, tuple[Any, Any]]
    base: str | None
    published: bool
    data: str | None
    versions: dict[str, str]

    @property
    def model(self) -> Path:
        """Its best model."""
        return self.folder / BEST_FILE


def read_finished_run(folder: str | os.PathLike[str]) -> FinishedRun:
    """What a run's folder says.

    Raises:
        ValueError: the folder holds no run, or one that has not ended, or its files are damaged.
    """
    folder = Path(folder)
    missing = [name for name in (CONFIG_FILE, BEST_FILE, REPORT_FILE) if not (folder / name).is_file()]
    if missing:
        begun = (folder / CONFIG_FILE).is_file()
        advice = "Go on with the run (finetune --resume)" if begun else "Give the folder that finetune wrote"
        raise ValueError(
            f"{folder} holds no finished run: it has no {', '.join(missing)}. {advice}, or a model's file."
        )
    arguments, config = read_run(folder)
    try:
        report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        versions = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["versions"]
        scores, best_epoch, epochs = report["scores"], int(report["best_epoch"]), len(report["history"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} is damaged: its {REPORT_FILE} or {CONFIG_FILE} is not what a run writes ({first_line(error)})."
        ) from error
    values, defaults = config.to_dict(), FineTuneConfig().to_dict()
    base, published = _base(arguments.get("model"))
    data = arguments.get("data")
    return FinishedRun(
        folder=folder,
        scores=scores,
        best_epoch=best_epoch,
        epochs=epochs,
        config=config,
        changed={name: (value, defaults[name]) for name, value in values.items() if value != defaults[name]},
        base=base,
        published=published,
        data=None if data is None else bare_name(data),
        versions=versions,
    )


def _base(name: str | None) -> tuple[str | None, bool]:
    """The repository that the model of a run's argument came from, and whether its weights are published ones."""
    try:
        source = None if name is None else model_source(name)
    except (ValueError, OSError):  # a file that is no longer there
        source = None
    if isinstance(source, PublishedModel):
        return PRETRAINED[source.variant, source.weights].repo, True
    return getattr(source, "repo", None), False
