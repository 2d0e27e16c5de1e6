"""The TFLite builder: what it writes is what the network says, in every way it can be written, and nothing more.

Files are run in LiteRT and compared with the Keras builder, which shares nothing with it, and read with
TensorFlow's own schema.
"""

import collections

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from networks import MODELS, SMALL, make_loud, public_methods, raw_images
from tensorflow.lite.tools import flatbuffer_utils

import keras_efficientformer as kef
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.network.builder import Builder
from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.deploy.network.keras_builder import KerasBuilder
from keras_efficientformer.deploy.tflite import file as tflite_file
from keras_efficientformer.deploy.tflite.builder import TFLiteBuilder
from keras_efficientformer.deploy.tflite.graph import Graph
from keras_efficientformer.deploy.tflite.modes import PLAIN, Kernels
from keras_efficientformer.deploy.tflite.pooling_filters import border_factors, fused_mixer_filters
from keras_efficientformer.imagenet import preprocess_input

KERNELS = {
    "depthwise": Kernels(pooling="depthwise"),
    "matmul_variance": Kernels(matmul_variance=True),
    "row_padding": Kernels(row_padding=True),
    "all": Kernels(pooling="depthwise", matmul_variance=True, row_padding=True, row_convolutions=True),
}
# Of `own * x + pooled * average`: small, large, negative, none, and more than the pixel's own weight.
OWN = np.array([1.0, 1.0, 1.0, 0.5, 0.05], "float32")
POOLED = np.array([0.04, 0.9, -0.5, 0.0, 1.0], "float32")


