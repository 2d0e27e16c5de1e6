"""Images and labels: parity with timm's evaluation transform and keras.applications, and every kind of image file."""

import hashlib
import io
import json
import os
import resource
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib

import forked
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from project import IMAGES, IMAGES_VARIABLE, NO_COLLECTOR, ROOT

from keras_efficientformer import imagenet
from keras_efficientformer.imagenet import (
    ImageError,
    decode_predictions,
    imagenet_labels,
    load_image,
    preprocess_image,
    preprocess_input,
    resize_and_crop,
)

IMAGENET_SAMPLES = IMAGES / "imagenet-samples.zip" if IMAGES else None
SIZES = [(224, 224), (64, 64), (160, 224), (256, 256), (224, 160), (33, 47)]

RED, GREEN, BLUE, GREY = (200, 30, 10), (10, 190, 40), (20, 60, 210), (128, 128, 128)


@pytest.fixture(scope="module")
def photographs():
    from skimage import data

    return {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}


def timm_transform(size, crop_fraction=0.95):
    from timm.data import create_transform

    return create_transform(
        input_size=(3, *size),
        interpolation="bicubic",
        crop_pct=crop_fraction,
        mean=imagenet.MEAN,
        std=imagenet.STD,
        is_training=False,
    )


def assert_equals_timm(image, size, crop_fraction=0.95):
    expected = timm_transform(size, crop_fraction)(Image.fromarray(image)).numpy().transpose(1, 2, 0)
    actual = preprocess_image(image, size, crop_fraction)
    assert actual.shape == (*size, 3)
    assert actual.dtype == np.float32
    # The promise is 1/255 before normalisation. Equal pixels are what the code means to give, so that is asked.
    np.testing.assert_allclose(actual * imagenet.STD, expected * imagenet.STD, atol=1e-6)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_preprocess_image_equals_timm_on_photographs(photographs, name, size):
    assert_equals_timm(photographs[name], size)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("shape", [(20, 31), (150, 100), (63, 300), (1, 7), (235, 235), (101, 235)], ids=str)
def test_preprocess_image_equals_timm_on_small_and_odd_images(photographs, shape, size):
    height, width = shape
    assert_equals_timm(photographs["chelsea"][40 : 40 + height, 60 : 60 + width], size)


@pytest.mark.parametrize("crop_fraction", [0.5, 0.875, 0.9, 1.0])
def test_preprocess_image_equals_timm_for_other_crops(photographs, crop_fraction):
    for size in SIZES:
        assert_equals_timm(photographs["coffee"], size, crop_fraction)


def test_preprocess_image_equals_timm_on_imagenet_files():
    if IMAGENET_SAMPLES is None:
        pytest.skip(f"needs ImageNet photographs, which are not part of the project: {IMAGES_VARIABLE}")
    with zipfile.ZipFile(IMAGENET_SAMPLES) as samples:
        names = sorted(samples.namelist())[::20]
        assert len(names) == 25
        for index, name in enumerate(names):
            content = samples.read(name)
            size = SIZES[index % len(SIZES)]
            with Image.open(io.BytesIO(content)) as image:
                expected = timm_transform(size)(image.convert("RGB")).numpy().transpose(1, 2, 0)
            actual = preprocess_image(io.BytesIO(content), size)
            np.testing.assert_allclose(actual * imagenet.STD, expected * imagenet.STD, atol=1e-6, err_msg=name)


def test_preprocess_image_takes_paths_and_arrays(tmp_path, photographs):
    path = tmp_path / "cat.png"
    Image.fromarray(photographs["chelsea"]).save(path)
    expected = preprocess_image(photographs["chelsea"], (64, 96))
    np.testing.assert_array_equal(preprocess_image(path, (64, 96)), expected)
    np.testing.assert_array_equal(preprocess_image(str(path), (64, 96)), expected)


