"""EfficientFormerV2's checkpoints in and out: timm's and snap-research's tensor names, against timm's own networks.

Names come from data/dialects_v2.json, made by the two codes themselves (data/make_dialects_v2.py). Weights are loud.
"""

import functools
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import safetensors.numpy
import timm_reference
import timm_reference_v2
import torch
from project import HANG, NO_COLLECTOR

import keras_efficientformer as kef
from keras_efficientformer import conversion
from keras_efficientformer.errors import CheckpointError
from keras_efficientformer.layers.common import relative_positions
from keras_efficientformer.layers.v2_attention import downsampling_positions

VARIANTS = timm_reference_v2.VARIANTS
SMALL = {**timm_reference_v2.SMALL, "classes": 10, "classifier_activation": None}
BUFFERS = ("num_batches_tracked", "attention_bias_idxs")

# A model on another backend: argv is a checkpoint, a file of images and one for the logits.
PROGRAM = """
import sys, numpy as np, keras_efficientformer as kef
model = kef.EfficientFormerV2S0(weights=sys.argv[1], classifier_activation=None)
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))
"""


@functools.cache
def loud(variant):
    return timm_reference_v2.loud_model(variant)


@functools.cache
def built(variant):
    return build(variant, head="both")


@pytest.fixture(scope="module")
def small():
    return timm_reference_v2.small_model()


@pytest.fixture(scope="module")
def tensors(small):
    return timm_reference.state_dict(small)


def build(variant, **arguments):
    arguments = {"weights": None, "classifier_activation": None, **arguments}
    return getattr(kef, f"EfficientFormerV2{variant.upper()}")(**arguments)


def run(model, images):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(images, training=False))


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def weights_only(tensors):
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(BUFFERS)}


