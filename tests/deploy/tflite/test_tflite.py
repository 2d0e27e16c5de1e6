"""TFLite export in float32: what the files compute in LiteRT, what is in them, and what is left where export fails.

Files are opened here with LiteRT's and TensorFlow's own tools, not with the package's. The published networks, with
loud weights, are exported as a user would, from a checkpoint in a process of its own, and compared with timm.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections import Counter
from pathlib import Path

import exports
import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
import timm_reference
from ai_edge_litert.interpreter import Interpreter
from exports import assert_interrupt_leaves_nothing, assert_read_only_folder_is_refused, contents, finish, run_litert
from PIL import Image
from project import CHECKPOINT

import keras_efficientformer as kef
from keras_efficientformer import conversion
from keras_efficientformer.deploy import ExportError, export_tflite
from keras_efficientformer.deploy.report import Difference, compare
from keras_efficientformer.deploy.report_sidecar import sidecar_of
from keras_efficientformer.deploy.tflite import file as tflite_file
from keras_efficientformer.deploy.tflite.graph import Graph, schema
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.imagenet import imagenet_labels, preprocess_input, resize_and_crop
from keras_efficientformer.images import seeded_images
from keras_efficientformer.labels import class_names

SMALL = {"depths": (1, 1, 1, 2), "widths": (8, 16, 24, 32), "num_meta3d": 1, "input_shape": (64, 64, 3), "classes": 10}
LIMIT = 1e-5


@pytest.fixture(scope="session")
def small_tensors():
    tensors = timm_reference.state_dict(timm_reference.small_model())
    for name in ("head.weight", "head_dist.weight"):  # else all probabilities would be about 10%
        tensors[name] *= 8
    return tensors


@pytest.fixture(scope="session")
def build(small_tensors):
    """Makes a small model with loud weights."""

    def build(**arguments):
        model = kef.EfficientFormer(**{**SMALL, **arguments})
        conversion.load_state_dict(model, small_tensors)
        return model

    return build


@pytest.fixture(scope="session")
def model(build):
    return build(classifier_activation=None)


@pytest.fixture(scope="session")
def exported(model, tmp_path_factory):
    """The small model's file and report."""
    path = tmp_path_factory.mktemp("small") / "small.tflite"
    return path, export_tflite(model, path)


@dataclasses.dataclass
class Published:
    """An L1, L3 or L7 that was exported, timm's model of the same weights, and what the export cost.

    L3 and L7 also in int8, in the same process: L7 takes 8 GB, which no two of them shall take at a time.
    """

    reference: object
    checkpoint: Path
    path: Path
    report: dict
    imports: float
    gigabytes: float


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    @functools.cache
    def export(variant):
        folder = tmp_path_factory.mktemp(variant)
        reference = timm_reference.loud_model(variant)
        checkpoint = folder / f"loud_{variant}.safetensors"
        safetensors.numpy.save_file(timm_reference.state_dict(reference), checkpoint)
        arguments = {"model": {"classifier_activation": "softmax" if variant == "l1" else None}}
        if variant != "l1":
            images = write_images(folder / "images", 224, 224, number=4)
            arguments["then"] = [[str(folder), {"quantize": "int8", "calibration": str(images)}]]
        code, output, log = finish(exports.start("export_tflite", checkpoint, folder, arguments))
        assert code == 0, log
        path = folder / f"efficientformer_{variant}_224_float32.tflite"
        report = json.loads(sidecar_of(path).read_text())
        return Published(reference, checkpoint, path, report, **json.loads(output))

    return export


def raw_images(height, width, number=3, channels=3):
    """Unlike the seeded images on which exports are checked: noise, dark in the first image and light in the last."""
    rng = np.random.default_rng(7)
    light = np.linspace(0, 155, number)[:, None, None, None]
    return (rng.integers(0, 101, (number, height, width, channels)) + light).astype("float32")