def test_resize_and_crop_gives_bytes_and_leaves_its_input_alone(photographs):
    image = photographs["rocket"].copy()
    result = resize_and_crop(image, (50, 80))
    assert result.dtype == np.uint8
    assert result.shape == (50, 80, 3)
    result[:] = 0  # writable, and no view of the input
    np.testing.assert_array_equal(image, photographs["rocket"])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), "float32"),
        np.zeros((8, 8), "uint8"),
        np.zeros((8, 8, 4), "uint8"),
        np.zeros((1, 8, 8, 3), "uint8"),
        np.zeros((0, 8, 3), "uint8"),
    ],
    ids=lambda image: f"{image.dtype}{image.shape}",
)
def test_resize_and_crop_refuses_what_is_no_rgb_image(image):
    with pytest.raises(ValueError, match=r"uint8 array of shape \(height, width, 3\).*Received: dtype="):
        resize_and_crop(image)


@pytest.mark.parametrize("size", [224, (0, 224), (224,), (224, 224, 3), (12.5, 20), (None, None)], ids=str)
def test_resize_and_crop_refuses_bad_sizes(photographs, size):
    with pytest.raises(ValueError, match=r"two positive integers, \(height, width\)"):
        resize_and_crop(photographs["chelsea"], size)


@pytest.mark.parametrize("crop_fraction", [0, -0.5, 1.1, 95, float("nan"), None])
def test_resize_and_crop_refuses_bad_crop_fractions(photographs, crop_fraction):
    with pytest.raises(ValueError, match="crop_fraction"):
        resize_and_crop(photographs["chelsea"], crop_fraction=crop_fraction)


# Files


def quarters(*values, dtype="uint8"):
    """An image of four 8x8 squares of one value each, big enough to survive JPEG's blocks."""
    top_left, top_right, bottom_left, bottom_right = (
        np.broadcast_to(np.array(v, dtype), (8, 8, *np.shape(v))) for v in values
    )
    return np.block(
        [[[top_left], [top_right]], [[bottom_left], [bottom_right]]]
        if np.ndim(values[0])
        else [[top_left, top_right], [bottom_left, bottom_right]]
    )


def assert_quarters(image, *colours, tolerance=0):
    assert image.dtype == np.uint8
    assert image.shape == (16, 16, 3)
    corners = [image[3, 3], image[3, 12], image[12, 3], image[12, 12]]
    np.testing.assert_allclose(np.array(corners, int), np.array(colours, int), atol=tolerance)


def save(image, path, **options):
    image.save(path, **options)
    return path


def grey(*values):
    return [(value,) * 3 for value in values]


RGB_IMAGE = Image.fromarray(quarters(RED, GREEN, BLUE, GREY))


@pytest.mark.parametrize("ending", ["png", "tiff", "bmp", "ppm", "webp", "jpg"])
def test_load_image_rgb(tmp_path, ending):
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(ending, {})
    path = save(RGB_IMAGE, tmp_path / f"image.{ending}", **options)
    image = load_image(path)
    assert_quarters(image, RED, GREEN, BLUE, GREY, tolerance=2 if ending == "jpg" else 0)
    image[:] = 0  # writable


@pytest.mark.parametrize("ending", ["png", "tiff", "jpg", "gif", "pgm"])
def test_load_image_grey(tmp_path, ending):
    path = save(Image.fromarray(quarters(0, 80, 160, 255)), tmp_path / f"image.{ending}")
    assert_quarters(load_image(path), *grey(0, 80, 160, 255), tolerance=1 if ending == "jpg" else 0)


@pytest.mark.parametrize("ending", ["png", "tiff", "gif"])
def test_load_image_one_bit(tmp_path, ending):
    image = Image.fromarray(quarters(0, 255, 255, 0)).convert("1")
    assert_quarters(load_image(save(image, tmp_path / f"image.{ending}")), *grey(0, 255, 255, 0))


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_load_image_drops_alpha(tmp_path, ending):
    rgba = Image.fromarray(quarters((*RED, 0), (*GREEN, 255), (*BLUE, 100), (*GREY, 1)))
    assert rgba.mode == "RGBA"
    assert_quarters(load_image(save(rgba, tmp_path / f"rgba.{ending}")), RED, GREEN, BLUE, GREY)

    grey_alpha = Image.fromarray(quarters((0, 255), (80, 0), (160, 9), (255, 200)))
    assert grey_alpha.mode == "LA"
    assert_quarters(load_image(save(grey_alpha, tmp_path / f"la.{ending}")), *grey(0, 80, 160, 255))


