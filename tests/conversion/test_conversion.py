"""Checkpoints in and out, on TensorFlow, against timm's networks.

Tensor names come from tests/data/dialects.json, made by the three codes themselves; files are written by safetensors'
and torch's own functions, and read back by them. All reference weights are loud, so no tensor can be lost unseen.
"""

import functools
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import timm
import timm.models
import timm_reference
import torch
from project import HANG

import keras_efficientformer as kef
from keras_efficientformer import conversion
from keras_efficientformer.variants import ALL_VARIANTS

VARIANTS = ("l1", "l3", "l7")
DIALECTS = ("timm", "snap", "transformers")
BUFFERS = ("attention_bias_idxs", "num_batches_tracked")
SMALL = {"depths": (1, 1, 1, 2), "widths": (8, 16, 24, 32), "num_meta3d": 1}
SHAPES = {
    "two-meta3d": ((2, 3, 1, 4), (12, 20, 28, 36), 2),
    "all-meta3d": ((1, 2, 1, 2), (6, 16, 10, 32), 2),
    "empty-stages": ((1, 0, 0, 1), (8, 16, 24, 32), 1),
    "11-blocks": ((11, 1, 12, 13), (4, 6, 8, 10), 1),
}


class Reference:
    """One of timm's networks, two images, and what it says of them."""

    def __init__(self, variant):
        self.variant = variant
        self.model = timm_reference.loud_model(variant)
        self.tensors = timm_reference.state_dict(self.model)
        self.images = timm_reference.images(224, 224)
        self.average, self.head, self.head_dist = timm_reference.logits(self.model, self.images)

    @functools.cached_property
    def keras_model(self):
        return build(self.variant, head="both")

    def in_dialect(self, dialect):
        return timm_reference.in_dialect(self.tensors, self.variant, dialect)


@pytest.fixture(scope="module")
def reference():
    return functools.cache(Reference)


@pytest.fixture(scope="module")
def small():
    """timm's small network with 10 classes."""
    return timm_reference.small_model()


@pytest.fixture(scope="module")
def small_tensors(small):
    return timm_reference.state_dict(small)


def build(variant, **arguments):
    arguments = {"weights": None, "classifier_activation": None, **arguments}
    return getattr(kef, f"EfficientFormer{variant.upper()}")(**arguments)


def build_small(**arguments):
    return kef.EfficientFormer(**{**SMALL, "classes": 10, "classifier_activation": None, **arguments})


def run(model, images):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(images, training=False))


def blank(model):
    """Forgets what was loaded before."""
    for variable in model.weights:
        variable.assign(keras.ops.zeros_like(variable))
    return model


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def equal(found, expected):
    """Two state dicts have the same names and the same bits."""
    assert found.keys() == expected.keys()
    different = [
        name
        for name, tensor in found.items()
        if tensor.dtype != expected[name].dtype or not np.array_equal(tensor, expected[name])
    ]
    assert different == []


def weights_only(tensors):
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(BUFFERS)}


def save(path, tensors):
    """Writes a state dict, or a tree of them, with safetensors' or torch's own function."""
    tensors = keras.tree.map_structure(lambda x: torch.from_numpy(x) if isinstance(x, np.ndarray) else x, tensors)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)
    return path


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def unprefixed(tensors):
    return {name.removeprefix("efficientformer."): tensor for name, tensor in tensors.items()}


# What stands in the files that people have: the dialect, and what is around the state dict.
FILES = {
    "timm.safetensors": ("timm", dict),
    "timm.bin": ("timm", dict),
    "snap.pth": ("snap", dict),
    "snap-model.pth": ("snap", lambda tensors: {"model": tensors, "epoch": 299}),
    "snap-module.pth": ("snap", lambda tensors: {"model": prefixed("module.", tensors), "optimizer": {"state": {}}}),
    "transformers.safetensors": ("transformers", dict),
    "transformers.bin": ("transformers", dict),
    "transformers-bare.safetensors": ("transformers", unprefixed),
    "transformers-bare.bin": ("transformers", unprefixed),
}
CASES = [("l1", file) for file in FILES] + [
    (variant, file) for variant in ("l3", "l7") for file in ("timm.safetensors", "snap-model.pth", "transformers.bin")
]


