"""Which labels each image has: by the names of folders, by CSV files of both kinds, and what is refused."""

import numpy as np
import pytest
import training_images
from PIL import Image

from keras_efficientformer.image_folders.image_folder import ImageSet, hold_out, list_images
from keras_efficientformer.training import FineTuneConfig
from keras_efficientformer.training.data.batches import TrainingImages
from keras_efficientformer.training.data.loaders import LoaderBatches
from keras_efficientformer.training.data.multi_label import (
    list_multi_label,
    read_multi_label,
    read_multi_label_validation,
)

SIZE = (32, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four images of each set of colours."""
    return training_images.make_multi_label_folder(tmp_path_factory.mktemp("images"), 4)


@pytest.fixture
def photos(tmp_path):
    """1.png to 8.png in a folder below the one of the CSV files."""
    (tmp_path / "photos").mkdir()
    for number in range(1, 9):
        Image.new("RGB", (40, 40), (20 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


def write(path, *lines, encoding="utf-8"):
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def labels_of_images(names, images):
    """{file: set of label names}."""
    return {
        file.name: {name for name, value in zip(names, row, strict=True) if value}
        for file, row in zip(images.files, images.targets, strict=True)
    }


def test_folders(folder):
    names, images = list_multi_label(folder)
    assert names == ["blue", "green", "red"]
    assert len(images) == 32
    for file, row in zip(images.files, images.targets, strict=True):
        expected = set() if file.parent.name == "none" else set(file.parent.name.split("+"))
        assert {name for name, value in zip(names, row, strict=True) if value} == expected
    batch = next(TrainingImages(images, 3, SIZE, FineTuneConfig(batch_size=8)).epoch(0))
    assert batch.labels.dtype == "float32"
    np.testing.assert_array_equal(batch.labels, images.targets[batch.rows])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cat++dog", "'cat\\+\\+dog'"),
        ("C++", r"each once and none empty.*'C\+\+'.*columns of 0 and 1"),
        ("cat+cat", "each once"),
        ("cat+None", "'none' alone"),
    ],
)
def test_folder_names(tmp_path, name, words):
    training_images.make_folder(tmp_path, {"dog": 1, name: 1})
    with pytest.raises(ValueError, match=words):
        list_multi_label(tmp_path)


TABLES = {
    "list": ["file,labels", "photos/1.png,cat;dog", "photos/2.png,", "./photos/3.png,none", "photos/4.png, dog"],
    "other separators": [
        "labels,file",
        '"cat, dog",photos/1.png',
        ",photos/2.png",
        "",
        "NONE,photos/../photos/3.png",
        "dog,photos/4.png",
    ],
    "columns": ["file,cat,dog", "photos/1.png,1,1", "photos/2.png,0,0", "photos/3.png,0,0", "photos/4.png,0, 1"],
    "pandas": [
        "cat,file,dog",
        "True,photos/1.png,1.0",
        "False,photos/2.png,0.0",
        "0,photos/3.png,0",
        "0,photos/4.png,1",
    ],
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tables(photos, kind, encoding):
    """Every kind says the same, with the byte order mark of Excel and without."""
    names, images = list_multi_label(write(photos / "labels.csv", *TABLES[kind], encoding=encoding))
    assert names == ["cat", "dog"]
    assert images.targets.dtype == "uint8"
    assert labels_of_images(names, images) == {
        "1.png": {"cat", "dog"},
        "2.png": set(),
        "3.png": set(),
        "4.png": {"dog"},
    }
    assert images.files[0] == photos / "photos" / "1.png"


def test_names_from_another_system(photos):
    """macOS writes the accents of letters by themselves."""
    (photos / "photos" / "1.png").rename(photos / "photos" / "e\u0301.png")
    lines = ["file,labels", "photos/\u00e9.png,caf\u00e9", "photos/2.png,cafe\u0301;Tea", "photos/3.png,tea"]
    with pytest.warns(UserWarning, match="of nearly one name.*'Tea', 'tea'"):
        names, images = list_multi_label(write(photos / "labels.csv", *lines))
    assert names == ["Tea", "caf\u00e9", "tea"]
    assert images.files[0].name == "e\u0301.png"
    assert images.targets.tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_columns_keep_their_order_and_names(photos):
    lines = ["file,zebra,a+b;c", "photos/1.png,1,0", "photos/2.png,0,1"]
    assert list_multi_label(write(photos / "labels.csv", *lines))[0] == ["zebra", "a+b;c"]


BAD_TABLES = {
    "no header": (["photos/1.png,cat"], ValueError, "begin with a header"),
    "headers of others": (["image,label", "photos/1.png,cat"], ValueError, "'file' and 'labels'.*'image', 'label'"),
    "semicolons": (["file;cat;dog", "photos/1.png;0;1"], ValueError, "commas in it.*'file;cat;dog'"),
    "a column twice": (["file,cat,cat", "photos/1.png,0,1"], ValueError, "the name of each label once"),
    "a column without a name": (["file,cat,", "photos/1.png,0,1"], ValueError, "the name of each label once"),
    "a column of none": (["file,cat,None", "photos/1.png,0,1"], ValueError, "the name of each label once"),
    "the file twice": (["file,file,cat", "a,b,1"], ValueError, "begin with a header"),
    "the file alone": (["file", "photos/1.png"], ValueError, "begin with a header"),
    "labels and columns": (["file,labels,cat", "photos/1.png,cat,1"], ValueError, "'file' and 'labels', or"),
    "empty": ([""], ValueError, "begin with a header.*Found: nothing"),
    "header alone": (["file,labels"], ValueError, "a line for each image.*the header alone"),
    "too short": (["file,cat,dog", "photos/1.png,1,0", "photos/2.png,1"], ValueError, "3 values.*line 3 has 2"),
    "too long": (["file,labels", "photos/1.png,cat,dog"], ValueError, "2 values.*line 2 has 3"),
    "other values": (["file,cat,dog", "photos/1.png,1,0.5"], ValueError, r"Line 2 .*0 or 1.*'0\.5' for dog"),
    "no value": (["file,cat,dog", "photos/1.png,1,"], ValueError, "'' for dog"),
    "names in a column": (["file,tags", "photos/1.png,cat"], ValueError, "'cat' for tags.*is called 'labels'"),
    "missing": (
        ["file,labels", "photos/1.png,cat", "photos/9.png,cat", ",cat"],
        FileNotFoundError,
        r"names 2 images that are not there: .*9\.png \(line 3\).*\(line 4\)",
    ),
    "twice": (
        ["file,labels", "photos/1.png,cat", "photos/2.png,cat", "photos//1.png,dog"],
        ValueError,
        r"more than once: .*1\.png \(lines 2 and 4\)",
    ),
    "empty label": (["file,labels", "photos/1.png,cat;"], ValueError, "Line 2 .*none empty.*'cat;'"),
    "repeated label": (["file,labels", "photos/1.png,cat|cat"], ValueError, "each once"),
    "none and others": (["file,labels", "photos/1.png,none|cat"], ValueError, "'none' alone"),
    "no labels": (["file,labels", "photos/1.png,", "photos/2.png,none"], ValueError, "No image of .* has a label"),
    "open quotes": (["file,labels", 'photos/1.png,"cat'], ValueError, "values with commas between them"),
    "line break": (["file,labels", 'photos/1.png,"ca\nt"'], ValueError, r"single lines of text.*'ca\\nt'"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_bad_tables(photos, kind):
    lines, error, words = BAD_TABLES[kind]
    with pytest.raises(error, match=words):
        list_multi_label(write(photos / "labels.csv", *lines))


def test_other_encodings(photos):
    path = write(photos / "labels.csv", *TABLES["list"], encoding="utf-16")
    with pytest.raises(ValueError, match="in UTF-8"):
        list_multi_label(path)


def test_neither_folder_nor_table(photos):
    for name in ("labels.csv", "photos/1.png"):
        with pytest.raises(FileNotFoundError, match=r"neither a folder of images nor a \.csv file"):
            list_multi_label(photos / name)
    with pytest.raises(FileNotFoundError, match="--multi-label"):  # nor is it one for images of one label each
        list_images(write(photos / "labels.csv", *TABLES["list"]))


def test_table_that_teaches_nothing(photos):
    path = write(photos / "train.csv", "file,cat,dog", "photos/1.png,1,0", "photos/2.png,0,0")
    with pytest.raises(ValueError, match="these labels: dog"):
        read_multi_label(path, None)
    write(path, "file,labels", "photos/1.png,cat", "photos/2.png,cat")
    with pytest.raises(ValueError, match=r"the same labels, cat: there is nothing to tell apart.*'none'"):
        read_multi_label(path, None)
    write(path, "file,labels", "photos/1.png,cat", "photos/2.png,cat", "photos/3.png,dog")
    with pytest.raises(ValueError, match=r"'dog' has one image that can be read, .*3\.png"):
        hold_out(*read_multi_label(path, None)[:2], 0.5, 0)


def test_split_tables(photos):
    """train.csv and val.csv, whatever folders lie beside them; a label need not be in both, but in the first."""
    write(photos / "Train.csv", "file,labels", "photos/1.png,cat;dog", "photos/2.png,dog", "photos/3.png,")
    write(photos / "val.csv", "file,labels", "photos/4.png,dog", "photos/5.png,")
    names, training, held_out = read_multi_label(photos, None)
    assert (names, len(training)) == (["cat", "dog"], 3)
    assert labels_of_images(names, training)["1.png"] == {"cat", "dog"}
    assert labels_of_images(names, held_out) == {"4.png": {"dog"}, "5.png": set()}
    with pytest.raises(ValueError, match=r"holds Train\.csv, val\.csv: choose one"):
        list_multi_label(photos)

    for lines, words in [
        (["photos/4.png,dog;cow"], "training images do not have: cow.*have cat, dog"),
        (["photos/4.png,dog", "photos/2.png,dog"], r"both to train and to validate on: .*2\.png"),
    ]:
        write(photos / "val.csv", "file,labels", *lines)
        with pytest.raises(ValueError, match=words):
            read_multi_label(photos, None)
    write(photos / "val.csv", "file,cat", "photos/4.png,0", "photos/5.png,0")
    with pytest.raises(ValueError, match=r"No image of .*val\.csv has a label"):
        read_multi_label(photos, None)
    write(photos / "training.csv", "file,labels", "photos/1.png,cat")
    with pytest.raises(ValueError, match="leave one of them"):
        read_multi_label(photos, None)


def test_split_folders(folder, tmp_path):
    """A folder to train on and one beside it, and a folder beside a table; labels in the order that is given."""
    for part, count in (("train", 3), ("val", 2)):
        training_images.make_multi_label_folder(tmp_path / part, count)
    names, training, held_out = read_multi_label(tmp_path, None)
    assert (names, len(training), len(held_out)) == (["blue", "green", "red"], 24, 16)
    images = read_multi_label_validation(folder, ["red", "blue", "white", "green"])
    for file, row in zip(images.files, images.targets, strict=True):
        assert row.tolist() == [int(name in file.parent.name) for name in ("red", "blue", "white", "green")]


def test_held_out(folder):
    """A share of each label's images and of those without any, by seed; nothing twice, nothing lost."""
    names, images, beside = read_multi_label(folder, None)
    assert (len(images), beside) == (32, None)
    training, held_out = hold_out(names, images, 0.25, 0)
    assert sorted([*training.files, *held_out.files]) == sorted(list_multi_label(folder)[1].files)
    assert held_out.counts(len(names)).tolist() == [4, 4, 4]
    assert (held_out.targets.sum(1) == 0).sum() == 1
    assert hold_out(names, images, 0.25, 0)[1].files == held_out.files
    assert hold_out(names, images, 0.25, 1)[1].files != held_out.files


@pytest.mark.parametrize("seed", range(20))
def test_held_out_of_rare_labels(seed):
    """Whatever is drawn, every label keeps an image to train on, and the rarest have one to validate on."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((40, 8)) < np.linspace(0.05, 0.6, 8)).astype("uint8")
    targets[:2, 0] = targets[1:3, 1] = 1
    images = ImageSet(tuple(map(str, range(40))), targets, np.arange(40))
    training, held_out = hold_out("abcdefgh", images, 0.3, seed)
    assert training.counts(8).min() >= 1
    rarest = images.counts(8).argmin()
    assert held_out.counts(8)[rarest] >= 1
    assert len(training) + len(held_out) == 40


# Loaders.

RAW = np.random.default_rng(0).uniform(0, 255, (4, *SIZE, 3)).astype("float32")
ROWS = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float32"])
def test_loader(dtype):
    (batch,) = LoaderBatches([(RAW, ROWS.astype(dtype))], 3, SIZE, multi_label=True).epoch(0)
    assert batch.labels.dtype == "float32"
    np.testing.assert_array_equal(batch.labels, ROWS)
    with pytest.raises(ValueError, match="each image has one class, where multi_label does not say otherwise"):
        next(LoaderBatches([(RAW, ROWS.astype(dtype))], 3, SIZE).epoch(0))


def make_tf_data():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((RAW, ROWS)).batch(4)


def make_torch():
    import torch

    return torch.utils.data.DataLoader(list(zip(RAW, ROWS, strict=True)), batch_size=4)


@pytest.mark.parametrize("make", [make_tf_data, make_torch])
def test_loaders_of_frameworks(make):
    (batch,) = LoaderBatches(make(), 3, SIZE, multi_label=True).epoch(0)
    np.testing.assert_array_equal(batch.labels, ROWS)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([0, 1, 2, 0]), r"labels of shape \(batch, 3\): a row for each image.*\(4,\) with 4 images"),
        (ROWS[:, :2], r"\(4, 2\) with 4 images"),
        (ROWS * 2, r"labels in 0\.\.1\. Received: 2, 2, 0"),
        (ROWS - 0.5, r"labels in 0\.\.1\. Received: 0\.5, 0\.5, -0\.5"),
        (np.array([["cat", "dog", "cow"]] * 4), "labels that are numbers"),
    ],
)
def test_loader_of_something_else(labels, words):
    with pytest.raises(ValueError, match=words):
        next(LoaderBatches([(RAW, labels)], 3, SIZE, multi_label=True).epoch(0))
