"""The models as Keras models, on TensorFlow: arguments, sizes, files, precisions, training. No reference is needed.

Where nothing depends on the size the network is a small one, with loud weights: fresh ones would hide most mistakes.
"""

import contextlib
import inspect
import json
import os
import subprocess

import forked
import keras
import numpy as np
import pytest
import timm.layers
import timm_reference
from project import HANG

import keras_efficientformer as kef
from keras_efficientformer import conversion
from keras_efficientformer.variants import VARIANTS

PARAMETERS = {"l1": 12_289_928, "l3": 31_406_000, "l7": 82_229_328}
STAGES = ("stage1", "stage2", "stage3", "stage4")
SMALL = {"depths": (1, 1, 1, 2), "widths": (8, 16, 24, 32), "num_meta3d": 1}


@contextlib.contextmanager
def policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@pytest.fixture(scope="module")
def tensors():
    return timm_reference.state_dict(timm_reference.small_model())


@pytest.fixture(scope="module")
def loud(tensors):
    """Builds small models of the same loud weights."""

    def build(**arguments):
        model = kef.EfficientFormer(**{**SMALL, "classes": 10, "input_shape": (64, 64, 3), **arguments})
        conversion.load_state_dict(model, tensors)
        return model

    return build


@pytest.fixture(scope="module", params=VARIANTS)
def published(request):
    """(variant, model) for L1, L3 and L7."""
    return request.param, entry_point(request.param)(weights=None)


def entry_point(variant):
    return getattr(kef, f"EfficientFormer{variant.upper()}")


def run(model, images):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(images, training=False))


def close(found, expected, tolerance=1e-6):
    keras.tree.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), found, expected)


def compiled(model):
    losses = ["categorical_crossentropy"] * len(model.outputs)
    model.compile(keras.optimizers.SGD(0.1), losses, jit_compile=False)
    return model


def labels(batch, classes=10):
    return np.eye(classes, dtype="float32")[np.arange(batch) % classes]


def layers_with_policies(model):
    """But for the input, whose policy Keras does not keep."""
    layers = model._flatten_layers(include_self=False)
    policies = [(layer.name, layer.dtype_policy.name) for layer in layers if type(layer) is not keras.layers.InputLayer]
    return sorted(policies)


# Signatures and arguments.


def signature(function):
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_signature_is_that_of_keras_applications(variant):
    ours, resnet = signature(entry_point(variant)), signature(keras.applications.ResNet50)
    own = ["head", "drop_path_rate", "include_preprocessing", "mean", "std", "labels"]
    assert list(ours) == [*resnet, *own]
    defaults = {"head": "average", "drop_path_rate": 0.0, "include_preprocessing": False}
    defaults |= {"mean": None, "std": None, "labels": None}
    assert ours == {**resnet, "name": f"efficientformer_{variant}", **defaults}
    kinds = inspect.signature(entry_point(variant)).parameters
    assert {kinds[name].kind for name in own} == {inspect.Parameter.KEYWORD_ONLY}
    assert entry_point(variant).__name__ == f"EfficientFormer{variant.upper()}"


def test_signature_of_free_networks():
    empty = inspect.Parameter.empty
    rest = {**signature(kef.EfficientFormerL1), "weights": None, "name": "efficientformer"}
    ours = signature(kef.EfficientFormer)
    assert ours == {"depths": empty, "widths": empty, "num_meta3d": 1, **rest}
    assert list(ours) == ["depths", "widths", "num_meta3d", *rest]


@pytest.mark.parametrize("function", [kef.EfficientFormer, *map(entry_point, VARIANTS)], ids=lambda f: f.__name__)
def test_docstring(function):
    for name in signature(function):
        assert f"\n        {name}: " in function.__doc__
    for section in ("Returns:", "Raises:", "References:", "arXiv 2206.01191"):
        assert section in function.__doc__
    assert "{" not in function.__doc__


