"""Makes segmentation models: a Semantic FPN of standard Keras layers on a backbone's stages. Room: segmentation.

Source: Panoptic Feature Pyramid Networks (arXiv 1901.02446), section 3.2, as mmsegmentation's FPN and FPNHead build it
and EfficientFormer (2206.01191, section 5.2) uses it.
"""

from numbers import Real
from typing import Any

import keras
from keras import layers

from keras_efficientformer.conversion.bindings import family_of, layers_of
from keras_efficientformer.labels import Labels, class_names
from keras_efficientformer.layers.names import MASKS, STEM
from keras_efficientformer.layers.normalization import BATCH_NORM_MOMENTUM, NORM_EPSILON
from keras_efficientformer.layers.predictions import Predictions
from keras_efficientformer.models.assembly import is_integer, require_channels_last
from keras_efficientformer.models.pyramid import LEVELS, feature_pyramid
from keras_efficientformer.variants import Architecture, ArchitectureV2

FEATURE_NORMS = ("batch", "group", None)
PIXEL_ACTIVATIONS = ("softmax", "linear")
OUTPUT_STRIDES = (1, 2, 4)
COARSEST = 32
# What the paper's segmentation code puts on the stages' outputs of each family.
PAPER_FEATURE_NORMS = {Architecture: "group", ArchitectureV2: None}
ADE20K_CLASSES = 150