@pytest.mark.parametrize(("variant", "file"), CASES)
def test_logits(reference, tmp_path, variant, file):
    dialect, wrap = FILES[file]
    expected = reference(variant)
    path = save(tmp_path / file, wrap(expected.in_dialect(dialect)))
    model = blank(expected.keras_model)
    report = conversion.load_state_dict(model, conversion.read_checkpoint(path))
    head, head_dist = run(model, expected.images)
    close(head, expected.head)
    close(head_dist, expected.head_dist)
    assert (report.info.dialect, report.info.variant, report.source) == (dialect, variant, str(path))


@pytest.mark.parametrize("variant", VARIANTS)
def test_average_head(reference, tmp_path, variant):
    expected = reference(variant)
    path = save(tmp_path / "checkpoint.safetensors", expected.tensors)
    close(run(build(variant, weights=path), expected.images), expected.average)


def test_softmax_and_single_head(reference, tmp_path):
    expected = reference("l1")
    path = save(tmp_path / "checkpoint.safetensors", expected.tensors)
    model = build("l1", weights=path, classifier_activation="softmax")
    probabilities = model.predict(expected.images, verbose=0)
    close(probabilities, torch.from_numpy(expected.average).softmax(-1).numpy(), 1e-7)
    close(run(build("l1", weights=path, head="single"), expected.images), expected.head)


