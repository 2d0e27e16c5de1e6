"""Finds the report beside an exported file, and knows whether it is that file's. Room: deploy.

The report is for people and scripts; nothing that runs the file needs it.
"""

import hashlib
import json
import os
from pathlib import Path


def sidecar_of(path: str | os.PathLike[str]) -> Path:
    """Where the report of a file is: `model.tflite.json` beside `model.tflite`."""
    path = Path(path)
    return path.with_name(f"{path.name}.json")


def content_hash(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file; of a folder, that of its files' names and hashes, in the order of the names."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for item in sorted(item for item in path.rglob("*") if item.is_file()):
        total.update(f"{item.relative_to(path).as_posix()}\n{content_hash(item)}\n".encode())
    return total.hexdigest()


def check_sidecar(path: str | os.PathLike[str]) -> bool:
    """Whether there is a report beside a file: then the file is as it was when it was written and run.

    Raises:
        ValueError: the report is damaged or another file's.
    """
    sidecar = sidecar_of(path)
    if not sidecar.exists():
        return False
    try:
        expected = json.loads(sidecar.read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{sidecar} is not the report that an export writes beside its file. Bring the report again, or move this "
            "one away: the file does not need it."
        ) from error
    found = content_hash(path)
    if found != expected:
        raise ValueError(
            f"{sidecar} is the report of another file: its sha256 is {expected}, and that of {path} is {found}. Bring "
            "the file or the report again, or move the report away: the file does not need it."
        )
    return True
