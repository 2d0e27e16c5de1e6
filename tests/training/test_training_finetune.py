"""Fine-tuning: what a run does, what it leaves, and how it refuses. `test_training_resume` kills it."""

import contextlib
import json
import os
import re
import resource
import signal
import sys

import keras
import numpy as np
import pytest
import training_images
from PIL import Image

from keras_efficientformer import conversion
from keras_efficientformer.image_folders.image_folder import hold_out, list_images
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.training import FineTuneConfig, TrainingError, evaluate, finetune
from keras_efficientformer.training.config import EXPECTED, portable_arguments, read_run
from keras_efficientformer.training.run_state import check_same, read_state
from keras_efficientformer.training.student import Network, averaged_weights, compile_student

COLOURS = sorted(training_images.COLOURS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train and val, the classes of unequal size."""
    folder = tmp_path_factory.mktemp("images")
    training_images.make_folder(folder / "train", {"blue": 16, "green": 24, "red": 12})
    training_images.make_folder(folder / "val", dict.fromkeys(COLOURS, 7), noise=60)
    return folder


@pytest.fixture(scope="module")
def model():
    return training_images.make_model()


@pytest.fixture(scope="module")
def finished(folder, model, tmp_path_factory):
    """A run with both phases and its report."""
    output = tmp_path_factory.mktemp("run") / "run"
    config = FineTuneConfig(epochs=8, batch_size=8, learning_rate=5e-3, class_weight="balanced", tensorboard=True)
    return output, finetune(model, folder, output, config=config, verbose=False)


def state_dict(path):
    return conversion.to_state_dict(keras.saving.load_model(path, compile=False))


def test_learns(finished):
    _, report = finished
    assert report.scores.top1 >= 0.9
    assert report.scores.top1 == max(row["val_accuracy"] for row in report.history)
    assert report.history[-1]["loss"] < report.history[0]["loss"]


def test_files(finished):
    output, report = finished
    assert (output / "labels.txt").read_text().split() == COLOURS
    config = json.loads((output / "config.json").read_text())
    assert config["config"]["seed"] == 0
    assert config["objects"] == ["model"]
    assert config["versions"]["keras"] == keras.__version__
    assert json.loads((output / "history.json").read_text()) == list(report.history)
    written = json.loads((output / "report.json").read_text())
    assert [row["images"] for row in written["scores"]["classes"]] == [7, 7, 7]
    assert "Confusion matrix" in (output / "report.html").read_text()
    for name in ("curves.png", "confusion.png"):
        assert min(Image.open(output / name).size) > 300
    assert list((output / "tensorboard").rglob("events*"))


def test_best_model_is_the_reported_one(finished, folder):
    """Evaluated from its file, by other code, with the labels that lie beside it."""
    output, report = finished
    found = evaluate(output / "best.keras", folder / "val")
    assert found.scores.top1 == report.scores.top1
    assert (found.scores.confusion == report.scores.confusion).all()


def test_frozen_epochs_move_the_head_alone(folder, model, tmp_path):
    config = FineTuneConfig(epochs=1, freeze_epochs=1, batch_size=8)
    finetune(model, folder, tmp_path / "run", config=config, verbose=False)
    before, after = conversion.to_state_dict(model), state_dict(tmp_path / "run" / "best.keras")
    backbone = [name for name in after if not name.startswith("head")]
    assert len(backbone) > 30
    assert all((before[name] == after[name]).all() for name in backbone)
    assert np.abs(after["head.bias"]).min() > 0


def test_a_finished_run_only_reports_again(finished, folder, model):
    output, report = finished
    before = (output / "best.keras").stat().st_mtime_ns
    config = FineTuneConfig(epochs=8, batch_size=8, learning_rate=5e-3, class_weight="balanced", tensorboard=True)
    again = finetune(model, folder, output, config=config, resume=True, verbose=False)
    assert again.history == report.history
    assert (output / "best.keras").stat().st_mtime_ns == before
    (output / "best.keras").rename(output / "away")
    try:
        refused(model, folder, output, FileNotFoundError, "best model of the 8 epochs", resume=True, config=config)
    finally:
        (output / "away").rename(output / "best.keras")


def test_early_stop(folder, model, tmp_path):
    """Frozen epochs count where there are no others."""
    config = FineTuneConfig(
        epochs=9, freeze_epochs=9, batch_size=8, learning_rate=1e-9, final_learning_rate=0, patience=2
    )
    report = finetune(model, folder, tmp_path / "run", config=config, verbose=False)
    accuracies = [row["val_accuracy"] for row in report.history]
    best = int(np.argmax(accuracies))
    assert len(accuracies) == best + 3 < 9
    again = finetune(model, folder, tmp_path / "run", config=config, resume=True, verbose=False)
    assert len(again.history) == len(accuracies)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(precision, folder, model, tmp_path):
    """The best model is in float32, whatever Keras' policy is, which stays."""
    config = FineTuneConfig(epochs=1, freeze_epochs=0, batch_size=8, precision=precision)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        report = finetune(model, folder, tmp_path / "run", config=config, verbose=False)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(report.history[0]["loss"])
    best = keras.saving.load_model(report.model, compile=False)
    assert {layer.dtype_policy.name for layer in best.layers} == {"float32"}


def compiled(**settings):
    network = Network.of(training_images.make_model(), FineTuneConfig())
    student = network.build(tuple(COLOURS), head="single")
    compile_student(student, FineTuneConfig(**settings), warmup=4, steps=20, distilled=False)
    return student


def test_only_kernels_decay():
    student = compiled(clip_norm=None)
    for variable in student.trainable_variables:
        variable.assign(np.full(variable.shape, 0.5))
    # The schedule starts at 0, so the second step is the first that can decay.
    zeros = [keras.ops.zeros_like(variable) for variable in student.trainable_variables]
    before = [keras.ops.convert_to_numpy(variable) for variable in student.trainable_variables]
    for _ in range(2):
        student.optimizer.apply(zeros)
    names = {
        variable.name
        for variable, old in zip(student.trainable_variables, before, strict=True)
        if (keras.ops.convert_to_numpy(variable) != old).any()
    }
    assert names == {"kernel"}
    assert {v.name for v in student.trainable_variables} == {"kernel", "bias", "gamma", "beta", "attention_biases"}


def test_learning_rate():
    student = compiled(learning_rate=1e-2, final_learning_rate=1e-4)
    rates = [float(student.optimizer._learning_rate(step)) for step in range(21)]
    np.testing.assert_allclose(rates[:5], [0, 0.0025, 0.005, 0.0075, 0.01], rtol=1e-5)
    np.testing.assert_allclose(rates[12], (1e-2 + 1e-4) / 2, rtol=1e-5)
    np.testing.assert_allclose(rates[20], 1e-4, rtol=1e-4)


def test_averaged_weights():
    student = compiled(ema=0.75, learning_rate=0.1)
    # No step has been taken: there is no average, as where mixed_float16 left out all of them.
    assert all((old == new).all() for old, new in zip(student.get_weights(), averaged_weights(student), strict=True))
    images = np.random.default_rng(0).standard_normal((4, 40, 40, 3)).astype("float32")
    expected = None
    for _ in range(3):
        student.train_on_batch(images, np.eye(3, dtype="float32")[[0, 1, 2, 0]])
        now = [keras.ops.convert_to_numpy(variable) for variable in student.trainable_variables]
        expected = now if expected is None else [0.75 * e + 0.25 * n for e, n in zip(expected, now, strict=True)]
    before = student.get_weights()
    found = averaged_weights(student)
    assert all((old == new).all() for old, new in zip(before, student.get_weights(), strict=True))
    learning = {id(variable) for variable in student.trainable_variables}
    averages = [value for value, variable in zip(found, student.weights, strict=True) if id(variable) in learning]
    assert max(np.abs(a - n).max() for a, n in zip(averages, now, strict=True)) > 0.01
    for average, value in zip(averages, expected, strict=True):
        np.testing.assert_allclose(average, value, rtol=1e-4, atol=1e-6)


def test_kept_head(model):
    """The same function as the model's, at its own size; and refused for other classes."""
    network = Network.of(model, FineTuneConfig(keep_head=True))
    images = np.random.default_rng(0).standard_normal((2, 40, 40, 3)).astype("float32")
    kept = network.build(tuple("abcde"), head=network.head, activation="softmax")
    np.testing.assert_array_equal(kept.predict(images, verbose=0), model.predict(images, verbose=0))


def short_config(**settings):
    """One epoch, in which the head alone learns, and almost nothing: what a run does with classes and images."""
    return FineTuneConfig(
        epochs=1, batch_size=4, learning_rate=1e-9, final_learning_rate=0, warmup_epochs=0, **settings
    )


@pytest.mark.parametrize("folders", ["names", "indices"])
def test_kept_classes_keep_their_order(tmp_path, folders):
    """A kept head's classes are found by name or index, whatever the alphabet's order: the answers stay right."""
    names = ("red", "blue", "green")
    counts = {name if folders == "names" else str(names.index(name)): 4 for name in sorted(names)}
    folder = training_images.make_folder(tmp_path / "images", counts)
    model = training_images.make_model(3, labels=names)
    report = finetune(model, folder, tmp_path / "run", config=short_config(keep_head=True), verbose=0)
    assert report.labels == names
    saved = keras.saving.load_model(report.model)
    assert labels_of(saved) == names
    head, kept = (one.get_layer("head").kernel.numpy() for one in (model, saved))
    np.testing.assert_allclose(kept, head, atol=1e-5)
    assert [row.strip() for row in (tmp_path / "run" / "labels.txt").open()] == list(names)


@pytest.mark.parametrize(
    ("labels", "given", "counts", "words"),
    [
        (("red", "blue", "green"), None, {"blue": 4, "green": 4, "cyan": 4}, "does not know: cyan"),
        (("red", "blue", "green"), None, {"blue": 4, "green": 4}, "3 classes; these have 2"),
        (("red", "blue", "green"), ("blue", "red", "green"), None, "'blue' in the place of 'red'"),
        (("red", "blue", "green"), ("red", "blue"), None, "3 classes; these have 2"),
        (None, None, None, "does not know their names: pass `labels`"),
    ],
)
def test_kept_classes_that_do_not_fit(tmp_path, labels, given, counts, words):
    folder = training_images.make_folder(tmp_path / "images", counts)
    model = training_images.make_model(3, labels=labels)
    with pytest.raises(ValueError, match=words):
        finetune(model, folder, tmp_path / "run", labels=given, config=short_config(keep_head=True), verbose=0)


def test_labels_of_a_folder(tmp_path):
    """They say the order of the outputs."""
    folder = training_images.make_folder(tmp_path / "images")
    config = short_config()
    order = {"green": 0, "red": 1, "blue": 2}
    report = finetune(training_images.make_model(), folder, tmp_path / "run", labels=order, config=config, verbose=0)
    assert report.labels == ("green", "red", "blue")
    with pytest.raises(ValueError, match="3 classes, and there are 2 labels"):
        finetune(training_images.make_model(), folder, tmp_path / "no", labels=["red", "blue"], config=config)


def test_grey_images(tmp_path):
    """A model of one channel is trained, scored and evaluated on the luminance of the folder's images."""
    folder = training_images.make_folder(tmp_path / "images")
    shape = {"input_shape": (40, 40, 1), "mean": [0.5], "std": [0.25]}
    config = short_config(freeze_epochs=0)
    report = finetune(training_images.make_model(**shape), folder, tmp_path / "run", config=config, verbose=0)
    saved = keras.saving.load_model(report.model)
    assert saved.input_shape == (None, 40, 40, 1)
    assert evaluate(saved, folder).images == 36


class SwallowedInterrupt(keras.callbacks.Callback):
    """A Ctrl-C that is lost, as in a destructor of TensorFlow's or in what JAX hears of the garbage collector."""

    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_lost_interrupt_ends_the_run(tmp_path):
    folder = training_images.make_folder(tmp_path / "images")
    model, lost = training_images.make_model(), SwallowedInterrupt()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            finetune(model, folder, tmp_path / "run", config=short_config(), callbacks=[lost], verbose=0)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert lost.steps == 1


@pytest.mark.parametrize("setting", ["rand_augment", "mixup", "cutmix"])
def test_augmentation_without_tensorflow_is_told_first(tmp_path, monkeypatch, setting):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    config = short_config(**{setting: 0.5})
    with pytest.raises(ImportError, match=r"rand_augment, mixup or cutmix needs tensorflow: pip install"):
        finetune("l1", tmp_path, tmp_path / "run", config=config)


def test_other_files_are_counted(tmp_path):
    folder = training_images.make_folder(tmp_path / "images")
    (folder / "red" / "notes.txt").write_text("no image")
    (folder / "red" / "README").write_text("no image")
    config = short_config()
    report = finetune(training_images.make_model(), folder, tmp_path / "run", config=config, verbose=0)
    assert report.other_files == {".txt": 1, "": 1}
    assert json.loads((tmp_path / "run" / "report.json").read_text())["other_files"] == {".txt": 1, "": 1}


def test_another_size(model):
    network = Network.of(model, FineTuneConfig(size=(64, 96)))
    assert network.build(tuple(COLOURS), head="single").inputs[0].shape[1:3] == (64, 96)


class Loader(keras.utils.PyDataset):
    """Noise, with not-a-number in the images or the labels of the third batch."""

    def __init__(self, bad=None):
        super().__init__()
        self.bad = bad

    def __len__(self):
        return 4

    def __getitem__(self, index):
        batch = {
            "images": np.random.default_rng(index).uniform(0, 255, (8, 40, 40, 3)),
            "labels": np.eye(3)[np.arange(8) % 3],
        }
        if index == 2 and self.bad:
            batch[self.bad] *= np.nan
        return batch["images"], batch["labels"]


@pytest.mark.parametrize(("bad", "message"), [("labels", "loss is nan"), ("images", "images' sum is nan")])
def test_not_a_number(model, tmp_path, bad, message):
    """Says at which step, and the checkpoint of the step before is there."""
    config = FineTuneConfig(epochs=2, freeze_epochs=2, batch_size=8, save_every=1)
    with pytest.raises(TrainingError, match=message + r" at step 3 of epoch 1.*checkpoint\.npz"):
        finetune(model, Loader(bad), tmp_path / "run", labels=COLOURS, config=config, verbose=False)
    values, state = read_state(tmp_path / "run" / "checkpoint.npz")
    assert state["progress"]["step"] == 2
    assert all(np.isfinite(value).all() for value in values)


class Diverging(keras.callbacks.Callback):
    """Sets the head's kernel and the factors before it in the last step of the second epoch."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (1, 3):
            for variable in (self.model.get_layer("norm").gamma, self.model.get_layer("head").kernel):
                variable.assign(np.full(variable.shape, self.value))


@pytest.mark.parametrize(
    ("value", "validation", "message"),
    [
        (np.nan, None, "Weights are not finite"),
        (1e38, Loader(), "Answers to validation images are not finite"),
    ],
)
def test_diverging(model, tmp_path, value, validation, message):
    """Nothing of it gets into the best model or the checkpoint; the error says which files there are."""
    config = FineTuneConfig(epochs=2, freeze_epochs=2, batch_size=8)
    with pytest.raises(TrainingError, match=rf"{message} after step 4 of epoch 2.*checkpoint\.npz and .*best\.keras"):
        finetune(
            model,
            Loader(),
            tmp_path / "run",
            validation=validation,
            labels=COLOURS,
            config=config,
            callbacks=[Diverging(value)],
            verbose=False,
        )
    best = state_dict(tmp_path / "run" / "best.keras")
    values, state = read_state(tmp_path / "run" / "checkpoint.npz")
    assert all(np.isfinite(value).all() for value in [*best.values(), *values])
    assert state["progress"]["epoch"] == 1
    np.testing.assert_array_less(np.abs(best["head.weight"]), 1)


class FullDisk(keras.callbacks.Callback):
    """From the third step on this process can write no file of more than a few kilobytes."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


def test_full_disk(model, tmp_path):
    config = FineTuneConfig(epochs=2, freeze_epochs=2, batch_size=8, save_every=1)
    output = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match=r"after step 3 of epoch 1 was not written.*--resume"):
            finetune(model, Loader(), output, labels=COLOURS, config=config, callbacks=[FullDisk()], verbose=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_state(output / "checkpoint.npz")[1]["progress"]["step"] == 2
    assert not list(output.glob(".partial-*"))
    labels = np.array(COLOURS)
    report = finetune(model, Loader(), output, labels=labels, config=config, resume=True, verbose=False)
    assert len(report.history) == 2
    assert report.scores is None


# What is refused, before anything is trained.


def refused(model, data, output, error, *words, **arguments):
    with pytest.raises(error) as info:
        finetune(model, data, output, verbose=False, **arguments)
    for word in words:
        assert word in str(info.value)


def test_empty_class(model, tmp_path):
    training_images.make_folder(tmp_path / "images")
    (tmp_path / "images" / "white").mkdir()
    refused(model, tmp_path / "images", tmp_path / "run", ValueError, "white", "no images")
    assert not (tmp_path / "run").exists()


def test_one_class(model, tmp_path):
    training_images.make_folder(tmp_path / "images", {"red": 3})
    refused(model, tmp_path / "images", tmp_path / "run", ValueError, "two at least", "red")


def test_missing_folder(model, tmp_path):
    refused(model, tmp_path / "nothing", tmp_path / "run", FileNotFoundError, "nothing")


def test_frozen_layers_learn_nevertheless(tmp_path):
    model = training_images.make_model()
    model.get_layer("stage4").blocks[0].trainable = False
    with pytest.warns(UserWarning, match="Layers of efficientformer are frozen, stage4: finetune trains them"):
        refused(model, tmp_path / "missing", tmp_path / "run", FileNotFoundError)


def test_class_of_one_image(model, tmp_path):
    training_images.make_folder(tmp_path / "images", {"red": 3, "blue": 1})
    refused(model, tmp_path / "images", tmp_path / "run", ValueError, "'blue' has one image")


def test_unreadable_images(model, tmp_path):
    """All are reported at once; left out only when asked."""
    folder = training_images.make_folder(tmp_path / "images", {"blue": 12, "green": 3, "red": 12})
    (folder / "red" / "003.png").write_bytes(b"no image")
    truncated = folder / "blue" / "007.png"
    truncated.write_bytes(truncated.read_bytes()[:1000])
    refused(model, folder, tmp_path / "run", ValueError, "2 of", "red/003.png", "blue/007.png", "--skip-bad")
    # Of the rest a share is held out: if the one green image that would be is damaged, another one is.
    config = FineTuneConfig(epochs=1, batch_size=8, skip_bad=True)
    (green,) = (file for file in hold_out(*list_images(folder), 0.2, 0)[1].files if file.parent.name == "green")
    green.write_bytes(b"")
    report = finetune(model, folder, tmp_path / "run", config=config, verbose=False)
    assert sorted(report.skipped) == ["images/blue/007.png", f"images/green/{green.name}", "images/red/003.png"]
    assert [row["images"] for row in report.to_dict()["scores"]["classes"]] == [2, 1, 2]
    assert report.skipped["images/red/003.png"].startswith("'images/red/003.png' is not an image")
    written = (tmp_path / "run" / "report.json").read_text()
    assert json.loads(written) == report.to_dict()
    assert report.to_dict()["model"] == "best.keras"
    assert not [file for file in (tmp_path / "run").glob("*.json") if str(tmp_path) in file.read_text()]


def test_nothing_readable_in_a_class(model, tmp_path):
    folder = training_images.make_folder(tmp_path / "images", {"red": 4, "blue": 4, "green": 4})
    for path in (folder / "green").iterdir():
        path.write_bytes(b"")
    refused(model, folder, tmp_path / "run", ValueError, "green", config=FineTuneConfig(skip_bad=True, batch_size=2))


def test_other_classes_for_validation(model, tmp_path):
    training_images.make_folder(tmp_path / "images" / "train")
    training_images.make_folder(tmp_path / "images" / "val", {"red": 2, "blue": 2, "white": 2})
    refused(model, tmp_path / "images", tmp_path / "run", ValueError, "missing in it: green", "only in it: white")


def test_too_few_images(model, tmp_path):
    training_images.make_folder(tmp_path / "images", dict.fromkeys(COLOURS, 4))
    refused(model, tmp_path / "images", tmp_path / "run", ValueError, "9 training images", "one batch of 32")


def test_run_in_the_folder(finished, folder, model):
    output, _ = finished
    refused(model, folder, output, FileExistsError, "--resume")


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else(tmp_path, folder, model, resume):
    """timm's config.json beside a checkpoint and somebody's list of labels are not replaced."""
    (tmp_path / "config.json").write_text('{"architecture": "efficientformer_l1"}')
    (tmp_path / "labels.txt").write_text("cat\n")
    refused(model, folder, tmp_path, FileExistsError, "holds config.json, labels.txt", resume=resume)
    assert (tmp_path / "labels.txt").read_text() == "cat\n"


def test_other_settings(finished, folder, model):
    """The run's own files stay as they are."""
    output, _ = finished
    before = (output / "config.json").read_bytes()
    config = FineTuneConfig(epochs=8, batch_size=4, learning_rate=5e-3, class_weight="balanced", tensorboard=True)
    refused(model, folder, output, ValueError, "batch_size was 8, is 4", resume=True, config=config)
    assert (output / "config.json").read_bytes() == before


def test_what_a_checkpoint_must_be_of(tmp_path):
    """Another teacher, or other files of the same number, are named; what an older checkpoint does not say is not."""
    state = {"data": {"steps": 3, "files": {"training": "a", "validation": "b"}}, "arguments": {"teacher": True}}
    check_same(state, {"data": {"steps": 3, "new": 1}, "more": {"new": 2}}, tmp_path)
    found = {"data": {"files": {"training": "a", "validation": "c"}}, "arguments": {"teacher": False}}
    with pytest.raises(ValueError, match="images for validation are others, teacher was True, is False"):
        check_same(state, found, tmp_path)


def test_a_models_name_is_no_path(tmp_path, monkeypatch):
    """Not even that of the run's own folder, which is called like the model; a file stays a path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "l1").mkdir()
    (tmp_path / "m.keras").touch()
    found = portable_arguments(tmp_path / "l1", model="l1", teacher="m.keras", data="l1")
    assert found == {"model": "l1", "teacher": "../m.keras", "data": "./."}


def test_a_run_behind_a_link_finds_its_images(tmp_path):
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    arguments = portable_arguments(tmp_path / "link", data=tmp_path / "images")
    content = {"config": FineTuneConfig().to_dict(), "arguments": arguments}
    (tmp_path / "link" / "config.json").write_text(json.dumps(content))
    found = read_run(tmp_path / "link")[0]["data"]
    assert os.path.samefile(found, tmp_path / "images")


def test_run_among_the_images(model, folder):
    refused(model, folder, folder / "run", ValueError, "in the images' folder", "Choose one outside")
    refused(model, Loader(), folder / "run", ValueError, "in the images' folder", labels=COLOURS, validation=folder)


def test_loader_without_labels(model, tmp_path):
    refused(model, Loader(), tmp_path / "run", ValueError, "pass `labels`")
    refused(model, Loader(), tmp_path / "run", ValueError, "one class, 'red'", labels=["red"])


def test_loader_without_validation(model, tmp_path):
    config = FineTuneConfig(patience=2)
    refused(model, Loader(), tmp_path / "run", ValueError, "pass `validation`", labels=COLOURS, config=config)


def test_loader_and_unreadable_validation(model, tmp_path):
    validation = training_images.make_folder(tmp_path / "images", dict.fromkeys(COLOURS, 2))
    (validation / "red" / "001.png").write_bytes(b"")
    arguments = {"labels": COLOURS, "validation": validation}
    refused(model, Loader(), tmp_path / "run", ValueError, "1 of 6 images", "red/001.png", **arguments)
    config = FineTuneConfig(epochs=1, skip_bad=True)
    report = finetune(model, Loader(), tmp_path / "run", config=config, verbose=False, **arguments)
    assert list(report.skipped) == ["images/red/001.png"]


UNFIT = [
    ("epochs", 0),
    ("epochs", "3"),
    ("epochs", True),
    ("batch_size", 2.5),
    ("freeze_epochs", 99),
    ("learning_rate", 0),
    ("learning_rate", "1e-3"),
    ("learning_rate", float("inf")),
    ("final_learning_rate", 2e-3),
    ("weight_decay", None),
    ("clip_norm", 0),
    ("min_crop", 1.5),
    ("ema", 1.0),
    ("mixup", float("nan")),
    ("flip", "yes"),
    ("size", 0),
    ("size", "64"),
    ("size", (64,)),
    ("precision", "int8"),
    ("devices", "two"),
    ("class_weight", "some"),
    ("validation_split", 1),
    ("cutmix", 2),
    ("patience", -1),
    ("seed", -1),
]


@pytest.mark.parametrize(("setting", "value"), UNFIT)
def test_unfit_settings(setting, value):
    with pytest.raises(ValueError, match=rf"`{setting}` should be .* Received: {setting}={re.escape(repr(value))}"):
        FineTuneConfig(**{setting: value})


def test_every_setting_is_checked():
    assert EXPECTED.keys() == FineTuneConfig().to_dict().keys()
    assert FineTuneConfig(size=(64, 48), patience=0, clip_norm=None, warmup_epochs=2).to_dict()["size"] == [64, 48]


def test_settings_from_a_file(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[finetune]\nepochs = 7\nmixup = 0.8\n")
    assert FineTuneConfig.from_file(path, epochs=9) == FineTuneConfig(epochs=9, mixup=0.8)
    path.write_text("[finetune]\nepoch = 7\n")
    with pytest.raises(ValueError, match="there are not: epoch"):
        FineTuneConfig.from_file(path)
    path.write_text("epochs = ")
    with pytest.raises(ValueError, match="not a TOML file"):
        FineTuneConfig.from_file(path)
    for text in ("epochs = 7", "finetune = 7"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"no table \[finetune\]"):
            FineTuneConfig.from_file(path)
