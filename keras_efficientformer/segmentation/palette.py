"""Reads the colours that classes have in masks, and draws masks over pictures. Room: segmentation.

A palette is a text file with a line for each class in their order, its name and its colour:

    background #000000
    traffic light #faaa1e
    ignored #e0e0c0

A line called `ignored` is no class: pixels of its colour count for nothing.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_efficientformer.errors import listing

IGNORED_NAME = "ignored"
LINE = re.compile(r".*\S\s+#[0-9a-fA-F]{6}")
# How much of a picture is still seen below a mask.
PICTURE_SHARE = 0.45


@dataclass(frozen=True)
class Palette:
    """The colours of classes.

    Attributes:
        path: the file that it was read from.
        names: of the classes, in their order.
        colours: {(red, green, blue): the class' place, or None for pixels that count for nothing}.
    """

    path: Path
    names: tuple[str, ...]
    colours: dict[tuple[int, int, int], int | None]


def read_palette(path: str | os.PathLike[str]) -> Palette:
    """The palette in a text file.

    Raises:
        ValueError: the file is no UTF-8 text, a line is no name and colour, a name or colour stands there twice, or
            there are fewer than two classes.
        OSError: it cannot be read.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} should be UTF-8 text with a name and a colour in each line: {error}") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    unfit = [f"{line!r} (line {number})" for number, line in numbered if not LINE.fullmatch(line)]
    if unfit:
        raise ValueError(
            f"{path} should have a name and a colour in each line, such as 'sky #87ceeb'. Found: {listing(unfit)}"
        )
    names = [line[: -len("#rrggbb")].strip() for _, line in numbered]
    colours = [_colour(line[-len("rrggbb") :]) for _, line in numbered]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    twice += [in_digits(colour) for colour in dict.fromkeys(colours) if colours.count(colour) > 1]
    if twice:
        raise ValueError(f"{path} should have each name and each colour once. Found twice: {listing(twice)}")
    classes = tuple(name for name in names if name != IGNORED_NAME)
    if len(classes) < 2:
        raise ValueError(f"{path} should have two classes at least. Found: {listing(classes)}")
    places = {name: place for place, name in enumerate(classes)}
    return Palette(path, classes, {c: places.get(n) for n, c in zip(names, colours, strict=True)})


def _colour(digits: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue


def in_digits(colour: tuple[int, ...]) -> str:
    """A colour as palettes have it, "#rrggbb"."""
    return f"#{bytes(colour).hex()}"


def colour_values(colours: Sequence[str]) -> np.ndarray:
    """Colours as palettes have them, "#rrggbb", as uint8 (colours, 3)."""
    return np.array([_colour(digits.removeprefix("#")) for digits in colours], "uint8")


def drawn_over(picture: np.ndarray, mask: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """A picture under the colours of its mask.

    Args:
        picture: uint8 (height, width, 3).
        mask: integers (height, width), the class of each pixel; pixels below 0 stay as they are.
        colours: uint8 (classes, 3).

    Returns:
        uint8 (height, width, 3).
    """
    mixed = PICTURE_SHARE * picture + (1 - PICTURE_SHARE) * colours[np.maximum(mask, 0)]
    return np.where(mask[..., None] < 0, picture, np.round(mixed)).astype("uint8")
