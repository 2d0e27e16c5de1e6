"""Checkpoints in parts, of other numbers of channels, without tensors, and of models with layers of one's own.

Room: conversion.
"""

import json

import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import timm
import timm_reference
import torch
from networks import SMALL, small
from timm.models import adapt_input_conv

import keras_efficientformer as kef
from keras_efficientformer import conversion
from keras_efficientformer.conversion.formats import Checkpoint
from keras_efficientformer.conversion.stated import Stated
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.errors import CheckpointError
from keras_efficientformer.imagenet import MEAN
from keras_efficientformer.layers.image_normalization import normalization_of
from keras_efficientformer.opening import open_model

PART = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def tensors():
    return dict(conversion.to_state_dict(small()))


@pytest.fixture
def sharded(tensors, tmp_path):
    """As transformers writes it: two parts, and an index that says which tensor is where."""
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        safetensors.numpy.save_file({name: tensors[name] for name in held}, tmp_path / file, metadata={"format": "pt"})
    places = {name: file for file, held in parts.items() for name in held}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return tmp_path / INDEX


def test_parts(sharded, tensors):
    found = conversion.read_checkpoint(sharded)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
    model = kef.from_checkpoint(sharded, classifier_activation=None)
    for one, other in zip(model.get_weights(), small().get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda folder, index: (folder / PART).unlink(),
            "parts that are not beside it",
        ),
        (
            lambda folder, index: index["weight_map"].update(extra="model-00001-of-00002.safetensors"),
            "do not hold: extra",
        ),
        (lambda folder, index: index["weight_map"].update(extra="../other.safetensors"), "cannot be read as a sharded"),
        (lambda folder, index: index.pop("weight_map"), "cannot be read as a sharded"),
        (lambda folder, index: index.update(weight_map=[]), "cannot be read as a sharded"),
        (lambda folder, index: index.update(weight_map={"a": 3}), "cannot be read as a sharded"),
    ],
)
def test_damaged_parts(sharded, damage, words):
    index = json.loads(sharded.read_text())
    damage(sharded.parent, index)
    sharded.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=words):
        conversion.read_checkpoint(sharded)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"weights": {"a": torch.ones(2)}, "epoch": 3},
            r"at its top, but 'weights' \(dict\), 'epoch' \(int\)",
        ),
        ({"state_dict": {"best": 0.8}}, r"no tensors at its top, but 'best' \(float\)"),
        ({}, "holds no tensors where a state dict was expected"),
        ([torch.ones(2)], "holds no tensors where a state dict was expected"),
    ],
)
def test_no_tensors(tmp_path, content, words):
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=words):
        conversion.read_checkpoint(tmp_path / "m.pth")


def test_names_of_a_hub_are_told(tmp_path):
    for source in ("timm/efficientformer_l1.snap_dist_in1k", tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=r"does not exist: .*EfficientFormerL1\(weights="):
            kef.from_checkpoint(source)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_arrays_however_they_lie_in_memory(tensors, tmp_path, suffix):
    """timm trains with channels last, which a .pth file keeps; NumPy turns and cuts without a copy."""
    kernel = torch.from_numpy(tensors["stem.conv2.weight"])
    given = tensors | {
        "stem.conv2.weight": kernel.to(memory_format=torch.channels_last),
        "stem.conv1.weight": tensors["stem.conv1.weight"][:, ::-1],
        "head.weight": tensors["head.weight"].astype(ml_dtypes.bfloat16),
        "head_dist.weight": np.asfortranarray(tensors["head_dist.weight"]),
    }
    path, again = tmp_path / f"m{suffix}", tmp_path / "again.safetensors"
    conversion.write_checkpoint(path, given)
    conversion.write_checkpoint(again, conversion.read_checkpoint(path))
    for file in (path, again):
        found = conversion.read_checkpoint(file)
        assert found["head.weight"].dtype == ml_dtypes.bfloat16
        assert found["stem.norm1.num_batches_tracked"].shape == ()
        for name, tensor in (given | {"stem.conv2.weight": kernel.numpy()}).items():
            np.testing.assert_array_equal(found[name], tensor)


# Channels.


