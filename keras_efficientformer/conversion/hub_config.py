"""Reads what the configuration beside a checkpoint says of its images: timm's and transformers'. Room: conversion."""

import json
import os
from pathlib import Path
from typing import Any

from keras_efficientformer.errors import CheckpointError

TIMM_FILE, TIMM_ENTRY = "config.json", "pretrained_cfg"
# Where a config.json states the crop of evaluation: timm's, and a run's of `finetune`.
CROP_ENTRIES = ((TIMM_ENTRY, "crop_pct"), ("config", "crop_fraction"))
# {file beside the checkpoint: (where in it, names of the mean and of the deviation)}: timm's hub format has a model's
# `TIMM_ENTRY`, transformers' image processors a file of their own.
CONFIGS = {
    TIMM_FILE: (TIMM_ENTRY, "mean", "std"),
    "preprocessor_config.json": (None, "image_mean", "image_std"),
}


def normalization_beside(path: str | os.PathLike[str]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The mean and the deviation, of pixels scaled to 0..1, that a checkpoint's configuration states.

    Args:
        path: of the checkpoint; timm's config.json or transformers' preprocessor_config.json lies in the same folder.

    Returns:
        None where there is no such file, or it says nothing of them.

    Raises:
        CheckpointError: it says something else than a number for each channel.
    """
    for name, (part, mean_name, std_name) in CONFIGS.items():
        content = _read(Path(path).with_name(name), part)
        if mean_name not in content or std_name not in content:
            continue
        mean, std = content[mean_name], content[std_name]
        if not all(isinstance(value, list) and all(map(_is_number, value)) for value in (mean, std)):
            raise CheckpointError(
                f"{Path(path).with_name(name)} should state a number for each channel. "
                f"Found: {mean_name}={mean!r}, {std_name}={std!r}; mend it, or pass `mean` and `std`."
            )
        return tuple(map(float, mean)), tuple(map(float, std))
    return None


def crop_beside(path: str | os.PathLike[str]) -> float | None:
    """The share of the resized image's side that evaluation keeps, as the config.json beside a checkpoint states it:
    timm's, or that of a run of `finetune`.

    Args:
        path: of the checkpoint.

    Returns:
        None where there is no such file, or it says nothing of that.

    Raises:
        CheckpointError: it is no number above 0 and up to 1.
    """
    config = Path(path).with_name(TIMM_FILE)
    stated = ((name, _read(config, part).get(name)) for part, name in CROP_ENTRIES)
    name, crop = next((found for found in stated if found[1] is not None), ("", None))
    if crop is None:
        return None
    if not _is_number(crop) or not 0 < crop <= 1:
        raise CheckpointError(
            f"{config} should state a {name} above 0 and up to 1. Found: {crop!r}; mend it, or pass another crop."
        )
    return float(crop)


def _read(path: Path, part: str | None) -> dict[str, Any]:
    """The object in a JSON file, or the one in an entry of it; empty where there is none, or of another program."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found = content.get(part) if part and isinstance(content, dict) else content
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
