"""The images that exports are measured on: seeded ones, folders and arrays."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_efficientformer.imagenet import ImageError, resize_and_crop
from keras_efficientformer.images import count_other_files, find_images, read_images, seeded_images

SHAPE = (40, 56, 3)


@pytest.fixture
def folder(tmp_path):
    """Images of one colour each, their number, in folders of folders; with what is no image between them."""
    for number, name in enumerate(("a.png", "b.JPG", "c/d.bmp", "c/e/f.webp", "c/g.tif", "h.gif", "z.jpeg")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((50, 60, 3), 30 * number, "uint8")).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def colours(images):
    return [round(float(image.mean()) / 30) for image in images]


@pytest.mark.parametrize("shape", [(224, 224, 3), (75, 47, 3), (32, 128, 1), (33, 64, 4)])
def test_seeded_images(shape):
    images = seeded_images(shape)
    assert images.shape == (4, *shape)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, seeded_images(shape))
    np.testing.assert_array_equal(images, np.round(images))
    assert images.min() == 0
    assert images.max() == 255
    assert all(image.std() > 40 for image in images)
    assert np.abs(images[:, :-1] - images[:, 1:]).mean() > 5


def test_seeded_images_are_the_same_everywhere():
    assert seeded_images((32, 32, 3)).astype("int").sum((1, 2, 3)).tolist() == [407585, 360960, 439268, 558374]


def test_find_images(folder):
    names = [path.relative_to(folder).as_posix() for path in find_images(folder)]
    assert names == ["a.png", "b.JPG", "c/d.bmp", "c/e/f.webp", "c/g.tif", "h.gif", "z.jpeg"]
    assert find_images(str(folder)) == find_images(folder)


def test_hidden_files_are_left_out(folder):
    before = find_images(folder)
    (folder / ".ipynb_checkpoints").mkdir()
    for name in ("._a.png", ".ipynb_checkpoints/a.png"):
        (folder / name).write_bytes(b"")
    assert find_images(folder) == before


def test_other_kinds_of_images(tmp_path):
    """All that Pillow opens as a picture, whatever the case of the name; the rest is counted."""
    image = Image.fromarray(np.full((50, 60, 3), 90, "uint8"))
    names = ("a.jfif", "b.JPE", "c.ppm", "d.avif", "e.jp2", "f.tga", "g.ico", "h.dib")
    for name in names:
        image.save(tmp_path / name, format={".jfif": "JPEG", ".jpe": "JPEG"}.get(name[1:].lower()))
    for name in ("notes.txt", "more.TXT", "film.mpg", "drawing.eps", "table.h5", "plain"):
        (tmp_path / name).write_text("no image")
    (tmp_path / ".hidden.txt").write_text("hidden")
    assert [path.name for path in find_images(tmp_path)] == list(names)
    assert colours(read_images(tmp_path, SHAPE, limit=10)) == [3] * len(names)
    assert count_other_files(tmp_path) == {".txt": 2, ".mpg": 1, ".eps": 1, ".h5": 1, "": 1}


def test_linked_folders_are_followed_once(folder, tmp_path_factory):
    linked = tmp_path_factory.mktemp("linked")
    (linked / "one").symlink_to(folder, target_is_directory=True)
    (folder / "c" / "round").symlink_to(folder, target_is_directory=True)
    (folder / "z_again").symlink_to(folder / "c", target_is_directory=True)
    assert [path.relative_to(linked / "one").as_posix() for path in find_images(linked)] == [
        path.relative_to(folder).as_posix() for path in find_images(folder)
    ]
    assert len(find_images(folder)) == 7


def test_find_images_errors(folder):
    with pytest.raises(FileNotFoundError, match="missing is not a folder of images"):
        find_images(folder / "missing")
    with pytest.raises(FileNotFoundError, match=r"a\.png is not a folder of images"):
        find_images(folder / "a.png")
    with pytest.raises(ValueError, match=r"folder\.png holds no images: expected files ending in \.jpg, \.png"):
        find_images(folder / "folder.png")


def test_read_a_folder(folder):
    images = read_images(folder, SHAPE, limit=100)
    assert images.shape == (7, *SHAPE)
    assert images.dtype == np.float32
    assert colours(images) == [0, 1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(images, read_images(str(folder), SHAPE, limit=100))


def test_images_are_prepared_as_for_evaluation(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "image.png")
    (image,) = read_images(tmp_path, SHAPE, limit=1)
    np.testing.assert_array_equal(image, resize_and_crop(pixels, SHAPE[:2]))


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, [0]), (2, [0, 6]), (3, [0, 3, 6]), (4, [0, 2, 4, 6]), (7, [0, 1, 2, 3, 4, 5, 6])]
)
def test_a_folder_is_sampled_evenly(folder, limit, expected):
    assert colours(read_images(folder, SHAPE, limit)) == expected


def constant_images(*values, shape=SHAPE):
    return np.stack([np.full(shape, value, "uint8") for value in values])


@pytest.mark.parametrize("kind", [np.asarray, list, iter, tuple, lambda images: (image for image in images)])
def test_read_arrays(kind):
    images = read_images(kind(constant_images(0, 30, 60, 90)), SHAPE, limit=3)
    assert images.dtype == np.float32
    assert colours(images) == [0, 1, 2]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "Received: none"),
        (np.zeros((0, *SHAPE)), "Received: none"),
        (constant_images(1, shape=(56, 40, 3)), r"Received: \[\(56, 40, 3\)\]"),
        ([np.zeros(SHAPE), np.zeros((40, 56, 1))], r"\(40, 56, 1\)"),
        (np.zeros(SHAPE), r"Received: \[\(56, 3\)\]"),
    ],
    ids=["none", "none in an array", "other size", "one of another shape", "one image without a batch"],
)
def test_unfit_arrays(images, words):
    with pytest.raises(
        ValueError, match=r"Images of the shape \(40, 56, 3\), values in 0\.\.255, are needed.*" + words
    ):
        read_images(images, SHAPE, limit=10)


@pytest.mark.parametrize(
    "arrange",
    [
        lambda images: [images[:1], images[1:]],
        lambda images: [(images[:2], [0, 1]), (images[2:], [2])],
        lambda images: list(zip(images, range(3), strict=True)),
        lambda images: [[image[None]] for image in images],
        lambda images: tf.data.Dataset.from_tensor_slices((images, range(3))).batch(2),
        lambda images: [{"image": images[:2], "label": [0, 1]}, {"image": images[2:], "label": [2]}],
        lambda images: [{"image": Image.fromarray(image.astype("uint8")), "label": 0} for image in images],
        lambda images: [Image.fromarray(image.astype("uint8")).resize((112, 80)) for image in images],
        lambda images: [(Image.fromarray(image.astype("uint8")), 0) for image in images],
    ],
    ids=[
        "batches",
        "labelled batches",
        "labelled",
        "TFLite's representative dataset",
        "tf.data",
        "dictionaries",
        "dictionaries of Pillow's images",
        "Pillow's images of another size",
        "labelled images of Pillow's",
    ],
)
def test_read_datasets(arrange):
    assert colours(read_images(arrange(constant_images(0, 30, 60)), SHAPE, limit=10)) == [0, 1, 2]


@pytest.mark.parametrize("scale", [lambda x: x / 255, lambda x: x / 127.5 - 1, lambda x: x * 3.0, lambda x: x * np.nan])
def test_images_that_are_not_raw(scale):
    with pytest.raises(
        ValueError, match=r"values in 0\.\.255, are needed, neither scaled nor normalised. Received: val"
    ):
        read_images(scale(constant_images(0, 255)), SHAPE, limit=10)


def test_dictionaries_without_an_image():
    with pytest.raises(ValueError, match=r"'image' or 'images'\. Received: 'pixel_values', 'label'"):
        read_images([{"pixel_values": np.zeros(SHAPE), "label": 0}], SHAPE, limit=10)


@pytest.mark.parametrize("images", [3, None])
def test_images_that_are_nothing_of_the_kind(images):
    with pytest.raises(TypeError, match=r"Images are a folder, an array or an iterable of arrays\. Received"):
        read_images(images, SHAPE, limit=10)


def test_photographs_have_three_channels_or_one(folder):
    images, (height, width, _) = read_images(folder, SHAPE, limit=10), SHAPE
    grey = read_images(folder, (height, width, 1), limit=10)
    assert grey.dtype == np.float32
    np.testing.assert_array_equal(grey[..., 0], np.round(images @ [0.299, 0.587, 0.114]))
    pictures = [Image.fromarray(image.astype("uint8")).resize((2 * width, 2 * height)) for image in images]
    assert np.abs(read_images(pictures, (height, width, 1), limit=10) - grey).mean() < 2
    with pytest.raises(ValueError, match="Photographs have three channels or, in grey, one, and the model takes 4"):
        read_images(folder, (height, width, 4), limit=10)


def test_unreadable_image(folder):
    (folder / "m.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"m\.png"):
        read_images(folder, SHAPE, limit=100)
