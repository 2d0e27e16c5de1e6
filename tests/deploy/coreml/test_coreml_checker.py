"""Core ML packages run op by op: operations against PyTorch, networks against timm, and what cannot be run."""

import functools
import math
import shutil

import numpy as np
import pytest
import timm_reference
import torch
from timm.models.efficientformer_v2 import EfficientFormerV2
from torch.nn import functional

from keras_efficientformer.deploy.coreml.operations import OPERATIONS as KINDS
from keras_efficientformer.deploy.coreml.operations import elementwise
from keras_efficientformer.deploy.coreml.package import PackageError, load_package
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel

ct = pytest.importorskip("coremltools")

from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import get_new_symbol  # noqa: E402
from coremltools.optimize import coreml as optimize  # noqa: E402

# Odd and unequal, so that no axis can be taken for another; three images, so that none can leak into the next.
IMAGES, CHANNELS, HEIGHT, WIDTH = 3, 4, 9, 7
IMAGE = (1, CHANNELS, HEIGHT, WIDTH)
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
PROTOBUF = "Data/com.apple.CoreML/model.mlmodel"


def noise(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def positive(*shape):
    return np.abs(noise(*shape)) + np.float32(0.5)


def images(*shape):
    return noise(IMAGES, *(shape or (HEIGHT, WIDTH, CHANNELS)), seed=0)


def write(path, function, *, precision="float32", target=ct.target.iOS17, shape=IMAGE, **arguments):
    """Writes a function of one input as a package, by coremltools' own conversion."""
    program = mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=target)(lambda image: function(image))
    precisions = {"float16": ct.precision.FLOAT16, "float32": ct.precision.FLOAT32}
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_precision=precisions[precision],
        **arguments,
    )
    model.save(str(path))
    return model


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.mlpackage"


def convolution(weights, pad=(0, 0, 0, 0), bias=True, **arguments):
    """The same convolution in MIL and in PyTorch."""
    weights = noise(*weights)
    bias = noise(len(weights), seed=2) if bias else None
    top, bottom, left, right = pad
    mil = {"weight": weights, "pad_type": "custom", "pad": pad, **arguments}
    if bias is not None:
        mil["bias"] = bias
    stride, dilation = arguments.get("strides", 1), arguments.get("dilations", 1)

    def reference(x):
        x = functional.pad(x, (left, right, top, bottom))
        tensors = torch.from_numpy(weights), None if bias is None else torch.from_numpy(bias)
        return functional.conv2d(x, *tensors, stride, 0, dilation, arguments.get("groups", 1))

    return lambda x: mb.conv(x=x, **mil), reference


def same_convolution(pad_type, pad, size):
    function, _ = convolution((5, CHANNELS, size, size), strides=[2, 2], pad_type=pad_type, pad=[0, 0, 0, 0])
    _, reference = convolution((5, CHANNELS, size, size), strides=[2, 2], pad=pad)
    return function, reference


def tokens(x):
    return mb.transpose(x=mb.reshape(x=x, shape=[1, CHANNELS, -1]), perm=[0, 2, 1])


def torch_tokens(x):
    return x.flatten(2).transpose(1, 2)


