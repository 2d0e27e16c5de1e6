"""Makes the model that a checkpoint is of, at its own input size or another. Room: models."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple
from typing import Any

import keras

from keras_efficientformer import conversion
from keras_efficientformer.conversion.formats import Checkpoint
from keras_efficientformer.conversion.hub_config import normalization_beside
from keras_efficientformer.conversion.stated import Stated
from keras_efficientformer.labels import Labels
from keras_efficientformer.layers.image_normalization import normalization_arguments
from keras_efficientformer.layers.initialization import weights_follow
from keras_efficientformer.layers.names import HEADS, MASKS, PREDICTIONS
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.models.assembly import POOLINGS, with_channels
from keras_efficientformer.models.efficientformer import (
    EfficientFormer,
    EfficientFormerL1,
    EfficientFormerL3,
    EfficientFormerL7,
)
from keras_efficientformer.models.efficientformer_v2 import (
    EfficientFormerV2,
    EfficientFormerV2L,
    EfficientFormerV2S0,
    EfficientFormerV2S1,
    EfficientFormerV2S2,
)
from keras_efficientformer.models.sources import HUB, local_file
from keras_efficientformer.variants import AnyArchitecture, Architecture, ArchitectureV2, model_name

PUBLISHED: dict[str, Callable[..., keras.Model]] = {
    "l1": EfficientFormerL1,
    "l3": EfficientFormerL3,
    "l7": EfficientFormerL7,
    "v2_s0": EfficientFormerV2S0,
    "v2_s1": EfficientFormerV2S1,
    "v2_s2": EfficientFormerV2S2,
    "v2_l": EfficientFormerV2L,
}
# The keys are the classes of the families' architectures.
NETWORKS: dict[type[AnyArchitecture], Callable[..., keras.Model]] = {
    Architecture: EfficientFormer,
    ArchitectureV2: EfficientFormerV2,
}


def build(architecture: AnyArchitecture, **arguments: Any) -> keras.Model:
    """A model of this shape with fresh weights; the arguments are those of `EfficientFormer` after its shape."""
    return NETWORKS[type(architecture)](*astuple(architecture), **arguments)


def read_source(source: str | os.PathLike[str] | Checkpoint) -> Checkpoint:
    """The tensors of a checkpoint file, of a repository of the hub, or as they have been read already."""
    if isinstance(source, Checkpoint):
        return source
    return conversion.read_checkpoint(local_file(source) if str(source).startswith(HUB) else source)


def from_checkpoint(
    path: str | os.PathLike[str] | Checkpoint,
    *,
    input_shape: tuple[int, ...] | None = None,
    classifier_activation: Any = "auto",
    adapt_channels: bool = False,
    include_preprocessing: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Labels | None = None,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> keras.Model:
    """Makes the model that a checkpoint file is of, with the file's depths, widths, classes, heads and input size.

    Args:
        path: a checkpoint, as for `weights` of `EfficientFormer`; or "hf://owner/name", a repository of the
            Hugging Face hub that holds one; or what `conversion.read_checkpoint` returned.
        input_shape: (h, w) or (h, w, channels), both sides at least 32; None means the size that the file states, else
            the largest that its attention biases are of, and the channels are the file's.
        classifier_activation: activation of the classifier, `"softmax"`, `None` for logits, or any Keras activation;
            `"auto"` means what the file states, as .keras and .safetensors files of this package do, else softmax.
        adapt_channels: whether a file for RGB images may become a model for images of other channels, by timm's rule
            (`adapt_input_conv`): for one channel the filters' sum over colours, for more the filters repeated, and
            scaled so that an equal image in all channels gives what it gave.
        include_preprocessing: as for `EfficientFormer`.
        labels: as for `EfficientFormer`; None means what the file states.
        mean: as for `EfficientFormer`; None means what the file states, or timm's config.json or transformers'
            preprocessor_config.json beside it, else ImageNet's.
        std: likewise.
        progress: wraps the iteration over the model's variables, e.g. `rich.progress.track`.

    Returns:
        A `keras.Model` like `EfficientFormer`'s: with `head="average"` where the file has two heads, `"single"` where
        it has one, and without the top where it has none.

    Raises:
        ValueError: `input_shape` is wrong or needed and not given, or the checkpoint is unfit.
        OSError: the file cannot be read or downloaded.
    """
    state_dict = read_source(path)
    path = state_dict.source
    info = conversion.infer_variant(state_dict)
    if input_shape is None:
        if info.input_size is None:
            raise ValueError(f"{path} does not say for which input size it is: pass `input_shape`.")
        input_shape = (*info.input_size, info.channels)
    input_shape = with_channels(input_shape, info.channels)
    stated = state_dict.stated
    if mean is None and std is None:
        mean, std = _stated_normalization(stated, path, input_shape[2])
    if classifier_activation == "auto":
        classifier_activation = stated.activation or "softmax"
    if labels is None and info.heads:
        labels = stated.labels
    if adapt_channels:
        state_dict = conversion.adapt_channels(state_dict, input_shape[2])
    with weights_follow():
        model = build(
            info.architecture,
            include_top=info.heads > 0,
            input_shape=input_shape,
            classes=info.classes or 1,
            classifier_activation=classifier_activation,
            **({"name": model_name(info.variant)} if info.variant else {}),
            head="average" if info.heads == 2 else "single",
            include_preprocessing=include_preprocessing,
            mean=mean,
            std=std,
            labels=labels,
        )
    conversion.load_state_dict(model, state_dict, progress)
    return model


def _stated_normalization(
    stated: Stated, path: str | os.PathLike[str], channels: int
) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """The mean and the deviation that a checkpoint, or the configuration beside it, states for so many channels."""
    for mean, std in ((stated.mean, stated.std), normalization_beside(path) or (None, None)):
        if mean is not None and len(mean) == channels:
            return mean, std
    return None, None


def at_size(model: keras.Model, input_shape: tuple[int, ...]) -> keras.Model:
    """A new model like one of this package, with its weights, for images of another size.

    Args:
        model: it ends in nothing that `EfficientFormer` does not make: what stands on that would be left out.
        input_shape: (h, w, channels).

    Raises:
        ValueError: the shape is wrong, or the model gives masks.
    """
    layers = {layer.name: layer for layer in model.layers}
    if MASKS in layers:
        own = model.inputs[0].shape[1:3]
        raise ValueError(
            f"{model.name} gives masks of images of {own[0]}x{own[1]} pixels and no others. Received: "
            f"{input_shape[0]}x{input_shape[1]}; leave the size out, or fine-tune it at that size."
        )
    architecture = conversion.architecture_of(model)
    pooling = next((choice for choice, (_, name) in POOLINGS.items() if name in layers), None)
    top: dict[str, Any] = {"include_top": False, "pooling": pooling}
    if HEADS[0] in layers:
        head = "both" if len(model.outputs) == 2 else "average" if HEADS[1] in layers else "single"
        activation = layers[PREDICTIONS[0]].activation
        classes = layers[HEADS[0]].units
        top = {"classes": classes, "classifier_activation": activation, "head": head, "labels": labels_of(model)}
    with weights_follow():
        resized = build(architecture, input_shape=input_shape, name=model.name, **top, **normalization_arguments(model))
    conversion.load_state_dict(resized, conversion.to_state_dict(model))
    return resized
