"""Opens the Keras model that a name or a file stands for, a classifier or a segmentation model. Room: top level."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from keras_efficientformer import conversion
from keras_efficientformer.conversion.dialects import is_of_segmentation
from keras_efficientformer.conversion.formats import suffix_of
from keras_efficientformer.conversion.hdf5_survival import check_hdf5
from keras_efficientformer.conversion.state_dict import remember_source
from keras_efficientformer.errors import CheckpointError, first_line
from keras_efficientformer.layers.initialization import weights_follow
from keras_efficientformer.models.assembly import with_channels
from keras_efficientformer.models.opening import PUBLISHED, at_size, from_checkpoint
from keras_efficientformer.models.sources import PublishedModel, local_file, model_source
from keras_efficientformer.segmentation import checkpoints


def open_model(
    source: str | os.PathLike[str],
    input_shape: tuple[int, ...] | None = None,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> keras.Model:
    """The Keras model that a file or a name stands for.

    Args:
        source: a name such as "l1", "l1:imagenet-300" or "hf://owner/name" (`sources.model_source` lists them), which
            is downloaded; a .keras file or a checkpoint file, of a segmentation model too.
        input_shape: (h, w), or (h, w, channels); None means the file's own, or 224x224.
        progress: wraps the iteration over a checkpoint's variables, e.g. `rich.progress.track`.

    Raises:
        FileNotFoundError: `source` is neither a name nor a file.
        ValueError, OSError: as `from_checkpoint`, of a segmentation model as `segmentation.from_checkpoint`, or of a
            name as `EfficientFormerL1`.
    """
    found = model_source(source)
    if isinstance(found, PublishedModel):
        shape = None if input_shape is None else with_channels(input_shape, 3)
        return PUBLISHED[found.variant](weights=found.weights, input_shape=shape)
    path = local_file(source)
    if suffix_of(path) == ".keras":
        model = _load_keras(path)
        remember_source(model, os.fspath(path))
        own = tuple(model.inputs[0].shape[1:])
        shape = own if input_shape is None else with_channels(input_shape, own[-1])
        return model if shape == own else at_size(model, shape)
    checkpoint = conversion.read_checkpoint(path)
    if is_of_segmentation(checkpoint):
        return checkpoints.from_checkpoint(checkpoint, input_shape=input_shape)
    return from_checkpoint(checkpoint, input_shape=input_shape, progress=progress)


def _load_keras(path: str | os.PathLike[str]) -> keras.Model:
    """The model in a .keras file."""
    with open(path, "rb"):  # an OSError names a file that is missing, a folder or not permitted
        pass
    check_hdf5(path)
    try:
        with weights_follow():
            model = keras.saving.load_model(path, compile=False)
        if not isinstance(model, keras.Model) or not model.inputs:
            raise ValueError(f"it holds a {type(model).__name__}, and a model of images was expected")
        return model
    except MemoryError:
        raise
    # Damaged bytes come out of zipfile, JSON, h5py and Keras as exceptions of every kind.
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be opened as a Keras model: {first_line(error)}. It is truncated, damaged, of a newer "
            "version, or holds layers of other packages, which have to be imported first."
        ) from error
