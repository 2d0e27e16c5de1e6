"""README's five commands, from images to a card, projects for phones and a page: one set of names, the same scores."""

import csv
import glob
import io
import json
import re
import shlex
import sys

import numpy as np
import pytest
import training_images
from npm import fetch_litert_js
from PIL import Image
from project import ROOT
from typer.testing import CliRunner

from keras_efficientformer.cli import app

sys.path.append(str(ROOT / "benchmarks"))
from digits import write_digits

# No name that another way of sorting, splitting or escaping would leave as it is, in the place of some digits.
NAMES = {"1": "a, b [bold]", "2": "zèbre", "3": "Ünter & Co", "4": "10", "5": "$5 'x' \\n \"y\""}
CHECKPOINT = "weights/efficientformer_l1_cifar10.safetensors"


def command(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def five_commands():
    """The block of README that begins with the digits, as words."""
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```sh\n(efficientformer finetune digits .+?)```", text, re.DOTALL)
    lines = [shlex.split(line)[1:] for line in block.splitlines()]
    assert [line[:2] for line in lines[1:]] == [
        ["push", "digits_run"],
        ["app", "android"],
        ["app", "ios"],
        ["app", "web"],
    ]
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the first four were run: of a tiny network, and with a card that is written into a folder."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder / "digits", 100)
    for digit, name in NAMES.items():
        (folder / "digits" / digit).rename(folder / "digits" / name)
    training_images.make_model(10).save(folder / "start.keras")
    finetune, push, *phones, _ = five_commands()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command(*("start.keras" if word == CHECKPOINT else word for word in finetune), "--epochs", 1, "--batch-size", 8)
        command(*push, "--dry-run", "digits_card")
        for line in phones:
            command(*line)
    return folder


def test_names_and_scores_all_the_way(folder, tmp_path):
    expected = sorted({*"06789", *NAMES.values()})
    models = {
        "run": folder / "digits_run" / "best.keras",
        "card": folder / "digits_card" / "model.safetensors",
        "android": next(folder.glob("digits_android/app/src/main/assets/*.tflite")),
        "ios": next(folder.glob("digits_ios/Sample/*.mlpackage")),
    }
    image = tmp_path / "image.png"
    Image.open(folder / "digits" / "0" / "0000.png").convert("RGB").save(image)  # MediaPipe takes no grey ones
    shown = {}
    for kind, model in models.items():
        (answers,) = json.loads(command("predict", image, "--model", model, "--top", 10, "--json")).values()
        assert [answer["label"] for answer in sorted(answers, key=lambda answer: answer["class"])] == expected
        assert json.loads(command("inspect", model, "--json"))["labels"] == expected
        shown[kind] = {answer["label"]: answer["score"] for answer in answers}
        table = csv.DictReader(io.StringIO(command("predict", image, "--model", model, "--top", 10, "--csv")))
        assert {row["label"] for row in table} == set(expected)
        evaluation = json.loads(command("evaluate", folder / "digits", "--model", model, "--json"))
        assert [row["label"] for row in evaluation["classes"]] == expected
    scores = np.array([[found[name] for name in expected] for found in shown.values()])
    np.testing.assert_allclose(scores - scores[0], 0, atol=5e-3)
    assert (folder / "digits_android/app/src/main/assets/labels.txt").read_text().split("\n") == [*expected, ""]
    assert "image-classification" in (folder / "digits_card" / "README.md").read_text()
    assert mediapipe_names(models["android"], image) == set(expected)


def test_page_has_the_same_file_and_names(folder, tmp_path, monkeypatch):
    modules = fetch_litert_js(tmp_path)
    monkeypatch.chdir(folder)
    *words, files, page = five_commands()[-1]
    command(*words, *glob.glob(files), page, "--node-modules", modules)
    (file,) = folder.glob("digits_page/*.tflite")
    assert file.read_bytes() == next(folder.glob("digits_android/**/*.tflite")).read_bytes()
    (facts,) = json.loads((folder / "digits_page" / "models.json").read_text())["models"]
    assert facts["labels"] == sorted({*"06789", *NAMES.values()})


def mediapipe_names(model, image):
    mediapipe = pytest.importorskip("mediapipe", reason="needs mediapipe")
    try:
        from mediapipe.tasks.python import BaseOptions, vision
    except OSError as error:  # it links libraries of OpenGL
        pytest.skip(f"MediaPipe does not start here: {error}")
    options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=str(model)))
    with vision.ImageClassifier.create_from_options(options) as classifier:
        found = classifier.classify(mediapipe.Image.create_from_file(str(image)))
    return {category.category_name for category in found.classifications[0].categories}
