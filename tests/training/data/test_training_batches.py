"""What a step is fed: a function of seed, epoch and step; loaders of all kinds; augmentation; folders."""

import os
import warnings

import keras
import numpy as np
import pytest
import training_images

from keras_efficientformer.image_folders.image_folder import hold_out, read_folder, read_validation, without_unreadable
from keras_efficientformer.imagenet import load_image, preprocess_input, resize_and_crop
from keras_efficientformer.training import FineTuneConfig, list_images
from keras_efficientformer.training.data.augmentation import BatchAugmentation, random_crop
from keras_efficientformer.training.data.batches import (
    TrainingImages,
    ValidationImages,
    augmented,
    one_hot,
    prefetched,
)
from keras_efficientformer.training.data.loaders import LoaderBatches

SIZE = (32, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    counts = {"blue": 9, "green": 6, "red": 5}
    return training_images.make_folder(tmp_path_factory.mktemp("images"), counts)


@pytest.fixture(scope="module")
def images(folder):
    return list_images(folder)[1]


def equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for array, expected_array in zip(one, other, strict=True):
            np.testing.assert_array_equal(array, expected_array)


def test_epochs(images):
    """Every image at most once, another order and other crops in each epoch, the same again on the same seed."""
    batches = TrainingImages(images, 3, SIZE, FineTuneConfig(batch_size=6))
    first, again, second = list(batches.epoch(0)), list(batches.epoch(0)), list(batches.epoch(1))
    equal(first, again)
    rows = np.concatenate([batch.rows for batch in first])
    assert len(rows) == len(set(rows)) == 18
    assert (rows != np.concatenate([batch.rows for batch in second])).any()
    for batch in first:
        assert batch.images.shape == (6, *SIZE, 3)
        assert batch.images.dtype == batch.labels.dtype == "float32"
        np.testing.assert_array_equal(batch.labels.argmax(1), images.targets[batch.rows])
    other_seed = TrainingImages(images, 3, SIZE, FineTuneConfig(batch_size=6, seed=1))
    assert (next(other_seed.epoch(0)).rows != first[0].rows).any()


def test_epoch_from_its_middle(images):
    config = FineTuneConfig(batch_size=5, rand_augment=0.2, mixup=0.4, cutmix=0.5)
    batches = TrainingImages(images, 3, SIZE, config)

    def epoch(first_step):
        extend = lambda batch: batch.labels  # noqa: E731
        return list(prefetched(augmented(batches.epoch(3, first_step), config, 3, first_step, extend)))

    whole = epoch(0)
    assert len(whole) == 4
    equal(epoch(2), whole[2:])
    for batch in whole:
        np.testing.assert_allclose(batch.labels.sum(1), 1, rtol=1e-5)
        assert batch.images.min() >= 0
        assert batch.images.max() <= 255


def test_processes_share_a_batch(images):
    config = FineTuneConfig(batch_size=6)
    whole = next(TrainingImages(images, 3, SIZE, config).epoch(0))
    parts = [next(TrainingImages(images, 3, SIZE, config, process, 2).epoch(0)) for process in range(2)]
    rows = np.concatenate([part.rows for part in parts])
    order = [list(rows).index(row) for row in whole.rows]
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts])[order], whole.images)


def test_no_augmentation_is_evaluation(images):
    config = FineTuneConfig(batch_size=6, min_crop=1, flip=False)
    batch = next(TrainingImages(images, 3, SIZE, config).epoch(0))
    expected = [resize_and_crop(load_image(images.files[row]), SIZE, config.crop_fraction) for row in batch.rows]
    np.testing.assert_array_equal(batch.images, np.stack(expected).astype("float32"))


def test_validation_keeps_the_order(images):
    batches = ValidationImages(images, 3, SIZE, 0.95, 8)
    found = list(batches.epoch(0))
    assert [len(batch.images) for batch in found] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in found]), np.arange(20))


def test_flip(images):
    """Some of the images, and those exactly mirrored."""
    plain, mirrored = (
        np.concatenate([batch.images for batch in TrainingImages(images, 3, SIZE, config).epoch(0)])
        for config in (FineTuneConfig(batch_size=5, min_crop=1, flip=flip) for flip in (False, True))
    )
    flipped = np.array([(one != other).any() for one, other in zip(plain, mirrored, strict=True)])
    assert 3 <= flipped.sum() <= 17
    np.testing.assert_array_equal(plain[flipped][:, :, ::-1], mirrored[flipped])


def test_random_crop():
    """A part of the image, the right way round."""
    image = np.zeros((100, 60, 3), "uint8")
    image[:, :, 0] = np.linspace(0, 250, 60)
    for seed in range(50):
        crop = random_crop(image, SIZE, 0.2, np.random.default_rng(seed))
        red = crop[:, :, 0].astype(int)
        assert (np.diff(red, axis=1) >= -1).all()
        assert red.max() - red.min() > 50


