"""Fine-tuning on masks: what is learnt, scored, saved, gone on with, exported, shown and refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import keras
import masked_images
import numpy as np
import pytest
import training_images
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from keras_efficientformer.classifiers import KerasClassifier, open_classifier
from keras_efficientformer.cli.evaluate import evaluate as evaluate_command
from keras_efficientformer.cli.finetune import finetune as finetune_command
from keras_efficientformer.cli.photographs.predict import _print_csv as print_csv
from keras_efficientformer.cli.photographs.predict import predict as predict_command
from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.opening import open_model
from keras_efficientformer.segmentation import SemanticFPN, to_state_dict
from keras_efficientformer.segmentation.decoder import decoder_arguments
from keras_efficientformer.sharing import write_repository
from keras_efficientformer.training import FineTuneConfig, evaluate, finetune
from keras_efficientformer.training.config import read_run
from keras_efficientformer.training.scores import MaskCounter, NotFiniteError
from keras_efficientformer.training.student import (
    PixelCrossentropy,
    SegmentationNetwork,
    pixel_accuracy,
    pixel_weights,
)

SIDES = (64, 64)
CONFIG = FineTuneConfig(
    epochs=4,
    freeze_epochs=0,
    batch_size=6,
    learning_rate=1e-2,
    warmup_epochs=0.5,
    save_every=1,
    ema=0.5,
    drop_path=0.1,
    color_jitter=0.2,
    class_weight="balanced",
)

app = typer.Typer()
for function in (evaluate_command, finetune_command, predict_command):
    app.command()(function)


def backbone():
    return training_images.make_model(input_shape=(*SIDES, 3))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return masked_images.make_masked_folders(tmp_path_factory.mktemp("data"), {"train": 24, "val": 6})


@pytest.fixture(scope="module")
def model():
    """Its masks have a quarter of the images' sides."""
    return SemanticFPN(backbone(), 5, 16, 16, "group", output_stride=4, dropout=0.05)


def run(folders, model, output, **options):
    images, masks = folders
    return finetune(model, images, output, masks=masks, labels=masked_images.NAMES, config=CONFIG, verbose=0, **options)


