"""Classifiers: how raw pixels go in is what the model or the file itself says; what is no classifier is refused.

Room: top level.
"""

import json
import shutil

import keras
import numpy as np
import pytest
from ai_edge_litert.tools import flatbuffer_utils

from keras_efficientformer.classifiers import KerasClassifier, open_classifier
from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.deploy.report_sidecar import content_hash, sidecar_of
from keras_efficientformer.deploy.tflite import runtime
from keras_efficientformer.deploy.tflite.file import operators
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.training import evaluate

FORMATS = {".tflite": export_tflite, ".mlpackage": export_coreml}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("float32")


@pytest.fixture(params=FORMATS)
def exported(request, build, tmp_path):
    """A file without preprocessing, which a report that is lost or another's would have made wrong."""
    settings = {"image_input": False, "precision": "float32"} if request.param == ".mlpackage" else {}
    path = tmp_path / f"m{request.param}"
    FORMATS[request.param](build(), path, include_preprocessing=False, **settings)
    return path


def test_without_the_report(exported, build, images):
    expected = build().predict(preprocess_input(images), verbose=0)
    sidecar_of(exported).unlink()
    np.testing.assert_allclose(open_classifier(exported).predict(images), expected, atol=2e-5)


def test_two_formats_in_one_folder(build, images, tmp_path):
    """They shared one report once, and the second export made the first file wrong."""
    model = build()
    export_tflite(model, tmp_path / "m.tflite", include_preprocessing=False)
    export_coreml(model, tmp_path / "m.mlpackage", precision="float32")
    for path in (tmp_path / "m.tflite", tmp_path / "m.mlpackage"):
        assert json.loads(sidecar_of(path).read_text())["sha256"] == content_hash(path)
        expected = model.predict(preprocess_input(images), verbose=0)
        np.testing.assert_allclose(open_classifier(path).predict(images), expected, atol=2e-5)


def test_the_report_of_another_file(exported):
    report = json.loads(sidecar_of(exported).read_text())
    sidecar_of(exported).write_text(json.dumps(report | {"sha256": "0" * 64}))
    with pytest.raises(ValueError, match=r"is the report of another file: its sha256 is 0{64}, and that of"):
        open_classifier(exported)
    sidecar_of(exported).write_text("no JSON")
    with pytest.raises(ValueError, match="is not the report that an export writes beside its file"):
        open_classifier(exported)


def test_a_changed_package(build, tmp_path):
    export_coreml(build(), tmp_path / "m.mlpackage")
    (tmp_path / "m.mlpackage" / "Data" / "note.txt").write_text("changed")
    with pytest.raises(ValueError, match="is the report of another file"):
        open_classifier(tmp_path / "m.mlpackage")


def edited(path, change):
    file = flatbuffer_utils.read_model(path)
    change(file)
    sidecar_of(path).unlink(missing_ok=True)
    flatbuffer_utils.write_model(file, path)


@pytest.mark.parametrize("preprocessing", [True, False])
def test_tflite_metadata_of_others(build, images, tmp_path, preprocessing):
    """A file with TFLite Metadata alone: one mean and one deviation for all channels."""
    path = tmp_path / "m.tflite"
    export_tflite(build(), path, include_preprocessing=preprocessing)

    def remove(file):
        file.metadata = [entry for entry in file.metadata if entry.name != b"keras_efficientformer"]

    edited(path, remove)
    expected = build().predict(preprocess_input(images), verbose=0)
    difference = np.abs(open_classifier(path).predict(images) - expected).max()
    assert difference < (2e-5 if preprocessing else 0.1)


def test_no_metadata(build, tmp_path):
    path = tmp_path / "m.tflite"
    export_tflite(build(), path)

    def remove(file):
        file.metadata = []

    edited(path, remove)
    with pytest.raises(ValueError, match="does not say how raw pixels are prepared for it"):
        open_classifier(path)


def test_damaged_facts(build, tmp_path):
    path = tmp_path / "m.tflite"
    export_tflite(build(), path)
    for content in (b"{}", b'{"mean": [0], "std": [0], "labels": null}', b"\xff"):

        def damage(file, content=content):
            (entry,) = [entry for entry in file.metadata if entry.name == b"keras_efficientformer"]
            file.buffers[entry.buffer].data = np.frombuffer(content, "uint8")

        edited(path, damage)
        with pytest.raises(ValueError, match=r"m\.tflite is a damaged \.tflite file"):
            open_classifier(path)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"crashes LiteRT \(SIGSEGV\): it is damaged"),
        ("import time; time.sleep(60)", "keeps LiteRT busy for more than 1 s"),
    ],
)
def test_files_that_crash_litert(build, tmp_path, monkeypatch, program, words):
    """A file that nobody has run before is run in another process first; one with its report has been run."""
    path = tmp_path / "m.tflite"
    export_tflite(build(), path)
    monkeypatch.setattr(runtime, "PROBE", program)
    monkeypatch.setattr(runtime, "PROBE_SECONDS", 1)
    assert open_classifier(path).output == "scores"
    sidecar_of(path).unlink()
    with pytest.raises(ValueError, match=words):
        open_classifier(path)


