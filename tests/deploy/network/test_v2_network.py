"""EfficientFormerV2's fused network: the Keras model's function in every builder, and in the files made from it.

TFLite's modes and Core ML's are run on a small loud network; that the exporters do more than this is tested elsewhere.
"""

import keras
import numpy as np
import pytest
import timm_reference
import timm_reference_v2
from networks import count, in_keras, in_numpy, keras_outputs, largest_difference, make_loud, raw_images

import keras_efficientformer as kef
from keras_efficientformer import conversion
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.deploy.tflite.modes import MODES
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.images import seeded_images

SMALL = {**timm_reference_v2.SMALL, "classes": 10, "input_shape": (64, 64, 3), "classifier_activation": None}
TOLERANCE = 1e-5
MODELS = {
    "square": {},
    "non-square": {"input_shape": (64, 96, 3)},
    "odd third stage": {"input_shape": (80, 48, 3)},
    "odd size": {"input_shape": (75, 47, 3)},
    "one token": {"input_shape": (32, 32, 3)},
    "both heads, softmax": {"head": "both", "classifier_activation": "softmax"},
    "features": {"include_top": False},
    "average of features": {"include_top": False, "pooling": "avg"},
    "no attention": {"num_attention": 0},
    "attention everywhere": {"num_attention": 2},
}


def small(**arguments):
    """Weights of which the image decides, not the biases."""
    return make_loud(kef.EfficientFormerV2(**{**SMALL, **arguments}))


@pytest.mark.parametrize("run", [in_keras, in_numpy])
@pytest.mark.parametrize("arguments", MODELS.values(), ids=MODELS)
def test_equals_keras(arguments, run):
    assert largest_difference(small(**arguments), run) < TOLERANCE


def test_equals_keras_for_s0():
    model = kef.EfficientFormerV2S0(weights=None, classifier_activation=None, include_top=False)
    tensors = timm_reference.state_dict(timm_reference_v2.loud_model("s0"))
    conversion.load_state_dict(model, tensors)
    images = raw_images(model)
    expected = keras_outputs(model, preprocess_input(images))[0]
    found = in_keras(fuse(model), images)["features"]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max())


def test_feature_maps():
    model = small()
    images = raw_images(model)
    found = in_keras(fuse(model, feature_maps=True), images)
    assert list(found) == ["stage1", "stage2", "stage3", "stage4", "logits"]
    outputs = [model.get_layer(name).output for name in list(found)[:4]]
    expected = keras_outputs(keras.Model(model.input, outputs), _normalised(images))
    for one, other in zip(found.values(), expected, strict=False):
        np.testing.assert_allclose(one, other, atol=TOLERANCE * np.abs(other).max())


def _normalised(images):
    return preprocess_input(images)


def test_everything_foldable_is_folded():
    network = fuse(small())
    # Stem 2, embeddings 3; six blocks' FFNs 2 each; two attentions 3 each; the downsampling's 4.
    assert count(network, "convolution") == 2 + 3 + 6 * 2 + 2 * 3 + 4
    # FFNs 6; values 2 and the strided one 1; the downsampling's query and values 2.
    assert count(network, "depthwise_convolution") == 6 + 2 + 1 + 2
    assert count(network, "affine") == count(network, "layer_norm") == count(network, "pooling_mixer") == 0
    assert (count(network, "talking_heads"), count(network, "resize"), count(network, "dense")) == (4, 1, 1)
    constants = [value for step in network.steps for value in step.arguments.values() if isinstance(value, np.ndarray)]
    assert {constant.dtype.name for constant in constants} == {"float32"}


def test_nan_is_refused():
    model = small()
    model.get_layer("stage3").blocks[-1].token_mixer.talking_head2.bias.assign(np.full(8, np.nan))
    with pytest.raises(ValueError, match="NaN or infinite: stage3/blocks_1/token_mixer/talking_head2/bias"):
        fuse(model)


# The small network's limits are the modes' own, but for eight bits, where random weights are no measure.
@pytest.mark.parametrize("mode", MODES)
def test_tflite(tmp_path, mode):
    model = small(classifier_activation="softmax")
    report = export_tflite(
        model,
        tmp_path,
        quantize=mode,
        calibration=seeded_images((64, 64, 3)) if MODES[mode].measures else None,
        max_difference=None if mode in ("none", "float16") else 1.0,
    )
    assert not {"GATHER", "SHAPE", "PACK", "EXPAND_DIMS"} & report.operations.keys()
    assert not [operation for operation in report.operations if operation.startswith(("Flex", "CUSTOM"))]
    assert report.operations["RESIZE_BILINEAR"] == 1
    if mode in ("none", "float16", "dynamic", "auto", "weight_only"):
        assert report.partitions == 1
    if mode == "none":
        assert report.differences[0].max < TOLERANCE


def test_coreml(tmp_path):
    pytest.importorskip("coremltools")
    from keras_efficientformer.deploy import export_coreml

    report = export_coreml(small(), tmp_path, precision="float32", max_difference=TOLERANCE)
    assert report.differences[0].relative < TOLERANCE
    assert not {"gather", "transpose"} & report.operations.keys()
    assert report.operations["resize_bilinear"] == 1
