"""Makes error messages: packages that are missing, lists cut short, the first line of another error. Room: top level.

Every module of the package may use this one, and it uses none of them.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

# A shorter list of names would hide the pattern, a longer one the message.
NAMES_SHOWN = 10


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as it is: the message says what was found, what was expected and what to do."""


class ExportError(RuntimeError):
    """The exported file does not do what the model does, so it was not written; the message says by how much."""


class DeviceError(OSError):
    """A device, or a tool needed to reach it, is not there or refuses; the message says which and what to do."""


def require(module: str, job: str, extra: str, otherwise: str = "") -> Any:
    """Imports a module that not every installation has.

    Args:
        module: its name, as for `import`.
        job: what it is needed for, the subject of the error's sentence, e.g. "TFLite export".
        extra: the extra of this package that brings it.
        otherwise: what can be done instead, e.g. ", or use a .safetensors file".

    Returns:
        The module.

    Raises:
        ImportError: it, or a module that it imports, is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _not_installed(error.name or module, job, extra, otherwise) from error


def require_installed(module: str, job: str, extra: str, otherwise: str = "") -> None:
    """Raises as `require` does where a package is not installed, but imports nothing, which may take seconds."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ImportError:
        found = False
    if not found:
        raise _not_installed(module, job, extra, otherwise)


def _not_installed(module: str, job: str, extra: str, otherwise: str) -> ImportError:
    package = module.replace("_", "-")
    return ImportError(f"{job} needs {package}: pip install 'keras-efficientformer[{extra}]'{otherwise}", name=module)


def listing(names: Sequence[str]) -> str:
    """The first ten names of a list, for a message, and how many more there are; "nothing" for an empty list."""
    more = len(names) - NAMES_SHOWN
    return (", ".join(names[:NAMES_SHOWN]) or "nothing") + (f" and {more} more" if more > 0 else "")


def first_line(error: BaseException | str) -> str:
    """The first line of an error's message without its full stop; the error's class where it has no message."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
