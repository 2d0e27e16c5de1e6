"""Renames the tensors of `.weights.h5` and `.keras` files to timm's names and layouts. Room: conversion.

Keras' `load_weights` would leave a model half loaded where a file does not fit, and cannot resize the attention biases
or leave a classifier out. As state dicts, Keras' files pass the same checks as PyTorch's.
"""

import re
from collections.abc import Mapping

import numpy as np

from keras_efficientformer.conversion.bindings import to_torch_layout
from keras_efficientformer.layers.common import relative_positions
from keras_efficientformer.layers.v2_attention import downsampling_positions

# Keras names a layer's place in its weights files by class and order, and its variables by number.
_PLACES = (
    (r"^layers/stem/step(\d)/conv/", r"stem.conv\1."),
    (r"^layers/stem/step(\d)/norm/", r"stem.norm\1."),
    (r"^layers/stem_v2/", "stem."),
    (r"^layers/(layer|batch)_normalization/", "norm."),
    (r"^layers/dense/", "head."),
    (r"^layers/dense_1/", "head_dist."),
    (r"^layers/stage/", "stages.0."),
    (r"^layers/stage_(\d)/", r"stages.\1."),
    (r"^layers/stage_v2/", "stages.0."),
    (r"^layers/stage_v2_(\d)/", r"stages.\1."),
)
_LEAVES = ("weight", "bias", "running_mean", "running_var")
_DEPTHWISE = re.compile(r"\.(mid\.conv|v_local\.conv|stride_conv\.conv|q\.local)\.weight$")
_NOT_WEIGHTS = re.compile(r"^optimizer/|^metrics/|seed_generator|^_\w+/|^vars/")


def to_timm_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a Keras weights file under timm's names and in PyTorch's layouts.

    Args:
        tensors: {HDF5 path: array}.

    Returns:
        {timm's name: contiguous array}; what is no EfficientFormer's keeps its path, optimizer state is left out.
    """
    num_meta4d = len({name.split("/")[3] for name in tensors if name.startswith("layers/stage_3/blocks/meta4d")})
    renamed = {}
    for path, array in tensors.items():
        if _NOT_WEIGHTS.search(path):
            continue
        name = _timm_name(path, num_meta4d)
        if name.endswith(".attention_bias_idxs"):
            positions = downsampling_positions if ".downsample." in name else relative_positions
            renamed[name] = positions([int(side) for side in array])
            continue
        kind = {4: "conv", 2: "dense"}.get(array.ndim) if name.endswith(".weight") else None
        kind = "depthwise" if kind == "conv" and _DEPTHWISE.search(name) else kind
        renamed[name] = to_torch_layout(array, kind)
    return renamed


def _timm_name(path: str, num_meta4d: int) -> str:
    name = path
    for pattern, replacement in _PLACES:
        name = re.sub(pattern, replacement, name)
    name = re.sub(r"blocks/block_v2(?:_(\d+))?/", lambda m: f"blocks.{m[1] or 0}.", name)
    name = re.sub(r"blocks/meta4d(?:_(\d+))?/", lambda m: f"blocks.{m[1] or 0}.", name)
    name = re.sub(r"blocks/meta3d(?:_(\d+))?/", lambda m: f"blocks.{int(m[1] or 0) + num_meta4d + 1}.", name)
    match = re.fullmatch(r"(stem|norm|head|head_dist|stages)(\..*)vars/([0-3]|resolution)", name)
    if match is None:
        return path
    module = (match[1] + match[2]).replace("/", ".")
    if match[3] == "resolution":
        return module + "attention_bias_idxs"
    if re.search(r"\.ls\d\.$", module):
        return module + "gamma"
    if module.endswith(("token_mixer.", "attn.")):
        return module + "attention_biases"
    return module + _LEAVES[int(match[3])]
