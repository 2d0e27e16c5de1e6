"""The command `efficientformer`: what it prints, where, with which exit code, and what files it leaves.

Most tests call its entry point in this process, as the installed command does; a few run the real commands.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import keras
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import timm_reference
import torch
from PIL import Image
from project import HANG, ROOT

import keras_efficientformer as kef
from keras_efficientformer import cli, conversion
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.imagenet import preprocess_image

CHECKPOINT = ROOT / "weights" / "efficientformer_l1_cifar10.safetensors"
LABELS = ROOT / "weights" / "cifar10_labels.txt"
NAMES = LABELS.read_text().split()
SHAPE = (64, 64, 3)


class Result:
    """What a command left behind: exit code, standard output and standard error."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        """Standard output holds JSON and nothing else."""
        return json.loads(self.out)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the installed command's entry point with these arguments."""

    def run(*arguments, expect=0):
        monkeypatch.setattr(sys, "argv", ["efficientformer", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        result = Result(exit_info.value.code or 0, *capsys.readouterr())
        assert result.code == expect, result.out + result.err
        return result

    return run


def assert_refused(result, *words):
    """One error, in a line of its own, on standard error; nothing on standard output."""
    assert result.out == ""
    assert "Traceback" not in result.err
    (line,) = result.err.strip().splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


@pytest.fixture(scope="module")
def tensors():
    tensors = timm_reference.state_dict(timm_reference.small_model())
    for name in ("head.weight", "head_dist.weight"):  # else all probabilities would be about 10%
        tensors[name] *= 8
    return tensors


@pytest.fixture(scope="module")
def model(tensors):
    model = kef.EfficientFormer((1, 1, 1, 2), (8, 16, 24, 32), 1, input_shape=SHAPE, classes=10)
    conversion.load_state_dict(model, tensors)
    return model


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """The model in every format, by name."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / name for name in ("a.keras", "a.weights.h5", "a.tflite", "raw.tflite")}
    model.save(paths["a.keras"])
    model.save_weights(paths["a.weights.h5"])
    export_tflite(model, paths["a.tflite"], labels=NAMES)
    export_tflite(model, paths["raw.tflite"], include_preprocessing=False)
    for dialect in ("timm", "snap", "transformers"):
        for suffix in (".safetensors", ".pth"):
            path = paths[dialect + suffix] = folder / (dialect + suffix)
            conversion.write_checkpoint(path, conversion.to_state_dict(model, dialect))
    return paths


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Three images of random colours and sizes, in a folder and one below it."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "below").mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (90, 120)), ("b.jpg", (64, 64)), ("below/c.webp", (300, 200))):
        blocks = rng.integers(0, 256, (4, 4, 3), "uint8")
        Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def scores_of(model, file, crop=0.95):
    image = preprocess_image(file, tuple(model.inputs[0].shape[1:3]), crop)
    return keras.ops.convert_to_numpy(model(image[None], training=False))[0]


def logits_of(path):
    """What a checkpoint or Keras file computes, whatever its format."""
    model = kef.from_checkpoint(path, input_shape=SHAPE, classifier_activation=None)
    return keras.ops.convert_to_numpy(model(timm_reference.images(64, 64), training=False))


@pytest.fixture(scope="module")
def logits(files):
    return logits_of(files["a.keras"])


# convert

SOURCES = ("timm.safetensors", "snap.pth", "transformers.safetensors", "a.keras", "a.weights.h5")
TARGETS = ("model.keras", "model.weights.h5", "model.pth", "model.bin", "model.pt")


@pytest.mark.parametrize(
    ("source", "target"),
    [*((source, "model.safetensors") for source in SOURCES), *(("snap.pth", target) for target in TARGETS)],
)
def test_convert_in_all_directions(command, files, logits, tmp_path, source, target):
    result = command("convert", files[source], tmp_path / target, "--json")
    report = result.json
    assert report["source"] == str(files[source])
    assert report["target"] == str(tmp_path / target)
    assert (report["input"], report["output"]) == ([64, 64, 3], [[10]])
    assert report["bytes"] == (tmp_path / target).stat().st_size
    assert os.listdir(tmp_path) == [target]
    np.testing.assert_array_equal(logits_of(tmp_path / target), logits)


@pytest.mark.parametrize("dialect", ["timm", "snap", "transformers"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_convert_to_a_dialect(command, files, model, tmp_path, dialect, suffix):
    """Read back by PyTorch's own readers, bit for bit."""
    path = tmp_path / f"out{suffix}"
    command("convert", files["a.keras"], path, "--dialect", dialect)
    expected = conversion.to_state_dict(model, dialect)
    found = safetensors.torch.load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    if (dialect, suffix) == ("snap", ".pth"):
        found = found["model"]
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), tensor)