def run(content, images):
    """The outputs of a file's content for one batch."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
    interpreter.invoke()
    return [interpreter.get_tensor(output["index"]) for output in interpreter.get_output_details()]


def written(describe, shape, kernels=PLAIN):
    """A file with what `describe(builder, image)` returns as its output, for images (height, width, channels)."""
    builder = TFLiteBuilder(2, kernels)
    builder.output(describe(builder, builder.image(*shape, None)), "out")
    file = builder.graph.file()
    tflite_file.name_ends(file, ("out",))
    return tflite_file.pack(file)


def assert_same(describe, shape, kernels, atol=3e-6):
    image = np.random.default_rng(5).normal(1, 1, (2, *shape)).astype("float32")
    expected = np.asarray(describe(KerasBuilder(image), image))
    assert np.ptp(expected) > 0.1 or expected.size < 20
    (found,) = run(written(describe, shape, kernels), image)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def kinds(content):
    """How many operators of each kind a file has."""
    file = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    return collections.Counter(
        flatbuffer_utils.opcode_to_name(file, operator.opcodeIndex) for operator in file.subgraphs[0].operators
    )


def test_it_implements_the_whole_interface():
    assert public_methods(TFLiteBuilder) == public_methods(Builder)


def assert_same_network(model, kernels):
    network = fuse(model)
    images = raw_images(model)
    builder = TFLiteBuilder(2, kernels)
    network.build(builder)
    file = builder.graph.file()
    tflite_file.name_ends(file, network.outputs)
    expected = map(np.asarray, network.build(KerasBuilder(images)).values())
    for output, wanted in zip(run(tflite_file.pack(file), images), expected, strict=True):
        assert np.ptp(wanted, axis=0).max() > 0.01 * np.abs(wanted).max()
        np.testing.assert_allclose(output, wanted, rtol=0, atol=2e-6 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("arguments", MODELS.values(), ids=MODELS)
def test_every_network(arguments):
    assert_same_network(make_loud(kef.EfficientFormer(**{**SMALL, **arguments})), Kernels())


@pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("sides", [(64, 64), (75, 47), (32, 96)], ids=str)
def test_kernels_compute_the_same_network(build, sides, kernels):
    assert_same_network(build(input_shape=(*sides, 3)), kernels)


@pytest.mark.parametrize("pooling", ["average", "depthwise"])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("sides", [(1, 1), (2, 3), (4, 4), (9, 5)], ids=str)
def test_pooling_mixer_at_borders(sides, size, pooling):
    assert_same(lambda b, x: b.pooling_mixer(x, size, OWN, POOLED), (*sides, 5), Kernels(pooling))


@pytest.mark.parametrize("sides", [(1, 1), (1, 4), (2, 3), (3, 2), (4, 4), (9, 5)], ids=str)
def test_fused_pooling_mixer_at_borders(sides):
    """With factors whose filters are whole steps of int8, so that what is left is the border."""
    pooled = np.array([9 / 127, 90 / 127, -27 / 127, 0, 9 * 12 / 127])
    own = 1 - pooled / 9
    np.testing.assert_allclose(fused_mixer_filters(own, pooled)[0, 0], pooled / 9, rtol=1e-12)
    factors = own.astype("float32"), pooled.astype("float32")
    assert_same(lambda b, x: b.pooling_mixer(x, 3, *factors), (*sides, 5), Kernels("fused"), 2e-6)


def test_fused_pooling_mixer_of_another_size_is_computed_plainly():
    assert_same(lambda b, x: b.pooling_mixer(x, 5, OWN, POOLED), (9, 6, 5), Kernels("fused"))


def test_fused_mixer_filters_are_whole_steps_and_weigh_what_they_should():
    pooled = np.concatenate([np.linspace(-0.5, 20, 400), [0.0, 1e-6]])
    own = np.ones_like(pooled)
    filters = fused_mixer_filters(own, pooled)
    steps = filters / np.abs(filters).max((0, 1)) * 127
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)
    # All nine together, and none of the eight by more than a step from the others.
    np.testing.assert_allclose(filters.sum((0, 1)), own + pooled, rtol=1e-12)
    neighbours = np.delete(steps.reshape(9, -1), 4, axis=0)
    assert np.ptp(neighbours, axis=0).max() < 1 + 1e-9
    np.testing.assert_allclose(filters[1, 1], own + pooled / 9, rtol=0.02)
    np.testing.assert_array_equal(filters, filters[::-1, ::-1])  # or images would be shifted


def test_fused_mixer_filters_without_a_pixel_of_their_own():
    """Where neighbours weigh more than the pixel, filters are as they are: the quantizer rounds one weight of nine."""
    filters = fused_mixer_filters(np.array([-0.3, 0.5]), np.array([2.0, -0.9]))
    np.testing.assert_allclose(filters[:, :, 0], np.array([[2, 2, 2], [2, -0.7, 2], [2, 2, 2]]) / 9)
    np.testing.assert_allclose(filters[1, 1, 1], 0.5 - 0.9 / 9, rtol=0.02)


def test_border_factors():
    expected = np.array([[9 / 4, 9 / 6, 9 / 4], [9 / 6, 1, 9 / 6], [9 / 4, 9 / 6, 9 / 4]])
    np.testing.assert_allclose(border_factors(3, 3, 3)[0, :, :, 0], expected)


@pytest.mark.parametrize("kernels", [Kernels(), Kernels(matmul_variance=True)], ids=["mean", "matmul"])
def test_layer_norm(kernels):
    assert_same(lambda b, x: b.layer_norm(x, 1e-5), (3, 5, 16), kernels, 2e-6)
    assert_same(lambda b, x: b.layer_norm(b.tokens(x), 1e-5), (3, 5, 16), kernels, 2e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(1, 1), (5, 8), (8, 7)], ids=str)
@pytest.mark.parametrize("row_padding", [False, True])
def test_convolutions(sides, stride, row_padding):
    weights = np.random.default_rng(6).normal(0, 0.2, (3, 3, 3, 4)).astype("float32")
    kernels = Kernels(row_padding=row_padding)
    assert_same(lambda b, x: b.convolution(x, weights, np.ones(4), stride), (*sides, 3), kernels)
    assert_same(lambda b, x: b.relu(b.convolution(x, weights, np.zeros(4), stride)), (*sides, 3), kernels)
    assert_same(lambda b, x: b.depthwise_convolution(x, weights[..., 0], np.ones(3), stride), (*sides, 3), kernels)


def test_what_is_written_twice_is_there_once():
    ones = np.ones((3, 3, 3, 3), "float32")

    def describe(b, x):
        first, second = (b.convolution(x, ones * factor, np.zeros(3)) for factor in (1, 2))
        third = b.convolution(x, ones, np.zeros(3))
        return b.add(b.add(first, second), third)

    content = written(describe, (4, 4, 3))
    assert kinds(content) == {"PAD": 1, "CONV_2D": 2, "ADD": 2}
    assert_same(describe, (4, 4, 3), Kernels(), 1e-4)


def test_a_convolution_is_not_taken_for_the_same_one_with_a_relu():
    weights = np.random.default_rng(8).normal(0, 1, (1, 1, 3, 4)).astype("float32")

    def describe(b, x):
        return b.add(b.relu(b.convolution(x, weights, np.zeros(4))), b.convolution(x, weights, np.zeros(4)))

    assert kinds(written(describe, (4, 4, 3))) == {"CONV_2D": 2, "ADD": 1}
    assert_same(describe, (4, 4, 3), Kernels(), 1e-5)


def test_heads_that_are_alike_are_two_outputs(build, tmp_path):
    model = build(head="both")
    for one, other in zip(model.get_layer("head").weights, model.get_layer("head_dist").weights, strict=True):
        other.assign(one)
    report = export_tflite(model, tmp_path / "model.tflite")
    names = ["probabilities", "probabilities_distillation"]
    assert [output.name for output in report.outputs] == names
    images = raw_images(model)[:1]
    for found in run((tmp_path / "model.tflite").read_bytes(), images):
        np.testing.assert_allclose(found, model.predict(preprocess_input(images), verbose=0)[0], atol=1e-5)


def test_reshapes_after_each_other_are_one():
    content = written(lambda b, x: b.feature_map(b.tokens(x), 2, 8), (4, 4, 3))
    assert kinds(content) == {"RESHAPE": 1}
    assert_same(lambda b, x: b.feature_map(b.tokens(x), 2, 8), (4, 4, 3), Kernels())


def test_convolutions_of_pixels_take_and_leave_one_row_of_them():
    """What lies between them stays a row, so that a block is reshaped once on each side."""
    weights = np.random.default_rng(9).normal(0, 0.5, (1, 1, 3, 3)).astype("float32")
    bias = np.array([1, 0.5, -1], "float32")
    kernels = Kernels(row_convolutions=True)

    def describe(b, x):
        x = b.pooling_mixer(x, 3, OWN[:3], POOLED[:3])
        hidden = b.gelu(b.convolution(x, weights, bias))
        x = b.add(x, b.convolution(b.relu(hidden), weights, bias))
        return b.depthwise_convolution(x, np.ones((3, 3, 3), "float32"), bias)

    content = written(describe, (4, 5, 3), kernels)
    assert kinds(content)["RESHAPE"] == 2
    file = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = file.subgraphs[0]
    convolutions = [o for o in graph.operators if flatbuffer_utils.opcode_to_name(file, o.opcodeIndex) == "CONV_2D"]
    assert [graph.tensors[o.inputs[0]].shape.tolist() for o in convolutions] == [[2, 1, 20, 3]] * 2
    assert {(o.builtinOptions.strideH, o.builtinOptions.strideW) for o in convolutions} == {(2, 1)}
    assert_same(describe, (4, 5, 3), kernels, 2e-5)


def test_a_table_is_added_before_the_heads_are_moved():
    """There the scores may still be integers."""
    table = np.random.default_rng(7).normal(0, 1, (1, 2, 12, 12)).astype("float32")
    mix = np.array([[1.0, 2.0], [3.0, -1.0]], "float32")

    def describe(b, x):
        heads = b.to_heads(b.tokens(x), 2)
        return b.add(b.talking_heads(b.scores(heads, heads), mix, np.zeros(2)), table)

    file = flatbuffer_utils.read_model_from_bytearray(bytearray(written(describe, (3, 4, 8))))
    order = [flatbuffer_utils.opcode_to_name(file, o.opcodeIndex) for o in file.subgraphs[0].operators]
    assert order[-3:] == ["CONV_2D", "ADD", "TRANSPOSE"]
    assert_same(describe, (3, 4, 8), Kernels(), 2e-4)


def test_what_nothing_reads_is_left_out():
    graph = Graph()
    graph.scope = "image_0"
    image = graph.input("image", (1, 2))
    kept = graph.operator("ADD", [image, graph.weights(np.array([1.0, 2.0]))], (1, 2))
    graph.operator("MUL", [kept, graph.weights(np.array([3.0, 4.0]))], (1, 2))
    graph.output(kept)
    file = graph.file()
    (operator,) = file.subgraphs[0].operators
    assert [tensor.name for tensor in file.subgraphs[0].tensors] == ["image", "image_0/constant", "image_0/ADD"]
    assert (operator.inputs, operator.outputs) == ([0, 1], [2])
    assert len(file.operatorCodes) == 1
    assert len(file.buffers) == 2  # none and the constant
    tflite_file.name_ends(file, ("sum",))
    np.testing.assert_array_equal(run(tflite_file.pack(file), np.zeros((1, 2), "float32"))[0], [[1, 2]])


def test_float16_weights_are_stored_as_such():
    weights = np.full((1, 1, 3, 4), 0.1, "float32")
    builder = TFLiteBuilder(1, float16_weights=True)
    builder.output(builder.convolution(builder.image(2, 2, 3, None), weights, np.ones(4)), "out")
    file = builder.graph.file()
    tflite_file.name_ends(file, ("out",))
    content = tflite_file.pack(file)
    assert kinds(content) == {"DEQUANTIZE": 2, "CONV_2D": 1}
    (found,) = run(content, np.ones((1, 2, 2, 3), "float32"))
    np.testing.assert_allclose(found, 1 + 3 * np.float32(np.float16(0.1)), rtol=1e-6)
    assert np.abs(found - 1.3).max() > 1e-6


def test_tensors_are_named_after_their_steps(build):
    network = fuse(build())
    builder = TFLiteBuilder(kernels=Kernels("fused"))
    network.build(builder)
    names = tflite_file.tensor_names(builder.graph.file())
    assert len(set(names)) == len(names)
    for name in names[1:]:
        operation, _, number = name.partition("/")[0].rpartition("_")
        assert network.steps[int(number)].operation == operation