TOKENS = HEIGHT * WIDTH
OPERATIONS = {
    "conv 3x3": convolution((5, CHANNELS, 3, 3), (1, 1, 1, 1)),
    "conv asymmetric pad and stride": convolution((5, CHANNELS, 3, 2), (2, 0, 1, 3), strides=[2, 3]),
    "conv 1x1": convolution((5, CHANNELS, 1, 1)),
    "conv 1x1 with stride": convolution((5, CHANNELS, 1, 1), strides=[2, 2]),
    "conv 1x1 with pad": convolution((5, CHANNELS, 1, 1), (1, 0, 0, 0)),
    "conv dilated": convolution((5, CHANNELS, 3, 3), (2, 2, 2, 2), dilations=[2, 3]),
    "conv without bias": convolution((5, CHANNELS, 3, 3), bias=False),
    "conv grouped": convolution((6, 2, 3, 3), (1, 1, 1, 1), groups=2),
    "conv depthwise": convolution((CHANNELS, 1, 5, 3), (2, 2, 1, 1), groups=CHANNELS, strides=[2, 1]),
    "conv depthwise multiplied": convolution((2 * CHANNELS, 1, 3, 3), groups=CHANNELS),
    "conv valid": (
        lambda x: mb.conv(x=x, weight=noise(5, CHANNELS, 3, 3), pad_type="valid"),
        convolution((5, CHANNELS, 3, 3), bias=False)[1],
    ),
    "conv same": same_convolution("same", (0, 1, 0, 1), 2),
    "conv same_lower": same_convolution("same_lower", (1, 0, 1, 0), 2),
    "avg_pool without padding": (
        lambda x: mb.avg_pool(
            x=x,
            kernel_sizes=[3, 3],
            strides=[1, 1],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            exclude_padding_from_average=True,
        ),
        lambda x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    ),
    "avg_pool with padding": (
        lambda x: mb.avg_pool(
            x=x,
            kernel_sizes=[3, 2],
            strides=[2, 1],
            pad_type="custom",
            pad=[1, 0, 0, 2],
            exclude_padding_from_average=False,
        ),
        lambda x: functional.avg_pool2d(functional.pad(x, (0, 2, 1, 0)), (3, 2), (2, 1)),
    ),
    "max_pool": (  # of negative values, so that padding with zeros would show
        lambda x: mb.max_pool(
            x=mb.sub(x=x, y=np.float32(9)),
            kernel_sizes=[3, 3],
            strides=[2, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
        ),
        lambda x: functional.max_pool2d(x - 9, 3, 2, 1),
    ),
    "gelu exact": (lambda x: mb.gelu(x=x, mode="EXACT"), functional.gelu),
    "gelu tanh": (
        lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        lambda x: functional.gelu(x, approximate="tanh"),
    ),
    "gelu sigmoid": (lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"), lambda x: x * torch.sigmoid(1.702 * x)),
    "relu": (lambda x: mb.relu(x=x), functional.relu),
    "relu6": (lambda x: mb.relu6(x=mb.mul(x=x, y=np.float32(6))), lambda x: functional.relu6(6 * x)),
    "sigmoid": (lambda x: mb.sigmoid(x=mb.mul(x=x, y=np.float32(60))), lambda x: torch.sigmoid(60 * x)),
    "silu": (lambda x: mb.silu(x=x), functional.silu),
    "tanh": (lambda x: mb.tanh(x=x), torch.tanh),
    "exp": (lambda x: mb.exp(x=x), torch.exp),
    "erf": (lambda x: mb.erf(x=mb.mul(x=x, y=np.float32(3))), lambda x: torch.erf(3 * x)),
    "abs": (lambda x: mb.abs(x=x), torch.abs),
    "square": (lambda x: mb.square(x=x), torch.square),
    "sqrt": (lambda x: mb.sqrt(x=mb.abs(x=x)), lambda x: x.abs().sqrt()),
    "rsqrt": (lambda x: mb.rsqrt(x=mb.square(x=x), epsilon=0.1), lambda x: (x**2 + 0.1).rsqrt()),
    "inverse": (lambda x: mb.inverse(x=mb.abs(x=x), epsilon=0.1), lambda x: 1 / (x.abs() + 0.1)),
    "log": (lambda x: mb.log(x=mb.abs(x=x), epsilon=0.1), lambda x: (x.abs() + 0.1).log()),
    "clip": (lambda x: mb.clip(x=x, alpha=-0.5, beta=0.75), lambda x: x.clip(-0.5, 0.75)),
    "leaky_relu": (lambda x: mb.leaky_relu(x=x, alpha=0.3), lambda x: functional.leaky_relu(x, 0.3)),
    "sigmoid_hard": (lambda x: mb.sigmoid_hard(x=x, alpha=0.3, beta=0.4), lambda x: (0.3 * x + 0.4).clip(0, 1)),
    "add": (
        lambda x: mb.add(x=x, y=noise(CHANNELS, 1, 1)),
        lambda x: x + torch.from_numpy(noise(CHANNELS, 1, 1)),
    ),
    "add two": (lambda x: mb.add(x=x, y=mb.tanh(x=x)), lambda x: x + x.tanh()),
    "sub": (lambda x: mb.sub(x=np.float32(3), y=x), lambda x: 3 - x),
    "mul": (lambda x: mb.mul(x=x, y=noise(1, 1, HEIGHT, 1)), lambda x: x * torch.from_numpy(noise(1, 1, HEIGHT, 1))),
    "real_div": (lambda x: mb.real_div(x=np.float32(2), y=mb.exp(x=x)), lambda x: 2 / x.exp()),
    "pow": (lambda x: mb.pow(x=mb.abs(x=x), y=np.float32(1.5)), lambda x: x.abs() ** 1.5),
    "maximum": (lambda x: mb.maximum(x=x, y=np.float32(0.25)), lambda x: x.clip(min=0.25)),
    "minimum": (lambda x: mb.minimum(x=x, y=mb.square(x=x)), lambda x: torch.minimum(x, x * x)),
    "layer_norm of channels": (
        lambda x: mb.layer_norm(x=x, axes=[1], epsilon=1e-3),
        lambda x: functional.layer_norm(x.movedim(1, -1), (CHANNELS,), eps=1e-3).movedim(-1, 1),
    ),
    "layer_norm with scale and offset": (
        lambda x: mb.layer_norm(x=x, axes=[-2, -1], gamma=noise(HEIGHT, WIDTH), beta=noise(HEIGHT, WIDTH, seed=2)),
        lambda x: functional.layer_norm(
            x, (HEIGHT, WIDTH), torch.from_numpy(noise(HEIGHT, WIDTH)), torch.from_numpy(noise(HEIGHT, WIDTH, seed=2))
        ),
    ),
    "batch_norm": (
        lambda x: mb.batch_norm(
            x=x, mean=noise(CHANNELS), variance=positive(CHANNELS), gamma=noise(CHANNELS, seed=3), beta=noise(CHANNELS)
        ),
        lambda x: functional.batch_norm(
            x,
            torch.from_numpy(noise(CHANNELS)),
            torch.from_numpy(positive(CHANNELS)),
            torch.from_numpy(noise(CHANNELS, seed=3)),
            torch.from_numpy(noise(CHANNELS)),
        ),
    ),
    "linear": (
        lambda x: mb.linear(x=tokens(x), weight=noise(6, CHANNELS), bias=noise(6)),
        lambda x: functional.linear(torch_tokens(x), torch.from_numpy(noise(6, CHANNELS)), torch.from_numpy(noise(6))),
    ),
    "matmul transposed": (
        lambda x: mb.matmul(x=x, y=mb.tanh(x=x), transpose_x=True),
        lambda x: x.transpose(-1, -2) @ x.tanh(),
    ),
    "matmul transposed the other way": (
        lambda x: mb.matmul(x=x, y=mb.tanh(x=x), transpose_y=True),
        lambda x: x @ x.tanh().transpose(-1, -2),
    ),
    "matmul by a constant": (
        lambda x: mb.matmul(x=noise(CHANNELS, 5, HEIGHT), y=x),
        lambda x: torch.from_numpy(noise(CHANNELS, 5, HEIGHT)) @ x,
    ),
    "softmax": (lambda x: mb.softmax(x=mb.mul(x=x, y=np.float32(50)), axis=-2), lambda x: torch.softmax(50 * x, -2)),
    "scaled_dot_product_attention": (
        lambda x: mb.scaled_dot_product_attention(
            query=x, key=mb.tanh(x=x), value=mb.abs(x=x), attn_mask=noise(1, CHANNELS, HEIGHT, HEIGHT)
        ),
        lambda x: functional.scaled_dot_product_attention(
            x, x.tanh(), x.abs(), torch.from_numpy(noise(1, CHANNELS, HEIGHT, HEIGHT))
        ),
    ),
    "reduce_mean": (lambda x: mb.reduce_mean(x=x, axes=[2, -1], keep_dims=False), lambda x: x.mean((2, 3))),
    "reduce_max": (lambda x: mb.reduce_max(x=x, axes=[1], keep_dims=True), lambda x: x.amax(1, keepdim=True)),
    "reduce_min": (lambda x: mb.reduce_min(x=x, axes=[3], keep_dims=False), lambda x: x.amin(3)),
    "reduce_sum": (lambda x: mb.reduce_sum(x=x, axes=[2], keep_dims=False), lambda x: x.sum(2)),
    "reshape": (lambda x: mb.reshape(x=x, shape=[1, -1, HEIGHT]), lambda x: x.reshape(len(x), -1, HEIGHT)),
    "transpose": (lambda x: mb.transpose(x=x, perm=[0, 3, 1, 2]), lambda x: x.permute(0, 3, 1, 2)),
    "expand_dims and squeeze": (
        lambda x: mb.squeeze(x=mb.softmax(x=mb.expand_dims(x=x, axes=[1]), axis=2), axes=[1]),
        lambda x: torch.softmax(x, 1),
    ),
    "split": (
        lambda x: mb.sub(**dict(zip("xy", mb.split(x=x, split_sizes=[3, 3, 3], axis=2)[1:], strict=True))),
        lambda x: x[:, :, 3:6] - x[:, :, 6:],
    ),
    "split unequally": (
        lambda x: mb.matmul(
            **dict(zip("xy", mb.split(x=x, split_sizes=[2, 7], axis=2), strict=True)), transpose_y=True
        ),
        lambda x: x[:, :, :2] @ x[:, :, 2:].transpose(-1, -2),
    ),
    "concat": (
        lambda x: mb.concat(values=[x, noise(1, CHANNELS, 2, WIDTH), mb.tanh(x=x)], axis=-2),
        lambda x: torch.cat(
            [x, torch.from_numpy(noise(1, CHANNELS, 2, WIDTH)).expand(len(x), -1, -1, -1), x.tanh()], 2
        ),
    ),
    "stack": (lambda x: mb.stack(values=[x, mb.tanh(x=x)], axis=-1), lambda x: torch.stack([x, x.tanh()], -1)),
    "slice_by_index": (
        lambda x: mb.slice_by_index(
            x=x,
            begin=[0, 1, -2, 6],
            end=[1, 3, 0, 0],
            stride=[1, 1, 1, -2],
            begin_mask=[True, False, False, False],
            end_mask=[False, False, True, True],
        ),
        lambda x: x[:, 1:3, -2:].flip(-1)[..., ::2],
    ),
    "slice_by_index with a squeezed axis": (
        lambda x: mb.slice_by_index(
            x=x, begin=[0, 2, 0, 0], end=[1, 3, 9, 7], squeeze_mask=[False, True, False, False]
        ),
        lambda x: x[:, 2],
    ),
    "slice_by_size": (
        lambda x: mb.slice_by_size(x=x, begin=[0, 1, 2, 3], size=[1, 2, -1, 4]),
        lambda x: x[:, 1:3, 2:, 3:7],
    ),
    "gather": (lambda x: mb.gather(x=x, indices=[3, 0, 3], axis=1), lambda x: x[:, [3, 0, 3]]),
    "pad": (
        lambda x: mb.pad(x=x, pad=[1, 2, 0, 3], mode="constant", constant_val=2.0),
        lambda x: functional.pad(x, (0, 3, 1, 2), value=2.0),
    ),
    "pad by reflection": (
        lambda x: mb.pad(x=x, pad=[1, 2, 0, 3], mode="reflect"),
        lambda x: functional.pad(x, (0, 3, 1, 2), mode="reflect"),
    ),
    "pad by replication": (
        lambda x: mb.pad(x=x, pad=[1, 2, 0, 3], mode="replicate"),
        lambda x: functional.pad(x, (0, 3, 1, 2), mode="replicate"),
    ),
    "upsample_bilinear": (
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=3, align_corners=False),
        lambda x: functional.interpolate(x, scale_factor=(2, 3), mode="bilinear"),
    ),
    "upsample_bilinear to the corners": (
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=3, align_corners=True),
        lambda x: functional.interpolate(x, scale_factor=(2, 3), mode="bilinear", align_corners=True),
    ),
    "resize_bilinear": (
        lambda x: mb.resize_bilinear(
            x=x, target_size_height=5, target_size_width=11, sampling_mode="STRICT_ALIGN_CORNERS"
        ),
        lambda x: functional.interpolate(x, (5, 11), mode="bilinear", align_corners=True),
    ),
    "resize": (
        lambda x: mb.resize(
            x=x, shape=[5, 11], resized_dims=np.uint32(2), interpolation_mode="LINEAR", sampling_mode="UNALIGN_CORNERS"
        ),
        lambda x: functional.interpolate(x, (5, 11), mode="bilinear"),
    ),
    "upsample_nearest_neighbor": (
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
        lambda x: functional.interpolate(x, scale_factor=(2, 3), mode="nearest"),
    ),
}


