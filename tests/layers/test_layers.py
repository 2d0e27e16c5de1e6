"""The layers alone: against timm's blocks with loud weights, their configurations, files, statistics and errors."""

import keras
import numpy as np
import pytest
import timm_reference
import torch
from timm.models import efficientformer as reference

import keras_efficientformer as kef
from keras_efficientformer import layers
from keras_efficientformer.layers.common import pair, relative_positions

# Each layer with arguments other than its defaults, and an input it takes.
CASES = {
    "LayerScale": (kef.LayerScale, {"init_value": 0.3}, (2, 3, 5, 8)),
    "StochasticDepth": (kef.StochasticDepth, {"rate": 0.25, "seed": 7}, (2, 3, 5, 8)),
    "Attention": (
        kef.Attention,
        {"dim": 12, "key_dim": 4, "num_heads": 3, "attn_ratio": 2, "resolution": (3, 5)},
        (2, 15, 12),
    ),
    "Meta4D": (
        kef.Meta4D,
        {"dim": 8, "pool_size": 5, "mlp_ratio": 2, "drop_path": 0.1, "layer_scale_init_value": 0.2},
        (2, 6, 5, 8),
    ),
    "Meta3D": (
        kef.Meta3D,
        {"dim": 16, "resolution": (2, 3), "mlp_ratio": 2, "drop_path": 0.1, "layer_scale_init_value": 0.2},
        (2, 6, 16),
    ),
    "Pooling": (layers.Pooling, {"pool_size": 5}, (2, 6, 5, 8)),
    "ConvMlp": (layers.ConvMlp, {"dim": 8, "hidden_dim": 12}, (2, 6, 5, 8)),
    "Mlp": (layers.Mlp, {"dim": 8, "hidden_dim": 12}, (2, 6, 8)),
    "Stem": (layers.Stem, {"dim": 8}, (2, 33, 64, 3)),
    "Downsample": (layers.Downsample, {"dim": 8}, (2, 7, 8, 4)),
    "Stage": (
        layers.Stage,
        {"dim": 8, "depth": 2, "num_meta3d": 1, "drop_path": [0.1, 0.2], "layer_scale_init_value": 0.2},
        (2, 6, 5, 4),
    ),
}
cases = pytest.mark.parametrize(("cls", "arguments", "shape"), CASES.values(), ids=CASES)


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def run(layer, x, **arguments):
    return keras.ops.convert_to_numpy(layer(x, **arguments))


def make_loud(layer):
    for index, weight in enumerate(layer.weights):
        if weight.dtype == "float32":
            weight.assign(np.random.default_rng(index).uniform(0.1, 1, weight.shape))
    return layer


@cases
def test_config_round_trip(cls, arguments, shape):
    layer = make_loud(built(cls(**arguments, name="mine"), shape))
    config = layer.get_config()
    assert config.items() >= {**arguments, "name": "mine"}.items()
    again = built(cls.from_config(config), shape)
    assert again.get_config() == config
    again.set_weights(layer.get_weights())
    assert np.array_equal(run(again, draw(shape)), run(layer, draw(shape)))

    registered = keras.saving.serialize_keras_object(layer)
    assert registered["registered_name"] == f"keras_efficientformer>{cls.__name__}"
    assert keras.saving.deserialize_keras_object(registered, safe_mode=True).get_config() == config


def built(layer, shape):
    layer.build((None, *shape[1:]))
    return layer