BAD_ARGUMENTS = {
    "no-classes": ({"classes": 0}, r"`classes` should be an integer >= 1\. Received: classes=0"),
    "negative-classes": ({"classes": -3}, "Received: classes=-3"),
    "half-a-class": ({"classes": 2.5}, r"Received: classes=2\.5"),
    "true-classes": ({"classes": True}, "Received: classes=True"),
    "low": ({"input_shape": (31, 64, 3)}, r"at least 32x32; Received: input_shape=\(31, 64, 3\)"),
    "narrow": ({"input_shape": (64, 31, 3)}, r"at least 32x32; Received: input_shape=\(64, 31, 3\)"),
    "unknown-sides": ({"input_shape": (None, None, 3)}, r"three integers .* Received: input_shape=\(None, None, 3\)"),
    "no-channels": ({"input_shape": (64, 64)}, r"three integers .* Received: input_shape=\(64, 64\)"),
    "empty-channels": ({"input_shape": (64, 64, 0)}, r"at least one channel; Received: input_shape=\(64, 64, 0\)"),
    "head": ({"head": "mean"}, r"one of \('average', 'both', 'single'\)\. Received: head='mean'"),
    "pooling": ({"include_top": False, "pooling": "mean"}, r"None, 'avg' or 'max'\. Received: pooling='mean'"),
    "poolings": ({"include_top": False, "pooling": ["avg"]}, r"Received: pooling=\['avg'\]"),
    "no-drop": ({"drop_path_rate": None}, "Received: drop_path_rate=None"),
    "certain-drop": ({"drop_path_rate": 1.0}, r"range \[0, 1\)\. Received: drop_path_rate=1\.0"),
    "negative-drop": ({"drop_path_rate": -0.1}, r"Received: drop_path_rate=-0\.1"),
    "weights": ({"weights": "imagenet21k"}, r'"imagenet", "imagenet-300"\).* Received: weights=imagenet21k'),
    "weights-type": ({"weights": 3}, "`None`, a name or a path. Received: weights=3"),
    "missing-file": ({"weights": "no/such.safetensors"}, r"Received: weights=no/such\.safetensors"),
    "classes-of-imagenet": (
        {"weights": "imagenet", "classes": 10},
        r"`weights='imagenet'` with `include_top=True`, `classes` should be 1000\. Received classes=10",
    ),
    "activation-of-imagenet": (
        {"weights": "imagenet", "classifier_activation": "relu"},
        r"Only `None` and `softmax` .* `classifier_activation` argument when using pretrained .*activation=relu",
    ),
    # No download is worth these.
    "small-of-imagenet": ({"weights": "imagenet", "input_shape": (16, 16, 3)}, "at least 32x32"),
    "grey-of-imagenet": ({"weights": "imagenet", "input_shape": (224, 224, 1)}, "must have 3 channels"),
    "unknown-activation": ({"classifier_activation": "sotfmax"}, "sotfmax"),
    "tensor-and-shape": (
        {"input_tensor": keras.Input((64, 64, 3)), "input_shape": (96, 64, 3)},
        r"differ\. Received: input_tensor of shape \(None, 64, 64, 3\), input_shape=\(96, 64, 3\)",
    ),
    "small-tensor": ({"input_tensor": keras.Input((16, 64, 3))}, "at least 32x32"),
    "tensor-of-any-size": ({"input_tensor": keras.Input((None, None, 3))}, "three integers"),
    "tensors": ({"input_tensor": [keras.Input((64, 64, 3))]}, "must be a Keras tensor.* of type list"),
    "whole-numbers": (
        {"input_tensor": keras.Input((64, 64, 3), dtype="uint8")},
        "Received: input_tensor of dtype uint8; pass include_preprocessing=True",
    ),
    "bytes with a mean of one's own": (
        {"input_tensor": keras.Input((224, 224, 3), dtype="uint8"), "mean": (0.5,) * 3, "std": (0.5,) * 3},
        "Received: input_tensor of dtype uint8; pass include_preprocessing=True",
    ),
}


def test_numbers_of_numpy(tmp_path):
    shape = {name: np.array(value) for name, value in SMALL.items()} | {"num_meta3d": np.int64(1)}
    model = kef.EfficientFormer(**shape, input_shape=(64, np.int64(64), 3), classes=np.int64(7))
    model.save(tmp_path / "m.keras")
    assert keras.saving.load_model(tmp_path / "m.keras").output_shape == (None, 7)


def test_raw_images_as_bytes():
    model = kef.EfficientFormer(
        **SMALL, input_tensor=keras.Input((64, 64, 3), dtype="uint8"), include_preprocessing=True
    )
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), "uint8")
    floats = keras.models.clone_model(model, keras.Input((64, 64, 3)))
    floats.set_weights(model.get_weights())
    np.testing.assert_array_equal(run(model, images), run(floats, images.astype("float32")))