def write_images(folder, height, width, number):
    """Such images as files."""
    folder.mkdir()
    for index, image in enumerate(raw_images(height, width, number)):
        Image.fromarray(image.astype("uint8")).save(folder / f"{index}.png")
    return folder


def assert_equal(found, expected, limit=LIMIT):
    assert found.shape == expected.shape
    largest_allowed = limit * max(1, np.abs(expected).max())
    assert np.abs(expected[0] - expected[-1]).max() > 100 * largest_allowed  # else the images' outputs prove nothing
    assert np.abs(found - expected).max() <= largest_allowed


def test_l1_equals_timm(published):
    l1 = published("l1")
    images = raw_images(224, 224)
    logits = timm_reference.logits(l1.reference, preprocess_input(images))[0]
    expected = np.exp(logits - logits.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    found = run_litert(l1.path, images)["probabilities"]
    assert np.abs(found - expected).max() <= LIMIT
    # Probabilities of a thousand classes are small; their logarithms hide nothing.
    np.testing.assert_allclose(np.log(found), np.log(expected), atol=1e-4)
    assert np.log(expected).std() > 0.1


@pytest.mark.parametrize("variant", ["l3", "l7"])
def test_l3_and_l7_equal_timm(published, variant):
    network = published(variant)
    images = raw_images(224, 224, number=2)
    expected = timm_reference.logits(network.reference, preprocess_input(images))[0]
    assert_equal(run_litert(network.path, images)["logits"], expected, limit=2e-5)
    (difference,) = network.report["differences"]
    assert 0 < difference["max"] <= LIMIT * max(1, difference["largest"])
    assert difference["top1_agreement"] == 1


def test_l1_is_exported_within_its_means(published):
    l1 = published("l1")
    print(f"an export of L1 takes the CPU time of {l1.imports:.1f} imports")
    assert l1.imports < 4  # measured: 0.6
    # Measured: 1.1, of which importing TensorFlow (and what it finds installed), Keras' backend here, takes 0.8.
    assert l1.gigabytes < 1.4


def test_l7_is_exported_within_its_means(published):
    """Its weights are 0.33 GB, and the checkpoint, the model, the network and the file hold them."""
    assert published("l7").gigabytes < 3.5


def test_sidecar_names_the_checkpoint(published):
    l1 = published("l1")
    sha256 = hashlib.sha256(l1.checkpoint.read_bytes()).hexdigest()
    assert l1.report["checkpoint"] == {"file": "loud_l1.safetensors", "sha256": sha256}
    assert len(l1.report["labels"]) == 1000
    assert l1.report["labels"][285] == "Egyptian_cat"


def test_embedded_checkpoint(tmp_path):
    model = kef.from_checkpoint(CHECKPOINT)
    report = export_tflite(model, tmp_path)
    assert report.path == str(tmp_path / "efficientformer_l1_64_float32.tflite")
    assert report.checkpoint["sha256"] == hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    images = raw_images(64, 64, number=8)
    expected = model.predict(preprocess_input(images), verbose=0)
    assert_equal(run_litert(report.path, images)["probabilities"], expected)


# What is in the files.


def operations(path, **options):
    interpreter = Interpreter(model_path=str(path), **options)
    interpreter.allocate_tensors()
    return Counter(operation["op_name"] for operation in interpreter._get_ops_details())


def without_delegates(path):
    from ai_edge_litert.interpreter import OpResolverType

    return operations(path, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)


@pytest.mark.parametrize("variant", ["l1", "l3", "l7"])
def test_graph(published, variant):
    """Nothing of it is dynamic, outside TFLite's own operations or outside the one XNNPACK partition."""
    path = published(variant).path
    found = without_delegates(path)
    unwanted = ("SHAPE", "PACK", "GATHER", "EXPAND_DIMS", "VAR_HANDLE", "READ_VARIABLE", "CAST", "STRIDED_SLICE", "DIV")
    assert not [name for name in found if name in unwanted or name.startswith("Flex") or name == "CUSTOM"]
    assert operations(path)["DELEGATE"] == 1
    details = Interpreter(model_path=str(path)).get_tensor_details()
    assert all((tensor["shape_signature"] >= 0).all() for tensor in details)
    assert published(variant).report["operations"] == found


@pytest.mark.parametrize("variant", ["l1", "l3", "l7"])
def test_gpu_delegate_takes_the_whole_graph(published, variant, capsys):
    tf.lite.experimental.Analyzer.analyze(model_path=str(published(variant).path), gpu_compatibility=True)
    output = capsys.readouterr().out
    assert "Your model looks compatible with GPU delegate" in output
    assert "GPU COMPATIBILITY WARNING" not in output


@pytest.mark.parametrize(
    ("arguments", "outputs"),
    [
        ({"classifier_activation": "softmax"}, {"probabilities": (1, 10)}),
        ({"classifier_activation": None}, {"logits": (1, 10)}),
        ({"classifier_activation": "sigmoid"}, {"scores": (1, 10)}),
        ({"classifier_activation": None, "head": "single"}, {"logits": (1, 10)}),
        ({"classifier_activation": None, "head": "both"}, {"logits": (1, 10), "logits_distillation": (1, 10)}),
        ({"head": "both"}, {"probabilities": (1, 10), "probabilities_distillation": (1, 10)}),
        ({"include_top": False}, {"features": (1, 2, 2, 32)}),
        ({"include_top": False, "pooling": "avg"}, {"embedding": (1, 32)}),
        ({"include_top": False, "pooling": "max"}, {"embedding": (1, 32)}),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if set(value) & {"head", "pooling"} else None,
)
def test_outputs_and_signature(build, tmp_path, arguments, outputs):
    """The names that apps use, which are the tensors' own as well, each on the output it belongs to."""
    model = build(**arguments)
    report = export_tflite(model, tmp_path / "model.tflite")
    interpreter = Interpreter(model_path=report.path)
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["image"], "outputs": sorted(outputs)}}
    assert [detail["name"] for detail in interpreter.get_input_details()] == ["image"]
    assert {d["name"]: tuple(d["shape"]) for d in interpreter.get_output_details()} == outputs
    assert [tensor.name for tensor in report.outputs] == list(outputs)
    images = raw_images(64, 64)
    expected = model.predict(preprocess_input(images), verbose=0)
    signed = interpreter.get_signature_runner("serving_default")
    for name, values in zip(outputs, expected if isinstance(expected, list) else [expected], strict=True):
        assert_equal(np.concatenate([signed(image=image[None])[name] for image in images]), values)
        assert_equal(run_litert(report.path, images)[name], values)


