"""Pruning: weights become zero while training, stay so in the files, and come back into an EfficientFormer."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from networks import SMALLEST_V2

import keras_efficientformer as kef
from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.deploy.network.tf_keras_builder import trained_network
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.images import seeded_images
from keras_efficientformer.training.compression.pruning import prune_low_magnitude, strip_pruning
from keras_efficientformer.training.compression.quantization import to_keras
from keras_efficientformer.training.compression.tfmot import load_tfmot

tfmot = load_tfmot()

IMAGES = seeded_images((64, 64, 3))
SPARSITY = 0.8


def zeros(array):
    return float(np.mean(np.asarray(array) == 0))


@pytest.fixture(scope="module")
def model(build):
    return build()


@pytest.fixture(scope="module")
def pruned(model):
    schedule = tfmot.sparsity.keras.ConstantSparsity(SPARSITY, begin_step=0, frequency=1)
    pruned = prune_low_magnitude(model, schedule)
    pruned.compile(tf_keras.optimizers.SGD(1e-3), "mse")
    expected = model.predict(preprocess_input(IMAGES), verbose=0)
    pruned.fit(IMAGES, expected, batch_size=2, verbose=0, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
    return pruned


@pytest.fixture(scope="module")
def stripped(pruned):
    return strip_pruning(pruned)


def test_small_layers_are_left_dense(stripped):
    for step in trained_network(stripped).steps:
        if step.operation in ("convolution", "dense"):
            weights = step.arguments["weights"]
            is_pruned = weights.shape[:2] == (1, 1) if weights.ndim == 4 else weights.shape[1] != 10
            assert zeros(weights) == pytest.approx(SPARSITY if is_pruned else 0, abs=0.01), weights.shape


def test_second_family():
    network = prune_low_magnitude(kef.EfficientFormerV2(**SMALLEST_V2))
    wrapped = [layer.layer.kernel.shape for layer in network.layers if layer.name.startswith("prune")]
    products = [step.arguments["weights"] for step in network.fused_network.steps if step.operation == "convolution"]
    assert wrapped == [weights.shape for weights in products if weights.shape[:2] == (1, 1)]
    for before, after in zip(network.fused_network.steps, trained_network(strip_pruning(network)).steps, strict=True):
        for name, array in before.arguments.items():
            if isinstance(array, np.ndarray):
                np.testing.assert_array_equal(after.arguments[name], array)


def test_stripping_changes_nothing_but_the_wrappers(pruned, stripped):
    assert not any(layer.name.startswith("prune") for layer in stripped.layers)
    assert sum(layer.name.startswith("prune") for layer in pruned.layers) == 12
    np.testing.assert_allclose(stripped.predict(IMAGES, verbose=0), pruned.predict(IMAGES, verbose=0), atol=1e-6)


@pytest.mark.parametrize("state", ["pruned", "stripped"])
def test_to_keras(model, state, request):
    trained = request.getfixturevalue(state)
    back, expected = to_keras(trained), trained.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(back.predict(preprocess_input(IMAGES), verbose=0), expected, atol=1e-4)
    assert np.abs(expected - model.predict(preprocess_input(IMAGES), verbose=0)).max() > 0.01
    assert zeros(back.get_layer("stage4").blocks[1].mlp.fc1.kernel) == pytest.approx(SPARSITY, abs=0.01)


@pytest.mark.parametrize("mode", ["none", "int8"])
def test_files_keep_the_zeros(model, stripped, tmp_path, mode):
    arguments = {"quantize": mode, "calibration": IMAGES}
    dense, sparse = (
        Path(export_tflite(network, tmp_path / f"{name}.tflite", **arguments).path)
        for name, network in (("dense", model), ("sparse", stripped))
    )
    assert sparse.stat().st_size == dense.stat().st_size
    # Compressed as app stores do; measured: 0.39 in float32 and 0.53 in int8.
    assert len(gzip.compress(sparse.read_bytes())) < 0.6 * len(gzip.compress(dense.read_bytes()))


def test_core_ml_packages_are_made_of_what_was_trained(stripped, tmp_path):
    plain = export_coreml(stripped, tmp_path / "plain.mlpackage", precision="float32")
    assert plain.differences[0].max < 1e-5
    sparse = export_coreml(stripped, tmp_path / "sparse.mlpackage", compress="sparse")
    assert sparse.size < 0.8 * plain.size
    with pytest.raises(ValueError, match="made for training and has no feature maps"):
        export_coreml(stripped, tmp_path, feature_maps=True)
    normalised = prune_low_magnitude(to_keras(stripped), include_preprocessing=False)
    with pytest.raises(ValueError, match=r"takes normalised images\. Export it with image_input=False"):
        export_coreml(strip_pruning(normalised), tmp_path)


def test_training_without_the_callback_is_an_error(model):
    pruned = prune_low_magnitude(model)
    pruned.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="requires the UpdatePruningStep callback"):
        pruned.train_on_batch(IMAGES, np.zeros((4, 10)))


def test_foreign_models():
    foreign = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))], name="mine")
    with pytest.raises(ValueError, match="is not an EfficientFormer of this package"):
        prune_low_magnitude(foreign)
    with pytest.raises(ValueError, match="'mine' is a tf_keras model without a fused network"):
        strip_pruning(foreign)
