"""Where an exported file errs: the report names the layer that was hurt, on a network small enough to hurt by hand."""

import functools
import json
import math

import keras
import numpy as np
import pytest
from networks import SMALLEST_V2, make_loud
from rich.console import Console

import keras_efficientformer as kef
from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.deploy.layer_errors import layer_errors
from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.deploy.tflite.modes import stored_bits
from keras_efficientformer.images import seeded_images
from keras_efficientformer.segmentation import SemanticFPN

IMAGES = seeded_images((64, 64, 3))
NO_OPERATION = {"tokens", "feature_map", "output"}
V2 = {"depths": (1, 1, 1, 2), "widths": (8, 16, 24, 32), "num_attention": 1, "mlp_ratios": ((4,), (4,), (4,), (4, 4))}


@pytest.fixture(scope="module")
def small(build):
    return build()


@pytest.fixture(scope="module")
def errors(small, tmp_path_factory):
    """The errors of the small network's file in a mode."""
    folder = tmp_path_factory.mktemp("layers")

    @functools.cache
    def errors(mode, **arguments):
        return layer_errors(export(small, folder / f"{mode}.tflite", quantize=mode, **arguments), small, IMAGES)

    return errors


def export(model, path, **arguments):
    function = export_tflite if path.suffix == ".tflite" else export_coreml
    images = {"calibration": IMAGES} if path.suffix == ".tflite" else {}
    function(model, path, max_difference=math.inf, **images, **arguments)
    return path


def hurt(model):
    """With a convolution whose largest weights, by far, are for an input that is always zero: nothing of the function
    changes, but in int8 its other weights are zero."""
    mlp = model.get_layer("stage3").blocks[0].mlp
    bias, kernel = (keras.ops.convert_to_numpy(weights).copy() for weights in (mlp.norm1.beta, mlp.fc2.kernel))
    bias[0] = -30.0
    kernel[:, :, 0] = 300.0 * np.abs(kernel).max()
    mlp.norm1.beta.assign(bias)
    mlp.fc2.kernel.assign(kernel)
    return model


def loud_v2():
    model = kef.EfficientFormerV2(**V2, input_shape=(64, 64, 3), classes=10)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.path.endswith(("gamma", "variance")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif len(variable.shape) < 3:
            variable.assign(rng.uniform(-0.3, 0.3, variable.shape))
    return model


@pytest.mark.parametrize("mode", ["none", "float16", "dynamic", "weight_only", "int8", "int8_integer", "int16x8"])
def test_every_step_of_every_mode(small, errors, mode):
    network, layers = fuse(small), errors(mode).layers
    named = [operation for layer in layers for operation in layer.operation.split(" + ")]
    assert named == [step.operation for step in network.steps if step.operation != "output"]
    assert [layer.location for layer in layers] == [network.steps[layer.step].location for layer in layers]
    assert all(layer.location for layer in layers)
    assert all(0 <= layer.added < 0.05 and layer.error < 0.15 for layer in layers)


def test_a_float32_file_has_no_error(errors):
    layers = errors("none").layers
    assert max(layer.error for layer in layers) < 5e-6
    assert {layer.dtype for layer in layers} == {"float32"}
    assert {layer.weights for layer in layers} == {"float32", None}


def test_an_int8_file_errs_and_every_layer_says_how_much(errors):
    layers = errors("int8").layers
    convolutions = [layer for layer in layers if "convolution" in layer.operation]
    assert {(layer.dtype, layer.weights) for layer in convolutions} == {("int8", "int8")}
    assert all(0 < layer.added <= 1.05 * layer.error for layer in convolutions)
    assert all(layer.snr_db == pytest.approx(-20 * math.log10(layer.error)) for layer in convolutions)
    # Where nothing is rounded, nothing is added to the error that came in.
    (scores,) = (layer for layer in layers if layer.operation == "scores")
    assert scores.dtype == "float32"
    assert scores.added < 1e-5 < 0.01 < scores.error


def test_errors_of_weights_alone(errors):
    for mode, stored in (("float16", "float16"), ("weight_only", "int8"), ("dynamic", "int8")):
        layers = [layer for layer in errors(mode).layers if layer.operation == "dense"]
        assert {(layer.dtype, layer.weights) for layer in layers} == {("float32", stored)}
        assert all(layer.added > 1e-5 for layer in layers)
    sums = [sum(layer.added for layer in errors(mode).layers) for mode in ("float16", "weight_only", "int8")]
    assert sums[0] < 0.1 * sums[1] < 0.1 * sums[2]


def test_chosen_bits_are_named(small, errors):
    steps, layers = fuse(small).steps, errors("auto", max_drop=100).layers  # all have the fewest
    products = [layer for layer in layers if layer.operation in ("dense", "convolution")]
    assert [layer.weights for layer in products] == [f"int{stored_bits(steps[layer.step])[0]}" for layer in products]
    assert {layer.weights for layer in products} == {"int4", "int8"}


@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("model.tflite", {"quantize": "int8"}),
        ("model.tflite", {"quantize": "weight_only"}),
        ("model.mlpackage", {"compress": "int8"}),
    ],
    ids=["int8", "weight_only", "Core ML"],
)
def test_the_hurt_layer_is_named_first(build, tmp_path, file, arguments):
    model = hurt(build())
    found = layer_errors(export(model, tmp_path / file, **arguments), model, IMAGES)
    worst, second = found.worst(2)
    assert (worst.location, worst.operation) == ("stage3.blocks.0.mlp.fc2", "convolution")
    assert worst.added > 0.5 > 5 * second.added
    # Its error goes on; that it came from there is what the layers after it do not say.
    (after,) = (layer for layer in found.layers if layer.step == worst.step + 1)
    assert after.error > 5 * after.added


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ({"head": "both"}, {"batch_size": 3}),
        ({"include_top": False}, {"include_preprocessing": False}),
        ({"include_top": False, "pooling": "avg", "input_shape": (64, 96, 3)}, {}),
        ({"num_meta3d": 0, "classifier_activation": "softmax"}, {}),
    ],
    ids=["two heads, batches of three", "features, no preprocessing", "embedding, not square", "no attention"],
)
def test_other_networks(tmp_path, arguments, settings):
    model = small_network(**arguments)
    for mode, bound in (("none", 5e-6), ("int8", 0.12)):
        path = tmp_path / f"{mode}.tflite"
        export_tflite(model, path, quantize=mode, calibration=images_for(model), max_difference=math.inf, **settings)
        found = layer_errors(path, model, images_for(model))
        assert 0 < max(layer.error for layer in found.layers) < bound


