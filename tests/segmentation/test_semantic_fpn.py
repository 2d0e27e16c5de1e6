"""Semantic FPN: what it computes, beside a transcription in PyTorch, what is kept in files, and unfit arguments."""

import keras
import numpy as np
import pytest
from networks import make_loud, raw_images

import keras_efficientformer as kef
from keras_efficientformer.segmentation import SemanticFPN

SHAPE = (64, 96, 3)


def backbone(shape=SHAPE, **arguments):
    return kef.EfficientFormer((1, 1, 1, 2), (8, 16, 16, 32), input_shape=shape, include_top=False, **arguments)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_probabilities_of_every_pixel(stride):
    model = make_loud(SemanticFPN(backbone(), 5, 16, 8, output_stride=stride))
    found = model(raw_images(model) / 255)
    assert found.shape[1:] == (64 // stride, 96 // stride, 5)
    np.testing.assert_allclose(keras.ops.sum(found, -1), 1, atol=1e-6)


def test_file_keeps_labels_and_weights(tmp_path):
    model = make_loud(SemanticFPN(backbone(), 3, 16, 8, "group", labels=["sky", "tree", "road"]))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    images = raw_images(model) / 255
    np.testing.assert_array_equal(model(images), loaded(images))
    assert loaded.get_layer("masks").labels == ("sky", "tree", "road")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 1}, "`classes` should be an integer >= 2. Received: classes=1"),
        ({"pyramid_channels": 0}, "`pyramid_channels` should be an integer >= 1"),
        ({"head_channels": 1.5}, "`head_channels` should be an integer >= 1"),
        ({"feature_norm": "layer"}, "`feature_norm` should be one of 'batch', 'group', None"),
        ({"activation": "sigmoid"}, "`activation` should be one of 'softmax', 'linear', None"),
        ({"output_stride": 3}, "`output_stride` should be one of 1, 2, 4"),
        ({"dropout": 1.0}, r"`dropout` should be in the range \[0, 1\). Received: dropout=1.0"),
        ({"labels": ["one"]}, "5"),
    ],
    ids=str,
)
def test_unfit_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SemanticFPN(backbone(), **{"classes": 5, **arguments})


def test_other_backbones():
    other = keras.Model(image := keras.Input((None, None, 3)), keras.layers.Conv2D(8, 3)(image))
    for found in ("l1", None, other):
        with pytest.raises(ValueError, match="is not an EfficientFormer of this package"):
            SemanticFPN(found, 5)


def test_size_that_no_pyramid_has():
    with pytest.raises(ValueError, match="takes images of 80x96 pixels, and a pyramid needs sides that are multiples"):
        SemanticFPN(backbone((80, 96, 3)), 5)


def test_layers_before_the_backbone_decide_its_size():
    image = keras.Input((None, None, 3))
    cut = backbone(None, input_tensor=keras.layers.CenterCrop(64, 96)(image))
    assert SemanticFPN(cut, 5, 16, 8).output_shape == (None, 64, 96, 5)


def test_channels_first_is_refused():
    made_before = backbone()
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match=r"channels-last only.*set_image_data_format\('channels_last'\)"):
            SemanticFPN(made_before, 5, 16, 8)
    finally:
        keras.config.set_image_data_format("channels_last")
