"""Makes batches of raw RGB images and masks, both cropped and mirrored alike. Room: training/data."""

from pathlib import Path

import numpy as np

from keras_efficientformer.image_folders.image_folder import ImageSet
from keras_efficientformer.imagenet import load_image
from keras_efficientformer.images import scaled
from keras_efficientformer.segmentation.palette import Palette
from keras_efficientformer.training.config import FineTuneConfig
from keras_efficientformer.training.data.augmentation import random_box
from keras_efficientformer.training.data.batches import TrainingImages, ValidationImages
from keras_efficientformer.training.data.masks import read_mask


class TrainingMasks(TrainingImages):
    """Images of a folder and their masks, shuffled; parts of both are drawn, scaled and mirrored with the same numbers.

    Args:
        images: the files, with the paths of their masks.
        palette: of the masks' colours, or None where they hold class numbers.
        classes, size, config, process, processes: as of `TrainingImages`. A `min_crop` of 1 means the whole image.

    Raises:
        ValueError: there are fewer images than in one batch.
    """

    def __init__(
        self,
        images: ImageSet,
        palette: Palette | None,
        classes: int,
        size: tuple[int, int],
        config: FineTuneConfig,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        super().__init__(images, classes, size, config, process, processes)
        self._palette = palette

    def _load(self, epoch: int, place: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self._config.seed, epoch, place])
        image, mask = load_image(self._images.files[place]), read_mask(self._images.targets[place], self._palette)
        box = random_box(mask.shape, self._config.min_crop, rng) if self._config.min_crop < 1 else None
        image, mask = scaled(image, self._size, box), scaled(mask, self._size, box)
        return (image[:, ::-1], mask[:, ::-1]) if self._config.flip and rng.random() < 0.5 else (image, mask)

    def _labels(self, targets: np.ndarray) -> np.ndarray:
        return targets


class ValidationMasks(ValidationImages):
    """Images of a folder and their masks, in their order, wholly scaled to one size; the last batch may be smaller.

    Args:
        images, palette: as of `TrainingMasks`.
        classes, size, batch_size: as of `ValidationImages`.
    """

    def __init__(
        self, images: ImageSet, palette: Palette | None, classes: int, size: tuple[int, int], batch_size: int
    ) -> None:
        super().__init__(images, classes, size, 1.0, batch_size)
        self._palette = palette

    def _load(self, file: Path, target: Path) -> tuple[np.ndarray, np.ndarray]:
        return scaled(load_image(file), self._size), scaled(read_mask(target, self._palette), self._size)

    def _labels(self, targets: np.ndarray) -> np.ndarray:
        return targets