def timm_checkpoint(tmp_path, channels):
    """A small network of timm's for images of so many channels."""
    torch.manual_seed(0)
    network = timm.models.efficientformer.EfficientFormer(
        depths=SMALL["depths"], embed_dims=SMALL["widths"], num_vit=1, num_classes=10, in_chans=channels
    )
    timm_reference.make_loud(network)
    network.eval()
    path = tmp_path / f"{channels}.pth"
    torch.save(network.state_dict(), path)
    return network, path


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_are_the_files(tmp_path, channels):
    network, path = timm_checkpoint(tmp_path, channels)
    images = np.random.default_rng(0).standard_normal((2, 224, 224, channels)).astype("float32")
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    assert conversion.infer_variant(conversion.read_checkpoint(path)).channels == channels
    for model in (
        kef.from_checkpoint(path, classifier_activation=None),
        kef.from_checkpoint(path, input_shape=(224, 224), classifier_activation=None),
    ):
        np.testing.assert_allclose(model.predict(images, verbose=0), expected, atol=2e-5 * np.abs(expected).max())
    assert open_model(path, (64, 96)).input_shape == (None, 64, 96, channels)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_adapted_channels(tmp_path, channels):
    """By timm's rule, to the bit."""
    network, path = timm_checkpoint(tmp_path, 3)
    expected = adapt_input_conv(channels, network.state_dict()["stem.conv1.weight"]).numpy()
    adapted = conversion.adapt_channels(conversion.read_checkpoint(path), channels)
    np.testing.assert_allclose(adapted["stem.conv1.weight"], expected, rtol=1e-6)
    model = kef.from_checkpoint(path, input_shape=(64, 64, channels), adapt_channels=True)
    kernel = model.get_layer("stem").step1.conv.kernel.numpy()
    np.testing.assert_allclose(kernel, expected.transpose(2, 3, 1, 0), rtol=1e-6)


def test_adapted_channels_keep_what_is_stated(tensors, tmp_path):
    stated = Stated(tuple("abcdefghij"), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "sigmoid")
    checkpoint = Checkpoint(tensors, tmp_path / "m.pth", ["model"], (64, 64), stated)
    same, grey = (conversion.adapt_channels(checkpoint, channels) for channels in (3, 1))
    assert (same.stated, same.wrappers, same.input_size) == (stated, ("model",), (64, 64))
    assert grey.stated == Stated(stated.labels, activation="sigmoid")
    with pytest.raises(ValueError, match=r"`channels` should be an integer >= 1\. Received: channels=0"):
        conversion.adapt_channels(checkpoint, 0)


def test_channels_that_do_not_fit(tmp_path):
    _, path = timm_checkpoint(tmp_path, 3)
    with pytest.raises(CheckpointError, match="1 tensors of other shapes"):
        kef.from_checkpoint(path, input_shape=(64, 64, 1))
    _, path = timm_checkpoint(tmp_path, 4)
    with pytest.raises(CheckpointError, match="for images of 4 channels, and only those for RGB can be adapted to 1"):
        kef.from_checkpoint(path, input_shape=(64, 64, 1), adapt_channels=True)


@pytest.mark.parametrize("shape", [64, "64", (64,), (64, 64, 3, 1), (64.0, 64, 3)], ids=str)
def test_unfit_input_shape(shape):
    with pytest.raises(ValueError, match=r"`input_shape` must be a tuple of three integers"):
        kef.EfficientFormer(**{**SMALL, "input_shape": shape})


@pytest.mark.parametrize("shape", [64, (), (64,), (64, 64, 3, 1)], ids=str)
def test_unfit_input_shape_of_a_checkpoint(tensors, tmp_path, shape):
    with pytest.raises(ValueError, match=r"\(height, width\) or \(height, width, channels\)\. Received: input_shape="):
        kef.from_checkpoint(Checkpoint(tensors, tmp_path / "m.pth"), input_shape=shape)