@pytest.mark.parametrize(
    ("ending", "transparency"),
    [("png", None), ("png", 1), ("png", bytes([255, 0, 128, 9])), ("gif", None), ("gif", 1)],
)
def test_load_image_palette(tmp_path, ending, transparency):
    image = Image.fromarray(quarters(0, 1, 2, 3)).convert("P")
    image.putdata([int(v) for v in quarters(0, 1, 2, 3).ravel()])
    image.putpalette([*RED, *GREEN, *BLUE, *GREY])
    options = {} if transparency is None else {"transparency": transparency}
    path = save(image, tmp_path / f"image.{ending}", **options)
    with Image.open(path) as written:
        assert written.mode == "P"
        assert ("transparency" in written.info) == (transparency is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_quarters(load_image(path), RED, GREEN, BLUE, GREY)


def test_load_image_transparent_colour_of_an_rgb_png(tmp_path):
    path = save(RGB_IMAGE, tmp_path / "image.png", transparency=RED)
    assert_quarters(load_image(path), RED, GREEN, BLUE, GREY)


@pytest.mark.parametrize("ending", ["tiff", "jpg"])
def test_load_image_cmyk(tmp_path, ending):
    inks = quarters((0, 255, 255, 0), (255, 0, 255, 0), (255, 255, 0, 0), (0, 0, 0, 255))
    cmyk = Image.frombytes("CMYK", (16, 16), inks.tobytes())
    path = save(cmyk, tmp_path / f"image.{ending}", **({"quality": 100} if ending == "jpg" else {}))
    expected = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)]
    assert_quarters(load_image(path), *expected, tolerance=3 if ending == "jpg" else 0)


@pytest.mark.parametrize(
    ("ending", "dtype", "mode"),
    [
        ("png", "<u2", "I;16"),
        ("tiff", "<u2", "I;16"),
        ("tiff", ">u2", "I;16B"),
        ("pgm", "<u2", "I"),
        ("tiff", "int32", "I"),
    ],
)
def test_load_image_16_bit_grey_is_scaled_not_clipped(tmp_path, ending, dtype, mode):
    values = quarters(0, 0x1234, 0xABCD, 0xFFFF, dtype="u2").astype(dtype)
    path = save(Image.fromarray(values), tmp_path / f"image.{ending}")
    with Image.open(path) as written:
        assert written.mode == mode
    assert_quarters(load_image(path), *grey(0, 0x12, 0xAB, 0xFF))


