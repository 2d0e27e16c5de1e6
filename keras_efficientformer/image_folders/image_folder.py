"""Lists a folder's images by class, holds some out for validation, finds unreadable ones. Room: image_folders."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_efficientformer.errors import listing
from keras_efficientformer.files import bare_name
from keras_efficientformer.imagenet import ImageError, load_image
from keras_efficientformer.images import image_files, image_suffixes
from keras_efficientformer.labels import composed

# The folders of a split have these names, in whatever case; of several for validation, the first is taken.
TRAINING_NAMES = ("train", "training")
VALIDATION_NAMES = ("val", "valid", "validation", "test")
# A longer list would hide the message; the report of a run has all.
FILES_SHOWN = 20


@dataclass(frozen=True)
class ImageSet:
    """Images and their classes.

    Attributes:
        files: paths.
        targets: int64 (images,), the class of each; or, where an image may have several labels or none, uint8
            (images, classes), 1 for each label that it has; or, where there are masks, the path of each image's.
        rows: int64 (images,), the place of each in the listing of its folder before any were held out or left out:
            the row of precomputed teacher logits.
    """

    files: tuple[Path, ...]
    targets: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: np.ndarray) -> "ImageSet":
        """The images at these places."""
        return ImageSet(tuple(self.files[index] for index in indices), self.targets[indices], self.rows[indices])

    def moved(self, places: Sequence[int], classes: int) -> "ImageSet":
        """The images with class `places[n]`, of so many, in the place of class n."""
        if self.targets.ndim == 1:
            return ImageSet(self.files, np.array(places)[self.targets], self.rows)
        targets = np.zeros((len(self), classes), self.targets.dtype)
        targets[:, places] = self.targets
        return ImageSet(self.files, targets, self.rows)

    def of_class(self, target: int) -> np.ndarray:
        """bool (images,): which images are of a class."""
        return self.targets == target if self.targets.ndim == 1 else self.targets[:, target] > 0

    def labels_at(self, place: int) -> np.ndarray:
        """int64 (labels,): the classes that one image is of."""
        return self.targets[[place]] if self.targets.ndim == 1 else np.flatnonzero(self.targets[place])

    @property
    def names(self) -> tuple[str, ...]:
        """What the images are called, each with its folder, in their order."""
        return tuple(f"{file.parent.name}/{file.name}" for file in self.files)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that are others where images have other names, another order or other classes."""
        found = hashlib.sha256("\n".join(self.names).encode(errors="surrogateescape"))
        if self.targets.dtype != object:  # masks are called as their images
            found.update(self.targets.astype("int64").tobytes())
        return found.hexdigest()[:16]

    def counts(self, classes: int) -> np.ndarray:
        """int64 (classes,): how many images are of each class."""
        return np.bincount(self.targets, minlength=classes) if self.targets.ndim == 1 else self.targets.sum(0, "int64")


