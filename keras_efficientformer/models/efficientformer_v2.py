"""Makes the models of the second family: any shape, and the published S0, S1, S2 and L. Room: models.

Source: EfficientFormerV2 (arXiv 2212.08059), section 3.
"""

import os
from collections.abc import Sequence
from dataclasses import astuple
from numbers import Real
from typing import Any

import keras
import numpy as np

from keras_efficientformer.labels import Labels
from keras_efficientformer.layers.names import NORM, STAGES, STEM
from keras_efficientformer.layers.normalization import batch_norm
from keras_efficientformer.layers.v2 import StageV2, StemV2
from keras_efficientformer.models.assembly import ModelArguments, assemble, depths_and_widths, is_integer
from keras_efficientformer.variants import VARIANTS_V2, ArchitectureV2


def EfficientFormerV2(
    depths: Sequence[int],
    widths: Sequence[int],
    num_attention: int,
    mlp_ratios: Sequence[Sequence[float]],
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = None,
    input_tensor: Any = None,
    input_shape: tuple[int, int, int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    name: str = "efficientformerv2",
    *,
    head: str = "average",
    drop_path_rate: float = 0.0,
    include_preprocessing: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Labels | None = None,
) -> keras.Model:
    """An EfficientFormerV2 of any depths and widths.

    Args:
        depths: blocks in each of the four stages, four integers >= 0.
        widths: channels of the four stages, four integers >= 1, the first even.
        num_attention: how many blocks of the third and of the fourth stage, counted from their ends, have attention
            (`AttentionV2`); all of a stage's blocks where it has fewer, which one of the two may.
        mlp_ratios: for each stage, for each of its blocks: the FFN's hidden channels as a multiple of the width.
        include_top: whether to end in the classifier. Without it the output is the feature map after the final
            BatchNorm, float (batch, ceil(h/32), ceil(w/32), width of the last stage).
        weights: `None` (random initialisation), or the path of a checkpoint: `.safetensors`, `.pth`, `.pt` or `.bin` in
            timm's or snap-research's tensor names, `.keras` or `.weights.h5` of such a model. Attention bias tables are
            resized to the input's size.
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
        Rethinking Vision Transformers for MobileNet Size and Speed (arXiv 2212.08059), section 3;
        snap-research/EfficientFormer; timm's efficientformer_v2.py.
    """
    depths, widths = depths_and_widths(depths, widths)
    _check_attention(num_attention, depths)
    architecture = ArchitectureV2(depths, widths, int(num_attention), _ratios(mlp_ratios, depths))
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
    return EfficientFormerV2(*astuple(VARIANTS_V2[variant]), **arguments)


def EfficientFormerV2S0(
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = "imagenet",
    input_tensor: Any = None,
    input_shape: tuple[int, int, int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    name: str = "efficientformerv2_s0",
    *,
    head: str = "average",
    drop_path_rate: float = 0.0,
    include_preprocessing: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Labels | None = None,
) -> keras.Model:
    """EfficientFormerV2-S0: 3.6 million parameters, 0.4 GMACs at 224x224.

    Args:
        include_top: whether to end in the classifier. Without it the output is the feature map after the final
            BatchNorm, float (batch, ceil(h/32), ceil(w/32), width of the last stage).
        weights: `None` (random initialisation), `"imagenet"` (downloaded once and checked), or the path of a
            checkpoint: `.safetensors`, `.pth`, `.pt` or `.bin` in timm's or snap-research's tensor names, `.keras` or
            `.weights.h5` of such a model. Attention bias tables are resized to the input's size.
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
        Rethinking Vision Transformers for MobileNet Size and Speed (arXiv 2212.08059), section 3;
        snap-research/EfficientFormer; timm's efficientformer_v2.py.
    """
    return _published("v2_s0", **locals())


def EfficientFormerV2S1(
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = "imagenet",
    input_tensor: Any = None,
    input_shape: tuple[int, int, int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    name: str = "efficientformerv2_s1",
    *,
    head: str = "average",
    drop_path_rate: float = 0.0,
    include_preprocessing: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Labels | None = None,
) -> keras.Model:
    """EfficientFormerV2-S1: 6.2 million parameters, 0.7 GMACs at 224x224.

    Args:
        include_top: whether to end in the classifier. Without it the output is the feature map after the final
            BatchNorm, float (batch, ceil(h/32), ceil(w/32), width of the last stage).
        weights: `None` (random initialisation), `"imagenet"` (downloaded once and checked), or the path of a
            checkpoint: `.safetensors`, `.pth`, `.pt` or `.bin` in timm's or snap-research's tensor names, `.keras` or
            `.weights.h5` of such a model. Attention bias tables are resized to the input's size.
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
        Rethinking Vision Transformers for MobileNet Size and Speed (arXiv 2212.08059), section 3;
        snap-research/EfficientFormer; timm's efficientformer_v2.py.
    """
    return _published("v2_s1", **locals())


def EfficientFormerV2S2(
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = "imagenet",
    input_tensor: Any = None,
    input_shape: tuple[int, int, int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    name: str = "efficientformerv2_s2",
    *,
    head: str = "average",
    drop_path_rate: float = 0.0,
    include_preprocessing: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Labels | None = None,
) -> keras.Model:
    """EfficientFormerV2-S2: 12.7 million parameters, 1.2 GMACs at 224x224.

    Args:
        include_top: whether to end in the classifier. Without it the output is the feature map after the final
            BatchNorm, float (batch, ceil(h/32), ceil(w/32), width of the last stage).
        weights: `None` (random initialisation), `"imagenet"` (downloaded once and checked), or the path of a
            checkpoint: `.safetensors`, `.pth`, `.pt` or `.bin` in timm's or snap-research's tensor names, `.keras` or
            `.weights.h5` of such a model. Attention bias tables are resized to the input's size.
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
        Rethinking Vision Transformers for MobileNet Size and Speed (arXiv 2212.08059), section 3;
        snap-research/EfficientFormer; timm's efficientformer_v2.py.
    """
    return _published("v2_s2", **locals())


def EfficientFormerV2L(
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = "imagenet",
    input_tensor: Any = None,
    input_shape: tuple[int, int, int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    name: str = "efficientformerv2_l",
    *,
    head: str = "average",
    drop_path_rate: float = 0.0,
    include_preprocessing: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: Labels | None = None,
) -> keras.Model:
    """EfficientFormerV2-L: 26.3 million parameters, 2.6 GMACs at 224x224.

    Args:
        include_top: whether to end in the classifier. Without it the output is the feature map after the final
            BatchNorm, float (batch, ceil(h/32), ceil(w/32), width of the last stage).
        weights: `None` (random initialisation), `"imagenet"` (downloaded once and checked), or the path of a
            checkpoint: `.safetensors`, `.pth`, `.pt` or `.bin` in timm's or snap-research's tensor names, `.keras` or
            `.weights.h5` of such a model. Attention bias tables are resized to the input's size.
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
        Rethinking Vision Transformers for MobileNet Size and Speed (arXiv 2212.08059), section 3;
        snap-research/EfficientFormer; timm's efficientformer_v2.py.
    """
    return _published("v2_l", **locals())


def _backbone(x: Any, architecture: ArchitectureV2, drop_path_rate: float) -> Any:
    """Feature map (batch, h, w, 3) -> normalised features (batch, ceil(h/32), ceil(w/32), widths[-1])."""
    rates = np.linspace(0, drop_path_rate, sum(architecture.depths)).tolist()
    x = StemV2(architecture.widths[0], name=STEM)(x)
    for index, (width, ratios) in enumerate(zip(architecture.widths, architecture.mlp_ratios, strict=True)):
        drop_path, rates = rates[: len(ratios)], rates[len(ratios) :]
        stage = StageV2(
            width,
            ratios,
            num_attention=min(architecture.num_attention, len(ratios)) if index >= 2 else 0,
            strided=index == 2,
            downsample=(None, "convolution", "convolution", "dual-path")[index],
            drop_path=drop_path,
            name=STAGES[index],
        )
        x = stage(x)
    return batch_norm(NORM, None)(x)


def _check_attention(num_attention: int, depths: tuple[int, ...]) -> None:
    if not is_integer(num_attention) or not 0 <= num_attention <= max(depths[2:]):
        raise ValueError(
            "`num_attention` should be between 0 and the depth of the third or fourth stage, whichever is deeper. "
            f"Received: num_attention={num_attention}, depths={depths}"
        )


def _ratios(mlp_ratios: Sequence[Sequence[float]], depths: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """The FFNs' ratios as tuples, after they have been checked."""
    lists = Sequence | np.ndarray
    are_lists = isinstance(mlp_ratios, lists) and all(isinstance(ratios, lists) for ratios in mlp_ratios)
    if (
        not are_lists
        or tuple(map(len, mlp_ratios)) != depths
        or not all(isinstance(ratio, Real) and ratio > 0 for ratios in mlp_ratios for ratio in ratios)
    ):
        raise ValueError(
            "`mlp_ratios` should have for each stage one number > 0 for each of its blocks. "
            f"Received: mlp_ratios={mlp_ratios}, depths={depths}"
        )
    return tuple(map(tuple, mlp_ratios))
