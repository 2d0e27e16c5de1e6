"""Writes the configuration by which timm makes a model and loads its weights from the hub. Room: sharing.

transformers reads the same file: what has timm's "pretrained_cfg" it opens with timm. Keys of its own would make it
look for other tensors in the same checkpoint.
"""

from typing import Any

import keras

from keras_efficientformer.conversion.bindings import architecture_of, bindings
from keras_efficientformer.layers.image_normalization import normalization_of
from keras_efficientformer.layers.names import HEADS
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.segmentation.decoder import is_segmenter
from keras_efficientformer.variants import AnyArchitecture, Architecture, model_name, variant_name, variants_of

# timm's EfficientFormer has attention for this grid of tokens alone, whatever the size of its images.
TIMM_GRID = (7, 7)
# By class of architecture: timm's name of the convolution that reads the image.
FIRST_CONVOLUTION: dict[str, str] = {"EfficientFormer": "stem.conv1", "EfficientFormerV2": "stem.conv1.conv"}
TIMM_SIZE = 224


def timm_reads(model: keras.Model) -> bool:
    """Whether timm has a network that takes a model's weights; it has none that gives masks."""
    if is_segmenter(model):
        return False
    if not isinstance(architecture_of(model), Architecture):
        return True
    return all(binding.resolution in (None, TIMM_GRID) for binding in bindings(model))


def timm_config(model: keras.Model, crop: float) -> dict[str, Any]:
    """The content of a repository's config.json, plain values.

    Args:
        model: a classifier of this package.
        crop: share of the resized image's side that evaluation keeps.

    Returns:
        As timm's `save_config_for_hf` writes it; without "architecture" where timm has no such network, so that timm
        refuses the repository and does not guess.
    """
    architecture = architecture_of(model)
    height, width, channels = (int(side) for side in model.inputs[0].shape[1:])
    classes = int(next(layer for layer in model.layers if layer.name == HEADS[0]).units)
    normalization, labels = normalization_of(model), labels_of(model)
    stated = {"mean": list(normalization.mean), "std": list(normalization.std)} if normalization else {}
    names = {"label_names": list(labels)} if labels else {}
    network = _network(architecture, (height, width), channels) if timm_reads(model) else {}
    return {
        **network,
        "num_classes": classes,
        "num_features": architecture.widths[-1],
        "global_pool": "avg",
        **names,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [channels, height, width],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": crop,
            "crop_mode": "center",
            **stated,
            "num_classes": classes,
            "pool_size": None,
            "first_conv": FIRST_CONVOLUTION[architecture.family],
            "classifier": list(HEADS),
        },
    }


def _network(architecture: AnyArchitecture, size: tuple[int, int], channels: int) -> dict[str, Any]:
    """The name of timm's function, and what it is given beside the number of classes."""
    variant = variant_name(architecture)
    arguments: dict[str, Any] = {}
    if variant is None:
        # timm has no function for a shape of one's own; those of its variants take one.
        variant = variants_of(type(architecture))[0]
        arguments |= {"depths": list(architecture.depths), "embed_dims": list(architecture.widths)}
        if isinstance(architecture, Architecture):
            arguments["num_vit"] = architecture.num_meta3d
        else:
            arguments["num_vit"] = architecture.num_attention
            arguments["mlp_ratios"] = [list(ratios) for ratios in architecture.mlp_ratios]
    if size != (TIMM_SIZE, TIMM_SIZE):
        arguments["img_size"] = list(size)
    if channels != 3:
        arguments["in_chans"] = channels
    return {"architecture": model_name(variant), **({"model_args": arguments} if arguments else {})}
