"""Evaluation: every kind of file, both layouts of folders, and what is refused."""

import json

import keras
import numpy as np
import pytest
import training_images
from PIL import Image

from keras_efficientformer import EfficientFormer, conversion
from keras_efficientformer.classifiers import KerasClassifier, open_classifier
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.imagenet import imagenet_labels, load_image, preprocess_input, resize_and_crop
from keras_efficientformer.training import evaluate
from keras_efficientformer.training.scores import count

COLOURS = sorted(training_images.COLOURS)
COUNTS = {"blue": 5, "green": 4, "red": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_images.make_folder(tmp_path_factory.mktemp("images"), COUNTS, noise=70)


@pytest.fixture(scope="module")
def model():
    """A head that answers differently from image to image."""
    model = training_images.make_model(3, head="single")
    model.get_layer("head").kernel.assign(np.random.default_rng(0).normal(0, 3, (16, 3)))
    return model


@pytest.fixture(scope="module")
def expected(folder, model):
    """(targets, answers), by code of this test's own."""
    files = [path for name in COLOURS for path in sorted((folder / name).iterdir())]
    images = np.stack([resize_and_crop(load_image(path), (40, 40)) for path in files])
    answers = model.predict(preprocess_input(images), verbose=0)
    return np.array([COLOURS.index(path.parent.name) for path in files]), answers


def confusion(targets, answers):
    table = np.zeros((3, 3), int)
    for target, answer in zip(targets, answers.argmax(1), strict=True):
        table[target, answer] += 1
    return table


def assert_found(report, expected):
    targets, answers = expected
    assert report.images == 12
    assert (report.scores.confusion == confusion(targets, answers)).all()
    assert report.scores.top1 == (answers.argmax(1) == targets).mean()
    assert report.scores.top5 == 1
    assert report.images_per_second > 0


def test_model(folder, model, expected):
    report = evaluate(model, folder, batch_size=5)
    assert len(set(expected[1].argmax(1))) > 1
    assert_found(report, expected)
    rows = json.loads(report.to_json())["classes"]
    assert [(row["label"], row["images"]) for row in rows] == list(COUNTS.items())


def test_files(folder, model, expected, tmp_path):
    """.keras, a checkpoint and .tflite: the same answers."""
    model.save(tmp_path / "model.keras")
    conversion.write_checkpoint(tmp_path / "model.safetensors", conversion.to_state_dict(model))
    export_tflite(model, tmp_path / "model.tflite", labels=COLOURS)
    for name in ("model.keras", "model.tflite"):
        assert_found(evaluate(tmp_path / name, folder), expected)
    assert_found(evaluate(tmp_path / "model.safetensors", folder, input_shape=(40, 40, 3)), expected)


def test_core_ml(folder, model, expected, tmp_path):
    deploy = pytest.importorskip("keras_efficientformer.deploy")
    if not hasattr(deploy, "export_coreml"):
        pytest.skip("needs export_coreml")
    deploy.export_coreml(model, tmp_path / "model.mlpackage", labels=COLOURS, precision="float32")
    assert_found(evaluate(tmp_path / "model.mlpackage", folder), expected)


def test_labels(folder, model, expected, tmp_path):
    """Outputs in another order than the folders' names, from a list and from the file beside the model."""
    order = ["red", "blue", "green"]
    targets = np.array([order.index(COLOURS[target]) for target in expected[0]])
    for_order = targets, expected[1]
    assert_found(evaluate(model, folder, labels=order), for_order)
    model.save(tmp_path / "best.keras")
    (tmp_path / "labels.txt").write_text("\n".join(order) + "\n")
    assert_found(evaluate(tmp_path / "best.keras", folder), for_order)


def test_fewer_folders_than_classes(model, expected, tmp_path):
    folder = training_images.make_folder(tmp_path / "images", {"green": 2, "red": 2})
    with pytest.raises(ValueError, match="has 2 classes and the model 3"):
        evaluate(model, folder)
    report = evaluate(model, folder, labels=COLOURS)
    assert report.scores.confusion.sum(1).tolist() == [0, 2, 2]
    with pytest.raises(ValueError, match="does not know: green"):
        evaluate(model, folder, labels=["blue", "red", "white"])
    with pytest.raises(ValueError, match="3 classes, and there are 2 labels"):
        evaluate(model, folder, labels=["green", "red"])


def test_unreadable_image(model, tmp_path):
    folder = training_images.make_folder(tmp_path / "images")
    (folder / "red" / "002.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 36 images cannot be read.*\n.*002\.png"):
        evaluate(model, folder)
    report = evaluate(model, folder, skip_bad=True)
    assert report.images == 35
    assert list(report.skipped) == ["images/red/002.png"]
    assert json.loads(report.to_json())["folder"] == "images"
    assert str(tmp_path) not in report.to_json()
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"None of the 36 images can be read.*000\.png"):
        evaluate(model, folder, skip_bad=True)


def test_parts_of_a_split(model, tmp_path):
    for part in ("train", "val"):
        training_images.make_folder(tmp_path / part, {"green": 1, "red": 1})
    with pytest.raises(ValueError, match="Found: train, val, which are the parts of a split"):
        evaluate(model, tmp_path)