@pytest.mark.parametrize(
    "arguments", [{}, {"include_top": False, "pooling": "avg"}], ids=["probabilities", "embedding"]
)
def test_feature_maps(build, tmp_path, arguments):
    model = build(input_shape=(64, 96, 3), **arguments)
    report = export_tflite(model, tmp_path / "m.tflite", feature_maps=True)
    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    assert [tensor.name for tensor in report.outputs] == [*stages, "embedding" if arguments else "probabilities"]
    assert report.partitions == 1
    images = seeded_images((64, 96, 3))
    found = LiteRTModel(report.path).predict(images)
    keras_stages = keras.Model(model.input, [model.get_layer(name).output for name in stages])
    for name, expected in zip(stages, keras_stages.predict(preprocess_input(images), verbose=0), strict=True):
        np.testing.assert_allclose(found[name], expected, atol=1e-5 * np.abs(expected).max())


def test_batches(model, exported, tmp_path):
    report = export_tflite(model, tmp_path, batch_size=3)
    assert report.inputs[0].shape == (3, 64, 64, 3)
    assert report.outputs[0].shape == (3, 10)
    images = raw_images(64, 64, number=6)
    assert_equal(run_litert(report.path, images)["logits"], run_litert(exported[0], images)["logits"])
    # Not a multiple of the batch.
    np.testing.assert_array_equal(
        LiteRTModel(report.path).predict(images[:4])["logits"], run_litert(report.path, images)["logits"][:4]
    )