# Layers of one's own, and weights that have changed.


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_layers_of_ones_own(tmp_path, suffix):
    """Files tell layers by class and order; two dense layers of one's own are no heads."""
    part = kef.EfficientFormer(**{**SMALL, "include_top": False, "pooling": "avg"})
    outputs = [keras.layers.Dense(10, name=name)(part.output) for name in ("mine", "other")]
    model = keras.Model(part.input, outputs)
    (model.save if suffix == ".keras" else model.save_weights)(tmp_path / f"m{suffix}")
    with pytest.raises(CheckpointError, match="layers of your own: mine, other"):
        conversion.read_checkpoint(tmp_path / f"m{suffix}")


def test_layers_before_the_network(tmp_path):
    """No checkpoint holds them, so that a model which is made of one would give other answers."""
    scaled = keras.layers.Rescaling(1 / 127.5, name="mine")(keras.Input((64, 64, 3)))
    model = kef.EfficientFormer(**{**SMALL, "input_shape": None, "input_tensor": scaled})
    with pytest.raises(ValueError, match=r"has layers before its EfficientFormer: mine\..*get_layer\('stem'\)\.input"):
        conversion.to_state_dict(model)
    model.save(tmp_path / "m.keras")
    with pytest.raises(CheckpointError, match="layers of your own: mine"):
        conversion.read_checkpoint(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="has layers before its EfficientFormer: mine"):
        open_model(tmp_path / "m.keras", (96, 96))
    # As the message says; and a model may be given weights whatever comes before it.
    alone = conversion.to_state_dict(keras.Model(model.get_layer("stem").input, model.output))
    assert conversion.load_state_dict(model, alone).loaded == len(model.get_weights())


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_networks_that_are_layers(tmp_path, suffix):
    image = keras.Input((64, 64, 3))
    model = keras.Model(image, keras.layers.Dense(3)(small()(image)))
    (model.save if suffix == ".keras" else model.save_weights)(tmp_path / f"m{suffix}")
    with pytest.raises(CheckpointError, match="a model that has others as its layers: "):
        conversion.read_checkpoint(tmp_path / f"m{suffix}")


def test_reports_say_that_weights_have_changed(tensors, tmp_path):
    conversion.write_checkpoint(tmp_path / "m.safetensors", conversion.to_state_dict(small()))
    model = kef.from_checkpoint(tmp_path / "m.safetensors")
    checkpoint = export_tflite(model, tmp_path / "a.tflite").checkpoint
    assert checkpoint.keys() == {"file", "sha256"}
    bias = model.get_layer("head").bias
    bias.assign(np.asarray(bias) + 1)
    changed = export_tflite(model, tmp_path / "b.tflite").checkpoint
    assert changed == checkpoint | {"weights": "changed since"}


# What the configuration beside a checkpoint says of its images.


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"architecture": "x", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.25]}}),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.25]}),
    ],
    ids=["timm", "transformers"],
)
def test_stated_normalization(tmp_path, name, content):
    """Of checkpoints that say nothing themselves, as others' do."""
    state_dict = conversion.to_state_dict(small())
    state_dict.stated = Stated()
    conversion.write_checkpoint(tmp_path / "m.safetensors", state_dict)
    (tmp_path / name).write_text(json.dumps(content))
    found = normalization_of(kef.from_checkpoint(tmp_path / "m.safetensors"))
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.25))
    own = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}
    assert normalization_of(kef.from_checkpoint(tmp_path / "m.safetensors", **own)).mean == own["mean"]


@pytest.mark.parametrize("content", ['{"config": {"size": 3}}', "[]", "no JSON", '{"pretrained_cfg": {"mean": 3}}'])
def test_other_files_beside(tmp_path, content):
    """A run's own config.json, and any other program's, say nothing of images."""
    conversion.write_checkpoint(tmp_path / "m.safetensors", conversion.to_state_dict(small()))
    (tmp_path / "config.json").write_text(content)
    assert normalization_of(kef.from_checkpoint(tmp_path / "m.safetensors")).mean == MEAN


def test_unfit_stated_normalization(tmp_path):
    conversion.write_checkpoint(tmp_path / "m.safetensors", conversion.to_state_dict(small()))
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"mean": 0.5, "std": [1, 1, 1]}}')
    with pytest.raises(CheckpointError, match=r"config\.json should state a number for each channel"):
        kef.from_checkpoint(tmp_path / "m.safetensors")
