"""Reads which labels each image has, several or none: from the names of folders, or a CSV file. Room: training/data.

A folder has a subfolder for each set of labels, called by all of them: `cat`, `cat+dog`, `none`. A CSV file has a
header, a line for each image, and in it its path, `file`, relative to the CSV, and either its `labels` or a column of 0
and 1 for each label:

    file,labels               file,cat,dog
    photos/1.jpg,cat;dog      photos/1.jpg,1,1
    photos/2.jpg,             photos/2.jpg,0,0
"""

import csv
import itertools
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_efficientformer.errors import listing
from keras_efficientformer.image_folders.image_folder import (
    TRAINING_NAMES,
    VALIDATION_NAMES,
    ImageSet,
    check_apart,
    list_images,
    split_folders,
    warn_of_twins,
)
from keras_efficientformer.labels import class_names, composed

FILE_COLUMN, LABELS_COLUMN = "file", "labels"
# What stands between the labels in the name of a folder, and in a CSV's column of labels.
FOLDER_SEPARATOR, CSV_SEPARATOR = re.compile(r"\+"), re.compile("[;|,]")
# In the place of labels it stands for none of them.
NO_LABEL = "none"
# As people, and as pandas and NumPy, write 0 and 1.
CELLS = {"0": 0, "0.0": 0, "False": 0, "1": 1, "1.0": 1, "True": 1}


def read_multi_label(
    data: str | os.PathLike, validation: str | os.PathLike | None
) -> tuple[list[str], ImageSet, ImageSet | None]:
    """Label names, training images, and validation images, or None where a share is to be held out.

    Args:
        data: a folder or CSV file, as for `list_multi_label`; or a folder with `train.csv` or a folder `train`, and
            perhaps `val.csv` or `val` (or valid, validation, test) beside it. Of both, the CSV files count.
        validation: another folder or CSV file; None means the one beside `train`, if there is one.

    Raises:
        FileNotFoundError: there is no such folder or CSV file.
        ValueError: as `list_multi_label`; a label has no image; all images have the same labels; the validation images
            have labels that the others have not; or an image is in both.
    """
    training, beside = _parts(Path(data))
    names, images = list_multi_label(training)
    without = [name for name, count in zip(names, images.counts(len(names)), strict=True) if not count]
    if without:
        raise ValueError(f"No image of {training} has these labels: {listing(without)}. Add images, or leave them out.")
    if (images.targets == images.targets[0]).all():
        raise ValueError(
            f"All images of {training} have the same labels, {listing(names)}: there is nothing to tell apart. Add "
            f"images of others or of none: a folder called {NO_LABEL!r}, or no labels in the CSV."
        )
    validation = validation or beside
    if validation is None:
        return names, images, None
    held_out = read_multi_label_validation(validation, names)
    check_apart(images, held_out)
    return names, images, held_out


def read_multi_label_validation(source: str | os.PathLike, names: Sequence[str]) -> ImageSet:
    """The images of a folder or CSV file whose labels must be among these.

    Raises:
        FileNotFoundError: there is no such folder or CSV file.
        ValueError: as `list_multi_label`, it has other labels, or its images have none.
    """
    found, images = list_multi_label(source)
    names = list(map(composed, names))
    unknown = [name for name in found if name not in names]
    if unknown:
        raise ValueError(
            f"{source} has labels that the training images do not have: {listing(unknown)}. Those have {listing(names)}"
        )
    if not images.targets.any():
        raise ValueError(f"No image of {source} has a label: there is nothing to find in them.")
    return images.moved([names.index(name) for name in found], len(names))


def list_multi_label(source: str | os.PathLike) -> tuple[list[str], ImageSet]:
    """The label names and images of a folder, with a subfolder for each set of labels, or of a CSV file.

    The names are sorted, but for those of a CSV's columns, which keep their order.

    Raises:
        FileNotFoundError: there is no such folder or CSV file, or no such image as the CSV names.
        ValueError: a folder is unfit (`list_images`) or holds CSV files of a split; a CSV has no such header, lines of
            other lengths, an image twice, or values other than 0 and 1 in a column; or labels are empty, repeated, or
            "none" beside others.
    """
    source = Path(source)
    if source.suffix.lower() == ".csv" and source.is_file():
        names, files, targets = _read_table(source)
        warn_of_twins(names, source)
        return names, ImageSet(files, targets, np.arange(len(files)))
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is neither a folder of images nor a .csv file that says their labels.")
    tables = _tables(source)
    if tables:
        raise ValueError(f"{source} holds {', '.join(path.name for path in tables.values())}: choose one of them.")
    folders, images = list_images(source)
    names, targets = _rows([_labels_in(name, FOLDER_SEPARATOR, str(source / name)) for name in folders], source)
    warn_of_twins(names, source)
    return names, ImageSet(images.files, targets[images.targets], images.rows)


def _parts(data: Path) -> tuple[Path, Path | None]:
    """The folders or CSV files for training and validation, None where there is none for that."""
    if not data.is_dir():
        return data, None
    tables = _tables(data)
    training = [tables[name] for name in TRAINING_NAMES if name in tables]
    if len(training) > 1:
        raise ValueError(f"{data} holds {', '.join(path.name for path in training)}: leave one of them.")
    if training:
        return training[0], next((tables[name] for name in VALIDATION_NAMES if name in tables), None)
    folder, beside = split_folders(data)
    return folder or data, beside


