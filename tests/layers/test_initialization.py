"""What a model starts from, and what it does not draw because a checkpoint's weights replace it at once."""

from typing import Any

import keras
import numpy as np
import pytest

import keras_efficientformer as kef
from keras_efficientformer import conversion
from keras_efficientformer.layers.initialization import GlorotUniform, TruncatedNormal, weights_follow
from keras_efficientformer.opening import open_model

V1: dict[str, Any] = {
    "depths": (1, 1, 0, 2),
    "widths": (8, 16, 24, 32),
    "num_meta3d": 1,
    "input_shape": (64, 64, 3),
    "classes": 5,
}
V2_RATIOS = ((4,), (4,), (4, 3), (4, 3))
V2: dict[str, Any] = {"depths": (1, 1, 2, 2), "widths": (8, 16, 24, 32), "num_attention": 1, "mlp_ratios": V2_RATIOS}
MODELS = {
    "EfficientFormer": lambda **arguments: kef.EfficientFormer(**V1, **arguments),
    "EfficientFormerV2": lambda **arguments: kef.EfficientFormerV2(
        **V2, input_shape=(64, 64, 3), classes=5, **arguments
    ),
}
families = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


@pytest.fixture
def drawn(monkeypatch):
    """Shapes of the kernels that are drawn from now on."""
    shapes = []
    for kind in (keras.initializers.GlorotUniform, keras.initializers.TruncatedNormal):
        draw = kind.__call__

        def recorded(self, shape, dtype=None, draw=draw):
            shapes.append(tuple(shape))
            return draw(self, shape, dtype=dtype)

        monkeypatch.setattr(kind, "__call__", recorded)
    return shapes


def kernels(model):
    return [weight for weight in model.trainable_weights if weight.name == "kernel"]


@families
def test_every_layer_is_built(build):
    """Keras' first `predict` on JAX computes a model with a layer that is not operation by operation: 20 s of an L1."""
    assert [layer for layer in build()._flatten_layers() if not layer.built] == []


@families
def test_kernels_are_drawn(build, drawn):
    model = build()
    assert sorted(drawn) == sorted(tuple(kernel.shape) for kernel in kernels(model))
    assert all(np.std(kernel) > 0 for kernel in kernels(model) if kernel.shape[-1] > 1)


@families
@pytest.mark.parametrize("open_file", [None, open_model], ids=["weights", "from_checkpoint"])
def test_only_classifiers_are_drawn_where_weights_follow(tmp_path, build, open_file, drawn):
    path, model = tmp_path / "model.safetensors", build()
    conversion.write_checkpoint(path, conversion.to_state_dict(model))
    drawn.clear()
    again = build(weights=path) if open_file is None else open_file(path)
    assert set(drawn) == {(32, 5)}
    for found, wanted in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_keras_file_is_opened_without_drawing(tmp_path, drawn):
    model = MODELS["EfficientFormer"]()
    model.save(tmp_path / "model.keras")
    drawn.clear()
    again = open_model(tmp_path / "model.keras")
    assert set(drawn) == {(32, 5)}
    for found, wanted in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", None])
@pytest.mark.parametrize(
    "initializer", [GlorotUniform(seed=1), TruncatedNormal(stddev=0.5, seed=1)], ids=["glorot", "normal"]
)
def test_initializers(initializer, dtype):
    """Inside they give zeros of the dtype asked for; outside, also after an error inside, what Keras' own give."""
    with weights_follow():
        zeros = initializer((3, 4), dtype=dtype)
    with pytest.raises(KeyError), weights_follow():
        raise KeyError
    assert keras.backend.standardize_dtype(zeros.dtype) == (dtype or "float32")
    assert not keras.ops.convert_to_numpy(zeros).any()
    keras_own = getattr(keras.initializers, type(initializer).__name__).from_config(initializer.get_config())
    np.testing.assert_array_equal(initializer((3, 4), dtype=dtype), keras_own((3, 4), dtype=dtype))


def test_initializers_can_be_serialized():
    layer = kef.Meta4D(8).mlp.fc1
    again = keras.layers.Conv2D.from_config(layer.get_config())
    assert type(again.kernel_initializer) is GlorotUniform