# What iOS 15 does not have.
NEWER = ("conv same_lower", "resize", "scaled_dot_product_attention")


@pytest.fixture(scope="module", params=["iOS15", "iOS18"])
def results(request, tmp_path_factory):
    """{case: result} of the operations that a target has, all from one package; converting each alone takes minutes."""
    target = getattr(ct.target, request.param)
    cases = [case for case in OPERATIONS if target != ct.target.iOS15 or case not in NEWER]
    path = tmp_path_factory.mktemp("operations") / "operations.mlpackage"
    write(path, lambda x: tuple(OPERATIONS[case][0](x) for case in cases), target=target)
    model = CoreMLModel(path)
    assert {case.split()[0] for case in cases} <= model.operations().keys()
    found = model.predict(images(), batch_size=2)
    return {case: found[output.name] for case, output in zip(cases, model.outputs, strict=True)}


@pytest.mark.parametrize("case", OPERATIONS)
def test_operation_does_what_torch_does(results, case):
    if case not in results:
        pytest.skip("iOS 15 has not this operation")

    expected = OPERATIONS[case][1](torch.from_numpy(images().transpose(0, 3, 1, 2).copy())).numpy()

    assert results[case].dtype == np.float32
    assert results[case].shape == expected.shape
    np.testing.assert_allclose(results[case], expected, rtol=2e-6, atol=4e-6)


