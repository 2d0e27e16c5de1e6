"""The names of classes from a folder of photographs to a phone's library, by the commands alone."""

import csv
import io
import json

import numpy as np
import pytest
import training_images
from PIL import Image
from typer.testing import CliRunner

from keras_efficientformer.cli import app

# No name that another way of sorting, splitting or escaping would leave as it is.
NAMES = ("a, b [bold]", "zèbre", "Ünter & Co", "10", "9")


def command(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    training_images.make_folder(folder / "photos", dict.fromkeys(NAMES, 4))
    training_images.make_model(classes=5).save(folder / "start.keras")
    command(
        *("finetune", folder / "photos", "--model", folder / "start.keras", "--output", folder / "run"),
        *("--epochs", 1, "--batch-size", 8),
    )
    return folder / "run"


def test_names_all_the_way(run, tmp_path):
    expected = sorted(NAMES)
    image = tmp_path / "image.png"
    Image.fromarray(training_images.pixels("red", 1, seed=9)[0]).save(image)
    command("convert", run / "best.keras", tmp_path / "m.safetensors")
    command("export", "tflite", tmp_path / "m.safetensors", tmp_path / "m.tflite")
    command("export", "coreml", run / "best.keras", tmp_path / "m.mlpackage")
    shown = {}
    for model in (run / "best.keras", *(tmp_path / name for name in ("m.safetensors", "m.tflite", "m.mlpackage"))):
        (answers,) = json.loads(command("predict", image, "--model", model, "--json")).values()
        assert [answer["label"] for answer in sorted(answers, key=lambda answer: answer["class"])] == expected
        assert json.loads(command("inspect", model, "--json"))["labels"] == expected
        shown[model] = {answer["label"]: answer["score"] for answer in answers}
        table = csv.DictReader(io.StringIO(command("predict", image, "--model", model, "--csv")))
        assert {row["label"] for row in table} == set(NAMES)
        evaluation = json.loads(command("evaluate", run.parent / "photos", "--model", model, "--json"))
        assert [row["label"] for row in evaluation["classes"]] == expected
    scores = np.array([[found[name] for name in expected] for found in shown.values()])
    np.testing.assert_allclose(scores - scores[0], 0, atol=5e-3)
    assert mediapipe_names(tmp_path / "m.tflite", image) == set(NAMES)


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
