"""Writes files that get their name only when they are complete, whatever their format. Room: top level."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def finished_file(
    path: str | os.PathLike[str], overwrite: bool = False, may_replace: Callable[[Path], bool] = Path.is_file
) -> Iterator[Path]:
    """Gives a path to write to, which becomes `path` when the block ends well and is removed when it does not.

    Args:
        path: the file, or the folder where a format's files are folders.
        overwrite: whether what stands there may be replaced.
        may_replace: says of what stands there whether it is of the kind that is written; by default a file.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False.
        FileNotFoundError: the folder of `path` does not exist.
        IsADirectoryError: `path` is a folder that `may_replace` refuses.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Choose another name, or say that it may be overwritten.")
    if path.is_dir() and not may_replace(path):
        raise IsADirectoryError(f"{path} is a folder of another kind, which is not replaced. Choose another name.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {path.parent} does not exist. Make it first, or choose another.")
    # It is in the same folder, so that the last step is a rename, and has the same suffix, which decides the format.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        partial = Path(folder) / path.name
        yield partial
        # A folder cannot replace another that is not empty.
        if path.exists() and partial.is_dir():
            os.replace(path, Path(folder) / "replaced")
        os.replace(partial, path)


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, or of all files in a folder."""
    path = Path(path)
    return sum(item.stat().st_size for item in (path.rglob("*") if path.is_dir() else [path]) if item.is_file())


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 text file in the place of an older one, whole or not at all."""
    with finished_file(path, overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes plain values as indented JSON in the place of an older file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")
