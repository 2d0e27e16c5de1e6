"""EfficientFormerV2 as Keras models, on TensorFlow: arguments, shapes, sizes, files, precision, training; against timm.

What both families share (arguments' checks, input tensors, heads) is tested in test_models.py.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
import timm_reference
import timm_reference_v2
import torch

import keras_efficientformer as kef
from keras_efficientformer import conversion
from keras_efficientformer.variants import VARIANTS_V2

PARAMETERS = {"v2_s0": 3_600_256, "v2_s1": 6_185_560, "v2_s2": 12_710_112, "v2_l": 26_322_288}
STAGES = ("stage1", "stage2", "stage3", "stage4")
SMALL = {**timm_reference_v2.SMALL, "classes": 10, "input_shape": (64, 64, 3)}


@pytest.fixture(scope="module")
def small():
    return timm_reference_v2.small_model()


@pytest.fixture(scope="module")
def tensors(small):
    return timm_reference.state_dict(small)


@pytest.fixture(scope="module")
def loud(tensors):
    """Builds small models of the same loud weights."""

    def build(**arguments):
        model = kef.EfficientFormerV2(**{**SMALL, **arguments})
        conversion.load_state_dict(model, tensors)
        return model

    return build


@pytest.fixture(scope="module", params=VARIANTS_V2)
def published(request):
    return request.param, entry_point(request.param)(weights=None)


def entry_point(variant):
    return getattr(kef, f"EfficientFormer{variant.upper().replace('_', '')}")


def run(model, images):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(images, training=False))


def close(found, expected, tolerance=1e-6):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("variant", VARIANTS_V2)
def test_signature_is_that_of_the_first_family(variant):
    def defaults(function):
        return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}

    function = entry_point(variant)
    assert defaults(function) == {**defaults(kef.EfficientFormerL1), "name": f"efficientformer{variant}"}
    assert list(defaults(function)) == list(defaults(kef.EfficientFormerL1))
    assert function.__name__ == f"EfficientFormer{variant.upper().replace('_', '')}"


@pytest.mark.parametrize("function", [kef.EfficientFormerV2, kef.EfficientFormerV2S0])
def test_docstring(function):
    for name in inspect.signature(function).parameters:
        assert f"\n        {name}: " in function.__doc__
    for text in ("BatchNorm", "timm's or snap-research's", "arXiv 2212.08059"):
        assert text in function.__doc__
    assert "transformers" not in function.__doc__
    assert "{" not in function.__doc__


def test_published(published):
    variant, model = published
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == PARAMETERS[variant]
    assert (model.name, model.input_shape) == (f"efficientformer{variant}", (None, 224, 224, 3))
    assert model.output_shape == (None, 1000)
    shapes = [model.get_layer(name).output.shape for name in STAGES]
    assert shapes == [(None, s, s, w) for s, w in zip((56, 28, 14, 7), VARIANTS_V2[variant].widths, strict=True)]


def test_stochastic_depth_grows_as_in_timm():
    model = kef.EfficientFormerV2S0(weights=None, drop_path_rate=0.3)
    rates = [block.drop_path for name in STAGES for block in model.get_layer(name).blocks]
    reference = timm_reference_v2.loud_model("s0", drop_path_rate=0.3)
    drops = [getattr(block.drop_path2, "drop_prob", 0.0) for stage in reference.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, drops, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": (1, 1, 2)}, r"four integers >= 0\. Received: depths=\(1, 1, 2\)"),
        ({"widths": (9, 12, 16, 24)}, r"the first even\. Received: widths=\(9, 12, 16, 24\)"),
        ({"num_attention": 3}, r"`num_attention` should be between 0 and .*Received: num_attention=3"),
        ({"num_attention": -1}, "Received: num_attention=-1"),
        ({"mlp_ratios": ((4,), (3,), (2,), (4, 2))}, "`mlp_ratios` should have for each stage one number > 0"),
        ({"mlp_ratios": 4}, "Received: mlp_ratios=4"),
        ({"mlp_ratios": (4, 3, 2, 4)}, r"Received: mlp_ratios=\(4, 3, 2, 4\)"),
        ({"num_attention": None}, "Received: num_attention=None"),
        ({"mlp_ratios": ((4,), (0,), (2, 3), (4, 2))}, r"Received: mlp_ratios=\(\(4,\), \(0,\)"),
        (
            {"mlp_ratios": ((4,), (0.01,), (2, 3), (4, 2))},
            r"`hidden_dim` should be at least 1\. Received: hidden_dim=0",
        ),
        ({"input_shape": (31, 64, 3)}, r"at least 32x32; Received: input_shape=\(31, 64, 3\)"),
        ({"head": "mean"}, "Received: head='mean'"),
        ({"weights": "imagenet"}, "a network of these depths and widths has none"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kef.EfficientFormerV2(**{**SMALL, **arguments})


def test_unknown_weights_names_the_variant():
    with pytest.raises(ValueError, match=r'EfficientFormerV2S0 has "imagenet"\).* Received: weights=imagenet-300'):
        kef.EfficientFormerV2S0(weights="imagenet-300")


@pytest.mark.parametrize("sides", [(32, 32), (64, 96), (240, 240), (75, 47)], ids=str)
def test_features(small, tensors, sides):
    """Feature map, poolings and stages' outputs, also where the third stage's sides are odd or 32 divides nothing."""
    images = timm_reference.images(*sides)
    network = timm_reference_v2.at_size(small, timm_reference_v2.small_model(size=sides))
    network = timm_reference_v2.for_odd_sides(network, tuple(-(-side // 16) for side in sides))
    x = torch.from_numpy(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        features = network.forward_features(x).numpy().transpose(0, 2, 3, 1)
        steps = [x := module(x) for module in (network.stem, *network.stages)]
    for pooling, expected in ((None, features), ("avg", features.mean((1, 2))), ("max", features.max((1, 2)))):
        model = kef.EfficientFormerV2(**{**SMALL, "input_shape": (*sides, 3)}, include_top=False, pooling=pooling)
        conversion.load_state_dict(model, tensors)
        close(run(model, images), expected, 1e-5)
    outputs = [model.get_layer(name).output for name in STAGES]
    for found, expected in zip(run(keras.Model(model.inputs[0], outputs), images), steps[1:], strict=True):
        close(found.transpose(0, 3, 1, 2), expected, 1e-5)


def test_keras_file(loud, tmp_path):
    model = loud(head="both", drop_path_rate=0.1, input_shape=(64, 96, 3))
    model.save(tmp_path / "model.keras")
    opened = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    images = timm_reference.images(64, 96)
    for found, expected in zip(run(opened, images), run(model, images), strict=True):
        close(found, expected, 0)


def test_keras_weights_of_another_size_are_refused_by_keras(loud, tmp_path):
    loud().save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match=r"has a resolution of .* and the file's is"):
        loud(input_shape=(64, 96, 3)).load_weights(tmp_path / "model.weights.h5")


def test_mixed_precision(loud):
    images = timm_reference.images(64, 64)
    expected = run(loud(classifier_activation=None), images)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = loud(classifier_activation=None)
    finally:
        keras.config.set_dtype_policy(before)
    found = run(model, images)
    assert found.dtype == "float32"
    assert {layer.compute_dtype for layer in model.get_layer("stage3").blocks} == {"float16"}
    assert np.abs(found - expected).max() > 0
    close(found, expected, 5e-3)


def test_fit_changes_every_weight(loud):
    """But for biases and offsets that a norm or softmax after them takes out again."""
    model = loud(drop_path_rate=0.1)
    model.compile(keras.optimizers.SGD(0.1), "categorical_crossentropy", jit_compile=False)
    before = [np.array(weight) for weight in model.weights]
    model.fit(timm_reference.images(64, 64, batch=8), np.eye(10, dtype="float32")[:8], batch_size=8, verbose=0)
    for weight, old in zip(model.weights, before, strict=True):
        if not weight.path.endswith(("bias", "beta")):
            assert not np.array_equal(weight, old), weight.path


def test_stride_attention_trains_compiled_by_xla_in_mixed_precision():
    """As Keras compiles training on GPUs by default."""
    layer = kef.AttentionV2(8, key_dim=4, num_heads=1, attn_ratio=1, resolution=4, strided=True, dtype="mixed_bfloat16")
    layer.build((1, 4, 4, 8))

    @tf.function(jit_compile=True)
    def gradient(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x, training=True) ** 2)
        return tape.gradient(loss, layer.q.conv.kernel.value)

    assert np.isfinite(gradient(tf.random.stateless_normal((2, 4, 4, 8), (0, 0)))).all()