class Copy(keras.callbacks.Callback):
    """Copies the run's folder as it is in the middle of the third epoch: what a killed run would leave."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (2, 2):
            shutil.copytree(self.output, self.output.with_name("stopped"))


@pytest.fixture(scope="module")
def finished(folders, model, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "run"
    return output, run(folders, model, output, callbacks=[Copy(output)])


@pytest.fixture(scope="module")
def best(finished):
    return open_model(finished[0] / "best.keras")


@pytest.fixture(scope="module")
def expected(best, folders):
    """(files, masks of the model's size, answers, masks of the best model) of the validation images, by own code."""
    files = sorted((folders[0] / "val").iterdir())
    pixels = np.stack([Image.open(file).resize(SIDES[::-1], Image.Resampling.BICUBIC) for file in files])
    masks = [Image.open(folders[1] / "val" / file.name).resize(SIDES[::-1], Image.Resampling.NEAREST) for file in files]
    answers = KerasClassifier(best).predict(pixels.astype("float32"))
    enlarged = keras.ops.convert_to_numpy(keras.ops.image.resize(answers, SIDES, data_format="channels_last"))
    return files, np.stack(masks), answers, enlarged.argmax(-1)


def iou_of(masks, found):
    judged = masks != 255
    return [np.sum((masks == n) & (found == n)) / np.sum(judged & ((masks == n) | (found == n))) for n in range(3)]


def test_learns(finished, expected):
    """Far beyond background alone, whose mean IoU is under 0.3."""
    _, report = finished
    assert report.labels == masked_images.NAMES
    _, masks, _, found = expected
    ious = iou_of(masks, found)
    np.testing.assert_allclose(report.scores.iou, ious, atol=1e-6)
    assert report.scores.mean_iou == pytest.approx(np.mean(ious), abs=1e-6)
    print(f"mean IoU {report.scores.mean_iou:.3f}")
    assert report.scores.mean_iou > 0.45
    measured = [row["val_miou"] for row in report.history]
    assert report.best_epoch == 1 + int(np.argmax(measured))
    assert report.scores.mean_iou == pytest.approx(max(measured), abs=1e-6)
    assert report.history[-1]["loss"] < report.history[0]["loss"]
    assert report.history[-1]["accuracy"] > 0.7


def test_files(finished, best, model):
    output, report = finished
    written = json.loads((output / "report.json").read_text())
    assert written["scores"]["mean_iou"] == report.scores.mean_iou
    assert [row["label"] for row in written["scores"]["classes"]] == list(masked_images.NAMES)
    page = (output / "report.html").read_text()
    assert f"{report.scores.mean_iou:.2%} mean IoU" in page
    assert "Wrong pixels are red" in page
    assert "Most confident mistakes" not in page
    assert (output / "confusion.png").exists()
    assert labels_of(best) == masked_images.NAMES
    assert best.outputs[0].shape[1:] == (16, 16, 3)
    assert decoder_arguments(best) == decoder_arguments(model)


def test_goes_on_with_its_classes(best):
    """At another size, with the layers and the weights that it has learnt; of other classes without the last."""
    config = dataclasses.replace(CONFIG, keep_head=True, size=(64, 96))
    network = SegmentationNetwork.of(best, config)
    assert (network.classes, network.labels) == (3, masked_images.NAMES)
    wider = network.build(masked_images.NAMES, head="single", activation="softmax")
    assert wider.input.shape[1:] == (64, 96, 3)
    assert wider.output.shape[1:] == (16, 24, 3)
    images = np.random.default_rng(0).standard_normal((1, 64, 96, 3)).astype("float32")
    # Attention sees the new columns, so that the answers to the same pixels are alike and not equal.
    found = keras.ops.convert_to_numpy(wider(images))[:, :, :16].argmax(-1)
    assert np.mean(found == keras.ops.convert_to_numpy(best(images[:, :, :64])).argmax(-1)) > 0.6
    same = SegmentationNetwork.of(best, dataclasses.replace(config, size=None)).build(masked_images.NAMES, "single")
    logits, probabilities = (keras.ops.convert_to_numpy(network(images[:, :, :64])) for network in (same, best))
    assert logits.shape == (1, 64, 64, 3)  # what is trained judges every pixel
    assert np.mean(logits[:, 2::4, 2::4].argmax(-1) == probabilities.argmax(-1)) > 0.9
    others = SegmentationNetwork.of(best, CONFIG)
    assert (others.classes, "logits" in others.decoder, "P2_lateral" in others.decoder) == (None, False, True)


def contents(output):
    """Everything a run leaves that time has no part in."""
    with np.load(output / "checkpoint.npz") as file:
        found = {name: file[name] for name in file.files if name != "state"}
    best = keras.saving.load_model(output / "best.keras", compile=False).get_weights()
    history = json.loads((output / "history.json").read_text())
    rows = [[value for name, value in row.items() if name != "seconds"] for row in history]
    return {**found, **{f"best{index}": weight for index, weight in enumerate(best)}, "history": np.array(rows)}


def test_stopped_and_gone_on_with(finished, folders, model):
    """Crops, colours, dropout, drop path, weights of classes, moving average: nothing is lost or drawn twice."""
    output, _ = finished
    stopped = output.with_name("stopped")
    assert len(json.loads((stopped / "history.json").read_text())) == 2
    run(folders, model, stopped, resume=True)
    expected, found = contents(output), contents(stopped)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not np.array_equal(found[name], expected[name])] == []


