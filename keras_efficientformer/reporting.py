"""Makes tables of facts, values that JSON can hold, and lists of packages' versions. Room: top level."""

import math
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Column, Table
from rich.text import Text


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
