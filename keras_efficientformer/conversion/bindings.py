"""Lists every variable of a model once, under the name that timm gives it. Room: conversion.

Conversion reads this list in both directions. The layers' attributes repeat timm's names, so the list is short.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_efficientformer.errors import listing
from keras_efficientformer.layers.common import BiasedAttention, LayerScale
from keras_efficientformer.layers.keras_quantization import check_not_quantized, has_lora
from keras_efficientformer.layers.names import BODY_LAYERS, HEADS, STAGES
from keras_efficientformer.layers.v1 import Stage
from keras_efficientformer.layers.v2 import BlockV2, DownsampleV2, StageV2
from keras_efficientformer.layers.v2_attention import ConvNorm
from keras_efficientformer.variants import AnyArchitecture, Architecture, ArchitectureV2, mlp_ratio

_TO_KERAS = {"conv": (2, 3, 1, 0), "depthwise": (2, 3, 0, 1), "dense": (1, 0)}
_TO_TORCH = {"conv": (3, 2, 0, 1), "depthwise": (2, 3, 0, 1), "dense": (1, 0)}


@dataclass(frozen=True)
class Binding:
    """One variable of a model and its tensor.

    Attributes:
        name: timm's name of the tensor.
        kind: how the two layouts differ: "conv" (OIHW and HWIO), "depthwise" (C1HW and HWC1), "dense" (OI and IO),
            "vector", "scale" (a layer scale) and "table" (alike).
        variable: the `keras.Variable`.
        resolution: of a "table", an attention's bias table: (height, width) of its token grid.
        positions: of a "table": its column for each pair of a query and a key, integers (queries, keys).
        lora: of a kernel, its layer where Keras' LoRA is on it; else None.
    """

    name: str
    kind: str
    variable: Any
    resolution: tuple[int, int] | None = None
    positions: np.ndarray | None = None
    lora: Any = None

    @property
    def value(self) -> np.ndarray:
        """What it holds, float32 in Keras' layout; of a kernel with LoRA the sum that the layer computes with."""
        value = self.variable if self.lora is None else self.lora.kernel
        return np.asarray(keras.ops.convert_to_numpy(value), dtype="float32")

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """The tensor's shape in PyTorch's layout."""
        shape = tuple(self.variable.shape)
        return tuple(shape[axis] for axis in _TO_TORCH[self.kind]) if self.kind in _TO_TORCH else shape


def to_keras_layout(tensor: np.ndarray, kind: str) -> np.ndarray:
    """An array in PyTorch's layout as a view in Keras'; one of another rank than the kind's is left as it is."""
    axes = _TO_KERAS.get(kind, ())
    return tensor.transpose(axes) if len(axes) == tensor.ndim else tensor


def to_torch_layout(array: np.ndarray, kind: str | None) -> np.ndarray:
    """An array in Keras' layout as a contiguous one in PyTorch's; one of None or any other kind has the same axes."""
    return np.ascontiguousarray(array.transpose(_TO_TORCH[kind]) if kind in _TO_TORCH else array)


def architecture_of(model: keras.Model) -> AnyArchitecture:
    """The shape of a model of this package.

    Raises:
        ValueError: the model is not an EfficientFormer of this package.
    """
    stages = [layers_of(model)[name] for name in STAGES]
    depths, widths = tuple(stage.depth for stage in stages), tuple(stage.dim for stage in stages)
    if family_of(model) is Architecture:
        return Architecture(depths, widths, stages[3].num_meta3d)
    # A checkpoint tells only the numbers of channels, so the ratios are computed from them here too.
    ratios = tuple(tuple(mlp_ratio(block.mlp.hidden_dim, block.dim) for block in stage.blocks) for stage in stages)
    return ArchitectureV2(depths, widths, max(stage.num_attention for stage in stages), ratios)


def family_of(model: keras.Model) -> type[AnyArchitecture]:
    """The class of the architectures of a model's family; the layers of both families have the same names.

    Raises:
        ValueError: the model is not an EfficientFormer of this package.
    """
    return family_of_stage(layers_of(model)[STAGES[0]])


def family_of_stage(stage: Stage | StageV2) -> type[AnyArchitecture]:
    """The class of the architectures of the family that a stage belongs to."""
    return ArchitectureV2 if isinstance(stage, StageV2) else Architecture