@pytest.mark.parametrize(("shape", "name"), [((64, 96, 3), "64x96"), ((75, 47, 3), "75x47"), ((32, 32, 3), "32")])
def test_sizes_and_file_names(build, tmp_path, shape, name):
    model = build(input_shape=shape, classifier_activation=None, name="mine")
    report = export_tflite(model, tmp_path)
    assert contents(tmp_path) == [f"mine_{name}_float32.tflite", f"mine_{name}_float32.tflite.json"]
    assert report.path == str(tmp_path / f"mine_{name}_float32.tflite")
    images = raw_images(*shape[:2])
    assert_equal(run_litert(report.path, images)["logits"], model.predict(preprocess_input(images), verbose=0))


@pytest.mark.parametrize("channels", [3, 4])
def test_without_preprocessing(build, tmp_path, channels):
    model = kef.EfficientFormer(**{**SMALL, "input_shape": (64, 64, channels), "classifier_activation": None})
    if channels == 3:
        model = build(classifier_activation=None)
    report = export_tflite(model, tmp_path, include_preprocessing=False)
    assert not report.preprocessing
    images = raw_images(64, 64, channels=channels) / 127.5 - 1
    found, expected = run_litert(report.path, images)["logits"], model.predict(images, verbose=0)
    np.testing.assert_allclose(found, expected, atol=LIMIT * np.abs(expected).max())


# The report.


def test_sidecar_is_the_report(exported):
    path, report = exported
    sidecar = json.loads(sidecar_of(path).read_text())
    assert sidecar == json.loads(json.dumps(dataclasses.asdict(report))) | {"path": path.name}
    assert sidecar["size"] == path.stat().st_size
    assert sidecar["mode"] == "float32"
    assert sidecar["preprocessing"] is True
    assert sidecar["inputs"] == [
        {"name": "image", "shape": [1, 64, 64, 3], "dtype": "float32", "scale": None, "zero_point": None}
    ]
    assert sidecar["labels"] is None
    assert sidecar["limit"] == LIMIT
    assert (sidecar["images"], sidecar["images_from"]) == (4, "seeded noise")
    tools = {"keras-efficientformer", "keras", "ai-edge-litert", "litert-quantizer", "numpy"}
    assert sidecar["versions"].keys() == tools
    assert sidecar["versions"]["keras"] == keras.__version__
    assert sidecar["checkpoint"] is None  # its weights came from no file


def test_difference_is_the_real_one(model, exported):
    path, report = exported
    images = seeded_images((64, 64, 3))
    expected, found = model.predict(preprocess_input(images), verbose=0), run_litert(path, images)["logits"]
    (difference,) = report.differences
    assert difference.output == "logits"
    assert difference.max == pytest.approx(np.abs(found - expected).max(), rel=0.5, abs=1e-7)
    assert difference.largest == pytest.approx(np.abs(expected).max(), rel=1e-5)
    assert 0 < difference.mean < difference.max < LIMIT


def test_report_as_table(exported, capsys):
    import rich

    rich.print(exported[1])
    output = capsys.readouterr().out
    first = output.splitlines()[2]
    assert "verdict" in first
    assert "same answers as the Keras model" in first
    for words in ("small.tflite", "logits against Keras", "4 images: seeded noise", "raw RGB 0..255", "[1, 64, 64, 3]"):
        assert words in output


