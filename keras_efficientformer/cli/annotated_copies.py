"""Writes copies of photographs with the best class and its score written below them. Room: cli."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_efficientformer.cli.options import check_free
from keras_efficientformer.files import finished_file

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
    """A folder of copies, which is made with the first.

    Args:
        folder: where they are written; None where none are.
        overwrite: whether a file of an earlier time is replaced.
    """

    def __init__(self, folder: Path | None, overwrite: bool) -> None:
        self._folder, self._overwrite = folder, overwrite
        self._written: set[str] = set()

    def write(self, name: str, picture: Image.Image, answer: dict[str, Any]) -> None:
        """Writes NAME.jpg; where two photographs have one name the second is called NAME_2.jpg.

        Args:
            name: of the photograph: a path, a URL, or "-".
            picture: what `copy_of` made of it.
            answer: its best class, with "label" and "score".

        Raises:
            FileExistsError: there is such a file of an earlier time, and it is not to be replaced.
        """
        assert self._folder is not None, "copies have no folder"
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / self._free_name(name)
        check_free(path, self._overwrite)
        with finished_file(path, overwrite=True) as partial:
            _with_text(picture, f"{answer['label']} {answer['score']:.1%}").save(partial, quality=90)

    def _free_name(self, name: str) -> str:
        stem = re.sub(r"[^\w.-]+", "_", re.split(r"[/\\]", name.partition("?")[0])[-1]).rsplit(".", 1)[0]
        stem = "stdin" if stem in ("", "-") else stem
        number, found = 1, f"{stem}.jpg"
        while found in self._written:
            number += 1
            found = f"{stem}_{number}.jpg"
        self._written.add(found)
        return found


def _with_text(picture: Image.Image, text: str) -> Image.Image:
    """The picture with a dark bar below it that holds the text, as large as fits."""
    size = max(SMALLEST_TEXT, min(picture.size) // TEXT_SHARE)
    font: Any = ImageFont.load_default(size)
    while size > SMALLEST_TEXT and font.getlength(text) > picture.width - size:
        size -= 1
        font = ImageFont.load_default(size)
    bar = 2 * size
    annotated = Image.new("RGB", (picture.width, picture.height + bar), "black")
    annotated.paste(picture)
    ImageDraw.Draw(annotated).text((size // 2, picture.height + size // 2), text, "white", font)
    return annotated