def test_global_channels_first_later_changes_nothing(loud, tmp_path):
    model, images = loud(), timm_reference.images(64, 64)
    expected = model.predict(images, verbose=0)
    model.save(tmp_path / "model.keras")
    keras.config.set_image_data_format("channels_first")
    try:
        for same in (model, keras.saving.load_model(tmp_path / "model.keras")):
            np.testing.assert_allclose(same(images), expected, atol=1e-6)
    finally:
        keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kef.EfficientFormerL1(**{"weights": None, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": (1, 1, 2)}, r"four integers >= 0\. Received: depths=\(1, 1, 2\)"),
        ({"depths": (1, -1, 1, 2)}, r"four integers >= 0\. Received: depths=\(1, -1, 1, 2\)"),
        ({"depths": (1.0, 1, 1, 2)}, r"Received: depths=\(1\.0, 1, 1, 2\)"),
        ({"depths": 6}, "Received: depths=6"),
        ({"widths": (8.0, 16, 24, 32)}, r"Received: widths=\(8\.0, 16, 24, 32\)"),
        ({"num_meta3d": None}, "Received: num_meta3d=None"),
        ({"widths": (8, 16, 24)}, r"Received: widths=\(8, 16, 24\)"),
        ({"widths": (8, 0, 24, 32)}, r"Received: widths=\(8, 0, 24, 32\)"),
        ({"widths": (9, 16, 24, 32)}, r"the first even\. Received: widths=\(9, 16, 24, 32\)"),
        ({"num_meta3d": 3}, "Received: num_meta3d=3"),
        ({"num_meta3d": -1}, "Received: num_meta3d=-1"),
        ({"weights": "imagenet"}, "a network of these depths and widths has none"),
    ],
    ids=[
        "depths",
        "negative-depth",
        "half-depths",
        "one-depth",
        "half-widths",
        "no-meta3d",
        "widths",
        "no-width",
        "odd-width",
        "meta3d",
        "negative-meta3d",
        "weights",
    ],
)
def test_bad_architectures(arguments, message):
    with pytest.raises(ValueError, match=message):
        kef.EfficientFormer(**{**SMALL, **arguments})


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match=r"channels-last only.*set_image_data_format\('channels_last'\)"):
            kef.EfficientFormerL1(weights=None)
    finally:
        keras.config.set_image_data_format("channels_last")


# The published variants.


def test_parameters(published):
    variant, model = published
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == PARAMETERS[variant]
    assert model.name == f"efficientformer_{variant}"
    assert model.input_shape == (None, 224, 224, 3)
    assert model.output_shape == (None, 1000)


def test_summary_fits_a_screen(published):
    lines = []
    published[1].summary(print_fn=lambda text: lines.extend(text.splitlines()))
    assert len(lines) <= 45
    text = "\n".join(lines)
    assert all(name in text for name in ("stem", *STAGES, "norm", "avg_pool", "head", "head_dist", "predictions"))
    assert "multiple" not in text  # shapes are known


