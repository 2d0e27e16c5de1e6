"""The mode "auto": each layer's bits in the file, what LiteRT makes of them, and what is refused.

Files are run in LiteRT; what they hold is read with TensorFlow's own schema.
"""

import collections
import itertools
import json

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from exports import contents
from networks import SMALLEST_V2, make_loud, small
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

import keras_efficientformer as kef
from keras_efficientformer.deploy import ExportError, export_tflite
from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.deploy.network.keras_builder import KerasBuilder
from keras_efficientformer.deploy.network.recording import FusedNetwork, Step
from keras_efficientformer.deploy.network.rounding.bit_choice import BitChoice, with_steps
from keras_efficientformer.deploy.network.rounding.linear import to_linear
from keras_efficientformer.deploy.network.rounding.weight_rounding import layer_inputs
from keras_efficientformer.deploy.report_sidecar import sidecar_of
from keras_efficientformer.deploy.tflite import file as tflite_file
from keras_efficientformer.deploy.tflite.graph import Graph
from keras_efficientformer.deploy.tflite.modes import stored_bits


def second_family():
    return make_loud(kef.EfficientFormerV2(**SMALLEST_V2))


FAMILIES = {"v1": lambda: small(head="both"), "v2": second_family}
TYPES = {schema.TensorType.INT4: 4, schema.TensorType.INT8: 8, schema.TensorType.FLOAT16: 16}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return FAMILIES[request.param]()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (8, 64, 64, 3)).astype("float32")


@pytest.mark.parametrize("bits", [4, 8])
def test_integer_weights_are_computed_rightly_by_xnnpack(bits):
    random = np.random.default_rng(0)
    largest = 2 ** (bits - 1) - 1
    integers = random.integers(-largest, largest + 1, (5, 34)).astype("int8")
    scale = random.uniform(0.01, 0.03, 5).astype("float32")
    image, bias = random.normal(0, 1, (1, 2, 3, 34)).astype("float32"), np.arange(5, dtype="float32")
    graph = Graph()
    inputs = [graph.input("image", image.shape), graph.integers(integers, bits, scale), graph.constant(bias)]
    graph.output(graph.operator("FULLY_CONNECTED", inputs, (1, 2, 3, 5), keepNumDims=True))
    file = graph.file()
    tflite_file.name_ends(file, ("out",))
    interpreter = Interpreter(model_content=tflite_file.computable(file, False), num_threads=1)
    interpreter.allocate_tensors()
    assert [found["op_name"] for found in interpreter._get_ops_details()].count("DELEGATE") == 1
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    # What is left is what the activations lose in int8: half a step of 1/255 of their range, for each weight at most.
    weights = integers * scale[:, None]
    error = np.abs(weights).sum(1) * np.ptp(image, axis=-1, keepdims=True) / 255
    assert (np.abs(found - (image @ weights.T + bias)) <= error).all()
    assert np.abs(found).max() > 5 * error.max()


@pytest.mark.parametrize(
    ("operation", "shape", "bits"),
    [
        ("dense", (6, 5), (4, 8, 16)),
        ("dense", (7, 6), (8, 16)),
        ("convolution", (1, 1, 6, 5), (4, 8, 16)),
        ("convolution", (3, 3, 6, 5), (8, 16)),
    ],
    ids=str,
)
def test_int4_is_for_what_xnnpack_takes(operation, shape, bits):
    assert stored_bits(Step(operation, {"weights": np.ones(shape, "float32")}, ())) == bits


def choose(bits):
    """A choice of these bits in turn, as far as a layer's weights can have them."""

    def chosen(network, taken, max_drop, *_):
        inputs = layer_inputs(network, taken)
        ladders = {number: stored_bits(network.steps[number]) for number in inputs}
        counts = {n: max(bits[place % len(bits)], ladders[n][0]) for place, n in enumerate(inputs)}
        steps = {n: to_linear(network.steps[n], inputs[n], count) for n, count in counts.items() if count < 16}
        return BitChoice(with_steps(network, steps), counts, 1.0)

    return chosen


