"""The commands `finetune` and `evaluate`: what they print and with which exit code."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import training_images
import typer
from typer.testing import CliRunner

from keras_efficientformer import training
from keras_efficientformer.cli.evaluate import evaluate
from keras_efficientformer.cli.finetune import finetune
from keras_efficientformer.training import FineTuneConfig
from keras_efficientformer.training.config import EXPECTED

app = typer.Typer()
app.command()(finetune)
app.command()(evaluate)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    training_images.make_folder(folder / "images", dict.fromkeys(training_images.COLOURS, 5))
    training_images.make_model().save(folder / "model.keras")
    training_images.make_model(3, input_shape=(48, 64, 3)).save(folder / "teacher.keras")
    return folder


def command(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_finetune_and_evaluate(folder):
    options = ["--epochs", 1, "--batch-size", 4, "--freeze-epochs", 0, "--no-flip"]
    run = ["finetune", folder / "images", "--model", folder / "model.keras", "--output", folder / "run", *options]
    report = json.loads(command(*run, "--json").stdout)
    assert len(report["history"]) == 1
    config = json.loads((folder / "run" / "config.json").read_text())["config"]
    assert (config["epochs"], config["batch_size"], config["flip"], config["learning_rate"]) == (1, 4, False, 1e-3)
    assert "validation top-1" in command(*run, "--resume").stdout
    # The run's folder says what it was started on.
    assert "validation top-1" in command("finetune", "--resume", "--output", folder / "run").stdout
    # Not a terminal: no bars, but a line for each epoch.
    distilled = ["--teacher", folder / "teacher.keras", "--output", folder / "distilled"]  # of another size
    shown = command(*run[:4], *distilled, *options)
    assert (shown.stderr.count("val_accuracy"), shown.stdout.count("val_accuracy")) == (1, 0)

    evaluation = ["evaluate", folder / "images", "--model", folder / "run" / "best.keras"]
    found = json.loads(command(*evaluation, "--json").stdout)
    assert found["images"] == 15
    assert [row["label"] for row in found["classes"]] == sorted(training_images.COLOURS)
    shown = command(*evaluation).stdout
    assert "images per second" in shown
    assert "Worst classes: 3 of 3" in shown
    assert shown.index("Worst classes") < min(shown.index(label) for label in training_images.COLOURS)


def test_resume_knows_the_run_and_names_what_differs(folder, monkeypatch):
    run = ["finetune", folder / "images", "--model", folder / "model.keras", "--output", folder / "resumed"]
    run += ["--epochs", 1, "--batch-size", 4, "--teacher", folder / "teacher.keras", "--size", "48x64"]
    command(*run)
    saved = json.loads((folder / "resumed" / "config.json").read_text())["arguments"]
    assert saved == {
        "model": "../model.keras",
        "data": "../images",
        "validation": None,
        "masks": None,
        "palette": None,
        "labels": None,
        "teacher": "../teacher.keras",
    }
    monkeypatch.chdir(folder.parent)  # paths are the run's, not those of where the command is called
    resume = ["finetune", "--resume", "--output", folder / "resumed"]
    assert "validation top-1" in command(*resume).stdout
    assert "validation top-1" in command(*resume, "--epochs", 1, "--model", folder / "model.keras").stdout
    for options, words in (
        (["--epochs", 2], "epochs was 1, is 2"),
        (["--model", "l3"], "model was"),
        (["--teacher", folder / "model.keras"], "teacher was"),
        (["--validation", folder / "images"], "validation was None"),
        (["--size", "64"], "size was (48, 64), is 64"),
    ):
        assert words in str(command(*resume, *options, code=1).exception)
    (folder / "same.toml").write_text("[finetune]\nsize = [48, 64]\nepochs = 1\nbatch_size = 4\n")
    assert "validation top-1" in command(*resume, "--config", folder / "same.toml").stdout
    first = folder / "images" / "red" / "000.png"
    first.rename(first.with_name("zzz.png"))
    message = str(command(*resume, code=1).exception)
    assert "the images for training" in message
    first.with_name("zzz.png").rename(first)
    content = json.loads((folder / "resumed" / "config.json").read_text())
    (folder / "resumed" / "config.json").write_text(json.dumps(content | {"objects": ["teacher"]}))
    assert "objects that config.json cannot name: teacher. Go on from Python" in str(command(*resume, code=1).exception)
    assert "holds no run to go on with" in str(command("finetune", "--resume", "--output", folder, code=1).exception)
    command("finetune", "--output", folder / "new", code=2)
    (folder / "resumed" / "config.json").write_text("{}")
    assert "does not say what the run was started on" in str(command(*resume, code=1).exception)


def test_refusals(folder):
    result = command("finetune", folder / "nothing", "--model", folder / "model.keras", "--output", "run", code=1)
    assert isinstance(result.exception, FileNotFoundError)
    result = command("finetune", folder / "images", "--output", folder / "new", "--epochs", 0, code=1)
    assert "`epochs` should be an integer >= 1" in str(result.exception)
    command("finetune", folder / "images", code=2)
    command("finetune", folder / "images", "--output", folder / "new", "--precision", "int8", code=2)


def test_imports_no_framework():
    """`keras_efficientformer.training` is imported by the command line whatever it is about to do."""
    program = (
        "import keras, sys; before = set(sys.modules); import keras_efficientformer.training; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(new & {'matplotlib', 'tensorflow', 'jax', 'torch', 'sklearn', 'scipy', 'coremltools', 'tf_keras'})"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_every_setting_is_an_option_with_the_same_words_and_default():
    """`FineTuneConfig` is their one source."""
    result = CliRunner().invoke(app, ["finetune", "--help"], env={"COLUMNS": "400", "NO_COLOR": "1", "TERM": "dumb"})
    shown = re.sub(r"\s+", " ", result.output.replace("│", " "))
    descriptions = FineTuneConfig.descriptions()
    names = [field.name for field in dataclasses.fields(FineTuneConfig)]
    assert list(descriptions) == list(EXPECTED) == names
    for field in dataclasses.fields(FineTuneConfig):
        text = descriptions[field.name]
        assert f"--{field.name.replace('_', '-')}" in shown
        assert f"{text[0].upper()}{text[1:].rstrip('.')}. Default: {field.default}." in shown


def test_settings_reach_the_run(folder, monkeypatch):
    """As numbers, words, switches and sides; the file's stay where an option is left out."""
    recipe = folder / "recipe.toml"
    recipe.write_text("[finetune]\nepochs = 7\nlearning_rate = 0.5\nflip = false\n")
    seen = []

    def stand_in(*arguments, config, **others):
        seen.append(config)
        raise ValueError("far enough")

    monkeypatch.setattr(training, "finetune", stand_in)
    options = ["--config", recipe, "--lr", 0.25, "--size", "48x64", "--class-weight", "balanced", "--tensorboard"]
    options += ["--no-keep-head", "--mixup", 0.5, "--patience", 3]
    arguments = [str(option) for option in ["finetune", folder / "images", "--output", folder / "none", *options]]
    result = CliRunner().invoke(app, arguments)
    assert str(result.exception) == "far enough"
    expected = {"epochs": 7, "learning_rate": 0.25, "flip": False, "size": (48, 64), "class_weight": "balanced"}
    expected |= {"tensorboard": True, "keep_head": False, "mixup": 0.5, "patience": 3}
    assert seen == [FineTuneConfig(**expected)]
