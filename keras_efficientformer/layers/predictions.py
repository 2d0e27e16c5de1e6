"""Ends a classifier or a segmentation model, and remembers the names of its classes. Room: layers."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_efficientformer.labels import class_names
from keras_efficientformer.layers.names import MASKS, PREDICTIONS


@keras.saving.register_keras_serializable(package="keras_efficientformer")
class Predictions(keras.layers.Activation):
    """The activation of the classes' logits; it knows the classes' names, which are saved with the model.

    Args:
        activation: as of `keras.layers.Activation`.
        labels: the names in the order of the logits, or None where they are not known.

    Input and output: float (batch, ..., classes).
    """

    def __init__(self, activation: Any, labels: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(activation, **kwargs)
        self.labels = None if labels is None else class_names(labels)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "labels": None if self.labels is None else list(self.labels)}


def labels_of(model: keras.Model) -> tuple[str, ...] | None:
    """The names of a model's classes in the order of its outputs; None where they are not known."""
    found = [layer for layer in model.layers if layer.name in (PREDICTIONS[0], MASKS)]
    return getattr(found[0], "labels", None) if found else None
