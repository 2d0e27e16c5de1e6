"""Changes training images at random: crops, RandAugment, MixUp and CutMix. Room: training/data.

Each change is a function of a seed, so that a resumed run draws what was drawn. Pillow crops single images, and Keras'
own layers change batches.
"""

import math

import keras
import numpy as np
from PIL import Image

# A crop's width to height is drawn evenly on a logarithmic scale between these (Inception, arXiv 1409.4842, section 6).
ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10


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
    height, width = image.shape[:2]
    box = _random_box(height, width, min_area, rng)
    return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC, box=box))


def _random_box(
    height: int, width: int, min_area: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom), in pixels, of a part of an image; the whole one where no drawn part fits into it."""
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(min_area, 1)
        ratio = math.exp(rng.uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])))
        box_width, box_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if box_width <= width and box_height <= height:
            left, top = rng.uniform(0, width - box_width), rng.uniform(0, height - box_height)
            return left, top, left + box_width, top + box_height
    return 0, 0, width, height


class BatchAugmentation:
    """RandAugment, MixUp and CutMix on whole batches, on the CPU; with both of the last, each batch gets one of them.

    Args:
        rand_augment: magnitude in [0, 1]; 0 means none.
        mixup: alpha of MixUp; 0 means none.
        cutmix: alpha of CutMix in [0, 1]; 0 means none.
    """

    def __init__(self, rand_augment: float, mixup: float, cutmix: float) -> None:
        with keras.device("cpu"):
            options = {"seed": 0, "dtype": "float32"}
            self._colour = keras.layers.RandAugment(factor=rand_augment, **options) if rand_augment else None
            self._mixers: list[keras.layers.Layer] = []
            if mixup:
                self._mixers.append(keras.layers.MixUp(alpha=mixup, **options))
            if cutmix:
                self._mixers.append(keras.layers.CutMix(factor=(cutmix, cutmix), **options))

    def __call__(self, images: np.ndarray, labels: np.ndarray, seed: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Changes a batch.

        Args:
            images: float32 (batch, height, width, 3) in 0..255.
            labels: float32 (batch, classes), in 0..1.
            seed: integers; the same ones give the same changes.

        Returns:
            Images and labels of the same shapes and ranges.
        """
        rng = np.random.default_rng(seed)
        with keras.device("cpu"):
            if self._colour:
                # On PyTorch Keras' RandAugment goes far beyond its value range.
                images = keras.ops.clip(_seeded(self._colour, rng)(images), 0.0, 255.0)
            if self._mixers:
                mixer = self._mixers[rng.integers(len(self._mixers))]
                mixed = _seeded(mixer, rng)({"images": images, "labels": labels})
                images, labels = mixed["images"], mixed["labels"]
            return keras.ops.convert_to_numpy(images), keras.ops.convert_to_numpy(labels)


def _seeded(layer: keras.layers.Layer, rng: np.random.Generator) -> keras.layers.Layer:
    """The layer, whose next changes are a function of what is drawn here."""
    layer.generator.state.assign(rng.integers(2**31, size=2))
    return layer
