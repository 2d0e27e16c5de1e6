"""Joins Core ML packages of one network at several input sizes into one with a function for each. Room: deploy/coreml.

Functions came with iOS 18. coremltools joins packages that are on disk; constants that are equal are stored once.
"""

import contextlib
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_efficientformer.deploy.coreml.package import MAIN

MULTIFUNCTION_IOS = 18


def save_joined(packages: Mapping[str, Any], path: Path, description: str) -> None:
    """Saves a package with a function for each of several, and the first one's metadata.

    Args:
        packages: {name of the function: `coremltools.models.MLModel`}; the first is what opens by default.
        path: of the package.
        description: of the whole.
    """
    import coremltools

    functions = coremltools.utils.MultiFunctionDescriptor()
    functions.default_function_name, first = next(iter(packages.items()))
    with tempfile.TemporaryDirectory() as folder:
        for name, package in packages.items():
            part = str(Path(folder, f"{name}.mlpackage"))
            package.save(part)
            functions.add_function(part, MAIN, name)
        whole = str(Path(folder, "joined.mlpackage"))
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            coremltools.utils.save_multifunction(functions, whole)
        joined = coremltools.models.MLModel(whole, skip_model_load=True)
        joined.author, joined.license, joined.version = first.author, first.license, first.version
        joined.short_description = description
        joined.user_defined_metadata.update(first.user_defined_metadata)
        joined.save(str(path))