def png_of_16_bits(samples, colour_type):
    """A PNG file, written by hand: Pillow cannot write 16-bit colour."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunks)


def test_load_image_16_bit_colour_and_grey_with_alpha():
    colours = [(0x1234, 0xFFFF, 0), (0xABCD, 0x80FF, 0x0100), (0, 0, 0), (0xFFFF, 0xFFFF, 0xFFFF)]
    expected = [tuple(value >> 8 for value in colour) for colour in colours]
    assert_quarters(load_image(png_of_16_bits(quarters(*colours, dtype="u2"), 2)), *expected)
    rgba = [(*colour, 0x4321) for colour in colours]
    assert_quarters(load_image(png_of_16_bits(quarters(*rgba, dtype="u2"), 6)), *expected)
    grey_alpha = [(0, 0), (0x1234, 0xFFFF), (0xABCD, 7), (0xFFFF, 0x8000)]
    assert_quarters(load_image(png_of_16_bits(quarters(*grey_alpha, dtype="u2"), 4)), *grey(0, 0x12, 0xAB, 0xFF))


def test_load_image_floating_point_grey(tmp_path):
    path = save(Image.fromarray(quarters(0, 0.25, 0.5, 1, dtype="float32")), tmp_path / "image.tiff")
    assert_quarters(load_image(path), *grey(0, 64, 128, 255))


@pytest.mark.parametrize(
    "values",
    [
        quarters(0, -1, 5, 70000, dtype="int32"),
        quarters(0, 1, 2, 200, dtype="float32"),
        quarters(0, 1, 0.5, np.nan, dtype="float32"),
    ],
    ids=["int32", "float32", "nan"],
)
def test_load_image_refuses_grey_of_unknown_range(tmp_path, values):
    path = save(Image.fromarray(values), tmp_path / "image.tiff")
    with pytest.raises(ImageError, match=r"image\.tiff' is a damaged or unsupported TIFF image: its grey values run"):
        load_image(path)


def test_load_image_cielab(tmp_path):
    # TIFF stores a and b signed. Pillow offsets them by 128 when it reads, but not when it writes.
    lab = [(255, 0, 0), (0, 0, 0), (137, 80, 67), (137, 0, 0)]
    image = Image.frombytes("LAB", (16, 16), quarters(*lab).tobytes())
    path = save(image, tmp_path / "image.tiff")
    assert_quarters(load_image(path), (255, 255, 255), (0, 0, 0), (255, 0, 0), (127, 127, 127), tolerance=12)


@pytest.mark.parametrize("ending", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        # Where the stored quarters (top left, top right, bottom left, bottom right) are to be seen, by the EXIF
        # standard's "0th row / 0th column": 6 means that the stored top row is the visible right-hand side.
        (1, (RED, GREEN, BLUE, GREY)),
        (2, (GREEN, RED, GREY, BLUE)),
        (3, (GREY, BLUE, GREEN, RED)),
        (4, (BLUE, GREY, RED, GREEN)),
        (5, (RED, BLUE, GREEN, GREY)),
        (6, (BLUE, RED, GREY, GREEN)),
        (7, (GREY, GREEN, BLUE, RED)),
        (8, (GREEN, GREY, RED, BLUE)),
        (9, (RED, GREEN, BLUE, GREY)),
    ],
)
def test_load_image_applies_the_exif_orientation(tmp_path, orientation, expected, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(ending, {})
    path = save(RGB_IMAGE, tmp_path / f"image.{ending}", exif=exif, **options)
    assert_quarters(load_image(path), *expected, tolerance=2 if ending == "jpg" else 0)


def test_load_image_turns_a_16_bit_photograph(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(quarters(0, 0x1234, 0xABCD, 0xFFFF, dtype="u2")).crop((0, 0, 16, 12))
    turned = load_image(save(image, tmp_path / "image.png", exif=exif))
    assert turned.shape == (16, 12, 3)
    np.testing.assert_array_equal(turned[[3, 3, 12, 12], [1, 9, 1, 9], 0], [0xAB, 0, 0xFF, 0x12])


def test_load_image_with_broken_exif(tmp_path):
    for number, exif in enumerate([b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f"]):
        path = save(RGB_IMAGE, tmp_path / f"{number}.jpg", exif=exif, quality=100, subsampling=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's "Corrupt EXIF data"
            assert_quarters(load_image(path), RED, GREEN, BLUE, GREY, tolerance=2)


def test_load_image_from_file_objects(tmp_path):
    path = save(RGB_IMAGE, tmp_path / "image.png")
    with open(path, "rb") as file:
        assert_quarters(load_image(file), RED, GREEN, BLUE, GREY)
        assert not file.closed
    assert_quarters(load_image(io.BytesIO(path.read_bytes())), RED, GREEN, BLUE, GREY)

    class Download(io.BytesIO):  # as urllib's response
        def seekable(self):
            return False

        def seek(self, *_):
            raise io.UnsupportedOperation("seek")

    assert_quarters(load_image(Download(path.read_bytes())), RED, GREEN, BLUE, GREY)
    with pytest.raises(ImageError, match="it begins with b'hello'"):
        load_image(Download(b"hello"))
    # Pillow would take the characters for the name of a file.
    for text in (io.StringIO("image.png"), open(path, encoding="latin-1")):  # noqa: SIM115
        with text, pytest.raises(TypeError, match="expects a path or a binary file object"):
            load_image(text)


@pytest.mark.parametrize("ending", ["jpg", "png", "tiff", "gif", "webp", "bmp", "ppm", "jp2"])
def test_load_image_truncated(tmp_path, photographs, ending):
    path = save(Image.fromarray(photographs["chelsea"][:64, :64]), tmp_path / f"cat.{ending}")
    content = path.read_bytes()
    for share in (0.01, 0.3, 0.6, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's "Truncated File Read"
            with pytest.raises(ImageError, match=rf"cat\.{ending}' is (not an image|a damaged)"):
                load_image(path)


def test_load_image_damaged(tmp_path, photographs):
    path = save(Image.fromarray(photographs["chelsea"][:64, :64]), tmp_path / "cat.png")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"cat\.png' is a damaged or unsupported PNG image: .*save it as"):
        load_image(path)


def test_load_image_that_is_none(tmp_path):
    text, empty = tmp_path / "notes.jpg", tmp_path / "empty.png"
    text.write_text("Dear diary, today")
    empty.touch()
    with pytest.raises(ImageError, match=r"notes\.jpg' is not an image .*begins with b'Dear diary, '.*\[heic\]'"):
        load_image(text)
    with pytest.raises(ImageError, match=r"empty\.png' is not an image .*it is empty"):
        load_image(empty)
    with pytest.raises(ImageError, match=r"notes\.jpg"):
        preprocess_image(text)
    assert issubclass(ImageError, ValueError)


def test_load_image_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.jpg"):
        load_image(tmp_path / "absent.jpg")
    with pytest.raises(IsADirectoryError):
        load_image(tmp_path)
    with pytest.raises(TypeError, match=r"a path or a binary file object. Received: bytes.*io\.BytesIO"):
        load_image(b"\x89PNG")
    with pytest.raises(TypeError, match="Received: NoneType"):
        preprocess_image(None)


def test_load_image_decompression_bomb(tmp_path, monkeypatch):
    path = save(RGB_IMAGE, tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses from twice as many on; these are 256
    with pytest.raises(ImageError, match=r"bomb\.png' is too large.*256 pixels.*MAX_IMAGE_PIXELS"):
        load_image(path)


# Normalisation


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(5, 6, 3), (2, 5, 6, 3)], ids=str)
def test_preprocess_input_equals_keras_applications(dtype, shape):
    images = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    original = images.copy()
    expected = keras.applications.imagenet_utils.preprocess_input(images.astype("float32"), mode="torch")

    result = preprocess_input(images)
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(images, original)

    tensor = keras.ops.convert_to_tensor(images)
    result = preprocess_input(tensor, data_format="channels_last")
    assert keras.ops.is_tensor(result)
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    np.testing.assert_allclose(keras.ops.convert_to_numpy(result), expected, atol=1e-6)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(tensor), original)


def test_preprocess_input_by_hand():
    image = np.zeros((1, 2, 3), "uint8")
    image[0, 1] = 255
    expected = [[-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], [0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]]
    np.testing.assert_allclose(preprocess_input(image)[0], expected, rtol=1e-6)


def test_preprocess_input_follows_floatx():
    keras.config.set_floatx("float64")
    try:
        assert preprocess_input(np.zeros((4, 4, 3), "uint8")).dtype == np.float64
    finally:
        keras.config.set_floatx("float32")


def test_preprocess_input_ignores_the_global_precision_policy():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        result = preprocess_input(keras.ops.ones((4, 4, 3), dtype="uint8"))
        assert keras.backend.standardize_dtype(result.dtype) == "float32"
    finally:
        keras.config.set_dtype_policy("float32")


def test_preprocess_input_in_a_saved_model(tmp_path):
    inputs = keras.Input((None, None, 3), dtype="uint8")
    model = keras.Model(inputs, preprocess_input(inputs))
    assert model.output_shape == (None, None, None, 3)
    model.save(tmp_path / "model.keras")
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), "uint8")
    result = keras.saving.load_model(tmp_path / "model.keras").predict(images, verbose=0)
    np.testing.assert_allclose(result, preprocess_input(images), atol=1e-6)


def test_preprocess_input_refuses():
    image = np.zeros((3, 8, 8), "uint8")
    with pytest.raises(ValueError, match=r"`channels_last` format.*Received: data_format=channels_first"):
        preprocess_input(image, data_format="channels_first")
    with pytest.raises(ValueError, match="Received: data_format=sideways"):
        preprocess_input(image, data_format="sideways")
    with pytest.raises(ValueError, match=r"3 channels on the last axis. Received shape: \(3, 8, 8\)"):
        preprocess_input(image)
    with pytest.raises(ValueError, match="3 channels on the last axis"):
        preprocess_input(keras.ops.zeros((8, 8, 1)))

    for images in ([image], Image.new("RGB", (8, 8)), "photo.jpg", np.float32(1)):
        with pytest.raises(ValueError, match=rf"an array or a tensor of shape .* Received: {type(images).__name__}\."):
            preprocess_input(images)
    for mean, std, words in (
        ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), "pixels scaled to 0..1.*divide them by 255"),
        ((0.5, 0.5, 0.5), (0.5,), "a number for each channel"),
        (0.5, 0.5, r"`mean` should be a number for each channel\. Received: mean=0\.5"),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0), "`std` above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            preprocess_input(np.zeros((8, 8, 3)), mean=mean, std=std)

    png = tf.data.Dataset.from_tensors(tf.io.encode_png(np.zeros((8, 8, 3), "uint8")))
    with pytest.raises(ValueError, match=r"how many axes .*expand_animations=False"):
        png.map(lambda content: preprocess_input(tf.io.decode_image(content)))
    known = png.map(lambda content: preprocess_input(tf.io.decode_image(content, expand_animations=False)))
    assert next(iter(known)).shape == (8, 8, 3)

    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), "uint8")
    expected = preprocess_input(pixels)
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="Received: data_format=channels_first"):
            preprocess_input(pixels)
        tensor = preprocess_input(keras.ops.convert_to_tensor(pixels), "channels_last")
    finally:
        keras.config.set_image_data_format("channels_last")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(tensor), expected, atol=1e-6)


BACKEND_SCRIPT = """
import sys
import keras, numpy as np
from keras_efficientformer.imagenet import decode_predictions, preprocess_input

