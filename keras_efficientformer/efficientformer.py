"""The models: `EfficientFormer` for any depths and widths, and the published L1, L3 and L7 (arXiv 2206.01191)."""

import os
from numbers import Integral

import keras
import numpy as np

from keras_efficientformer import conversion, pretrained
from keras_efficientformer.layers import Stage, Stem, layer_norm, linear
from keras_efficientformer.variants import VARIANTS, Architecture, variant_name

DEFAULT_SIZE = 224
MIN_SIZE = 32
HEADS = ("average", "both", "single")
POOLINGS = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}

_DOCSTRING = """{summary}

    Args:{own}
        include_top: whether to end in the classifier. Without it the output is the feature map after the final
            LayerNorm, float (batch, ceil(h/32), ceil(w/32), width of the last stage).
        weights: `None` (random initialisation), {names}or the path of a checkpoint: `.safetensors`, `.pth`, `.pt` or
            `.bin` in timm's, snap-research's or transformers' tensor names, `.keras` or `.weights.h5` of such a model.
            Attention bias tables are resized to the input's size.
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

    Returns:
        A `keras.Model`, channels last: float images (batch, h, w, 3) normalised by `preprocess_input` -> float class
        probabilities in [0, 1], or logits, (batch, classes). The outputs of the layers "stage1" to "stage4" are
        feature maps with strides of 4, 8, 16 and 32 pixels.

    Raises:
        ValueError: an argument is out of its range, or a checkpoint does not fit (`conversion.CheckpointError`).
        OSError: a file cannot be read, or the weights cannot be downloaded (`pretrained.DownloadError`).

    References:
        EfficientFormer: Vision Transformers at MobileNet Speed (arXiv 2206.01191), section 4 and appendix;
        snap-research/EfficientFormer; timm's efficientformer.py.
"""


def EfficientFormer(
    depths,
    widths,
    num_meta3d=1,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="efficientformer",
    *,
    head="average",
    drop_path_rate=0.0,
):
    architecture = Architecture(tuple(depths), tuple(widths), num_meta3d)
    _check_architecture(architecture)
    _check_arguments(weights, include_top, pooling, classes, head, drop_path_rate)
    state_dict = _read_weights(architecture, weights, include_top, classes, classifier_activation)
    image = _image_input(input_tensor, input_shape)

    x = _backbone(image, architecture, drop_path_rate)
    if include_top:
        x = _classifier(x, classes, classifier_activation, head)
    elif pooling is not None:
        x = POOLINGS[pooling](name=f"{pooling}_pool")(x)
    inputs = [image] if input_tensor is None else keras.utils.get_source_inputs(input_tensor)
    model = keras.Model(inputs[0] if len(inputs) == 1 else inputs, x, name=name)

    if state_dict is not None:
        conversion.load_state_dict(model, state_dict)
    return model


def from_checkpoint(path, *, input_shape=None, classifier_activation="softmax", progress=iter):
    """The model that a checkpoint file is of: its depths, widths, classes, heads and input size are read from the file.

    Args:
        path: a checkpoint, as for `weights` of `EfficientFormer`.
        input_shape: (h, w, 3), both sides at least 32; None means the size that the attention biases are of.
        classifier_activation: activation of the classifier, `"softmax"`, `None` for logits, or any Keras activation.
        progress: wraps the iteration over the model's variables, e.g. `rich.progress.track`.

    Returns:
        A `keras.Model` like `EfficientFormer`'s: with `head="average"` where the file has two heads, `"single"` where
        it has one, and without the top where it has none.

    Raises:
        ValueError: `input_shape` is wrong or needed and not given, or the checkpoint is unfit.
        OSError: the file cannot be read.
    """
    state_dict = conversion.read_checkpoint(path)
    info = conversion.infer_variant(state_dict)
    if input_shape is None:
        if info.resolution is None:
            raise ValueError(f"{path} does not say for which input size it is: pass `input_shape`.")
        # 32 pixels for each of the last stage's positions.
        input_shape = (*(32 * side for side in info.resolution), 3)
    model = EfficientFormer(
        info.architecture.depths,
        info.architecture.widths,
        info.architecture.num_meta3d,
        include_top=info.heads > 0,
        input_shape=input_shape,
        classes=info.classes or 1,
        classifier_activation=classifier_activation,
        name=f"efficientformer_{info.variant}" if info.variant else "efficientformer",
        head="average" if info.heads == 2 else "single",
    )
    conversion.load_state_dict(model, state_dict, progress)
    return model


def _entry_point(variant, summary):
    """The function for one row of `VARIANTS`, with keras.applications' signature."""
    names = " or ".join(f'`"{key}"`' for key in pretrained.names(variant))

    def entry_point(
        include_top=True,
        weights="imagenet",
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=1000,
        classifier_activation="softmax",
        name=f"efficientformer_{variant}",
        *,
        head="average",
        drop_path_rate=0.0,
    ):
        architecture = VARIANTS[variant]
        return EfficientFormer(
            architecture.depths,
            architecture.widths,
            architecture.num_meta3d,
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
        )

    entry_point.__name__ = entry_point.__qualname__ = f"EfficientFormer{variant.upper()}"
    names = f"{names} (downloaded once and checked), "
    entry_point.__doc__ = _DOCSTRING.format(summary=summary, own="", names=names)
    return entry_point


EfficientFormer.__doc__ = _DOCSTRING.format(
    summary="An EfficientFormer of any depths and widths.",
    own="""
        depths: blocks in each of the four stages, four integers >= 0.
        widths: channels of the four stages, four integers >= 1, the first even.
        num_meta3d: how many of the last stage's blocks, counted from its end, have attention (`Meta3D`).""",
    names="",
)

