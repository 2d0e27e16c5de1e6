"""Quantization-aware training: the tf_keras model computes what its int8 file does; and the way back.

One small network of each family is trained for two batches; ranges, weights and file are what most tests look at.
"""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from networks import SMALL, SMALLEST_V2, make_loud
from project import HANG, NO_COLLECTOR
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils
from timm_reference_v2 import SMALL as SMALL_V2

import keras_efficientformer as kef
from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.deploy.network.keras_builder import KerasBuilder
from keras_efficientformer.deploy.network.tf_keras_builder import build_tf_keras, trained_network, trained_ranges
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.images import seeded_images
from keras_efficientformer.training.compression.quantization import quantize_aware, to_keras
from keras_efficientformer.training.compression.quantize_configs import (
    DECAY,
    CurrentRange,
    LearntRange,
    quantized_steps,
)
from keras_efficientformer.training.compression.unfusing import unfuse

IMAGES = seeded_images((64, 64, 3))
CLASSES = np.array([1, 3, 5, 7])
# Of probabilities that change by 0.2 from image to image; a few times what was measured.
ROUNDING = 0.03


def small(build, **arguments):
    """With a first stage that is computed plainly, the others being deferred."""
    model = build(**arguments)
    for block in model.get_layer("stage1").blocks:
        block.ls1.gamma.assign(np.linspace(0.1, 0.95, block.dim))
    return model


def in_keras(network, images=IMAGES):
    return [np.asarray(output) for output in network.build(KerasBuilder(images)).values()]


def as_list(outputs):
    return [np.asarray(output) for output in (outputs if isinstance(outputs, list) else [outputs])]


@pytest.fixture(scope="module")
def model(build):
    return small(build)


@pytest.fixture(scope="module")
def untrained(model):
    return quantize_aware(model)


@pytest.fixture(scope="module")
def trained(model):
    return train(model)


def train(model):
    """Two batches at a rate that moves every weight by more than rounding does."""
    qat_model = quantize_aware(model)
    qat_model.compile(tf_keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    qat_model.fit(IMAGES, CLASSES, batch_size=2, shuffle=False, verbose=0)
    return qat_model


@pytest.fixture(scope="module")
def files(model, trained, tmp_path_factory):
    return export_both(model, trained, tmp_path_factory.mktemp("qat"))


def export_both(model, trained, folder):
    """Reports of the trained int8 file, and of the plain one of the untrained model."""
    return (
        export_tflite(trained, folder / "trained.tflite", quantize="int8"),
        export_tflite(model, folder / "plain.tflite", quantize="int8", calibration=IMAGES),
    )


@pytest.fixture(scope="module")
def second_family(tmp_path_factory):
    model = make_loud(kef.EfficientFormerV2(**SMALLEST_V2))
    trained = train(model)
    return model, trained, export_both(model, trained, tmp_path_factory.mktemp("qat"))


@pytest.fixture(params=["first family", "second family"])
def either(request):
    """A model of each family, what was trained of it, and its files."""
    if request.param == "second family":
        return request.getfixturevalue("second_family")
    return tuple(request.getfixturevalue(name) for name in ("model", "trained", "files"))


# The tf_keras model, and the way back.

KINDS = {
    "classifier": {},
    "two outputs, not square": {"head": "both", "input_shape": (64, 96, 3)},
    "sigmoid, odd size": {"classifier_activation": "sigmoid", "input_shape": (75, 47, 3)},
    "logits, one token": {"classifier_activation": None, "input_shape": (32, 32, 3)},
    "features": {"include_top": False},
    "average of features": {"include_top": False, "pooling": "avg"},
    "maximum of features, no attention": {"include_top": False, "pooling": "max", "num_meta3d": 0},
    "last stage all attention": {"num_meta3d": 2},
    "empty stages": {"depths": (0, 2, 0, 1)},
    "second family, two outputs, odd size": {**SMALL_V2, "head": "both", "input_shape": (75, 47, 3), "classes": 10},
    "second family, features": {**SMALLEST_V2, "include_top": False},
}


def loud(arguments):
    """A model whose every weight is drawn, and whose first stage is computed plainly."""
    if "mlp_ratios" in arguments:
        return make_loud(kef.EfficientFormerV2(**arguments))
    rng = np.random.default_rng(0)
    model = kef.EfficientFormer(**{**SMALL, **arguments})
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.1, 0.85, variable.shape))
        else:
            variable.assign(rng.normal(0, 0.3, variable.shape))
    for block in model.get_layer("stage1").blocks:
        block.ls1.gamma.assign(np.linspace(0.1, 0.95, block.dim))
    return model


