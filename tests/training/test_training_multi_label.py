"""Fine-tuning on images of several labels: what is learnt, scored, saved, exported and refused."""

import dataclasses
import json
import re

import keras
import numpy as np
import pytest
import sklearn.metrics
import training_images
import typer
from PIL import Image
from typer.testing import CliRunner

from keras_efficientformer.classifiers import open_classifier
from keras_efficientformer.cli.evaluate import evaluate as evaluate_command
from keras_efficientformer.cli.finetune import finetune as finetune_command
from keras_efficientformer.cli.photographs.predict import predict as predict_command
from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.training import FineTuneConfig, evaluate, finetune
from keras_efficientformer.training.plots import plot_average_precision
from keras_efficientformer.training.scores import NotFiniteError, count_multi_label
from keras_efficientformer.training.student import Network, compile_student

COLOURS = sorted(training_images.COLOURS)
CONFIG = FineTuneConfig(epochs=6, batch_size=8, learning_rate=1e-2, min_crop=1, flip=False, multi_label=True)

app = typer.Typer()
for function in (evaluate_command, finetune_command, predict_command):
    app.command()(function)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_images.make_multi_label_folder(tmp_path_factory.mktemp("images"), 10)


@pytest.fixture(scope="module")
def model():
    return training_images.make_model()


@pytest.fixture(scope="module")
def finished(folder, model, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "run"
    return output, finetune(model, folder, output, config=CONFIG, verbose=False)


@pytest.fixture(scope="module")
def expected(finished, folder):
    """(raw images, 0 and 1, scores of the best model) of all images, by code of this test's own."""
    files = sorted(folder.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]).astype("float32")
    rows = np.array([[name in file.parent.name for name in COLOURS] for file in files])
    return pixels, rows, open_classifier(finished[0] / "best.keras").predict(pixels)


def test_learns(finished):
    _, report = finished
    assert report.labels == tuple(COLOURS)
    assert report.scores.mean_average_precision >= 0.95
    precisions = [row["val_map"] for row in report.history]
    assert report.best_epoch == 1 + int(np.argmax(precisions))
    assert report.scores.mean_average_precision == max(precisions)
    assert report.history[-1]["loss"] < report.history[0]["loss"]
    assert report.history[-1]["accuracy"] > 0.8


def test_files(finished):
    output, report = finished
    written = json.loads((output / "report.json").read_text())
    assert written["scores"]["mean_average_precision"] == report.scores.mean_average_precision
    assert [row["label"] for row in written["scores"]["classes"]] == COLOURS
    assert [row["images"] for row in written["scores"]["classes"]] == [8, 8, 8]
    assert set(written["history"][0]) > {"val_map", "val_accuracy", "val_loss"}
    for name in ("curves.png", "average_precision.png"):
        assert min(Image.open(output / name).size) > 300
    assert not (output / "confusion.png").exists()
    page = (output / "report.html").read_text()
    assert f"{report.scores.mean_average_precision:.2%} mean average precision on the validation images" in page
    assert "Average precision" in page
    assert "Confusion matrix" not in page
    worst = page[page.index("Worst images") :]
    assert worst.count("data:image/jpeg") == 15
    assert "true: none<br>" in worst  # an image without a label
    assert re.search(r"true: blue [\d.]+%, green [\d.]+%", worst)  # and of several
    saved = keras.saving.load_model(output / "best.keras")
    assert saved.get_layer("predictions").activation is keras.activations.sigmoid
    assert labels_of(saved) == tuple(COLOURS)


def test_scores_are_scikit_learns(finished, folder, expected):
    """The report's, and those of evaluation, which are of all images."""
    _, rows, scores = expected
    found = evaluate(finished[0] / "best.keras", folder, multi_label=True, crop_fraction=1)
    assert found.classes_from == "by the model's labels"
    mean = sklearn.metrics.average_precision_score(rows, scores, average="macro")
    np.testing.assert_allclose(found.scores.mean_average_precision, mean, rtol=1e-5)
    assert found.to_dict()["mean_average_precision"] == found.scores.mean_average_precision