def test_convert_to_timm_strict_loads_in_timm(command, files, logits, tmp_path):
    command("convert", files["transformers.pth"], tmp_path / "out.safetensors")
    reference = timm_reference.at_resolution(timm_reference.small_model(seed=1), (2, 2))
    reference.load_state_dict(safetensors.torch.load_file(tmp_path / "out.safetensors"), strict=True)
    found = timm_reference.logits(reference, timm_reference.images(64, 64))[0]
    np.testing.assert_allclose(found, logits, atol=1e-5)


def test_convert_resizes(command, files, tmp_path):
    report = command("convert", files["timm.safetensors"], tmp_path / "out.keras", "--size", "64x96", "--json").json
    assert report["input"] == [64, 96, 3]
    model = keras.saving.load_model(tmp_path / "out.keras")
    assert model.inputs[0].shape == (None, 64, 96, 3)
    expected = kef.from_checkpoint(files["timm.safetensors"], input_shape=(64, 96, 3))
    images = timm_reference.images(64, 96)
    np.testing.assert_array_equal(model(images), expected(images))


def test_convert_prints_a_table(command, files, model, tmp_path):
    result = command("convert", files["timm.pth"], tmp_path / "out.keras")
    assert "Converted to out.keras" in result.out
    assert f"{model.count_params():,}" in result.out
    assert result.err == ""


def test_convert_embedded_checkpoint(command, tmp_path):
    report = command("convert", CHECKPOINT, tmp_path / "l1.keras", "--json").json
    assert report["model"] == "efficientformer_l1"
    assert report["input"] == [64, 64, 3]


# inspect


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("timm.safetensors", "timm"),
        ("timm.pth", "timm"),
        ("snap.safetensors", "snap"),
        ("snap.pth", "snap"),
        ("transformers.safetensors", "transformers"),
        ("transformers.pth", "transformers"),
        ("a.keras", "timm"),
        ("a.weights.h5", "timm"),
    ],
)
def test_inspect_checkpoint(command, files, model, name, dialect):
    report = command("inspect", files[name], "--json").json
    assert report["dialect"] == dialect
    assert report["variant"] is None
    shape = {"depths": [1, 1, 1, 2], "widths": [8, 16, 24, 32], "num_meta3d": 1}
    assert report["architecture"] == shape
    assert (report["classes"], report["heads"], report["resolution"]) == (10, 2, [2, 2])
    assert report["input_size"] == [64, 64]
    assert report["values"] == model.count_params()
    assert report["finite"] is True
    assert report["wrappers"] == (["model"] if name == "snap.pth" else [])
    assert report["bytes"] == files[name].stat().st_size
    assert len(report["sha256"]) == 64


