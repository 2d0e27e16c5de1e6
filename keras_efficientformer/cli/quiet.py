"""Keeps the libraries that a command uses from talking, and from importing what it has no use for. Room: cli."""

import contextlib
import faulthandler
import gc
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable

from keras_efficientformer.backend_choice import chosen_backend

# Loggers of packages that speak of their versions, of devices that are not there, and of what they are about to do.
TALKATIVE = ("absl", "coremltools", "jax", "tensorflow")
# coremltools imports, where it finds them, the packages whose models it could convert.
NOT_FOR_COREML = (
    "executorch",
    "tensorflow",
    "torch",
    "torchao",
    "torchaudio",
    "torchvision",
    "transformers",
    "xgboost",
)
FOR_COMPRESSION = ("scipy", "sklearn")
# Keras imports what it could draw and wrap with, and TensorFlow what its converter could convert from.
NOT_FOR_KERAS = ("jax", "matplotlib", "sklearn")


def keep_libraries_quiet() -> None:
    """Silences what is no error and no warning of this package; it is called before the libraries are imported."""
    # TensorFlow and LiteRT write from C++, and no variable keeps all of that back: Python gets a standard error of its
    # own, and theirs leads nowhere.
    own = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    sys.stderr = os.fdopen(own, "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors)
    faulthandler.enable(sys.stderr)  # a crash is still told
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Warnings are filtered by the module that they point to, which for this package's own is one of its.
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module="keras_efficientformer")
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"


def import_coremltools_alone(compresses: bool = False) -> None:
    """Imports coremltools in the command's process without those packages, which takes a tenth of the time and memory.

    Elsewhere it does nothing: whoever imports this package may want coremltools to convert from them.

    Args:
        compresses: whether weights will be compressed, for which coremltools uses scikit-learn.
    """
    unused = NOT_FOR_COREML if compresses else (*NOT_FOR_COREML, *FOR_COMPRESSION)
    # Who needs it says that it is missing.
    with contextlib.suppress(ImportError):
        _import_without("coremltools", unused)


def import_keras_alone() -> None:
    """Imports Keras in the command's process without those packages, which takes half of the time.

    Elsewhere it does nothing: whoever imports this package may want to draw with Keras.

    Raises:
        ImportError: Keras' backend is not installed.
    """
    _import_without("keras", [name for name in NOT_FOR_KERAS if name != chosen_backend()])


def _import_without(module: str, unused: Iterable[str]) -> None:
    """Imports a module as if these packages were not installed; they can be imported afterwards."""
    if "efficientformer_command" not in sys.modules or module in sys.modules:
        return
    hidden = [name for name in unused if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None says that there is no such module
    # The garbage collector would walk again and again through what stays: a fifth of the time.
    gc.disable()
    try:
        importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()
        for name in hidden:
            del sys.modules[name]