def test_count():
    """Ties, a label that no image has, and one that is never said."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2, (50, 6))
    answers = 0.05 + 0.8 * np.round(rng.random((50, 6)), 1) + 0.05 * rows
    rows[:, 1], answers[:, 2] = 0, 0.25
    found = count_multi_label(answers, rows)
    clean = [0, 2, 3, 4, 5]
    precisions = sklearn.metrics.average_precision_score(rows[:, clean], answers[:, clean], average=None)
    np.testing.assert_allclose(found.average_precision[clean], precisions, rtol=1e-12)
    np.testing.assert_allclose(found.mean_average_precision, precisions.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.loss, sklearn.metrics.log_loss(rows.ravel(), answers.ravel()), rtol=1e-5)
    classes = found.to_dict("abcdef")["classes"]
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        rows, answers >= 0.5, zero_division=np.nan
    )
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        shown = [np.nan if row[name] is None else row[name] for row in classes]
        np.testing.assert_allclose(shown, values, rtol=1e-12)
    assert classes[1]["average_precision"] is classes[1]["recall"] is classes[2]["precision"] is None
    assert [row["images"] for row in classes] == rows.sum(0).tolist()
    json.dumps(found.to_dict("abcdef"), allow_nan=False)


def test_count_of_something_else():
    answers = np.full((2, 2), 0.5)
    for rows in (np.zeros((2, 2)), np.array([[0.5, 1], [0, 1]])):
        with pytest.raises(ValueError, match="labels of 0 and 1, some of them 1"):
            count_multi_label(answers, rows)
    with pytest.raises(NotFiniteError):
        count_multi_label(np.full((2, 2), np.nan), np.eye(2))


def test_loss_and_accuracy():
    """Binary cross-entropy of logits, with smoothed labels; mixed labels count as the nearer one."""
    network = Network.of(training_images.make_model(head="single"), CONFIG)
    student = network.build(tuple(COLOURS), head="single")
    config = FineTuneConfig(multi_label=True, label_smoothing=0.2)
    compile_student(student, config, warmup=0, steps=None, distilled=False)
    images = np.random.default_rng(0).standard_normal((4, 40, 40, 3)).astype("float32")
    labels = np.array([[1, 1, 0], [0, 0, 0], [0.7, 0.3, 0], [0, 1, 1]], "float32")
    logits = student.predict(images, verbose=0).astype("float64")
    found = student.test_on_batch(images, labels, return_dict=True)
    smooth = 0.8 * labels + 0.1
    losses = np.logaddexp(0, logits) - smooth * logits
    np.testing.assert_allclose(found["loss"], losses.mean(), rtol=1e-4)
    np.testing.assert_allclose(found["label_accuracy"], ((logits > 0) == (labels > 0.5)).mean(), rtol=1e-5)


# What is made of the model.


def test_tflite(finished, folder, expected, tmp_path):
    pixels, _, scores = expected
    model = keras.saving.load_model(finished[0] / "best.keras")
    export_tflite(model, tmp_path / "model.tflite")
    runtime = LiteRTModel(tmp_path / "model.tflite")
    assert [output.name for output in runtime.outputs] == ["scores"]
    np.testing.assert_allclose(runtime.predict(pixels)["scores"], scores, atol=1e-4)
    classifier = open_classifier(tmp_path / "model.tflite")
    assert (classifier.independent, classifier.labels) == (True, tuple(COLOURS))
    found = evaluate(tmp_path / "model.tflite", folder, multi_label=True, crop_fraction=1)
    kept = evaluate(model, folder, multi_label=True, crop_fraction=1)
    np.testing.assert_allclose(found.scores.average_precision, kept.scores.average_precision, atol=0.01)


def test_core_ml(finished, expected, tmp_path):
    """No classifier, which would answer with one class."""
    pixels, _, scores = expected
    export_coreml(keras.saving.load_model(finished[0] / "best.keras"), tmp_path / "m.mlpackage", precision="float32")
    package = CoreMLModel(tmp_path / "m.mlpackage")
    assert [output.name for output in package.outputs] == ["scores"]
    np.testing.assert_allclose(package.predict(pixels[:8])["scores"], scores[:8], atol=1e-4)
    classifier = open_classifier(tmp_path / "m.mlpackage")
    assert (classifier.independent, classifier.labels) == (True, tuple(COLOURS))


def command(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_predict(finished, folder, expected):
    """The scores as they are: they do not add up to 1."""
    _, _, scores = expected
    files = sorted(folder.rglob("*.png"))
    shown = command("predict", files[40], "--model", finished[0] / "best.keras", "--crop", 1, "--json").stdout
    ((_, rows),) = json.loads(shown).items()
    found = {row["label"]: row["score"] for row in rows}
    np.testing.assert_allclose([found[name] for name in COLOURS], scores[40], atol=1e-5)
    assert abs(sum(found.values()) - 1) > 0.1


def write_table(path, header, files, cells):
    """A CSV file with a line for each file: its path and what `cells` gives for the name of its folder."""
    path.write_text("\n".join([header, *(f"{file},{cells(file.parent.name)}" for file in files)]))
    return path


def test_commands(folder, model, tmp_path):
    """Trained on a CSV file, scored on it and on the folder; each label is in the table."""
    model.save(tmp_path / "model.keras")
    cells = {"none": ""}
    table = write_table(
        tmp_path / "all.csv",
        "file,labels",
        sorted(folder.rglob("*.png")),
        lambda name: cells.get(name, name.replace("+", ";")),
    )
    options = ["--model", tmp_path / "model.keras", "--output", tmp_path / "run", "--multi-label", "--epochs", 1]
    shown = command("finetune", table, *options, "--batch-size", 8).stdout
    for words in ("validation mean average precision", "F1 ", "average precision "):
        assert words in shown
    assert "average_precision.png" in re.sub(r"[\s│]", "", shown)  # the paths are folded
    best = tmp_path / "run" / "best.keras"
    assert "mean average precision" in command("evaluate", table, "--model", best, "--multi-label").stdout
    found = json.loads(command("evaluate", folder, "--model", best, "--multi-label", "--json").stdout)
    assert (found["images"], found["threshold"]) == (80, 0.5)


# Going on.


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt


def test_resume(model, tmp_path):
    """Mixed labels: a run that was stopped in the middle of an epoch ends with the same bits."""
    folder = training_images.make_multi_label_folder(tmp_path / "images", 4)
    config = FineTuneConfig(
        epochs=1, freeze_epochs=0, batch_size=6, multi_label=True, mixup=0.3, cutmix=0.5, save_every=2, patience=3
    )
    whole = finetune(model, folder, tmp_path / "whole", config=config, verbose=False)
    with pytest.raises(KeyboardInterrupt):
        finetune(model, folder, tmp_path / "stopped", config=config, verbose=False, callbacks=[Stop()])
    resumed = finetune(model, folder, tmp_path / "stopped", config=config, verbose=False, resume=True)
    rows = [[{**row, "seconds": 0} for row in report.history] for report in (whole, resumed)]
    assert rows[0] == rows[1]
    weights = [keras.saving.load_model(report.model).get_weights() for report in (whole, resumed)]
    assert all((one == other).all() for one, other in zip(*weights, strict=True))
    single = dataclasses.replace(config, multi_label=False)
    with pytest.raises(ValueError, match="multi_label was True, is False"):
        finetune(model, folder, tmp_path / "stopped", config=single, verbose=False, resume=True)


def test_kept_head(finished, folder, tmp_path):
    """A model of several labels is trained on from where it is, whatever the order of a table's columns."""
    files = sorted(folder.rglob("*.png"))
    order = COLOURS[::-1]
    table = write_table(
        tmp_path / "columns.csv",
        ",".join(["file", *order]),
        files,
        lambda folder_name: ",".join(str(int(name in folder_name)) for name in order),
    )
    config = dataclasses.replace(CONFIG, epochs=1, learning_rate=1e-9, final_learning_rate=0, keep_head=True)
    report = finetune(finished[1].model, table, tmp_path / "run", config=config, verbose=False)
    assert report.labels == tuple(COLOURS)
    assert report.scores.mean_average_precision >= 0.9
    write_table(table, "file,labels", files, lambda name: "cat;red" if "red" in name else "blue")
    with pytest.raises(ValueError, match="does not know: cat"):
        finetune(finished[1].model, table, tmp_path / "no", config=config, verbose=False)