@pytest.mark.parametrize(
    ("expected", "found", "largest"),
    [
        ([[1.0, 5.0]], [[1.5, 5.0]], 0.5),
        ([[1.0, -50.0]], [[1.5, -50.0]], 0.5),
        ([[0.0, 1.0]], [[np.nan, 1.0]], np.inf),
        ([[0.0, np.nan]], [[0.0, 1.0]], np.inf),
        ([[0.0, np.nan]], [[0.0, np.nan]], np.inf),
        ([[0.0, 1.0]], [[np.inf, 1.0]], np.inf),
    ],
)
def test_compare(expected, found, largest):
    difference = compare("logits", np.array(expected), np.array(found), classes=True)
    assert difference.max == largest
    assert difference.relative == (largest / max(1, np.abs(expected).max()) if np.isfinite(largest) else np.inf)


def test_compare_counts_agreement():
    expected, found = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.1, 0.2]]), np.eye(2)[[1, 1, 0, 1]]
    assert compare("logits", expected, found, classes=True).top1_agreement == 0.75
    assert compare("features", expected, found, classes=False).top1_agreement is None


@pytest.mark.parametrize(
    ("outputs", "limit", "verdict"),
    [
        (
            {"probabilities": (1e-6, 0.9, 1.0)},
            1e-5,
            "same answers as the Keras model: largest difference 1e-6, limit 1e-5",
        ),
        (
            {"logits": (0.5, 10.0, 0.75), "stage1": (0.2, 1.0, None)},
            1,
            "same answers as the Keras model on 75.0% of 4 images: largest difference 0.2, limit 1",
        ),
        (
            {"embedding": (0.5, 10.0, None)},
            math.inf,
            "values close to the Keras model's: largest difference 0.05 of the largest value, and no limit was set",
        ),
    ],
)
def test_verdict(exported, outputs, limit, verdict):
    differences = tuple(
        Difference(name, largest, 0.0, scale, share) for name, (largest, scale, share) in outputs.items()
    )
    assert dataclasses.replace(exported[1], differences=differences, limit=limit, images=4).verdict == verdict


