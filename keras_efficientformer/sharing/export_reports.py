"""Reads the reports beside exported files, each of which was run and compared, without Keras. Room: sharing."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_efficientformer.deploy.report_sidecar import check_sidecar, sidecar_of

EXPORT_SUFFIXES = (".tflite", ".mlpackage")


def read_reports(files: Sequence[str | os.PathLike[str]]) -> dict[Path, dict[str, Any]]:
    """{file: its report} of exported files, each of which lies beside its own report.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: it is no exported file, two have one name, the report is missing, damaged or another file's, or no
            limit was set when the file was compared with its model.
    """
    found: dict[Path, dict[str, Any]] = {}
    for file in map(Path, files):
        if not file.exists():
            raise FileNotFoundError(f"{file} does not exist.")
        if file.suffix not in EXPORT_SUFFIXES:
            raise ValueError(f"An export ends in {' or '.join(EXPORT_SUFFIXES)}. Received: {file}")
        if any(file.name == other.name for other in found):
            raise ValueError(
                f"Two exports are called {file.name}, and a repository has them in one folder: rename one."
            )
        if not check_sidecar(file):
            raise ValueError(
                f"{file} has no report beside it, {sidecar_of(file).name}, so that nobody knows whether it "
                "was checked: bring the report, or export the model again."
            )
        report = json.loads(sidecar_of(file).read_text(encoding="utf-8"))
        if not report.get("limit"):
            raise ValueError(f"{file} was written without a limit (max_difference): export it again with one.")
        found[file] = report
    return found