@pytest.mark.parametrize(
    ("variant", "sides"),
    [("l1", (160, 224)), ("l1", (256, 256)), ("l1", (384, 384)), ("l3", (160, 224)), ("l7", (160, 224))],
)
def test_other_sizes(reference, variant, sides):
    """The 224x224 checkpoint in a model of another size, against timm with tables resized by torch's interpolation."""
    images = timm_reference.images(*sides, batch=1)
    grid = tuple(side // 32 for side in sides)
    average, *heads = timm_reference.logits(timm_reference.at_resolution(reference(variant).model, grid), images)
    model = build(variant, input_shape=(*sides, 3), head="both")
    report = conversion.load_state_dict(model, reference(variant).tensors)
    found = run(model, images)
    for logits, expected in zip(found, heads, strict=True):
        close(logits, expected, 2e-5)
    close(sum(found) / 2, average, 2e-5)
    assert len(report.resized) == ALL_VARIANTS[variant].num_meta3d
    assert all(line.endswith(f"(7, 7) -> {grid}") for line in report.resized)


@pytest.mark.parametrize("sides", [(224, 224), (33, 65), (32, 96), (416, 224)], ids=str)
def test_features(small, small_tensors, sides):
    """Feature map, both poolings and the stages' outputs, also where 32 does not divide the sides."""
    images = timm_reference.images(*sides)
    grid = tuple(-(-side // 32) for side in sides)
    network = timm_reference.at_resolution(small, grid)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        features = network.forward_features(x).numpy().reshape(2, *grid, 32)
        steps = [x := module(x) for module in (network.stem, *network.stages)]
    for pooling, expected in ((None, features), ("avg", features.mean((1, 2))), ("max", features.max((1, 2)))):
        model = build_small(input_shape=(*sides, 3), include_top=False, pooling=pooling)
        conversion.load_state_dict(model, small_tensors)
        close(run(model, images), expected)
    outputs = [model.get_layer(name).output for name in ("stage1", "stage2", "stage3", "stage4")]
    *maps, tokens = run(keras.Model(model.inputs[0], outputs), images)
    for found, expected in zip(maps, steps[1:4], strict=True):
        close(found.transpose(0, 3, 1, 2), expected)
    close(tokens.reshape(2, -1, 32), steps[4])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_free_depths_and_widths(tmp_path, shape):
    network = timm_reference.small_model(*shape, classes=3)
    tensors = timm_reference.state_dict(network)
    checkpoint = conversion.read_checkpoint(save(tmp_path / "checkpoint.pth", tensors))
    info = conversion.infer_variant(checkpoint)
    assert (info.architecture.depths, info.architecture.widths, info.architecture.num_meta3d) == shape
    assert (info.dialect, info.variant, info.classes, info.heads, info.resolution) == ("timm", None, 3, 2, (7, 7))
    model = kef.EfficientFormer(*shape, classes=3, classifier_activation=None, weights=tmp_path / "checkpoint.pth")
    images = timm_reference.images(224, 224)
    close(run(model, images), timm_reference.logits(network, images)[0])
    equal(weights_only(conversion.to_state_dict(model)), weights_only(tensors))


def test_gradients_reach_every_variable(reference):
    """And for the small network they are torch's own; a batch's statistics would hide the convolutions' biases."""
    import tensorflow as tf

    expected = reference("l1")
    conversion.load_state_dict(expected.keras_model, expected.tensors)
    factors = np.random.default_rng(0).standard_normal((2, 2, 1000)).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.stack(expected.keras_model(expected.images, training=False)) * factors)
    variables = expected.keras_model.trainable_variables
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    assert len(variables) == len(list(expected.model.parameters()))
    assert [v.path for v, g in zip(variables, gradients, strict=True) if g is None or not np.any(g)] == []


def test_gradients_are_those_of_torch(small, small_tensors):
    import tensorflow as tf

    images = timm_reference.images(224, 224)
    factors = np.random.default_rng(0).standard_normal((2, 10)).astype("float32")
    network = timm_reference.at_resolution(small, (7, 7))
    (network(torch.from_numpy(images.transpose(0, 3, 1, 2))) * torch.from_numpy(factors)).sum().backward()
    expected = {name: parameter.grad.numpy() for name, parameter in network.named_parameters()}

    model = build_small()
    conversion.load_state_dict(model, small_tensors)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images, training=False) * factors)
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    # Gradients have the names and layouts of the weights that they belong to.
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        variable.assign(gradient)
    found = conversion.to_state_dict(model)
    for name, gradient in expected.items():
        assert np.abs(gradient).max() > 0, name
        close(found[name], gradient, 1e-4 * np.abs(gradient).max())


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_export(reference, variant, dialect):
    """Names, shapes and dtypes are those of the dialect's own code, and the floating-point tensors keep every bit."""
    expected = reference(variant)
    column = DIALECTS.index(dialect)
    blank(expected.keras_model)
    conversion.load_state_dict(expected.keras_model, expected.in_dialect(dialect))
    exported = conversion.to_state_dict(expected.keras_model, dialect)
    rows = {row[column]: (row[3], row[4]) for row in timm_reference.tensor_table(variant)}
    assert {name: (list(t.shape), str(t.dtype)) for name, t in exported.items()} == rows
    equal(exported, expected.in_dialect(dialect))


@pytest.mark.parametrize("variant", ["l1", "l3"])
def test_export_loads_into_timm(reference, tmp_path, variant):
    expected = reference(variant)
    conversion.load_state_dict(expected.keras_model, expected.tensors)
    path = tmp_path / "checkpoint.safetensors"
    conversion.write_checkpoint(path, conversion.to_state_dict(expected.keras_model))
    network = timm.create_model(f"efficientformer_{variant}", checkpoint_path=str(path)).eval()
    for found, logits in zip(timm_reference.logits(network, expected.images), run_heads(expected), strict=True):
        assert np.array_equal(found, logits)


def run_heads(expected):
    return expected.average, expected.head, expected.head_dist


