"""What the models of both families share: arguments and their checks, input, top, weights, docstrings.

A family brings its backbone, a function of an image, and says what its shape is (`variants`); the rest is here.
"""

import contextlib
import os
from dataclasses import astuple
from numbers import Integral

import keras

from keras_efficientformer import conversion, pretrained
from keras_efficientformer.initialization import weights_follow
from keras_efficientformer.layers import linear
from keras_efficientformer.variants import class_name, model_name, variant_name

DEFAULT_SIZE = 224
MIN_SIZE = 32
HEADS = ("average", "both", "single")
POOLINGS = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}

_DOCSTRING = """{summary}

    Args:{own}
        include_top: whether to end in the classifier. Without it the output is the feature map after the final
            {norm}, float (batch, ceil(h/32), ceil(w/32), width of the last stage).
        weights: `None` (random initialisation), {names}or the path of a checkpoint: `.safetensors`, `.pth`, `.pt` or
            `.bin` in {dialects} tensor names, `.keras` or `.weights.h5` of such a model.
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
        {references}
"""


def document(function, summary, texts, own="", names=""):
    """Gives a family's function its docstring.

    Args:
        function: the function.
        summary: the docstring's first line.
        texts: what the family says of itself: "norm", "dialects" and "references".
        own: lines on arguments that this function alone has.
        names: the names of pretrained weights, ready to be read.
    """
    function.__doc__ = _DOCSTRING.format(summary=summary, own=own, names=names, **texts)


def entry_point(network, variants, variant, summary, texts):
    """The function for a published variant, with keras.applications' signature.

    Args:
        network: the family's function; its first arguments are the fields of its architectures.
        variants: the family's table of them.
        variant: the variant's key.
        summary: the docstring's first line.
        texts: as for `document`.
    """
    default_name = model_name(variant)

    def published(
        include_top=True,
        weights="imagenet",
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=1000,
        classifier_activation="softmax",
        name=default_name,
        *,
        head="average",
        drop_path_rate=0.0,
    ):
        return network(
            *astuple(variants[variant]),
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

    published.__name__ = published.__qualname__ = class_name(variant)
    published.__module__ = network.__module__
    names = " or ".join(f'`"{key}"`' for key in pretrained.names(variant))
    document(published, summary, texts, names=f"{names} (downloaded once and checked), ")
    return published


def assemble(
    backbone,
    architecture,
    include_top,
    weights,
    input_tensor,
    input_shape,
    pooling,
    classes,
    classifier_activation,
    name,
    head,
    drop_path_rate,
):
    """The model around a backbone.

    Args:
        backbone: (image, architecture, drop_path_rate) -> normalised features (batch, h, w, channels).
        architecture: the network's shape.
        include_top: this and the rest are the arguments of the families' functions.
    """
    _check_arguments(weights, include_top, pooling, classes, head, drop_path_rate)
    image = _image_input(input_tensor, input_shape)
    state_dict = _read_weights(architecture, weights, include_top, classes, classifier_activation, image.shape[-1])

    with contextlib.nullcontext() if state_dict is None else weights_follow():
        x = backbone(image, architecture, drop_path_rate)
    if include_top:
        x = _classifier(x, classes, classifier_activation, head)
    elif pooling is not None:
        x = POOLINGS[pooling](name=f"{pooling}_pool")(x)
    inputs = [image] if input_tensor is None else keras.utils.get_source_inputs(input_tensor)
    model = keras.Model(inputs[0] if len(inputs) == 1 else inputs, x, name=name)

    if state_dict is not None:
        conversion.load_state_dict(model, state_dict)
    return model


def check_depths_and_widths(depths, widths):
    """Raises ValueError for what no network of either family can be."""
    if len(depths) != 4 or any(depth < 0 for depth in depths):
        raise ValueError(f"`depths` should be four integers >= 0. Received: depths={depths}")
    if len(widths) != 4 or any(width < 1 for width in widths) or widths[0] % 2:
        raise ValueError(f"`widths` should be four integers >= 1, the first even. Received: widths={widths}")


def _classifier(x, classes, activation, head):
    """Features (batch, h, w, channels) -> probabilities or logits (batch, classes), or two of them."""
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    classes = int(classes)  # Keras refuses NumPy's integers
    # Drawn whatever follows: a model can be given another's weights with a classifier of its own.
    draw = keras.initializers.TruncatedNormal
    logits = [linear(classes, "head", initializer=draw)(x)]
    if head != "single":
        logits.append(linear(classes, "head_dist", initializer=draw)(x))
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


def _read_weights(architecture, weights, include_top, classes, activation, channels):
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
            "Only `None` and `softmax` activations are allowed for the `classifier_activation` argument when using "
            f"pretrained weights, with `include_top=True`; Received: classifier_activation={activation}"
        )
    if channels != 3:
        raise ValueError(f"The input must have 3 channels for `weights={weights!r}`; Received: channels={channels}")
    return conversion.read_checkpoint(pretrained.download(variant, weights))


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
