"""Which of a model's classes a folder's subfolders are: by label, WordNet id or index. Room: training/data."""

from pathlib import Path

import pytest

from keras_efficientformer.image_folders.class_places import IN_THEIR_ORDER, class_places
from keras_efficientformer.imagenet import imagenet_labels

FOLDER = Path("images")
IMAGENET = imagenet_labels()
NAMES = tuple(name for _, name in IMAGENET)


def places(names, classes, labels=None):
    return class_places(FOLDER, names, classes, labels)


def test_indices_are_numbers_not_text():
    """Sorted as text, "10" comes before "2": the usual layout of ImageNet by index."""
    names = sorted(map(str, range(1000)))
    found, labels, how = places(names, 1000)
    assert found == [int(name) for name in names] != list(range(1000))
    assert (labels, how) == (NAMES, "by the indices of the classes")
    assert places(["00002", "00010"], 12)[0] == [2, 10]
    assert places(["2", "10"], 12, [f"class {n}" for n in range(12)])[0] == [2, 10]


def test_labels_that_are_numbers_are_labels():
    digits = [str(digit) for digit in reversed(range(10))]
    found, _, how = places(["0", "1", "9"], 10, digits)
    assert (found, how) == ([9, 8, 0], "by the model's labels")


def test_wordnet_ids():
    found, labels, how = places(["n01440764", "n02124075"], 1000)
    assert (found, labels, how) == ([0, 285], NAMES, "by ImageNet's WordNet ids")


def test_labels():
    found, labels, how = places(["ant", "cat"], 3, ("cat", "dog", "ant"))
    assert (found, labels, how) == ([2, 0], ("cat", "dog", "ant"), "by the model's labels")
    assert places(["tench", "Egyptian_cat"], 1000)[0] == [0, 285]
    assert places(["cafe\u0301", "tea"], 2, ("tea", "caf\u00e9"))[:2] == ([1, 0], ("tea", "caf\u00e9"))


def test_their_order():
    assert places(["ant", "cat", "dog"], 3) == ([0, 1, 2], ("ant", "cat", "dog"), IN_THEIR_ORDER)


@pytest.mark.parametrize(
    ("names", "classes", "labels", "words"),
    [
        (["ant", "cat"], 3, None, "has 2 classes and the model 3"),
        (["ant", "cow"], 3, ("cat", "dog", "ant"), "does not know: cow"),
        ([f"class {n:03}" for n in range(1000)], 1000, None, "does not know: class 000, class 001.*and 990 more"),
        (["0", "3"], 3, None, r"from 0 to 2\. Found: 3$"),
        ([str(n) for n in range(1, 1001)], 1000, None, r"from 0 to 999\. Found: 1000$"),
        (["1", "01"], 3, None, "two folders of one index. Found: 1, 01"),
        (["1", "cat"], 3, ("cat", "dog", "ant"), "does not know: 1"),
        (["crane", "tench"], 1000, None, "stand for two of the model's classes each: crane. Call all folders by"),
        (["n01440764", "n99999999"], 1000, None, "does not know"),
    ],
)
def test_unfit(names, classes, labels, words):
    with pytest.raises(ValueError, match=words):
        places(names, classes, labels)
