"""Weights of few values, rounded with images in view, and how many bits each layer gets."""

import numpy as np
import pytest
from networks import SMALLEST_V2, make_loud, small

import keras_efficientformer as kef
from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.deploy.network.keras_builder import KerasBuilder
from keras_efficientformer.deploy.network.rounding.bit_choice import EXACT_BITS, choose_bits
from keras_efficientformer.deploy.network.rounding.linear import to_linear
from keras_efficientformer.deploy.network.rounding.palettes import BITS, to_palette
from keras_efficientformer.deploy.network.rounding.weight_rounding import layer_inputs, layers_with_weights

FEWEST_BITS = BITS[0]


def second_family():
    return make_loud(kef.EfficientFormerV2(**SMALLEST_V2))


FAMILIES = {"first family": small, "second family": second_family}


@pytest.fixture(scope="module", params=FAMILIES)
def network(request):
    return fuse(FAMILIES[request.param]())


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (8, 64, 64, 3)).astype("float32")


@pytest.fixture(scope="module")
def inputs(network, images):
    return layer_inputs(network, images)


class Outputs(KerasBuilder):
    """Keeps the results of steps."""

    def __init__(self, images):
        super().__init__(images)
        self.number, self.found = 0, {}

    def begin(self, number, operation, location):
        self.number = number

    def end(self, results):
        self.found[self.number] = [np.asarray(result, "float64") for result in results]


def test_inputs_are_what_the_layers_multiply(network, images, inputs):
    """The mean of a layer's outputs and the mean of their squares follow from them."""
    builder = Outputs(images)
    network.build(builder)
    assert list(inputs) == layers_with_weights(network)
    assert len(inputs) > 10
    for number, found in inputs.items():
        step = network.steps[number]
        weights = step.arguments["weights"].reshape(-1, step.arguments["weights"].shape[-1]).astype("float64")
        products = builder.found[number][0].reshape(-1, weights.shape[1]) - step.arguments["bias"]
        scale = np.abs(products).max()
        np.testing.assert_allclose(found.mean @ weights / scale, products.mean(0) / scale, atol=1e-5)
        squares = (weights * (found.products @ weights)).sum(0)
        np.testing.assert_allclose(squares / scale**2, (products**2).mean(0) / scale**2, atol=1e-5)
        assert found.error(weights) == pytest.approx((products**2).mean(0).sum(), rel=1e-3)


@pytest.mark.parametrize("bits", [FEWEST_BITS, 6])
def test_weights_in_palettes(network, inputs, bits):
    """Few values that float16 has; outputs keep their mean, and change less than by rounding to the nearest of them."""
    better = 0
    for number, found in inputs.items():
        step = network.steps[number]
        weights, bias = (step.arguments[name].astype("float64") for name in ("weights", "bias"))
        changed = to_palette(step, found, bits)
        values = np.unique(changed.arguments["weights"])
        assert len(values) <= 2**bits
        np.testing.assert_array_equal(values, values.astype("float16"))
        assert changed.arguments["weights"].shape == weights.shape
        flat = weights.reshape(-1, weights.shape[-1])
        change = changed.arguments["weights"].reshape(flat.shape) - flat
        np.testing.assert_allclose(found.mean @ change, bias - changed.arguments["bias"], atol=1e-5)
        nearest = values[np.abs(flat[..., None] - values).argmin(-1)]
        better += found.error(change) < found.error(nearest - flat)
    assert better >= 0.9 * len(inputs)


@pytest.mark.parametrize("bits", [4, 8])
def test_linear_weights(network, inputs, bits):
    """Whole numbers times a scale for each output; outputs keep their mean, and change less than by plain rounding."""
    better = 0
    for number, found in inputs.items():
        step = network.steps[number]
        weights, bias = (step.arguments[name].astype("float64") for name in ("weights", "bias"))
        changed = to_linear(step, found, bits)
        assert np.abs(changed.integers.astype(int)).max() <= 2 ** (bits - 1) - 1
        np.testing.assert_allclose(changed.integers * changed.scale, changed.arguments["weights"], rtol=1e-6)
        flat = weights.reshape(-1, weights.shape[-1])
        change = changed.arguments["weights"].reshape(flat.shape) - flat
        np.testing.assert_allclose(found.mean @ change, bias - changed.arguments["bias"], atol=1e-5)
        step_size = np.abs(flat).max(0) / (2 ** (bits - 1) - 1)
        plain = np.round(flat / step_size) * step_size
        better += found.error(change) < found.error(plain - flat)
    assert better >= 0.9 * len(inputs)


@pytest.fixture(scope="module")
def choices(network, images, tmp_path_factory):
    """For a share of the images whose class may change: all of them, a quarter, none."""
    folder = tmp_path_factory.mktemp("trials")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFICIENTFORMER_TRIALS", str(folder))
        found = [choose_bits(network, images, 100)]
        # The others take what the first has tried.
        patch.setattr("keras_efficientformer.deploy.network.rounding.bit_choice._effects", None)
        found += [choose_bits(network, images, max_drop) for max_drop in (25, 0)]
    assert len(list(folder.iterdir())) == 1
    return found


def test_as_few_bits_as_images_allow(network, choices):
    fewest, some, none = choices
    assert set(fewest.bits.values()) == {FEWEST_BITS}
    assert fewest.bits.keys() == set(layers_with_weights(network))
    assert some.agreement >= 0.75
    assert none.agreement == 1
    sizes = [sum(choice.bits.values()) for choice in choices]
    assert sizes == sorted(sizes)
    assert set(none.bits.values()) <= set(BITS)


def test_layers_of_all_bits_stay_as_they_are(network, choices):
    for choice in choices:
        for number, bits in choice.bits.items():
            before, after = (each.steps[number].arguments["weights"] for each in (network, choice.network))
            assert np.array_equal(before, after) == (bits == EXACT_BITS)
