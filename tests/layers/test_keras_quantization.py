"""Models that Keras has quantized or put LoRA on: read rightly, or refused by name. Room: layers."""

import keras
import numpy as np
import pytest
from networks import raw_images, small

from keras_efficientformer import conversion
from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.errors import CheckpointError
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.opening import open_model
from keras_efficientformer.training import prune_low_magnitude, quantize_aware


@pytest.fixture(scope="module")
def quantized():
    model = small()
    model.quantize("int8")
    return model


DOORS = {
    "export_tflite": lambda model, folder: export_tflite(model, folder),
    "export_coreml": lambda model, folder: export_coreml(model, folder),
    "to_state_dict": lambda model, folder: conversion.to_state_dict(model),
    "load_state_dict": lambda model, folder: conversion.load_state_dict(model, conversion.to_state_dict(small())),
    "quantize_aware": lambda model, folder: quantize_aware(model),
    "prune": lambda model, folder: prune_low_magnitude(model),
    "save": lambda model, folder: model.save(folder / "m.keras"),
}


@pytest.mark.parametrize("door", DOORS)
def test_quantized_models_are_refused(quantized, tmp_path, door):
    with pytest.raises(ValueError, match=r"was quantized by Keras \(int8\) in .*Take the model as it was before"):
        DOORS[door](quantized, tmp_path)
    assert not list(tmp_path.glob("*.tflite"))


def test_weights_of_quantized_models_are_refused(quantized, tmp_path):
    quantized.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(CheckpointError, match=r"holds a model that Keras has quantized, in layers/dense"):
        conversion.read_checkpoint(tmp_path / "m.weights.h5")


def test_quantized_models_still_predict(quantized):
    images = preprocess_input(raw_images(quantized))
    assert np.isfinite(quantized.predict(images, verbose=0)).all()


@pytest.fixture(scope="module")
def adapted():
    """With LoRA on both heads and on an attention's projection, of weights that are not zero."""
    model = small()
    layers = [
        model.get_layer("head"),
        model.get_layer("head_dist"),
        model.get_layer("stage4").blocks[-1].token_mixer.proj,
    ]
    for layer in layers:
        layer.enable_lora(2)
        layer.lora_kernel_b.assign(np.random.default_rng(0).normal(0, 0.3, layer.lora_kernel_b.shape))
    return model


def test_lora_is_merged(adapted, tmp_path):
    images = raw_images(adapted)
    expected = adapted.predict(preprocess_input(images), verbose=0)
    assert np.abs(expected - small().predict(preprocess_input(images), verbose=0)).max() > 0.01
    plain = small()
    conversion.load_state_dict(plain, conversion.to_state_dict(adapted))
    np.testing.assert_allclose(plain.predict(preprocess_input(images), verbose=0), expected, atol=1e-5)
    export_tflite(adapted, tmp_path / "m.tflite")  # it compares with the model


def test_weights_are_not_loaded_over_lora(adapted):
    before = adapted.get_weights()
    with pytest.raises(ValueError, match=r"has LoRA on .*Load the weights before `enable_lora`"):
        conversion.load_state_dict(adapted, conversion.to_state_dict(small()))
    for old, new in zip(before, adapted.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_another_size(adapted, tmp_path):
    """A model with LoRA that is opened at another size has the merged weights."""
    plain = small()
    conversion.load_state_dict(plain, conversion.to_state_dict(adapted))
    plain.save(tmp_path / "m.keras")
    assert open_model(tmp_path / "m.keras", (96, 96, 3)).input_shape == (None, 96, 96, 3)
    assert isinstance(adapted, keras.Model)
