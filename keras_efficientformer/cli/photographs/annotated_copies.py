"""Writes copies of photographs with the best class below them, or their masks over them. Room: cli/photographs."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_efficientformer.cli.options import check_free
from keras_efficientformer.files import finished_file
from keras_efficientformer.images import scaled
from keras_efficientformer.labels import class_colors
from keras_efficientformer.segmentation.palette import colour_values, drawn_over

# Of the longer side, in pixels: enough to look at.
LARGEST_COPY = 1280
TEXT_SHARE = 18  # so many lines of text would fill the shorter side
SMALLEST_TEXT = 12  # pixels


def copy_of(image: np.ndarray) -> Image.Image:
    """A photograph, uint8 (height, width, 3), as a picture of at most 1280 pixels a side."""
    copy = Image.fromarray(image)
    copy.thumbnail((LARGEST_COPY, LARGEST_COPY))
    return copy


class AnnotatedCopies:
    """The copies of some photographs in a folder, which is made with the first of them.

    A copy is called NAME.jpg; where two photographs have one name the second is called NAME_2.jpg.

    Args:
        folder: where they are written.
        names: of the photographs: paths, URLs, or "-".
        overwrite: whether files of an earlier time are replaced.

    Raises:
        FileExistsError: there is such a file of an earlier time, and it is not to be replaced; or it is one of the
            photographs, which never is.
    """

    def __init__(self, folder: Path, names: Iterable[str], overwrite: bool) -> None:
        names = list(names)
        originals = {os.path.realpath(name) for name in names}
        taken: dict[str, Path] = {}
        self._paths: dict[str, Path] = {}
        for name in names:
            stem, number = _stem(name), 1
            while (found := f"{stem}_{number}.jpg" if number > 1 else f"{stem}.jpg") in taken:
                number += 1
            self._paths[name] = taken[found] = folder / found
            if os.path.realpath(folder / found) in originals:
                raise FileExistsError(
                    f"{folder / found} is a photograph that is read: choose another folder to save in."
                )
            check_free(folder / found, overwrite)

    def write(self, name: str, picture: Image.Image, answer: dict[str, Any]) -> None:
        """Writes the copy of a photograph.

        Args:
            name: of the photograph.
            picture: what `copy_of` made of it.
            answer: its best class, with "label" and "score".
        """
        path = self._paths[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        with finished_file(path, overwrite=True) as partial:
            _with_text(picture, f"{answer['label']} {answer['score']:.1%}").save(partial, quality=90)

    def write_masked(
        self, name: str, picture: Image.Image, mask: np.ndarray, answers: Sequence[dict[str, Any]], classes: int
    ) -> None:
        """Writes the copy of a photograph with its mask drawn over it, and a legend below.

        Args:
            name: of the photograph.
            picture: what `copy_of` made of it.
            mask: integers (height, width) of any size, the class of each pixel.
            answers: the classes in the legend, with "class", "label" and "share".
            classes: how many the model has.
        """
        colours = colour_values(class_colors(classes))
        drawn = drawn_over(np.asarray(picture), scaled(mask.astype("int32"), picture.size[::-1]), colours)
        rows = [(f"{answer['label']} {answer['share']:.1%}", tuple(colours[answer["class"]])) for answer in answers]
        path = self._paths[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        with finished_file(path, overwrite=True) as partial:
            _with_legend(Image.fromarray(drawn), rows).save(partial, quality=90)


def _with_legend(picture: Image.Image, rows: Sequence[tuple[str, tuple[int, ...]]]) -> Image.Image:
    """The picture with a dark bar below it that holds lines of text, each after a square of its colour."""
    size = _text_size(picture, [text for text, _ in rows], 3)
    line = 3 * size // 2
    annotated = Image.new("RGB", (picture.width, picture.height + line * len(rows) + size // 2), "black")
    annotated.paste(picture)
    draw, font = ImageDraw.Draw(annotated), ImageFont.load_default(size)
    for number, (text, colour) in enumerate(rows):
        left, top = size // 2, picture.height + size // 2 + number * line
        draw.rectangle((left, top, left + size, top + size), fill=colour, outline="white")
        draw.text((left + line, top), text, "white", font)
    return annotated


def _stem(name: str) -> str:
    """A file's name without its suffix, of what a path or URL ends in."""
    last = re.split(r"[/\\]", name.partition("?")[0])[-1]
    stem = re.sub(r"[^\w.-]+", "_", last).rsplit(".", 1)[0]
    return "stdin" if stem in ("", "-") else stem


def _text_size(picture: Image.Image, texts: Sequence[str], around: int) -> int:
    """Pixels of text as high as fits below a picture, with so many times its height beside it."""

    def is_too_wide(size: int) -> bool:
        font: Any = ImageFont.load_default(size)
        return any(font.getlength(text) > picture.width - around * size for text in texts)

    size = max(SMALLEST_TEXT, min(picture.size) // TEXT_SHARE)
    while size > SMALLEST_TEXT and is_too_wide(size):
        size -= 1
    return size


def _with_text(picture: Image.Image, text: str) -> Image.Image:
    """The picture with a dark bar below it that holds the text, as large as fits."""
    size = _text_size(picture, [text], 1)
    font = ImageFont.load_default(size)
    bar = 2 * size
    annotated = Image.new("RGB", (picture.width, picture.height + bar), "black")
    annotated.paste(picture)
    ImageDraw.Draw(annotated).text((size // 2, picture.height + size // 2), text, "white", font)
    return annotated
