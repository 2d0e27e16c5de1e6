"""Keeps what trials of roundings have found, for exports with another limit. Room: deploy/network/rounding.

How much each layer's rounding changes the outputs depends on the network and the images alone. A file for each network
and set of images lies in the user's cache; one that is damaged is made again.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.errors import first_line
from keras_efficientformer.files import cache_folder, write_json

# Counts up where the same trials would find something else than before.
RULE = 1

# {number of a step: mean square of what its rounding to its fewest bits changes in the outputs}.
Effects = dict[int, float]


def default_folder() -> Path:
    """Where trials are kept; the environment variable EFFICIENTFORMER_TRIALS names another folder."""
    return cache_folder("trials", "EFFICIENTFORMER_TRIALS")


def kept_effects(network: FusedNetwork, images: np.ndarray, storage: str, measure: Callable[[], Effects]) -> Effects:
    """The effects of layers as an earlier export has found them, else as they are measured now, which is kept.

    Args:
        network, images: as for `choose_bits`.
        storage: how weights are stored, by its name.
        measure: measures the effects.
    """
    file = default_folder() / f"{_fingerprint(network, images, storage)[:32]}.json"
    try:
        return {int(number): float(effect) for number, effect in json.loads(file.read_bytes()).items()}
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(f"{file} cannot be read ({first_line(error)}): trials are made again.", stacklevel=2)
    effects = measure()
    try:
        if file.parts[0].startswith("~"):
            raise OSError("there is no home folder. Set HOME, or EFFICIENTFORMER_TRIALS to another one.")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, effects)
    except OSError as error:
        warnings.warn(f"Trials are not kept: {first_line(error)}", stacklevel=2)
    return effects


def _fingerprint(network: FusedNetwork, images: np.ndarray, storage: str) -> str:
    """The sha256 of all that effects depend on."""
    total = hashlib.sha256(f"{RULE} {storage} {images.shape}".encode())
    total.update(np.ascontiguousarray(images).tobytes())
    for step in network.steps:
        arguments = sorted(step.arguments.items())
        arrays = [value for _, value in arguments if isinstance(value, np.ndarray)]
        others = [(name, value) for name, value in arguments if not isinstance(value, np.ndarray)]
        total.update(f"{step.operation} {others} {step.results} {[array.shape for array in arrays]}".encode())
        for array in arrays:
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