FLOAT16_STEPS = noise(CHANNELS, 1, 1), noise(1, 1, WIDTH)


@pytest.fixture
def float16_chain(path):
    """Two operations in float16, each with a result that float16 does not hold."""
    scale, offset = FLOAT16_STEPS
    write(path, lambda x: mb.add(x=mb.mul(x=x, y=scale), y=offset), precision="float16")
    return path


def test_float16_is_rounded_to_after_each_operation(float16_chain):
    (found,) = CoreMLModel(float16_chain).predict(images()).values()

    # NumPy's own float16 arithmetic rounds each result once.
    half = images().transpose(0, 3, 1, 2).astype("float16")
    scale, offset = (step.astype("float16") for step in FLOAT16_STEPS)
    np.testing.assert_array_equal(found, (half * scale + offset).astype("float32"))


def test_float16_program_can_be_computed_in_float32(float16_chain):
    (found,) = CoreMLModel(float16_chain, float16=False).predict(images()).values()

    scale, offset = (step.astype("float16").astype("float32") for step in FLOAT16_STEPS)
    np.testing.assert_array_equal(found, images().transpose(0, 3, 1, 2) * scale + offset)
    assert (found != found.astype("float16")).any()


# Arguments of `quantize` and `dequantize`; numbers that float16 holds, and scales that it does not.
ROUNDINGS = {
    "one scale": ({"scale": np.float32(0.0123)}, "int8"),
    "halves": ({"scale": np.float32(0.5)}, "int8"),
    "saturated": ({"scale": np.float32(0.001)}, "int8"),
    "a zero point": ({"scale": np.float32(0.02), "zero_point": np.int8(-100)}, "int8"),
    "unsigned": ({"scale": np.float32(0.01), "zero_point": np.uint8(128)}, "uint8"),
    "a scale for each channel": (
        {"scale": positive(CHANNELS), "zero_point": np.arange(CHANNELS).astype("int8"), "axis": 1},
        "int8",
    ),
}


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_int8_is_rounded_to_and_from_as_coremltools_does(path, precision):
    """Bit for bit: to the nearest, halves to even, and saturated."""
    whole = np.round(8 * images()) / 4  # half of its values are halves of 0.5
    inputs = np.concatenate([images()[:2], whole[:1]])
    references = []

    def program(x):
        results = []
        for arguments, dtype in ROUNDINGS.values():
            stored = mb.quantize(input=x, output_dtype=dtype, **arguments)
            results.append(mb.dequantize(input=stored, **arguments))
        if not references:
            references.extend(coremltools_rounding(inputs, precision, *case) for case in ROUNDINGS.values())
        return tuple(results)

    write(path, program, precision=precision)
    found = list(CoreMLModel(path).predict(inputs, batch_size=2).values())

    for values, expected in zip(found, references, strict=True):
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected)
    assert len(np.unique(found[0])) > 100
    saturated = found[2][np.abs(inputs.transpose(0, 3, 1, 2)) > 0.2]
    assert len(np.unique(saturated)) == 2