def equal(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name, tensor in found.items() if not np.array_equal(tensor, expected[name])] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(variant):
    """Out of timm's state dict and into it again."""
    images, tensors = timm_reference.images(224, 224), timm_reference.state_dict(loud(variant))
    report = conversion.load_state_dict(built(variant), tensors)
    _, *expected = timm_reference.logits(loud(variant), images)
    for found, logits in zip(run(built(variant), images), expected, strict=True):
        close(found, logits)
    info = report.info
    assert (info.dialect, info.variant, info.heads, info.classes) == ("timm", f"v2_{variant}", 2, 1000)
    assert (info.resolution, info.input_size, report.resized) == ((14, 14), (224, 224), ())
    exported = conversion.to_state_dict(built(variant))
    assert exported.keys() == tensors.keys()
    equal(weights_only(exported), weights_only(tensors))
    loud(variant).load_state_dict({name: torch.from_numpy(tensor) for name, tensor in exported.items()}, strict=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_snap(variant):
    """Names, shapes and indices are those of snap-research's own code, and every bit comes back."""
    tensors = timm_reference_v2.in_snap(timm_reference.state_dict(loud(variant)), variant)
    report = conversion.load_state_dict(built(variant), tensors)
    assert (report.info.dialect, report.info.variant) == ("snap", f"v2_{variant}")
    exported = conversion.to_state_dict(built(variant), "snap")
    rows = {name: shape for _, name, shape in timm_reference_v2.tensor_table(variant)}
    assert {name: list(tensor.shape) for name, tensor in exported.items()} == rows
    equal(weights_only(exported), weights_only(tensors))
    indices = {name: tensor for name, tensor in exported.items() if name.endswith("_idxs")}
    attention = loud(variant).stages[3].downsample.attn
    np.testing.assert_array_equal(indices["network.5.attn.attention_bias_idxs"], attention.attention_bias_idxs)
    attention = loud(variant).stages[3].blocks[-1].token_mixer
    last = f"network.6.{len(loud(variant).stages[3].blocks) - 1}.token_mixer.attention_bias_idxs"
    np.testing.assert_array_equal(indices[last], attention.attention_bias_idxs)


def test_snap_file(tmp_path):
    """As snap-research publishes it, under "model", with indices; timm's own filter reads ours."""
    images = timm_reference.images(224, 224)
    model = build("s0", head="both")
    conversion.load_state_dict(model, timm_reference.state_dict(loud("s0")))
    conversion.write_checkpoint(tmp_path / "snap.pth", conversion.to_state_dict(model, "snap"))
    assert torch.load(tmp_path / "snap.pth", weights_only=True).keys() == {"model"}
    found = build("s0", weights=tmp_path / "snap.pth")
    close(run(found, images), timm_reference.logits(loud("s0"), images)[0])


@pytest.mark.parametrize("sides", [(256, 256), (160, 224)], ids=str)
def test_other_sizes(sides):
    images = timm_reference.images(*sides, batch=1)
    network = timm_reference_v2.at_size(loud("s0"), timm_reference_v2.loud_model("s0", img_size=sides))
    model = build("s0", input_shape=(*sides, 3))
    report = conversion.load_state_dict(model, timm_reference.state_dict(loud("s0")))
    close(run(model, images), timm_reference.logits(network, images)[0], 2e-5)
    assert len(report.resized) == 5
    assert f"stages.3.downsample.attn.attention_biases: (14, 14) -> {tuple(s // 16 for s in sides)}" in report.resized


@pytest.fixture(scope="module")
def of_size(tensors):
    """sides -> the small model of this size, a larger size, and what a model of that has to say."""

    @functools.cache
    def make(sides):
        model = kef.EfficientFormerV2(**SMALL, input_shape=(*sides, 3))
        conversion.load_state_dict(model, tensors)
        larger = (2 * sides[0], sides[1] + 32)
        resized = kef.EfficientFormerV2(**SMALL, input_shape=(*larger, 3))
        conversion.load_state_dict(resized, conversion.to_state_dict(model, "snap"))
        return model, run(model, timm_reference.images(*sides)), larger, run(resized, timm_reference.images(*larger))

    return make


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("dialect", ["timm", "snap"])
@pytest.mark.parametrize("sides", [(64, 96), (33, 65), (64, 256)], ids=str)
def test_from_checkpoint(of_size, tmp_path, sides, dialect, suffix):
    """What is written says its size; (64, 256) has as many biases as (128, 128)."""
    model, expected, larger, expected_of_larger = of_size(sides)
    path = tmp_path / f"checkpoint{suffix}"
    conversion.write_checkpoint(path, conversion.to_state_dict(model, dialect))
    told_exactly = suffix == ".safetensors" or dialect == "timm"  # else by the indices of whole cells
    told = sides if told_exactly else tuple(-(-side // 16) * 16 for side in sides)
    found = kef.from_checkpoint(path, classifier_activation=None)
    assert found.input_shape[1:3] == told
    assert found.name == "efficientformerv2"
    if told != sides:
        found = kef.from_checkpoint(path, input_shape=(*sides, 3), classifier_activation=None)
    close(run(found, timm_reference.images(*sides)), expected, 0)
    resized = kef.from_checkpoint(path, input_shape=(*larger, 3), classifier_activation=None)
    close(run(resized, timm_reference.images(*larger)), expected_of_larger, 1e-5)


@pytest.mark.parametrize("sides", [(64, 96), (64, 256), (128, 128)], ids=str)
def test_a_file_that_does_not_say_its_size(tensors, tmp_path, sides):
    """As timm writes it: the number of biases alone does not tell a shape."""
    model = kef.EfficientFormerV2(**SMALL, input_shape=(*sides, 3))
    conversion.load_state_dict(model, tensors)
    safetensors.numpy.save_file(dict(conversion.to_state_dict(model)), tmp_path / "timm.safetensors")
    with pytest.raises(ValueError, match=r"does not say for which input size it is: pass `input_shape`"):
        kef.from_checkpoint(tmp_path / "timm.safetensors")
    found = kef.from_checkpoint(tmp_path / "timm.safetensors", input_shape=(*sides, 3), classifier_activation=None)
    images = timm_reference.images(*sides)
    close(run(found, images), run(model, images), 0)
    with pytest.raises(CheckpointError, match="does not say of which"):
        kef.from_checkpoint(tmp_path / "timm.safetensors", input_shape=(96, 96, 3))


def test_a_damaged_size(tensors, tmp_path):
    safetensors.numpy.save_file(dict(tensors), tmp_path / "m.safetensors", metadata={"input_size": "64 by 96"})
    with pytest.raises(CheckpointError, match="says that its input size is '64 by 96': HEIGHTxWIDTH"):
        conversion.read_checkpoint(tmp_path / "m.safetensors")


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_keras_files(tensors, tmp_path, suffix):
    """Read through the same strict door, and resized."""
    model = kef.EfficientFormerV2(**SMALL, input_shape=(64, 96, 3), drop_path_rate=0.1)
    conversion.load_state_dict(model, tensors)
    path = tmp_path / f"model{suffix}"
    model.save(path) if suffix == ".keras" else model.save_weights(path)
    checkpoint = conversion.read_checkpoint(path)
    equal(weights_only(checkpoint), weights_only(conversion.to_state_dict(model)))
    assert conversion.infer_variant(checkpoint).input_size == (64, 96)
    images = timm_reference.images(64, 96)
    close(run(kef.from_checkpoint(path, classifier_activation=None), images), run(model, images), 0)
    kef.EfficientFormerV2(**SMALL, input_shape=(96, 64, 3), weights=path)


def test_ratios_that_are_rounded_down(tmp_path):
    """29 * 1.1 channels are 31, of which 31 / 29 gives 30."""
    model = kef.EfficientFormerV2(
        (1, 1, 1, 1), (8, 16, 29, 8), 1, ((4,), (4,), (1.1,), (4,)), weights=None, classes=3, input_shape=(64, 64, 3)
    )
    conversion.write_checkpoint(tmp_path / "v2.safetensors", conversion.to_state_dict(model))
    same = kef.from_checkpoint(tmp_path / "v2.safetensors")
    assert conversion.architecture_of(same) == conversion.architecture_of(model)


def test_free_shapes(tmp_path):
    shape = {
        "depths": (0, 2, 1, 3),
        "widths": (6, 10, 8, 12),
        "num_attention": 2,
        "mlp_ratios": ((), (2.5, 4), (3,), (1, 2, 3)),
    }
    network = timm_reference_v2.small_model(classes=3, **shape)
    info = conversion.infer_variant(timm_reference.state_dict(network))
    assert info.architecture == kef.variants.ArchitectureV2(**shape)
    assert (info.variant, info.classes) == (None, 3)
    model = kef.EfficientFormerV2(**shape, classes=3, classifier_activation=None)
    conversion.load_state_dict(model, timm_reference.state_dict(network))
    images = timm_reference.images(224, 224)
    close(run(model, images), timm_reference.logits(network, images)[0])


def test_positions():
    """Indices of timm's attentions, whose grids need not be square."""
    network = timm_reference_v2.small_model(size=(80, 112))
    downsample = network.stages[3].downsample.attn
    np.testing.assert_array_equal(downsampling_positions((5, 7)), downsample.attention_bias_idxs)
    attention = network.stages[2].blocks[-1].token_mixer
    np.testing.assert_array_equal(relative_positions((3, 4)), attention.attention_bias_idxs)


def test_gradients_are_those_of_torch(tensors):
    import tensorflow as tf

    images = timm_reference.images(224, 224)
    factors = np.random.default_rng(0).standard_normal((2, 10)).astype("float32")
    network = timm_reference_v2.small_model()
    (network(torch.from_numpy(images.transpose(0, 3, 1, 2))) * torch.from_numpy(factors)).sum().backward()
    model = kef.EfficientFormerV2(**SMALL)
    conversion.load_state_dict(model, tensors)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images, training=False) * factors)
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        variable.assign(gradient)
    found = conversion.to_state_dict(model)
    largest = max(parameter.grad.abs().max().item() for parameter in network.parameters())
    for name, parameter in network.named_parameters():
        expected = parameter.grad.numpy()
        if "talking_head1.bias" not in name and "attention_biases" not in name:  # softmax sees the first not at all
            assert np.abs(expected).max() > 0, name
        close(found[name], expected, 1e-3 * np.abs(expected).max() + 1e-7 * largest)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends(tmp_path, backend):
    images, network = timm_reference.images(224, 224), loud("s0")
    safetensors.numpy.save_file(timm_reference.state_dict(network), tmp_path / "s0.safetensors")
    np.save(tmp_path / "images.npy", images)
    environment = {**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # what is compiled runs once
    files = [tmp_path / name for name in ("s0.safetensors", "images.npy", "logits.npy")]
    subprocess.run([sys.executable, "-c", NO_COLLECTOR + PROGRAM, *files], env=environment, check=True, timeout=HANG)
    close(np.load(files[-1]), timm_reference.logits(network, images)[0])


def test_the_other_family_is_refused(tensors):
    first = kef.EfficientFormer((1, 1, 1, 2), (8, 16, 24, 32), input_shape=(64, 64, 3), classes=10)
    second = kef.EfficientFormerV2(**SMALL)
    with pytest.raises(CheckpointError, match=r"found an EfficientFormerV2 with .*expected an EfficientFormer with"):
        conversion.load_state_dict(first, tensors)
    with pytest.raises(CheckpointError, match=r"found an EfficientFormer with .*Use EfficientFormerL1 or"):
        conversion.load_state_dict(second, conversion.to_state_dict(first))
    published = timm_reference.state_dict(loud("s1"))
    with pytest.raises(CheckpointError, match=r"found EfficientFormerV2-S1 .*Use EfficientFormerV2S1 for it"):
        conversion.load_state_dict(second, published)


def test_transformers_has_no_v2():
    with pytest.raises(ValueError, match=r"`dialect` should be one of timm, snap\. Received: dialect='transformers'"):
        conversion.to_state_dict(kef.EfficientFormerV2(**SMALL), "transformers")


def spoil(tensors, change):
    tensors = dict(tensors)
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("stages.3.downsample.attn.q.local.weight"), r"1 missing \(stages.3.downsample.attn.q.local"),
        (lambda t: t.update({"stages.2.blocks.1.extra": np.zeros(3, "float32")}), "1 that the model does not have"),
        (lambda t: t.update({"stages.2.blocks.1.ls1.gamma": np.zeros(5, "float32")}), r"ls1.gamma: found \(5,\)"),
        (lambda t: t.pop("stages.0.blocks.0.mlp.fc1.conv.weight"), "which tell its widths"),
        (lambda t: t["norm.bias"].fill(np.nan), "NaN or infinite"),
    ],
    ids=["missing", "extra", "shape", "telling", "NaN"],
)
def test_bad_checkpoints(tensors, change, message):
    model = kef.EfficientFormerV2(**SMALL)
    before = model.get_weights()
    copies = {name: tensor.copy() for name, tensor in tensors.items()}
    with pytest.raises(CheckpointError, match=message):
        conversion.load_state_dict(model, spoil(copies, change))
    assert all(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))


def test_data_is_of_all_variants():
    document = json.loads(timm_reference_v2.DIALECTS.read_text())
    assert tuple(document["variants"]) == VARIANTS
    assert all(found["max_difference"] < 1e-5 < found["max_logit"] for found in document["variants"].values())