def test_ranks():
    """Equal values rank in the order of the classes, as `decode_predictions` has them."""
    answers = np.array([[0.1, 0.5, 0.4], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0, 0, 1]])
    scores = count(answers, np.array([1, 0, 1, 0]), probabilities=True)
    assert scores.top1 == 0.5
    np.testing.assert_allclose(scores.loss, -np.log([0.5, 0.4, 0.4, np.finfo("float32").tiny]).mean())
    many = np.tile(np.arange(10.0), (10, 1))
    assert count(many, np.arange(10), probabilities=False).top5 == 0.5
    with pytest.raises(ValueError, match="not finite"):
        count(np.full((1, 3), np.nan), np.array([0]), probabilities=False)


# ImageNet's validation images.

CLASSES = (0, 285, 999, 134, 517)  # the last two are both called crane


@pytest.fixture(scope="module")
def imagenet_model():
    return EfficientFormer(**training_images.TINY, classes=1000)


@pytest.fixture
def flat(tmp_path):
    folder = tmp_path / "val"
    folder.mkdir()
    for number, image in enumerate(training_images.pixels("red", len(CLASSES)), 1):
        Image.fromarray(image).save(folder / f"ILSVRC2012_val_{number:08}.JPEG")
    return folder


def write_csv(folder):
    rows = [f"ILSVRC2012_val_{n:08},{imagenet_labels()[c][0]} 85 1 499 272" for n, c in enumerate(CLASSES, 1)]
    path = folder.parent / "LOC_val_solution.csv"
    path.write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))


def write_ids(folder):
    path = folder / "imagenet_2012_validation_synset_labels.txt"
    path.write_text("\n".join(imagenet_labels()[c][0] for c in CLASSES) + "\n\n")


def write_caffe(folder):
    path = folder.parent / "val.txt"
    path.write_text("\n".join(f"val/ILSVRC2012_val_{n:08}.JPEG {c}" for n, c in enumerate(CLASSES, 1)) + "\n\n")


def write_development_kit(folder):
    from scipy.io import savemat

    synsets = np.zeros(len(CLASSES), [("ILSVRC2012_ID", object), ("WNID", object)])
    for row, place in zip(synsets, reversed(CLASSES), strict=True):
        row["ILSVRC2012_ID"], row["WNID"] = 7 * place + 1, imagenet_labels()[place][0]
    savemat(folder.parent / "meta.mat", {"synsets": synsets})
    path = folder.parent / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text("\n".join(str(7 * place + 1) for place in CLASSES) + "\n")


@pytest.mark.parametrize("write", [write_csv, write_ids, write_caffe, write_development_kit])
def test_flat_imagenet(write, flat, imagenet_model):
    write(flat)
    report = evaluate(imagenet_model, flat, crop_fraction=1)
    assert np.flatnonzero(report.scores.confusion.sum(1)).tolist() == sorted(CLASSES)
    assert [row["label"] for row in report.to_dict()["classes"]].count("crane") == 2


def test_imagenet_by_wordnet_ids(imagenet_model, tmp_path):
    ids = [imagenet_labels()[place][0] for place in CLASSES]
    report = evaluate(imagenet_model, training_images.make_folder(tmp_path / "val", dict.fromkeys(ids, 2)))
    assert report.scores.confusion.sum(1)[list(CLASSES)].tolist() == [2] * 5


def test_flat_imagenet_without_truth(flat, imagenet_model, model):
    with pytest.raises(FileNotFoundError, match=r"nothing says.*LOC_val_solution\.csv.*--ground-truth"):
        evaluate(imagenet_model, flat)
    (flat / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n4\n5\n")
    with pytest.raises(FileNotFoundError, match=r"meta\.mat"):
        evaluate(imagenet_model, flat)
    (flat / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 65\n")
    with pytest.raises(ValueError, match=r"of which class ILSVRC2012_val_00000002\.JPEG is, nor 3 others"):
        evaluate(imagenet_model, flat)
    (flat / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG n99\n")
    with pytest.raises(ValueError, match=r"Found: ILSVRC2012_val_00000001\.JPEG n99"):
        evaluate(imagenet_model, flat)
    (flat / "meta.mat").write_text("<html>")
    (flat / "val.txt").write_text("1\n")
    with pytest.raises(ValueError, match=r"meta\.mat is not the development kit's"):
        evaluate(imagenet_model, flat)
    for content, words in (
        (b"image,class\nILSVRC2012_val_00000001,5\n", "ImageId and PredictionString, .* Found: image=ILSVRC"),
        (b"ImageId,PredictionString\nILSVRC2012_val_00000001\n", "PredictionString=None"),
        ("ImageId,PredictionString\n".encode("utf-16"), "should be text"),
    ):
        (flat / "val.csv").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            evaluate(imagenet_model, flat, ground_truth=flat / "val.csv")
    with pytest.raises(ValueError, match="of 1000 classes; the model has 3"):
        evaluate(model, flat)


def test_ground_truth_of_nothing(folder, model):
    with pytest.raises(ValueError, match=r"--ground-truth\) is for a folder of ILSVRC2012_val"):
        evaluate(model, folder, ground_truth=folder / "red" / "000.png")


def test_open_classifier(model, tmp_path):
    model.save(tmp_path / "model.keras")
    assert isinstance(open_classifier(tmp_path / "model.keras"), KerasClassifier)
    assert open_classifier(tmp_path / "model.keras").size == (40, 40)
    both = keras.Model(model.input, [model.output, model.output])
    pixels = training_images.pixels("red", 2, size=(40, 40)).astype("float32")
    assert KerasClassifier(both).predict(pixels).shape == (2, 3)
