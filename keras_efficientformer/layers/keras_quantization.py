"""Finds what Keras itself has done to weights that are read: quantized them, or put LoRA on them. Room: layers."""

from typing import Any

import keras

from keras_efficientformer.errors import listing


def check_not_quantized(model: keras.Model) -> None:
    """Raises ValueError for a model that Keras has quantized: its kernels are integers of scales of their own."""
    _check([layer for layer in model._flatten_layers() if _mode(layer)], model.name)


def check_savable(layer: keras.layers.Layer) -> None:
    """Raises ValueError where a layer with layers inside cannot be saved as it is: their policies would be lost."""
    _check([inner for inner in layer._flatten_layers() if _mode(inner)], layer.name)


def _check(found: list[Any], name: str) -> None:
    if found:
        raise ValueError(
            f"{name} was quantized by Keras ({_mode(found[0])}) in {listing([layer.path for layer in found])}, and "
            "such weights can be neither exported, converted, trained nor saved here. Take the model as it was before "
            "`model.quantize`: exports quantize it themselves, and `training.quantize_aware` trains for that."
        )


def _mode(layer: Any) -> str | None:
    return getattr(layer, "quantization_mode", None)


def has_lora(layer: Any) -> bool:
    """Whether Keras' LoRA is on a layer, whose kernel is then a sum of three variables."""
    return bool(getattr(layer, "lora_enabled", False))


def check_without_lora(model: keras.Model) -> None:
    """Raises ValueError for a model with LoRA, into which no weights can be loaded."""
    found = [layer.path for layer in model._flatten_layers() if has_lora(layer)]
    if found:
        raise ValueError(
            f"{model.name} has LoRA on {listing(found)}, whose kernels are sums of several variables. Load the weights "
            "before `enable_lora`."
        )
