"""The published models are functions with static signatures and docstrings, which all say the same of the same."""

import ast
import inspect
import re

import pytest
from project import ROOT

import keras_efficientformer as kef
from keras_efficientformer.conversion import pretrained
from keras_efficientformer.models.assembly import ModelArguments
from keras_efficientformer.models.opening import PUBLISHED
from keras_efficientformer.variants import ALL_VARIANTS, Architecture, ArchitectureV2, class_name, model_name

# The text that all docstrings are written after; what is in braces is the family's, the function's or the variant's.
TEMPLATE = """{summary}

Args: {own}
include_top: whether to end in the classifier. Without it the output is the feature map after the final {norm}, float
(batch, ceil(h/32), ceil(w/32), width of the last stage).
weights: `None` (random initialisation), {names}or the path of a checkpoint: `.safetensors`, `.pth`, `.pt` or `.bin` in
{dialects} tensor names, `.keras` or `.weights.h5` of such a model. Attention bias tables are resized to the input's
size.
input_tensor: optional Keras tensor (batch, h, w, 3) to use as the model's input.
input_shape: optional (h, w, 3), both sides at least 32, square or not; `None` means (224, 224, 3).
pooling: without the top: `None`, `"avg"` (mean over positions: the embedding, rank 2) or `"max"`.
classes: number of classes, an integer >= 1; 1000 with ImageNet's weights and the top.
classifier_activation: activation of the classifier: `"softmax"`, `None` for logits, or any Keras activation; with
ImageNet's weights `None` or `"softmax"`.
name: name of the model.
head: `"average"` (the activation of the mean of the two heads' logits, which published accuracies need), `"both"` (two
outputs: the head trained on labels, then the one trained on a teacher) or `"single"` (the first head alone; the one
choice for checkpoints that have a single head).
drop_path_rate: rate of stochastic depth of the last block, in [0, 1); it grows linearly from 0 at the first.
include_preprocessing: whether the model takes raw pixels in 0..255 and normalises them itself.
mean: of pixels scaled to 0..1, a number for each channel, by which images are normalised, inside or before; `None`
means ImageNet's. All that prepares images for the model reads it from there.
std: their standard deviation, with `mean`.
labels: the names of the classes, a list, a file or a dictionary as for `labels.class_names`, kept with the model;
`None` means ImageNet's with its weights, else none.

Returns:
A `keras.Model`, channels last: float images (batch, h, w, 3), normalised by `preprocess_input` or raw -> float class
probabilities in [0, 1], or logits, (batch, classes). The outputs of the layers "stage1" to "stage4" are feature maps
with strides of 4, 8, 16 and 32 pixels.

Raises:
ValueError: an argument is out of its range, or a checkpoint does not fit (`conversion.CheckpointError`).
OSError: a file cannot be read, or the weights cannot be downloaded (`pretrained.DownloadError`).

References:
{references}
"""
FAMILIES = {
    Architecture: {
        "norm": "LayerNorm",
        "dialects": "timm's, snap-research's or transformers'",
        "references": "EfficientFormer: Vision Transformers at MobileNet Speed (arXiv 2206.01191), section 4 and "
        "appendix; snap-research/EfficientFormer; timm's efficientformer.py.",
    },
    ArchitectureV2: {
        "norm": "BatchNorm",
        "dialects": "timm's or snap-research's",
        "references": "Rethinking Vision Transformers for MobileNet Size and Speed (arXiv 2212.08059), section 3; "
        "snap-research/EfficientFormer; timm's efficientformer_v2.py.",
    },
}
SHAPES = {
    Architecture: """depths: blocks in each of the four stages, four integers >= 0.
        widths: channels of the four stages, four integers >= 1, the first even.
        num_meta3d: how many of the last stage's blocks, counted from its end, have attention (`Meta3D`).""",
    ArchitectureV2: """depths: blocks in each of the four stages, four integers >= 0.
        widths: channels of the four stages, four integers >= 1, the first even.
        num_attention: how many blocks of the third and of the fourth stage, counted from their ends, have attention
            (`AttentionV2`); all of a stage's blocks where it has fewer, which one of the two may.
        mlp_ratios: for each stage, for each of its blocks: the FFN's hidden channels as a multiple of the width.""",
}
# Millions of parameters and GMACs at 224x224, as the docstrings' first lines have them.
SIZES = {
    "l1": ("EfficientFormer-L1", 12.3, 1.3),
    "l3": ("EfficientFormer-L3", 31.4, 3.9),
    "l7": ("EfficientFormer-L7", 82.2, 10.2),
    "v2_s0": ("EfficientFormerV2-S0", 3.6, 0.4),
    "v2_s1": ("EfficientFormerV2-S1", 6.2, 0.7),
    "v2_s2": ("EfficientFormerV2-S2", 12.7, 1.2),
    "v2_l": ("EfficientFormerV2-L", 26.3, 2.6),
}
NETWORKS = {Architecture: kef.EfficientFormer, ArchitectureV2: kef.EfficientFormerV2}


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def test_the_seven_are_published():
    assert list(PUBLISHED) == list(ALL_VARIANTS) == list(SIZES)
    for variant, function in PUBLISHED.items():
        assert function is getattr(kef, class_name(variant))


@pytest.mark.parametrize("variant", SIZES)
def test_docstrings_of_the_published(variant):
    title, parameters, macs = SIZES[variant]
    names = " or ".join(f'`"{name}"`' for name in pretrained.names(variant))
    expected = TEMPLATE.format(
        summary=f"{title}: {parameters} million parameters, {macs} GMACs at 224x224.",
        own="",
        names=f"{names} (downloaded once and checked), ",
        **FAMILIES[type(ALL_VARIANTS[variant])],
    )
    assert words(PUBLISHED[variant].__doc__ or "") == words(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_docstrings_of_the_families(family):
    summary = f"An {family.family} of any depths and widths."
    expected = TEMPLATE.format(summary=summary, own=SHAPES[family], names="", **FAMILIES[family])
    assert words(NETWORKS[family].__doc__ or "") == words(expected)


@pytest.mark.parametrize("variant", SIZES)
def test_signatures(variant):
    """All arguments but the shape are the same everywhere, and annotated."""
    published = inspect.signature(PUBLISHED[variant]).parameters
    family = inspect.signature(NETWORKS[type(ALL_VARIANTS[variant])]).parameters
    shared = list(inspect.signature(ModelArguments).parameters)
    assert list(published) == shared == list(family)[-len(shared) :]
    for name in shared:
        assert published[name].annotation == family[name].annotation != inspect.Parameter.empty
        assert published[name].kind == family[name].kind
        if name not in ("weights", "name"):
            assert published[name].default == family[name].default
    assert (published["weights"].default, published["name"].default) == ("imagenet", model_name(variant))


@pytest.mark.parametrize("module", ["efficientformer", "efficientformer_v2"])
def test_editors_see_them(module):
    """Each is a `def` with its docstring in the source: nothing makes them when the module is imported."""
    tree = ast.parse((ROOT / "keras_efficientformer" / "models" / f"{module}.py").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    public = [name for name in functions if not name.startswith("_")]
    assert set(public) <= set(kef.__all__)
    assert len(public) == {"efficientformer": 4, "efficientformer_v2": 5}[module]
    for name in public:
        assert ast.get_docstring(functions[name]) == inspect.getdoc(getattr(kef, name))
