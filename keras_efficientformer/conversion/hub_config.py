"""Reads what the configuration beside a checkpoint says of its images: timm's and transformers'. Room: conversion."""

import json
import os
from pathlib import Path
from typing import Any

from keras_efficientformer.errors import CheckpointError

# {file beside the checkpoint: (where in it, names of the mean and of the deviation)}: timm's hub format has a model's
# "pretrained_cfg", transformers' image processors a file of their own.
CONFIGS = {
    "config.json": ("pretrained_cfg", "mean", "std"),
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
        content = _read(Path(path).with_name(name))
        content = content.get(part) if part and isinstance(content, dict) else content
        if not isinstance(content, dict) or mean_name not in content or std_name not in content:
            continue
        mean, std = content[mean_name], content[std_name]
        if not all(isinstance(value, list) and all(map(_is_number, value)) for value in (mean, std)):
            raise CheckpointError(
                f"{Path(path).with_name(name)} should state a number for each channel. "
                f"Found: {mean_name}={mean!r}, {std_name}={std!r}; mend it, or pass `mean` and `std`."
            )
        return tuple(map(float, mean)), tuple(map(float, std))
    return None


def _read(path: Path) -> Any:
    """The content of a JSON file; None where there is none, or it is another program's."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