@pytest.mark.parametrize("arguments", KINDS.values(), ids=KINDS)
def test_tf_keras_model_and_the_way_back_equal_keras(arguments):
    model = loud(arguments)
    images = seeded_images(model.inputs[0].shape[1:])
    network = fuse(model, "head" not in arguments)
    expected = as_list(model(preprocess_input(images)))
    fused = as_list(build_tf_keras(network)(images if network.preprocessing else preprocess_input(images)))
    back = as_list(unfuse(network)(preprocess_input(images)))
    for wanted, *found in zip(expected, fused, back, strict=True):
        assert np.ptp(wanted, axis=0).max() > 0.01
        largest = max(1.0, np.abs(wanted).max())
        for output, tolerance in zip(found, (1e-5, 1e-4), strict=True):
            np.testing.assert_allclose(output, wanted, rtol=0, atol=tolerance * largest)


def test_the_way_back_is_made_of_identities(model):
    back = unfuse(fuse(model))
    assert back.name == model.name
    assert [variable.path for variable in back.weights] == [variable.path for variable in model.weights]
    for variable in back.weights:
        if "norm" in variable.path:
            expected = {"gamma": 1, "beta": 0, "moving_mean": 0, "moving_variance": np.float32(1 - 1e-5)}[variable.name]
            assert np.all(np.asarray(variable) == expected), variable.path
        if "/ls2/" in variable.path:
            assert np.all(np.asarray(variable) == 1), variable.path
    heads = [[np.asarray(weight) for weight in back.get_layer(name).weights] for name in ("head", "head_dist")]
    for one, other in zip(*heads, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(
        back.get_layer("stage4").blocks[1].token_mixer.attention_biases,
        model.get_layer("stage4").blocks[1].token_mixer.attention_biases,
    )


def test_a_mixer_that_no_layer_scale_gives_is_refused(model):
    network = fuse(model)
    steps = [
        dataclasses.replace(step, arguments={**step.arguments, "pooled": step.arguments["pooled"] - 1.2})
        if step.operation == "pooling_mixer"
        else step
        for step in network.steps
    ]
    with pytest.raises(ValueError, match=r"a pooling mixer whose two factors add up to -0\..*lower learning rate"):
        unfuse(dataclasses.replace(network, steps=tuple(steps)))


def test_talking_heads_that_pass_no_biases_are_refused(second_family):
    network = fuse(second_family[0])
    steps = [
        dataclasses.replace(step, arguments={**step.arguments, "weights": np.ones_like(step.arguments["weights"])})
        if step.operation == "talking_heads"
        else step
        for step in network.steps
    ]
    with pytest.raises(ValueError, match=r"talking heads whose matrix is of the condition.*lower learning rate"):
        unfuse(dataclasses.replace(network, steps=tuple(steps)))


def test_other_windows_of_the_pooling_mixer_are_refused(build):
    model = build()
    model.get_layer("stage2").blocks[0].token_mixer.pool_size = 5
    with pytest.raises(ValueError, match=r"pooling mixers of the sizes \[5\].*3x3 pixels only.*calibration images"):
        quantize_aware(model)


def test_everything_is_a_layer_that_tfmot_can_wrap(untrained):
    kinds = {type(layer).__name__ for layer in untrained.layers}
    assert not {kind for kind in kinds if kind.startswith(("TFOp", "SlicingOp"))}
    wrapped = {layer.name for layer in untrained.layers if layer.name.startswith("quant_")}
    integer = {name.removeprefix("quant_").rpartition("_")[0] for name in wrapped}
    assert integer == {
        *("image", "convolution", "relu", "pooling_mixer", "add", "gelu", "layer_norm", "dense"),
        *("merge_heads", "mean"),  # float, and taken by integer operations
    }


def test_what_is_trained(untrained):
    names = {weight.name.partition(":")[0].rpartition("/")[2] for weight in untrained.trainable_weights}
    assert names == {"kernel", "bias", "own", "pooled"}
    network = untrained.fused_network
    arguments = [argument for step in network.steps for argument in step.arguments.items()]
    arrays = [(name, value) for name, value in arguments if isinstance(value, np.ndarray)]
    expected = [name for name, value in arrays if name in ("weights", "bias", "pooled") or is_trained_own(name, value)]
    assert len(untrained.trainable_weights) == len(expected) > 30
    assert expected.count("own") == 1  # of the stage that is computed plainly


def is_trained_own(name, value):
    """A mixer's factor of its input is 1, and stays so, where its true one is deferred."""
    return name == "own" and np.any(value != 1)


def test_before_training_it_is_close_to_the_float_model(model, untrained):
    expected, found = (m.predict(x, verbose=0) for m, x in ((model, preprocess_input(IMAGES)), (untrained, IMAGES)))
    assert 1e-5 < np.abs(found - expected).max() < ROUNDING  # weights are rounded
    assert np.ptp(expected, axis=0).max() > 0.1


def test_the_model_is_left_alone(model, trained):
    np.testing.assert_array_equal(in_keras(fuse(model)), in_keras(trained.fused_network))


# After training.


def test_every_weight_has_been_trained(either):
    _, trained, _ = either
    network = trained_network(trained)
    for before, after in zip(trained.fused_network.steps, network.steps, strict=True):
        for name, array in before.arguments.items():
            if isinstance(array, np.ndarray):
                fixed = before.operation == "image" or name == "y" or (name == "own" and np.all(array == 1))
                if before.location.endswith("talking_head1") and name == "bias":
                    continue  # the softmax behind it sees next to nothing of it
                assert np.array_equal(array, after.arguments[name]) == fixed, (before.operation, name)


def test_to_keras_is_the_float_version(either):
    model, trained, _ = either
    (expected,) = in_keras(trained_network(trained))
    found = to_keras(trained).predict(preprocess_input(IMAGES), verbose=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.abs(expected - model.predict(preprocess_input(IMAGES), verbose=0)).max() > 0.01  # training did something


def test_ranges_are_of_all_that_is_quantized(trained):
    network, ranges = trained.fused_network, trained_ranges(trained)
    assert set(ranges) == quantized_steps(network)
    assert all(len(points) == 1 for points in ranges.values())
    # A LayerNorm is float inside; what a dense takes of it is quantized, what the last mean takes is not.
    norms = [n in ranges for n, s in enumerate(network.steps) if s.operation == "layer_norm"]
    assert norms == [True, True, False]
    assert all(low <= 0 <= high and high - low > 1e-3 for points in ranges.values() for low, high in points)
    relu = next(n for n, s in enumerate(network.steps) if s.operation == "relu")
    assert relu - 1 not in ranges  # the convolution before it is one operation with it


def test_ranges_of_the_second_family(second_family):
    _, trained, _ = second_family
    network, ranges = trained.fused_network, trained_ranges(trained)
    assert set(ranges) == quantized_steps(network)
    assert all(len(points) == 1 for points in ranges.values())
    learnt = {operation: [] for operation in ("scores", "softmax", "add", "merge_heads", "resize", "weighted_values")}
    for number, step in enumerate(network.steps):
        if step.operation in learnt:
            learnt[step.operation].append(number in ranges)
    # Scores and weights are quantized where talking heads take them: not in the downsampling's attention, which comes
    # second of three, nor the sum of its scores and biases, nor the last softmax.
    assert learnt["scores"] == [True, False, True]
    assert learnt["softmax"] == [True, False, True, False]
    assert learnt["add"].count(False) == 1
    assert learnt["merge_heads"] == [True, True, True]
    assert learnt["resize"] == [False]
    assert not any(learnt["weighted_values"])


# The file.


def operations(path):
    """[(operation, types of what it takes, scales of what it makes)] of a .tflite file."""
    file = flatbuffer_utils.read_model(str(path))
    (graph,) = file.subgraphs
    types = {value: name for name, value in vars(schema.TensorType).items()}
    return [
        (
            flatbuffer_utils.opcode_to_name(file, operator.opcodeIndex),
            [types[graph.tensors[index].type] for index in operator.inputs if index >= 0],
            [_scales(graph.tensors[index]) for index in operator.outputs],
        )
        for operator in graph.operators
    ]


def _scales(tensor):
    scales = None if tensor.quantization is None else tensor.quantization.scale
    return [] if scales is None else list(scales)


def test_the_file_has_the_graph_of_the_plain_one(either):
    *_, files = either
    trained_file, plain_file = files
    assert trained_file.operations == plain_file.operations
    assert trained_file.partitions == plain_file.partitions
    # Biases that are zero before training are stored once in the plain file.
    assert abs(trained_file.size - plain_file.size) < 100
    kinds = [[operation[:2] for operation in operations(file.path)] for file in files]
    assert kinds[0] == kinds[1]
    assert len(kinds[0]) > 90


def test_the_file_computes_what_training_saw(either):
    _, trained, files = either
    (difference,) = files[0].differences  # against the quantization-aware model itself
    assert difference.max < ROUNDING
    assert difference.top1_agreement == 1
    # What rounding does is much more, or the figure above would say nothing.
    (in_float,) = in_keras(trained_network(trained))
    rounded = trained.predict(IMAGES, verbose=0)
    assert difference.mean < 0.7 * np.abs(rounded - in_float).mean()


def test_every_learnt_range_is_in_the_file(either):
    _, trained, files = either
    check_learnt_ranges(trained, files[0])


def check_learnt_ranges(trained, file):
    scales = {float(scale) for _, _, made in operations(file.path) for each in made for scale in each}
    for number, points in trained_ranges(trained).items():
        for low, high in points:
            distance = min(abs(scale / ((high - low) / 255) - 1) for scale in scales)
            assert distance < 1e-3, (number, low, high)


def test_a_package_in_int8_takes_the_learnt_ranges(trained, tmp_path):
    """Symmetric ones, so that it is a little coarser than training saw."""
    report = export_coreml(trained, tmp_path, compress="w8a8", minimum_ios=17)
    assert report.differences[0].max < 2 * ROUNDING
    operations = CoreMLModel(report.path).block.operations
    scales = {
        int(operation.name.partition("_")[0].removeprefix("step")): float(operation.scale.val)
        for operation in operations
        if operation.op_type == "dequantize" and operation.name.startswith("step")
    }
    learnt = {number: max(map(abs, points[-1])) / 127 for number, points in trained_ranges(trained).items()}
    kinds = {trained.fused_network.steps[number].operation for number in scales}
    assert {"convolution", "gelu", "layer_norm", "merge_heads", "mean"} <= kinds
    known = {number: scale for number, scale in scales.items() if number in learnt and number > 0}
    assert len(known) > 20
    assert known == pytest.approx({number: learnt[number] for number in known}, rel=1e-3)


def test_weights_are_rounded_as_in_training(either):
    _, trained, files = either
    file = flatbuffer_utils.read_model(files[0].path)
    (graph,) = file.subgraphs
    scales = [_scales(tensor) for tensor in graph.tensors if len(_scales(tensor)) > 1]
    for step in trained_network(trained).steps:
        if step.operation in ("convolution", "depthwise_convolution", "talking_heads", "dense"):
            weights = step.arguments["weights"]
            expected = np.abs(weights).reshape(-1, weights.shape[-1]).max(0) / 127
            assert any(len(s) == len(expected) and np.allclose(s, expected, rtol=1e-5) for s in scales)


@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_integer_input_and_output(trained, tmp_path, io):
    report = export_tflite(trained, tmp_path, quantize="int8", io=io)
    assert (report.inputs[0].dtype, report.inputs[0].scale) == (io, 1.0)
    assert report.differences[0].max < ROUNDING


def test_other_modes_take_the_trained_weights(trained, tmp_path):
    report = export_tflite(trained, tmp_path)
    assert (report.mode, report.differences[0].max < 1e-5) == ("float32", True)
    report = export_tflite(trained, tmp_path, quantize="int8_integer", calibration=IMAGES)
    check_learnt_ranges(trained, report)
    found = LiteRTModel(report.path).predict(IMAGES)["probabilities"]
    np.testing.assert_allclose(found, trained.predict(IMAGES, verbose=0), atol=ROUNDING)


def test_without_preprocessing_and_with_two_outputs(build, tmp_path):
    model, inputs = small(build, head="both"), preprocess_input(IMAGES)
    qat_model = quantize_aware(model, include_preprocessing=False)
    qat_model.compile("sgd", "mse")
    qat_model.optimizer.learning_rate = 0.0
    qat_model.fit(inputs, model.predict(inputs, verbose=0), verbose=0)
    low, high = trained_ranges(qat_model)[0][0]
    assert (low, high) == pytest.approx((inputs.min(), inputs.max()))
    report = export_tflite(qat_model, tmp_path, quantize="int8", include_preprocessing=False)
    assert [output.name for output in report.outputs] == ["probabilities", "probabilities_distillation"]
    assert max(difference.max for difference in report.differences) < ROUNDING
    with pytest.raises(ValueError, match="made for training with include_preprocessing=False"):
        export_tflite(qat_model, tmp_path / "other.tflite", quantize="int8")


# The quantizers.


class Owner(tf_keras.layers.Layer):
    """What tfmot's wrapper is to a quantizer."""


def test_a_learnt_range_starts_with_the_first_batch():
    quantizer, layer = LearntRange("point"), Owner()
    weights = quantizer.build(None, "ignored", layer)
    assert [weight.name for weight in layer.weights] == ["point_min:0", "point_max:0"]
    values = tf.constant([0.123, 1.0, 2.55])
    np.testing.assert_array_equal(quantizer(values, False, weights), values)
    np.testing.assert_allclose(quantizer(values, True, weights), [0.12, 1.0, 2.55], atol=1e-6)
    assert [float(weights[end]) for end in ("min", "max")] == pytest.approx([0, 2.55])
    quantizer(tf.constant([-1.0, 0.5]), True, weights)
    expected = [-(1 - DECAY), DECAY * 2.55 + (1 - DECAY) * 0.5]
    assert [float(weights[end]) for end in ("min", "max")] == pytest.approx(expected)
    before = [float(weights[end]) for end in ("min", "max")]
    quantizer(values * 9, False, weights)
    assert [float(weights[end]) for end in ("min", "max")] == before


def test_gradients_pass_within_the_range_and_stop_outside():
    quantizer, layer = LearntRange("point"), Owner()
    weights = quantizer.build(None, "ignored", layer)
    quantizer(tf.constant([0.0, 1.0]), True, weights)
    values = tf.Variable([-0.5, 0.3, 2.0])
    with tf.GradientTape() as tape:
        result = tf.reduce_sum(quantizer(values, False, weights))
    np.testing.assert_array_equal(tape.gradient(result, values), [0, 1, 0])


def test_weights_are_symmetric_per_channel():
    weights = tf.constant(np.random.default_rng(0).normal(0, [1, 5, 0], (2, 2, 4, 3)).astype("float32"))
    scale = np.abs(weights).max((0, 1, 2)) / 127
    found = CurrentRange(True)(weights, False, {})
    steps = found[..., :2] / scale[:2]
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    assert np.abs(found - weights).max() <= scale.max() / 2 + 1e-6
    assert np.all(found[..., 2] == 0)


# What is refused.


def test_an_untrained_model_is_not_exported(untrained, tmp_path):
    with pytest.raises(ValueError, match=r"has not seen a batch of images.*fit\(\.\.\.\) first"):
        export_tflite(untrained, tmp_path, quantize="int8")
    assert list(tmp_path.iterdir()) == []


def test_integer_modes_beyond_int8_need_calibration(trained, tmp_path):
    with pytest.raises(ValueError, match=r"'int8_integer' measures what training has not learnt.*calibration"):
        export_tflite(trained, tmp_path, quantize="int8_integer")


def test_a_trained_model_has_one_size(trained, tmp_path):
    with pytest.raises(ValueError, match="made for training at one size and has no other"):
        export_tflite(trained, tmp_path, quantize="int8", input_sizes=[IMAGES.shape[1], 96])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("use", [to_keras, lambda model: export_tflite(model, "model.tflite")])
def test_foreign_models(use):
    foreign = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))], name="mine")
    with pytest.raises(ValueError, match="'mine' is a tf_keras model without a fused network: expected"):
        use(foreign)


