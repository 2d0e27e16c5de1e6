"""Makes the models of the first family: any depths and widths, and the published L1, L3 and L7. Room: models.

Source: EfficientFormer (arXiv 2206.01191), section 4.
"""

import os
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import keras
import numpy as np

from keras_efficientformer.labels import Labels
from keras_efficientformer.layers.names import NORM, STAGES, STEM
from keras_efficientformer.layers.normalization import layer_norm
from keras_efficientformer.layers.v1 import Stage, Stem
from keras_efficientformer.models.assembly import ModelArguments, assemble, depths_and_widths, is_integer
from keras_efficientformer.variants import VARIANTS, Architecture


def EfficientFormer(
    depths: Sequence[int],
    widths: Sequence[int],
    num_meta3d: int = 1,
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = None,
    input_tensor: Any = None,
    input_shape: tuple[int, int, int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    name: str = "efficientformer",
    *,
    head: str = "average",
    drop_path_rate: float = 0.0,
    include_preprocessing: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Labels | None = None,
) -> keras.Model:
    """An EfficientFormer of any depths and widths.

    Args:
        depths: blocks in each of the four stages, four integers >= 0.
        widths: channels of the four stages, four integers >= 1, the first even.
        num_meta3d: how many of the last stage's blocks, counted from its end, have attention (`Meta3D`).
        include_top: whether to end in the classifier. Without it the output is the feature map after the final
            LayerNorm, float (batch, ceil(h/32), ceil(w/32), width of the last stage).
        weights: `None` (random initialisation), or the path of a checkpoint: `.safetensors`, `.pth`, `.pt` or `.bin` in
            timm's, snap-research's or transformers' tensor names, `.keras` or `.weights.h5` of such a model. Attention
            bias tables are resized to the input's size.
        input_tensor: optional Keras tensor (batch, h, w, 3) to use as the model's input.
        input_shape: optional (h, w, 3), both sides at least 32, square or not; `None` means (224, 224, 3).
        pooling: without the top: `None`, `"avg"` (mean over positions: the embedding, rank 2) or `"max"`.
        classes: number of classes, an integer >= 1; 1000 with ImageNet's weights and the top.
        classifier_activation: activation of the classifier: `"softmax"`, `None` for logits, or any Keras activation;
            with ImageNet's weights `None` or `"softmax"`.
        name: name of the model.
        head: `"average"` (the activation of the mean of the two heads' logits, which published accuracies need),
            `"both"` (two outputs: the head trained on labels, then the one trained on a teacher) or `"single"`
            (the first head alone; the one choice for checkpoints that have a single head).
        drop_path_rate: rate of stochastic depth of the last block, in [0, 1); it grows linearly from 0 at the first.
        include_preprocessing: whether the model takes raw pixels in 0..255 and normalises them itself.
        mean: of pixels scaled to 0..1, a number for each channel, by which images are normalised, inside or before;
            `None` means ImageNet's. All that prepares images for the model reads it from there.
        std: their standard deviation, with `mean`.
        labels: the names of the classes, a list, a file or a dictionary as for `labels.class_names`, kept with the
            model; `None` means ImageNet's with its weights, else none.

    Returns:
        A `keras.Model`, channels last: float images (batch, h, w, 3), normalised by `preprocess_input` or raw -> float
        class probabilities in [0, 1], or logits, (batch, classes). The outputs of the layers "stage1" to "stage4" are
        feature maps with strides of 4, 8, 16 and 32 pixels.

    Raises:
        ValueError: an argument is out of its range, or a checkpoint does not fit (`conversion.CheckpointError`).
        OSError: a file cannot be read, or the weights cannot be downloaded (`pretrained.DownloadError`).

    References:
        EfficientFormer: Vision Transformers at MobileNet Speed (arXiv 2206.01191), section 4 and appendix;
        snap-research/EfficientFormer; timm's efficientformer.py.
    """
    depths, widths = depths_and_widths(depths, widths)
    _check_meta3d(num_meta3d, depths)
    architecture = Architecture(depths, widths, int(num_meta3d))
    return assemble(
        _backbone,
        architecture,
        ModelArguments(
            include_top=include_top,
            weights=weights,
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            name=name,
            head=head,
            drop_path_rate=drop_path_rate,
            include_preprocessing=include_preprocessing,
            mean=mean,
            std=std,
            labels=labels,
        ),
    )


def _published(variant: str, **arguments: Any) -> keras.Model:
    """A published variant with the arguments that its function was called with."""
    return EfficientFormer(*astuple(VARIANTS[variant]), **arguments)


def EfficientFormerL1(
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = "imagenet",
    input_tensor: Any = None,
    input_shape: tuple[int, int, int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    name: str = "efficientformer_l1",
    *,
    head: str = "average",
    drop_path_rate: float = 0.0,
    include_preprocessing: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Labels | None = None,
) -> keras.Model:
    """EfficientFormer-L1: 12.3 million parameters, 1.3 GMACs at 224x224.

    Args:
        include_top: whether to end in the classifier. Without it the output is the feature map after the final
            LayerNorm, float (batch, ceil(h/32), ceil(w/32), width of the last stage).
        weights: `None` (random initialisation), `"imagenet"` or `"imagenet-300"` (downloaded once and checked), or the
            path of a checkpoint: `.safetensors`, `.pth`, `.pt` or `.bin` in timm's, snap-research's or transformers'
            tensor names, `.keras` or `.weights.h5` of such a model. Attention bias tables are resized to the input's
            size.
        input_tensor: optional Keras tensor (batch, h, w, 3) to use as the model's input.
        input_shape: optional (h, w, 3), both sides at least 32, square or not; `None` means (224, 224, 3).
        pooling: without the top: `None`, `"avg"` (mean over positions: the embedding, rank 2) or `"max"`.
        classes: number of classes, an integer >= 1; 1000 with ImageNet's weights and the top.
        classifier_activation: activation of the classifier: `"softmax"`, `None` for logits, or any Keras activation;
            with ImageNet's weights `None` or `"softmax"`.
        name: name of the model.
        head: `"average"` (the activation of the mean of the two heads' logits, which published accuracies need),
            `"both"` (two outputs: the head trained on labels, then the one trained on a teacher) or `"single"`
            (the first head alone; the one choice for checkpoints that have a single head).
        drop_path_rate: rate of stochastic depth of the last block, in [0, 1); it grows linearly from 0 at the first.
        include_preprocessing: whether the model takes raw pixels in 0..255 and normalises them itself.
        mean: of pixels scaled to 0..1, a number for each channel, by which images are normalised, inside or before;
            `None` means ImageNet's. All that prepares images for the model reads it from there.
        std: their standard deviation, with `mean`.
        labels: the names of the classes, a list, a file or a dictionary as for `labels.class_names`, kept with the
            model; `None` means ImageNet's with its weights, else none.

    Returns:
        A `keras.Model`, channels last: float images (batch, h, w, 3), normalised by `preprocess_input` or raw -> float
        class probabilities in [0, 1], or logits, (batch, classes). The outputs of the layers "stage1" to "stage4" are
        feature maps with strides of 4, 8, 16 and 32 pixels.

    Raises:
        ValueError: an argument is out of its range, or a checkpoint does not fit (`conversion.CheckpointError`).
        OSError: a file cannot be read, or the weights cannot be downloaded (`pretrained.DownloadError`).

    References:
        EfficientFormer: Vision Transformers at MobileNet Speed (arXiv 2206.01191), section 4 and appendix;
        snap-research/EfficientFormer; timm's efficientformer.py.
    """
    return _published("l1", **locals())


def EfficientFormerL3(
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = "imagenet",
    input_tensor: Any = None,
    input_shape: tuple[int, int, int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    name: str = "efficientformer_l3",
    *,
    head: str = "average",
    drop_path_rate: float = 0.0,
    include_preprocessing: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Labels | None = None,
) -> keras.Model:
    """EfficientFormer-L3: 31.4 million parameters, 3.9 GMACs at 224x224.

    Args:
        include_top: whether to end in the classifier. Without it the output is the feature map after the final
            LayerNorm, float (batch, ceil(h/32), ceil(w/32), width of the last stage).
        weights: `None` (random initialisation), `"imagenet"` (downloaded once and checked), or the path of a
            checkpoint: `.safetensors`, `.pth`, `.pt` or `.bin` in timm's, snap-research's or transformers' tensor
            names, `.keras` or `.weights.h5` of such a model. Attention bias tables are resized to the input's size.
        input_tensor: optional Keras tensor (batch, h, w, 3) to use as the model's input.
        input_shape: optional (h, w, 3), both sides at least 32, square or not; `None` means (224, 224, 3).
        pooling: without the top: `None`, `"avg"` (mean over positions: the embedding, rank 2) or `"max"`.
        classes: number of classes, an integer >= 1; 1000 with ImageNet's weights and the top.
        classifier_activation: activation of the classifier: `"softmax"`, `None` for logits, or any Keras activation;
            with ImageNet's weights `None` or `"softmax"`.
        name: name of the model.
        head: `"average"` (the activation of the mean of the two heads' logits, which published accuracies need),
            `"both"` (two outputs: the head trained on labels, then the one trained on a teacher) or `"single"`
            (the first head alone; the one choice for checkpoints that have a single head).
        drop_path_rate: rate of stochastic depth of the last block, in [0, 1); it grows linearly from 0 at the first.
        include_preprocessing: whether the model takes raw pixels in 0..255 and normalises them itself.
        mean: of pixels scaled to 0..1, a number for each channel, by which images are normalised, inside or before;
            `None` means ImageNet's. All that prepares images for the model reads it from there.
        std: their standard deviation, with `mean`.
        labels: the names of the classes, a list, a file or a dictionary as for `labels.class_names`, kept with the
            model; `None` means ImageNet's with its weights, else none.

    Returns:
        A `keras.Model`, channels last: float images (batch, h, w, 3), normalised by `preprocess_input` or raw -> float
        class probabilities in [0, 1], or logits, (batch, classes). The outputs of the layers "stage1" to "stage4" are
        feature maps with strides of 4, 8, 16 and 32 pixels.

    Raises:
        ValueError: an argument is out of its range, or a checkpoint does not fit (`conversion.CheckpointError`).
        OSError: a file cannot be read, or the weights cannot be downloaded (`pretrained.DownloadError`).

    References:
        EfficientFormer: Vision Transformers at MobileNet Speed (arXiv 2206.01191), section 4 and appendix;
        snap-research/EfficientFormer; timm's efficientformer.py.
    """
    return _published("l3", **locals())


def EfficientFormerL7(
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = "imagenet",
    input_tensor: Any = None,
    input_shape: tuple[int, int, int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    name: str = "efficientformer_l7",
    *,
    head: str = "average",
    drop_path_rate: float = 0.0,
    include_preprocessing: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Labels | None = None,
) -> keras.Model:
    """EfficientFormer-L7: 82.2 million parameters, 10.2 GMACs at 224x224.

    Args:
        include_top: whether to end in the classifier. Without it the output is the feature map after the final
            LayerNorm, float (batch, ceil(h/32), ceil(w/32), width of the last stage).
        weights: `None` (random initialisation), `"imagenet"` (downloaded once and checked), or the path of a
            checkpoint: `.safetensors`, `.pth`, `.pt` or `.bin` in timm's, snap-research's or transformers' tensor
            names, `.keras` or `.weights.h5` of such a model. Attention bias tables are resized to the input's size.
        input_tensor: optional Keras tensor (batch, h, w, 3) to use as the model's input.
        input_shape: optional (h, w, 3), both sides at least 32, square or not; `None` means (224, 224, 3).
        pooling: without the top: `None`, `"avg"` (mean over positions: the embedding, rank 2) or `"max"`.
        classes: number of classes, an integer >= 1; 1000 with ImageNet's weights and the top.
        classifier_activation: activation of the classifier: `"softmax"`, `None` for logits, or any Keras activation;
            with ImageNet's weights `None` or `"softmax"`.
        name: name of the model.
        head: `"average"` (the activation of the mean of the two heads' logits, which published accuracies need),
            `"both"` (two outputs: the head trained on labels, then the one trained on a teacher) or `"single"`
            (the first head alone; the one choice for checkpoints that have a single head).
        drop_path_rate: rate of stochastic depth of the last block, in [0, 1); it grows linearly from 0 at the first.
        include_preprocessing: whether the model takes raw pixels in 0..255 and normalises them itself.
        mean: of pixels scaled to 0..1, a number for each channel, by which images are normalised, inside or before;
            `None` means ImageNet's. All that prepares images for the model reads it from there.
        std: their standard deviation, with `mean`.
        labels: the names of the classes, a list, a file or a dictionary as for `labels.class_names`, kept with the
            model; `None` means ImageNet's with its weights, else none.

    Returns:
        A `keras.Model`, channels last: float images (batch, h, w, 3), normalised by `preprocess_input` or raw -> float
        class probabilities in [0, 1], or logits, (batch, classes). The outputs of the layers "stage1" to "stage4" are
        feature maps with strides of 4, 8, 16 and 32 pixels.

    Raises:
        ValueError: an argument is out of its range, or a checkpoint does not fit (`conversion.CheckpointError`).
        OSError: a file cannot be read, or the weights cannot be downloaded (`pretrained.DownloadError`).

    References:
        EfficientFormer: Vision Transformers at MobileNet Speed (arXiv 2206.01191), section 4 and appendix;
        snap-research/EfficientFormer; timm's efficientformer.py.
    """
    return _published("l7", **locals())


def _backbone(x: Any, architecture: Architecture, drop_path_rate: float) -> Any:
    """Feature map (batch, h, w, 3) -> normalised features (batch, ceil(h/32), ceil(w/32), widths[-1])."""
    rates = np.linspace(0, drop_path_rate, sum(architecture.depths)).tolist()
    x = Stem(architecture.widths[0], name=STEM)(x)
    for index, (depth, width) in enumerate(zip(architecture.depths, architecture.widths, strict=True)):
        num_meta3d = architecture.num_meta3d if index == 3 else 0
        drop_path, rates = rates[:depth], rates[depth:]
        x = Stage(width, depth, num_meta3d, downsample=index > 0, drop_path=drop_path, name=STAGES[index])(x)
    return layer_norm(NORM)(x)


def _check_meta3d(num_meta3d: int, depths: tuple[int, ...]) -> None:
    if not is_integer(num_meta3d) or not 0 <= num_meta3d <= depths[3]:
        raise ValueError(
            f"`num_meta3d` should be between 0 and the last stage's depth. "
            f"Received: num_meta3d={num_meta3d}, depths={depths}"
        )