EfficientFormerL1 = _entry_point("l1", "EfficientFormer-L1: 12.3 million parameters, 1.3 GMACs at 224x224.")
EfficientFormerL3 = _entry_point("l3", "EfficientFormer-L3: 31.4 million parameters, 3.9 GMACs at 224x224.")
EfficientFormerL7 = _entry_point("l7", "EfficientFormer-L7: 82.2 million parameters, 10.2 GMACs at 224x224.")


def _backbone(x, architecture, drop_path_rate):
    """Feature map (batch, h, w, 3) -> normalised features (batch, ceil(h/32), ceil(w/32), widths[-1])."""
    rates = np.linspace(0, drop_path_rate, sum(architecture.depths)).tolist()
    x = Stem(architecture.widths[0], name="stem")(x)
    for index, (depth, width) in enumerate(zip(architecture.depths, architecture.widths, strict=True)):
        num_meta3d = architecture.num_meta3d if index == 3 else 0
        drop_path, rates = rates[:depth], rates[depth:]
        x = Stage(width, depth, num_meta3d, downsample=index > 0, drop_path=drop_path, name=f"stage{index + 1}")(x)
    return layer_norm("norm")(x)


def _classifier(x, classes, activation, head):
    """Features (batch, h, w, channels) -> probabilities or logits (batch, classes), or two of them."""
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    logits = [linear(classes, "head")(x)]
    if head != "single":
        logits.append(linear(classes, "head_dist")(x))
    if head == "average":
        logits = [keras.layers.Average(name="head_average")(logits)]
    # Under a mixed policy the probabilities are float32, as Keras' guide to mixed precision asks for.
    dtype = keras.config.dtype_policy().variable_dtype
    names = ("predictions", "predictions_dist")
    outputs = [keras.layers.Activation(activation, dtype=dtype, name=n)(x) for n, x in zip(names, logits, strict=False)]
    return outputs if head == "both" else outputs[0]


def _image_input(input_tensor, input_shape):
    if input_tensor is not None and input_shape is None:
        input_shape = tuple(input_tensor.shape[1:])
    shape = (DEFAULT_SIZE, DEFAULT_SIZE, 3) if input_shape is None else tuple(input_shape)
    if len(shape) != 3 or any(not isinstance(side, Integral) for side in shape):
        raise ValueError(
            "`input_shape` must be a tuple of three integers (height, width, channels): the attention biases belong "
            f"to one input size. Received: input_shape={input_shape}"
        )
    if min(shape[:2]) < MIN_SIZE:
        raise ValueError(f"Input size must be at least {MIN_SIZE}x{MIN_SIZE}; Received: input_shape={shape}")
    if input_tensor is None:
        return keras.layers.Input(shape=shape)
    if not keras.backend.is_keras_tensor(input_tensor):
        return keras.layers.Input(tensor=input_tensor, shape=shape)
    if tuple(input_tensor.shape[1:]) != shape:
        raise ValueError(
            f"`input_tensor` and `input_shape` differ. Received: input_tensor of shape {tuple(input_tensor.shape)}, "
            f"input_shape={shape}"
        )
    return input_tensor


def _read_weights(architecture, weights, include_top, classes, activation):
    """The state dict that `weights` names, or None. Read before the model is built, so that mistakes cost no wait."""
    if weights is None:
        return None
    variant = variant_name(architecture)
    if weights not in pretrained.names(variant):
        if not os.path.exists(weights):
            raise pretrained.unknown_weights(variant, weights)
        return conversion.read_checkpoint(weights)
    if include_top and classes != 1000:
        raise ValueError(
            f"If using `weights={weights!r}` with `include_top=True`, `classes` should be 1000. "
            f"Received classes={classes}"
        )
    if include_top and keras.activations.get(activation) not in (keras.activations.softmax, keras.activations.linear):
        raise ValueError(
            f"When using pretrained weights, `classifier_activation` can only be `None` or 'softmax'. "
            f"Received: classifier_activation={activation}"
        )
    return conversion.read_checkpoint(pretrained.download(variant, weights))


def _check_architecture(architecture):
    depths, widths, num_meta3d = architecture.depths, architecture.widths, architecture.num_meta3d
    if len(depths) != 4 or any(depth < 0 for depth in depths):
        raise ValueError(f"`depths` should be four integers >= 0. Received: depths={depths}")
    if len(widths) != 4 or any(width < 1 for width in widths) or widths[0] % 2:
        raise ValueError(f"`widths` should be four integers >= 1, the first even. Received: widths={widths}")
    if not 0 <= num_meta3d <= depths[3]:
        raise ValueError(
            f"`num_meta3d` should be between 0 and the last stage's depth. "
            f"Received: num_meta3d={num_meta3d}, depths={depths}"
        )


def _check_arguments(weights, include_top, pooling, classes, head, drop_path_rate):
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "EfficientFormer is channels-last only. Received: keras.config.image_data_format()='channels_first'; "
            "call keras.config.set_image_data_format('channels_last') first."
        )
    if weights is not None and not isinstance(weights, str | os.PathLike):
        raise ValueError(f"`weights` should be `None`, a name or a path. Received: weights={weights!r}")
    if pooling is not None and pooling not in POOLINGS:
        raise ValueError(f"`pooling` should be None, 'avg' or 'max'. Received: pooling={pooling!r}")
    if include_top and (not isinstance(classes, Integral) or classes < 1):
        raise ValueError(f"`classes` should be an integer >= 1. Received: classes={classes}")
    if head not in HEADS:
        raise ValueError(f"`head` should be one of {HEADS}. Received: head={head!r}")
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"`drop_path_rate` should be in the range [0, 1). Received: drop_path_rate={drop_path_rate}")
