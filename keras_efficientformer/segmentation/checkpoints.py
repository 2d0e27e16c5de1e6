"""Reads and writes segmentation checkpoints of snap-research, which mmsegmentation trained. Room: segmentation.

A checkpoint has mmsegmentation's parts, `backbone`, `neck` and `decode_head`. The backbone's attention has tables of
its own, `attention_biases_seg`, for images of 512x512; beside them lie those for classification, zero and unused.
Where this package has BatchNorms on the stages' outputs, they have the names of snap-research's norms there.
Source: snap-research/EfficientFormer, segmentation/backbone.py and backbonev2.py; mmsegmentation's FPN and FPNHead.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_efficientformer import conversion
from keras_efficientformer.conversion.bindings import (
    Binding,
    batch_norm_bindings,
    bindings,
    layer_norm_bindings,
    to_torch_layout,
)
from keras_efficientformer.conversion.checkpoint import arrays_of, input_size_of, source_name
from keras_efficientformer.conversion.formats import Checkpoint, StateDict
from keras_efficientformer.conversion.state_dict import fitting, remember_source, stated_of
from keras_efficientformer.errors import CheckpointError, listing
from keras_efficientformer.labels import Labels
from keras_efficientformer.layers.initialization import weights_follow
from keras_efficientformer.layers.names import NORM
from keras_efficientformer.models.assembly import with_channels
from keras_efficientformer.models.opening import build, read_source
from keras_efficientformer.models.pyramid import LEVELS
from keras_efficientformer.segmentation.decoder import backbone_of, decoder_arguments
from keras_efficientformer.segmentation.semantic_fpn import SemanticFPN, doublings_of
from keras_efficientformer.variants import model_name

BACKBONE = "backbone."
SEGMENTATION_SUFFIX = "_seg"
PUBLISHED_SIDE = 512
LOGITS = "decode_head.conv_seg"
# What counts a BatchNorm's batches, which Keras does not.
COUNTER = "num_batches_tracked"
# The backbone's norms of the stages' outputs are these; snap-research has them in the first family alone.
FEATURE_NORM_NAMES = tuple(f"norm{2 * number}" for number in range(len(LEVELS)))
# The shapes of a classifier's indices, by whether its attention downsamples; its tables are as long as the second side.
CLASSIFIER_INDICES = {False: (49, 49), True: (49, 196)}


def from_checkpoint(
    path: str | os.PathLike[str] | Checkpoint,
    *,
    input_shape: tuple[int, ...] | None = None,
    activation: str | None = "auto",
    output_stride: int | None = None,
    labels: Labels | None = None,
) -> keras.Model:
    """Makes the segmentation model that a checkpoint of snap-research's segmentation code is of.

    Args:
        path: the checkpoint, `.pth` or any other file that `conversion.read_checkpoint` takes; or what that returned;
            or "hf://owner/name", a repository of the Hugging Face hub that holds one.
        input_shape: (h, w) or (h, w, channels), both sides multiples of 32; None means the size that the attention
            biases are of, 512x512 in snap-research's. For another size their tables are resized, where mmsegmentation
            resizes what they are spread to: results then differ.
        activation: as of `SemanticFPN`; "auto" means what the file states, as .safetensors files of this package do,
            else softmax.
        output_stride: as of `SemanticFPN`; None means what the file states, else 1.
        labels: as of `SemanticFPN`; None means what the file states.

    Returns:
        A `SemanticFPN` with the checkpoint's backbone, channels, classes and feature norms.

    Raises:
        CheckpointError: the file holds another network, lacks tensors or has more, or values that are not finite.
        ValueError: an argument is out of its range.
        OSError: the file cannot be read or downloaded.
    """
    state_dict = read_source(path)
    backbone, head = _parts(state_dict)
    info = conversion.infer_variant(Checkpoint(backbone, state_dict.source, input_size=state_dict.input_size))
    stated = state_dict.stated
    size = input_shape if input_shape is not None else info.input_size or (PUBLISHED_SIDE, PUBLISHED_SIDE)
    with weights_follow():
        base = build(
            info.architecture,
            include_top=False,
            input_shape=with_channels(size, info.channels),
            mean=stated.mean,
            std=stated.std,
            **({"name": model_name(info.variant)} if info.variant else {}),
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in head.items()}
    model = SemanticFPN(
        base,
        classes=_first(shapes, f"{LOGITS}.weight", state_dict.source),
        pyramid_channels=_first(shapes, "neck.lateral_convs.0.conv.weight", state_dict.source),
        head_channels=_first(shapes, "decode_head.scale_heads.0.0.conv.weight", state_dict.source),
        feature_norm=_feature_norm(head),
        activation=(stated.activation or "softmax") if activation == "auto" else activation,
        output_stride=(stated.output_stride or 1) if output_stride is None else output_stride,
        labels=stated.labels if labels is None else labels,
    )
    load_state_dict(model, state_dict)
    return model


def load_state_dict(model: keras.Model, state_dict: Mapping[str, Any]) -> None:
    """Loads a state dict of snap-research's segmentation code into a segmentation model, strictly.

    Every weight of the model is written once and every tensor is used, but for buffers and the tables for
    classification. Nothing is assigned before everything has been checked.

    Args:
        model: a `SemanticFPN`.
        state_dict: {tensor name: array}, as `conversion.read_checkpoint` returns it, or PyTorch's own.

    Raises:
        CheckpointError: names or shapes differ from the model's, or values are not finite.
        ValueError: the model is no `SemanticFPN`.
    """
    source = source_name(state_dict)
    backbone, head = _parts(state_dict)
    wanted = {binding.name: binding for binding in _head_bindings(model)}
    values, _ = fitting(head, wanted, {name for name in head if name.endswith(COUNTER)}, source)
    base = backbone_of(model)
    # Its last norm is a fresh one, and segmentation does without.
    last = {b.name: np.ones(b.torch_shape, "float32") for b in bindings(base) if b.name.startswith(f"{NORM}.")}
    conversion.load_state_dict(base, Checkpoint(backbone | last, source, input_size=input_size_of(state_dict)))
    for name, binding in wanted.items():
        binding.variable.assign(values[name])
    remember_source(model, getattr(state_dict, "source", None))


def to_state_dict(model: keras.Model) -> StateDict:
    """A segmentation model's weights under the names of snap-research's segmentation code.

    Args:
        model: a `SemanticFPN`. snap-research's modules strictly load what is returned of one for images of 512x512 with
            their norms of the stages' outputs, "group" in the first family and None in the second; of another size, the
            tables of attention are those of that size.

    Returns:
        {tensor name: contiguous array}, float32 weights and int64 buffers; as a `StateDict`, as of
            `conversion.to_state_dict`.

    Raises:
        ValueError: the model is no `SemanticFPN`.
    """
    head = {binding.name: to_torch_layout(binding.value, binding.kind) for binding in _head_bindings(model)}
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in conversion.to_state_dict(backbone_of(model), "snap").items():
        if name.startswith(f"{NORM}."):
            continue
        module, _, leaf = name.rpartition(".")
        if leaf in ("attention_biases", "attention_bias_idxs"):
            indices = np.ones(CLASSIFIER_INDICES[module.endswith("attn")], "int64")
            unused = indices if leaf == "attention_bias_idxs" else np.zeros((len(tensor), indices.shape[1]), "float32")
            tensors[f"{BACKBONE}{name}"] = unused
            name += SEGMENTATION_SUFFIX
        tensors[f"{BACKBONE}{name}"] = tensor
    counters = {
        f"{name.rpartition('.')[0]}.{COUNTER}": np.zeros((), "int64") for name in head if name.endswith("running_var")
    }
    height, width = model.inputs[0].shape[1:3]
    stated = replace(stated_of(model), output_stride=decoder_arguments(model)["output_stride"])
    return StateDict(tensors | head | counters, (height, width), stated)


def _first(shapes: Mapping[str, tuple[int, ...]], name: str, source: str) -> int:
    """The first side of a tensor, which tells how many channels the model has."""
    if not shapes.get(name):
        raise CheckpointError(
            f"{source} is no checkpoint of a Semantic FPN: it lacks {name}. Found {listing(sorted(shapes))}."
        )
    return shapes[name][0]


def _feature_norm(head: Mapping[str, np.ndarray]) -> str | None:
    """`SemanticFPN`'s `feature_norm` of a checkpoint with these tensors beside its backbone's."""
    norm = f"{BACKBONE}{FEATURE_NORM_NAMES[0]}"
    return "batch" if f"{norm}.running_var" in head else "group" if f"{norm}.weight" in head else None


def _parts(state_dict: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(the backbone's tensors under the names that snap's classifiers have, all others)."""
    source = source_name(state_dict)
    tensors = arrays_of(state_dict, source)
    has_own_tables = any(name.endswith(f"attention_biases{SEGMENTATION_SUFFIX}") for name in tensors)
    unused = ("attention_biases", "attention_bias_idxs") if has_own_tables else ()
    backbone, head = {}, {}
    for name, tensor in tensors.items():
        inner = name.removeprefix(BACKBONE)
        if inner == name or inner.partition(".")[0] in FEATURE_NORM_NAMES:
            head[name] = tensor
        elif not name.endswith(unused):
            backbone[inner.removesuffix(SEGMENTATION_SUFFIX)] = tensor
    if not backbone:
        raise CheckpointError(
            f"{source} is no checkpoint of snap-research's segmentation code: no tensor's name begins with {BACKBONE}. "
            f"Found {listing(sorted(tensors))}."
        )
    return backbone, head


