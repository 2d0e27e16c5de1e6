"""Tells presets that KerasHub has written from everything that this package opens itself. Room: hub."""

import json
from pathlib import Path

import keras

from keras_efficientformer.conversion.pretrained import repository_file
from keras_efficientformer.errors import first_line
from keras_efficientformer.models.opening import build
from keras_efficientformer.models.sources import HubModel, PublishedModel, model_source
from keras_efficientformer.opening import open_model
from keras_efficientformer.variants import ALL_VARIANTS, model_name

# Only KerasHub reads these; "hf://" is read by both.
KERAS_HUBS = ("kaggle://", "modelscope://")
# The file of each preset, and the entry that KerasHub itself takes for the sign of its own ones: timm's and
# transformers' repositories have a file of the same name.
PRESET_FILE = "config.json"
PRESET_SIGN = "registered_name"


def is_keras_preset(preset: str) -> bool:
    """Whether KerasHub has written a preset; else `opening.open_model` takes it.

    Args:
        preset: as for `EfficientFormerBackbone.from_preset`.

    Raises:
        FileNotFoundError, ValueError: it is neither, as `models.model_source`.
        OSError: the hub could not be asked.
    """
    if preset.startswith(KERAS_HUBS):
        return True
    source = model_source(preset)
    if isinstance(source, PublishedModel):
        return False
    if isinstance(source, HubModel):
        config = repository_file(source.repo, PRESET_FILE, source.revision)
        return config is not None and _has_sign(config)
    if source.is_dir() and not _has_sign(source / PRESET_FILE):
        raise FileNotFoundError(
            f"{preset} is a folder that no `save_to_preset` has written: expected a {PRESET_FILE} with an entry "
            f'"{PRESET_SIGN}" in it. Of a checkpoint, give the path of the file.'
        )
    return source.is_dir()


def _has_sign(config: Path) -> bool:
    try:
        return config.is_file() and PRESET_SIGN in json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config} is damaged, it is no JSON: {first_line(error)}. Bring it again.") from error


def network_of(preset: str, load_weights: bool, image_shape: tuple[int, ...] | None) -> keras.Model:
    """The model that a checkpoint's name or path stands for; without weights a published one costs no download."""
    source = model_source(preset)
    if load_weights or not isinstance(source, PublishedModel):
        return open_model(preset, image_shape)
    return build(ALL_VARIANTS[source.variant], input_shape=image_shape, name=model_name(source.variant))
