"""Finds and reads the images that a network or an export is measured on, or makes seeded ones. Room: top level."""

import collections
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_efficientformer.errors import listing
from keras_efficientformer.imagenet import load_image, register_heif, resize_and_crop, rgb_array

# Pillow opens these too: containers of other data, films, and drawings that other programs have to render.
NOT_PICTURES = ("BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
# Photographs of iPhones are images where nothing is installed that reads them too: they are told of, not passed over.
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
SEEDED_IMAGES = 4
LUMINANCE = np.array([0.299, 0.587, 0.114], "float32")
# In the dictionaries that datasets give, images are called so.
IMAGE_KEYS = ("image", "images")

# (left, top, right, bottom) of a part of an image, in pixels.
Box = tuple[float, float, float, float]


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
        raise ValueError(f"{folder} holds no images: expected files ending in .jpg, .png or as others of Pillow's.")
    return files


def image_files(folder: Path) -> list[Path]:
    """Files of images in a folder and the folders below it, by their names; hidden ones are left out."""
    return [path for path in _files(folder) if path.suffix.lower() in image_suffixes()]


def count_other_files(folder: str | os.PathLike[str]) -> dict[str, int]:
    """How many files in a folder and below it are left out, by their suffixes: those that are called as no image."""
    suffixes = (path.suffix.lower() for path in _files(Path(folder)))
    return dict(collections.Counter(suffix for suffix in suffixes if suffix not in image_suffixes()).most_common())


def _files(folder: Path) -> list[Path]:
    """The files in a folder and below it, by their names; links to folders are followed, into each folder once.

    Links that lead nowhere are among them: whoever reads them says so, and no image is silently left out.
    """
    found: list[Path] = []
    seen = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, followlinks=True):
        visible = {name: os.path.realpath(os.path.join(place, name)) for name in sorted(folders) if name[0] != "."}
        # A folder that has two names here is gone into under the first.
        new = {real: name for name, real in reversed(visible.items()) if real not in seen}
        folders[:] = new.values()
        seen |= new.keys()
        found += [Path(place, name) for name in names if name[0] != "."]
    return sorted(path for path in found if path.is_file() or path.is_symlink())


@functools.cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of the files that Pillow reads as images, e.g. ".jpg", and of HEIC, which pillow-heif reads."""
    register_heif()
    Image.init()
    return frozenset(HEIC_SUFFIXES).union(
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in NOT_PICTURES
    )


def read_images(
    images: str | Path | np.ndarray | Iterable[Any], input_shape: tuple[int, int, int], limit: int
) -> np.ndarray:
    """Reads raw RGB images of a network's input size.

    Args:
        images: a folder, searched recursively, whose files are resized and cropped as for evaluation, and made grey
            where the network takes one channel; or an array
            (number, height, width, channels), or an iterable of images (height, width, channels) or of batches of them,
            such as a `tf.data.Dataset`, with labels or without, or of dictionaries with an "image". Values in 0..255.
            Pillow's images are resized and cropped as files are.
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
        pixels = np.stack([resize_and_crop(load_image(path), input_shape[:2]) for path in files])
        return of_channels(pixels, input_shape[2]).astype("float32")
    if not isinstance(images, Iterable):
        raise TypeError(f"Images are a folder, an array or an iterable of arrays. Received: {images!r}")
    found = _stacked(list(itertools.islice(_single_images(images, input_shape), limit)), input_shape)
    check_raw(found)
    return found.astype("float32")


def _stacked(arrays: Sequence[np.ndarray], input_shape: tuple[int, int, int]) -> np.ndarray:
    if not arrays or any(array.shape != input_shape for array in arrays):
        shapes = sorted({array.shape for array in arrays}) or "none"
        raise ValueError(f"Images of the shape {input_shape}, values in 0..255, are needed. Received: {shapes}")
    return np.stack(arrays)


def _single_images(images: Iterable[Any], input_shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Images (height, width, channels), one by one, of an iterable of them or of batches, labels left out."""
    for item in images:
        found = item
        if isinstance(item, Mapping):
            found = next((item[name] for name in IMAGE_KEYS if name in item), None)
            if found is None:
                expected = " or ".join(map(repr, IMAGE_KEYS))
                received = listing(list(map(repr, item)))
                raise ValueError(f"Images given as dictionaries have {expected}. Received: {received}")
        elif isinstance(item, tuple | list) and (isinstance(item[0], Image.Image) or np.ndim(item[0]) >= 3):
            found = item[0]
        if isinstance(found, Image.Image):
            found = of_channels(resize_and_crop(rgb_array(found), input_shape[:2]), input_shape[2])
        array = np.asarray(found)
        yield from array if array.ndim == 4 else [array]


def of_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """RGB images (..., height, width, 3), values in 0..255, as those of a network of so many channels.

    For one channel that is their luminance, float32, as Pillow's mode "L" has it (ITU-R 601).

    Raises:
        ValueError: photographs have no such channels.
    """
    if channels == images.shape[-1]:
        return images
    if channels != 1:
        raise ValueError(f"Photographs have three channels or, in grey, one, and the model takes {channels}.")
    return np.round(images @ LUMINANCE)[..., None].astype("float32")


def scaled(image: np.ndarray, size: tuple[int, int], box: Box | None = None) -> np.ndarray:
    """A part of an image, scaled with Pillow's bicubic filter; of a mask, to the nearest pixel.

    Args:
        image: uint8 (height, width, 3), or a mask, int32 (height, width).
        size: (height, width) of the result.
        box: of the part; None means the whole.

    Returns:
        An array of `size` and the same dtype.
    """
    filter_ = Image.Resampling.BICUBIC if image.ndim == 3 else Image.Resampling.NEAREST
    return np.array(Image.fromarray(image).resize(size[::-1], filter_, box=box))


def check_raw(images: np.ndarray) -> None:
    """Raises ValueError for images that somebody has scaled or normalised: raw pixels are 0..255, bright or dark.

    Args:
        images: an array of any shape, of any integer or floating-point dtype.
    """
    lowest, highest = float(images.min()), float(images.max())
    # Whole numbers are raw even where they are dark. Of others, an image that is not all black reaches 1 at least.
    is_scaled = images.dtype.kind == "f" and 0 < highest <= 1
    if is_scaled or not 0 <= lowest <= highest <= 255:
        raise ValueError(
            f"Raw RGB images, values in 0..255, are needed, neither scaled nor normalised. Received: values in "
            f"{lowest:g}..{highest:g}"
        )