def test_export_to_snap_loads_into_timm(reference, tmp_path):
    """timm's own filter for snap-research's files reads ours."""
    expected = reference("l1")
    conversion.load_state_dict(expected.keras_model, expected.tensors)
    path = tmp_path / "checkpoint.pth"
    conversion.write_checkpoint(path, conversion.to_state_dict(expected.keras_model, "snap"))
    assert torch.load(path, weights_only=True).keys() == {"model"}
    network = timm.create_model("efficientformer_l1", pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    for found, logits in zip(timm_reference.logits(network.eval(), expected.images), run_heads(expected), strict=True):
        assert np.array_equal(found, logits)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_written_files(small_tensors, tmp_path, dialect, suffix):
    model = build_small()
    conversion.load_state_dict(model, small_tensors)
    exported = conversion.to_state_dict(model, dialect)
    path = tmp_path / f"checkpoint{suffix}"
    conversion.write_checkpoint(path, exported)
    assert list(tmp_path.iterdir()) == [path]

    if suffix == ".safetensors":
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata()
            # What else it says is tested with the models that say it.
            assert metadata.keys() == {"format", "input_size", "keras_efficientformer"}
            assert (metadata["format"], metadata["input_size"]) == ("pt", "224x224")
            written = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    else:
        written = torch.load(path, weights_only=True)
        written = {name: t.numpy() for name, t in (written["model"] if dialect == "snap" else written).items()}
    equal(written, exported)

    checkpoint = conversion.read_checkpoint(path)
    equal(checkpoint, exported)
    conversion.load_state_dict(blank(model), checkpoint)
    equal(weights_only(conversion.to_state_dict(model)), weights_only(small_tensors))


def test_write_refusals(small_tensors, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=r"checkpoint\.safetensors exists"):
        conversion.write_checkpoint(path, small_tensors)
    assert path.read_text() == "precious"
    conversion.write_checkpoint(path, small_tensors, overwrite=True)
    equal(conversion.read_checkpoint(path), small_tensors)
    with pytest.raises(conversion.CheckpointError, match=r"expected one of \.safetensors, \.pth, \.pt, \.bin"):
        conversion.write_checkpoint(tmp_path / "checkpoint.onnx", small_tensors)
    with pytest.raises(FileNotFoundError, match=r"The folder .*missing does not exist"):
        conversion.write_checkpoint(tmp_path / "missing" / "checkpoint.pth", small_tensors)
    with pytest.raises(ValueError, match=r"timm, snap, transformers\. Received: dialect='onnx'"):
        conversion.to_state_dict(build_small(), "onnx")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions(small, tmp_path, dtype, suffix):
    dtype = getattr(torch, dtype)
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in small.state_dict().items()}
    path = save(tmp_path / f"checkpoint{suffix}", tensors)
    model = build_small(weights=path)
    expected = {name: t.float().numpy() for name, t in tensors.items() if t.is_floating_point()}
    equal(weights_only(conversion.to_state_dict(model)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dicts_of_pytorch(small, small_tensors, dtype):
    """What `model.state_dict()` is: tensors, on whatever device and of whatever precision."""
    state_dict = {n: t.to(dtype) if t.is_floating_point() else t for n, t in small.state_dict().items()}
    model = build_small()
    conversion.load_state_dict(model, state_dict)
    assert conversion.infer_variant(state_dict).classes == 10
    for name, tensor in conversion.to_state_dict(model).items():
        np.testing.assert_allclose(tensor, small_tensors[name], rtol=1e-2 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("state_dict", [None, "model.pth", [1], {"stem.conv1.weight": [1.0]}], ids=str)
def test_what_is_no_state_dict(state_dict):
    for function in (conversion.infer_variant, lambda it: conversion.load_state_dict(build_small(), it)):
        with pytest.raises(conversion.CheckpointError, match="the state dict should"):
            function(state_dict)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_keras_files_in_bfloat16(tmp_path, suffix):
    keras.config.set_dtype_policy("bfloat16")
    try:
        model = build_small()
    finally:
        keras.config.set_dtype_policy("float32")
    (model.save if suffix == ".keras" else model.save_weights)(tmp_path / f"model{suffix}")
    loaded = build_small(weights=tmp_path / f"model{suffix}")
    for one, other in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, np.asarray(other, "float32"))


@pytest.mark.parametrize(
    ("wrap", "wrappers"),
    [
        (lambda good, bad: {"state_dict": bad, "state_dict_ema": good, "arch": "l1"}, ("state_dict_ema",)),
        (lambda good, bad: {"model": good, "model_ema": bad, "epoch": 3}, ("model",)),
        (lambda good, bad: {"model_ema": {"module": good, "decay": 0.9}}, ("model_ema", "module")),
        (lambda good, bad: {"state_dict": good, "state_dict_ema": None}, ("state_dict",)),
        (lambda good, bad: {f"ema.module.{name}": value for name, value in good.items()}, ("ema.", "module.")),
        (
            lambda good, bad: {"n_averaged": torch.tensor(3), **{f"module.{n}": value for n, value in good.items()}},
            ("module.",),
        ),
        (lambda good, bad: {"state_dict": prefixed("model.", good)}, ("state_dict", "model.")),
        (lambda good, bad: {"model": prefixed("module.", good), "scaler": {"scale": 2.0}}, ("model", "module.")),
        (lambda good, bad: prefixed("_orig_mod.module.", good), ("_orig_mod.", "module.")),
        (lambda good, bad: {"model_state_dict": good, "epoch": 3}, ("model_state_dict",)),
        (lambda good, bad: {"ema_state_dict": good, "state_dict": bad}, ("ema_state_dict",)),
        (lambda good, bad: {"net": good, "acc": 0.8}, ("net",)),
        (lambda good, bad: prefixed("backbone.", good), ("backbone.",)),
        (lambda good, bad: {"state_dict": prefixed("net.", good)}, ("state_dict", "net.")),
        (lambda good, bad: prefixed("module.encoder.", good), ("module.", "encoder.")),
        (lambda good, bad: good, ()),
    ],
    ids=[
        "timm-ema",
        "snap-ema",
        "nested-ema",
        "no-ema",
        "ema-module",
        "averaged-model",
        "lightning",
        "distributed",
        "compiled",
        "tutorial",
        "ema-state-dict",
        "net",
        "backbone",
        "lightning-net",
        "encoder",
        "bare",
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".ckpt"])
def test_wrappers(small_tensors, tmp_path, wrap, wrappers, suffix):
    other = {name: np.zeros_like(tensor) for name, tensor in small_tensors.items()}
    checkpoint = conversion.read_checkpoint(save(tmp_path / f"checkpoint{suffix}", wrap(small_tensors, other)))
    equal(checkpoint, small_tensors)
    assert checkpoint.wrappers == wrappers


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_infer_variant(variant, dialect):
    indices = timm_reference.Attention().attention_bias_idxs.numpy()
    tensors = {row[0]: np.broadcast_to(np.zeros((), row[4]), row[3]) for row in timm_reference.tensor_table(variant)}
    tensors |= {name: indices for name in tensors if name.endswith("attention_bias_idxs")}
    info = conversion.infer_variant(timm_reference.in_dialect(tensors, variant, dialect))
    assert (info.dialect, info.variant, info.classes, info.heads) == (dialect, variant, 1000, 2)
    assert info.architecture == ALL_VARIANTS[variant]
    assert info.resolution == (7, 7)


@pytest.mark.parametrize("grid", [(5, 7), (7, 5), (4, 9), (12, 1), (1, 1)], ids=str)
def test_resolution_is_told_by_the_indices(small, tmp_path, grid):
    """(5, 7) and (7, 5) have tables of one shape: their buffers of indices differ."""
    network = timm_reference.at_resolution(small, grid)
    path = save(tmp_path / "checkpoint.pth", timm_reference.state_dict(network))
    assert conversion.infer_variant(conversion.read_checkpoint(path)).resolution == grid
    sides = tuple(32 * side for side in grid)
    images = timm_reference.images(*sides)
    model = build_small(weights=path, input_shape=(*sides, 3))
    close(run(model, images), timm_reference.logits(network, images)[0])


def test_resized_to_a_table_of_the_same_shape(small):
    """From 5x7 to 7x5 and from 224x160 to 160x224: the shapes of the tables agree, their meanings do not."""
    network = timm_reference.at_resolution(small, (5, 7))
    model = build_small(input_shape=(224, 160, 3))
    report = conversion.load_state_dict(model, timm_reference.state_dict(network))
    (name,) = (name for name in network.state_dict() if name.endswith("attention_biases"))
    assert report.resized == (f"{name}: (5, 7) -> (7, 5)",)
    table = network.state_dict()[name].reshape(1, -1, 5, 7)
    expected = torch.nn.functional.interpolate(table, (7, 5), mode="bilinear", align_corners=True)
    close(conversion.to_state_dict(model)[name], expected.reshape(-1, 35), 1e-6)
    assert np.array_equal(conversion.to_state_dict(model)[name][:, 0], table[0, :, 0, 0])


def test_a_row_and_a_column_have_the_same_indices(small, tmp_path):
    """Either loads as it is; of which of them the table is to be resized, no file can say."""
    tensors = timm_reference.state_dict(timm_reference.at_resolution(small, (1, 12)))
    for sides in ((32, 384), (384, 32)):
        model = build_small(input_shape=(*sides, 3))
        assert conversion.load_state_dict(model, tensors).resized == ()
        equal(weights_only(conversion.to_state_dict(model)), weights_only(tensors))
    with pytest.raises(conversion.CheckpointError, match="Load it at the input size it was trained at"):
        conversion.load_state_dict(build_small(), tensors)


def test_files_without_indices(small, small_tensors):
    """Square tables are taken to be square; others fit only a model that has as many tokens."""
    square = weights_only(small_tensors)
    assert conversion.infer_variant(square).resolution == (7, 7)
    model = build_small()
    assert conversion.load_state_dict(model, square).resized == ()
    equal(weights_only(conversion.to_state_dict(model)), square)
    assert len(conversion.load_state_dict(build_small(input_shape=(256, 256, 3)), square).resized) == 1

    # 36 tokens, of 4 x 9 and not of 6 x 6: the table has the model's length, so it is the model's.
    oblong = weights_only(timm_reference.state_dict(timm_reference.at_resolution(small, (4, 9))))
    model = build_small(input_shape=(128, 288, 3))
    assert conversion.load_state_dict(model, oblong).resized == ()
    equal(weights_only(conversion.to_state_dict(model)), oblong)

    oblong = weights_only(timm_reference.state_dict(timm_reference.at_resolution(small, (5, 7))))
    assert conversion.infer_variant(oblong).resolution is None
    conversion.load_state_dict(build_small(input_shape=(160, 224, 3)), oblong)
    with pytest.raises(conversion.CheckpointError, match="Load it at the input size it was trained at"):
        conversion.load_state_dict(model, oblong)


def test_single_head(small, small_tensors, tmp_path):
    """snap-research's checkpoints without distillation have one head; in timm's dialect it is written twice."""
    single = {name: tensor for name, tensor in small_tensors.items() if not name.startswith("head_dist.")}
    path = save(tmp_path / "checkpoint.pth", single)
    info = conversion.infer_variant(conversion.read_checkpoint(path))
    assert (info.heads, info.classes) == (1, 10)
    model = build_small(weights=path, head="single")
    images = timm_reference.images(224, 224)
    _, expected, _ = timm_reference.logits(small, images)
    close(run(model, images), expected)
    assert len(conversion.to_state_dict(model, "snap")) == len(conversion.to_state_dict(model, "transformers"))
    assert len(conversion.to_state_dict(model, "snap")) == len(single)

    network = timm_reference.small_model(seed=1)
    network.load_state_dict({n: torch.from_numpy(t) for n, t in conversion.to_state_dict(model).items()}, strict=True)
    close(timm_reference.logits(network, images)[0], expected, 1e-6)


def test_without_a_classifier(small_tensors, tmp_path):
    """As transformers' bare model is saved, and as one without the top is written."""
    bare = {name: tensor for name, tensor in small_tensors.items() if not name.startswith("head")}
    path = save(tmp_path / "checkpoint.safetensors", bare)
    info = conversion.infer_variant(conversion.read_checkpoint(path))
    assert (info.heads, info.classes) == (0, None)
    model = build_small(weights=path, include_top=False)
    equal(weights_only(conversion.to_state_dict(model)), weights_only(bare))


def test_report(small_tensors):
    seen = []

    def progress(items):
        for item in items:
            seen.append(item)
            yield item

    model = build_small(head="single")
    report = conversion.load_state_dict(model, small_tensors, progress=progress)
    assert report.loaded == len(model.weights) == len(seen)
    buffers = sorted(name for name in small_tensors if name.endswith(BUFFERS))
    assert list(report.ignored) == sorted(["head_dist.bias", "head_dist.weight", *buffers])
    assert report.source == "the state dict"
    assert report.resized == ()


@pytest.mark.parametrize("head", ["average", "both", "single"])
def test_keras_files(small_tensors, tmp_path, head):
    """Keras' own files as `weights`: every tensor goes where it was, whatever was trained in between."""
    model = build_small(head=head, drop_path_rate=0.1)
    conversion.load_state_dict(model, small_tensors)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9), "mse", run_eagerly=True
    )  # a graph for one step takes longer
    model.fit(timm_reference.images(224, 224), [np.zeros((2, 10))] * (2 if head == "both" else 1), verbose=0)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    expected = conversion.to_state_dict(model)
    features = {name: tensor for name, tensor in expected.items() if not name.startswith("head")}
    for path in tmp_path.iterdir():
        equal(conversion.to_state_dict(build_small(head=head, weights=path)), expected)
        equal(conversion.to_state_dict(build_small(include_top=False, weights=path)), features)


