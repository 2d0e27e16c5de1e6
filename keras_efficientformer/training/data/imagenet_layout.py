"""Reads ImageNet's validation images as they are distributed, and their classes. Room: training/data.

The 50,000 images are in one folder, their classes in a file beside them. Four kinds of such files are about: Kaggle's
LOC_val_solution.csv, lists of WordNet ids in the order of the images (TensorFlow's
imagenet_2012_validation_synset_labels.txt), lists of "file class" (Caffe's val.txt), and the development kit's numbers,
whose meaning is in its meta.mat.
"""

import csv
import re
from pathlib import Path

import numpy as np

from keras_efficientformer.errors import first_line, listing, require
from keras_efficientformer.imagenet import imagenet_labels

IMAGE_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")
TRUTH_FILES = (
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "val.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)


def is_flat(folder: Path) -> bool:
    """Whether ILSVRC2012_val_*.JPEG files lie in the folder itself."""
    return any(IMAGE_NAME.match(path.name) for path in folder.glob("ILSVRC2012_val_*"))


def read_flat(folder: Path, truth: Path | None) -> tuple[tuple[Path, ...], np.ndarray]:
    """The images, in order, and their classes.

    Args:
        folder: with ILSVRC2012_val_*.JPEG files, all 50,000 or some.
        truth: the file that says what they are, or None: one of `TRUTH_FILES` in the folder or beside it.

    Returns:
        Paths, and int64 (images,): places in `imagenet.imagenet_labels`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of no known kind, or says nothing of an image.
    """
    if truth is None:
        places = [place / name for place in (folder, folder.parent) for name in TRUTH_FILES]
        truth = next((path for path in places if path.is_file()), None)
    if truth is None:
        raise FileNotFoundError(
            f"{folder} holds ImageNet's validation images, and nothing says of which classes they are: put one of "
            f"{', '.join(TRUTH_FILES)} into it, or name the file with --ground-truth."
        )
    files = tuple(sorted(path for path in folder.iterdir() if IMAGE_NAME.match(path.name)))
    numbers = [int(found[1]) for path in files if (found := IMAGE_NAME.match(path.name))]
    classes = _read_truth(truth)
    missing = [path.name for path, number in zip(files, numbers, strict=True) if number not in classes]
    if missing:
        raise ValueError(f"{truth} does not say of which class {missing[0]} is, nor {len(missing) - 1} others.")
    return files, np.array([classes[number] for number in numbers])


def _read_truth(path: Path) -> dict[int, int]:
    """{number of the image: its class' place in `imagenet_labels`}."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} should be text, one of {', '.join(TRUTH_FILES)}. {error}") from error
    if path.suffix == ".csv":
        rows = [_solution(row, path) for row in csv.DictReader(lines)]
    elif all(len(line.split()) == 2 for line in lines):
        rows = [(image, name) for image, name in map(str.split, lines)]
    else:
        rows = [(f"ILSVRC2012_val_{number:08}", line.strip()) for number, line in enumerate(lines, 1)]
        if all(name.isdecimal() for _, name in rows):
            meaning = _read_meta(path.with_name("meta.mat"), path)
            rows = [(image, meaning.get(int(name), f"{name}, which is not in meta.mat")) for image, name in rows]
    places = {wordnet_id: place for place, (wordnet_id, _) in enumerate(imagenet_labels())}
    classes: dict[int, int] = {}
    for image, name in rows:
        number = IMAGE_NAME.search(image)  # the name may have its folder before it
        place = int(name) if name.isdecimal() else places.get(name)
        if number is None or place is None or place >= len(places):
            raise ValueError(f"{path} should hold image names and ImageNet's classes. Found: {image} {name}")
        classes[int(number[1])] = place
    return classes


def _solution(row: dict[str, str | None], path: Path) -> tuple[str, str]:
    """The image and the WordNet id of a line of Kaggle's file: after the id comes a box, and perhaps more of both."""
    image, classes = row.get("ImageId"), (row.get("PredictionString") or "").split()
    if not image or not classes:
        raise ValueError(
            f"{path} should have the columns ImageId and PredictionString, as {TRUTH_FILES[0]} has, and both in each "
            f"line. Found: {listing([f'{name}={value}' for name, value in row.items()])}"
        )
    return image, classes[0]


def _read_meta(path: Path, truth: Path) -> dict[int, str]:
    """{the development kit's number: WordNet id}."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{truth} holds the development kit's class numbers, which are in no other order that is known: put the "
            f"kit's meta.mat beside it, or use one of {', '.join(TRUTH_FILES[:3])}."
        )
    scipy_io = require("scipy.io", f"Reading {path}", "train")
    try:
        synsets = scipy_io.loadmat(path, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    # On damaged bytes SciPy raises nearly anything.
    except Exception as error:
        raise ValueError(f"{path} is not the development kit's meta.mat, or damaged: {first_line(error)}.") from error
