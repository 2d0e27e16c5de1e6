"""The Neural Engine lint: every rule on a program that triggers it and on one that does not, and on real packages."""

import dataclasses
import json
from collections import Counter

import coremltools as ct
import numpy as np
import pytest
import timm_reference
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.frontend import milproto
from coremltools.converters.mil.mil import get_new_symbol, types

from keras_efficientformer.deploy.coreml.builder import MILBuilder
from keras_efficientformer.deploy.coreml.lint import RULES, lint
from keras_efficientformer.deploy.coreml.program import summary
from keras_efficientformer.deploy.network.fuse import fuse

MAP = (1, 8, 32, 32)  # rows of exactly 64 bytes in float16


def program(body, *shapes, dtype=types.fp16, target=ct.target.iOS18):
    """A program of `body`, a function of as many tensors as there are `shapes`."""
    specs = [mb.TensorSpec(shape=shape, dtype=dtype) for shape in shapes or [MAP]]
    # `mb.program` counts the parameters of what it decorates.
    function = {1: lambda x: body(x), 2: lambda x, y: body(x, y)}[len(specs)]
    return mb.program(input_specs=specs, opset_version=target)(function)


def values(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float16")


def convolution(kernel=3, **arguments):
    return program(
        lambda x: mb.conv(x=x, weight=values(8, 8, kernel, kernel), pad_type="same", **arguments), (1, 8, 96, 96)
    )


def palettized(stride):
    def body(x):
        weight = mb.constexpr_lut_to_dense(
            indices=np.zeros((8 * 8 * 3 * 3 // 8,), "uint8"), lut=values(2), shape=np.array([8, 8, 3, 3], "uint32")
        )
        return mb.conv(x=x, weight=weight, strides=[stride, stride], pad_type="same")

    return program(body, (1, 8, 128, 128), target=ct.target.iOS16)


def pool(operation, kernel, stride):
    return program(
        lambda x: operation(x=x, kernel_sizes=[kernel] * 2, strides=[stride] * 2, pad_type="same"), (1, 8, 128, 128)
    )


def upsample(factor):
    return program(lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=factor, scale_factor_width=factor))


def lstm(x):
    weights = {"weight_ih": values(16, 32), "weight_hh": values(16, 4)}
    return mb.lstm(x=x, initial_h=values(8, 4), initial_c=values(8, 4), **weights)[0]


def resample(x, coordinates):
    return mb.resample(
        x=x,
        coordinates=coordinates,
        sampling_mode="bilinear",
        padding_mode="constant",
        padding_value=np.float16(0),
        coordinates_mode="normalized_minus_one_to_one",
        align_corners=True,
    )


def down_and_up(x):
    x = mb.avg_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid")
    return mb.upsample_bilinear(x=x, scale_factor_height=2.0, scale_factor_width=2.0)


def rounded(x):
    stored = mb.quantize(input=x, scale=np.float16(0.5), output_dtype="int8")
    return mb.dequantize(input=stored, scale=np.float16(0.5))


def in_int8(body):
    """A program of `body`, of a tensor in int8."""
    return program(lambda x: body(rounded(x)))


def convolved(x):
    return mb.conv(x=x, weight=values(8, 8, 1, 1))


def relu_between(shape):
    return program(lambda x: mb.relu(x=mb.relu(x=x)), shape)


# {rule: (programs that trigger it, with the type of the operation; programs that are as near as can be and do not)}
CASES = {
    "float32": (
        [(program(lambda x: mb.relu(x=x), dtype=types.fp32), "relu")],
        # Inputs and outputs may be float32: the casts around are no computation.
        [program(lambda x: mb.cast(x=mb.relu(x=mb.cast(x=x, dtype="fp16")), dtype="fp32"), dtype=types.fp32)],
    ),
    "dtype": (
        [
            (program(lambda x: mb.cast(x=x, dtype="int32")), "cast"),
            (program(lambda x: mb.greater(x=x, y=np.float16(0))), "greater"),
            (program(lambda x: mb.reduce_argmax(x=x, axis=1)), "reduce_argmax"),
        ],
        [program(lambda x: mb.cast(x=x, dtype="int16")), relu_between(MAP)],
    ),
    "flexible shape": (
        [(program(lambda x: mb.gelu(x=mb.relu(x=x)), (1, 8, get_new_symbol(), 32)), "relu")],
        [relu_between(MAP)],
    ),
    "rank": (
        [
            (relu_between((1, 49, 64)), "relu"),
            (relu_between((1, 2, 4, 32, 32)), "relu"),
        ],
        [relu_between(MAP), relu_between((1, 64))],
    ),
    "long axis": (
        [(relu_between((1, 8, 1, 16385)), "relu")],
        [relu_between((1, 8, 1, 16384))],
    ),
    "last axis": (
        [
            (relu_between((1, 8, 32, 31)), "relu"),
            (program(lambda x: mb.relu(x=mb.reduce_mean(x=x, axes=[2, 3], keep_dims=True))), "reduce_mean"),
        ],
        [
            relu_between(MAP),
            relu_between((1, 10)),
            # Inside the program a row may be shorter.
            program(down_and_up),
        ],
    ),
    "memory copy": (
        [
            (program(lambda x: mb.transpose(x=x, perm=[0, 2, 3, 1])), "transpose"),
            (program(lambda x: mb.reshape(x=x, shape=[1, 8, 1, 1024])), "reshape"),
        ],
        [program(lambda x: mb.split(x=x, num_splits=2, axis=1)[0])],
    ),
    "linear": (
        [(program(lambda x: mb.linear(x=x, weight=values(10, 64)), (1, 64)), "linear")],
        [convolution(1)],
    ),
    "fused attention": (
        [(program(lambda x: mb.scaled_dot_product_attention(query=x, key=x, value=x)), "scaled_dot_product_attention")],
        [program(lambda x: mb.matmul(x=mb.softmax(x=mb.matmul(x=x, y=x, transpose_y=True)), y=x))],
    ),
    "gather": (
        [
            (program(lambda x: mb.gather(x=x, indices=np.array([0, 2]), axis=1)), "gather"),
            (program(lambda x: mb.gather_nd(x=x, indices=np.array([[0, 2]]))), "gather_nd"),
        ],
        [program(lambda x: mb.slice_by_index(x=x, begin=[0, 0, 0, 0], end=[1, 2, 32, 32]))],
    ),
    "resample": ([(program(resample, MAP, (1, 16, 16, 2)), "resample")], [upsample(2)]),
    "recurrent": ([(program(lstm, (4, 8, 32)), "lstm")], [relu_between(MAP)]),
    "convolution kernel": ([(convolution(9), "conv")], [convolution(7)]),
    "convolution stride": (
        [
            (convolution(strides=[5, 5]), "conv"),
            (convolution(strides=[7, 1]), "conv"),
            (convolution(strides=[4, 8]), "conv"),
            (convolution(strides=[2, 6]), "conv"),
            (palettized(4), "conv"),
        ],
        [convolution(strides=[2, 2]), convolution(strides=[4, 4]), convolution(strides=[2, 3]), palettized(2)],
    ),
    "dilation": (
        [(convolution(dilations=[4, 4]), "conv")],
        [convolution(dilations=[2, 3])],
    ),
    "pool": (
        [
            (pool(mb.avg_pool, 14, 1), "avg_pool"),
            (pool(mb.max_pool, 9, 1), "max_pool"),
            (pool(mb.max_pool, 3, 3), "max_pool"),
        ],
        [pool(mb.avg_pool, 13, 1), pool(mb.max_pool, 7, 2), pool(mb.max_pool, 3, 4)],
    ),
    "upsampling": ([(upsample(3), "upsample_nearest_neighbor")], [upsample(2)]),
    "broadcast": (
        [(program(lambda x: mb.mul(x=x, y=mb.reduce_mean(x=x, axes=[2, 3], keep_dims=True))), "mul")],
        [
            program(lambda x: mb.mul(x=x, y=values(1, 8, 1, 1))),
            program(lambda x: mb.mul(x=x, y=mb.sigmoid(x=x))),
        ],
    ),
    "float beside int8": (
        [
            (in_int8(lambda x: mb.softmax(x=convolved(x), axis=1)), "conv"),
            (in_int8(lambda x: rounded(convolved(mb.mul(x=x, y=x)))), "conv"),
            (in_int8(lambda x: mb.add(x=rounded(convolved(x)), y=x)), "add"),
        ],
        [
            in_int8(lambda x: rounded(mb.relu(x=mb.reshape(x=convolved(x), shape=MAP)))),
            in_int8(lambda x: rounded(mb.add(x=x, y=rounded(mb.gelu(x=x))))),
            program(lambda x: mb.softmax(x=convolved(x), axis=1)),
        ],
    ),
}
TRIGGERS = [(name, *case) for name, (triggers, _) in CASES.items() for case in triggers]
CLEAN = [(name, case) for name, (_, clean) in CASES.items() for case in clean]


def of_rule(findings, rule):
    return [finding for finding in findings if finding.rule == rule]


def test_every_rule_has_programs_that_trigger_it_and_programs_that_do_not():
    assert set(CASES) == {rule.name for rule in RULES}
    assert len(CASES) == len(RULES)
    assert all(triggers and clean for triggers, clean in CASES.values())


@pytest.mark.parametrize(("rule", "bad", "operation_type"), TRIGGERS)
def test_a_rule_finds_what_it_is_about(rule, bad, operation_type):
    found = of_rule(lint(bad), rule)
    assert operation_type in {finding.operation_type for finding in found}
    names = {operation.name for operation in bad.functions["main"].operations}
    assert all(finding.operation in names and finding.message and finding.advice for finding in found)


@pytest.mark.parametrize(("rule", "good"), CLEAN)
def test_a_rule_leaves_the_rest_alone(rule, good):
    assert of_rule(lint(good), rule) == []


def test_messages_say_what_was_found():
    (finding,) = of_rule(lint(convolution(9)), "convolution kernel")
    assert finding.message == "a kernel of 9 x 9"
    (finding,) = of_rule(lint(CASES["flexible shape"][0][0][0]), "flexible shape")
    assert finding.operation_type == "relu"  # and not the gelu after it
    finding, _ = of_rule(lint(relu_between((1, 8, 1, 16385))), "long axis")
    assert "(1, 8, 1, 16385)" in finding.message
    (finding,) = of_rule(lint(CASES["broadcast"][0][0][0]), "last axis")
    assert finding.operation_type == "reduce_mean"  # and not the mul that reads it
    assert finding.message.endswith("has the shape (1, 8, 1, 1): rows of 2 bytes")


def test_operations_inside_of_loops_are_found():
    def body(x):
        step = lambda x, count: (mb.transpose(x=x, perm=[0, 1, 3, 2]), mb.sub(x=count, y=np.float16(1)))  # noqa: E731
        more = lambda x, count: mb.greater(x=count, y=np.float16(0))  # noqa: E731
        return mb.while_loop(_cond=more, _body=step, loop_vars=(x, np.float16(3)))[0]

    looped = program(body)
    assert [finding.operation_type for finding in of_rule(lint(looped), "memory copy")] == ["transpose"]
    assert summary(looped).operations["transpose"] == 1


def test_every_rule_names_public_sources_and_says_whose_word_it_is():
    for rule in RULES:
        assert rule.sources
        assert all(source.title and source.url.startswith("https://") for source in rule.sources)
        assert rule.summary.startswith(("Apple: ", "Measured by others", "A coremltools maintainer: "))
        is_apples = "apple" in rule.sources[0].url and "issues" not in rule.sources[0].url
        assert rule.summary.startswith("Apple: ") == is_apples


def saved(model, path):
    """The program of a converted model, as its package has it."""
    model.save(str(path))
    package = ct.models.MLModel(str(path), skip_model_load=True)
    spec = package.get_spec()
    return milproto.load.load(spec, spec.specificationVersion, package.weights_dir or "")


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """timm's small network at 64x64 as coremltools converts it."""
    model = timm_reference.at_resolution(timm_reference.small_model(), (2, 2))
    image = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        trace = torch.jit.trace(model, image)
    converted = ct.convert(
        trace,
        inputs=[ct.TensorType(name="image", shape=image.shape)],
        minimum_deployment_target=ct.target.iOS16,
        convert_to="mlprogram",
    )
    return saved(converted, tmp_path_factory.mktemp("traced") / "traced.mlpackage")


def test_a_traced_transformer_is_found_to_change_its_layout(traced):
    rules = {rule: len(of_rule(lint(traced), rule)) for rule in CASES}
    # Tokens are (1, 4, 32): qkv and proj, two layers of the MLP and two heads are linear.
    assert rules["linear"] == 6
    assert rules["memory copy"] >= 5
    assert rules["rank"] >= 10
    for rule in (
        "float32",
        "flexible shape",
        "gather",
        "convolution kernel",
        "convolution stride",
        "pool",
        "broadcast",
    ):
        assert rules[rule] == 0, rule


def test_our_own_network_is_left_with_its_heads_and_its_classifier(build, tmp_path):
    network = fuse(build())

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3, 64, 64))], opset_version=ct.target.iOS16)
    def prog(image):
        return tuple(network.build(MILBuilder(image)).values())

    converted = ct.convert(prog, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS16)
    found = Counter(finding.rule for finding in lint(saved(converted, tmp_path / "own.mlpackage")))
    # One Meta3D block: its channels are split into heads and joined again.
    assert found == {"memory copy": 2, "linear": 1}


