"""Tests that exports give byte for byte the files that are recorded, and that .keras files of commit 249a86f load.

Two small networks, one of each family, were saved by that version; `data/exported_before.json` holds what their exports
gave when the files were last meant to change, and `data/make_exported_before.py` is what wrote it. Of a Core ML package
the program is compared without the date of its making, which coremltools writes into it, and the manifest, whose
identifiers are random, not at all.

To save time, 15 of the 34 recorded exports are made; with the environment variable EVERY_EXPORT=1 all of them.
"""

import gc
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_efficientformer as kef
from keras_efficientformer.deploy import export_coreml, export_tflite

DATA = Path(__file__).with_name("data")
RECORD = DATA / "exported_before.json"
FAMILIES = ("v1", "v2")
LABELS = [f"class {index}" for index in range(10)]
TOLERANCE = 1e-5
STEP = 2.0**-8

TFLITE = {
    "none": {},
    "float16": {"quantize": "float16"},
    "dynamic": {"quantize": "dynamic"},
    "weight_only": {"quantize": "weight_only"},
    "int8": {"quantize": "int8"},
    "int8_integer": {"quantize": "int8_integer"},
    "int16x8": {"quantize": "int16x8"},
    "int8 of normalised images": {"quantize": "int8", "include_preprocessing": False},
    "int8 with uint8 ends": {"quantize": "int8", "io": "uint8"},
    "float16 of two images": {"quantize": "float16", "batch_size": 2},
}
COREML = {
    "float32": {"precision": "float32"},
    "float16": {},
    "int8": {"compress": "int8"},
    "palette6": {"compress": "palette6"},
    "palette4 for iOS 18": {"compress": "palette4", "minimum_ios": 18},
    "sparse": {"compress": "sparse"},
    "feature maps of an array": {"feature_maps": True, "image_input": False},
}
EXPORTS = [("tflite", name) for name in TFLITE] + [("coreml", name) for name in COREML]
# What is made anyway: every mode of TFLite, and of Core ML both precisions, two compressions and the largest signature.
FEW = {
    "v1": {"tflite": tuple(TFLITE)[:7], "coreml": ("float32", "int8", "palette4 for iOS 18")},
    "v2": {"tflite": ("none", "float16", "int8"), "coreml": ("float16", "feature maps of an array")},
}
MADE = [
    (family, target, name)
    for family in FAMILIES
    for target, name in EXPORTS
    if os.environ.get("EVERY_EXPORT") or name in FEW[family][target]
]

# The packages that have a part in each kind of file. The first one's version is written into both.
TOOLS = {
    "tflite": ("keras-efficientformer", "ai-edge-litert", "litert-quantizer", "flatbuffers", "numpy"),
    "coreml": ("keras-efficientformer", "coremltools", "numpy", "protobuf", "scikit-learn"),
}
# Ranges of activations and palettes come of sums of floats, whose last bits may depend on the processor's instructions.
MEASURED = {("tflite", name) for name in TFLITE if name.startswith("int")}
MEASURED |= {("coreml", name) for name in COREML if name.startswith("palette")}


def network(family):
    """The network of a family as this version builds it, with weights by the rule."""
    shape = {"input_shape": (64, 64, 3), "classes": 10}
    if family == "v1":
        model = kef.EfficientFormer((1, 1, 1, 2), (8, 16, 24, 32), num_meta3d=1, **shape)
    else:
        ratios = ((4,), (3,), (2,), (3,))
        heads = {"head": "both", "classifier_activation": None}
        model = kef.EfficientFormerV2((1, 1, 1, 1), (8, 8, 12, 16), 1, ratios, **heads, **shape)
    model.set_weights(rule(model))
    return model


def rule(model):
    """Values for the weights of a model, in their order: each is drawn with its place as seed, in steps of 2**-8.

    Steps let the files be compressed to a quarter, and are the same on every machine.
    """
    return [_draw(variable, np.random.default_rng(place)) for place, variable in enumerate(model.weights)]


