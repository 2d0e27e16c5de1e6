"""Segmentation models in files: equal to Keras, in one piece, and opened by those who draw masks."""

import json

import keras
import numpy as np
import pytest
from coremltools.models import MLModel
from mediapipe_tasks import vision_tasks
from networks import make_loud, raw_images

import keras_efficientformer as kef
from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.labels import class_colors
from keras_efficientformer.segmentation import SemanticFPN

SHAPE = (64, 96, 3)
NAMES = ["sky", "tree", "road", "house", "lake"]
V2 = {"depths": (1, 1, 2, 2), "widths": (8, 16, 16, 32), "num_attention": 1, "mlp_ratios": [[4], [4], [4, 4], [4, 4]]}


def first_family():
    return kef.EfficientFormer((1, 1, 1, 2), (8, 16, 16, 32), input_shape=SHAPE, include_top=False)


def second_family():
    return kef.EfficientFormerV2(**V2, input_shape=SHAPE, include_top=False)


def segmenter(backbone=first_family, **arguments):
    return make_loud(SemanticFPN(backbone(), 5, 16, 8, **{"labels": NAMES, **arguments}))


@pytest.fixture(scope="module", params=[(first_family, "group"), (first_family, "batch"), (second_family, None)])
def model(request):
    backbone, norm = request.param
    return segmenter(backbone, feature_norm=norm)


@pytest.fixture(scope="module")
def expected(model):
    return model.predict(preprocess_input(raw_images(model)), verbose=0)


def test_tflite(model, expected, tmp_path):
    report = export_tflite(model, tmp_path / "m.tflite")  # its own limit is 1e-5
    assert report.partitions == 1
    assert report.labels == tuple(NAMES)
    found = LiteRTModel(tmp_path / "m.tflite").predict(raw_images(model))["masks"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("quantize", ["float16", "dynamic", "weight_only", "int8", "int8_integer"])
@pytest.mark.filterwarnings("ignore:Only 2 calibration images")
def test_quantized_tflite(model, tmp_path, quantize):
    """On noise, and with random weights: the other classes are near the best one."""
    report = export_tflite(model, tmp_path / "m.tflite", quantize=quantize, calibration=raw_images(model))
    (difference,) = report.differences
    assert difference.mean < 0.02
    assert difference.top1_agreement > 0.9


def test_core_ml_values(model, expected, tmp_path):
    report = export_coreml(model, tmp_path / "m.mlpackage")  # 5e-3 in float16
    assert report.outputs[0].name == "masks"
    found = CoreMLModel(tmp_path / "m.mlpackage").predict(raw_images(model))["masks"]
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), expected, atol=5e-3)
    metadata = MLModel(str(tmp_path / "m.mlpackage"), skip_model_load=True).user_defined_metadata
    assert metadata["com.apple.coreml.model.preview.type"] == "imageSegmenter"
    shown = json.loads(metadata["com.apple.coreml.model.preview.parameters"])
    assert shown == {"labels": NAMES, "colors": ["#000000", "#800000", "#008000", "#808000", "#000080"]}


def test_core_ml_classes(model, expected, tmp_path):
    path = tmp_path / "m.mlpackage"
    report = export_coreml(model, path, mask_output="classes")
    (output,) = report.outputs
    assert (output.name, output.shape, output.dtype) == ("classes", (1, 64, 96), "int32")
    of_attention = sum(step.operation == "softmax" for step in fuse(model).steps)
    assert report.operations["softmax"] == of_attention  # and none over classes, which would change no answer
    found = CoreMLModel(path).predict(raw_images(model))["classes"]
    assert np.mean(found == expected.argmax(-1)) >= 0.995
    assert len(np.unique(found)) > 2
    assert "of the pixels of" in report.verdict or "same answers as the Keras model:" in report.verdict


def test_what_core_ml_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"should be one of values, classes. Received: mask_output='int'"):
        export_coreml(segmenter(), tmp_path / "m.mlpackage", mask_output="int")
    with pytest.raises(ValueError, match=r"mask_output='classes' is for models that end in masks.*and my_net does not"):
        export_coreml(kef.EfficientFormer((1, 1, 1, 1), (8, 8, 8, 8), name="my_net"), tmp_path, mask_output="classes")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def segment():
    """The masks of an image by MediaPipe's ImageSegmenter: (class of each pixel, confidences of each class), labels."""
    vision, of_file, image = vision_tasks()

    def segment(path, pixels):
        options = vision.ImageSegmenterOptions(
            **of_file(path),
            output_category_mask=True,
            output_confidence_masks=True,
        )
        with vision.ImageSegmenter.create_from_options(options) as segmenter:
            found = segmenter.segment(image(pixels))
            confidences = np.stack([mask.numpy_view() for mask in found.confidence_masks], axis=-1)
            # The view is of memory that goes with the segmenter.
            classes = np.squeeze(found.category_mask.numpy_view()).copy()
            return classes, np.squeeze(confidences), list(segmenter.labels)

    return segment


@pytest.mark.parametrize("activation", ["softmax", None])
def test_mediapipe_equals_keras(segment, tmp_path, activation):
    """Of logits it makes the probabilities, which it is told to."""
    model = segmenter(activation=activation)
    export_tflite(model, tmp_path / "m.tflite")
    pixels = raw_images(model)[0].astype("uint8")
    classes, confidences, labels = segment(tmp_path / "m.tflite", pixels)
    (expected,) = model.predict(preprocess_input(pixels[None].astype("float32")), verbose=0)
    expected = expected if activation else np.asarray(keras.ops.softmax(expected))
    assert labels == NAMES
    assert np.mean(classes == expected.argmax(-1)) >= 0.9999
    np.testing.assert_allclose(confidences.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(confidences, expected, atol=1e-5)


def test_colors_are_voc_s():
    assert class_colors(21)[15] == "#c08080"  # a person
    assert len(set(class_colors(256))) == 256
