"""BatchNorm's fused training step: the same outputs, gradients and averages as Keras' own layer."""

import keras
import numpy as np
import pytest

from keras_efficientformer.layers.normalization import BatchNormalization

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the kernel is TensorFlow's")

SHAPE = (4, 5, 3, 6)


def draw(shape, seed):
    return np.random.default_rng(seed).uniform(-2, 3, shape).astype("float32")


def built(cls, dtype="float32", shape=SHAPE, **arguments):
    layer = cls(momentum=0.7, epsilon=1e-3, dtype=dtype, **arguments)
    layer.build(shape)
    layer.set_weights([np.abs(draw(shape[-1], seed)) for seed, _ in enumerate(layer.weights)])
    return layer


def train(layer, shape=SHAPE):
    """One training step: outputs, gradients (inputs, gamma, beta), and the layer's weights after it."""
    x, weights = tf.Variable(draw(shape, 10)), draw(shape, 11)
    with tf.GradientTape() as tape:
        outputs = layer(x, training=True)
        loss = tf.reduce_sum(tf.cast(outputs, "float32") * weights)
    gradients = tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
    return [outputs, *gradients, *layer.get_weights()]


def operations(layer):
    graph = tf.function(lambda x: layer(x, training=True)).get_concrete_function(tf.TensorSpec(SHAPE)).graph
    return {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1, 6), (2, 1, 1, 6)], ids=str)
def test_fused_step_equals_keras(shape):
    ours, theirs = (
        train(built(cls, shape=shape), shape) for cls in (BatchNormalization, keras.layers.BatchNormalization)
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_float32_averages(dtype):
    ours, theirs = (train(built(cls, dtype)) for cls in (BatchNormalization, keras.layers.BatchNormalization))
    assert ours[0].dtype == theirs[0].dtype == dtype.removeprefix("mixed_")
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=3e-2, atol=3e-2)
    for one, other in zip(ours[-2:], theirs[-2:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_throughout(dtype):
    ours, theirs = (train(built(cls, dtype)) for cls in (BatchNormalization, keras.layers.BatchNormalization))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=5e-2, atol=5e-2)


def test_fused_kernel_is_used_in_training_alone():
    assert "FusedBatchNormV3" in operations(built(BatchNormalization))
    frozen = built(BatchNormalization)
    frozen.trainable = False
    for layer in (frozen, built(BatchNormalization, synchronized=True), built(keras.layers.BatchNormalization)):
        assert "FusedBatchNormV3" not in operations(layer)


def test_mask_is_respected():
    x, mask = draw((2, 4, 4, 6), 0), np.zeros((2, 4, 4), "bool")
    mask[:, :2] = True
    ours, theirs = (built(cls, shape=x.shape) for cls in (BatchNormalization, keras.layers.BatchNormalization))
    np.testing.assert_array_equal(ours(x, training=True, mask=mask), theirs(x, training=True, mask=mask))


def test_layer_comes_back_from_its_config():
    layer = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(built(BatchNormalization)))
    assert type(layer) is BatchNormalization
    assert layer.momentum == 0.7