def test_one_label(folder, model, tmp_path):
    """Yes or no."""
    files = sorted(folder.rglob("*.png"))
    table = write_table(tmp_path / "red.csv", "file,red", files, lambda name: int("red" in name))
    config = FineTuneConfig(epochs=1, batch_size=8, multi_label=True)
    report = finetune(model, table, tmp_path / "run", config=config, verbose=False)
    assert report.labels == ("red",)
    assert keras.saving.load_model(report.model).output_shape == (None, 1)
    assert 0 < report.scores.mean_average_precision <= 1


RAW = np.random.default_rng(0).uniform(0, 255, (8, 40, 40, 3))
ROWS = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 1, 1]] * 2)


def test_loaders(model, tmp_path):
    """A label that no image to validate on has is left out; without any label there is nothing to validate."""
    config = FineTuneConfig(epochs=1, batch_size=8, multi_label=True)
    held_out = [(RAW, ROWS * [1, 1, 0])]
    arguments = {"labels": COLOURS, "config": config, "verbose": False}
    report = finetune(model, [(RAW, ROWS)], tmp_path / "run", validation=held_out, **arguments)
    classes = report.to_dict()["scores"]["classes"]
    assert [row["average_precision"] is None for row in classes] == [False, False, True]
    json.dumps(report.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="labels of 0 and 1, some of them 1"):
        finetune(model, [(RAW, ROWS)], tmp_path / "none", validation=[(RAW, 0 * ROWS)], **arguments)
    report = finetune(model, [(RAW, ROWS)], tmp_path / "alone", **arguments)
    assert report.scores is None


# What is refused.


def test_teacher(folder, model, tmp_path):
    with pytest.raises(ValueError, match="one class for each image, which may have several"):
        finetune(model, folder, tmp_path / "run", teacher=model, config=CONFIG)
    assert not (tmp_path / "run").exists()


def test_class_weight():
    with pytest.raises(ValueError, match="`class_weight` should be 'none' with multi_label"):
        FineTuneConfig(multi_label=True, class_weight="balanced")


def test_evaluation_of_softmax(folder, model):
    with pytest.raises(ValueError, match="ends in a sigmoid is needed"):
        evaluate(model, folder, multi_label=True)


def test_evaluation_of_one_label_each(finished, folder):
    """Without multi_label the folders are classes that the model does not know."""
    with pytest.raises(ValueError, match=r"does not know: blue\+green"):
        evaluate(finished[1].model, folder)


def test_bars_of_any_names(tmp_path):
    plot_average_precision(np.array([0.5, np.nan]), ["a$_$b", "pay $^ now $"], tmp_path / "bars.png")
    assert min(Image.open(tmp_path / "bars.png").size) > 200