def layers_of(model: keras.Model) -> dict[str, Any]:
    """{name: layer} of an EfficientFormer of this package.

    Raises:
        ValueError: the model is none.
    """
    layers = {layer.name: layer for layer in getattr(model, "layers", ())}
    if any(name not in layers for name in BODY_LAYERS):
        raise ValueError(
            f"{model!r} is not an EfficientFormer of this package: expected the layers {', '.join(BODY_LAYERS)}, "
            f"found {listing(list(layers))}. If it is a part of the model, pass that part."
        )
    return layers


def bindings(model: keras.Model) -> list[Binding]:
    """Every variable of a model of this package, but for random generators' seeds, under timm's name for it.

    Raises:
        ValueError: the model is not an EfficientFormer of this package, was quantized by Keras, or has a variable that
            none has.
    """
    layers = layers_of(model)
    check_not_quantized(model)
    found = _BODIES[family_of(model)](layers)
    for head in HEADS:
        found += _dense(head, layers[head]) if head in layers else []
    bound = {id(binding.variable) for binding in found}
    foreign = [
        variable.path
        for variable in model.weights
        if id(variable) not in bound and not any(word in variable.path for word in ("seed", "lora_kernel"))
    ]
    if foreign:
        raise ValueError(
            f"The model has variables that no EfficientFormer has: {listing(foreign)}. Convert the EfficientFormer "
            "alone, before layers of your own are added to it."
        )
    return found


def _body(layers: Mapping[str, Any]) -> list[Binding]:
    found: list[Binding] = []
    for index, step in enumerate((layers["stem"].step1, layers["stem"].step2), start=1):
        found += [*_conv(f"stem.conv{index}", step.conv), *batch_norm_bindings(f"stem.norm{index}", step.norm)]
    for index in range(4):
        found += _stage(f"stages.{index}", layers[f"stage{index + 1}"])
    return found + layer_norm_bindings("norm", layers["norm"])


def _stage(name: str, stage: Stage) -> list[Binding]:
    found: list[Binding] = []
    if stage.downsample is not None:
        found += _conv(f"{name}.downsample.conv", stage.downsample.conv)
        found += batch_norm_bindings(f"{name}.downsample.norm", stage.downsample.norm)
    first_meta3d = stage.depth - stage.num_meta3d
    for index, block in enumerate(stage.blocks):
        if index < first_meta3d:
            found += _meta4d(f"{name}.blocks.{index}", block)
        else:
            # In timm the module that flattens the feature map takes an index of its own.
            found += _meta3d(f"{name}.blocks.{index + 1}", block)
    return found


def _meta4d(name: str, block: Any) -> list[Binding]:
    return [
        *_layer_scales(name, block),
        *_conv(f"{name}.mlp.fc1", block.mlp.fc1),
        *batch_norm_bindings(f"{name}.mlp.norm1", block.mlp.norm1),
        *_conv(f"{name}.mlp.fc2", block.mlp.fc2),
        *batch_norm_bindings(f"{name}.mlp.norm2", block.mlp.norm2),
    ]


def _meta3d(name: str, block: Any) -> list[Binding]:
    attention = block.token_mixer
    return [
        *_layer_scales(name, block),
        *layer_norm_bindings(f"{name}.norm1", block.norm1),
        *_dense(f"{name}.token_mixer.qkv", attention.qkv),
        *_dense(f"{name}.token_mixer.proj", attention.proj),
        _table(f"{name}.token_mixer", attention),
        *layer_norm_bindings(f"{name}.norm2", block.norm2),
        *_dense(f"{name}.mlp.fc1", block.mlp.fc1),
        *_dense(f"{name}.mlp.fc2", block.mlp.fc2),
    ]


def _layer_scales(name: str, block: Any) -> list[Binding]:
    return [_scale(f"{name}.ls{number}", layer) for number, layer in ((1, block.ls1), (2, block.ls2))]