def test_weights_that_training_has_lost(build, tmp_path):
    model = build_tf_keras(fuse(build()))
    layer = next(layer for layer in model.layers if layer.name.startswith("dense"))
    layer.bias.assign(np.full(layer.bias.shape, np.nan))
    with pytest.raises(ValueError, match="1 weights that are NaN or infinite"):
        export_tflite(model, tmp_path)


def test_operations_that_no_family_has_are_refused(model):
    network = fuse(model)
    first, *others = network.steps
    network = dataclasses.replace(network, steps=(first, dataclasses.replace(others[0], operation="group_norm")))
    with pytest.raises(ValueError, match="has group_norm, for which there are no tf_keras layers"):
        build_tf_keras(network)


def test_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_model_optimization", None)
    with pytest.raises(
        ImportError, match=r"needs tensorflow-model-optimization: pip install 'keras-efficientformer\[train\]'"
    ):
        quantize_aware(model)


CHECK = """
import os, numpy as np, tensorflow as tf
import keras_efficientformer as kef
model = kef.EfficientFormer((1, 0, 0, 1), (8, 16, 24, 32), input_shape=(32, 32, 3), classes=10)
from keras_efficientformer.training.compression.quantization import quantize_aware, to_keras
assert "TF_USE_LEGACY_KERAS" not in os.environ
assert tf.keras.__version__.startswith("3.")
images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
qat_model = quantize_aware(model)
wanted = np.asarray(model(kef.preprocess_input(images)))
back = np.asarray(to_keras(qat_model)(kef.preprocess_input(images)))
print(np.abs(qat_model(images) - wanted).max(), np.abs(back - wanted).max())
"""


def test_in_another_backend_and_without_traces_in_the_process():
    # So little is computed that JAX would take longer to optimize it.
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment.pop("TF_USE_LEGACY_KERAS", None)
    command = [sys.executable, "-c", NO_COLLECTOR + CHECK]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG)
    assert result.returncode == 0, result.stderr
    quantized, back = map(float, result.stdout.split())
    assert quantized < ROUNDING
    assert back < 1e-4
