"""Preprocesses images as ImageNet's models expect, and names the classes of their outputs. Room: top level.

The pixels follow two references. `preprocess_input` is keras.applications' "torch" mode. `resize_and_crop` and
`preprocess_image` are timm's evaluation transform, the one under which the published accuracies were measured. Pillow
decodes and resamples, as it does for timm; images are channels last and sizes are (height, width) throughout.
"""

import contextlib
import functools
import importlib
import importlib.resources
import io
import math
import operator
import os
from collections.abc import Sequence
from numbers import Real
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from keras_efficientformer.labels import Labels, class_names, read_labels

__all__ = [
    "ImageError",
    "decode_predictions",
    "imagenet_labels",
    "load_image",
    "preprocess_image",
    "preprocess_input",
    "read_labels",
    "resize_and_crop",
]

# ImageNet's training pixels have these in red, green and blue, scaled to 0..1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# The share of the resized image's side that the centre crop keeps, unless said otherwise: timm's for these weights.
CROP = 0.95

# A larger scaled image, of which only the centre is kept, is not made: some 250 MB.
MAX_SCALED_PIXELS = 1 << 26


class ImageError(ValueError):
    """A file that is no image, is damaged, or holds what has no 8-bit RGB form. The message names the file."""


def preprocess_input(
    x: Any, data_format: str | None = None, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> Any:
    """Normalises images as the pretrained weights expect: `(x / 255 - mean) / std`, channel by channel.

    With ImageNet's mean and deviation this is the "torch" mode of `keras.applications.imagenet_utils.preprocess_input`,
    except that the input is never written over and that integer tensors are accepted too.

    Args:
        x: images with values in [0, 255], shape (height, width, channels) or (batch, height, width, channels), of any
            integer or floating-point dtype: a NumPy array, a tensor of the backend, a symbolic `keras.KerasTensor`,
            or, on every backend, a TensorFlow tensor inside `tf.data.Dataset.map`.
        data_format: None or "channels_last". None means `keras.config.image_data_format()`.
        mean: one number for each channel, of pixels scaled to 0..1; ImageNet's unless given.
        std: likewise.

    Returns:
        The normalised images, about -2.1 to 2.6 with ImageNet's, in the shape of `x` and in `keras.config.floatx()`
        (float32 unless changed): a NumPy array for a NumPy array, a tensor for a tensor.

    Raises:
        ValueError: if the data format is not channels last, the last axis of `x` has another number of channels, `x` is
            no array or tensor, or `mean` and `std` are unfit (`checked_normalization`).
    """
    # Whoever reads files and runs exported ones needs no Keras, whose import takes seconds.
    import keras

    data_format = data_format or keras.config.image_data_format()
    if data_format != "channels_last":
        raise ValueError(
            "`preprocess_input` expects images in the `channels_last` format, the only one that EfficientFormer "
            f"supports. Received: data_format={data_format}. Transpose the images to (height, width, 3), or call "
            "`keras.config.set_image_data_format('channels_last')`."
        )
    mean, std = checked_normalization(mean, std)
    if getattr(x, "shape", ()) == ():
        raise ValueError(
            "`preprocess_input` expects an array or a tensor of shape (..., height, width, channels). Received: "
            f"{type(x).__name__}. Stack a list of images by `np.stack`; `preprocess_image` takes files and Pillow's."
        )
    if getattr(x.shape, "rank", 0) is None:
        raise ValueError(
            "`preprocess_input` has to know how many axes a TensorFlow tensor has. Received shape: <unknown>; decode "
            "by `tf.io.decode_image(..., expand_animations=False)`, or call the tensor's `set_shape` before."
        )
    if x.shape[-1] not in (len(mean), None):
        kind = "RGB images, 3 channels" if mean == MEAN else f"images of {len(mean)} channels"
        raise ValueError(f"`preprocess_input` expects {kind} on the last axis. Received shape: {x.shape}")

    if isinstance(x, np.ndarray):
        # In this order Keras' own function computes, to the last digit.
        copy = np.array(x, dtype=keras.config.floatx())
        copy /= 255.0
        copy -= np.array(mean, copy.dtype)
        copy /= np.array(std, copy.dtype)
        return copy
    # Keras' own function fails on integer tensors and changes PyTorch's in place. This layer does neither, and works
    # inside tf.data on every backend. Its constants have three axes because it would reorder a vector under a global
    # "channels_first".
    means, deviations = np.reshape(mean, (1, 1, -1)), np.reshape(std, (1, 1, -1))
    rescale = keras.layers.Rescaling(
        (1 / (255 * deviations)).tolist(), (-means / deviations).tolist(), dtype=keras.config.floatx()
    )
    return rescale(x)


def checked_normalization(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the deviation of pixels scaled to 0..1, one number for each channel, as tuples of `float`.

    Raises:
        ValueError: they are not as many numbers each, not finite, of other pixels, or a deviation is not positive.
    """
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, Sequence | np.ndarray) or not all(isinstance(value, Real) for value in values):
            raise ValueError(f"`{name}` should be a number for each channel. Received: {name}={values!r}")
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    received = f"Received: mean={mean}, std={std}"
    if len(mean) != len(std) or not mean:
        raise ValueError(f"`mean` and `std` should have a number for each channel. {received}")
    if not (np.isfinite([*mean, *std]).all() and min(std) > 0):
        raise ValueError(f"`mean` and `std` should be finite, and `std` above 0. {received}")
    if max(map(abs, (*mean, *std))) > 2:
        raise ValueError(
            f"`mean` and `std` are those of pixels scaled to 0..1, such as ImageNet's {MEAN} and {STD}. {received}; "
            "divide them by 255."
        )
    return mean, std


def load_image(source: str | os.PathLike[str] | IO[bytes]) -> np.ndarray:
    """Reads an image file as it is meant to be seen, whatever the file's colour mode.

    The EXIF orientation is applied. Grey, 1-bit, palette, CMYK and YCbCr images become RGB. 16-bit images, grey or
    colour, keep their high byte; grey floating-point images are taken to fill 0..1. Of an animation or a multi-page
    file this is the first image. As in timm and in PIL's `convert("RGB")`, transparency is dropped, not blended: a
    transparent pixel gets the colour that the file stores for it. Colour profiles are not applied, also as in timm.

    Args:
        source: path of the file (`str` or `os.PathLike`), or a file object opened in binary mode.

    Returns:
        uint8 array of shape (height, width, 3), RGB, 0..255.

    Raises:
        ImageError: if the file is empty, no image, truncated, larger than Pillow's limit for decompression bombs, or
            of a kind that has no agreed 8-bit RGB form (32-bit values outside 0..65535 or 0..1, CIELAB).
        OSError: if the file cannot be opened: `FileNotFoundError`, `IsADirectoryError`, `PermissionError`.
        TypeError: if `source` is neither a path nor a binary file object.
    """
    if isinstance(source, (str, os.PathLike)):
        # It is opened here, so that what fails in `_decode_image` is the content.
        with open(source, "rb") as file:
            return _decode_image(file, repr(os.fspath(source)))
    # Of a file that was opened as text Pillow would take the characters for a path.
    if hasattr(source, "read") and isinstance(source.read(0), bytes):
        name = repr(getattr(source, "name", source))
        return _decode_image(source if source.seekable() else io.BytesIO(source.read()), name)
    raise TypeError(
        f"`load_image` expects a path or a binary file object. Received: {type(source).__name__}. "
        "Wrap the bytes of an image file in `io.BytesIO`, and open files in the mode 'rb'."
    )


def _decode_image(file: IO[bytes], name: str) -> np.ndarray:
    kind = "image"
    register_heif()
    try:
        with Image.open(file) as image:
            kind = f"{image.format} image"
            return rgb_array(image)
    except UnidentifiedImageError as error:
        file.seek(0)
        start = file.read(12)
        found = f"it begins with {start!r}" if start else "it is empty"
        raise ImageError(
            f"{name} is not an image that Pillow can read: {found}. Give a JPEG, PNG, WebP, TIFF, BMP or GIF file. "
            "For HEIC photographs: pip install 'keras-efficientformer[heic]'."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} is too large. {error} Scale it down, or, if you trust it, raise `PIL.Image.MAX_IMAGE_PIXELS`."
        ) from error
    except MemoryError:
        raise
    # On damaged bytes Pillow's decoders raise nearly anything, SyntaxError included.
    except Exception as error:
        raise ImageError(
            f"{name} is a damaged or unsupported {kind}: {error}. "
            "Fetch it again, or save it as an 8-bit RGB JPEG or PNG file."
        ) from error


@functools.cache
def register_heif() -> None:
    """Lets Pillow open HEIC photographs, such as iPhones take, where pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


def rgb_array(image: Image.Image) -> np.ndarray:
    """A Pillow image as `load_image` gives a file: uint8 (height, width, 3), RGB, its EXIF orientation applied.

    Raises:
        ValueError: it is of a kind that has no agreed 8-bit RGB form.
    """
    return np.array(_convert_to_rgb(ImageOps.exif_transpose(image)))


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    # Pillow's conversions clip high-bit-depth grey at 255. Its decoders reduce 16-bit colour to the high byte, so grey
    # is treated alike. Mode "I" has 32 bits, yet mostly holds 16-bit data (PGM); a range that fits neither is refused.
    if image.mode == "F" or image.mode.startswith("I"):
        limit = 1.0 if image.mode == "F" else 65535
        grey = np.asarray(image)
        # The condition is negated as a whole so that NaN is refused too.
        if not (grey.min() >= 0 and grey.max() <= limit):
            raise ValueError(
                f"its grey values run from {grey.min()} to {grey.max()}, and only 0 to {limit} is understood"
            )
        grey = np.rint(grey * 255) if image.mode == "F" else grey >> 8
        image = Image.fromarray(grey.astype("uint8"))
    # Otherwise Pillow warns that it cannot keep a palette's transparency.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def resize_and_crop(image: np.ndarray, size: Sequence[int] = (224, 224), crop_fraction: float = CROP) -> np.ndarray:
    """Scales an image, keeping its aspect ratio, and cuts out the centre.

    This is the geometric part of `timm.data.create_transform(..., interpolation="bicubic", crop_mode="center")`, equal
    to the pixel: the image is scaled until it just covers `floor(size / crop_fraction)`, with Pillow's antialiased
    bicubic filter, and cropped to `size`. Smaller images are scaled up.

    Args:
        image: uint8 array of shape (height, width, 3), RGB, 0..255.
        size: (height, width) of the result.
        crop_fraction: share of the scaled image's side that the crop keeps, 0 < crop_fraction <= 1. timm's
            EfficientFormer weights have 0.95.

    Returns:
        uint8 array of shape (*size, 3).

    Raises:
        ValueError: if `image` is not a uint8 RGB image, `size` not two positive integers, or `crop_fraction` not
            within (0, 1].
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            "`image` must be a uint8 array of shape (height, width, 3) with values in [0, 255]. "
            f"Received: dtype={image.dtype}, shape={image.shape}"
        )
    if np.shape(size) != (2,) or not all(isinstance(side, Real) and side >= 1 and side % 1 == 0 for side in size):
        raise ValueError(f"`size` must be two positive integers, (height, width). Received: size={size}")
    if not isinstance(crop_fraction, Real) or not 0 < crop_fraction <= 1:
        raise ValueError(f"`crop_fraction` must be above 0 and at most 1. Received: crop_fraction={crop_fraction}")

    height, width = (int(side) for side in size)
    scaled_height, scaled_width = _scaled_size(image.shape[:2], (height, width), crop_fraction)
    top = round((scaled_height - height) / 2)
    left = round((scaled_width - width) / 2)
    picture = Image.fromarray(image)
    if scaled_height * scaled_width <= MAX_SCALED_PIXELS:
        scaled = picture.resize((scaled_width, scaled_height), Image.Resampling.BICUBIC)
        return np.array(scaled.crop((left, top, left + width, top + height)))
    # Of an image a thousand times as wide as high, all of it scaled would take gigabytes. Pillow scales rows first,
    # then columns, and so does this with what is kept; it rounds a box's ends, so that single values differ by 1.
    across, down = image.shape[1] / scaled_width, image.shape[0] / scaled_height
    columns = (left * across, 0, min((left + width) * across, image.shape[1]), image.shape[0])
    rows = (0, top * down, width, min((top + height) * down, image.shape[0]))
    picture = picture.resize((width, image.shape[0]), Image.Resampling.BICUBIC, columns)
    return np.array(picture.resize((width, height), Image.Resampling.BICUBIC, rows))


def _scaled_size(image_size: Sequence[int], size: Sequence[int], crop_fraction: float) -> list[int]:
    """Returns the (height, width) to which timm scales before the crop.

    For a square target it uses torchvision's `Resize`, which rounds the longer side down, for any other its own
    `ResizeKeepRatio`, which rounds to nearest.
    """
    cover = [math.floor(side / crop_fraction) for side in size]
    if cover[0] == cover[1]:
        return [int(cover[0] * side / min(image_size)) for side in image_size]
    ratio = min(side / target for side, target in zip(image_size, cover, strict=True))
    return [round(side / ratio) for side in image_size]


def preprocess_image(
    image: str | os.PathLike[str] | IO[bytes] | np.ndarray | Image.Image,
    size: Sequence[int] = (224, 224),
    crop_fraction: float = CROP,
) -> np.ndarray:
    """Loads, resizes, crops and normalises an image, as timm's evaluation transform does.

    These are the steps `load_image`, `resize_and_crop` and `preprocess_input`.

    Equal to `timm.data.create_transform(input_size=(3, height, width), interpolation="bicubic",
    crop_pct=crop_fraction, mean=MEAN, std=STD)` but for the axes' order and float32 rounding.

    Args:
        image: path or binary file object of an image, a Pillow image, or a uint8 array of shape (height, width, 3),
            RGB, 0..255.
        size: (height, width) of the network's input.
        crop_fraction: share of the scaled image's side that the crop keeps, 0 < crop_fraction <= 1.

    Returns:
        Array of shape (*size, 3) and dtype `keras.config.floatx()` (float32 unless changed), about -2.1 to 2.6, with
        no batch axis: stack several, or add one with `[None]`.

    Raises:
        ImageError, OSError, TypeError: as `load_image`.
        ValueError: as `resize_and_crop` and `preprocess_input`.
    """
    if isinstance(image, Image.Image):
        image = rgb_array(image)
    elif not isinstance(image, np.ndarray):
        image = load_image(image)
    return preprocess_input(resize_and_crop(image, size, crop_fraction))


@functools.cache
def imagenet_labels() -> tuple[tuple[str, str], ...]:
    """Returns ImageNet-1k's classes in the order of the network's outputs: a tuple of 1000 tuples (WordNet id, name).

    For instance `imagenet_labels()[285] == ("n02124075", "Egyptian_cat")`. Ids, order and spelling are those of
    keras.applications' imagenet_class_index.json; two names stand for two classes each, crane and maillot.
    """
    path = importlib.resources.files(__package__) / "data" / "imagenet_labels.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple((wordnet_id, name) for wordnet_id, name in (line.split(" ") for line in lines))


def default_names(classes: int) -> tuple[str, ...]:
    """What so many classes are called where nobody says it: ImageNet's names, or "class 0", "class 1" and so on."""
    names = tuple(name for _, name in imagenet_labels())
    return names if classes == len(names) else tuple(f"class {index}" for index in range(classes))


def decode_predictions(preds: Any, top: int = 5, labels: Labels | None = None) -> list[list[tuple[str, str, float]]]:
    """Names the classes with the highest scores, as `keras.applications.imagenet_utils.decode_predictions` does.

    Args:
        preds: scores of shape (samples, classes), probabilities or logits: a NumPy array or a tensor of the backend.
        top: how many classes to return for each sample; more than there are gives all.
        labels: names of the classes in the order of the scores, or what else `labels.class_names` takes. None means
            ImageNet's 1000.

    Returns:
        A list with, for each sample, a list of `top` tuples (class id, name, score), highest score first, equal scores
        in the order of the classes. The id is the WordNet id for ImageNet's labels, `("n02124075", "Egyptian_cat",
        0.93)`, and the class' index as a string for labels of your own, `("3", "cat", 0.93)`. Scores are `float`.

    Raises:
        ValueError: if `preds` is not of shape (samples, number of labels), `top` under 1, or `labels` unfit.
        TypeError: if `top` is not an integer.
    """
    if labels is None:
        classes = imagenet_labels()
    else:
        classes = tuple((str(index), label) for index, label in enumerate(class_names(labels)))
    shape = getattr(preds, "shape", None)
    if shape is None or len(shape) != 2 or shape[1] != len(classes):
        received = f"array with shape: {tuple(shape)}" if shape is not None else type(preds).__name__
        raise ValueError(
            "`decode_predictions` expects a batch of predictions (i.e. a 2D array of shape "
            f"(samples, {len(classes)})). Received {received}. "
            "Pass `labels` for classes other than ImageNet's, and of several outputs one."
        )
    if operator.index(top) < 1:
        raise ValueError(f"`top` must be at least 1. Received: top={top}")

    if not isinstance(preds, np.ndarray):
        import keras  # a tensor comes from Keras' backend, an array needs neither

        preds = keras.ops.convert_to_numpy(preds)
    # The scores become a signed type, so that their negatives give the descending order.
    scores = preds.astype("float64")
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        [(*classes[index], float(sample[index])) for index in indices]
        for sample, indices in zip(scores, order, strict=True)
    ]
