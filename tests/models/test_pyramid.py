"""Feature maps at several scales: of the right stages, sizes and names, and in exported files."""

import keras
import numpy as np
import pytest
from networks import make_loud, raw_images

import keras_efficientformer as kef
from keras_efficientformer.deploy import export_coreml, export_tflite

SHAPE = (64, 96, 3)
STRIDES = {"P2": 4, "P3": 8, "P4": 16, "P5": 32}
V2 = {"depths": (1, 1, 2, 2), "widths": (8, 16, 16, 32), "num_attention": 1, "mlp_ratios": [[4], [4], [4, 4], [4, 4]]}


def first_family(**arguments):
    return make_loud(kef.EfficientFormer((1, 1, 1, 2), (8, 16, 16, 32), input_shape=SHAPE, **arguments))


def second_family(**arguments):
    return make_loud(kef.EfficientFormerV2(**V2, input_shape=SHAPE, **arguments))


@pytest.mark.parametrize("make", [first_family, second_family])
@pytest.mark.parametrize("arguments", [{"include_top": False}, {"classes": 3}], ids=str)
def test_stages_by_level(make, arguments):
    backbone = make(**arguments)
    pyramid = kef.feature_pyramid(backbone)
    images = raw_images(backbone) / 255
    maps = pyramid(images)
    assert set(maps) == set(STRIDES)
    for number, (level, stride) in enumerate(STRIDES.items(), 1):
        assert maps[level].shape[1:3] == (64 // stride, 96 // stride)
        stage = keras.Model(backbone.input, backbone.get_layer(f"stage{number}").output)
        np.testing.assert_array_equal(maps[level], stage(images))
    assert {id(weight) for weight in pyramid.weights} <= {id(weight) for weight in backbone.weights}


@pytest.mark.parametrize("make", [first_family, second_family])
def test_exports_have_the_levels(make, tmp_path):
    pyramid = kef.feature_pyramid(make(include_top=False), levels=("P5", "P3"))
    report = export_tflite(pyramid, tmp_path / "model.tflite")  # its own limit is 1e-5
    assert sorted(tensor.name for tensor in report.outputs) == ["P3", "P5"]
    assert report.partitions == 1
    report = export_coreml(pyramid, tmp_path / "model.mlpackage", precision="float32")  # 1e-5 too
    assert sorted(difference.output for difference in report.differences) == ["P3", "P5"]


@pytest.mark.parametrize("levels", [(), ("P1",), ("P2", "P2"), "P2"], ids=str)
def test_unfit_levels(levels):
    with pytest.raises(ValueError, match="`levels` should be some of P2, P3, P4, P5, each once"):
        kef.feature_pyramid(first_family(include_top=False), levels)


def test_other_models():
    image = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match="is not an EfficientFormer of this package"):
        kef.feature_pyramid(keras.Model(image, keras.layers.Flatten()(image)))
