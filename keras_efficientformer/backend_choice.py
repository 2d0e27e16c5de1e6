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
    """Sets KERAS_BACKEND to the one backend that is installed, unless there is a choice: the variable or keras.json."""
    if os.environ.get("KERAS_BACKEND") or "keras" in sys.modules or _configured() not in (None, DEFAULT):
        return
    installed = _installed()
    if len(installed) == 1:
        os.environ["KERAS_BACKEND"] = installed[0]


def chosen_backend() -> str:
    """The backend that Keras takes when it is imported."""
    return os.environ.get("KERAS_BACKEND") or _configured() or DEFAULT


def missing_backend(error: ImportError) -> ImportError | None:
    """What to do where Keras could not import its backend, as an error; None where something else was not there."""
    if error.name not in BACKENDS or error.name != chosen_backend():
        return None
    installed = _installed()
    if not installed:
        return ImportError(
            "Keras needs a backend and none is installed: pip install 'keras-efficientformer[tensorflow]', or [jax] or "
            "[torch] in its place."
        )
    return ImportError(
        f"Keras' backend here is {error.name}, which is not installed; installed: {', '.join(installed)}. Choose one "
        f"with the environment variable, e.g. KERAS_BACKEND={installed[0]}, or pip install "
        f"'keras-efficientformer[{error.name}]'."
    )


def _installed() -> list[str]:
    return [name for name in BACKENDS if _is_installed(name)]


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