def SemanticFPN(
    backbone: keras.Model,
    classes: int,
    pyramid_channels: int = 64,
    head_channels: int = 64,
    feature_norm: str | None = "batch",
    activation: str | None = "softmax",
    output_stride: int = 1,
    *,
    labels: Labels | None = None,
    dropout: float = 0.1,
    name: str | None = None,
) -> keras.Model:
    """A segmentation model on a backbone, whose layers and weights it shares.

    Args:
        backbone: an EfficientFormer of either family, with or without the top; both sides of its images are multiples
            of 32 pixels.
        classes: number of classes, an integer >= 2; the background, where there is one, is one of them.
        pyramid_channels: channels of the pyramid's levels.
        head_channels: channels of the head. The paper has 256 and 128, which cost three times the backbone at 512x512.
        feature_norm: what is put on each of the stages' outputs: "batch" (BatchNorm), "group" (GroupNorm of one group,
            as the paper has it for the first family) or None (as for the second).
        activation: "softmax", or None for logits.
        output_stride: how many pixels of the image, in both directions, one of the masks stands for: 1, 2 or 4. Below 4
            the logits are enlarged, bilinear, before the activation.
        labels: the names of the classes, as for `labels.class_names`, kept with the model.
        dropout: rate of the dropout of whole channels before the logits, in [0, 1).
        name: of the model; None means the backbone's with "_semantic_fpn".

    Returns:
        A `keras.Model` from the backbone's images, float (batch, height, width, channels), to float probabilities or
        logits (batch, height / output_stride, width / output_stride, classes).

    Raises:
        ValueError: an argument is out of its range, or the backbone is no EfficientFormer of this package.
    """
    require_channels_last()
    _check(backbone, classes, pyramid_channels, head_channels, feature_norm, activation, output_stride)
    if not isinstance(dropout, Real) or not 0 <= dropout < 1:
        raise ValueError(f"`dropout` should be in the range [0, 1). Received: dropout={dropout!r}")
    names = None if labels is None else class_names(labels, int(classes))
    pyramid = _pyramid(backbone, pyramid_channels, feature_norm)
    x = layers.Add(name="head_sum")([_to_finest(x, level, head_channels) for level, x in pyramid.items()])
    x = layers.SpatialDropout2D(dropout, name="head_dropout")(x)
    x = layers.Conv2D(int(classes), 1, name="logits")(x)
    if output_stride < 4:
        x = layers.UpSampling2D(4 // output_stride, interpolation="bilinear", name="logits_enlarged")(x)
    # Under a mixed policy the probabilities are float32, as Keras' guide to mixed precision asks for.
    dtype = keras.config.dtype_policy().variable_dtype
    x = Predictions(activation, names, dtype=dtype, name=MASKS)(x)
    return keras.Model(backbone.input, x, name=name or f"{backbone.name}_semantic_fpn")


def paper_semantic_fpn(backbone: keras.Model, classes: int = ADE20K_CLASSES, **arguments: Any) -> keras.Model:
    """The paper's segmentation model: 256 channels in the pyramid, 128 in the head, its norms of the stages' outputs.

    Args:
        backbone: as of `SemanticFPN`; the paper's is for images of 512x512.
        classes: number of classes; ADE20K has 150.
        arguments: `activation`, `output_stride`, `labels`, `dropout` and `name` of `SemanticFPN`.

    Returns, raises: as `SemanticFPN`.

    References:
        EfficientFormer (arXiv 2206.01191), section 5.2; snap-research/EfficientFormer, segmentation/.
    """
    return SemanticFPN(backbone, classes, 256, 128, PAPER_FEATURE_NORMS[family_of(backbone)], **arguments)


def _check(
    backbone: keras.Model,
    classes: int,
    pyramid_channels: int,
    head_channels: int,
    feature_norm: str | None,
    activation: str | None,
    output_stride: int,
) -> None:
    numbers = {"classes": (classes, 2), "pyramid_channels": (pyramid_channels, 1), "head_channels": (head_channels, 1)}
    for name, (number, least) in numbers.items():
        if not is_integer(number) or number < least:
            raise ValueError(f"`{name}` should be an integer >= {least}. Received: {name}={number!r}")
    choices = {
        "feature_norm": (feature_norm, FEATURE_NORMS),
        "activation": (activation, (*PIXEL_ACTIVATIONS, None)),
        "output_stride": (output_stride, OUTPUT_STRIDES),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"`{name}` should be one of {', '.join(map(repr, allowed))}. Received: {name}={value!r}")
    # Layers before the network may give it images of another size than the model's.
    sides = tuple(layers_of(backbone)[STEM].input.shape[1:3])
    if any(side % COARSEST for side in sides):
        raise ValueError(
            f"{backbone.name} takes images of {sides[0]}x{sides[1]} pixels, and a pyramid needs sides that are "
            f"multiples of {COARSEST}: make it with another `input_shape`."
        )


def _pyramid(backbone: keras.Model, channels: int, norm: str | None) -> dict[str, Any]:
    """{level: feature map of `channels`}, finest first, to each of which the coarser ones are added."""
    stages = dict(zip(LEVELS, feature_pyramid(backbone).outputs, strict=True))
    laterals = {
        level: layers.Conv2D(channels, 1, name=f"{level}_lateral")(_normalised(x, level, norm))
        for level, x in stages.items()
    }
    above = None
    for level, x in reversed(laterals.items()):
        if above is not None:
            above = layers.UpSampling2D(2, interpolation="nearest", name=f"{level}_from_above")(above)
            laterals[level] = layers.Add(name=f"{level}_sum")([x, above])
        above = laterals[level]
    return {
        level: layers.Conv2D(channels, 3, padding="same", name=f"{level}_pyramid")(x) for level, x in laterals.items()
    }


def _normalised(x: Any, level: str, norm: str | None) -> Any:
    if norm == "batch":
        return layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=NORM_EPSILON, name=f"{level}_norm")(x)
    return layers.GroupNormalization(1, epsilon=NORM_EPSILON, name=f"{level}_norm")(x) if norm else x


def doublings_of(level: str) -> int:
    """How often a level has to be enlarged to twice its size until it is as large as the finest."""
    return list(LEVELS).index(level)


def _to_finest(x: Any, level: str, channels: int) -> Any:
    """A level enlarged to the size of the finest, twice at a time with a convolution before each."""
    doublings = doublings_of(level)
    for number in range(max(doublings, 1)):
        name = f"{level}_head{number + 1}"
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
        x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=NORM_EPSILON, name=f"{name}_norm")(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
        if doublings:
            x = layers.UpSampling2D(2, interpolation="bilinear", name=f"{name}_enlarged")(x)
    return x
