"""Core ML export: what the packages compute, what is in them, and what is left where export fails.

Packages are looked into with coremltools' own classes, and run with the package's checker, which its own tests compare
with PyTorch. The published L1, with loud weights, is exported as a user would, in a process of its own, and compared
with timm.
"""

import dataclasses
import json
import time
from pathlib import Path

import coremltools
import exports
import keras
import numpy as np
import pytest
import safetensors.numpy
import timm_reference
from coremltools.converters.mil.frontend.milproto import load as milproto
from exports import assert_interrupt_leaves_nothing, assert_read_only_folder_is_refused, contents, finish
from networks import make_loud
from project import CHECKPOINT

import keras_efficientformer as kef
from keras_efficientformer.deploy import ExportError, export_coreml
from keras_efficientformer.deploy.coreml import modes as coreml_modes
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.network.rounding.bit_choice import BitChoice, with_steps
from keras_efficientformer.deploy.network.rounding.palettes import to_palette
from keras_efficientformer.deploy.network.rounding.weight_rounding import layer_inputs
from keras_efficientformer.deploy.report_sidecar import sidecar_of
from keras_efficientformer.imagenet import imagenet_labels, preprocess_input

LIMIT = 1e-5


def images_of(height, width, number=3, channels=3):
    rng = np.random.default_rng(7)
    light = np.linspace(0, 155, number)[:, None, None, None]
    return (rng.integers(0, 101, (number, height, width, channels)) + light).astype("float32")


def program_of(path):
    package = coremltools.models.MLModel(str(path), skip_model_load=True)
    spec = package.get_spec()
    return milproto.load(spec, spec.specificationVersion, package.weights_dir).functions["main"]


def assert_close(found, expected, limit):
    assert found.shape == expected.shape
    largest = max(1, np.abs(expected).max())
    assert np.abs(expected[0] - expected[-1]).max() > 20 * limit * largest  # else the outputs prove nothing
    assert np.abs(found - expected).max() <= limit * largest


@pytest.fixture(scope="module")
def model(build):
    return build(classifier_activation=None)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "small.mlpackage"
    return path, export_coreml(model, path)


# The published L1 against timm.


@pytest.fixture(scope="module")
def l1(tmp_path_factory, loud_state_dict):
    folder = tmp_path_factory.mktemp("l1")
    checkpoint = folder / "loud_l1.safetensors"
    safetensors.numpy.save_file(loud_state_dict, checkpoint)
    code, output, log = finish(exports.start("export_coreml", checkpoint, folder))
    assert code == 0, log
    return checkpoint, folder / "efficientformer_l1_224_float16.mlpackage", json.loads(output)["imports"]