def test_inspect_embedded_checkpoint(command):
    report = command("inspect", CHECKPOINT, "--json").json
    assert (report["variant"], report["classes"], report["resolution"]) == ("l1", 10, [2, 2])
    assert report["dtypes"] == ["float16", "int64"]
    assert report["sha256"] == "0c61378f34f5050e86cc77b768e0409b6507a102ce86afc89571a68421937962"
    table = command("inspect", CHECKPOINT).out
    assert "efficientformer_l1_cifar10.safetensors" in table
    assert "22.9 MB (22,893,088 bytes)" in table
    assert "depths: 3, 2, 6, 4; widths: 48, 96, 224, 448; num_meta3d: 1" in table
    assert "64 x 64" in table
    assert not any(mark in table for mark in "{}['")  # words, not Python's values


def test_inspect_tells_of_damage(command, tensors, tmp_path):
    tensors = {**tensors, "norm.bias": np.full(32, np.nan, "float32")}
    safetensors.numpy.save_file(tensors, tmp_path / "damaged.safetensors")
    assert command("inspect", tmp_path / "damaged.safetensors", "--json").json["finite"] is False


def test_inspect_tflite(command, files):
    report = command("inspect", files["a.tflite"], "--json").json
    image = {"name": "image", "shape": [1, 64, 64, 3], "dtype": "float32", "scale": None, "zero_point": None}
    assert report["inputs"] == [image]
    assert [output["name"] for output in report["outputs"]] == ["probabilities"]
    assert report["operations"]["CONV_2D"] >= 10
    assert (report["input_size"], report["labels"], report["pixels"]) == ([64, 64], list(NAMES), "raw, in 0..255")
    table = command("inspect", files["a.tflite"]).out
    for words in ("image, float32 1x64x64x3", "CONV_2D: ", f"{len(NAMES)}: {NAMES[0]}, {NAMES[1]}"):
        assert words in table
    assert not any(mark in table for mark in "{}['")


def test_inspect_says_labels_and_size_of_a_keras_file(command, tensors, tmp_path):
    model = small_model(tensors, labels=NAMES)
    model.save(tmp_path / "named.keras")
    report = command("inspect", tmp_path / "named.keras", "--json").json
    assert (report["input_size"], report["labels"]) == ([64, 64], list(NAMES))


# predict


@pytest.mark.parametrize("name", ["a.keras", "timm.safetensors", "snap.pth", "a.weights.h5", "a.tflite", "raw.tflite"])
def test_predict_with_every_kind_of_model(command, files, model, photographs, name):
    result = command("predict", photographs, "--model", files[name], "--labels", LABELS, "--json", "--top", "3")
    assert list(result.json) == [str(photographs / file) for file in ("a.png", "b.jpg", "below/c.webp")]
    for file, rows in result.json.items():
        scores = scores_of(model, file)
        best = np.argsort(-scores)[:3]
        assert [(row["class"], row["label"], row["wordnet_id"]) for row in rows] == [(i, NAMES[i], None) for i in best]
        np.testing.assert_allclose(scores_in(rows), scores[best], atol=1e-5)


def scores_in(rows):
    return [row["score"] for row in rows]


def test_predict_takes_labels_from_the_file_alone(command, files, photographs):
    (rows,) = command("predict", photographs / "a.png", "--model", files["a.tflite"], "--json").json.values()
    assert {row["label"] for row in rows} <= set(NAMES)
    (rows,) = command("predict", photographs / "a.png", "--model", files["a.keras"], "--json").json.values()
    assert all(row["label"] == f"class {row['class']}" for row in rows)
    assert len(rows) == 5


def test_predict_takes_labels_from_the_file_itself(command, model, photographs, tmp_path):
    report = export_tflite(model, tmp_path / "m.tflite", labels=NAMES)
    report_file = tmp_path / "m.tflite.json"
    arguments = ("predict", photographs / "a.png", "--model", report.path, "--json")
    with_report = command(*arguments).json
    report_file.unlink()
    assert command(*arguments).json == with_report
    for other in ('["a", "list"]', "no JSON", "{}"):
        report_file.write_text(other)
        assert "m.tflite.json is not the report that an export writes" in command(*arguments, expect=1).err
    export_tflite(model, tmp_path / "other.tflite", quantize="float16", labels=NAMES)
    (tmp_path / "other.tflite.json").replace(report_file)
    assert "m.tflite.json is the report of another file: its sha256" in command(*arguments, expect=1).err


