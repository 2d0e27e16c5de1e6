"""Distillation: two heads, the second one on a teacher's choices; whoever the teacher is."""

import keras
import numpy as np
import pytest
import training_images

from keras_efficientformer.classifiers import KerasClassifier
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.images import of_channels
from keras_efficientformer.training import FineTuneConfig, finetune, list_images
from keras_efficientformer.training.data.batches import Batch, one_hot
from keras_efficientformer.training.student import Network, compile_student
from keras_efficientformer.training.teachers import open_teacher

IMAGES = np.random.default_rng(0).uniform(0, 255, (6, 40, 40, 3)).astype("float32")
NAMES = tuple(training_images.COLOURS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_images.make_folder(tmp_path_factory.mktemp("images"), dict.fromkeys(training_images.COLOURS, 8))


def cross_entropy(targets, logits):
    logits = logits - logits.max(1, keepdims=True)
    return -(targets * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1).mean()


def test_loss():
    """DeiT's: (1 - alpha) of the smoothed labels on the first head, alpha of the teacher's choices on the second."""
    config = FineTuneConfig(distillation=0.3, label_smoothing=0.2)
    student = Network.of(training_images.make_model(), config).build(tuple(training_images.COLOURS), head="both")
    compile_student(student, config, warmup=0, steps=10, distilled=True)
    rng = np.random.default_rng(1)
    for name in ("head", "head_dist"):
        student.get_layer(name).kernel.assign(rng.normal(0, 1, (16, 3)))
    labels, choices = one_hot(np.array([0, 1, 2, 0, 1, 2]), 3), one_hot(np.array([1, 1, 2, 2, 0, 0]), 3)
    inputs = preprocess_input(IMAGES)
    head, head_dist = (keras.ops.convert_to_numpy(logits) for logits in student(inputs, training=True))
    expected = 0.7 * cross_entropy(labels * 0.8 + 0.2 / 3, head) + 0.3 * cross_entropy(choices, head_dist)
    found = student.train_on_batch(inputs, (labels, choices), return_dict=True)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)


def batch(rows=None):
    return Batch(IMAGES, one_hot(np.zeros(6, int), 3), rows)


def test_model_as_teacher():
    """It sees the raw images normalised, at its own size; of two heads the first answers."""
    teacher = training_images.make_model(3, head="both", classifier_activation=None)
    teacher.get_layer("head").kernel.assign(np.random.default_rng(0).normal(0, 9, (16, 3)))
    found = open_teacher(teacher, NAMES, None)
    answers = teacher.predict(preprocess_input(IMAGES), verbose=0)[0]
    assert not found.fixed
    np.testing.assert_array_equal(found.labels(batch()), one_hot(answers.argmax(1), 3))
    larger = keras.Sequential([keras.Input((64, 48, 3)), keras.layers.GlobalAveragePooling2D()])
    means = preprocess_input(IMAGES).mean((1, 2))
    np.testing.assert_array_equal(open_teacher(larger, NAMES, None).labels(batch()), one_hot(means.argmax(1), 3))


def test_scores_as_teacher(folder):
    """By the images' places in the listing of the folder, in whatever order they come."""
    scores = np.random.default_rng(0).normal(size=(24, 3))
    found = open_teacher(scores, NAMES, 24)
    rows = np.array([23, 0, 7, 7, 12, 1])
    assert found.fixed
    np.testing.assert_array_equal(found.labels(batch(rows)), one_hot(scores.argmax(1)[rows], 3))


@pytest.mark.parametrize(
    ("teacher", "images", "words"),
    [
        (np.zeros((24, 3)), 10, r"shape \(10, 3\).*list_images.*Received: \(24, 3\)"),
        (np.zeros((24, 3)), None, "need a folder"),
        ([[0.0, 1.0, 0.0]], 1, "NumPy array of scores, or a model's name. Received: list"),
    ],
)
def test_scores_of_something_else(teacher, images, words):
    with pytest.raises(ValueError, match=words):
        open_teacher(teacher, NAMES, images)


def test_teacher_of_other_classes():
    with pytest.raises(ValueError, match=r"scores of shape \(6, 3\).*Received: \(6, 5\)"):
        open_teacher(lambda images: np.zeros((len(images), 5)), NAMES, None).labels(batch())


def test_teacher_that_names_its_classes(tmp_path):
    """Its scores are taken in the data's order, from a model and from a file; other names are refused."""
    teacher = training_images.make_model(
        3, labels=["red", "blue", "green"], input_shape=(40, 40, 1), mean=[0.5], std=[0.2]
    )
    teacher.get_layer("head").kernel.assign(np.random.default_rng(0).normal(0, 9, (16, 3)))
    teacher.save(tmp_path / "teacher.keras")
    answers = KerasClassifier(teacher).predict(of_channels(IMAGES, 1))[:, [1, 2, 0]]
    assert len(set(answers.argmax(1))) > 1
    for source in (teacher, tmp_path / "teacher.keras"):
        found = open_teacher(source, ("blue", "green", "red"), None).labels(batch())
        np.testing.assert_array_equal(found, one_hot(answers.argmax(1), 3))
    with pytest.raises(ValueError, match=r"teacher's classes, red, blue, green, are not those of the data, .*: white"):
        open_teacher(teacher, ("blue", "green", "white"), None)


def test_run(folder, tmp_path):
    """A teacher that always says "red" from its scores, MixUp and balanced classes: its head, alone, learns that."""
    names, images = list_images(folder)
    scores = np.tile(np.eye(3)[names.index("red")], (len(images), 1))
    config = FineTuneConfig(
        epochs=4,
        freeze_epochs=4,
        batch_size=6,
        learning_rate=2e-2,
        mixup=0.2,
        class_weight="balanced",
        distillation=0.8,
    )
    pixels = training_images.pixels("blue", 4, size=(40, 40)).astype("float32")
    found = []
    ask = keras.callbacks.LambdaCallback(on_train_end=lambda logs: found.append(ask.model(preprocess_input(pixels))))
    report = finetune(
        training_images.make_model(),
        folder,
        tmp_path / "run",
        teacher=scores,
        config=config,
        callbacks=[ask],
        verbose=False,
    )
    head, head_dist = (keras.ops.convert_to_numpy(keras.ops.softmax(logits)) for logits in found[0])
    assert (head_dist.argmax(1) == names.index("red")).all()
    assert (head_dist[:, names.index("red")] > 2 * head[:, names.index("red")]).all()
    best = keras.saving.load_model(report.model, compile=False)
    assert best.get_layer("head_average") is not None
    np.testing.assert_allclose(best.predict(preprocess_input(pixels), verbose=0).sum(1), 1, rtol=1e-5)


def test_imagenet_recipe():
    """The package's own file, which is the repository's recipe."""
    config = FineTuneConfig.from_file("imagenet", devices="one")
    assert (config.epochs, config.weight_decay, config.distillation, config.mixup) == (300, 0.025, 0.5, 0.8)
    assert config.devices == "one"