def test_l1_classifier(l1, loud_l1):
    checkpoint, path, imports = l1
    print(f"an export takes the CPU time of {imports:.1f} imports")
    assert imports < 6  # measured: 1.8
    report = json.loads(sidecar_of(path).read_text())
    assert sum(report["operations"].values()) <= 129
    assert report["operations"].get("transpose", 0) == 0
    assert report["size"] <= 24e6
    assert report["checkpoint"]["file"] == checkpoint.name
    assert report["labels"][285] == "Egyptian_cat"
    images = images_of(224, 224, 2)
    logits = timm_reference.logits(loud_l1, preprocess_input(images))[0]
    expected = np.exp(logits - logits.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    started = time.perf_counter()
    found = CoreMLModel(path).predict(images)
    print(f"{(time.perf_counter() - started) / 2:.1f} s an image")
    probabilities = found["classLabel_probs"]
    assert np.abs(np.log(probabilities) - np.log(expected)).max() <= 0.02
    names = [name for _, name in imagenet_labels()]
    assert found["classLabel"].tolist() == [names[index] for index in probabilities.argmax(-1)]


def test_l1_logits_in_float32(l1, loud_l1, tmp_path):
    logits = kef.from_checkpoint(l1[0], classifier_activation=None)
    report = export_coreml(logits, tmp_path, precision="float32")
    assert report.path == str(tmp_path / "efficientformer_l1_224_float32.mlpackage")
    assert sum(report.operations.values()) <= 127
    images = images_of(224, 224, 2)
    expected = timm_reference.logits(loud_l1, preprocess_input(images))[0]
    assert_close(CoreMLModel(report.path).predict(images)["logits"], expected, LIMIT)


# What packages compute.


@pytest.mark.parametrize(
    ("arguments", "outputs"),
    [
        ({"classifier_activation": None}, {"logits": (3, 10)}),
        ({"classifier_activation": "sigmoid"}, {"scores": (3, 10)}),
        ({"classifier_activation": None, "head": "both"}, {"logits": (3, 10), "logits_distillation": (3, 10)}),
        ({"include_top": False}, {"features": (3, 32, 2, 2)}),
        ({"include_top": False, "pooling": "avg"}, {"embedding": (3, 32)}),
        ({"include_top": False, "pooling": "max"}, {"embedding": (3, 32)}),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
@pytest.mark.parametrize(("precision", "limit"), [("float32", LIMIT), ("float16", 5e-3)])
def test_outputs(build, tmp_path, arguments, outputs, precision, limit):
    model = build(**arguments)
    report = export_coreml(model, tmp_path / "m.mlpackage", precision=precision)
    images = images_of(64, 64)
    found = CoreMLModel(report.path).predict(images)
    assert {name: value.shape for name, value in found.items()} == outputs
    expected = model.predict(preprocess_input(images), verbose=0)
    for value, keras_output in zip(found.values(), expected if len(outputs) > 1 else [expected], strict=True):
        assert_close(value.transpose(0, 2, 3, 1) if value.ndim == 4 else value, keras_output, limit)


@pytest.mark.parametrize("labels", [None, [f"class {index}" for index in range(10)]])
@pytest.mark.parametrize("head", ["average", "both"])
def test_classifier(build, tmp_path, labels, head):
    model = build(head=head)
    report = export_coreml(model, tmp_path / "m.mlpackage", precision="float32", labels=labels)
    description = coremltools.models.MLModel(report.path, skip_model_load=True).get_spec().description
    assert description.predictedFeatureName == "classLabel"
    assert description.predictedProbabilitiesName == "classLabel_probs"
    images = images_of(64, 64)
    found = CoreMLModel(report.path).predict(images)
    expected = model.predict(preprocess_input(images), verbose=0)
    if head == "both":
        assert_close(found["probabilities_distillation"], expected[1], LIMIT)
        expected = expected[0]
    assert_close(found["classLabel_probs"], expected, LIMIT)
    names = labels or [str(index) for index in range(10)]
    assert found["classLabel"].astype(str).tolist() == [names[index] for index in expected.argmax(-1)]


@pytest.mark.parametrize("arguments", [{}, {"include_top": False, "pooling": "avg"}], ids=["logits", "embedding"])
def test_feature_maps(build, tmp_path, arguments):
    model = build(classifier_activation=None, **arguments)
    report = export_coreml(model, tmp_path / "m.mlpackage", precision="float32", feature_maps=True)
    images = images_of(64, 64)
    found = CoreMLModel(report.path).predict(images)
    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    assert list(found) == [*stages, "embedding" if arguments else "logits"]
    keras_stages = keras.Model(model.inputs, [model.get_layer(name).output for name in stages])
    for name, expected in zip(stages, keras_stages.predict(preprocess_input(images), verbose=0), strict=True):
        assert_close(found[name].transpose(0, 2, 3, 1), expected, LIMIT)


@pytest.mark.parametrize(("shape", "name"), [((64, 96, 3), "64x96"), ((75, 47, 3), "75x47"), ((32, 32, 3), "32")])
def test_sizes_and_names(build, tmp_path, shape, name):
    model = build(input_shape=shape, classifier_activation=None, name="mine")
    report = export_coreml(model, tmp_path, precision="float32")
    assert contents(tmp_path) == [f"mine_{name}_float32.mlpackage", f"mine_{name}_float32.mlpackage.json"]
    images = images_of(*shape[:2])
    found = CoreMLModel(report.path).predict(images)["logits"]
    assert_close(found, model.predict(preprocess_input(images), verbose=0), LIMIT)


def test_array_input(model, tmp_path):
    report = export_coreml(model, tmp_path / "m.mlpackage", image_input=False, precision="float32")
    spec = coremltools.models.MLModel(report.path, skip_model_load=True).get_spec()
    assert spec.description.input[0].type.WhichOneof("Type") == "multiArrayType"
    images = images_of(64, 64)
    expected = model.predict(preprocess_input(images), verbose=0)
    assert_close(CoreMLModel(report.path).predict(images)["logits"], expected, LIMIT)


def test_other_channels(tmp_path):
    model = kef.EfficientFormer((1, 1, 1, 2), (8, 16, 24, 32), 1, weights=None, input_shape=(64, 64, 4), classes=10)
    with pytest.raises(ValueError, match=r"takes 4 channels. Export it with image_input=False"):
        export_coreml(model, tmp_path)
    assert contents(tmp_path) == []
    report = export_coreml(model, tmp_path, image_input=False)
    assert not report.preprocessing
    assert report.inputs[0].shape == (1, 4, 64, 64)


def test_large_layer_scales_are_computed_plainly(build, tmp_path):
    model = build(classifier_activation=None)
    block = model.get_layer("stage2").blocks[0]
    block.ls1.gamma.assign(np.ones(16))
    report = export_coreml(model, tmp_path / "m.mlpackage", precision="float32")
    images = images_of(64, 64)
    expected = model.predict(preprocess_input(images), verbose=0)
    assert_close(CoreMLModel(report.path).predict(images)["logits"], expected, LIMIT)


@pytest.mark.parametrize(("ios", "version"), [(15, 6), (16, 7), (17, 8), (18, 9)])
def test_targets(model, exported, tmp_path, ios, version):
    report = export_coreml(model, tmp_path / "m.mlpackage", minimum_ios=ios)
    spec = coremltools.models.MLModel(report.path, skip_model_load=True).get_spec()
    assert spec.specificationVersion == version
    assert report.operations == exported[1].operations
    images = images_of(64, 64)
    expected = CoreMLModel(exported[0]).predict(images)["logits"]
    np.testing.assert_array_equal(CoreMLModel(report.path).predict(images)["logits"], expected)


# What is in them.


def test_description(build, tmp_path):
    report = export_coreml(build(), tmp_path / "m.mlpackage", labels=[f"class {index}" for index in range(10)])
    package = coremltools.models.MLModel(report.path, skip_model_load=True)
    assert package.author == "keras-efficientformer"
    assert package.license == "Apache-2.0"
    assert package.version == kef.__version__
    assert "2206.01191" in package.short_description
    assert package.user_defined_metadata["com.apple.coreml.model.preview.type"] == "imageClassifier"
    description = package.get_spec().description
    image = description.input[0]
    assert (image.name, image.type.imageType.width, image.type.imageType.height) == ("image", 64, 64)
    assert [output.name for output in description.output] == ["classLabel", "classLabel_probs"]
    assert all(feature.shortDescription for feature in (*description.input, *description.output))


def test_logits_have_no_preview_of_a_classifier(exported):
    package = coremltools.models.MLModel(str(exported[0]), skip_model_load=True)
    assert "com.apple.coreml.model.preview.type" not in package.user_defined_metadata


def test_sidecar_is_the_report(exported):
    path, report = exported
    sidecar = json.loads(sidecar_of(path).read_text())
    assert sidecar == json.loads(json.dumps(dataclasses.asdict(report))) | {"path": path.name}
    assert (sidecar["mode"], sidecar["partitions"], sidecar["limit"]) == ("float16", None, 5e-3)
    assert sidecar["size"] == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert sidecar["inputs"][0]["name"] == "image"
    assert [output["name"] for output in sidecar["outputs"]] == ["logits"]
    assert {"coremltools", "keras", "keras-efficientformer"} <= sidecar["versions"].keys()
    assert sidecar["differences"][0]["max"] > 0


def test_float16_throughout(exported):
    """Nothing is computed in float32, which the Neural Engine does not have: only inputs and outputs are cast."""
    operations = [operation for operation in program_of(exported[0]).operations if operation.op_type != "const"]
    float32 = [o.op_type for o in operations if any(output.dtype.__name__ == "fp32" for output in o.outputs)]
    assert float32 == ["cast"]
    assert operations[-1].op_type == "cast"


def test_labels_are_unique(tmp_path):
    """Core ML's probabilities are a dictionary, and ImageNet, in Keras' spelling, has two classes `crane`."""
    model = kef.EfficientFormer((1, 1, 1, 2), (8, 16, 24, 32), 1, weights=None, input_shape=(32, 32, 3))
    report = export_coreml(model, tmp_path, max_difference=float("inf"))
    assert len(set(report.labels)) == 1000
    assert (report.labels[134], report.labels[517], report.labels[0]) == ("crane (134)", "crane (517)", "tench")
    assert CoreMLModel(report.path).labels == report.labels


def test_labels_that_look_like_numbered_ones(build, tmp_path):
    labels = ["a", "a", "a (0)", *"bcdefgh"]
    report = export_coreml(build(), tmp_path, labels=labels)
    assert len(set(report.labels)) == 10
    assert CoreMLModel(report.path).labels == report.labels


def test_a_file_is_replaced_by_a_package(build, tmp_path):
    (tmp_path / "m.mlpackage").write_text("a file")
    assert Path(export_coreml(build(), tmp_path / "m.mlpackage", overwrite=True).path).is_dir()


# Compression.


@pytest.fixture(scope="module")
def embedded():
    return kef.from_checkpoint(CHECKPOINT, classifier_activation=None)


COMPRESSED = {  # (arguments, largest size of L1 in MB, constexpr operation)
    "int8": ({}, 12.1, "constexpr_affine_dequantize"),
    "int8 iOS 18": ({"minimum_ios": 18}, 12.1, "constexpr_blockwise_shift_scale"),
    "palette6": ({}, 9.1, "constexpr_lut_to_dense"),
    "palette4": ({}, 6.2, "constexpr_lut_to_dense"),
    "sparse": ({}, 13.5, "constexpr_sparse_to_dense"),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed(embedded, tmp_path, name):
    arguments, megabytes, kind = COMPRESSED[name]
    compress = name.split()[0]
    report = export_coreml(embedded, tmp_path, compress=compress, max_difference=float("inf"), **arguments)
    assert report.path == str(tmp_path / f"efficientformer_l1_64_{compress}.mlpackage")
    assert report.size <= megabytes * 1e6
    limit = coreml_modes.COMPRESSIONS[compress].limit
    assert 1e-3 < report.differences[0].relative <= limit
    operations = program_of(report.path).operations
    convolutions = [operation for operation in operations if operation.op_type == "conv"]
    assert convolutions[0].weight.op.op_type == "const"
    assert {operation.weight.op.op_type for operation in convolutions[1:]} == {kind}
    biases = [operation.y for operation in operations if operation.op_type == "add" and operation.y.op is not None]
    assert {bias.op.op_type for bias in biases if bias.op.op_type.startswith("const")} == {"const"}


@pytest.mark.parametrize("compress", ["int8", "palette6", "sparse"])
def test_compressed_classifier_with_more_outputs(build, tmp_path, compress):
    model = build(head="both")
    arguments = {"compress": compress, "feature_maps": True, "max_difference": float("inf")}
    report = export_coreml(model, tmp_path / "m.mlpackage", **arguments)
    found = CoreMLModel(report.path).predict(images_of(64, 64))
    stages = {f"stage{number}" for number in (1, 2, 3, 4)}
    assert found.keys() == {"classLabel", "classLabel_probs", "probabilities_distillation"} | stages


@pytest.mark.parametrize("bits", [(4,), (4, 6, 8, 16)], ids=str)
def test_chosen_bits(tmp_path, monkeypatch, bits):
    """Each layer's weights are stored in as many bits as were chosen; less than 2048 have no palette."""
    model = make_loud(kef.EfficientFormer((1, 1, 1, 1), (16, 32, 48, 64), classes=10, input_shape=(64, 64, 3)))
    images = np.random.default_rng(0).uniform(0, 255, (8, 64, 64, 3)).astype("float32")

    def choose(network, taken, max_drop):
        inputs = layer_inputs(network, taken)
        chosen = {number: bits[place % len(bits)] for place, number in enumerate(inputs)}
        steps = {n: to_palette(network.steps[n], inputs[n], count) for n, count in chosen.items() if count < 16}
        return BitChoice(with_steps(network, steps), chosen, 1.0)

    if len(bits) > 1:  # else all are few enough, because every class may change
        monkeypatch.setattr("keras_efficientformer.deploy.coreml.exporter.choose_bits", choose)
    options = {"compress": "auto", "calibration": images, "max_drop": 100, "max_difference": float("inf")}
    report = export_coreml(model, tmp_path, **options)
    assert report.path == str(tmp_path / "efficientformer_64_auto.mlpackage")
    assert set(report.bits.values()) == set(bits)
    weights = weights_in(report.path)
    palettes = [each.op.lut.val.size for each in weights if each.op.op_type == "constexpr_lut_to_dense"]
    assert len(palettes) > 5
    assert set(palettes) == {2**count for count in bits if count < 16}
    assert [each.op.op_type for each in weights].count("const") >= (3 if len(bits) > 1 else 1)


def test_chosen_bits_need_classes(build, tmp_path):
    images = np.zeros((1, 64, 64, 3), "float32")
    one = kef.EfficientFormer((1, 1, 1, 1), (8, 8, 8, 8), 0, input_shape=(64, 64, 3), classes=1)
    for model, classes in ((build(include_top=False), "none"), (one, "1")):
        with pytest.raises(ValueError, match=rf"compress='auto' looks at the best class, and .* has {classes}"):
            export_coreml(model, tmp_path, compress="auto", calibration=images)
    assert contents(tmp_path) == []


def test_no_channel_is_lost_to_int8(build, tmp_path):
    """Layer scales as they start, 1e-5, and some a thousand times smaller still."""
    model = build(classifier_activation=None)
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        for block in model.get_layer(stage).blocks:
            block.ls2.gamma.assign(np.geomspace(1e-8, 0.5, block.ls2.gamma.shape[0]))
    plain = export_coreml(model, tmp_path / "plain.mlpackage", max_difference=float("inf"))
    report = export_coreml(model, tmp_path / "int8.mlpackage", compress="int8", max_difference=float("inf"))
    lost = 0
    for before, after in zip(weights_of(plain.path), weights_of(report.path), strict=True):
        alive = np.abs(before).reshape(len(before), -1).max(1) > 0
        assert (np.abs(after).reshape(len(after), -1).max(1) > 0)[alive].all()
        lost += (~alive).sum()
    assert lost > 0  # channels that float16 itself cannot hold, so that the weakest that it can were met too


def weights_in(path):
    """The weights of the convolutions, as they are stored."""
    return [operation.weight for operation in program_of(path).operations if operation.op_type == "conv"]


def weights_of(path):
    for weight in weights_in(path):
        value = weight.val if weight.val is not None else weight.op.materialized_val_inference()
        yield np.asarray(value, "float32")


# What is refused, and that nothing is left.


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"max_difference": 0}, ExportError, r"m.mlpackage was not written: its output logits differs .*limit is 0\."),
        ({"max_difference": float("nan")}, ExportError, "was not written"),
        (
            {"precision": "int8"},
            ValueError,
            "`precision` should be one of float32, float16. Received: precision='int8'",
        ),
        ({"compress": "int4"}, ValueError, "`compress` should be one of none, int8.*Received: compress='int4'"),
        ({"minimum_ios": 14}, ValueError, "`minimum_ios` should be one of 15, 16, 17, 18. Received: minimum_ios=14"),
        ({"minimum_ios": 15, "compress": "int8"}, ValueError, "compress='int8' needs iOS 16. Received: minimum_ios=15"),
        ({"minimum_ios": 15, "compress": "palette6"}, ValueError, "needs iOS 16"),
        ({"minimum_ios": 16, "compress": "w8a8"}, ValueError, "compress='w8a8' needs iOS 17. Received: minimum_ios=16"),
        (
            {"minimum_ios": 17, "compress": "w8a8"},
            ValueError,
            "compress='w8a8' measures the ranges of activations: pass calibration, a folder of a hundred",
        ),
        ({"minimum_ios": 15, "compress": "auto"}, ValueError, "compress='auto' needs iOS 16. Received: minimum_ios=15"),
        ({"compress": "auto"}, ValueError, "compress='auto' measures what the rounding of weights changes: pass cali"),
        ({"compress": "int8", "max_drop": 1}, ValueError, "`max_drop` is what compress='auto' keeps to.*'int8'"),
        ({"compress": "auto", "max_drop": 101}, ValueError, r"`max_drop` should be in 0\.\.100.*max_drop=101"),
        ({"calibration": np.zeros((1, 32, 32, 3))}, ValueError, r"the shape \(64, 64, 3\).*\(32, 32, 3\)"),
        ({"labels": ["cat", "dog"]}, ValueError, "10 classes, and there are 2 labels"),
        ({"labels": "missing.txt"}, FileNotFoundError, "missing.txt"),
    ],
    ids=str,
)
def test_refusals_leave_nothing(model, tmp_path, arguments, error, words):
    with pytest.raises(error, match=words):
        export_coreml(model, tmp_path / "m.mlpackage", **arguments)
    assert contents(tmp_path) == []