def test_predict_crop_and_size(command, files, model, photographs):
    image = photographs / "below" / "c.webp"
    arguments = ("predict", image, "--model", files["timm.safetensors"], "--json", "--top", "10")
    for crop in (0.5, 1.0):
        (rows,) = command(*arguments, "--crop", crop).json.values()
        np.testing.assert_allclose(scores_in(rows), sorted(scores_of(model, image, crop))[::-1], atol=1e-6)
    assert np.abs(scores_of(model, image, 0.5) - scores_of(model, image, 1.0)).max() > 1e-4
    large = kef.from_checkpoint(files["timm.safetensors"], input_shape=(96, 128, 3))
    (rows,) = command(*arguments, "--size", "96x128").json.values()
    np.testing.assert_allclose(scores_in(rows), sorted(scores_of(large, image))[::-1], atol=1e-6)


def test_predict_prints_a_table(command, photographs):
    cat = photographs / "b.jpg"
    result = command("predict", cat, "--model", CHECKPOINT, "--labels", LABELS, "--top", "2")
    assert [heading in result.out for heading in ("image", "class", "score")] == [True] * 3
    assert result.out.count("%") == 2
    assert sum(result.out.count(name) for name in NAMES) >= 2


def test_predict_more_images_than_a_batch(command, files, photographs, tmp_path):
    for index in range(35):
        Image.fromarray(np.full((8, 8, 3), index * 7, "uint8")).save(tmp_path / f"{index:02}.png")
    result = command("predict", tmp_path, photographs, "--model", files["a.tflite"], "--json", "--top", "1")
    assert len(result.json) == 38


def test_predict_with_two_heads(command, tensors, photographs, tmp_path):
    """Both heads are there: the answer is the one of the head that was trained on labels."""
    model = kef.EfficientFormer((1, 1, 1, 2), (8, 16, 24, 32), 1, input_shape=SHAPE, classes=10, head="both")
    conversion.load_state_dict(model, tensors)
    model.save(tmp_path / "both.keras")
    export_tflite(model, tmp_path / "both.tflite")
    expected = model.predict(preprocess_image(photographs / "a.png", SHAPE[:2])[None], verbose=0)[0][0]
    for name in ("both.keras", "both.tflite"):
        (rows,) = command("predict", photographs / "a.png", "--model", tmp_path / name, "--json").json.values()
        np.testing.assert_allclose(scores_in(rows), np.sort(expected)[::-1][:5], atol=1e-5)


def test_predict_of_logits_prints_no_percentages(command, tensors, photographs, tmp_path):
    model = small_model(tensors, classifier_activation=None)
    model.get_layer("head").bias.assign(np.full(10, 40.0))
    model.save(tmp_path / "logits.keras")
    assert "%" not in command("predict", photographs / "a.png", "--model", tmp_path / "logits.keras").out


def test_predict_refuses_what_gives_no_scores(command, tensors, photographs, tmp_path):
    model = small_model(tensors)
    model.get_layer("head").bias.assign(np.full(10, np.nan))
    model.save(tmp_path / "nan.keras")
    arguments = ["predict", photographs / "a.png", "--model"]
    assert "scores that are not finite" in command(*arguments, tmp_path / "nan.keras", expect=1).err
    small_model(tensors, include_top=False).save(tmp_path / "features.keras")
    assert "has no classifier" in command(*arguments, tmp_path / "features.keras", expect=1).err
    assert "neither a file nor one of the names l1" in command(*arguments, "l9", expect=1).err


