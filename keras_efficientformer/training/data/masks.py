"""Finds the mask of each image, reads and checks masks: PNG files of class numbers or colours. Room: training/data.

The mask of `IMAGES/a/1.jpg` is `MASKS/a/1.png`, as large as the image as it is seen. Without a palette its values, grey
or indices, of 1, 8 or 16 bits, are the numbers of the classes, and the highest, 255 or 65535, stands for pixels that
count for nothing; with one (`segmentation.palette`) its colours are looked up there. Two data sets are read as they
are published: Cityscapes' `leftImg8bit` and `gtFine`, whose files are called otherwise, and Pascal VOC's `JPEGImages`
and `SegmentationClass`, of whose images the lists in `ImageSets/Segmentation` beside them say which have masks.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from keras_efficientformer.errors import first_line, listing
from keras_efficientformer.image_folders.image_folder import FILES_SHOWN, ImageSet, check_apart, divided, split_folders
from keras_efficientformer.imagenet import ImageError, register_heif
from keras_efficientformer.images import image_files
from keras_efficientformer.labels import composed
from keras_efficientformer.segmentation.palette import Palette, in_digits

# In masks as they are read, pixels that count for nothing.
IGNORED = -1
NUMBER_MODES = ("1", "L", "P", "I;16", "I")
COLOUR_MODES = ("RGB", "P")
# How the names of Cityscapes' images and of their masks end. cityscapesScripts writes the masks.
CITYSCAPES_IMAGE, CITYSCAPES_MASK = "_leftImg8bit", "_gtFine_labelTrainIds"
CITYSCAPES_TOOL = "csCreateTrainIdLabelImgs"
VOC_IMAGES, VOC_LISTS = "JPEGImages", Path("ImageSets", "Segmentation")
# What Pillow says of grey pixels of 4 and 2 bits, which it multiplies by 17 and 85.
SCALED = ("L;4", "L;2")
# The first EXIF orientation of those that turn an image on its side.
FIRST_TURNED = 5


def read_masked(data: str | os.PathLike[str], masks: str | os.PathLike[str]) -> tuple[ImageSet, ImageSet | None]:
    """Training images, and validation images, or None where a share is to be held out, with their masks.

    Args:
        data: a folder of images, at any depth; or `train` (or training) with those, and beside it nothing or `val` (or
            valid, validation, test); or Pascal VOC's `JPEGImages`, which `train.txt` and `val.txt` divide.
        masks: a folder that has for each image of `data` a mask at the same place.

    Raises:
        FileNotFoundError: a folder does not exist, or images have no mask.
        ValueError: as `list_masked`, there are other folders beside `train`, or an image is in both parts.
    """
    data, masks = Path(data), Path(masks)
    training, validation = split_folders(data) if data.is_dir() else (None, None)
    images = list_masked(training or data, masks / training.name if training else masks, "train")
    held_out = None
    if _voc_names(data, "val") is not None:
        held_out = list_masked(data, masks, "val")
    elif validation is not None:
        held_out = list_masked(validation, masks / validation.name)
    if held_out is not None:
        check_apart(images, held_out)
    return images, held_out


def hold_out_masked(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """The images to train on, and a share, in (0, 1), that is held out; the seed draws which.

    Raises:
        ValueError: there is a single image; or links have one image in both parts.
    """
    if len(images) < 2:
        raise ValueError(
            f"{images.files[0]} is the one image that can be read: nothing can be held out for validation. Add images."
        )
    held_out = np.zeros(len(images), bool)
    count = min(max(1, round(len(images) * share)), len(images) - 1)
    held_out[np.random.default_rng(seed).permutation(len(images))[:count]] = True
    return divided(images, held_out)


def list_masked(folder: str | os.PathLike[str], masks: str | os.PathLike[str], part: str = "val") -> ImageSet:
    """The images of a folder, at any depth, and as their targets the paths of their masks.

    Args:
        folder, masks: the two folders.
        part: which of Pascal VOC's lists says of what images there are masks, "train" or "val".

    Raises:
        FileNotFoundError: a folder does not exist, or images have no mask or are on VOC's list alone; the message names
            them.
        ValueError: there are no images, the masks are among them, two images would have one mask, or the folder holds
            the parts of a split.
    """
    folder, masks = Path(folder), Path(masks)
    for path, what in ((folder, "images"), (masks, "masks")):
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is not a folder of {what}.")
    if masks.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"The masks' folder {masks} is in the images' folder {folder}: give each its own.")
    parts = [path.name for path in split_folders(folder) if path is not None]
    if parts:
        raise ValueError(f"{folder} holds the parts of a split: choose one, in both folders, of {', '.join(parts)}.")
    files = image_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no images that Pillow reads (.jpg, .png and so on).")
    names = _voc_names(folder, part)
    if names is not None:
        files = _listed(files, names, folder.parent / VOC_LISTS / f"{part}.txt")
    found = {_place(path, masks): path for path in image_files(masks) if _is_png(path)}
    places = [_mask_place(_place(path, folder)) for path in files]
    missing = [str(file.relative_to(folder)) for file, place in zip(files, places, strict=True) if place not in found]
    if missing:
        expected = masks / _mask_place(_place(folder / missing[0], folder))
        hint = f", which {CITYSCAPES_TOOL} of cityscapesScripts writes" if CITYSCAPES_MASK in expected.name else ""
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} images have no mask in {masks}: {listing(missing)}. The mask of "
            f"{missing[0]} would be {expected}.png{hint}."
        )
    counts = Counter(places)
    twice = [str(file.relative_to(folder)) for file, place in zip(files, places, strict=True) if counts[place] > 1]
    if twice:
        raise ValueError(f"Images of {folder} have one name, and so one mask: {listing(twice)}. Rename them.")
    return ImageSet(tuple(files), np.array([found[place] for place in places], object), np.arange(len(files)))


def _place(file: Path, folder: Path) -> Path:
    """Where in a folder a file is, without its suffix; alike for an image and its mask from different systems."""
    return Path(composed(str(file.relative_to(folder).with_suffix(""))))


def _mask_place(place: Path) -> Path:
    """Where the mask of an image is, both without suffixes."""
    if not place.name.endswith(CITYSCAPES_IMAGE):
        return place
    return place.with_name(place.name.removesuffix(CITYSCAPES_IMAGE) + CITYSCAPES_MASK)


def _voc_names(folder: Path, part: str) -> list[str] | None:
    """The names that Pascal VOC's list has of a part of its images; None of other folders."""
    path = folder.parent / VOC_LISTS / f"{part}.txt"
    return composed(path.read_text(encoding="utf-8")).split() if folder.name == VOC_IMAGES and path.is_file() else None