def test_stage_shapes(published):
    variant, model = published
    shapes = [model.get_layer(name).output.shape for name in STAGES]
    assert shapes == [(None, s, s, w) for s, w in zip((56, 28, 14, 7), VARIANTS[variant].widths, strict=True)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_stochastic_depth_grows_as_in_timm(variant):
    model = entry_point(variant)(weights=None, include_top=False, input_shape=(32, 32, 3), drop_path_rate=0.3)
    rates = [[block.drop_path1.rate for block in model.get_layer(name).blocks] for name in STAGES]
    assert rates == [[block.drop_path2.rate for block in model.get_layer(name).blocks] for name in STAGES]
    expected = timm.layers.calculate_drop_path_rates(0.3, list(VARIANTS[variant].depths), stagewise=True)
    for found, wanted in zip(rates, expected, strict=True):
        close(np.array(found), np.array(wanted), 1e-7)


# Inputs and outputs.


@pytest.mark.parametrize("sides", [(32, 32), (33, 33), (47, 65), (160, 224), (224, 32)], ids=str)
def test_any_size_and_batch(loud, sides):
    model = loud(input_shape=(*sides, 3), classifier_activation=None)
    assert model.input_shape == (None, *sides, 3)
    images = timm_reference.images(*sides, batch=3)
    three, one = model.predict(images, verbose=0), model.predict(images[1:2], verbose=0)
    assert three.shape == (3, 10)
    close(one, three[1:2])
    close(run(model, images), three)
    assert np.ptp(three, axis=0).max() > 1e-4


@pytest.mark.parametrize(("pooling", "shape"), [(None, (2, 2, 3, 32)), ("avg", (2, 32)), ("max", (2, 32))])
def test_without_top(loud, pooling, shape):
    model = loud(include_top=False, pooling=pooling, input_shape=(47, 65, 3))
    assert model.output_shape == (None, *shape[1:])
    assert run(model, timm_reference.images(47, 65)).shape == shape


def test_heads(loud):
    images = timm_reference.images(64, 64)
    one, two = run(loud(head="both", classifier_activation=None), images)
    assert np.abs(one - two).max() > 0.01
    close(run(loud(head="average", classifier_activation=None), images), (one + two) / 2)
    close(run(loud(head="single", classifier_activation=None), images), one)
    close(run(loud(head="both"), images), [softmax(one), softmax(two)])
    close(run(loud(), images), softmax((one + two) / 2))
    close(run(loud(classifier_activation="sigmoid"), images), 1 / (1 + np.exp(-(one + two) / 2)))


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_input_tensor(loud):
    """A Keras input, or what layers of one's own make of it."""
    raw = keras.Input((64, 64, 3), name="pixels")
    scaled = keras.layers.Rescaling(1 / 127.5, -1)(raw)
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    expected = run(loud(), images / 127.5 - 1)
    model = loud(input_tensor=scaled, input_shape=None)
    assert [tensor.name for tensor in model.inputs] == ["pixels"]
    close(run(model, images), expected)
    close(run(loud(input_tensor=raw), images / 127.5 - 1), expected)


def test_stage_outputs_by_name(loud):
    model = loud()
    stages = keras.Model(model.inputs[0], [model.get_layer(name).output for name in STAGES])
    shapes = [output.shape for output in run(stages, timm_reference.images(64, 64))]
    assert shapes == [(2, 16, 16, 8), (2, 8, 8, 16), (2, 4, 4, 24), (2, 2, 2, 32)]


def test_clone(loud):
    model = loud(head="both")
    clone = keras.models.clone_model(model)
    images = timm_reference.images(64, 64)
    assert not np.allclose(run(clone, images)[0], run(model, images)[0])
    clone.set_weights(model.get_weights())
    close(run(clone, images), run(model, images), 0)


def test_config_round_trip(loud):
    model = loud(drop_path_rate=0.1)
    again = keras.Model.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    again.set_weights(model.get_weights())
    close(run(again, timm_reference.images(64, 64)), run(model, timm_reference.images(64, 64)), 0)


def _saved(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


@pytest.mark.parametrize("copied", [lambda model, _: keras.models.clone_model(model), _saved], ids=["clone", "file"])
def test_frozen_parts_stay_frozen(copied, tmp_path):
    """A whole layer, a block without one part of it, and all norms of a stage."""
    model = kef.EfficientFormer((1, 1, 1, 2), (8, 8, 8, 8), input_shape=(32, 32, 3), classes=2)
    model.get_layer("stem").trainable = False
    block = model.get_layer("stage4").blocks[0]
    block.trainable = False
    block.mlp.trainable = True
    for layer in model.get_layer("stage2")._flatten_layers():
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    copy = copied(model, tmp_path)
    for found, expected in zip(copy.layers, model.layers, strict=True):
        parts = [[part.trainable for part in layer._flatten_layers()] for layer in (found, expected)]
        assert parts[0] == parts[1]
    learned = [len(each.trainable_variables) for each in (copy, model)]
    assert learned[0] == learned[1]


def test_weights_file(loud, tmp_path):
    """Keras' own `load_weights`, which goes by the order of the layers."""
    model, other = loud(), kef.EfficientFormer(**SMALL, classes=10, input_shape=(64, 64, 3))
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), other.get_weights(), strict=True))


# Whole models in files, opened by a program that knows nothing but the package's name.