def _head_bindings(model: keras.Model) -> Iterator[Binding]:
    """Every variable of everything but the backbone, under its name in snap-research's code.

    Raises:
        ValueError: the model is no `SemanticFPN`.
    """
    feature_norm = decoder_arguments(model)["feature_norm"]
    layers = {layer.name: layer for layer in model.layers}
    for number, level in enumerate(LEVELS):
        if feature_norm:
            norm_bindings = batch_norm_bindings if feature_norm == "batch" else layer_norm_bindings
            yield from norm_bindings(f"{BACKBONE}{FEATURE_NORM_NAMES[number]}", layers[f"{level}_norm"])
        yield from _convolution(f"neck.lateral_convs.{number}.conv", layers[f"{level}_lateral"])
        yield from _convolution(f"neck.fpn_convs.{number}.conv", layers[f"{level}_pyramid"])
        for step in range(max(doublings_of(level), 1)):
            # Every other module of the sequence enlarges.
            module, layer = f"decode_head.scale_heads.{number}.{2 * step}", f"{level}_head{step + 1}"
            yield from _convolution(f"{module}.conv", layers[f"{layer}_conv"])
            yield from batch_norm_bindings(f"{module}.bn", layers[f"{layer}_norm"])
    yield from _convolution(LOGITS, layers["logits"])


def _convolution(name: str, layer: Any) -> Iterator[Binding]:
    yield Binding(f"{name}.weight", "conv", layer.kernel)
    if layer.use_bias:
        yield Binding(f"{name}.bias", "vector", layer.bias)