def _draw(variable, rng):
    shape = tuple(variable.shape)
    if "/ls1/" in variable.path or "/ls2/" in variable.path:
        values = rng.uniform(0.1, 0.5, shape)
    elif variable.name == "kernel":
        values = rng.normal(0, np.prod(shape[:-1]) ** -0.5, shape)
    elif variable.name == "moving_variance":
        values = rng.uniform(0.5, 2, shape)
    elif variable.name == "gamma":
        values = rng.uniform(0.5, 1.5, shape)
    elif variable.name == "attention_biases":
        values = rng.uniform(-2, 2, shape)
    else:
        assert variable.name in ("bias", "beta", "moving_mean"), variable.path
        values = rng.uniform(-0.2, 0.2, shape)
    return (np.round(values / STEP) * STEP).astype("float32")


def calibration_images():
    """Four images of noise, values in 0..255."""
    return np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3)).astype("float32")


def predicted(model):
    """A list of the model's outputs for two of the images, each (2, classes)."""
    outputs = model.predict(kef.preprocess_input(calibration_images()[:2]), verbose=0)
    return outputs if isinstance(outputs, list) else [outputs]


def exported(model, target, name, folder):
    """The name of the file that an export writes into a folder, and the sha256 of what is in it."""
    if target == "tflite":
        report = export_tflite(model, folder, labels=LABELS, calibration=calibration_images(), **TFLITE[name])
        path = Path(report.path)
        return {"file": path.name, "content": _sha256(path.read_bytes())}
    path = Path(export_coreml(model, folder, labels=LABELS, **COREML[name]).path)
    inside = path / "Data" / "com.apple.CoreML"
    return {
        "file": path.name,
        "program": _sha256(_without_date((inside / "model.mlmodel").read_bytes())),
        "weights": _sha256((inside / "weights" / "weight.bin").read_bytes()),
    }


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def _without_date(program):
    """A Core ML model without the day it was made on, its dictionaries in a fixed order."""
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model.FromString(program)
    del spec.description.metadata.userDefined["com.github.apple.coremltools.conversion_date"]
    return spec.SerializeToString(deterministic=True)


def versions():
    """{package: version} of all that have a part in the files."""
    return {package: importlib.metadata.version(package) for tools in TOOLS.values() for package in tools}


def processor():
    """The extensions of the processor's instructions that NumPy finds, and so do the others."""
    return np.show_config(mode="dicts")["SIMD Extensions"]["found"]


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text())


@pytest.fixture(scope="module")
def models():
    """{family: the network from its .keras file}."""
    found = {family: keras.saving.load_model(DATA / f"before_{family}.keras") for family in FAMILIES}
    # coremltools searches all objects for garbage in every conversion, which takes most of a second if none is frozen.
    gc.freeze()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_old_keras_file_has_its_weights_and_outputs(models, record, family):
    model = models[family]
    for variable, expected in zip(model.weights, rule(model), strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), expected, variable.path)
    for found, expected in zip(predicted(model), record["outputs"][family], strict=True):
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_old_keras_file_is_a_checkpoint(models, family):
    model = kef.from_checkpoint(DATA / f"before_{family}.keras")
    for found, expected in zip(model.get_weights(), models[family].get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("family", "target", "name"), MADE, ids=map(" ".join, MADE))
def test_exported_file_is_the_same(models, record, tmp_path, family, target, name):
    for package in TOOLS[target]:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"needs {package}")
        if version != record["versions"][package]:
            pytest.skip(f"{package} is {version}, and the files were made with {record['versions'][package]}")
    expected = record["files"][family][f"{target} {name}"]
    found = exported(models[family], target, name, tmp_path)
    if found != expected and (target, name) in MEASURED and processor() != record["processor"]:
        pytest.skip("the processor is not of the kind that the files were made on, and sums of floats differ on it")
    assert found == expected