def _body_v2(layers: Mapping[str, Any]) -> list[Binding]:
    stem = layers["stem"]
    found = [*_conv_norm("stem.conv1", stem.conv1), *_conv_norm("stem.conv2", stem.conv2)]
    for index in range(4):
        stage, name = layers[f"stage{index + 1}"], f"stages.{index}"
        if stage.downsample is not None:
            found += _downsample_v2(f"{name}.downsample", stage.downsample)
        for number, block in enumerate(stage.blocks):
            found += _block_v2(f"{name}.blocks.{number}", block)
    return found + batch_norm_bindings("norm", layers["norm"])


# The keys are the classes of the families' architectures.
_BODIES: dict[type[AnyArchitecture], Callable[[Mapping[str, Any]], list[Binding]]] = {
    Architecture: _body,
    ArchitectureV2: _body_v2,
}


def _downsample_v2(name: str, downsample: DownsampleV2) -> list[Binding]:
    found = _conv_norm(f"{name}.conv", downsample.conv)
    if downsample.attn is None:
        return found
    attention, attn = downsample.attn, f"{name}.attn"
    return [
        *found,
        *_conv(f"{attn}.q.local", attention.q.local, "depthwise"),
        *_conv_norm(f"{attn}.q.proj", attention.q.proj),
        *_attention_v2(attn, attention, ("k", "v", "v_local", "proj")),
    ]


def _block_v2(name: str, block: BlockV2) -> list[Binding]:
    found: list[Binding] = []
    if block.token_mixer is not None:
        mixer, attention = f"{name}.token_mixer", block.token_mixer
        found += [_scale(f"{name}.ls1", block.ls1)]
        if attention.stride_conv is not None:
            found += _conv_norm(f"{mixer}.stride_conv", attention.stride_conv)
        found += _attention_v2(mixer, attention, ("q", "k", "v", "v_local", "proj"))
        found += _conv(f"{mixer}.talking_head1", attention.talking_head1)
        found += _conv(f"{mixer}.talking_head2", attention.talking_head2)
    for part in ("fc1", "mid", "fc2"):
        found += _conv_norm(f"{name}.mlp.{part}", getattr(block.mlp, part))
    return [*found, _scale(f"{name}.ls2", block.ls2)]


def _attention_v2(name: str, attention: BiasedAttention, parts: Sequence[str]) -> list[Binding]:
    found = [_table(name, attention)]
    for part in parts:
        found += _conv_norm(f"{name}.{part}", getattr(attention, part))
    return found


def _conv_norm(name: str, layer: ConvNorm) -> list[Binding]:
    kind = "depthwise" if layer.depthwise else "conv"
    return [*_conv(f"{name}.conv", layer.conv, kind), *batch_norm_bindings(f"{name}.bn", layer.bn)]


def _table(name: str, attention: BiasedAttention) -> Binding:
    table = attention.attention_biases
    return Binding(f"{name}.attention_biases", "table", table, attention.grid, attention.positions)


def _scale(name: str, layer: LayerScale) -> Binding:
    return Binding(f"{name}.gamma", "scale", layer.gamma)


def _conv(name: str, layer: keras.layers.Layer, kind: str = "conv") -> list[Binding]:
    return [_kernel(name, layer, kind), Binding(f"{name}.bias", "vector", layer.bias)]


def _dense(name: str, layer: keras.layers.Layer) -> list[Binding]:
    return [_kernel(name, layer, "dense"), Binding(f"{name}.bias", "vector", layer.bias)]


def _kernel(name: str, layer: keras.layers.Layer, kind: str) -> Binding:
    if not has_lora(layer):
        return Binding(f"{name}.weight", kind, layer.kernel)
    (variable,) = [variable for variable in layer.weights if variable.name == "kernel"]
    return Binding(f"{name}.weight", kind, variable, lora=layer)


def layer_norm_bindings(name: str, layer: keras.layers.Layer) -> list[Binding]:
    """The variables of a norm of that name which keeps no statistics."""
    return [Binding(f"{name}.weight", "vector", layer.gamma), Binding(f"{name}.bias", "vector", layer.beta)]


def batch_norm_bindings(name: str, layer: keras.layers.Layer) -> list[Binding]:
    """The variables of a BatchNorm of that name."""
    return [
        *layer_norm_bindings(name, layer),
        Binding(f"{name}.running_mean", "vector", layer.moving_mean),
        Binding(f"{name}.running_var", "vector", layer.moving_variance),
    ]
