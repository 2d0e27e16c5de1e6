"""The fused network against the Keras model that it is made of: the same function, whatever its shape and weights.

It is run in two builders: the one of Keras operations, and one written here in NumPy, channels first and in float64,
which shares nothing with it. Weights are loud: fresh ones, with layer scales of 1e-5 and biases of 0, would hide
mistakes.
"""

import keras
import numpy as np
import pytest
import timm_reference_v2
from keras.ops import convert_to_numpy as to_numpy
from networks import (
    MODELS,
    NumPyBuilder,
    count,
    in_keras,
    in_numpy,
    keras_outputs,
    largest_difference,
    make_loud,
    public_methods,
    raw_images,
    small,
)
from project import CHECKPOINT

import keras_efficientformer as kef
from keras_efficientformer import conversion
from keras_efficientformer.deploy.network.builder import Builder
from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.deploy.network.keras_builder import KerasBuilder
from keras_efficientformer.deploy.network.recording import Recorder
from keras_efficientformer.imagenet import preprocess_input

TOLERANCE = 1e-5


def computed_plainly(network):
    """How many pooling mixers multiply their input, too, because their factor is not deferred."""
    return sum(step.operation == "pooling_mixer" and np.any(step.arguments["own"] != 1) for step in network.steps)


@pytest.mark.parametrize("arguments", MODELS.values(), ids=MODELS)
def test_equals_keras(arguments):
    assert largest_difference(small(**arguments)) < TOLERANCE


@pytest.mark.parametrize("arguments", MODELS.values(), ids=MODELS)
def test_equals_keras_in_a_builder_of_other_layout(arguments):
    assert largest_difference(small(**arguments), in_numpy) < TOLERANCE


@pytest.mark.parametrize("head", ["average", "both"])
def test_equals_keras_for_l1(loud_state_dict, head):
    model = kef.EfficientFormerL1(weights=None, input_shape=(64, 64, 3), classifier_activation=None, head=head)
    conversion.load_state_dict(model, loud_state_dict)
    assert largest_difference(model) < TOLERANCE


def test_equals_keras_for_the_embedded_checkpoint():
    model = kef.from_checkpoint(CHECKPOINT, classifier_activation=None)
    network = fuse(model)
    assert largest_difference(model, network=network) < TOLERANCE
    assert largest_difference(model, in_numpy, network) < TOLERANCE
    # Its first stage has a layer scale of 0.93 and is computed plainly; the others are not.
    assert computed_plainly(network) == 3


@pytest.mark.parametrize("run", [in_keras, in_numpy])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_without_preprocessing(run, channels):
    model = small(input_shape=(64, 64, channels))
    images = raw_images(model) / 127.5 - 1
    network = fuse(model, include_preprocessing=False)
    assert not network.preprocessing
    (expected,), (found,) = keras_outputs(model, images), run(network, images).values()
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()


def test_borders_are_exact():
    """Padding is with the mean's colour, not with black: seen best where a border is much of a light image."""
    model = small(include_top=False, input_shape=(32, 128, 3))
    images = np.full((1, 32, 128, 3), 255, "float32")
    (expected,), found = keras_outputs(model, preprocess_input(images)), in_keras(fuse(model), images)
    np.testing.assert_allclose(found["features"], expected, atol=TOLERANCE * np.abs(expected).max())
    # The same with the mean folded into the first bias, which is wrong at the borders only, would be far off.
    black = in_keras(fuse(model, include_preprocessing=False), images - images)["features"]
    assert np.abs(black - expected).max() > 0.01 * np.abs(expected).max()


# Layer scales of all channels of a stage's blocks, and in which stages the pooling mixer is then deferred.
DEFERRAL = {
    "small": ([0.05, 0.5], {1, 2, 3, 4}),
    "negative": ([-0.59, 0.3], {1, 2, 3, 4}),
    "near one": ([0.3, 0.95], set()),
    "just far enough from one": ([0.3, 0.88], {1, 2, 3, 4}),
    "one": ([1.0, 0.2], set()),
    "above one": ([0.2, 1.5], set()),
    "both signs of 1 - ls": ([1.5, 1.5], set()),
    "halved often": ([0.5] * 7, {1, 2, 3}),
    "doubled often": ([-1.0] * 7, {1, 2, 3}),
    "out of all bounds": ([-1.0] * 13, set()),
}


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
@pytest.mark.parametrize(("layer_scales", "deferred"), DEFERRAL.values(), ids=DEFERRAL)
def test_deferral(stage, layer_scales, deferred):
    depths = [0, 0, 0, 0]
    depths[stage - 1] = len(layer_scales)
    model = small(depths=depths, num_meta3d=0, input_shape=(32, 32, 3))
    for block, layer_scale in zip(model.get_layer(f"stage{stage}").blocks, layer_scales, strict=True):
        values = np.linspace(0.1, 0.4, block.dim)
        values[1] = layer_scale  # one channel is enough
        block.ls1.gamma.assign(values)
    network = fuse(model)
    assert computed_plainly(network) == (0 if stage in deferred else len(layer_scales))
    assert count(network, "pooling_mixer") == len(layer_scales)
    assert largest_difference(model, in_numpy, network) < TOLERANCE


def test_stages_are_deferred_one_by_one():
    model = small(depths=(2, 2, 2, 3))
    model.get_layer("stage2").blocks[0].ls1.gamma.assign(np.linspace(0.9, 1.1, 16))
    network = fuse(model)
    assert computed_plainly(network) == 2
    assert largest_difference(model, network=network) < TOLERANCE