def strict_json(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_infinite_limit_writes_and_stays_json(model, tmp_path):
    report = export_tflite(model, tmp_path / "model.tflite", max_difference=float("inf"))
    assert report.limit == float("inf")
    sidecar = strict_json((tmp_path / "model.tflite.json").read_text())
    assert sidecar["limit"] is None
    assert sidecar["differences"][0]["max"] == report.differences[0].max


# Labels and calibration images.


def test_labels_of_imagenet(tmp_path):
    model = kef.EfficientFormer(**{**SMALL, "classes": 1000})
    assert export_tflite(model, tmp_path).labels == tuple(name for _, name in imagenet_labels())


@pytest.mark.parametrize("kind", [list, str, Path])
def test_labels_of_ones_own(model, tmp_path, kind):
    names = [f"classe n° {index} [é]" for index in range(10)]
    labels = names
    if kind is not list:
        labels = kind(tmp_path / "labels.txt")
        Path(labels).write_text("\n".join(names) + "\n", encoding="utf-8")
    report = export_tflite(model, tmp_path / "model.tflite", labels=labels)
    assert report.labels == tuple(names)
    assert json.loads((tmp_path / "model.tflite.json").read_text())["labels"] == names


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Three images of other sizes than the network's, in folders of folders, and the pixels it should see of them."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(3)
    pixels = []
    for name, shape in (("a.png", (80, 100, 3)), ("b/c.PNG", (64, 64, 3)), ("b/d/e.png", (200, 90, 3))):
        image = rng.integers(0, 256, shape, "uint8")
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(image).save(folder / name)
        pixels.append(resize_and_crop(image, (64, 64)))
    (folder / "b" / "notes.txt").write_text("no image")
    return folder, np.stack(pixels).astype("float32")


def test_calibration_folder_and_arrays_are_alike(model, photographs, tmp_path):
    folder, pixels = photographs
    from_folder = export_tflite(model, tmp_path / "folder.tflite", calibration=folder)
    assert (from_folder.images, from_folder.images_from) == (3, folder.name)
    assert str(tmp_path) not in sidecar_of(from_folder.path).read_text()
    from_array = export_tflite(model, tmp_path / "array.tflite", calibration=pixels)
    assert (from_array.images, from_array.images_from) == (3, "the given arrays")
    from_list = export_tflite(model, tmp_path / "list.tflite", calibration=(image for image in pixels.astype("uint8")))
    assert from_folder.differences == from_array.differences == from_list.differences
    assert from_folder.differences[0].largest != export_tflite(model, tmp_path / "none.tflite").differences[0].largest


def test_calibration_images_are_limited(model, tmp_path):
    images = np.broadcast_to(raw_images(64, 64, number=1), (200, 64, 64, 3))
    assert export_tflite(model, tmp_path, calibration=images).images == 128


# What is refused, and that nothing is left.


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"max_difference": 0}, ExportError, r"model.tflite was not written: its output logits differs .*limit is 0\."),
        ({"max_difference": float("nan")}, ExportError, "was not written"),
        ({"max_difference": -1.0}, ExportError, "was not written"),
        ({"quantize": "int4"}, ValueError, "`quantize` should be one of none.*'int4'"),
        ({"batch_size": 0}, ValueError, "`batch_size` should be an integer >= 1. Received: batch_size=0"),
        ({"batch_size": 1.5}, ValueError, "`batch_size` should be an integer >= 1"),
        ({"labels": ["cat", "dog"]}, ValueError, "10 classes, and there are 2 labels"),
        ({"batch_size": True}, ValueError, "`batch_size` should be an integer >= 1"),
        ({"labels": ["two\nlines", *"bcdefghij"]}, ValueError, r"single lines of text. Received: 'two\\nlines'"),
        ({"labels": [*"abcdefghi", ""]}, ValueError, "should name every class, and those of 9 are empty"),
        ({"labels": [*"abcdefghi", "\udcff"]}, ValueError, r"text that UTF-8 has.* Received: '\\udcff'"),
        ({"labels": range(10)}, ValueError, "single lines of text. Received: 0, 1"),
        ({"labels": "missing.txt"}, FileNotFoundError, "missing.txt"),
        ({"calibration": "missing folder"}, FileNotFoundError, "missing folder is not a folder of images"),
        ({"calibration": []}, ValueError, r"\(64, 64, 3\).*Received: none"),
        ({"calibration": np.zeros((2, 32, 32, 3))}, ValueError, r"\(64, 64, 3\).*\(32, 32, 3\)"),
        ({"calibration": np.zeros((64, 64, 3))}, ValueError, r"\(64, 64, 3\).*\(64, 3\)"),
    ],
    ids=str,
)
def test_refusals_leave_nothing(model, tmp_path, arguments, error, words):
    with pytest.raises(error, match=words):
        export_tflite(model, tmp_path / "model.tflite", **arguments)
    assert contents(tmp_path) == []


