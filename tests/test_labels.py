"""The names of classes, given as lists, files and dictionaries; wherever labels are taken. Room: top level."""

import numpy as np
import pytest

from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.imagenet import decode_predictions
from keras_efficientformer.labels import class_names
from keras_efficientformer.training import evaluate, finetune

NAMES = ("cat", "dog", "bird")


@pytest.mark.parametrize(
    "labels",
    [
        NAMES,
        list(NAMES),
        iter(NAMES),
        np.array(NAMES),
        {"dog": 1, "bird": 2, "cat": 0},
        {"dog": np.int64(1), "bird": np.int64(2), "cat": np.int64(0)},
        {2: "bird", 0: "cat", 1: "dog"},
        {"2": "bird", "0": "cat", "1": "dog"},
    ],
    ids=["tuple", "list", "iterator", "array", "class_indices", "NumPy's integers", "id2label", "JSON's id2label"],
)
def test_all_kinds(labels):
    found = class_names(labels, 3)
    assert found == NAMES
    assert {type(name) for name in found} == {str}


def test_names_that_are_numbers():
    assert class_names({"7": 0, "3": 1}) == ("7", "3")


def test_file(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    assert class_names(tmp_path / "labels.txt", 3) == NAMES
    assert class_names(str(tmp_path / "labels.txt"), 3) == NAMES
    with pytest.raises(ValueError, match=r"10 classes, and .*labels\.txt holds 3 labels: one for each is needed"):
        class_names(tmp_path / "labels.txt", 10)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"cat", "dog", "bird"}, "A set has no order"),
        (frozenset(NAMES), "A set has no order"),
        ({"cat": 1, "dog": 2, "bird": 3}, "every index from 0 on once. Received: 'cat': 1"),
        ({"cat": 0, "dog": 0, "bird": 1}, "every index from 0 on once"),
        ({"cat": "n01", "dog": "n02", "bird": "n03"}, "every index from 0 on once"),
        ({"cat": True, "dog": False}, "every index from 0 on once"),
        (["cat", 3, "bird"], "single lines of text. Received: 3"),
        (["cat", "d\nog", "bird"], r"single lines of text. Received: 'd\\nog'"),
        (["cat", "dog"], "3 classes, and there are 2 labels"),
        (3, "a list of names, the path of a text file .* Received: 3"),
    ],
)
def test_unfit(labels, words):
    with pytest.raises(ValueError, match=words):
        class_names(labels, 3)


def test_every_door(build, tmp_path):
    """A dictionary's indices count, not its order, and a set is refused, by all that take labels."""
    model, indices = build(classes=10), {f"class {index}": index for index in reversed(range(10))}
    names = tuple(f"class {index}" for index in range(10))
    assert export_tflite(model, tmp_path / "m.tflite", labels=indices).labels == names
    assert export_coreml(model, tmp_path / "n.mlpackage", labels=indices).labels == names
    ((first, *_),) = decode_predictions(np.eye(10)[[3]], labels=indices)
    assert first == ("3", "class 3", 1.0)
    doors = [
        lambda labels: export_tflite(model, tmp_path / "o.tflite", labels=labels),
        lambda labels: export_coreml(model, tmp_path / "o.mlpackage", labels=labels),
        lambda labels: decode_predictions(np.eye(10), labels=labels),
        lambda labels: evaluate(model, tmp_path, labels=labels),
        lambda labels: finetune(model, [(0, 0)], tmp_path / "run", labels=labels),
    ]
    for door in doors:
        with pytest.raises(ValueError, match="A set has no order"):
            door(set(names))