@pytest.mark.parametrize("shape", [*SHAPES.values(), ((1, 1, 1, 2), (8, 16, 24, 32), 0)], ids=[*SHAPES, "no-meta3d"])
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_keras_files_of_free_shapes(tmp_path, shape, suffix):
    model = kef.EfficientFormer(*shape, classes=3, input_shape=(64, 64, 3))
    for index, variable in enumerate(model.weights):
        variable.assign(np.random.default_rng(index).uniform(0.1, 1, variable.shape))
    path = tmp_path / f"model{suffix}"
    model.save(path) if suffix == ".keras" else model.save_weights(path)
    other = kef.EfficientFormer(*shape, classes=3, input_shape=(64, 64, 3), weights=path)
    equal(conversion.to_state_dict(other), conversion.to_state_dict(model))


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_keras_files_at_another_size(small, small_tensors, tmp_path, suffix):
    model = build_small(head="both")
    conversion.load_state_dict(model, small_tensors)
    path = tmp_path / f"model{suffix}"
    model.save(path) if suffix == ".keras" else model.save_weights(path)
    images = timm_reference.images(96, 160)
    average, head, _ = timm_reference.logits(timm_reference.at_resolution(small, (3, 5)), images)
    close(run(build_small(weights=path, input_shape=(96, 160, 3)), images), average)
    close(run(build_small(weights=path, input_shape=(96, 160, 3), head="single"), images), head)
    with pytest.raises(ValueError, match=r"has 10 classes and the model expects 7: build it with classes=10"):
        build_small(weights=path, classes=7)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_keras_files_that_are_not_square(tmp_path, suffix):
    """4 x 9 tokens: as many as 6 x 6, and Keras' files hold no indices that say so."""
    model = build_small(input_shape=(128, 288, 3))
    for index, variable in enumerate(model.weights):
        variable.assign(np.random.default_rng(index).uniform(0.1, 1, variable.shape))
    path = tmp_path / f"model{suffix}"
    model.save(path) if suffix == ".keras" else model.save_weights(path)
    equal(
        conversion.to_state_dict(build_small(weights=path, input_shape=(128, 288, 3))), conversion.to_state_dict(model)
    )