@pytest.mark.parametrize("settings", [(0.3, 0, 0), (0, 0.4, 0), (0, 0, 1.0)])
def test_batch_augmentation(settings):
    images = np.concatenate([training_images.pixels(colour, 2, size=SIZE) for colour in training_images.COLOURS])
    images, labels = images.astype("float32"), one_hot(np.array([0, 0, 1, 1, 2, 2]), 3)
    augmentation = BatchAugmentation(*settings)
    found, again, other = (augmentation(images, labels, seed) for seed in ([1, 2], [1, 2], [1, 3]))
    equal([found], [again])
    assert (found[0] != other[0]).any()
    assert (found[0] != images).any()
    np.testing.assert_allclose(found[1].sum(1), 1, rtol=1e-5)
    assert (found[1] != labels).any() == (settings[0] == 0)


def test_no_augmentation():
    images = training_images.pixels("red", 2, size=SIZE).astype("float32")
    labels = one_hot(np.array([0, 1]), 3)
    equal([BatchAugmentation(0, 0, 0)(images, labels, [0])], [(images, labels)])


RAW = np.random.default_rng(0).integers(0, 256, (10, *SIZE, 3)).astype("uint8")
TARGETS = np.arange(10) % 3


class Dataset(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        part = slice(4 * index, 4 * index + 4)
        return RAW[part], TARGETS[part]


def tensorflow_dataset():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((RAW, TARGETS)).batch(4)


def torch_loader():
    import torch

    data = torch.utils.data.TensorDataset(torch.from_numpy(RAW), torch.from_numpy(one_hot(TARGETS, 3)))
    return torch.utils.data.DataLoader(data, batch_size=4)


@pytest.mark.parametrize("make", [Dataset, tensorflow_dataset, torch_loader])
def test_loaders(make):
    batches = LoaderBatches(make(), 3, SIZE)
    assert batches.steps == 3
    found = list(batches.epoch(0))
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in found]), RAW)
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in found]), one_hot(TARGETS, 3))
    assert [len(batch.images) for batch in batches.epoch(0, 2)] == [2]


def test_loader_is_told_the_epoch():
    class Shuffled(Dataset):
        def set_epoch(self, epoch):
            self.epoch = epoch

    loader = Shuffled()
    next(LoaderBatches(loader, 3, SIZE).epoch(5))
    assert loader.epoch == 5


def test_epochs_of_a_py_dataset():
    """Its hooks are called as by Keras; where a run goes on, those of the epochs before come first."""

    class Shuffled(Dataset):
        calls = ""

        def on_epoch_begin(self):
            self.calls += "b"

        def on_epoch_end(self):
            self.calls += "e"

    unbroken, resumed = Shuffled(), Shuffled()
    batches = LoaderBatches(unbroken, 3, SIZE)
    for epoch, calls in enumerate(("b", "beb", "bebeb")):
        found = batches.epoch(epoch)
        next(found)
        assert unbroken.calls == calls
        assert len(list(found)) == 2
    assert unbroken.calls == "bebebe"
    next(LoaderBatches(resumed, 3, SIZE).epoch(2, 1))
    assert resumed.calls == "bebeb"


def test_endless_loader():
    """No batch is taken beyond the length that it tells."""

    class Endless:
        def __len__(self):
            return 2

        def __iter__(self):
            yield from [(RAW[:4], TARGETS[:4])] * 2
            raise AssertionError

    assert len(list(LoaderBatches(Endless(), 3, SIZE).epoch(0))) == 2


