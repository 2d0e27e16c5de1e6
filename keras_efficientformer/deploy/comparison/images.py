"""Reads the images that modes are compared on, and others to calibrate on. Room: deploy/comparison."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_efficientformer.deploy.calibration import CALIBRATION_LIMIT
from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.files import bare_name
from keras_efficientformer.image_folders.class_places import class_places
from keras_efficientformer.image_folders.image_folder import list_images, split_folders
from keras_efficientformer.imagenet import load_image, resize_and_crop
from keras_efficientformer.images import find_images, of_channels

# Of a folder that has no training part, so many images at most are calibrated on and not scored: one in this many.
SHARE_TO_CALIBRATE = 4


@dataclass(frozen=True)
class ComparedImages:
    """What modes are scored on, and other images to calibrate on.

    Attributes:
        pixels: uint8 (images, height, width, 3), raw RGB.
        targets: int64 (images,), the class of each in the order of the outputs; None where they are not known.
        calibration: uint8 (number, height, width, 3), raw RGB; none of them is scored.
        of: how many images there were to choose those to score from.
        classes_from: how it is known of which class an image is; None where it is not.
        labels: names of the classes in the order of the outputs, where they are known.
        calibrated_on: where the others come from, in words.
    """

    pixels: np.ndarray
    targets: np.ndarray | None
    calibration: np.ndarray
    of: int
    classes_from: str | None
    labels: tuple[str, ...] | None
    calibrated_on: str

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def content_hash(self) -> str:
        """The sha256 of all pixels and classes."""
        total = hashlib.sha256()
        for array in (self.pixels, self.calibration, self.targets):
            total.update(b"" if array is None else np.ascontiguousarray(array).tobytes() + str(array.shape).encode())
        return total.hexdigest()


def read_compared(
    folder: Path,
    network: FusedNetwork,
    labels: tuple[str, ...] | None,
    calibration: Path | None,
    limit: int,
    crop_fraction: float,
) -> ComparedImages:
    """The images of a folder, as a network sees them.

    Args:
        folder: a subfolder of images for each class; or those below `train` and `val` (or as `split_folders` has them),
            of which the second is scored; or images without classes, in one folder.
        network: of the model.
        labels: names of the model's classes in the order of the outputs, or None.
        calibration: a folder to calibrate on, searched recursively; None means the training part or, where there is
            none, a quarter of the images, 128 at most, which are not scored.
        limit: how many images to score at most, evenly spread.
        crop_fraction: as for `imagenet.resize_and_crop`.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: it holds no images or too few, an image cannot be read, or its classes are not the model's.
    """
    training, validation = split_folders(folder) if folder.is_dir() else (None, None)
    part = validation or training or folder
    has_classes = part.is_dir() and any(path.is_dir() and path.name[0] != "." for path in part.iterdir())
    files, targets, classes_from = find_images(part) if not has_classes else [], None, None
    if has_classes:
        files, targets, labels, classes_from = _of_classes(part, network, labels)
    scored = np.arange(len(files))
    if calibration is not None or (training and validation):
        others = find_images(calibration or training or folder)
        origin = f"images of {bare_name(calibration or training or folder)}"
    else:
        if len(files) < 2:
            raise ValueError(f"{folder} holds one image: one to calibrate on and one to score are needed at least.")
        kept_back = _spread(len(files), min(CALIBRATION_LIMIT, max(1, len(files) // SHARE_TO_CALIBRATE)))
        others = [files[place] for place in kept_back]
        origin = f"images of {bare_name(folder)}, evenly spread, which are not scored"
        scored = np.setdiff1d(scored, kept_back)
    others = [others[place] for place in _spread(len(others), CALIBRATION_LIMIT)]
    chosen = scored[_spread(len(scored), limit)]
    size = network.input_shape[:2]
    return ComparedImages(
        pixels=_read([files[place] for place in chosen], size, crop_fraction),
        targets=None if targets is None else targets[chosen],
        calibration=_read(others, size, crop_fraction),
        of=len(scored),
        classes_from=classes_from,
        labels=labels,
        calibrated_on=f"{len(others)} {origin}",
    )


def _of_classes(
    folder: Path, network: FusedNetwork, labels: tuple[str, ...] | None
) -> tuple[list[Path], np.ndarray, tuple[str, ...], str]:
    """The files of a folder with a subfolder for each class, the class of each, the names of all classes, and how it is
    known which is which."""
    assert network.classes is not None
    names, images = list_images(folder)
    places, all_names, classes_from = class_places(folder, names, network.classes, labels)
    return list(images.files), images.moved(places, network.classes).targets, all_names, classes_from


def _spread(number: int, limit: int) -> np.ndarray:
    """So many places of `number`, at most, evenly spread."""
    return np.unique(np.linspace(0, number - 1, min(limit, number)).astype(int))


def _read(files: Sequence[Path], size: tuple[int, int], crop_fraction: float) -> np.ndarray:
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return np.stack(list(threads.map(lambda file: resize_and_crop(load_image(file), size, crop_fraction), files)))


def as_taken(pixels: np.ndarray, network: FusedNetwork) -> np.ndarray:
    """RGB images, uint8 (number, height, width, 3), as raw images of the network's channels, float32 in 0..255."""
    return of_channels(pixels.astype("float32"), network.input_shape[2])