def test_convert_to_another_size_keeps_heads_and_activation(command, tensors, tmp_path):
    small_model(tensors, head="both", classifier_activation=None).save(tmp_path / "a.keras")
    command("convert", tmp_path / "a.keras", tmp_path / "b.keras", "--size", "96x64")
    model = keras.saving.load_model(tmp_path / "b.keras")
    assert (model.input_shape, len(model.outputs)) == ((None, 96, 64, 3), 2)
    assert model.get_layer("predictions").activation is keras.activations.linear


def small_model(tensors, **arguments):
    arguments = {"input_shape": SHAPE, "classes": 10, **arguments}
    model = kef.EfficientFormer((1, 1, 1, 2), (8, 16, 24, 32), 1, **arguments)
    conversion.load_state_dict(model, tensors)
    return model


def column(table, number):
    """The cells of a printed table's column, put together again where they were folded."""
    return "".join(line.split("│")[number].strip() for line in table.splitlines() if "│" in line)


def test_names_in_square_brackets(command, photographs, tmp_path):
    """Which the library that draws the tables would take for colours."""
    folder = tmp_path / "[red]"
    folder.mkdir()
    (folder / "[b].jpg").write_bytes((photographs / "b.jpg").read_bytes())
    labels = folder / "labels.txt"
    labels.write_text("\n".join(f"[/i]{name}" for name in NAMES))
    result = command("predict", folder, "--model", CHECKPOINT, "--labels", labels, "--top", "1")
    assert "[/i]" in result.out
    assert str(folder / "[b].jpg") in column(result.out, 1)
    result = command("export", "tflite", CHECKPOINT, folder / "[m].tflite")
    assert str(folder / "[m].tflite") in column(result.out, 2)
    result = command("inspect", folder / "[m].tflite")
    assert "[m].tflite" in result.out


# export tflite


def test_export(command, tmp_path, photographs):
    arguments = ("export", "tflite", CHECKPOINT, tmp_path, "--labels", LABELS, "--calibration", photographs)
    report = command(*arguments, "--json").json
    assert report == json.loads((tmp_path / "efficientformer_l1_64_float32.tflite.json").read_text())
    assert (report["labels"], report["images"]) == (NAMES, 3)
    assert sorted(os.listdir(tmp_path)) == [
        "efficientformer_l1_64_float32.tflite",
        "efficientformer_l1_64_float32.tflite.json",
    ]


def test_export_options(command, files, tmp_path):
    arguments = ("--size", "64x96", "--batch-size", "2", "--no-preprocessing", "--max-difference", "0.5", "--json")
    report = command("export", "tflite", files["a.keras"], tmp_path / "a.tflite", *arguments).json
    assert report["inputs"][0]["shape"] == [2, 64, 96, 3]
    assert (report["preprocessing"], report["limit"]) == (False, 0.5)


def test_export_with_a_page(command, files, tmp_path):
    arguments = ("export", "tflite", files["a.keras"], tmp_path / "a.tflite", "--page", tmp_path / "a.html")
    assert "verdict" in command(*arguments).out
    page = (tmp_path / "a.html").read_text()
    assert "same answers as the Keras model" in page
    assert "Layers that err most" in page
    (tmp_path / "a.tflite").unlink()
    (tmp_path / "a.tflite.json").unlink()
    assert_refused(command(*arguments, expect=1), "a.html exists")
    assert not (tmp_path / "a.tflite").exists()  # it is refused before anything is done
    assert "verdict" in command(*arguments, "--overwrite").out


def test_export_prints_a_table(command, files, tmp_path):
    result = command("export", "tflite", files["a.keras"], tmp_path / "a.tflite")
    for words in (
        "a.tflite",
        "probabilities float32 [1, 10]",
        "against Keras",
        "top-1 on 100.0%",
        "verdict │ same answers as",
    ):
        assert words in " ".join(result.out.split())


# What is refused