@pytest.mark.parametrize("bits", [(4,), (4, 8, 16)], ids=str)
def test_chosen_bits(model, images, tmp_path, monkeypatch, bits):
    if len(bits) > 1:  # else all are few enough, because every class may change
        monkeypatch.setattr("keras_efficientformer.deploy.tflite.exporter.choose_bits", choose(bits))
    report = export_tflite(model, tmp_path, quantize="auto", calibration=images, max_drop=100)
    assert report.path == str(tmp_path / f"{model.name}_64_auto.tflite")
    assert report.partitions == 1
    assert report.requires == "TensorFlow Lite 2.17.0 or newer"
    assert json.loads(sidecar_of(report.path).read_text())["bits"] == report.bits
    counts = collections.Counter(report.bits.values())
    assert set(counts) == {*bits, 8}  # convolutions that are no matrices have 8 at least
    assert report.facts()["bits"] == ", ".join(f"{n} of {counts[n]} layers" for n in sorted(counts))
    # Of each layer the file holds the integers, and all that it does not choose bits for is float16.
    file = flatbuffer_utils.read_model(report.path)
    (graph,) = file.subgraphs
    stored = collections.Counter(TYPES.get(tensor.type) for tensor in graph.tensors if len(tensor.shape) in (2, 4))
    assert (stored[4], stored[8]) == (counts[4], counts[8])
    # Runtimes that read one scale for all outputs do not know this version.
    versions = [(code.builtinCode, code.version) for code in file.operatorCodes]
    assert (schema.BuiltinOperator.FULLY_CONNECTED, 12) in versions
    metadata = {entry.name.decode(): bytes(file.buffers[entry.buffer].data) for entry in file.metadata}
    assert metadata["min_runtime_version"] == b"2.17.0"
    assert report.differences[0].relative < 0.2


def test_the_fewest_bits_that_keep_to_max_drop(model, images, tmp_path):
    report = export_tflite(model, tmp_path, quantize="auto", calibration=images, max_drop=0)
    assert report.differences[-1].top1_agreement == 1
    dynamic = export_tflite(model, tmp_path, quantize="dynamic", calibration=images)
    assert report.size < 0.9 * dynamic.size
    assert dynamic.bits is None


def undecided(network: FusedNetwork, images: np.ndarray) -> np.ndarray:
    """Mixtures of two images of different classes so near the border between these that rounding tells."""

    def best(mixed):
        return np.asarray(network.build(KerasBuilder(mixed))[network.outputs[-1]]).argmax(-1)

    classes = best(images)
    second = int(np.flatnonzero(classes != classes[0])[0])
    start, end = images[:1].astype("float64"), images[second : second + 1].astype("float64")
    shares = np.linspace(0, 1, 5)[:, None, None, None]
    for _ in range(9):  # then pixels differ by less than a thousandth
        found = best((start + shares * (end - start)).astype("float32"))
        last = int(np.flatnonzero(found == found[0])[-1])
        start, end = (start + share * (end - start) for share in (shares[last], shares[last + 1]))
    return np.concatenate([start, end]).astype("float32")


def test_max_drop_that_nothing_keeps_to(tmp_path):
    """Where two classes are even, one of both images changes its class by any rounding."""
    model = small()
    network = fuse(model, include_preprocessing=True)
    colours = np.array(list(itertools.product((0, 255), repeat=3)), "float32")
    both = undecided(network, colours[:, None, None] * np.ones((64, 64, 1), "float32"))
    assert len({int(np.asarray(network.build(KerasBuilder(image[None]))["logits"]).argmax()) for image in both}) == 2
    words = r"with all weights as they are the best class is another on 50.00% of 2 .*, and max_drop is 0\. Raise it"
    with pytest.raises(ExportError, match=words):
        export_tflite(model, tmp_path, quantize="auto", calibration=both, max_drop=0)
    assert contents(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantize": "auto"}, "quantize='auto' measures what the rounding of weights changes: pass calibration"),
        ({"max_drop": 1}, "`max_drop` is what quantize='auto' keeps to. Received: quantize='none'"),
        ({"quantize": "auto", "max_drop": 101}, r"`max_drop` should be in 0\.\.100.*max_drop=101"),
        ({"quantize": "auto", "io": "uint8"}, "`io` should be float32 with quantize='auto'. Received: io='uint8'"),
        ({"quantize": "auto", "input_sizes": [64, 96]}, "rounds weights for one input size.*Received: 2 `input_sizes`"),
    ],
    ids=str,
)
def test_what_is_refused(images, tmp_path, options, words):
    calibration = None if "pass calibration" in words else images
    with pytest.raises(ValueError, match=words):
        export_tflite(small(), tmp_path, calibration=calibration, **options)
    assert contents(tmp_path) == []


def test_chosen_bits_need_classes(build, images, tmp_path):
    with pytest.raises(ValueError, match=r"quantize='auto' looks at the best class, and .* has none"):
        export_tflite(build(include_top=False), tmp_path, quantize="auto", calibration=images)
    assert contents(tmp_path) == []
