"""What a checkpoint of this package says of its model beside the tensors: labels, normalisation, activation.

It stands in the metadata of .safetensors files, where other tools pass over it. Room: conversion.
"""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from keras_efficientformer.errors import CheckpointError
from keras_efficientformer.labels import class_names

# The entry in the metadata, a JSON object with the fields of `Stated`.
STATED = "keras_efficientformer"


@dataclass(frozen=True)
class Stated:
    """Facts of a model; None where nothing is said.

    Attributes:
        labels: class names in the order of the outputs.
        mean, std: one number for each channel, of pixels scaled to 0..1.
        activation: Keras' name of the classifier's activation, e.g. "sigmoid".
        output_stride: how many pixels of the image, in both directions, one of a segmentation model's masks stands for.
    """

    labels: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    activation: str | None = None
    output_stride: int | None = None

    def to_json(self) -> str:
        """The facts as a JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, path: str | os.PathLike[str]) -> "Stated":
        """The facts that a file's metadata hold; entries that this version does not know are passed over.

        Raises:
            CheckpointError: they are damaged.
        """
        try:
            content: Any = json.loads(text)
            labels, activation = content.get("labels"), content.get("activation")
            mean, std = (None if content.get(n) is None else tuple(map(float, content[n])) for n in ("mean", "std"))
            stride = content.get("output_stride")
            are_numbers = (mean is None) == (std is None) and isinstance(stride, int | None)
            if not are_numbers or not isinstance(activation, str | None):
                raise ValueError(f"mean={mean}, std={std}, activation={activation!r}, output_stride={stride!r}")
            return cls(None if labels is None else class_names(labels), mean, std, activation, stride)
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} has metadata of this package that are damaged ({error}). Bring the file again."
            ) from error


NOTHING_STATED = Stated()
