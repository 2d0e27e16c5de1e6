"""Writes pictures with handwritten digits pasted in, and masks that say for every pixel which digit it is of.

Digits and photographs are those that scikit-learn and scikit-image install; those of "val" are in none of "train".
"""

from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_digits, load_sample_images

CLASSES = ("background", *(f"digit {digit}" for digit in range(10)))
HELD_OUT_DIGITS = 360
SIDE = 96


def write_scenes(folder: Path, train: int = 4000, val: int = 500) -> tuple[Path, Path]:
    """Pictures of 96x96 pixels and their masks.

    Args:
        folder: gets `images/{train,val}/*.png`, and `masks/{train,val}/*.png` of the same names: uint8, 0 for the
            background, a digit's value plus one for its strokes.
        train, val: how many.

    Returns:
        The two folders.
    """
    images, masks = folder / "images", folder / "masks"
    digits = load_digits()
    held_out = np.arange(len(digits.images)) >= len(digits.images) - HELD_OUT_DIGITS
    photographs = _photographs()
    for part, count, is_val in (("train", train, False), ("val", val, True)):
        numbers = np.random.default_rng(int(is_val))
        strokes, values = digits.images[held_out == is_val], digits.target[held_out == is_val]
        for path in (images / part, masks / part):
            path.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            photograph = photographs[part][numbers.integers(len(photographs[part]))]
            ground = _crop(numbers, photograph) if is_val else _varied(numbers, _crop(numbers, photograph))
            picture, mask = _scene(numbers, ground, strokes, values)
            Image.fromarray(picture).save(images / part / f"{index:05}.png")
            Image.fromarray(mask).save(masks / part / f"{index:05}.png")
    return images, masks


def _photographs() -> dict[str, list[np.ndarray]]:
    """Those of pictures, and some of surfaces, in grey."""
    china, flower = load_sample_images().images
    left, _, _ = data.stereo_motorcycle()
    surfaces = [data.brick(), data.grass(), data.gravel(), data.moon(), data.coins(), data.camera(), data.clock()]
    train = [
        *(data.astronaut(), data.coffee(), data.rocket(), data.retina(), data.hubble_deep_field(), china, left),
        *(np.repeat(surface[..., None], 3, axis=2) for surface in surfaces),
    ]
    return {"train": train, "val": [data.chelsea(), flower]}


def _scene(
    numbers: np.random.Generator, picture: np.ndarray, strokes: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A picture with one to three digits, which it is changed to have, and its mask."""
    mask = np.zeros((SIDE, SIDE), "uint8")
    for _ in range(numbers.integers(1, 4)):
        choice = numbers.integers(len(values))
        side = int(numbers.integers(32, 61))
        top, left = numbers.integers(0, SIDE - side + 1, 2)
        stroke = Image.fromarray((strokes[choice] * 255 / 16).astype("uint8")).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        stroke = stroke.rotate(float(numbers.uniform(-15, 15)), Image.Resampling.BILINEAR)
        opacity = np.clip((np.asarray(stroke, "float32")[..., None] - 90) / 60, 0, 1)
        place = slice(top, top + side), slice(left, left + side)
        if mask[place].any():  # none hides a part of another
            continue
        color = numbers.uniform(0, 255, 3)
        picture[place] = np.round(picture[place] * (1 - opacity) + color * opacity)
        mask[place][opacity[..., 0] >= 0.5] = values[choice] + 1
    return picture, mask


def _varied(numbers: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """A picture mirrored, turned and in other colours: the photographs of training are few."""
    picture = np.rot90(picture, int(numbers.integers(4)))[:, :: numbers.choice([-1, 1])]
    picture = picture[..., numbers.permutation(3)] * numbers.uniform(0.5, 1.2, 3) + numbers.uniform(-20, 40, 3)
    return np.clip(255 - picture if numbers.integers(4) == 0 else picture, 0, 255).astype("uint8")


def _crop(numbers: np.random.Generator, photograph: np.ndarray) -> np.ndarray:
    side = int(numbers.integers(SIDE, min(photograph.shape[:2]) + 1))
    top, left = (int(numbers.integers(0, length - side + 1)) for length in photograph.shape[:2])
    crop = Image.fromarray(photograph[top : top + side, left : left + side]).resize(
        (SIDE, SIDE), Image.Resampling.BILINEAR
    )
    return np.array(crop)