assert keras.backend.backend() == sys.argv[1]
images = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), "uint8")
expected = keras.applications.imagenet_utils.preprocess_input(images, mode="torch")
for dtype in ("uint8", "float32"):
    tensor = keras.ops.convert_to_tensor(images, dtype=dtype)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(preprocess_input(tensor)), expected, atol=1e-6)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(tensor), images)  # torch's would be written over

inputs = keras.Input((5, 6, 3))
model = keras.Model(inputs, preprocess_input(inputs))
np.testing.assert_allclose(model.predict(images, verbose=0), expected, atol=1e-6)

scores = keras.ops.convert_to_tensor(np.eye(3, 1000, 285, dtype="float32"))
assert [sample[0][1] for sample in decode_predictions(scores, top=1)] == ["Egyptian_cat", "cougar", "lynx"]

import tensorflow as tf
for dtype in ("uint8", "float32"):
    batches = tf.data.Dataset.from_tensor_slices(images.astype(dtype)).map(preprocess_input).batch(2)
    np.testing.assert_allclose(next(iter(batches)).numpy(), expected, atol=1e-6)
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_every_backend_and_tf_data(backend):
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    python = forked.programs(environment) / "python" if environment == os.environ else sys.executable
    command = [python, "-c", NO_COLLECTOR + BACKEND_SCRIPT, backend]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]