def _listed(files: list[Path], names: list[str], path: Path) -> list[Path]:
    """The images of these names, which stand in the file `path`."""
    by_name = {composed(file.stem): file for file in files}
    missing = [name for name in names if name not in by_name]
    if missing or not names:
        raise FileNotFoundError(f"{path} should list images that are in {files[0].parent}. Missing: {listing(missing)}")
    return [by_name[name] for name in names]


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def read_mask(path: Path, palette: Palette | None) -> np.ndarray:
    """The class of each pixel, int32 (height, width); `IGNORED` where it counts for nothing.

    Raises:
        ImageError: the file is damaged, of another mode than masks are, or has a colour that the palette has not.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        try:
            with Image.open(file, formats=["PNG"]) as image:
                stored = image.tile[0].args if image.tile else ""
                mode, pixels = image.mode, np.asarray(image)
                colours = np.asarray(image.convert("RGB"), "int32") if palette and mode in COLOUR_MODES else None
        except MemoryError:
            raise
        # On damaged bytes Pillow's decoders raise nearly anything.
        except Exception as error:
            raise ImageError(f"{str(path)!r} is not a mask, a PNG file, or damaged: {first_line(error)}.") from error
    if palette is not None and colours is not None:
        return _looked_up(colours, palette, path)
    if palette is not None:
        raise ImageError(f"{str(path)!r} should hold colours ({' or '.join(COLOUR_MODES)}). Found: mode {mode}")
    if mode not in NUMBER_MODES:
        raise ImageError(
            f"{str(path)!r} should hold class numbers, in one channel. Found: mode {mode}; masks of colours need a "
            "palette (--palette)."
        )
    if stored in SCALED:
        raise ImageError(
            f"{str(path)!r} is grey of {stored[-1]} bits, which are read as parts of white, not as class numbers. Save "
            "it with 8 bits, or with indices of colours."
        )
    numbers = pixels.astype("int32")
    if mode != "1":
        numbers[pixels == (255 if mode in ("L", "P") else 65535)] = IGNORED
    return numbers


def _looked_up(colours: np.ndarray, palette: Palette, path: Path) -> np.ndarray:
    """The classes of a mask's colours, int32 (height, width, 3)."""
    codes, inverse = np.unique(colours @ np.array([1 << 16, 1 << 8, 1], "int32"), return_inverse=True)
    found = [(code >> 16, code >> 8 & 255, code & 255) for code in codes.tolist()]
    inverse = inverse.reshape(colours.shape[:2])
    unknown = next((place for place, colour in enumerate(found) if colour not in palette.colours), None)
    if unknown is not None:
        row, column = np.argwhere(inverse == unknown)[0].tolist()
        raise ImageError(
            f"{str(path)!r} has a colour that {palette.path} has not: {in_digits(found[unknown])}, first at row {row}, "
            f"column {column}. A line 'ignored {in_digits(found[unknown])}' would leave such pixels out."
        )
    places = [palette.colours[colour] for colour in found]
    return np.array([IGNORED if place is None else place for place in places], "int32")[inverse]