def coremltools_rounding(inputs, precision, arguments, dtype):
    """The values of coremltools' own `quantize` and `dequantize` of constants, channels first."""
    arguments = {name: value.astype(precision) if name == "scale" else value for name, value in arguments.items()}
    constant = inputs.transpose(0, 3, 1, 2).astype(precision)
    stored = mb.quantize(input=constant, output_dtype=dtype, **arguments)
    return mb.dequantize(input=stored.val, **arguments).op.materialized_val_inference().astype("float32")


def test_float16_overflows_as_hardware_does(path):
    write(path, lambda x: mb.mul(x=mb.mul(x=x, y=np.float32(6e4)), y=np.float32(1e-3)), precision="float16")
    ones = np.ones((1, HEIGHT, WIDTH, CHANNELS), "float32")

    assert np.isinf(*CoreMLModel(path).predict(2 * ones).values()).all()
    assert np.isfinite(*CoreMLModel(path).predict(ones).values()).all()
    assert np.isfinite(*CoreMLModel(path, float16=False).predict(2 * ones).values()).all()


def test_rounding_is_numpys_own_for_every_float16_and_between_them():
    halves = np.arange(0x7C01, dtype="uint16").view("float16").astype("float32")  # from zero to infinity
    ends = np.append(halves[:-1], np.float32(2**16))
    between = (ends[1:] + ends[:-1]) / 2  # ties, of which the last one becomes infinite
    near = [np.nextafter(values, np.float32(end)) for values in (halves[1:-1], between) for end in (0, np.inf)]
    sizes = np.concatenate([halves, between, *near, np.array([1e-45, 1e38, np.nan], "float32")])
    # By size, so that most tiles hold none of the large numbers, which are converted.
    values = np.stack([np.sort(sizes), -np.sort(sizes)])
    assert values.size > 8 * elementwise.TILE
    with np.errstate(over="ignore"):
        expected = values.astype("float16").astype("float32")
    for array, wanted in ((values, expected), (values.T, expected.T), (values[:, ::2], expected[:, ::2])):
        np.testing.assert_array_equal(elementwise.rounded(array), wanted)


def test_gelu_is_the_same_in_tiles():
    values = noise(2 * elementwise.TILE + 5)
    erf = torch.erf(torch.from_numpy(values) / math.sqrt(2)).numpy()
    gelu = KINDS["gelu"].plan(values, "EXACT")
    np.testing.assert_allclose(gelu(values), values * (1 + erf) / 2, rtol=0, atol=2e-6)


def test_small_network_of_timm_gives_the_same_logits(path):
    network = timm_reference.small_model()
    convert_torch(network, path)
    model = CoreMLModel(path)
    assert model.input_shape == (224, 224, 3)
    inputs = timm_reference.images(224, 224, batch=3)

    (found,) = model.predict(inputs, batch_size=2).values()

    expected, *_ = timm_reference.logits(network, inputs)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_small_network_of_the_second_family_gives_the_same_logits(path):
    torch.manual_seed(0)
    network = EfficientFormerV2(
        depths=(1, 1, 2, 2), embed_dims=(8, 16, 24, 32), num_vit=1, mlp_ratios=2.0, num_classes=10, img_size=64
    ).eval()
    timm_reference.make_loud(network)
    convert_torch(network, path, size=64)
    model = CoreMLModel(path)
    assert {"upsample_bilinear", "batch_norm"} <= model.operations().keys()
    inputs = timm_reference.images(64, 64, batch=3)

    (found,) = model.predict(inputs, batch_size=2).values()

    with torch.no_grad():
        expected = network(torch.from_numpy(inputs.transpose(0, 3, 1, 2).copy())).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def convert_torch(network, path, size=224):
    traced = torch.jit.trace(network, torch.zeros(1, 3, size, size))
    ct.convert(
        traced,
        convert_to="mlprogram",
        inputs=[ct.TensorType(name="image", shape=(1, 3, size, size))],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32,
    ).save(str(path))