# Labels


def test_imagenet_labels_are_those_of_keras_to_the_byte():
    labels = imagenet_labels()
    assert isinstance(labels, tuple)
    assert len(labels) == 1000
    class_index = json.dumps({str(index): label for index, label in enumerate(labels)})
    # The hash with which keras.applications checks its download of imagenet_class_index.json.
    assert hashlib.md5(class_index.encode()).hexdigest() == "c2c37ea517e94d9795004a39431a14cb"
    assert labels[0] == ("n01440764", "tench")
    assert labels[285] == ("n02124075", "Egyptian_cat")
    assert labels[999] == ("n15075141", "toilet_tissue")


def test_imagenet_labels_are_in_timms_order():
    from timm.data import ImageNetInfo

    assert [wordnet_id for wordnet_id, _ in imagenet_labels()] == ImageNetInfo().label_names()


def test_imagenet_labels_match_the_sample_files():
    if IMAGENET_SAMPLES is None:
        pytest.skip(f"needs names of ImageNet photographs, which are not part of the project: {IMAGES_VARIABLE}")
    names = dict(imagenet_labels())
    files = zipfile.ZipFile(IMAGENET_SAMPLES).namelist()
    assert len(files) == 500
    for file in files:
        wordnet_id, _, label = file.removesuffix(".jpg").partition("_")
        assert names[wordnet_id] == label