def _tables(folder: Path) -> dict[str, Path]:
    """{name without the suffix, in lower case: path} of a folder's CSV files that are called as parts of a split."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".csv" and path.is_file())
    return {path.stem.lower(): path for path in files if path.stem.lower() in TRAINING_NAMES + VALIDATION_NAMES}


def _labels_in(text: str, separator: re.Pattern[str], where: str) -> list[str]:
    """The labels that a folder's name or a cell of a CSV lists."""
    labels = [composed(label.strip()) for label in separator.split(text)]
    if len(labels) == 1 and labels[0].lower() in ("", NO_LABEL):
        return []
    if "" in labels or len(set(labels)) < len(labels) or NO_LABEL in map(str.lower, labels):
        raise ValueError(
            f"{where} should name labels, each once and none empty, or {NO_LABEL!r} alone. Found: {text!r}. Names that "
            "hold a separator can be those of a CSV's columns of 0 and 1."
        )
    return labels


def _rows(sets: Sequence[Sequence[str]], source: Path) -> tuple[list[str], np.ndarray]:
    """The names of all labels, sorted, and uint8 (sets, labels)."""
    names = sorted(set(itertools.chain(*sets)))
    if not names:
        raise ValueError(f"No image of {source} has a label.")
    places = {name: place for place, name in enumerate(names)}
    rows = np.zeros((len(sets), len(names)), "uint8")
    for row, labels in zip(rows, sets, strict=True):
        row[[places[label] for label in labels]] = 1
    return names, rows


def _read_table(path: Path) -> tuple[list[str], tuple[Path, ...], np.ndarray]:
    """Label names, images and uint8 (images, labels) of a CSV file."""
    header, lines = _read_lines(path)
    column = header.index(FILE_COLUMN)
    files = [_named_file(path.parent, cells[column]) for _, cells in lines]
    _check_files(path, files, [number for number, _ in lines])
    if LABELS_COLUMN in header:
        names, targets = _rows(
            [_labels_in(cells[1 - column], CSV_SEPARATOR, f"Line {number} of {path}") for number, cells in lines], path
        )
    else:
        names = [name for name in header if name != FILE_COLUMN]
        places = [place for place in range(len(header)) if place != column]
        for number, cells in lines:
            unfit = [f"{cells[place]!r} for {header[place]}" for place in places if cells[place].strip() not in CELLS]
            if unfit:
                raise ValueError(
                    f"Line {number} of {path} should have 0 or 1 for each label. Found: {listing(unfit)}. A column of "
                    f"names is called {LABELS_COLUMN!r}."
                )
        targets = np.array([[CELLS[cells[place].strip()] for place in places] for _, cells in lines], "uint8")
    return list(class_names(names)), tuple(files), targets


def _named_file(folder: Path, name: str) -> Path:
    """The file of a name, whose accents another system may have written otherwise than the CSV has them."""
    forms = (name, composed(name), unicodedata.normalize("NFD", name))
    files = [Path(os.path.normpath(folder / form)) for form in forms]
    return next((file for file in files if file.is_file()), files[0])


def _read_lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a CSV file, and the number and the cells of each other line; empty lines are passed over."""
    try:
        # Excel puts a byte order mark before the first name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, skipinitialspace=True)
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} should be a CSV file: values with commas between them, in UTF-8. {error}") from error
    header = [composed(name.strip()) for name in lines[0][1]] if lines else []
    labels = [name for name in header if name != FILE_COLUMN]
    is_list = labels == [LABELS_COLUMN]
    unfit = {"", LABELS_COLUMN, NO_LABEL} & {name.lower() for name in labels}
    if len(header) != len(labels) + 1 or len(set(labels)) < len(labels) or not labels or (unfit and not is_list):
        raise ValueError(
            f"{path} should begin with a header, and commas in it: {FILE_COLUMN!r} and {LABELS_COLUMN!r}, or "
            f"{FILE_COLUMN!r} and the name of each label once. Found: {listing(list(map(repr, header)))}"
        )
    others = [f"line {number} has {len(cells)}" for number, cells in lines[1:] if len(cells) != len(header)]
    if others or len(lines) == 1:
        raise ValueError(
            f"{path} should have a line for each image, with {len(header)} values, as the header has. "
            f"Found: {listing(others) if others else 'the header alone'}"
        )
    return header, lines[1:]


def _check_files(path: Path, files: Sequence[Path], numbers: Sequence[int]) -> None:
    """Checks that all images that a CSV file names are there, and none twice."""
    missing = [f"{file} (line {n})" for file, n in zip(files, numbers, strict=True) if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} names {len(missing)} images that are not there: {listing(missing)}. Their paths begin at the "
            "CSV's folder."
        )
    first = dict(zip(reversed(files), reversed(numbers), strict=True))
    twice = [
        f"{file} (lines {first[file]} and {n})" for file, n in zip(files, numbers, strict=True) if n != first[file]
    ]
    if twice:
        raise ValueError(
            f"{path} names images more than once: {listing(twice)}. Give each one line with all its labels."
        )