SAVED = {
    "average": ("float32", {}),
    "both": ("float32", {"head": "both", "drop_path_rate": 0.2}),
    "single": ("float32", {"head": "single", "classifier_activation": None}),
    "features": ("float32", {"include_top": False}),
    "oblong": ("float32", {"input_shape": (47, 65, 3)}),
    "embedding": ("mixed_float16", {"include_top": False, "pooling": "avg"}),
    "mixed_float16": ("mixed_float16", {}),
    "mixed_bfloat16": ("mixed_bfloat16", {"head": "both"}),
}
OPEN = """
import json, sys
from pathlib import Path
import keras, numpy as np
import keras_efficientformer

found = {}
for path in sorted(Path(sys.argv[1]).glob("*.keras")):
    model = keras.saving.load_model(path, safe_mode=True)
    outputs = keras.tree.flatten(model(np.load(path.with_suffix(".npy")), training=False))
    np.savez(path.with_suffix(".npz"), *[keras.ops.convert_to_numpy(keras.ops.cast(y, "float32")) for y in outputs])
    layers = model._flatten_layers(include_self=False)
    policies = [(layer.name, layer.dtype_policy.name) for layer in layers if type(layer) is not keras.layers.InputLayer]
    found[path.stem] = [sorted(policies), keras.config.dtype_policy().name]
Path(sys.argv[1], "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def opened(loud, tmp_path_factory):
    """{name: (model, its images, outputs of the opened file, policies of its layers and of the program)}."""
    folder = tmp_path_factory.mktemp("saved")
    models, images = {}, {}
    for name, (dtype, arguments) in SAVED.items():
        with policy(dtype):
            models[name] = loud(**arguments)
        images[name] = timm_reference.images(*models[name].input_shape[1:3])
        models[name].save(folder / f"{name}.keras")
        np.save(folder / f"{name}.npy", images[name])
    program = forked.programs(dict(os.environ)) / "python"
    subprocess.run([program, "-c", OPEN, folder], check=True, timeout=HANG)
    found = json.loads((folder / "found.json").read_text())
    return {
        name: (models[name], images[name], list(np.load(folder / f"{name}.npz").values()), *found[name])
        for name in SAVED
    }


@pytest.mark.parametrize("name", SAVED)
def test_keras_file(opened, name):
    model, images, outputs, policies, program = opened[name]
    expected = [output.astype("float32") for output in keras.tree.flatten(run(model, images))]
    close(outputs, expected, 0)
    assert program == "float32"
    assert [tuple(layer) for layer in policies] == layers_with_policies(model)
    assert {dtype for _, dtype in layers_with_policies(model)} <= {SAVED[name][0], "float32"}


# Precision and training.


@pytest.mark.parametrize(("name", "tolerance"), [("mixed_float16", 2e-3), ("mixed_bfloat16", 2e-2)])
def test_mixed_precision(loud, name, tolerance):
    images = timm_reference.images(64, 64)
    expected = run(loud(head="both", classifier_activation=None), images)
    with policy(name):
        model = compiled(loud(head="both", classifier_activation=None))
    found = run(model, images)
    assert all(output.dtype == "float32" for output in found)
    assert all(weight.dtype == "float32" for weight in model.weights)
    assert {layer.compute_dtype for layer in model.get_layer("stage4").blocks} == {name.removeprefix("mixed_")}
    close(found, expected, tolerance)
    assert np.abs(found[0] - expected[0]).max() > 0  # it did compute in another precision


@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16"])
def test_training_in_mixed_precision(loud, name):
    with policy(name):
        model = compiled(loud())
        history = model.fit(timm_reference.images(64, 64), labels(2), verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_fit_changes_every_weight(loud):
    """But for the biases before a BatchNorm, which takes them out again while training."""
    model = compiled(loud(drop_path_rate=0.1))
    before = [np.array(weight) for weight in model.weights]
    model.fit(timm_reference.images(64, 64, batch=8), labels(8), batch_size=8, verbose=0)
    for weight, old in zip(model.weights, before, strict=True):
        if not weight.path.endswith(("conv/bias", "mlp/fc1/bias", "mlp/fc2/bias")):
            assert not np.array_equal(weight, old), weight.path


def test_fit_with_two_losses(loud):
    model = compiled(loud(head="both"))
    images, targets = timm_reference.images(64, 64, batch=4), labels(4)
    history = model.fit(images, [targets, targets], epochs=6, batch_size=4, verbose=0).history
    assert {"loss", "predictions_loss", "predictions_dist_loss"} <= history.keys()
    assert history["loss"][-1] < 0.8 * history["loss"][0]


def test_stochastic_depth_acts_in_training_only(loud):
    model, plain = loud(drop_path_rate=0.9), loud()
    images = timm_reference.images(64, 64)
    close(run(model, images), run(plain, images), 0)
    once, twice = (np.array(model(images, training=True)) for _ in range(2))
    assert np.abs(once - twice).max() > 1e-6