def test_labels_from_windows(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufeffcat\r\nno\u2028break\r\n\r\n".encode())
    assert class_names(file, 2) == ("cat", "no\u2028break")
    file.write_bytes("Müll".encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels\.txt should hold class names as UTF-8 text"):
        class_names(file, 1)


def test_labels_without_a_classifier(build, tmp_path):
    with pytest.raises(ValueError, match="no classifier that labels could be for"):
        export_tflite(build(include_top=False), tmp_path, labels=["cat", "dog"])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_models_of_lower_precision(tmp_path, policy):
    """The file is compared with what the model stands for, not with its roundings."""
    keras.config.set_dtype_policy(policy)
    try:
        model = kef.EfficientFormer((1, 1, 1, 2), (8, 16, 24, 32), 1, input_shape=(64, 64, 3), classes=10)
    finally:
        keras.config.set_dtype_policy("float32")
    for number, variable in enumerate(model.trainable_variables):
        variable.assign(np.random.default_rng(number).normal(0, 0.2, variable.shape))
    assert export_tflite(model, tmp_path).differences[0].max < 1e-5


def test_a_folder_is_not_replaced(model, tmp_path):
    (tmp_path / "model.tflite" / "mine").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"model\.tflite is a folder of another kind"):
        export_tflite(model, tmp_path / "model.tflite", overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["model.tflite", "mine"]


def test_empty_calibration_folder(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no images: expected files ending in \.jpg"):
        export_tflite(model, tmp_path / "model.tflite", calibration=tmp_path / "empty")
    assert contents(tmp_path) == ["empty"]


@pytest.mark.parametrize("name", ["model.lite", "model", "model.tflite.bak"])
def test_wrong_suffix(model, tmp_path, name):
    with pytest.raises(ValueError, match=r"ends in \.tflite, or the path is an existing folder.*" + name):
        export_tflite(model, tmp_path / name)
    assert contents(tmp_path) == []


def test_missing_folder(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"The folder .*missing does not exist"):
        export_tflite(model, tmp_path / "missing" / "model.tflite")
    assert contents(tmp_path) == []


class Untouchable:
    """Calibration images that nobody may look at yet."""

    def __iter__(self):
        raise AssertionError("work was done before the refusal")


@pytest.mark.parametrize("name", ["model.tflite", "model.tflite.json"])
def test_existing_files_are_refused_before_any_work(model, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{name} exists"):
        export_tflite(model, tmp_path / "model.tflite", calibration=Untouchable())
    assert contents(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_overwrite(model, exported, tmp_path):
    path = tmp_path / "model.tflite"
    for file in (path, sidecar_of(path)):
        file.write_text("old")
    with pytest.raises(ExportError):
        export_tflite(model, path, overwrite=True, max_difference=0)
    assert path.read_text() == sidecar_of(path).read_text() == "old"
    export_tflite(model, path, overwrite=True)
    assert path.read_bytes() == exported[0].read_bytes()  # and exports are reproducible
    assert json.loads(sidecar_of(path).read_text())["path"] == path.name
    assert contents(tmp_path) == ["model.tflite", "model.tflite.json"]


def test_damaged_model_is_not_exported(build, tmp_path):
    model = build()
    model.get_layer("stem").step1.conv.bias.assign(np.full(4, np.nan))
    with pytest.raises(ValueError, match="NaN or infinite: stem/step1/conv/bias"):
        export_tflite(model, tmp_path)
    assert contents(tmp_path) == []


def test_interrupt_leaves_nothing(tmp_path):
    arguments = {"model": {"input_shape": [224, 224, 3]}}
    assert_interrupt_leaves_nothing("export_tflite", tmp_path / "model.tflite", arguments)


def test_interrupted_while_reading_images(model, tmp_path):
    def images():
        yield np.zeros((64, 64, 3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_tflite(model, tmp_path / "model.tflite", calibration=images())
    assert contents(tmp_path) == []


def test_read_only_folder(tmp_path):
    assert_read_only_folder_is_refused("export_tflite", CHECKPOINT, tmp_path / "model.tflite")


# Other backends, and what is not installed.


@pytest.fixture(scope="module")
def small_checkpoint(small_tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    safetensors.numpy.save_file(small_tensors, path)
    return path


@pytest.fixture(scope="module", params=["jax", "torch"])
def without_tensorflow(request, small_checkpoint, tmp_path_factory):
    """The folder with the small model's files in float32 and int8, made on another backend with no TensorFlow."""
    folder = tmp_path_factory.mktemp(request.param)
    images = write_images(folder / "images", 64, 64, number=3)
    int8 = {"quantize": "int8", "calibration": str(images), "max_difference": 1.0}
    arguments = {
        "model": {"input_shape": [64, 64, 3], "classifier_activation": None},
        "then": [[str(folder / "int8.tflite"), int8]],
    }
    process = exports.start(
        *("export_tflite", small_checkpoint, folder / "float32.tflite", arguments),
        blocked=["tensorflow", "tf_keras"],
        KERAS_BACKEND=request.param,
    )
    code, _, log = finish(process)
    assert code == 0, log
    return folder


def test_other_backends_make_the_same_file(without_tensorflow, exported):
    path = without_tensorflow / "float32.tflite"
    assert without_delegates(path) == without_delegates(exported[0])
    images = raw_images(64, 64)
    assert_equal(run_litert(path, images)["logits"], run_litert(exported[0], images)["logits"], limit=1e-6)
    sidecar = json.loads(sidecar_of(path).read_text())
    assert 0 < sidecar["differences"][0]["max"] < LIMIT


@pytest.mark.parametrize("mode", ["float32", "int8"])
def test_no_tensorflow_is_needed(without_tensorflow, mode):
    assert json.loads((without_tensorflow / f"{mode}.tflite.json").read_text())["mode"] == mode


@pytest.mark.parametrize("module", ["ai_edge_litert", "litert_quantizer"])
def test_missing_framework(small_checkpoint, tmp_path, module):
    blocked = [module, "tensorflow"]
    arguments = {"quantize": "dynamic"}
    process = exports.start(
        "export_tflite", small_checkpoint, tmp_path, arguments, blocked=blocked, KERAS_BACKEND="jax"
    )
    code, _, log = finish(process)
    assert code != 0
    expected = f"needs {module.replace('_', '-')}: pip install 'keras-efficientformer[litert]'"
    assert log.strip().splitlines()[-1] == f"ImportError: TFLite export {expected}"
    assert contents(tmp_path) == []


# LiteRT's side.


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is not a TFLite file"), (b"text" * 100, "is not a TFLite file"), (None, "is not a TFLite file")],
    ids=["empty", "text", "truncated"],
)
def test_unreadable_files(exported, tmp_path, content, words):
    path = tmp_path / "model.tflite"
    path.write_bytes(exported[0].read_bytes()[:1000] if content is None else content)
    with pytest.raises(ValueError, match=words):
        LiteRTModel(path)


def test_integers_that_are_not_quantized(tmp_path):
    graph = Graph()
    image = graph.input("image", (1, 1, 2, 3))
    graph.output(graph.operator("CAST", [image], image.shape))
    file = graph.file()
    pixels, numbers = file.subgraphs[0].tensors
    pixels.type, numbers.type = schema.TensorType.UINT8, schema.TensorType.INT32
    path = tmp_path / "others.tflite"
    path.write_bytes(tflite_file.pack(file))
    model = LiteRTModel(path)
    assert [(tensor.dtype, tensor.scale) for tensor in (*model.inputs, *model.outputs)] == [
        ("uint8", None),
        ("int32", None),
    ]
    values = np.array([0, 119.6, 255, -3, 300, 7], "float32").reshape(image.shape)
    (found,) = model.predict(values).values()
    assert found.dtype == np.float32
    assert found.ravel().tolist() == [0, 120, 255, 0, 255, 7]


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.tflite"):
        LiteRTModel(tmp_path / "missing.tflite")


def test_not_an_image_network(tmp_path):
    function = tf.function(lambda x: x * 2.0, input_signature=[tf.TensorSpec((1, 4))])
    content = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()]).convert()
    (tmp_path / "vector.tflite").write_bytes(content)
    with pytest.raises(ValueError, match=r"expected one input \(batch, height, width, channels\), found \[\[1, 4\]\]"):
        LiteRTModel(tmp_path / "vector.tflite")


# The largest in int8.


@pytest.mark.parametrize("variant", ["l3", "l7"])
def test_large_networks_in_int8(published, variant):
    sidecar = published(variant).path.with_name(f"efficientformer_{variant}_224_int8.tflite.json")
    report = json.loads(sidecar.read_text())
    (difference,) = report["differences"]
    assert 0 < difference["max"] / difference["largest"] < 0.2
    assert report["size"] < {"l3": 33e6, "l7": 86e6}[variant]
    assert report["operations"]["QUANTIZE"] < report["operations"]["CONV_2D"]
