"""Makes tables of facts in words, values that JSON can hold, and lists of packages' versions. Room: top level."""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from keras_efficientformer.errors import listing

PAIRS_OF_SIDES = ("input_size", "declared_size", "resolution")


def facts_table(title: str | Text) -> Table:
    """A table of names and values, to add rows to."""
    return Table("", Column(overflow="fold"), title=title, show_header=False, title_justify="left")


def finite_only(value: Any) -> Any:
    """The value with null in place of numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite_only(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_only(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions_of(*packages: str) -> dict[str, str]:
    """{package: version} of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def in_words(name: str, value: Any) -> str:
    """A fact as a table shows it.

    Args:
        name: what it is called in JSON.
        value: what JSON has: a plain value, or lists and dictionaries of such.
    """
    if value is None:
        return "none of the published ones" if name == "variant" else "not stated"
    if name == "labels":
        return f"{len(value)}: {listing(value)}"
    if name in PAIRS_OF_SIDES:
        return " x ".join(map(str, value))
    if name == "bytes" or name.endswith("_bytes"):
        return f"{value / 1e6:.1f} MB ({value:,} bytes)"
    return _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return _tensor(value) if "shape" in value else _pairs(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        between = "; " if any(isinstance(item, Mapping) for item in value) else ", "
        return between.join(map(_plain, value)) or "none"
    return str(value)


def _pairs(values: Mapping[Any, Any]) -> str:
    between = "; " if any(isinstance(value, Sequence) for value in values.values()) else ", "
    return between.join(f"{name}: {_plain(value)}" for name, value in values.items()) or "none"


def _tensor(values: Mapping[str, Any]) -> str:
    """A `TensorInfo` or `LargeTensor` as a dictionary."""
    text = f"{values['name']}, {values['dtype']} {'x'.join(map(str, values['shape']))}"
    if values.get("scale") is not None:
        text += f", value = {values['scale']:.3g} * (stored - {values['zero_point']})"
    return text + (f", {values['bytes'] / 1e6:.2f} MB" if "bytes" in values else "")