@pytest.mark.parametrize("target", ["model.keras", "model.weights.h5", "model.safetensors", "model.pth"])
def test_convert_overwrites_only_when_told(command, files, logits, tmp_path, target):
    (tmp_path / target).write_text("mine")
    arguments = ("convert", files["timm.safetensors"], tmp_path / target)
    assert_refused(command(*arguments, expect=1), f"{tmp_path / target} exists", "--overwrite")
    assert (tmp_path / target).read_text() == "mine"
    command(*arguments, "--overwrite")
    np.testing.assert_array_equal(logits_of(tmp_path / target), logits)
    assert os.listdir(tmp_path) == [target]


@pytest.mark.parametrize("name", ["a.tflite", "a.tflite.json"])
def test_export_overwrites_only_when_told(command, files, tmp_path, name):
    (tmp_path / name).write_text("mine")
    arguments = ("export", "tflite", files["a.keras"], tmp_path / "a.tflite")
    assert_refused(command(*arguments, expect=1), f"{tmp_path / name} exists")
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "mine"
    command(*arguments, "--overwrite")
    assert sorted(os.listdir(tmp_path)) == ["a.tflite", "a.tflite.json"]


@pytest.fixture(scope="module")
def bad(tmp_path_factory, files):
    """Files that are not what their names say."""
    folder = tmp_path_factory.mktemp("bad")
    contents = {
        "text.safetensors": b"not a checkpoint at all",
        "empty.safetensors": b"",
        "cut.safetensors": files["timm.safetensors"].read_bytes()[:5000],
        "cut.pth": files["snap.pth"].read_bytes()[:5000],
        "cut.keras": files["a.keras"].read_bytes()[:5000],
        "text.keras": b"not a zip file",
        "cut.weights.h5": files["a.weights.h5"].read_bytes()[:5000],
        "cut.tflite": files["a.tflite"].read_bytes()[:5000],
        "text.tflite": b"not a network",
        "text.png": b"not an image",
        "labels.txt": b"cat\ndog\n",
        "latin1.txt": "\n".join(["fenêtre"] * 10).encode("latin-1"),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "empty").mkdir()
    return folder


BAD_MODELS: tuple[str, ...] = (
    "text.safetensors",
    "empty.safetensors",
    "cut.safetensors",
    "cut.pth",
    "cut.keras",
    "text.keras",
)
BAD_MODELS += ("cut.weights.h5", "missing.keras", "missing.safetensors", "missing.pth", "missing.weights.h5")


@pytest.mark.parametrize("name", BAD_MODELS)
def test_unfit_models(command, bad, photographs, tmp_path, name):
    path = bad / name
    assert_refused(command("convert", path, tmp_path / "out.safetensors", expect=1), str(path))
    assert_refused(command("export", "tflite", path, tmp_path, expect=1), str(path))
    assert_refused(command("predict", photographs, "--model", path, expect=1), str(path))
    assert_refused(command("inspect", path, expect=1), str(path))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["cut.tflite", "text.tflite", "missing.tflite"])
def test_unfit_tflite_files(command, bad, photographs, name):
    assert_refused(command("inspect", bad / name, expect=1), name)
    assert_refused(command("predict", photographs, "--model", bad / name, expect=1), name)