def test_the_model_is_left_alone():
    model = small()
    before = [to_numpy(variable).copy() for variable in model.weights]
    network = fuse(model)
    in_keras(network, raw_images(model))
    for variable, value in zip(model.weights, before, strict=True):
        assert to_numpy(variable).tobytes() == value.tobytes()


def test_later_changes_of_the_model_do_not_reach_the_network():
    model = small()
    network, images = fuse(model), raw_images(model)
    before = in_numpy(network, images)["logits"]
    make_loud(model, seed=1)
    np.testing.assert_array_equal(in_numpy(network, images)["logits"], before)
    assert np.abs(in_numpy(fuse(model), images)["logits"] - before).max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "outputs", "classes"),
    [
        ({"classifier_activation": None}, ("logits",), 10),
        ({"classifier_activation": "linear", "head": "both"}, ("logits", "logits_distillation"), 10),
        ({"classifier_activation": "softmax"}, ("probabilities",), 10),
        ({"classifier_activation": "sigmoid"}, ("scores",), 10),
        ({"include_top": False}, ("features",), None),
        ({"include_top": False, "pooling": "avg"}, ("embedding",), None),
    ],
)
def test_what_the_network_says_of_itself(arguments, outputs, classes):
    model = small(**arguments)
    network = fuse(model)
    assert (network.outputs, network.classes) == (outputs, classes)
    assert tuple(in_keras(network, raw_images(model))) == outputs
    assert (network.name, network.input_shape, network.preprocessing) == ("efficientformer", (64, 64, 3), True)


def test_everything_foldable_is_folded():
    network = fuse(small(depths=(3, 2, 6, 4), num_meta3d=2))
    assert count(network, "affine") == computed_plainly(network) == 0
    assert count(network, "convolution") == 2 + 3 + 2 * (3 + 2 + 6 + 2)
    assert count(network, "dense") == 4 * 2 + 1
    assert count(network, "layer_norm") == 2 * 2 + 1
    constants = [value for step in network.steps for value in step.arguments.values() if isinstance(value, np.ndarray)]
    assert {constant.dtype.name for constant in constants} == {"float32"}


def poisoned(value, layer="stage3"):
    model = small()
    kernel = model.get_layer(layer).blocks[0].mlp.fc1.kernel
    kernel.assign(np.where(np.arange(kernel.shape[-1]) == 3, value, to_numpy(kernel)))
    return model


def foreign():
    return keras.Sequential([keras.Input((64, 64, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])


def with_preprocessing_of_ones_own():
    images = keras.Input((64, 64, 3))
    return small(input_shape=None, input_tensor=keras.layers.Rescaling(1 / 127.5, name="mine")(images))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (with_preprocessing_of_ones_own, "mine, Rescaling, comes before the stages.*include_preprocessing=True"),
        (lambda: poisoned(np.nan), r"NaN or infinite: stage3/blocks_0/mlp/fc1/kernel\. Nothing was exported"),
        (lambda: poisoned(-np.inf), "NaN or infinite: stage3/blocks_0/mlp/fc1/kernel"),
        (foreign, "is not an EfficientFormer of this package.*found .*dense"),
        (lambda: small(classifier_activation="relu"), "activation 'relu'.*linear, softmax, sigmoid"),
        (lambda: small(input_shape=(64, 64, 4)), "takes 4 channels.*include_preprocessing=False"),
    ],
    ids=[
        "Rescaling",
        "NaN",
        "infinite",
        "another model",
        "unknown activation",
        "four channels",
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        fuse(make())


def test_recorder_declares_the_whole_interface():
    """Beside its own `at` and `needed`; what no builder has, it has not either."""
    declared = public_methods(Recorder)
    assert declared.pop("at") == ["self", "location"]
    assert declared.pop("needed") == ["self"]
    assert declared == public_methods(Builder)
    assert not hasattr(Recorder(), "batch_norm")


class Told:
    """A builder of which every operation gives its name, and which writes down what it is told of steps."""

    def __init__(self):
        self.log = []

    def begin(self, *step):
        self.log.append(("begin", *step))

    def end(self, results):
        self.log.append(("end", *results))

    def __getattr__(self, operation):
        return lambda **arguments: (f"{operation} of {len(arguments)}",) * len(arguments.get("sizes", " "))


def test_builders_are_told_which_step_begins_and_ends(build):
    """Each once, in order, with its number, which is its place, and what it gave."""
    network, told = fuse(build()), Told()
    network.build(told)
    assert len(told.log) == 2 * len(network.steps) > 50
    for number, step in enumerate(network.steps):
        begin, end = told.log[2 * number : 2 * number + 2]
        assert begin == ("begin", number, step.operation, step.location)
        assert end[0] == "end"
        assert len(end) == 1 + len(step.results)
    located = {step.location for step in network.steps}
    assert {"stem.step1", "stage3.blocks.0.mlp.fc1", "stage4.blocks.1.token_mixer.qkv", "head"} <= located


@pytest.mark.parametrize("builder", [KerasBuilder, NumPyBuilder])
def test_builders_implement_the_whole_interface(builder):
    assert len(public_methods(Builder)) >= 20
    assert public_methods(builder) == public_methods(Builder)


def test_the_networks_use_the_whole_interface():
    networks = [fuse(small(**MODELS[name])) for name in ("both heads, softmax", "sigmoid", "maximum of features")]
    networks += [fuse(small(**MODELS["features"])), fuse(kef.EfficientFormerV2(**timm_reference_v2.SMALL))]
    used = {step.operation for network in networks for step in network.steps}
    of_heads = {
        "concatenate",
        "flatten",
        "reshape",
        "enlarge",
        "group_norm",
        "channel_softmax",
    }  # test_heads.py has them
    assert used | of_heads == public_methods(Builder).keys() - {"begin", "end"}