def test_loss_and_accuracy():
    """As written down in NumPy: smoothed, weighted, without the pixels that have no class."""
    rng = np.random.default_rng(0)
    masks = rng.integers(-1, 3, (2, 4, 5)).astype("int32")
    logits = rng.standard_normal((2, 4, 5, 3)).astype("float32")
    of_classes = np.array([0.5, 1, 3], "float32")
    weights = pixel_weights(masks, of_classes)
    judged = masks >= 0
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    smooth = 0.9 * np.eye(3)[np.maximum(masks, 0)] + 0.1 / 3
    losses = -(smooth * logs).sum(-1)
    wanted = np.sum((losses * of_classes[masks])[judged]) / of_classes[masks][judged].sum()
    found = PixelCrossentropy(0.1)(masks, logits, weights)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found), wanted, rtol=1e-5)
    nothing = np.full_like(masks, -1)
    assert float(PixelCrossentropy(0.1)(nothing, logits, pixel_weights(nothing, None))) == 0
    right = (logits.argmax(-1) == masks) & judged
    shares = keras.ops.convert_to_numpy(pixel_accuracy(keras.ops.convert_to_tensor(masks), logits))
    np.testing.assert_allclose(shares, right.sum((1, 2)) / judged.sum((1, 2)), rtol=1e-6)


def test_counts_are_those_of_keras():
    rng = np.random.default_rng(0)
    masks = rng.integers(-1, 4, (3, 8, 8)).astype("int32")
    answers = rng.dirichlet(np.ones(6), (3, 8, 8)).astype("float32")
    answers[..., 5] = 0  # of no pixel, and never answered
    metric = keras.metrics.MeanIoU(6, ignore_class=-1, sparse_y_pred=False)
    counter = MaskCounter(6, probabilities=True)
    for batch in (slice(0, 2), slice(2, 3)):
        counter.add(masks[batch], answers[batch])
        metric.update_state(masks[batch], answers[batch])
    scores = counter.scores()
    assert scores.mean_iou == pytest.approx(float(metric.result()), rel=1e-6)
    judged = masks >= 0
    own = np.take_along_axis(answers, np.maximum(masks, 0)[..., None], -1)[..., 0][judged]
    assert scores.loss == pytest.approx(-np.log(own).mean(), rel=1e-5)
    assert scores.accuracy == (answers.argmax(-1) == masks)[judged].mean()
    shown = scores.to_dict("abcdef")
    assert shown["classes"][5] == {"label": "f", "pixels": 0, "iou": None}
    assert shown["classes"][4]["iou"] == 0
    json.dumps(shown, allow_nan=False)


def test_counts_of_something_else():
    counter = MaskCounter(2, probabilities=True)
    with pytest.raises(NotFiniteError):
        counter.add(np.zeros((1, 2, 2), "int32"), np.full((1, 2, 2, 2), np.nan, "float32"))
    counter.add(np.full((1, 2, 2), -1, "int32"), np.zeros((1, 2, 2, 2), "float32"))
    with pytest.raises(ValueError, match="have no pixel of any class"):
        counter.scores()


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"multi_label": True}, {}, "Masks do not go with multi_label"),
        ({"mixup": 0.2, "cutmix": 1.0}, {}, r"mixup \(it mixes labels of whole images\), cutmix"),
        ({"rand_augment": 0.2}, {}, "rand_augment .*color_jitter changes colours"),
        ({}, {"teacher": len}, "a teacher"),
        ({}, {"validation": "elsewhere"}, "`validation` .put train and val into"),
        ({}, {"data": [1, 2]}, "a loader"),
        ({}, {"labels": ["a", "b", "c"], "palette": "palette.txt"}, "labels beside a palette"),
        ({"keep_head": True}, {"model": None}, "needs a model that gives masks"),
        ({"keep_head": True}, {}, "the model does not know their names"),
        ({}, {"labels": ["a", "b"]}, r"has class 2 at row \d+, column \d+, and there are 2 classes"),
        ({"size": 80}, {}, "a pyramid needs sides that are multiples of 32"),
        ({}, {"masks": None}, "gives masks: pass `masks`"),
        ({}, {"masks": None, "palette": "palette.txt"}, "A palette is of masks"),
    ],
    ids=str,
)
def test_refused(folders, model, tmp_path, settings, arguments, message):
    given = {"model": model, "data": folders[0], "masks": folders[1], **arguments}
    given["model"] = given["model"] or backbone()
    config = dataclasses.replace(CONFIG, class_weight="none", **settings)
    with pytest.raises(ValueError, match=message):
        finetune(given.pop("model"), given.pop("data"), tmp_path / "run", config=config, verbose=0, **given)
    assert not (tmp_path / "run").exists()