def list_images(folder: str | os.PathLike) -> tuple[list[str], ImageSet]:
    """The class names and images of a folder with a subfolder for each class, in the order of their names.

    Images beside the subfolders, and names that differ in capital letters or spaces around them alone, bring a warning.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it has fewer than two classes, a class without images, which the message names, two classes of one
            name that is written in two ways, or the parts of a split (train, val) in the place of classes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        hint = " For a CSV file of labels there is multi_label (--multi-label)." if folder.suffix == ".csv" else ""
        raise FileNotFoundError(f"{folder} is not a folder of images.{hint}")
    classes = _subfolders(folder)
    found = ", ".join(path.name for path in classes) or "none"
    if len(classes) < 2:
        raise ValueError(f"{folder} should have a subfolder of images for each class, two at least. Found: {found}.")
    if _is_split(classes):
        raise ValueError(
            f"{folder} should have a subfolder of images for each class. Found: {found}, which are the parts of a "
            f"split: choose one of them, e.g. {classes[-1]}."
        )
    broken = [path.name for path in classes if not _can_be_label(path.name)]
    if broken:
        raise ValueError(
            f"{folder} has class folders whose names hold a line break or are no UTF-8, which no list of labels can "
            f"hold: {listing(list(map(ascii, broken)))}. Rename them."
        )
    names = [composed(path.name) for path in classes]
    twice = [ascii(path.name) for path, name in zip(classes, names, strict=True) if names.count(name) > 1]
    if twice:
        raise ValueError(
            f"{folder} has class folders of one name, written with accents as letters of their own and without: "
            f"{listing(twice)}. Put their images into one."
        )
    warn_of_twins(names, folder)
    _warn_of_loose_images(folder, classes)
    found_files = [image_files(path) for path in classes]
    empty = [str(path) for path, files in zip(classes, found_files, strict=True) if not files]
    if empty:
        raise ValueError(
            f"These class folders hold no images: {', '.join(empty)}. Put images that Pillow reads (.jpg, .png and so "
            "on) into them, or remove the folders."
        )
    targets = np.repeat(np.arange(len(classes)), [len(files) for files in found_files])
    files = tuple(file for files in found_files for file in files)
    return names, ImageSet(files, targets, np.arange(len(files)))


def warn_of_twins(names: Sequence[str], source: Path) -> None:
    """Warns of classes whose names differ in capital letters or spaces around them alone, as typing errors do."""
    found = Counter(name.strip().casefold() for name in names)
    twins = [repr(name) for name in names if found[name.strip().casefold()] > 1]
    if twins:
        warnings.warn(
            f"{source} has classes of nearly one name, which are not taken for one: {listing(twins)}.", stacklevel=3
        )


def _warn_of_loose_images(folder: Path, taken: Sequence[Path]) -> None:
    """Warns of images that lie in a folder beside the subfolders that are taken."""
    loose = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in image_suffixes() and path.is_file())
    loose = [name for name in loose if name[0] != "."]
    if loose:
        warnings.warn(
            f"{folder} has {len(loose)} images beside {listing([path.name for path in taken])}, which are left out: "
            f"{listing(loose)}.",
            stacklevel=3,
        )


def _can_be_label(name: str) -> bool:
    # What the system calls by bytes that are no UTF-8 has surrogates in Python, which no text file can hold.
    return not any(character in "\r\n" or "\ud800" <= character <= "\udfff" for character in name)


def _subfolders(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(found, key=lambda path: composed(path.name))


def _is_split(subfolders: Sequence[Path]) -> bool:
    return all(path.name.lower() in TRAINING_NAMES + VALIDATION_NAMES for path in subfolders)


def split_folders(folder: Path) -> tuple[Path | None, Path | None]:
    """The folders for training and validation, None for each that there is not."""
    subfolders = _subfolders(folder)
    training = [path for path in subfolders if path.name.lower() in TRAINING_NAMES]
    if not training or (not _is_split(subfolders) and not any(_subfolders(path) for path in training)):
        return None, None
    if len(training) > 1 or not _is_split(subfolders):
        others = ", ".join(path.name for path in subfolders if path != training[0])
        raise ValueError(
            f"{folder} holds {training[0].name}, which has subfolders as for training images, and beside it {others}: "
            f"expected nothing but {', '.join(VALIDATION_NAMES)} there. Move the others away, or give {training[0]} "
            "as the folder."
        )
    _warn_of_loose_images(folder, subfolders)
    by_name = {path.name.lower(): path for path in subfolders}
    return training[0], next((by_name[name] for name in VALIDATION_NAMES if name in by_name), None)


def read_folder(
    folder: str | os.PathLike, validation: str | os.PathLike | None
) -> tuple[list[str], ImageSet, ImageSet | None]:
    """Class names, training images, and validation images, or None where a share is to be held out.

    Args:
        folder: a subfolder for each class; or `train` (or training) with those, and beside it nothing or `val` (or
            valid, validation, test); in whatever case.
        validation: another folder of the same classes, or None: the one beside `train`, if there is one.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: as `list_images`; there are other folders beside `train`; classes of the two folders differ; or an
            image is in both.
    """
    folder = Path(folder)
    training, beside = split_folders(folder) if folder.is_dir() else (None, None)
    validation = validation or beside
    names, images = list_images(training or folder)
    if validation is None:
        return names, images, None
    held_out = read_validation(validation, names)
    check_apart(images, held_out)
    return names, images, held_out


def check_apart(training: ImageSet, validation: ImageSet) -> None:
    """Raises ValueError where images to train on are images to validate on too, by whatever path or link."""
    both = sorted(set(map(os.path.realpath, training.files)) & set(map(os.path.realpath, validation.files)))
    if both:
        raise ValueError(
            f"{len(both)} images are both to train and to validate on: {listing(both)}. Take them from one."
        )


def read_validation(folder: str | os.PathLike, names: Sequence[str]) -> ImageSet:
    """The images of a folder that must have these classes.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: as `list_images`, or its classes are others; the message names them.
    """
    found, images = list_images(folder)
    names = list(map(composed, names))
    if found != sorted(names):
        differences = [
            f"{words} {', '.join(sorted(some))}"
            for words, some in (("missing in it:", set(names) - set(found)), ("only in it:", set(found) - set(names)))
            if some
        ]
        raise ValueError(f"{folder} has other classes than the training images; {'; '.join(differences)}.")
    return images.moved([names.index(name) for name in found], len(names))


def hold_out(names: Sequence[str], images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """The images to train on, and a share of each class that is held out.

    The rarest classes come first: an image of several labels is held out for the rarest, and counts for the others.

    Args:
        names: of the classes.
        images: of which each class has two at least.
        share: in (0, 1). Every class keeps an image to train on; at least one of it is held out, unless its images are
            all the last ones of other labels.
        seed: draws which.

    Raises:
        ValueError: a class has one image; or links have one image in both parts.
    """
    counts = images.counts(len(names))
    held_out, decided = np.zeros(len(images), bool), np.zeros(len(images), bool)
    left = counts.copy()
    for target in np.argsort(counts, kind="stable"):
        own = images.of_class(target)
        if counts[target] < 2:
            raise ValueError(
                f"The class {names[target]!r} has one image that can be read, {images.files[own.argmax()]}: nothing "
                "can be held out of it for validation. Add images, or give others to validate on."
            )
        wanted = min(max(1, round(counts[target] * share)), counts[target] - 1) - np.sum(own & held_out)
        for place in np.random.default_rng([seed, target]).permutation(np.flatnonzero(own & ~decided)):
            if wanted <= 0:
                break
            labels = images.labels_at(place)
            if (left[labels] > 1).all():
                held_out[place], wanted = True, wanted - 1
                left[labels] -= 1
        decided |= own
    unlabelled = np.random.default_rng([seed, len(names)]).permutation(np.flatnonzero(~decided))
    held_out[unlabelled[: round(len(unlabelled) * share)]] = True
    return divided(images, held_out)


def divided(images: ImageSet, held_out: np.ndarray) -> tuple[ImageSet, ImageSet]:
    """The images to train on, and those where `held_out` is True; errors are those of `check_apart`."""
    training, validation = images.take(np.flatnonzero(~held_out)), images.take(np.flatnonzero(held_out))
    check_apart(training, validation)
    return training, validation


def unreadable(files: tuple[Path, ...], track: Callable[[Iterable], Iterable] = iter) -> dict[Path, str]:
    """The files that are no images or damaged, each with the reason; all are decoded, in threads.

    Args:
        files: paths.
        track: wraps the iteration, e.g. `rich.progress.track`.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        futures = [threads.submit(_why_unreadable, file) for file in files]
        reasons = [future.result() for future in track(futures)]
    return {file: reason for file, reason in zip(files, reasons, strict=True) if reason}