@pytest.mark.parametrize(
    ("kind", "side", "words"),
    [
        ("SUB", "inputs", r"LiteRT can run: .*NumInputs\(node\) != 2"),
        ("BATCH_MATMUL", "outputs", r"LiteRT can run: .*(_Map_base::at|NumOutputs\(node\) != 1)|crashes LiteRT"),
    ],
)
@pytest.mark.filterwarnings("ignore:Only 2 calibration images", "ignore:No labels")
def test_what_litert_refuses_is_not_opened_in_this_process(build, images, tmp_path, monkeypatch, kind, side, words):
    """It reads beyond what an operator lacks, so that what it then says depends on the memory; it crashed processes."""
    path = tmp_path / "m.tflite"
    export_tflite(build(), path, quantize="int8", calibration=images, max_difference=float("inf"))
    sidecar_of(path).unlink()

    def damage(file):
        setattr(next(operator for found, operator in operators(file) if found == kind), side, [])

    edited(path, damage)
    monkeypatch.setattr("ai_edge_litert.interpreter.Interpreter", lambda **arguments: pytest.fail("opened"))
    with pytest.raises(ValueError, match=words):
        open_classifier(path)
    with pytest.raises(FileNotFoundError):
        open_classifier(tmp_path / "none.tflite")


def mobilenet():
    return keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3), classes=10)


def dense():
    image = keras.Input((64, 64, 3))
    return keras.Model(image, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(image)))


@pytest.mark.parametrize("make", [mobilenet, dense])
def test_foreign_models(make, tmp_path):
    """Nobody knows how their images are prepared."""
    model, words = make(), "not an EfficientFormer of this package"
    model.save(tmp_path / "m.keras")
    for source in (lambda: open_classifier(tmp_path / "m.keras"), lambda: KerasClassifier(model)):
        with pytest.raises(ValueError, match=words):
            source()
    with pytest.raises(ValueError, match=words):
        evaluate(model, tmp_path)


def test_rescaling_in_front(build):
    image = keras.Input((64, 64, 3))
    whole = build()
    model = keras.Model(image, whole(keras.layers.Rescaling(1 / 127.5, -1)(image)))
    with pytest.raises(ValueError, match="not an EfficientFormer of this package"):
        KerasClassifier(model)
    flat = build(input_tensor=keras.layers.Rescaling(1 / 127.5, -1)(image), input_shape=None)
    with pytest.raises(ValueError, match=r"found the layers rescaling.*include_preprocessing=True"):
        KerasClassifier(flat)


@pytest.mark.parametrize(
    ("arguments", "output", "shape"),
    [
        ({"pooling": "avg"}, "embedding", (2, 32)),
        ({"pooling": "max"}, "embedding", (2, 32)),
        ({}, "features", (2, 2, 2, 32)),
    ],
)
def test_without_a_classifier(build, images, tmp_path, arguments, output, shape):
    model = build(include_top=False, **arguments)
    export_tflite(model, tmp_path / "m.tflite")
    export_coreml(model, tmp_path / "m.mlpackage")
    expected = KerasClassifier(model).predict(images)
    assert expected.shape == shape
    for opened in (
        KerasClassifier(model),
        *(open_classifier(tmp_path / f"m.{kind}") for kind in ("tflite", "mlpackage")),
    ):
        assert opened.output == output
        np.testing.assert_allclose(opened.predict(images), expected, atol=5e-3 * np.abs(expected).max())
    with pytest.raises(ValueError, match=f"has no classifier that could be evaluated: it gives {output}"):
        evaluate(tmp_path / "m.tflite", tmp_path)


def test_renamed_outputs(build, tmp_path):
    path = tmp_path / "m.tflite"
    export_tflite(build(), path)

    def rename(file):
        graph = file.subgraphs[0]
        graph.tensors[graph.outputs[0]].name = b"Identity"

    edited(path, rename)
    with pytest.raises(ValueError, match=r"no output of classes: expected one of probabilities.*Found: Identity"):
        open_classifier(path)


def test_copied_together(exported, tmp_path_factory):
    """A file and its report may be moved and called otherwise."""
    folder = tmp_path_factory.mktemp("elsewhere")
    target = folder / f"other{exported.suffix}"
    (shutil.copytree if exported.is_dir() else shutil.copy)(exported, target)
    shutil.copy(sidecar_of(exported), sidecar_of(target))
    assert open_classifier(target).output == "scores"