def test_other_models_are_refused(small_tensors):
    dense = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    for call in (
        lambda: conversion.to_state_dict(dense),
        lambda: conversion.load_state_dict(dense, small_tensors),
        lambda: conversion.architecture_of(dense),
    ):
        with pytest.raises(ValueError, match="is not an EfficientFormer of this package"):
            call()
    backbone = build_small(include_top=False, pooling="avg")
    tuned = keras.Model(backbone.inputs, keras.layers.Dense(2, name="mine")(backbone.output))
    with pytest.raises(ValueError, match="variables that no EfficientFormer has: mine/kernel, mine/bias"):
        conversion.to_state_dict(tuned)


# Reads, builds and loads L7; before that a tiny model, so that the difference is what L7 takes. CPU time is a multiple
# of what importing took, which is as slow where a machine is slow or busy.
COST = r"""
import json, re, sys, time
start = time.process_time()
import keras, keras_efficientformer as kef
importing = time.process_time() - start
from keras_efficientformer import conversion

def peak():
    # Not getrusage's ru_maxrss, which starts at the size of the process that started this one.
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])

if sys.argv[1].endswith(".pth"):
    import torch
kef.EfficientFormer((1, 1, 1, 1), (8, 16, 24, 32), input_shape=(32, 32, 3), classes=2)
before, start = peak(), time.process_time()
state_dict = conversion.read_checkpoint(sys.argv[1])
model = kef.EfficientFormerL7(weights=None)
conversion.load_state_dict(model, state_dict)
print(json.dumps({"imports": (time.process_time() - start) / importing, "bytes": peak() - before}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is read from Linux' /proc")
@pytest.mark.parametrize("file", ["timm.safetensors", "snap-model.pth"])
def test_cost_of_l7(reference, tmp_path, file):
    """As much CPU time as a few imports of Keras, some seconds, and under 2.5 times the file above Keras' own memory.

    glibc is told to give freed memory back: left alone, it keeps holes between TensorFlow's aligned buffers that can
    take half the file, or almost nothing, by chance.
    """
    dialect, wrap = FILES[file]
    path = save(tmp_path / file, wrap(reference("l7").in_dialect(dialect)))
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": str(2**20)}
    command = [sys.executable, "-c", COST, path]
    cost = json.loads(subprocess.check_output(command, text=True, timeout=HANG, env=environment))
    ratio = cost["bytes"] / path.stat().st_size
    print(f"L7 from {file}: {cost['imports']:.1f} imports' CPU time, {ratio:.2f} times the file")
    assert cost["imports"] < 4
    assert ratio < 2.5


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_keras_files_tell_their_resolution(tmp_path, suffix):
    """36 tokens are 4x9 here, and would be 6x6 to a guess."""
    path = tmp_path / f"model{suffix}"
    model = build_small(input_shape=(128, 288, 3))
    loud = timm_reference.state_dict(timm_reference.at_resolution(timm_reference.small_model(), (4, 9)))
    conversion.load_state_dict(model, loud)
    model.save(path) if suffix == ".keras" else model.save_weights(path)
    assert conversion.infer_variant(conversion.read_checkpoint(path)).resolution == (4, 9)
    resized, expected = build_small(), build_small()
    report = conversion.load_state_dict(resized, conversion.read_checkpoint(path))
    assert "(4, 9) -> (7, 7)" in report.resized[0]
    conversion.load_state_dict(expected, loud)
    for found, wanted in zip(resized.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_keras_refuses_another_resolution(tmp_path):
    path = tmp_path / "model.weights.h5"
    build_small(input_shape=(128, 288, 3)).save_weights(path)
    with pytest.raises(ValueError, match=r"resolution of \(9, 4\) and the file's is \(4, 9\)"):
        build_small(input_shape=(288, 128, 3)).load_weights(path)
