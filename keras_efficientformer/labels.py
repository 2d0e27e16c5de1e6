"""Reads the names of classes from whatever they are given as, in the order of a network's outputs. Room: top level."""

import os
import unicodedata
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from keras_efficientformer.errors import listing

# A list or other sequence of names; a text file with one in each line; {name: index}, as Keras' `class_indices`, or
# {index: name}, as Hugging Face's `id2label`.
Labels = str | os.PathLike[str] | Iterable[str] | Mapping[Any, Any]


def class_names(labels: Labels, classes: int | None = None) -> tuple[str, ...]:
    """The names of classes in the order of the outputs.

    Args:
        labels: names in order; or the path of a text file with one in each line; or a dictionary of names and indices,
            whichever is the key.
        classes: how many there must be; None means any number.

    Raises:
        ValueError: their number is another, one is no single line of text, a set has no order, or the indices of a
            dictionary are not 0, 1, 2 and so on.
        OSError: the file cannot be read.
    """
    names = _in_order(labels)
    # Exported files hold one name in a line.
    unfit = [name for name in names if not isinstance(name, str) or "\n" in name or "\r" in name]
    if unfit:
        raise ValueError(f"Labels should be single lines of text. Received: {listing(list(map(repr, unfit)))}")
    if classes is not None and len(names) != classes:
        where = f"{labels} holds" if isinstance(labels, str | os.PathLike) else "there are"
        raise ValueError(f"The model has {classes} classes, and {where} {len(names)} labels: one for each is needed.")
    return tuple(map(str, names))


def unique_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names of which alike ones have got their class's number: ImageNet has two kinds of crane."""
    if len(set(names)) == len(names):
        return names
    # A numbered name may be the name of yet another class.
    return unique_names(
        tuple(f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names))
    )


def composed(name: str) -> str:
    """The one form (Unicode's NFC) of names that look alike: macOS writes the accents of letters by themselves."""
    return unicodedata.normalize("NFC", name)


def class_colors(classes: int) -> list[str]:
    """A colour for each class, "#rrggbb", by which masks are drawn: those of PASCAL VOC, black first."""
    # VOC spreads the bits of a class's number over the highest bits of red, green and blue.
    return ["#" + "".join(f"{_spread(number >> shift):02x}" for shift in range(3)) for number in range(classes)]


def _spread(number: int) -> int:
    """Every third bit of a number, from its lowest on, as bits of a byte from its highest on."""
    return sum((number >> 3 * place & 1) << 7 - place for place in range(8))


def labels_beside(path: str | os.PathLike[str]) -> Path | None:
    """The `labels.txt` in the folder of a model's file, which many converters write; None where there is none."""
    labels = Path(path).with_name("labels.txt")
    return labels if Path(path).exists() and labels.is_file() else None


def _in_order(labels: Any) -> tuple[Any, ...]:
    if isinstance(labels, str | os.PathLike):
        return read_labels(labels)
    if isinstance(labels, set | frozenset):
        raise ValueError(f"A set has no order, and labels are in that of the outputs: give a list. Received: {labels}")
    if not isinstance(labels, Iterable):
        raise ValueError(
            "Labels are a list of names, the path of a text file with one in each line, or a dictionary of names and "
            f"indices. Received: {labels!r}"
        )
    if not isinstance(labels, Mapping):
        return tuple(labels)
    pairs = list(labels.items())
    # Names may look like numbers, but values that are numbers are no names.
    if all(isinstance(value, Integral) for value in labels.values()):
        pairs = [(value, key) for key, value in pairs]
    by_index = {int(index): name for index, name in pairs if _is_index(index)}
    if sorted(by_index) != list(range(len(labels))):
        raise ValueError(
            "A dictionary of labels has names and their indices, {name: index} or {index: name}, every index from 0 on "
            f"once. Received: {listing([f'{key!r}: {value!r}' for key, value in labels.items()])}"
        )
    return tuple(by_index[index] for index in range(len(by_index)))


def _is_index(value: Any) -> bool:
    """Whether it is a whole number, as such or, as JSON has keys, as text."""
    if isinstance(value, str):
        return value.isdecimal()
    return isinstance(value, Integral) and not isinstance(value, bool)


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Class names from a UTF-8 text file with one in each line.

    Raises:
        ValueError: the file is not UTF-8.
        OSError: it cannot be read.
    """
    try:
        # Windows' editors put a byte order mark before the first name.
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} should hold class names as UTF-8 text, one in each line: {error}") from error
    # `splitlines` is not used, as it also splits at characters that may stand in a name.
    return tuple(text.rstrip("\n").split("\n"))
