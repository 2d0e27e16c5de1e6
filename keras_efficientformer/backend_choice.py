"""Chooses Keras' backend before Keras is imported, where nobody else has chosen one. Room: top level."""

import importlib.util
import json
import os
import sys
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")
# Keras takes this one where nothing is set, and writes it into a new keras.json, which is therefore no choice.
DEFAULT = "tensorflow"


def choose_backend() -> None:
    """Sets KERAS_BACKEND to the one backend that is installed, unless there is a choice: the variable or keras.json.

    Raises:
        ImportError: the backend that Keras would take is not installed, and there is none, or more than one, that could
            be taken in its place.
    """
    chosen = os.environ.get("KERAS_BACKEND")
    if chosen or "keras" in sys.modules:
        return
    installed = [name for name in BACKENDS if _is_installed(name)]
    wanted = _configured() or DEFAULT
    if wanted in installed or wanted not in BACKENDS:
        return
    if len(installed) == 1 and wanted == DEFAULT:
        os.environ["KERAS_BACKEND"] = installed[0]
        return
    if not installed:
        raise ImportError(
            "Keras needs a backend and none is installed: pip install 'keras-efficientformer[tensorflow]', or [jax] or "
            "[torch] in its place."
        )
    raise ImportError(
        f"Keras' backend here is {wanted}, which is not installed; installed: {', '.join(installed)}. Choose one with "
        f"the environment variable, e.g. KERAS_BACKEND={installed[0]}."
    )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _configured() -> str | None:
    """The backend that keras.json names, or None."""
    folder = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    try:
        content = json.loads(Path(folder, "keras.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("backend") if isinstance(content, dict) else None
