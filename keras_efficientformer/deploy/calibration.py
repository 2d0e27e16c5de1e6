"""Reads the images on which an export measures ranges and is compared with Keras. Room: deploy."""

import itertools
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficientformer.files import bare_name
from keras_efficientformer.images import read_images, seeded_images

# These are the kinds of calibration images that exporters take.
Calibration = str | os.PathLike[str] | np.ndarray | Iterable[Any]

# What most modes measure that need them.
RANGES = "the ranges of activations"
# And what those measure that choose bits.
ROUNDING_EFFECTS = "what the rounding of weights changes"
# Fewer images bring a warning.
CALIBRATION_ADVISED = 32
CALIBRATION_LIMIT = 128


def check_calibration(setting: str, calibration: Calibration | None, measured: str = RANGES) -> None:
    """Raises ValueError where there are no images for a mode, as its argument's `setting`, that measures on them."""
    if calibration is None:
        raise ValueError(
            f"{setting} measures {measured}: pass calibration, a folder of a hundred or so photographs "
            "like those the model will see, or arrays."
        )


def kept_for_sizes(calibration: Calibration | None, sizes: int) -> Calibration | None:
    """The same images, which can be read once for each of several input sizes."""
    if calibration is None or sizes == 1 or isinstance(calibration, str | os.PathLike):
        return calibration
    return list(itertools.islice(calibration, CALIBRATION_LIMIT))


def images_to_compare(
    calibration: Calibration | None, input_shape: tuple[int, int, int], are_measured: bool
) -> tuple[np.ndarray, str]:
    """The raw images to compare on, and to measure ranges on, and where they came from.

    Args:
        calibration: a folder, array or iterable as `read_images` takes them; None means four seeded images.
        input_shape: (height, width, channels) of the network's input.
        are_measured: whether something is measured on them, such as ranges, so that few of them bring a warning.

    Returns:
        float32 array (number, height, width, channels), values in 0..255, 128 images at most; and their origin.

    Raises:
        FileNotFoundError, ValueError, TypeError: as `read_images`.
    """
    if calibration is None:
        return seeded_images(input_shape), "seeded noise"
    taken: Any = calibration
    origin = "the given arrays"
    if isinstance(calibration, str | os.PathLike):
        taken, origin = Path(calibration), bare_name(calibration)
    images = read_images(taken, input_shape, CALIBRATION_LIMIT)
    if are_measured and len(images) < CALIBRATION_ADVISED:
        warnings.warn(
            f"Only {len(images)} calibration images, and what is measured on few fits others less. Give a hundred "
            "or so photographs like those the model will see.",
            stacklevel=2,
        )
    return images, origin