def test_column_of_labels():
    (batch,) = LoaderBatches([(RAW[:4], TARGETS[:4, None])], 3, SIZE).epoch(0)
    np.testing.assert_array_equal(batch.labels, one_hot(TARGETS[:4], 3))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((RAW[:4], TARGETS[:4], np.ones(4)), "two parts.*class_weight.*Received: 3 parts"),
        ({"pixels": RAW[:4], "label": TARGETS[:4]}, "'image' or 'images' and 'label'.*: 'pixels', 'label'"),
        ({"image": RAW[:4]}, "dictionaries.*'label' or 'labels'. Received: 'image'"),
        (RAW[:4], "two parts.*Received: ndarray"),
        ((np.zeros((4, 3, 32, 32)), TARGETS[:4]), r"\(batch, 32, 32, 3\), channels last.*Received: \(4, 3, 32, 32\)"),
        ((RAW[:4], np.zeros((4, 5))), r"labels of shape \(batch,\) or \(batch, 3\).*Received: \(4, 5\)"),
        ((RAW[:4], np.array([0, 1, 2, 3])), r"range \[0, 3\).*0 to 3"),
        ((RAW[:4], np.array([0, 1, 2, -1])), r"range \[0, 3\).*-1 to 2"),
        ((RAW[:4], np.array([0, 1, 0.9, 1.9])), "whole numbers.*Received: 0, 1, 0.9, 1.9"),
        ((RAW[:4], np.array([[0.5]] * 4)), "whole numbers.*Received: 0.5, 0.5"),
        ((RAW[:4], np.array([0, 1, np.nan, np.inf])), "whole numbers.*Received: 0, 1, nan, inf"),
        ((RAW[:4], np.array(["red", "blue", "red", "red"])), "labels that are numbers.*Received: 'red', 'blue'"),
        ((RAW[:4], np.array([None, 1, 2, 0])), "labels that are numbers.*Received: None, 1"),
        ((RAW[:4], np.array([[1, 1, 0]] * 4)), "probabilities.*add up to 1.*Received: 1, 1, 0"),
        ((RAW[:4], np.zeros((4, 3))), "probabilities.*Received: 0, 0, 0"),
        ((RAW[:4], np.array([[1, 0, 0]] * 3 + [[2, -1, 0]])), "probabilities.*none under 0.*Received: 2, -1, 0"),
        ((RAW[:4] / 255, TARGETS[:4]), r"neither scaled nor normalised. Received: values in 0\.\.1$"),
        ((RAW[:4] / np.float32(255), TARGETS[:4]), r"neither scaled nor normalised. Received: values in 0\.\.1$"),
        ((RAW[:4] / 127.5 - 1, TARGETS[:4]), r"neither scaled nor normalised. Received: values in -1\.\.1$"),
        ((preprocess_input(RAW[:4]), TARGETS[:4]), "neither scaled nor normalised"),
        ((RAW[:4] - np.array([104.0, 117.0, 124.0]), TARGETS[:4]), "neither scaled nor normalised"),
        ((RAW[:4] * 257.0, TARGETS[:4]), "neither scaled nor normalised"),
    ],
)
def test_loader_of_something_else(batch, words):
    with pytest.raises(ValueError, match=words):
        next(LoaderBatches([batch], 3, SIZE).epoch(0))