def class_scores(x):
    pooled = mb.reduce_mean(x=x, axes=[2, 3], keep_dims=False)
    return mb.softmax(x=mb.linear(x=pooled, weight=noise(5, 3)), axis=-1, name="probabilities")


@pytest.mark.parametrize("labels", [["wombat", "emu", "quoll", "emu 2", "dingo"], [7, 3, 5, 4, 6]])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_classifier_with_an_image_as_input(path, labels, order):
    write(
        path,
        class_scores,
        shape=(1, 3, HEIGHT, WIDTH),
        inputs=[
            ct.ImageType(
                name="image", shape=(1, 3, HEIGHT, WIDTH), color_layout=order, scale=1 / 64, bias=[-2.0, -1.5, -1.0]
            )
        ],
        classifier_config=ct.ClassifierConfig(labels),
    )
    model = CoreMLModel(path)
    raw = np.random.default_rng(0).uniform(0, 255, (IMAGES, 1, 1, 3)) * np.ones((HEIGHT, WIDTH, 1))

    found = model.predict(raw, batch_size=2)

    channels = raw if order == "RGB" else raw[..., ::-1]
    pooled = (channels / 64 - [2.0, 1.5, 1.0]).mean((1, 2))
    expected = torch.softmax(torch.from_numpy(pooled @ noise(5, 3).T), -1).numpy()
    label, probabilities = (output.name for output in model.outputs)
    np.testing.assert_allclose(found[probabilities], expected, atol=1e-6)
    assert model.labels == tuple(str(name) for name in labels)
    assert found[label].tolist() == [model.labels[index] for index in expected.argmax(-1)]
    assert len(set(found[label])) > 1
    (image,) = model.inputs
    assert (image.name, image.shape, image.dtype) == ("image", (1, 3, HEIGHT, WIDTH), "uint8")
    assert [(output.shape, output.dtype) for output in model.outputs] == [((1,), "str"), ((1, 5), "float32")]


def test_description_and_progress(path):
    model = write(path, lambda x: mb.relu(x=mb.tanh(x=mb.relu(x=x)), name="features"))
    model.short_description, model.author, model.license, model.version = "what", "who", "terms", "1.2"
    model.user_defined_metadata["com.example.key"] = "value"
    model.save(str(path))
    package = load_package(path)
    wanted = {"description": "what", "author": "who", "license": "terms", "version": "1.2", "com.example.key": "value"}
    assert wanted.items() <= package.metadata.items()
    assert package.labels is None

    model = CoreMLModel(path)
    (output,) = model.outputs
    batches = []
    model.predict(images(), batch_size=2, progress=lambda starts: batches.extend(starts) or starts)

    assert batches == [0, 2]
    assert list(model.operations().items()) == [("relu", 2), ("tanh", 1)]
    assert (output.name, output.shape, model.input_shape) == ("features", IMAGE, (HEIGHT, WIDTH, CHANNELS))


def two_layers(x):
    """Convolutions of a size that coremltools compresses by default."""
    hidden = mb.relu(x=mb.conv(x=x, weight=noise(64, CHANNELS, 3, 3), pad_type="valid"))
    return mb.conv(x=hidden, weight=noise(16, 64, 3, 3, seed=2), bias=noise(16), pad_type="valid")


def linear(**arguments):
    configuration = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0, **arguments)
    return lambda model, **joint: optimize.linear_quantize_weights(model, _config(configuration), **joint)


def palette(**arguments):
    configuration = optimize.OpPalettizerConfig(mode="uniform", weight_threshold=0, **arguments)
    return lambda model, **joint: optimize.palettize_weights(model, _config(configuration), **joint)


def pruned(model):
    return optimize.prune_weights(
        model, _config(optimize.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0))
    )


def _config(configuration):
    return optimize.OptimizationConfig(global_config=configuration)


