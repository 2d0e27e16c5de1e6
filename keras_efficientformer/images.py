"""Finds and reads the images that a network or an export is measured on, or makes seeded ones. Room: top level."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficientformer.imagenet import load_image, resize_and_crop

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
SEEDED_IMAGES = 4


def seeded_images(input_shape: tuple[int, int, int]) -> np.ndarray:
    """Images that are the same everywhere: coarse random fields, each with noise of another strength.

    Args:
        input_shape: (height, width, channels).

    Returns:
        float32 array (4, height, width, channels), whole values in 0..255.
    """
    rng = np.random.default_rng(0)
    height, width, channels = input_shape
    images = np.empty((SEEDED_IMAGES, height, width, channels), "float32")
    for image, cell, noise in zip(images, (4, 8, 16, 32), (64, 32, 16, 8), strict=True):
        coarse = rng.uniform(0, 255, (height // cell + 1, width // cell + 1, channels))
        field = np.kron(coarse, np.ones((cell, cell, 1)))[:height, :width]
        image[:] = np.clip(np.round(field + rng.normal(0, noise, image.shape)), 0, 255)
    return images


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files in a folder and the folders below it, in the order of their names.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it holds no image file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder of images.")
    files = image_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no images: expected files ending in {', '.join(IMAGE_SUFFIXES)}.")
    return files


def image_files(folder: Path) -> list[Path]:
    """Files of images in a folder and the folders below it, by their names; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def read_images(
    images: str | Path | np.ndarray | Iterable[Any], input_shape: tuple[int, int, int], limit: int
) -> np.ndarray:
    """Reads raw RGB images of a network's input size.

    Args:
        images: a folder, searched recursively, whose files are resized and cropped as for evaluation; or an array
            (number, height, width, channels), or an iterable of images (height, width, channels) or of batches of them,
            such as a `tf.data.Dataset`, with labels or without. Values in 0..255.
        input_shape: (height, width, channels).
        limit: how many to take at most, evenly spread over a folder's files, else the first.

    Returns:
        float32 array (number, height, width, channels), values in 0..255.

    Raises:
        FileNotFoundError, ValueError: there are none, or one is unreadable (`imagenet.ImageError`), of another shape
            or of other values.
        TypeError: neither a folder nor iterable.
    """
    if isinstance(images, str | Path):
        files = find_images(images)
        files = [
            files[index] for index in np.unique(np.linspace(0, len(files) - 1, min(limit, len(files))).astype(int))
        ]
        return _stacked([resize_and_crop(load_image(path), input_shape[:2]) for path in files], input_shape)
    if not isinstance(images, Iterable):
        raise TypeError(f"Images are a folder, an array or an iterable of arrays. Received: {images!r}")
    found = _stacked(list(itertools.islice(_single_images(images), limit)), input_shape)
    _check_values(found)
    return found


def _stacked(arrays: Sequence[np.ndarray], input_shape: tuple[int, int, int]) -> np.ndarray:
    if not arrays or any(array.shape != input_shape for array in arrays):
        shapes = sorted({array.shape for array in arrays}) or "none"
        raise ValueError(f"Images of the shape {input_shape}, values in 0..255, are needed. Received: {shapes}")
    return np.stack(arrays).astype("float32")


def _single_images(images: Iterable[Any]) -> Iterator[np.ndarray]:
    """Images (height, width, channels), one by one, of an iterable of them or of batches, labels left out."""
    for item in images:
        with_labels = isinstance(item, tuple | list) and np.ndim(item[0]) >= 3
        array = np.asarray(item[0] if with_labels else item, "float32")
        yield from array if array.ndim == 4 else [array]


def _check_values(images: np.ndarray) -> None:
    lowest, highest = float(images.min()), float(images.max())
    # Pictures that are black but for a value of one are none; those that somebody has scaled or normalised are many.
    if not (lowest >= 0 and 1 < highest <= 255):
        raise ValueError(
            f"Raw RGB images, values in 0..255, are needed, neither scaled nor normalised. Received: values in "
            f"{lowest:g}..{highest:g}"
        )