@cases
def test_in_a_model_and_its_file(tmp_path, cls, arguments, shape):
    """Symbolic and real shapes agree, any batch goes through, and a saved model gives the same values."""
    model = keras.Sequential([keras.Input(shape[1:]), cls(**arguments)])
    make_loud(model.layers[0])
    x = draw(shape)
    y = run(model, x)
    assert model.output_shape == (None, *y.shape[1:])
    assert model.layers[0].compute_output_shape((None, *shape[1:])) == model.output_shape
    assert y.dtype == "float32"
    assert np.isfinite(y).all()
    np.testing.assert_allclose(model.predict(x[:1], verbose=0), y[:1], rtol=1e-5, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert np.array_equal(run(again, x), y)
    assert again.layers[0].get_config() == model.layers[0].get_config()


@cases
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_precision_reaches_every_part(cls, arguments, shape, policy):
    layer = built(cls(**arguments, dtype=policy), shape)
    dtype = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(layer(draw(shape)).dtype) == dtype
    parts = list(layer._flatten_layers())
    assert {part.dtype_policy.name for part in parts} == {policy}
    assert {weight.dtype for weight in layer.trainable_weights} <= {"float32"}


@cases
def test_float64(cls, arguments, shape):
    """Nothing inside falls back to single precision."""
    layer = make_loud(built(cls(**arguments), shape))
    double = built(cls(**arguments, dtype="float64"), shape)
    double.set_weights(layer.get_weights())
    y = run(double, draw(shape).astype("float64"))
    assert y.dtype == "float64"
    np.testing.assert_allclose(run(layer, draw(shape)), y, rtol=1e-4, atol=1e-4)


# Against timm.


def torch_run(module, x):
    module.eval()
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def loud(module, seed=0):
    torch.manual_seed(seed)
    timm_reference.make_loud(module, seed)
    return module


def put(layer, module):
    """Gives a Keras layer or block the weights of timm's, attribute by attribute: both call them alike."""
    if isinstance(module, torch.nn.Conv2d):
        layer.set_weights([module.weight.detach().permute(2, 3, 1, 0).numpy(), module.bias.detach().numpy()])
    elif isinstance(module, torch.nn.Linear):
        layer.set_weights([module.weight.detach().T.numpy(), module.bias.detach().numpy()])
    elif isinstance(module, (torch.nn.BatchNorm2d, torch.nn.LayerNorm)):
        names = ("weight", "bias", "running_mean", "running_var")
        layer.set_weights([getattr(module, name).detach().numpy() for name in names if hasattr(module, name)])
    else:
        for name, parameter in module.named_parameters(recurse=False):
            getattr(layer, name).assign(parameter.detach().numpy())
        for name, child in module.named_children():
            if list(child.parameters()):
                put(getattr(layer, name), child)
    return layer


@pytest.mark.parametrize("resolution", [(7, 7), (3, 5), (5, 3), (1, 4), (1, 1), 4], ids=str)
def test_attention(resolution):
    module = loud(reference.Attention(48, resolution=resolution))
    height, width = pair(resolution)
    x = draw((2, height * width, 48))
    layer = built(kef.Attention(48, resolution=resolution), x.shape)
    np.testing.assert_allclose(run(put(layer, module), x), torch_run(module, x), rtol=0, atol=1e-5)
    assert np.array_equal(relative_positions(resolution), module.attention_bias_idxs)


def test_attention_of_other_dimensions():
    module = loud(reference.Attention(20, key_dim=6, num_heads=3, attn_ratio=2.5, resolution=(2, 3)))
    x = draw((2, 6, 20))
    layer = built(kef.Attention(20, key_dim=6, num_heads=3, attn_ratio=2.5, resolution=(2, 3)), x.shape)
    np.testing.assert_allclose(run(put(layer, module), x), torch_run(module, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("resolution", [(7, 7), (2, 5), (5, 2)], ids=str)
def test_meta3d(resolution):
    module = reference.MetaBlock1d(40)
    module.token_mixer = reference.Attention(40, resolution=resolution)
    x = draw((2, resolution[0] * resolution[1], 40))
    layer = built(kef.Meta3D(40, resolution), x.shape)
    np.testing.assert_allclose(run(put(layer, loud(module)), x), torch_run(module, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pool_size", [1, 3, 5])
@pytest.mark.parametrize("sides", [(7, 7), (4, 9), (1, 6), (1, 1)], ids=str)
def test_meta4d(sides, pool_size):
    module = loud(reference.MetaBlock2d(24, pool_size=pool_size))
    x = draw((2, *sides, 24))
    layer = put(built(kef.Meta4D(24, pool_size=pool_size), x.shape), module)
    expected = torch_run(module, x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(run(layer, x), expected, rtol=0, atol=1e-5)


def test_defaults_are_those_of_timm():
    meta4d, meta3d = kef.Meta4D(8).get_config(), kef.Meta3D(8).get_config()
    assert meta4d["pool_size"] == 3
    assert meta3d["resolution"] == (7, 7)
    for config in (meta4d, meta3d):
        assert (config["mlp_ratio"], config["drop_path"], config["layer_scale_init_value"]) == (4.0, 0.0, 1e-5)
    attention = kef.Attention(8).get_config()
    assert (attention["key_dim"], attention["num_heads"], attention["attn_ratio"]) == (32, 8, 4)
    norms = [kef.Meta3D(8).norm1, kef.Meta4D(8).mlp.norm1]
    assert [norm.epsilon for norm in norms] == [1e-5, 1e-5]
    assert norms[1].momentum == 0.9  # Keras keeps this share of the old value; PyTorch takes 0.1 of the new one


def test_pooling_averages_real_pixels_only():
    """By hand: a corner has four neighbours, an edge six."""
    x = np.arange(12, dtype="float32").reshape(1, 3, 4, 1)
    pooled = (run(layers.Pooling(), x) + x)[0, :, :, 0]
    assert pooled[0, 0] == np.mean([0, 1, 4, 5])
    assert pooled[0, 1] == np.mean([0, 1, 2, 4, 5, 6])
    assert pooled[1, 1] == np.mean([0, 1, 2, 4, 5, 6, 8, 9, 10])
    assert pooled[2, 3] == np.mean([6, 7, 10, 11])
    assert np.array_equal(run(layers.Pooling(), np.ones((1, 3, 4, 1), "float32")), np.zeros((1, 3, 4, 1)))


@pytest.mark.parametrize(("sides", "halves"), [((8, 8), (4, 4)), ((7, 10), (4, 5)), ((1, 2), (1, 1))], ids=str)
def test_downsample(sides, halves):
    """One pixel of padding on every side: Keras' "same" gives other values on even sides."""
    module = loud(reference.Downsample(6, 10))
    x = draw((2, *sides, 6))
    layer = put(built(layers.Downsample(10), x.shape), module)
    expected = torch_run(module, x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    assert expected.shape == (2, *halves, 10)
    np.testing.assert_allclose(run(layer, x), expected, rtol=0, atol=1e-5)


def test_batch_norm_learns_as_in_timm():
    """One training step's batch statistics; PyTorch's running variance is the unbiased one, Keras' is not."""
    module = loud(reference.MetaBlock2d(8))
    x = draw((4, 6, 6, 8))
    layer = put(built(kef.Meta4D(8), x.shape), module)
    y = run(layer, x, training=True)
    module.train()
    with torch.no_grad():
        expected = module(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    for name in ("norm1", "norm2"):
        ours, theirs = getattr(layer.mlp, name), getattr(module.mlp, name)
        np.testing.assert_allclose(ours.moving_mean, theirs.running_mean, rtol=0, atol=1e-5)
        np.testing.assert_allclose(ours.moving_variance, theirs.running_var, rtol=0.01)


# Stochastic depth.


def test_stochastic_depth_drops_whole_samples():
    x = np.ones((4000, 3, 2), "float32")
    y = run(kef.StochasticDepth(0.25, seed=0), x, training=True)
    values = y.reshape(4000, -1)
    assert np.array_equal(values.min(1), values.max(1))  # a sample is dropped or kept as one
    np.testing.assert_allclose(np.unique(values), [0, 1 / 0.75], rtol=1e-6)
    assert abs(np.mean(values[:, 0] == 0) - 0.25) < 0.03  # four standard deviations
    assert abs(y.mean() - 1) < 0.04


@pytest.mark.parametrize("arguments", [{}, {"training": False}, {"training": None}], ids=str)
def test_stochastic_depth_is_the_identity_in_inference(arguments):
    x = draw((8, 3))
    assert np.array_equal(run(kef.StochasticDepth(0.9), x, **arguments), x)


def test_stochastic_depth_of_rate_zero_is_the_identity():
    layer = kef.StochasticDepth(0)
    assert np.array_equal(run(layer, draw((8, 3)), training=True), draw((8, 3)))
    assert layer.variables == []


def test_stochastic_depth_is_reproducible_by_seed():
    x = np.ones((64, 2), "float32")

    def two_calls(seed):
        layer = kef.StochasticDepth(0.5, seed=seed)
        return [run(layer, x, training=True) for _ in range(2)]

    one, again, other = two_calls(1), two_calls(1), two_calls(2)
    assert np.array_equal(one, again)
    assert not np.array_equal(one[0], one[1])
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("cls", "arguments", "shape"),
    [(kef.Meta4D, {}, (64, 4, 4, 8)), (kef.Meta3D, {"resolution": 2}, (64, 4, 8))],
    ids=["Meta4D", "Meta3D"],
)
def test_block_without_its_branches_is_the_identity(cls, arguments, shape):
    """At a rate near 1 nearly all samples pass by both branches."""
    layer, x = built(cls(8, drop_path=0.99, **arguments), shape), draw(shape)
    same = np.isclose(run(make_loud(layer), x, training=True), x).reshape(64, -1).all(1)
    assert same.mean() > 0.85


def test_stages_without_attention_take_any_size():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, layers.Stage(8, 2)(layers.Stem(4)(image)))
    assert model.output_shape == (None, None, None, 8)
    for sides, grid in (((33, 64), (5, 8)), ((40, 16), (5, 2))):
        assert run(model, draw((2, *sides, 3))).shape == (2, *grid, 8)


# Errors.

BAD = {
    "rate-one": (lambda: kef.StochasticDepth(1), r"range \[0, 1\)\. Received: rate=1"),
    "rate-negative": (lambda: kef.StochasticDepth(-0.1), r"Received: rate=-0\.1"),
    "block-rate": (lambda: kef.Meta4D(8, drop_path=1.5), r"Received: rate=1\.5"),
    "no-channels": (lambda: kef.Meta4D(0), "`dim` should be at least 1. Received: dim=0"),
    "no-heads": (lambda: kef.Attention(8, num_heads=0), "Received: num_heads=0"),
    "no-key": (lambda: kef.Attention(8, key_dim=0), "Received: key_dim=0"),
    "no-value": (lambda: kef.Attention(8, attn_ratio=0), "Received: value_dim=0"),
    "no-tokens": (lambda: kef.Meta3D(8, (0, 3)), "Received: resolution=0"),
    "no-pool": (lambda: kef.Meta4D(8, pool_size=0), "Received: pool_size=0"),
    "even-pool": (lambda: kef.Meta4D(8, pool_size=4), "odd"),
    "odd-stem": (lambda: layers.Stem(7), "even integer >= 2. Received: dim=7"),
    "channels": (lambda: kef.Meta4D(8)(draw((1, 4, 4, 6))), r"Meta4D .* 8 channels.* input_shape=\(1, 4, 4, 6\)"),
    "rank": (lambda: kef.Meta4D(8)(draw((1, 16, 8))), r"feature map .* input_shape=\(1, 16, 8\)"),
    "rank-of-tokens": (lambda: kef.Meta3D(8, 4)(draw((1, 4, 4, 8))), r"tokens \(batch, tokens, channels\)"),
    "tokens": (lambda: kef.Attention(8, resolution=(2, 3))(draw((1, 7, 8))), r"resolution of \(2, 3\), so 6 tokens"),
    "too-many-meta3d": (lambda: layers.Stage(8, 1, num_meta3d=2), "Received: num_meta3d=2, depth=1"),
    "rates": (lambda: layers.Stage(8, 2, drop_path=[0.1]), r"one rate for each block. Received: drop_path=\[0\.1\]"),
    "three-sides": (lambda: kef.Attention(8, resolution=(1, 2, 3)), r"Received: resolution=\(1, 2, 3\)"),
    # These went through: images became several, one bias was added to all tokens, and a map came out larger.
    "other-map": (lambda: built(layers.Stage(8, 2, 1), (1, 8, 8, 4))(draw((1, 16, 16, 4))), r"shape=\(None, 8, 8, 4\)"),
    "other-tokens": (
        lambda: built(kef.Attention(8, resolution=1), (1, 1, 8))(draw((1, 9, 8))),
        r"shape=\(None, 1, 8\)",
    ),
    "other-grid": (
        lambda: built(kef.AttentionV2(8, resolution=4, strided=True), (1, 4, 4, 8))(draw((1, 3, 3, 8))),
        r"expected shape=\(None, 4, 4, 8\), found shape=\(1, 3, 3, 8\)",
    ),
    "unknown-size": (lambda: layers.Stage(8, 1, 1).build((None, None, None, 4)), "known height and width"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