def check_masks(
    images: ImageSet,
    palette: Palette | None,
    classes: int | None,
    track: Callable[[Iterable], Iterable] = iter,
) -> np.ndarray:
    """Reads all masks, in threads, and checks their sizes and classes.

    Args:
        images: with the paths of their masks.
        palette: of the masks' colours, or None where they hold class numbers.
        classes: how many there are; None means as many as the masks have, of each a pixel at least.
        track: wraps the iteration, e.g. `rich.progress.track`.

    Returns:
        int64 (classes,): how many pixels each class has.

    Raises:
        ValueError: masks are unfit, all of them named; or they have fewer than two classes, or numbers of classes
            between which others are missing.
    """

    def look(pair: tuple[Path, Path]) -> np.ndarray | str:
        try:
            return _pixel_counts(*pair, palette, classes)
        except (ValueError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        futures = [threads.submit(look, pair) for pair in zip(images.files, images.targets, strict=True)]
        found = [future.result() for future in track(futures)]
    bad = [reason for reason in found if isinstance(reason, str)]
    if bad:
        shown = "\n".join(f"  {reason}" for reason in bad[:FILES_SHOWN])
        more = f"\n  and {len(bad) - FILES_SHOWN} more" if len(bad) > FILES_SHOWN else ""
        raise ValueError(f"{len(bad)} of {len(found)} masks are unfit:\n{shown}{more}")
    counts = [count for count in found if not isinstance(count, str)]
    total = np.zeros(classes or max(map(len, counts)), "int64")
    for count in counts:
        total[: len(count)] += count
    if len(total) < 2:
        raise ValueError(
            f"The masks of {images.files[0].parent} and other images have {len(total)} classes: two at least are "
            "needed. Values of 255 (65535 of 16 bits) count for nothing."
        )
    # Shades of grey that stand for classes would make a class of each number below.
    if classes is None and not total.all():
        raise ValueError(
            f"The masks of {images.files[0].parent} and other images have the values "
            f"{listing(list(map(str, np.flatnonzero(total))))}, so that no pixel has {np.sum(total == 0)} of the "
            f"{len(total)} classes from 0 to {len(total) - 1}. Number the classes from 0 on, or, if that is right, "
            "pass `labels` (--labels), a name for each."
        )
    return total


def _pixel_counts(file: Path, mask_file: Path, palette: Palette | None, classes: int | None) -> np.ndarray:
    """int64 (highest class + 1,): how many pixels of an image's mask each class has."""
    mask = read_mask(mask_file, palette)
    height, width, turned = _size_of(file)
    if mask.shape != (height, width):
        hint = ", turned as its EXIF orientation says" if turned else ""
        raise ValueError(
            f"{str(mask_file)!r} is {mask.shape[1]}x{mask.shape[0]} pixels, and its image {str(file)!r} is "
            f"{width}x{height}{hint}: a mask is as large as its image."
        )
    if classes is not None and mask.max() >= classes:
        row, column = np.argwhere(mask >= classes)[0].tolist()
        raise ValueError(
            f"{str(mask_file)!r} has class {mask[row, column]} at row {row}, column {column}, and there are {classes} "
            f"classes, 0 to {classes - 1}. Pixels that count for nothing are 255 (65535 of 16 bits)."
        )
    return np.bincount(mask[mask != IGNORED])


def _size_of(file: Path) -> tuple[int, int, bool]:
    """Height and width of an image as it is seen, and whether it is turned for that."""
    register_heif()
    with Image.open(file) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= FIRST_TURNED
        width, height = image.size
    return (width, height, True) if turned else (height, width, False)