# Compression, the oldest target that has it, and the operations in which it is stored.
COMPRESSIONS = {
    "int8": (linear(), "iOS16", {"constexpr_affine_dequantize"}),
    "palette": (palette(nbits=6), "iOS16", {"constexpr_lut_to_dense"}),
    "sparse": (pruned, "iOS16", {"constexpr_sparse_to_dense"}),
    "int8 of iOS 18": (linear(), "iOS18", {"constexpr_blockwise_shift_scale"}),
    "int4 in blocks": (
        linear(dtype="int4", granularity="per_block", block_size=2),
        "iOS18",
        {"constexpr_blockwise_shift_scale"},
    ),
    "grouped palette": (
        palette(nbits=4, granularity="per_grouped_channel", group_size=8),
        "iOS18",
        {"constexpr_lut_to_dense"},
    ),
    "sparse of iOS 18": (pruned, "iOS18", {"constexpr_sparse_to_dense"}),
    "sparse int8": (
        lambda model: linear()(pruned(model), joint_compression=True),
        "iOS18",
        {"constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense"},
    ),
    "sparse palette": (
        lambda model: palette(nbits=4)(pruned(model), joint_compression=True),
        "iOS18",
        {"constexpr_lut_to_sparse", "constexpr_sparse_to_dense"},
    ),
    "int8 palette": (
        lambda model: linear(granularity="per_tensor")(palette(nbits=4)(model), joint_compression=True),
        "iOS18",
        {"constexpr_lut_to_dense", "constexpr_blockwise_shift_scale"},
    ),
}


@pytest.fixture(scope="module")
def uncompressed(tmp_path_factory):
    """Gives, for a target, `two_layers` as coremltools' model and its outputs."""

    @functools.cache
    def make(target):
        path = tmp_path_factory.mktemp(target) / "plain.mlpackage"
        model = write(path, two_layers, target=getattr(ct.target, target))
        return model, *CoreMLModel(path).predict(images()).values()

    return make


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_weights(path, uncompressed, compression):
    compress, target, kinds = COMPRESSIONS[compression]
    model, plain = uncompressed(target)
    compressed = compress(model)
    compressed.save(str(path))
    assert kinds <= {operation.op_type for operation in load_package(path).program.functions["main"].operations}

    model = CoreMLModel(path)
    (found,) = model.predict(images()).values()

    assert model.operations() == {"conv": 2, "relu": 1}
    dense = path.with_name("dense.mlpackage")
    optimize.decompress_weights(compressed).save(str(dense))
    (expected,) = CoreMLModel(dense).predict(images()).values()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert 1e-4 < np.abs(found - plain).mean() / np.abs(plain).mean() < 0.5


def test_int8_weights_are_what_linear_quantization_says(path):
    weights = noise(6, CHANNELS, 3, 3)
    model = write(path, lambda x: mb.conv(x=x, weight=weights, pad_type="valid"))
    shutil.rmtree(path)
    linear()(model).save(str(path))

    (found,) = CoreMLModel(path).predict(images()).values()

    scale = np.abs(weights).max((1, 2, 3), keepdims=True) / 127
    quantized = torch.from_numpy(np.round(weights / scale) * scale)
    expected = functional.conv2d(torch.from_numpy(images().transpose(0, 3, 1, 2).copy()), quantized)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


def truncate(file, keep):
    file.write_bytes(file.read_bytes()[:keep])