def test_foreign_keras_model(command, tmp_path, photographs):
    layers = [keras.Input((64, 64, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    keras.Sequential(layers).save(tmp_path / "other.keras")
    for arguments in (
        ("convert", tmp_path / "other.keras", tmp_path / "out.pth"),
        ("export", "tflite", tmp_path / "other.keras", tmp_path),
        ("inspect", tmp_path / "other.keras"),
    ):
        assert_refused(command(*arguments, expect=1), "is not an EfficientFormer")
    assert os.listdir(tmp_path) == ["other.keras"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{bad}/text.png"], ["text.png"]),
        (["{bad}/missing.png"], ["missing.png"]),
        (["{bad}/empty"], ["empty holds no images"]),
        (["{photographs}", "--labels", "{bad}/labels.txt"], ["10 classes, and there are 2 labels"]),
        (["{photographs}", "--labels", "{bad}/missing.txt"], ["missing.txt"]),
        (["{photographs}", "--labels", "{bad}/latin1.txt"], ["utf-8"]),
    ],
    ids=["unreadable image", "missing image", "empty folder", "too few labels", "missing labels", "Latin-1 labels"],
)
def test_unfit_images_and_labels(command, files, bad, photographs, arguments, words):
    arguments = [argument.format(bad=bad, photographs=photographs) for argument in arguments]
    assert_refused(command("predict", *arguments, "--model", files["a.keras"], expect=1), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-difference", "0"], ["was not written", "differs from the Keras model"]),
        (["--labels", "{bad}/labels.txt"], ["10 classes, and", "labels.txt holds 2 labels"]),
        (["--calibration", "{bad}/empty"], ["empty holds no images"]),
        (["--calibration", "{bad}/missing"], ["missing does not exist"]),
        (["--size", "16"], ["at least 32x32"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else None,
)
def test_unfit_exports_leave_nothing(command, files, bad, tmp_path, arguments, words):
    arguments = [argument.format(bad=bad) for argument in arguments]
    result = command("export", "tflite", files["timm.safetensors"], tmp_path, *arguments, expect=1)
    assert_refused(result, *words)
    assert os.listdir(tmp_path) == []


def test_missing_target_folder(command, files, tmp_path):
    for target in ("a.keras", "a.weights.h5", "a.pth"):
        result = command("convert", files["a.keras"], tmp_path / "missing" / target, expect=1)
        assert_refused(result, f"The folder {tmp_path / 'missing'} does not exist")
    result = command("export", "tflite", files["a.keras"], tmp_path / "missing" / "a.tflite", expect=1)
    assert_refused(result, f"The folder {tmp_path / 'missing'} does not exist")


USAGE = {
    "unknown command": ["translate"],
    "unknown option": ["inspect", "a.pth", "--colour"],
    "no target": ["convert", "a.pth"],
    "target's suffix": ["convert", "a.pth", "out.onnx"],
    "dialect": ["convert", "a.pth", "out.pth", "--dialect", "jax"],
    "size in words": ["convert", "a.pth", "out.pth", "--size", "large"],
    "size of three": ["convert", "a.pth", "out.pth", "--size", "64x64x3"],
    "no classes": ["predict", "a.png", "--model", "a.pth", "--top", "0"],
    "crop": ["predict", "a.png", "--model", "a.pth", "--crop", "1.5"],
    "batch size": ["export", "tflite", "a.keras", "out.tflite", "--batch-size", "0"],
    "number": ["export", "tflite", "a.keras", "out.tflite", "--max-difference", "none"],
    "unknown format": ["export", "onnx", "a.keras"],
    "mode": ["export", "tflite", "a.keras", "out.tflite", "--quantize", "int4"],
    "type": ["export", "tflite", "a.keras", "out.tflite", "--io", "int16"],
    "precision": ["export", "coreml", "a.keras", "out.mlpackage", "--precision", "int8"],
    "compression": ["export", "coreml", "a.keras", "out.mlpackage", "--compress", "int3"],
    "system": ["export", "coreml", "a.keras", "out.mlpackage", "--minimum-ios", "14"],
    "arithmetic": ["finetune", "images", "--output", "run", "--precision", "float8"],
}


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE)
def test_wrong_usage(command, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    result = command(*arguments, expect=2)
    assert result.out == ""
    assert "Usage:" in result.err
    assert "Traceback" not in result.err
    assert os.listdir(tmp_path) == []


def test_help(command):
    text = command("--help").out
    for name in ("convert", "predict", "export", "inspect"):
        assert name in text
    assert "--dialect" in command("convert", "--help").out
    assert "--max-difference" in command("export", "tflite", "--help").out


# The commands, each a Python of its own: the installed one, the others copies of one that has imported Keras.


def run(name, *arguments, **env):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | env
    program = name if name == INSTALLED else forked.programs(environment) / name
    finished = subprocess.run(
        [str(word) for word in (program, *arguments)], env=environment, capture_output=True, text=True, timeout=HANG
    )
    return Result(finished.returncode, finished.stdout, finished.stderr)


INSTALLED = Path(sys.executable).with_name("efficientformer")


def test_installed_command(photographs):
    image = photographs / "a.png"
    result = run(INSTALLED, "predict", image, "--model", CHECKPOINT, "--labels", LABELS, "--json")
    assert (result.code, result.err) == (0, "")
    (rows,) = result.json.values()
    best = scores_of(kef.from_checkpoint(CHECKPOINT), image).argmax()
    assert (rows[0]["class"], rows[0]["label"]) == (best, NAMES[best])


def test_names_that_the_output_has_no_letters_for(files, photographs, tmp_path):
    """A report does not end at a letter that the terminal has not, or at bytes that are no UTF-8."""
    shutil.copy(photographs / "a.png", os.path.join(os.fsencode(tmp_path), b"\xc3\xa4\xe9.png"))
    result = run(INSTALLED, "predict", tmp_path, "--model", files["a.tflite"], "--csv", PYTHONIOENCODING="ascii")
    assert (result.code, result.err) == (0, "")
    assert rf"{tmp_path}/\xe4\udce9.png,1," in result.out


def test_offline_is_one_error_and_no_random_answer(photographs, tmp_path):
    result = run("efficientformer", "predict", photographs, "--json", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert result.code == 1
    assert result.out == ""
    assert "Traceback" not in result.err
    error = result.err[result.err.index("error: ") :]
    assert "could not be downloaded: HF_HUB_OFFLINE forbids the network" in error
    assert "To bring the file by hand" in error


def test_conversion_script(tmp_path):
    result = run("python", ROOT / "weights" / "convert.py", CHECKPOINT, tmp_path / "l1.pth", "--dialect", "snap")
    assert result.code == 0, result.err
    assert "network.0.0.layer_scale_1" in torch.load(tmp_path / "l1.pth", weights_only=True)["model"]


def test_export_script(tmp_path):
    script = ROOT / "tflite" / "export.py"
    result = run("python", script, CHECKPOINT, tmp_path, "--labels", LABELS, "--json")
    assert result.code == 0, result.err
    assert result.json["labels"] == NAMES


def test_predict_of_an_embedder(command, photographs, tmp_path):
    """With --json its embeddings are printed; a table of classes would be none."""
    shape = {"depths": (1, 1, 1, 1), "widths": (8, 8, 8, 16), "input_shape": (64, 64, 3)}
    embedder = kef.EfficientFormer(**shape, include_top=False, pooling="avg")
    embedder.save(tmp_path / "m.keras")
    export_tflite(embedder, tmp_path / "m.tflite")
    for name in ("m.keras", "m.tflite"):
        arguments = ("predict", photographs / "a.png", "--model", tmp_path / name)
        (embedding,) = command(*arguments, "--json").json.values()
        image = preprocess_image(photographs / "a.png", (64, 64))[None]
        np.testing.assert_allclose(embedding, embedder.predict(image, verbose=0)[0], atol=1e-5)
        assert_refused(command(*arguments, expect=1), "has no classifier: it gives embedding. With --json")


def test_predict_with_a_foreign_model(command, photographs, tmp_path):
    image = keras.layers.Rescaling(1 / 255)(keras.Input((64, 64, 3)))
    kef.EfficientFormer((1, 1, 1, 1), (8, 8, 8, 16), classes=10, input_tensor=image).save(tmp_path / "m.keras")
    refused = command("predict", photographs / "a.png", "--model", tmp_path / "m.keras", expect=1)
    assert_refused(refused, "found the layers rescaling", "include_preprocessing=True")