@pytest.mark.parametrize(
    "images",
    [np.zeros((4, *SIZE, 3)), np.zeros((4, *SIZE, 3), "uint8"), RAW[:4] // 200, RAW[:4] / 100, RAW[:4] % 4 * 1.0],
    ids=["black", "black bytes", "bytes of 0 and 1", "0..2.55", "whole numbers to 3"],
)
def test_dark_images_pass(images):
    (batch,) = LoaderBatches([(images, TARGETS[:4])], 3, SIZE).epoch(0)
    np.testing.assert_allclose(batch.images, images, rtol=1e-6)


@pytest.mark.parametrize("names", [("image", "label"), ("images", "labels")])
def test_dictionaries(names):
    """As tensorflow-datasets and Hugging Face's give them, with other things beside."""
    item = dict(zip(names, (RAW[:4], TARGETS[:4]), strict=True)) | {"id": np.arange(4)}
    (batch,) = LoaderBatches([item], 3, SIZE).epoch(0)
    np.testing.assert_array_equal(batch.images, RAW[:4])
    np.testing.assert_array_equal(batch.labels, one_hot(TARGETS[:4], 3))


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_mixed_labels(dtype):
    rows = np.random.default_rng(0).dirichlet(np.ones(3), 4).astype(dtype)
    (batch,) = LoaderBatches([(RAW[:4], rows)], 3, SIZE).epoch(0)
    np.testing.assert_array_equal(batch.labels, rows.astype("float32"))


def test_loader_without_length():
    with pytest.raises(ValueError, match="does not know how many batches"):
        LoaderBatches(iter([]), 3, SIZE)
    with pytest.raises(ValueError, match="has no batches"):
        LoaderBatches([], 3, SIZE)


def test_held_out(folder):
    """A share of each class, by seed; nothing twice, nothing lost."""
    names, images, beside = read_folder(folder, None)
    assert (names, len(images), beside) == (["blue", "green", "red"], 20, None)
    training, held_out = hold_out(names, images, 0.25, 0)
    assert np.bincount(held_out.targets).tolist() == [2, 2, 1]
    assert sorted([*training.files, *held_out.files]) == list(list_images(folder)[1].files)
    assert hold_out(names, images, 0.25, 0)[1].files == held_out.files
    assert hold_out(names, images, 0.25, 1)[1].files != held_out.files


@pytest.mark.parametrize(("name", "shown"), [(b"bl\nue", r"'bl\\nue'"), (b"r\xf4t", r"'r\\udcf4t'")])
def test_class_folders_that_no_list_of_labels_can_hold(tmp_path, name, shown):
    (tmp_path / "red").mkdir()
    os.mkdir(os.path.join(os.fsencode(tmp_path), name))
    with pytest.raises(ValueError, match=rf"names hold a line break or are no UTF-8.*{shown}\. Rename"):
        list_images(tmp_path)


def test_names_that_look_alike(tmp_path):
    """macOS writes the accents of letters by themselves, so what it has packed may not be called as it is elsewhere."""
    for name in ("caf\u00e9", "tea", "Tea"):
        training_images.make_folder(tmp_path / "train", {name: 1})
        training_images.make_folder(tmp_path / "val", {name.replace("\u00e9", "e\u0301"): 1})
    (tmp_path / "train" / "loose.png").touch()
    (tmp_path / "loose.jpg").touch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names, _, held_out = read_folder(tmp_path, None)
    assert names == ["Tea", "caf\u00e9", "tea"]
    assert [file.parent.name for file in held_out.files] == ["Tea", "cafe\u0301", "tea"]
    told = [str(warning.message).partition(" has ")[2] for warning in caught]
    assert told == [
        "1 images beside train, val, which are left out: loose.jpg.",
        "classes of nearly one name, which are not taken for one: 'Tea', 'tea'.",
        "1 images beside Tea, caf\u00e9, tea, which are left out: loose.png.",
        "classes of nearly one name, which are not taken for one: 'Tea', 'tea'.",
    ]
    training_images.make_folder(tmp_path / "train", {"cafe\u0301": 1})
    with pytest.raises(ValueError, match=r"one name, written with .*'cafe\\u0301', 'caf\\xe9'"):
        list_images(tmp_path / "train")


def test_hidden_files(tmp_path):
    """What systems and tools leave beside images."""
    folder = training_images.make_folder(tmp_path / ".data" / "images", {"blue": 2, "red": 2})
    (folder / "red" / "._000.png").write_bytes(b"Mac OS X")
    (folder / "red" / ".ipynb_checkpoints").mkdir()
    (folder / "red" / ".ipynb_checkpoints" / "x.png").write_bytes(b"")
    names, images = list_images(folder)
    assert len(images) == 4
    # A link that leads nowhere is no hidden file: the image behind it is missing.
    (folder / "red" / "002.png").symlink_to("elsewhere.png")
    with pytest.raises(ValueError, match=r"1 of 5 images cannot be read:\n.*No such file.*red/002\.png"):
        without_unreadable(list_images(folder)[1], names, skip=False)


@pytest.mark.parametrize("parts", [("Train", "Val"), ("training", "validation", "test"), ("TRAIN", "test")])
def test_split(parts, tmp_path):
    for part, count in zip(parts, (4, 3, 2), strict=False):
        training_images.make_folder(tmp_path / part, {"blue": count, "red": count})
    names, training, held_out = read_folder(tmp_path, None)
    assert (names, len(training), len(held_out)) == (["blue", "red"], 8, 6)
    with pytest.raises(ValueError, match="parts of a split: choose one of them"):
        list_images(tmp_path)


def test_class_called_train(tmp_path):
    training_images.make_folder(tmp_path, {"bus": 4, "car": 4, "train": 4})
    assert read_folder(tmp_path, None)[0] == ["bus", "car", "train"]
    training_images.make_folder(tmp_path / "train", {"blue": 2, "red": 2})
    with pytest.raises(ValueError, match="beside it bus, car: expected nothing but val, valid, validation, test"):
        read_folder(tmp_path, None)


def test_images_to_train_on_are_not_validated_on(tmp_path, folder):
    """Neither as a folder of its own, nor by links: the accuracy would be of what was learnt by heart."""
    with pytest.raises(ValueError, match=r"20 images are both to train and to validate on: .*000\.png"):
        read_folder(folder, folder)
    (tmp_path / "train").symlink_to(folder)
    training_images.make_folder(tmp_path / "val", {"blue": 1, "green": 1, "red": 1})
    assert len(read_folder(tmp_path, None)[2]) == 3
    os.symlink(folder / "red" / "001.png", tmp_path / "val" / "red" / "x.png")
    with pytest.raises(ValueError, match=r"1 images are both .*red/001\.png"):
        read_folder(tmp_path, None)


def test_what_is_held_out_is_not_trained_on_by_a_link(tmp_path):
    training_images.make_folder(tmp_path, {"blue": 2, "red": 1})
    (tmp_path / "red" / "001.png").symlink_to("000.png")
    with pytest.raises(ValueError, match=r"1 images are both to train and to validate on: .*red/000\.png"):
        hold_out(*list_images(tmp_path), 0.5, 0)


def test_validation_in_the_order_of_labels(folder):
    """A loader's labels may be in any order."""
    images = read_validation(folder, ["red", "blue", "green"])
    for target, file in zip(images.targets, images.files, strict=True):
        assert ["red", "blue", "green"][target] == file.parent.name
