"""`make demo`: the embedded checkpoint from PyTorch to Android, as a newcomer with a fresh clone sees it."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile

import forked
import keras
import numpy as np
import pytest
import training_images
from PIL import Image
from project import HANG, ROOT

from keras_efficientformer import conversion
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel

SCRIPT = ROOT / "weights" / "demo.py"
NAME = "efficientformer_l1_cifar10"
TFLITE = "efficientformer_l1_64_float32"
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# The model card's, which holds for 5,000 images.
CARD_TOP1 = 82.34


class Demo:
    """What it printed, its exit code, and the folder with its files."""

    def __init__(self, folder, *arguments):
        self.folder = folder
        environment = {**os.environ, "COLUMNS": "160"}
        # The one without images is as the newcomer sees it.
        program = forked.programs(environment) / "python" if arguments else sys.executable
        command = [program, SCRIPT, "--output", folder, *arguments]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG)
        self.code, self.out, self.err = finished.returncode, finished.stdout, finished.stderr

    def row(self, step):
        """The cells after the name of a step in the printed table."""
        (line,) = [line for line in self.out.splitlines() if f"│ {step}" in line]
        return [cell.strip() for cell in line.strip("│").split("│")[1:]]

    def top1(self, name, number):
        text, seconds = self.row(f"top-1 on {number:,} CIFAR-10 images, {name}")
        assert float(seconds) > 0
        match = re.fullmatch(rf"(\d+\.\d\d)% \(card: {CARD_TOP1:.2f}%\)", text)
        return float(match[1])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return Demo(tmp_path_factory.mktemp("demo") / "new folder")


def test_without_test_images(demo):
    assert demo.code == 0, demo.err
    assert "CIFAR-10's test images are not at hand: make demo IMAGES=folder measures top-1 on them." in demo.out
    assert "CIFAR-10 images, " not in demo.out
    assert demo.row("convert to Keras")[0].startswith("11,4")
    assert demo.row("classify chelsea.png")[0].startswith("cat ")
    assert demo.row("export to TFLite")[0].startswith(f"{TFLITE}.tflite, 4")
    difference = re.search(r"differ by at most (\S+)", demo.row("run in LiteRT")[0])[1]
    assert float(difference) < 1e-5


def test_files(demo):
    assert sorted(os.listdir(demo.folder)) == sorted(
        [f"{NAME}.keras", f"{TFLITE}.tflite", f"{TFLITE}.tflite.json", "photographs.png"]
    )
    with Image.open(demo.folder / "photographs.png") as picture:
        assert picture.width > 500
        assert np.asarray(picture.convert("L")).std() > 20  # photographs, not a blank page
    report = json.loads((demo.folder / f"{TFLITE}.tflite.json").read_text())
    assert report["labels"] == LABELS
    assert report["images"] == 3


def test_both_models_say_the_same_of_the_same_images(demo):
    images = np.random.default_rng(0).uniform(0, 255, (1, 4, 4, 3)).astype("float32")
    images = np.concatenate([np.kron(images, np.ones((1, 16, 16, 1))), np.zeros((1, 64, 64, 3))]).astype("float32")
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    expected = keras.saving.load_model(demo.folder / f"{NAME}.keras").predict((images - mean) / std, verbose=0)
    found = LiteRTModel(demo.folder / f"{TFLITE}.tflite").predict(images)["probabilities"]
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_top1_on_all_test_images(data_folder, tmp_path):
    demo = Demo(tmp_path / "demo", "--images", data_folder)
    assert demo.code == 0, demo.out + demo.err
    for name in ("Keras", "TFLite"):
        assert demo.top1(name, 5000) == pytest.approx(CARD_TOP1, abs=0.1)
    assert "not at hand" not in demo.out


def test_a_folder_of_images_and_another_top1_than_the_cards(data_folder, tmp_path):
    """Ten of each class, which are the wrong classes: measured, printed, and an exit code that says so."""
    images = tmp_path / "images"
    with zipfile.ZipFile(data_folder / "cifar10-images.zip") as archive:
        for label, next_label in zip(LABELS, LABELS[1:] + LABELS[:1], strict=True):
            (images / next_label).mkdir(parents=True)
            for index in range(10):
                content = archive.read(f"test/{label}/{index:04}.jpg")
                (images / next_label / f"{index:04}.jpg").write_bytes(content)
    demo = Demo(tmp_path / "demo", "--images", images)
    assert demo.top1("Keras", 100) == demo.top1("TFLite", 100) < 20
    assert demo.code == 1
    assert "The results are not what they should be." in demo.err


def test_the_recipe_trains_on(tmp_path, monkeypatch, capsys):
    """`weights/train_cifar10.py`, with a smaller network and an epoch of a few images."""
    images = training_images.make_folder(tmp_path / "images" / "train", dict.fromkeys(LABELS, 4))
    shutil.copytree(images, tmp_path / "images" / "test")
    archive = shutil.make_archive(str(tmp_path / "cifar10"), "zip", tmp_path / "images")
    start = tmp_path / "start.safetensors"
    conversion.write_checkpoint(start, conversion.to_state_dict(training_images.make_model(10)))
    script = runpy.run_path(str(ROOT / "weights" / "train_cifar10.py"))
    recipe = script["RECIPE"].read_text()
    for name, value in {"epochs": 1, "batch_size": 8, "warmup_epochs": 0, "validation_split": 0.25}.items():
        recipe = re.sub(rf"^{name} = .*$", f"{name} = {value}", recipe, flags=re.MULTILINE)
    (tmp_path / "recipe.toml").write_text(recipe)
    monkeypatch.setitem(script["main"].__globals__, "RECIPE", tmp_path / "recipe.toml")
    monkeypatch.setattr("sys.argv", ["train_cifar10.py", archive, str(tmp_path / "out"), "--start", str(start)])
    script["main"]()
    assert re.search(r"safetensors: \d+\.\d\d% of 40 test images", capsys.readouterr().out)
    trained = conversion.read_checkpoint(tmp_path / "out" / f"{NAME}.safetensors")
    assert trained["stem.conv1.weight"].dtype == "float16"
    assert not np.array_equal(trained["head.weight"], conversion.read_checkpoint(start)["head.weight"])
