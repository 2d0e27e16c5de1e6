"""The models: `EfficientFormer` for any depths and widths, and the published L1, L3 and L7 (arXiv 2206.01191)."""

from dataclasses import astuple
from functools import partial

import numpy as np

from keras_efficientformer import conversion
from keras_efficientformer.assembly import assemble, check_depths_and_widths, document, entry_point
from keras_efficientformer.efficientformer_v2 import EfficientFormerV2
from keras_efficientformer.initialization import weights_follow
from keras_efficientformer.layers import Stage, Stem
from keras_efficientformer.normalization import layer_norm
from keras_efficientformer.variants import VARIANTS, Architecture, model_name

_TEXTS = {
    "norm": "LayerNorm",
    "dialects": "timm's, snap-research's or transformers'",
    "references": (
        "EfficientFormer: Vision Transformers at MobileNet Speed (arXiv 2206.01191), section 4 and appendix;\n"
        "        snap-research/EfficientFormer; timm's efficientformer.py."
    ),
}


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
    return assemble(
        _backbone,
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
    )


def network_of(architecture):
    """The function of an architecture's family that makes models of this shape; it takes the other arguments."""
    network = EfficientFormer if isinstance(architecture, Architecture) else EfficientFormerV2
    return partial(network, *astuple(architecture))


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
        if info.input_size is None:
            raise ValueError(f"{path} does not say for which input size it is: pass `input_shape`.")
        input_shape = (*info.input_size, 3)
    with weights_follow():
        model = network_of(info.architecture)(
            include_top=info.heads > 0,
            input_shape=input_shape,
            classes=info.classes or 1,
            classifier_activation=classifier_activation,
            **({"name": model_name(info.variant)} if info.variant else {}),
            head="average" if info.heads == 2 else "single",
        )
    conversion.load_state_dict(model, state_dict, progress)
    return model


document(
    EfficientFormer,
    "An EfficientFormer of any depths and widths.",
    _TEXTS,
    own="""
        depths: blocks in each of the four stages, four integers >= 0.
        widths: channels of the four stages, four integers >= 1, the first even.
        num_meta3d: how many of the last stage's blocks, counted from its end, have attention (`Meta3D`).""",
)


def _published(variant, summary):
    return entry_point(EfficientFormer, VARIANTS, variant, summary, _TEXTS)


EfficientFormerL1 = _published("l1", "EfficientFormer-L1: 12.3 million parameters, 1.3 GMACs at 224x224.")
EfficientFormerL3 = _published("l3", "EfficientFormer-L3: 31.4 million parameters, 3.9 GMACs at 224x224.")
EfficientFormerL7 = _published("l7", "EfficientFormer-L7: 82.2 million parameters, 10.2 GMACs at 224x224.")


def _backbone(x, architecture, drop_path_rate):
    """Feature map (batch, h, w, 3) -> normalised features (batch, ceil(h/32), ceil(w/32), widths[-1])."""
    rates = np.linspace(0, drop_path_rate, sum(architecture.depths)).tolist()
    x = Stem(architecture.widths[0], name="stem")(x)
    for index, (depth, width) in enumerate(zip(architecture.depths, architecture.widths, strict=True)):
        num_meta3d = architecture.num_meta3d if index == 3 else 0
        drop_path, rates = rates[:depth], rates[depth:]
        x = Stage(width, depth, num_meta3d, downsample=index > 0, drop_path=drop_path, name=f"stage{index + 1}")(x)
    return layer_norm("norm")(x)


def _check_architecture(architecture):
    depths, num_meta3d = architecture.depths, architecture.num_meta3d
    check_depths_and_widths(depths, architecture.widths)
    if not 0 <= num_meta3d <= depths[3]:
        raise ValueError(
            f"`num_meta3d` should be between 0 and the last stage's depth. "
            f"Received: num_meta3d={num_meta3d}, depths={depths}"
        )
