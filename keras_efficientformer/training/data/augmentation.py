"""Changes training images at random: crops, colours, RandAugment, MixUp and CutMix. Room: training/data.

Each change is a function of a seed, so that a resumed run draws what was drawn. Pillow crops single images, and Keras'
own layers change batches.
"""

import math
from collections.abc import Sequence

import keras
import numpy as np

from keras_efficientformer.images import Box, scaled

# A crop's width to height is drawn evenly on a logarithmic scale between these (Inception, arXiv 1409.4842, section 6).
ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
# Of `color_jitter`, how much hues take part; a factor of 1 turns them by up to half a circle, which is another colour.
HUE_SHARE = 0.25


def random_crop(image: np.ndarray, size: tuple[int, int], min_area: float, rng: np.random.Generator) -> np.ndarray:
    """A random part of an image, scaled with Pillow's bicubic filter.

    Args:
        image: uint8 (height, width, 3).
        size: (height, width) of the result.
        min_area: smallest share of the image's area that is kept, in (0, 1].
        rng: draws the part.

    Returns:
        uint8 (*size, 3).
    """
    return scaled(image, size, random_box(image.shape[:2], min_area, rng))


def random_box(image_size: Sequence[int], min_area: float, rng: np.random.Generator) -> Box:
    """The box of a part of an image of a size, (height, width); the whole one where no drawn part fits into it."""
    height, width = image_size
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(min_area, 1)
        ratio = math.exp(rng.uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])))
        box_width, box_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if box_width <= width and box_height <= height:
            left, top = rng.uniform(0, width - box_width), rng.uniform(0, height - box_height)
            return left, top, left + box_width, top + box_height
    return 0, 0, width, height


class BatchAugmentation:
    """Colours, RandAugment, MixUp and CutMix on whole batches, on the CPU; with both of the last, each batch gets one.

    Args:
        rand_augment: magnitude in [0, 1]; 0 means none.
        mixup: alpha of MixUp; 0 means none.
        cutmix: alpha of CutMix in [0, 1]; 0 means none.
        color_jitter: strength in [0, 1] of changes of brightness, contrast, saturation and hue; 0 means none.
    """

    def __init__(self, rand_augment: float, mixup: float, cutmix: float, color_jitter: float = 0.0) -> None:
        with keras.device("cpu"):
            options = {"seed": 0, "dtype": "float32"}
            self._colours: list[keras.layers.Layer] = []
            if color_jitter:
                jitter = keras.layers.RandomColorJitter(
                    brightness_factor=color_jitter,
                    contrast_factor=color_jitter,
                    saturation_factor=(0.5 - color_jitter / 4, 0.5 + color_jitter / 4),  # 0.5 changes nothing
                    hue_factor=color_jitter * HUE_SHARE,
                    **options,
                )
                self._colours.append(jitter)
            if rand_augment:
                self._colours.append(keras.layers.RandAugment(factor=rand_augment, **options))
            self._mixers: list[keras.layers.Layer] = []
            if mixup:
                self._mixers.append(keras.layers.MixUp(alpha=mixup, **options))
            if cutmix:
                self._mixers.append(keras.layers.CutMix(factor=(cutmix, cutmix), **options))

    def __call__(self, images: np.ndarray, labels: np.ndarray, seed: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Changes a batch.

        Args:
            images: float32 (batch, height, width, 3) in 0..255.
            labels: float32 (batch, classes), in 0..1; or, without MixUp and CutMix, whatever there is.
            seed: integers; the same ones give the same changes.

        Returns:
            Images and labels of the same shapes and ranges.
        """
        rng = np.random.default_rng(seed)
        with keras.device("cpu"):
            for colour in self._colours:
                # On PyTorch Keras' RandAugment goes far beyond its value range.
                images = keras.ops.clip(_seeded(colour, rng)(images), 0.0, 255.0)
            if self._mixers:
                mixer = self._mixers[rng.integers(len(self._mixers))]
                mixed = _seeded(mixer, rng)({"images": images, "labels": labels})
                images, labels = mixed["images"], mixed["labels"]
            return keras.ops.convert_to_numpy(images), keras.ops.convert_to_numpy(labels)


def _seeded(layer: keras.layers.Layer, rng: np.random.Generator) -> keras.layers.Layer:
    """The layer, whose next changes are a function of what is drawn here."""
    layer.generator.state.assign(rng.integers(2**31, size=2))
    return layer
