"""Reads what Keras' files say of a model beside its tensors: its layers, input size, labels. Room: conversion.

Nothing of the model is made for that, and Keras is not needed.
"""

import json
import os
import re
import zipfile
from typing import Any

from keras_efficientformer.conversion.formats import damaged, suffix_of
from keras_efficientformer.conversion.stated import Stated
from keras_efficientformer.layers.names import NORMALIZATION, PREDICTIONS


def keras_layers(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """(class, name) of the layers of a `.keras` or `.weights.h5` file that `read_tensors` has read.

    Of a `.weights.h5` file the classes are told by the groups' names; in older files layers have no names: "".

    Raises:
        CheckpointError: the file is damaged.
    """
    if suffix_of(path) == ".weights.h5":
        return _layers_of_hdf5(path)
    return [(kind, config["name"]) for kind, config in _configs(path)]


def stated_in_keras(path: str | os.PathLike[str]) -> tuple[tuple[int, int] | None, Stated]:
    """((height, width) of the images, what else is said of the model) of a `.keras` file that `read_tensors` has read.

    Raises:
        CheckpointError: the file is damaged.
    """
    configs = _configs(path)
    shapes = [config.get("batch_shape") or () for kind, config in configs if kind == "InputLayer"]
    by_name = {config["name"]: config for _, config in configs}
    ends, normalization = by_name.get(PREDICTIONS[0], {}), by_name.get(NORMALIZATION, {})
    activation = ends.get("activation")
    facts = {
        "labels": ends.get("labels"),
        "mean": normalization.get("mean"),
        "std": normalization.get("std"),
        # One of the user's own is an object.
        "activation": activation if isinstance(activation, str) else None,
    }
    sides = tuple(shapes[0][1:3]) if shapes else ()
    size = (sides[0], sides[1]) if len(sides) == 2 and all(isinstance(side, int) for side in sides) else None
    return size, Stated.from_json(json.dumps(facts), path)


def _configs(path: str | os.PathLike[str]) -> list[tuple[str, dict[str, Any]]]:
    """(class, arguments) of the layers of a `.keras` file, in the order in which they are computed."""
    try:
        with zipfile.ZipFile(path) as archive:
            layers = json.loads(archive.read("config.json"))["config"].get("layers", ())
        configs = [(str(layer["class_name"]), dict(layer["config"])) for layer in layers]
        return [(kind, config | {"name": str(config["name"])}) for kind, config in configs]
    except MemoryError:
        raise
    # Damaged bytes come out of zipfile and JSON as exceptions of every kind.
    except Exception as error:
        raise damaged(
            path, "Keras", f"its config.json says nothing of layers ({type(error).__name__} {error})"
        ) from error


def _layers_of_hdf5(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    import h5py

    found = []
    with h5py.File(path) as content:
        for group, layer in content.get("layers", {}).items():
            kind = "".join(word.title() for word in re.sub(r"_\d+$", "", group).split("_"))
            name = layer["vars"].attrs.get("name", "") if "vars" in layer else ""
            found.append((kind, name.decode() if isinstance(name, bytes) else str(name)))
    return found