# What is made of the model.


def command(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_evaluation(finished, folders, expected):
    found = evaluate(finished[0] / "best.keras", folders[0] / "val", masks=folders[1] / "val", batch_size=4).to_dict()
    np.testing.assert_allclose([row["iou"] for row in found["classes"]], iou_of(expected[1], expected[3]), atol=1e-6)
    assert (found["images"], found["classes_from"]) == (6, "by the numbers in the masks")


def test_exported_files(finished, best, folders, expected, tmp_path):
    """Files answer as the Keras model does, on the grid of the masks that they give."""
    export_tflite(best, tmp_path / "m.tflite")
    export_coreml(best, tmp_path / "m.mlpackage", precision="float32")
    export_coreml(best, tmp_path / "c.mlpackage", mask_output="classes", precision="float32")
    ious = iou_of(expected[1], expected[3])
    for name, tolerance in (("m.tflite", 1e-3), ("m.mlpackage", 1e-3), ("c.mlpackage", 0.1)):
        report = evaluate(tmp_path / name, folders[0] / "val", masks=folders[1] / "val")
        assert report.labels == masked_images.NAMES
        np.testing.assert_allclose(report.scores.iou, ious, atol=tolerance)
    classifier = open_classifier(tmp_path / "c.mlpackage")
    pixels = np.asarray(
        [np.asarray(Image.open(expected[0][0]).resize(SIDES[::-1], Image.Resampling.BICUBIC))], "float32"
    )
    assert np.mean(classifier.predict(pixels).argmax(-1) == expected[2][:1].argmax(-1)) > 0.99
    check_repository(finished, best, tmp_path)


def check_repository(finished, best, folder):
    """What is published of the run: both kinds of exports are found to be the model's, and the weights come back."""
    output, report = finished
    exports = [folder / "m.tflite", folder / "c.mlpackage"]
    written = write_repository(output, "anna/masks", folder / "repository", exports=exports)
    assert {"model.safetensors", "model.keras", "labels.txt", "curves.png", "README.md"} < written.files.keys()
    assert "config.json" not in written.files
    again = open_model(folder / "repository" / "model.safetensors")
    assert (again.output_shape, labels_of(again)) == (best.output_shape, masked_images.NAMES)
    for name, tensor in to_state_dict(best).items():
        np.testing.assert_array_equal(to_state_dict(again)[name], tensor)
    _, metadata, text = (folder / "repository" / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(metadata)
    assert facts["pipeline_tag"] == "image-segmentation"
    (result,) = facts["model-index"][0]["results"]
    assert result["task"]["type"] == "image-segmentation"
    assert result["metrics"][0] == {"type": "mean_iou", "name": "mean IoU", "value": report.scores.mean_iou}
    assert "from keras_efficientformer.segmentation import from_checkpoint" in text
    assert f"| mean IoU | {100 * report.scores.mean_iou:.2f}% |" in text
    assert "in the order of the outputs: background, disc, square." in text
    worst, name = min(zip(report.scores.iou, masked_images.NAMES, strict=True))
    first_row = text.partition("| worst classes | IoU | pixels |")[2].split("\n")[2]
    assert first_row.startswith(f"| {name} | {worst:.1%} |")


def test_evaluation_of_something_else(finished, best, folders, tmp_path):
    images, masks = folders[0] / "val", folders[1] / "val"
    with pytest.raises(ValueError, match=r"gives masks: pass `masks` \(--masks\)"):
        evaluate(best, images)
    with pytest.raises(ValueError, match="gives scores and no masks"):
        evaluate(backbone(), images, masks=masks)
    with pytest.raises(ValueError, match=r"masks of whole images: leave `crop_fraction` \(--crop\) out"):
        evaluate(best, images, masks=masks, crop_fraction=0.9)
    palette = tmp_path / "palette.txt"
    for text, message in (
        ("a #000000\nb #111111\n", "has 2 classes, and .* 3"),
        (
            "square #283cc8\ndisc #c83232\nbackground #000000\n",
            "names other classes than .*, or in another order: square",
        ),
    ):
        palette.write_text(text)
        with pytest.raises(ValueError, match=message):
            evaluate(best, images, masks=masks, palette=palette)
    with pytest.raises(ValueError, match="gives masks of images of 64x64 pixels and no others"):
        evaluate(finished[0] / "best.keras", images, masks=masks, input_shape=(96, 96))


def test_predict(finished, expected, tmp_path, capsys):
    """Shares of pixels, and copies with the masks drawn over them."""
    files, _, answers, _ = expected
    options = ["--model", finished[0] / "best.keras", "--save", tmp_path / "copies"]
    shown = json.loads(command("predict", *files, *options, "--json").stdout)
    for rows, answer in zip(shown.values(), answers.argmax(-1), strict=True):
        shares = {row["class"]: row["share"] for row in rows}
        assert shares == pytest.approx({n: np.mean(answer == n) for n in range(3) if (answer == n).any()})
        assert [row["label"] for row in rows] == [masked_images.NAMES[row["class"]] for row in rows]
    copies = sorted((tmp_path / "copies").iterdir())
    assert [path.stem for path in copies] == [file.stem for file in files]
    original, copy = (np.asarray(Image.open(path), "float32") for path in (files[0], copies[0]))
    height, width = original.shape[:2]
    assert copy.shape[0] > height  # the legend
    mask = Image.fromarray(answers[0].argmax(-1).astype("uint8")).resize((width, height), Image.Resampling.NEAREST)
    disc = np.asarray(mask) == 1
    drawn = 0.45 * original[disc] + 0.55 * np.array((128, 0, 0))
    assert np.abs(copy[:height][disc] - drawn).mean() < 12  # JPEG
    capsys.readouterr()
    print_csv(shown)
    assert capsys.readouterr().out.startswith("image,rank,class,label,share\n")
    table = command("predict", files[0], *options[:2]).stdout
    assert "share" in table
    assert "crop" not in table


def test_commands_with_a_palette(folders, tmp_path):
    """From a backbone, on masks in colours; the run's folder says what it was started on."""
    backbone().save(tmp_path / "model.keras")
    colours = masked_images.in_colours(folders[1], tmp_path / "colours")
    palette = tmp_path / "palette.txt"
    palette.write_text(masked_images.PALETTE)
    options = ["--epochs", 1, "--batch-size", 12, "--masks", colours, "--palette", palette, "--json"]
    run = ["finetune", folders[0], "--model", tmp_path / "model.keras", "--output", tmp_path / "run"]
    report = json.loads(command(*run, *options).stdout)
    assert report["labels"] == list(masked_images.NAMES)
    arguments, _ = read_run(tmp_path / "run")
    assert Path(arguments["masks"]).samefile(colours)
    assert Path(arguments["palette"]).samefile(palette)
    evaluation = ["evaluate", folders[0] / "val", "--model", tmp_path / "run" / "best.keras", "--palette", palette]
    shown = command(*evaluation, "--masks", colours / "val").stdout
    assert f"mean IoU          │ {report['scores']['mean_iou']:.2%}" in shown
    assert "IoU" in shown.partition("Worst classes")[2]