def images_for(model):
    return seeded_images(tuple(model.inputs[0].shape[1:]))


def small_network(**arguments):
    keras.utils.set_random_seed(0)
    arguments = {"depths": (1, 1, 1, 2), "widths": (8, 16, 24, 32), "num_meta3d": 1, "classes": 10} | arguments
    model = kef.EfficientFormer(**{"input_shape": (64, 64, 3)} | arguments)
    model.get_layer("norm").gamma.assign(np.linspace(0.5, 1.5, 32))  # of a fresh one no step is left in the file
    for number in (1, 2, 3, 4):
        for block in model.get_layer(f"stage{number}").blocks:
            # Under a fresh layer scale int8 rounds a branch away, as it may.
            block.ls1.gamma.assign(np.full(block.ls1.gamma.shape, 0.2))
            block.ls2.gamma.assign(np.full(block.ls2.gamma.shape, 0.2))
    return model


@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_integer_input_and_output(small, tmp_path, io):
    path = export(small, tmp_path / "model.tflite", quantize="int8_integer", io=io)
    layers = layer_errors(path, small, IMAGES).layers
    assert layers[-1].operation == "softmax"
    assert 1e-4 < layers[-1].error < 0.05


@pytest.mark.parametrize(("mode", "bound"), [("none", 5e-6), ("float16", 5e-3), ("int8", 0.2)])
def test_the_second_family(tmp_path, mode, bound):
    model = loud_v2()
    found = layer_errors(export(model, tmp_path / "model.tflite", quantize=mode), model, IMAGES)
    assert 0 < max(layer.error for layer in found.layers) < bound
    locations = {layer.location for layer in found.layers}
    assert {"stage4.blocks.1.token_mixer.talking_head2", "stage4.downsample.attn.q.proj"} <= locations


@pytest.mark.parametrize(
    ("arguments", "dtypes", "bound"),
    [
        ({"precision": "float32"}, {("float32", "float32")}, 5e-6),
        ({"feature_maps": True}, {("float16", "float16")}, 5e-3),
        ({"compress": "palette6"}, {("float16", "float16"), ("float16", "palette")}, 0.3),
        # What is fused with the ReLU after it is rounded there.
        (
            {"compress": "w8a8", "minimum_ios": 17, "calibration": IMAGES},
            {("float16", "int8"), ("int8", "int8")},
            0.3,
        ),
    ],
    ids=["float32", "float16", "palette6", "w8a8"],
)
def test_core_ml_packages(small, tmp_path, arguments, dtypes, bound):
    path = export(small, tmp_path / "model.mlpackage", **arguments)
    network = fuse(small, feature_maps="feature_maps" in arguments)
    layers = layer_errors(path, small, IMAGES).layers
    convolutions = [layer for layer in layers if "convolution" in layer.operation]
    assert {(layer.dtype, layer.weights) for layer in convolutions} == dtypes
    assert max(layer.error for layer in layers) < bound
    operations = [step.operation for step in network.steps if step.operation not in NO_OPERATION]
    named = [operation for layer in layers for operation in layer.operation.split(" + ")]
    assert [operation for operation in named if operation not in NO_OPERATION] == operations