@pytest.mark.parametrize(
    "other", [None, "model", keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), keras.Sequential()]
)
def test_not_an_efficientformer(tmp_path, other):
    with pytest.raises((ValueError, TypeError), match="EfficientFormer"):
        export_coreml(other, tmp_path)
    assert contents(tmp_path) == []


def test_weights_that_are_not_finite(build, tmp_path):
    model = build()
    model.get_layer("stem").step1.conv.bias.assign(np.full(4, np.nan))
    with pytest.raises(ValueError, match="NaN or infinite: stem/step1/conv/bias"):
        export_coreml(model, tmp_path)
    assert contents(tmp_path) == []


@pytest.mark.parametrize("name", ["m.mlmodel", "m", "m.mlpackage.bak"])
def test_wrong_suffix(model, tmp_path, name):
    with pytest.raises(ValueError, match=r"ends in \.mlpackage, or the path is an existing folder.*" + name):
        export_coreml(model, tmp_path / name)


def test_missing_folder(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"The folder .*missing does not exist"):
        export_coreml(model, tmp_path / "missing" / "m.mlpackage")


def test_overwrite(model, exported, tmp_path):
    path = tmp_path / "m.mlpackage"
    path.mkdir()
    (path / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match=r"m\.mlpackage exists"):
        export_coreml(model, path)
    with pytest.raises(IsADirectoryError, match=r"m\.mlpackage is a folder of another kind"):
        export_coreml(model, path, overwrite=True)
    (path / "mine").rename(path / "Manifest.json")
    with pytest.raises(ExportError):
        export_coreml(model, path, overwrite=True, max_difference=0)
    assert contents(path) == ["Manifest.json"]
    export_coreml(model, path, overwrite=True)
    assert contents(path) == contents(exported[0])
    assert contents(tmp_path) == ["m.mlpackage", "m.mlpackage.json"]


