"""What the README says is asked often is run as it stands. Room: models."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from project import ROOT

import keras_efficientformer as kef

BLOCK = re.search(r"Asked often:\n\n```python\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def names():
    """What the block makes of the models that the README has made before."""
    assert BLOCK
    found = {
        "backbone": kef.EfficientFormerL1(include_top=False, pooling="avg", input_shape=(160, 224, 3), weights=None),
        "own": kef.EfficientFormer((2, 2, 4, 2), (32, 64, 128, 256), num_meta3d=1, classes=10),
        "images": np.random.default_rng(0).standard_normal((1, 160, 224, 3)).astype("float32"),
    }
    exec(BLOCK[1], found)
    return found


def test_freezing():
    """What is frozen first; later in the block the whole backbone is."""
    assert BLOCK
    model = kef.EfficientFormer((1, 1, 1, 2), (8, 16, 16, 16), include_top=False, input_shape=(64, 64, 3))
    exec(BLOCK[1].partition("stage = ")[0], {"backbone": model})
    assert [block.trainable for block in model.get_layer("stage4").blocks] == [False, True]
    assert not model.get_layer("stage3").trainable_variables
    assert model.get_layer("norm").trainable


def test_outputs_of_single_blocks(names):
    """All blocks one by one give what the stage gives."""
    backbone, stage, x = names["backbone"], names["stage"], names["x"]
    for block in stage.blocks[1:]:
        x = block(x)
    whole = keras.Model(backbone.input, backbone.get_layer("stage3").output)(names["images"])
    np.testing.assert_allclose(np.asarray(x), np.asarray(whole), atol=1e-5)


def test_grad_cam(names):
    image = tf.random.stateless_normal((1, 224, 224, 3), seed=(0, 0))
    with tf.GradientTape() as tape:
        features, scores = names["heat"](image)
        score = scores[:, 3]
    gradients = tape.gradient(score, features)
    assert gradients.shape == features.shape == (1, 7, 7, 256)
    assert np.abs(gradients.numpy()).max() > 0


def test_base_that_does_not_train(names):
    mine = names["mine"]
    assert len(mine.trainable_variables) == 2
    before = [np.array(variable) for variable in names["backbone"].variables]
    mine.compile("sgd", "mse")
    mine.fit(names["images"], np.zeros((1, 3)), verbose=0)
    for old, new in zip(before, names["backbone"].variables, strict=True):
        np.testing.assert_array_equal(old, np.array(new))