def test_core_ml_packages_without_a_classifier(tmp_path):
    """The last step has the output's name alone, or is left out of a package of class numbers."""
    features = small_network(include_top=False)
    found = layer_errors(export(features, tmp_path / "features.mlpackage"), features, IMAGES)
    assert found.layers[-1].operation == "affine"
    segmenter = SemanticFPN(features, classes=3, pyramid_channels=8, head_channels=8)
    path = export(segmenter, tmp_path / "classes.mlpackage", mask_output="classes")
    found = layer_errors(path, segmenter, IMAGES)
    assert found.layers[-1].location == "logits_enlarged"


def test_int8_values_that_are_only_moved(tmp_path):
    model = kef.EfficientFormerV2(**SMALLEST_V2)
    make_loud(model)
    path = export(model, tmp_path / "model.mlpackage", compress="w8a8", minimum_ios=17, calibration=IMAGES)
    layers = layer_errors(path, model, IMAGES).layers
    moved = {(layer.dtype, layer.weights) for layer in layers if layer.operation.endswith("to_heads")}
    assert moved == {("int8", None)}
    assert max(layer.error for layer in layers) < 0.1


def test_exporting_after_comparing_makes_the_same_package(small, tmp_path):
    before = export(small, tmp_path / "before.mlpackage")
    layer_errors(before, small, IMAGES)
    after = export(small, tmp_path / "after.mlpackage")
    first, second = (next(path.rglob("*.mlmodel")).read_bytes() for path in (before, after))
    assert len(first) == len(second)


def test_report(errors):
    found = errors("int8")
    values = json.loads(found.to_json())
    assert (values["images"], values["images_from"]) == (len(IMAGES), "the given arrays")
    assert [layer["step"] for layer in values["layers"]] == [layer.step for layer in found.layers]
    assert values["layers"][5]["added"] == found.layers[5].added
    worst = found.worst(3)
    assert [layer.added for layer in worst] == sorted((layer.added for layer in found.layers), reverse=True)[:3]
    console = Console(width=160, record=True)
    console.print(found)
    text = console.export_text()
    places = [text.index(f" {layer.added:.2%} ", text.index(layer.location)) for layer in worst]
    assert places == sorted(places)
    assert f"Of {len(found.layers)}" in text


def test_an_error_of_zero_is_null_in_json(errors):
    layers = json.loads(errors("none").to_json())["layers"]
    assert layers[0]["error"] == 0
    assert layers[0]["snr_db"] is None


# What cannot be compared.


@pytest.fixture(scope="module")
def files(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {suffix: export(small, folder / f"model_{suffix[1:]}{suffix}") for suffix in (".tflite", ".mlpackage")}


@pytest.mark.parametrize("suffix", [".tflite", ".mlpackage"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"input_shape": (96, 64, 3)}, r"has an input of .*64, 64, 3.*from \[96, 64, 3\]"),
        ({"classes": 12}, "to 12 classes"),
        ({"widths": (8, 16, 32, 32)}, "step"),
        ({"depths": (1, 2, 1, 2)}, "network of 54 steps"),
        ({"classifier_activation": None}, r"\(logits\)"),
    ],
    ids=["size", "classes", "widths", "depths", "activation"],
)
def test_another_model(files, suffix, arguments, words):
    with pytest.raises(ValueError, match=f"was not made of this model: .*{words}"):
        layer_errors(files[suffix], small_network(**arguments))


def test_a_file_of_another_maker(small, tmp_path):
    import tensorflow as tf

    layer = keras.Sequential([keras.Input((64, 64, 3), batch_size=1), keras.layers.Conv2D(4, 3)])
    path = tmp_path / "other.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(layer).convert())
    with pytest.raises(ValueError, match="not made by export_tflite, or by an older version"):
        layer_errors(path, small)


def test_a_package_of_another_maker(small, tmp_path):
    import coremltools
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3, 64, 64))], opset_version=coremltools.target.iOS16)
    def program(image):
        return mb.relu(x=image)

    package = coremltools.convert(program, minimum_deployment_target=coremltools.target.iOS16, skip_model_load=True)
    package.save(str(tmp_path / "other.mlpackage"))
    with pytest.raises(ValueError, match="not made by export_coreml, or by an older version"):
        layer_errors(tmp_path / "other.mlpackage", small)


def test_other_files(small, files, tmp_path):
    with pytest.raises(ValueError, match=r"neither a \.tflite file nor a \.mlpackage"):
        layer_errors(tmp_path / "model.keras", small)
    for name in ("missing.tflite", "missing.mlpackage"):
        with pytest.raises(OSError, match="missing"):
            layer_errors(tmp_path / name, small)
    with pytest.raises(ValueError, match="is not an EfficientFormer of this package"):
        layer_errors(files[".tflite"], keras.Sequential([keras.Input((64, 64, 3)), keras.layers.Flatten()]))
    with pytest.raises(ValueError, match="holds no images"):
        layer_errors(files[".tflite"], small, tmp_path)