def test_decode_predictions():
    probabilities = np.zeros((2, 1000), "float32")
    probabilities[0, [285, 281, 7]] = 0.75, 0.125, 0.0625
    probabilities[1, [999, 0]] = 0.5, 0.25
    first, second = decode_predictions(probabilities, top=3)
    assert first == [
        ("n02124075", "Egyptian_cat", 0.75),
        ("n02123045", "tabby", 0.125),
        ("n01514668", "cock", 0.0625),
    ]
    assert second == [  # equal scores in the order of the classes
        ("n15075141", "toilet_tissue", 0.5),
        ("n01440764", "tench", 0.25),
        ("n01443537", "goldfish", 0.0),
    ]
    assert type(first[0]) is tuple
    assert type(first[0][2]) is float
    assert len(decode_predictions(probabilities)[0]) == 5
    assert len(decode_predictions(probabilities, top=5000)[0]) == 1000
    assert decode_predictions(probabilities[:0]) == []
    assert decode_predictions(keras.ops.convert_to_tensor(probabilities), top=3) == [first, second]


def test_decode_predictions_equals_keras(monkeypatch):
    from keras.src.applications import imagenet_utils

    class_index = {str(index): list(label) for index, label in enumerate(imagenet_labels())}
    monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", class_index)  # in place of its download
    logits = np.random.default_rng(0).normal(size=(4, 1000)).astype("float32")
    assert decode_predictions(logits, 7) == imagenet_utils.decode_predictions(logits, 7)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float16", "float32", "float64"])
def test_decode_predictions_takes_the_outputs_of_quantized_models(dtype):
    scores = np.array([[3, 100, 0, 100]], dtype)
    assert decode_predictions(scores, 3, labels=["cat", "dog", "eel", "fox"]) == [
        [("1", "dog", 100.0), ("3", "fox", 100.0), ("0", "cat", 3.0)]
    ]


def test_decode_predictions_errors():
    with pytest.raises(
        ValueError, match=r"2D array of shape \(samples, 1000\)\). Received array with shape: \(1000,\)"
    ):
        decode_predictions(np.zeros(1000))
    with pytest.raises(ValueError, match=r"Received array with shape: \(2, 10\). Pass `labels`"):
        decode_predictions(np.zeros((2, 10)))
    with pytest.raises(ValueError, match=r"\(samples, 1000\)\). Received list\..* of several outputs one"):
        decode_predictions([np.zeros((2, 1000))] * 2)
    with pytest.raises(ValueError, match=r"\(samples, 3\)\). Received array with shape: \(2, 10\)"):
        decode_predictions(np.zeros((2, 10)), labels=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"single lines of text\. Received: \('n01440764', 'tench'\)"):
        decode_predictions(np.zeros((1, 1000)), labels=imagenet_labels())
    for top in (0, -1):
        with pytest.raises(ValueError, match=rf"`top` must be at least 1\. Received: top={top}"):
            decode_predictions(np.zeros((1, 1000)), top=top)
    with pytest.raises(TypeError):
        decode_predictions(np.zeros((1, 1000)), top=2.5)


@pytest.mark.parametrize("shape", [(1, 20000), (20000, 1), (3, 6000), (2, 1500)])
def test_thin_images(shape, monkeypatch):
    """A thin image takes no gigabytes: only what is kept is scaled, as all of it would be."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype("uint8")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = resize_and_crop(image)
    assert found.shape == (224, 224, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600e3  # KiB
    # The centre alone, with room around it, is scaled whole.
    monkeypatch.setattr(imagenet, "MAX_SCALED_PIXELS", 0)
    part = np.random.default_rng(1).integers(0, 256, (90, 160, 3)).astype("uint8")
    boxed = resize_and_crop(part).astype(int)
    monkeypatch.undo()
    assert np.abs(boxed - resize_and_crop(part)).max() <= 1


@pytest.mark.parametrize("seed", range(20))
def test_a_scaled_box_is_the_box_of_the_scaled(seed, monkeypatch):
    numbers = np.random.default_rng(seed)
    image = numbers.integers(0, 256, (*numbers.integers(1, 300, 2), 3)).astype("uint8")
    size, crop = tuple(numbers.integers(1, 200, 2)), float(numbers.choice([1.0, 0.95, 0.5]))
    expected = resize_and_crop(image, size, crop).astype(int)
    monkeypatch.setattr(imagenet, "MAX_SCALED_PIXELS", 0)
    difference = np.abs(resize_and_crop(image, size, crop) - expected)
    assert difference.max() <= 1