DAMAGE = {
    "manifest truncated": lambda path: truncate(path / "Manifest.json", 100),
    "manifest empty": lambda path: truncate(path / "Manifest.json", 0),
    "protobuf truncated": lambda path: truncate(path / PROTOBUF, 500),
    "protobuf cut by a byte": lambda path: truncate(path / PROTOBUF, -1),
    "protobuf missing": lambda path: (path / PROTOBUF).unlink(),
    "weights missing": lambda path: (path / WEIGHTS).unlink(),
    "weights empty": lambda path: truncate(path / WEIGHTS, 0),
    "weights truncated": lambda path: truncate(path / WEIGHTS, 5000),
    "weights cut by a byte": lambda path: truncate(path / WEIGHTS, -1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_package_is_one_clear_error(path, uncompressed, damage):
    uncompressed("iOS16")[0].save(str(path))
    DAMAGE[damage](path)

    with pytest.raises(
        PackageError, match=r"cannot be read as a Core ML package.*bring all of the folder again"
    ) as error:
        CoreMLModel(path)

    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_package_is_said_so(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.mlpackage does not exist"):
        CoreMLModel(path)
    with pytest.raises(PackageError, match="is a folder without a Manifest"):
        CoreMLModel(tmp_path)
    assert not list(tmp_path.iterdir())

    spec = old_network()
    file = tmp_path / "old.mlmodel"
    ct.models.utils.save_spec(spec, str(file))
    with pytest.raises(PackageError, match=r"old\.mlmodel is a file, and the folder of a Core ML package"):
        CoreMLModel(file)
    ct.models.utils.save_spec(spec, str(path))
    with pytest.raises(PackageError, match="holds a neural network of before iOS 15, and an ML Program is needed"):
        CoreMLModel(path)


def old_network():
    program = mb.program(input_specs=[mb.TensorSpec(shape=IMAGE)])(lambda image: mb.relu(x=image))
    return ct.convert(program, convert_to="neuralnetwork").get_spec()


def edited(path, edit):
    """Changes the protobuf of a package."""
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString((path / PROTOBUF).read_bytes())
    function = spec.mlProgram.functions["main"]
    edit(function.block_specializations[function.opset].operations)
    (path / PROTOBUF).write_bytes(spec.SerializeToString())


def rename_relu(operations):
    (relu,) = (operation for operation in operations if operation.type == "relu")
    relu.type = "frobnicate"


def test_unknown_operations_are_all_named_at_once(path):
    write(path, lambda x: mb.relu(x=mb.cumsum(x=mb.reverse(x=x, axes=[2]), axis=1)))
    edited(path, rename_relu)

    with pytest.raises(PackageError, match="operations that are not known here: cumsum, frobnicate, reverse"):
        CoreMLModel(path)
    with pytest.raises(PackageError, match="operations that are not known here: frobnicate"):
        load_package(path)


FIRST = "first axis, which is that of the images"
REFUSED = {
    "pool in ceil mode": (
        lambda x: mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid", ceil_mode=True),
        "argument ceil_mode is True",
    ),
    "convolution of one dimension": (
        lambda x: mb.conv(x=mb.reshape(x=x, shape=[1, CHANNELS, -1]), weight=noise(5, CHANNELS, 3), pad_type="valid"),
        "images of two dimensions",
    ),
    "weights that vary": (
        lambda x: mb.conv(x=x, weight=mb.reshape(x=x, shape=[1, CHANNELS, HEIGHT, WIDTH]), pad_type="valid"),
        "weight are not supported",
    ),
    "reduction": (lambda x: mb.reduce_sum(x=x, axes=[0, 1], keep_dims=True), FIRST),
    "reduction of all": (lambda x: mb.reduce_max(x=x, keep_dims=True), FIRST),
    "softmax": (lambda x: mb.softmax(x=x, axis=0), FIRST),
    "layer_norm": (lambda x: mb.layer_norm(x=x, axes=[0, 1]), FIRST),
    "concat": (lambda x: mb.concat(values=[x, mb.tanh(x=x)], axis=0), FIRST),
    "stack": (lambda x: mb.stack(values=[x, mb.tanh(x=x)], axis=0), FIRST),
    "gather": (lambda x: mb.gather(x=x, indices=[0, 0], axis=0), FIRST),
    "interleaved concat": (lambda x: mb.concat(values=[x, mb.tanh(x=x)], axis=1, interleave=True), "interleave"),
    "transposition": (lambda x: mb.transpose(x=mb.reduce_sum(x=x, axes=[1], keep_dims=True), perm=[1, 0, 2, 3]), FIRST),
    "reversal": (
        lambda x: mb.slice_by_index(x=x, begin=[-1, 0, 0, 0], end=[0, 4, 9, 7], squeeze_mask=[True] + [False] * 3),
        FIRST,
    ),
    "padding": (lambda x: mb.pad(x=x, pad=[1, 0, 0, 0, 0, 0, 0, 0]), FIRST),
    "broadcast": (
        lambda x: mb.mul(x=mb.reduce_sum(x=x, axes=[2, 3], keep_dims=False), y=noise(1, 3, CHANNELS)),
        "along the axis of the images",
    ),
    "product": (
        lambda x: mb.matmul(x=noise(5, 1), y=mb.reduce_sum(x=x, axes=[1, 2], keep_dims=False)),
        FIRST,
    ),
    "batch made by a constant": (lambda x: mb.add(x=x, y=noise(2, CHANNELS, HEIGHT, WIDTH)), "Convert .* batch of one"),
    "resize to the nearest": (
        lambda x: mb.resize_nearest_neighbor(x=x, target_size_height=5, target_size_width=5),
        "whole factors",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_run_soundly_is_refused_when_opened(path, case):
    function, message = REFUSED[case]
    write(path, function)

    with pytest.raises(PackageError, match=message):
        CoreMLModel(path)


def test_inputs_must_be_one_batch_of_one_fixed_image(path):
    write(path, lambda x: mb.relu(x=x), shape=(2, CHANNELS, HEIGHT, WIDTH))
    with pytest.raises(PackageError, match="batch of one"):
        CoreMLModel(path)
    shutil.rmtree(path)
    flexible = ct.TensorType(name="image", shape=(1, CHANNELS, ct.RangeDim(4, 32), WIDTH))
    write(path, lambda x: mb.relu(x=x), shape=(1, CHANNELS, get_new_symbol(), WIDTH), inputs=[flexible])
    with pytest.raises(PackageError, match="of a fixed size"):
        CoreMLModel(path)
    shutil.rmtree(path)
    write(path, lambda x: mb.relu(x=x), shape=(1, 8))
    with pytest.raises(PackageError, match="is not an image network"):
        CoreMLModel(path)


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH, CHANNELS), (0, HEIGHT, WIDTH, CHANNELS), (2, *IMAGE[1:])])
def test_images_of_another_shape_are_refused(path, shape):
    write(path, lambda x: mb.relu(x=x))

    with pytest.raises(ValueError, match=r"\(number, 9, 7, 4\) are needed. Received: \("):
        CoreMLModel(path).predict(np.zeros(shape, "float32"))