def test_interrupt_leaves_nothing(tmp_path):
    assert_interrupt_leaves_nothing("export_coreml", tmp_path / "m.mlpackage")


def test_read_only_folder(tmp_path):
    assert_read_only_folder_is_refused("export_coreml", CHECKPOINT, tmp_path / "m.mlpackage")


# Other backends, and what is not installed.


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_without_tensorflow(model, tmp_path, backend):
    """The same package, where TensorFlow, and beside JAX also PyTorch, is not installed."""
    from keras_efficientformer import conversion

    checkpoint = tmp_path / "small.safetensors"
    conversion.write_checkpoint(checkpoint, conversion.to_state_dict(model, "timm"))
    arguments = {"model": {"input_shape": [64, 64, 3], "classifier_activation": None}, "precision": "float32"}
    blocked = ["tensorflow", "torch"] if backend == "jax" else ["tensorflow"]
    process = exports.start(
        "export_coreml", checkpoint, tmp_path / "m.mlpackage", arguments, blocked, KERAS_BACKEND=backend
    )
    code, _, log = finish(process)
    assert code == 0, log
    images = images_of(64, 64)
    found = CoreMLModel(tmp_path / "m.mlpackage").predict(images)["logits"]
    assert_close(found, model.predict(preprocess_input(images), verbose=0), LIMIT)


def test_without_coremltools(tmp_path):
    blocked = ["coremltools", "tensorflow", "torch"]  # the others only because they take long to import
    code, _, log = finish(exports.start("export_coreml", CHECKPOINT, tmp_path, blocked=blocked, KERAS_BACKEND="jax"))
    assert code != 0
    expected = "ImportError: Core ML export needs coremltools: pip install 'keras-efficientformer[coreml]'"
    assert log.strip().splitlines()[-1] == expected
    assert contents(tmp_path) == []