def test_the_summary_of_a_saved_package(traced):
    found = summary(traced, largest=3)
    assert found.operations["linear"] == 6
    assert "const" not in found.operations
    assert sum(found.operations.values()) == sum(
        operation.op_type != "const" for operation in traced.functions["main"].operations
    )
    assert list(found.operations.values()) == sorted(found.operations.values(), reverse=True)
    assert found.dtypes == {"float16": sum(found.ranks.values())}
    assert set(found.ranks) == {2, 3, 4}
    # The hidden layer of the first MLP, before and after its GELU, and the queries, keys and values of 8 heads.
    assert [(tensor.shape, tensor.bytes) for tensor in found.largest] == [
        ((1, 32, 16, 16), 16384),
        ((1, 32, 16, 16), 16384),
        ((1, 4, 1536), 12288),
    ]
    assert json.loads(json.dumps(dataclasses.asdict(found)))["operations"] == found.operations


def test_weights_are_counted_as_they_are_stored():
    weights = 8 * 8 * 3 * 3

    def stored(program):
        return summary(program).weights_bytes

    parameters = stored(convolution()) - 2 * weights  # strides and the like
    assert 0 < parameters < 100
    # One bit for each weight, two float16 values to choose from, four sides of the shape.
    assert stored(palettized(2)) - parameters == weights // 8 + 2 * 2 + 4 * 4
    assert "constexpr_lut_to_dense" not in summary(palettized(2)).operations


def test_sizes_that_are_not_known_are_left_out():
    flexible = program(lambda x: mb.relu(x=x), (1, 8, get_new_symbol(), 32))
    assert summary(flexible).largest == ()
    assert summary(flexible).ranks == {4: 1}


def test_a_classifiers_labels_are_no_tensors(tmp_path):
    prog = mb.program(input_specs=[mb.TensorSpec(shape=(1, 4))], opset_version=ct.target.iOS16)(
        lambda x: mb.softmax(x=x, name="probabilities")
    )
    model = ct.convert(
        prog,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS16,
        classifier_config=ct.ClassifierConfig(["a", "b", "c", "d"]),
    )
    found = summary(saved(model, tmp_path / "classifier.mlpackage"))
    assert found.operations["classify"] == 1
    assert set(found.dtypes) <= {"float16", "float32"}