def _why_unreadable(file: Path) -> str | None:
    try:
        load_image(file)
    except (ImageError, OSError) as error:
        return str(error)
    return None


def from_folder_on(source: str | os.PathLike, skipped: dict[str, str]) -> dict[str, str]:
    """What `without_unreadable` left out, paths and reasons without what lies above the images' folder.

    Args:
        source: the folder, or the CSV file in it that names the images; those that lie elsewhere keep one folder.
        skipped: {path: reason}.
    """
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    found = {}
    for path, reason in skipped.items():
        file = Path(path)
        inside = file.relative_to(folder) if file.is_relative_to(folder) else Path(file.name)
        above = folder if file.is_relative_to(folder) else file.parent
        shown = f"{bare_name(above)}/{inside.as_posix()}"
        found[shown] = reason.replace(path, shown)
    return found


def without_unreadable(
    images: ImageSet, names: Sequence[str], skip: bool, track: Callable[[Iterable], Iterable] = iter
) -> tuple[ImageSet, dict[str, str]]:
    """The images that can be read.

    Args:
        images: the set.
        names: of the classes that must keep an image.
        skip: leave the others out, instead of raising.
        track: as for `unreadable`.

    Returns:
        The set, and {path: reason} of what was left out.

    Raises:
        ValueError: images cannot be read, all of them named; or none is left, of all or of a class.
    """
    bad = unreadable(images.files, track)
    if bad and not skip:
        listing = "\n".join(f"  {reason}" for reason in list(bad.values())[:FILES_SHOWN])
        more = f"\n  and {len(bad) - FILES_SHOWN} more" if len(bad) > FILES_SHOWN else ""
        raise ValueError(
            f"{len(bad)} of {len(images)} images cannot be read:\n{listing}{more}\n"
            "Mend or remove them, or leave them out with --skip-bad (skip_bad=True)."
        )
    if len(bad) == len(images):
        raise ValueError(f"None of the {len(images)} images can be read; the first: {bad[images.files[0]]}")
    kept = images.take(np.flatnonzero([file not in bad for file in images.files]))
    emptied = [name for target, name in enumerate(names) if not kept.of_class(target).any()]
    if emptied:
        raise ValueError(f"No image of these classes can be read: {', '.join(emptied)}.")
    return kept, {str(path): reason for path, reason in bad.items()}
