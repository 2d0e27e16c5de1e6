"""Tiny images with masks to train on: a disc and a square, each of its colour, on dark noise."""

import numpy as np
from PIL import Image

NAMES = ("background", "disc", "square")
COLOURS = ((0, 0, 0), (200, 50, 50), (40, 60, 200))
PALETTE = "background #000000\ndisc #c83232\nsquare #283cc8\nignored #ffffff\n"
SIZE = (64, 80)


def masked(seed, size=SIZE):
    """An image, uint8 (*size, 3), and its mask, uint8 (*size): 0, 1, 2, and 255 around the disc."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, "uint8")
    top, left = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
    mask[top : top + size[0] // 2, left : left + size[1] // 3] = 2
    row, column = rng.integers(size[0] // 4, 3 * size[0] // 4), rng.integers(size[1] // 4, 3 * size[1] // 4)
    distance = np.hypot(rows - row, columns - column)
    mask[distance < size[0] / 4 + 1] = 255
    mask[distance < size[0] / 4 - 1] = 1
    colours = np.array(COLOURS)[np.where(mask == 255, 0, mask)]
    return np.clip(rng.normal(colours + 30, 25), 0, 255).astype("uint8"), mask


def make_masked_folders(folder, parts=None, size=SIZE):
    """Writes images and masks of numbers into `images` and `masks`; `parts` are {subfolder: images}."""
    seed = 0
    for part, count in (parts or {"train": 24, "val": 8}).items():
        for kind in ("images", "masks"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, mask = masked(seed, size)
            seed += 1
            Image.fromarray(image).save(folder / "images" / part / f"{index:03}.png")
            Image.fromarray(mask).save(folder / "masks" / part / f"{index:03}.png")
    return folder / "images", folder / "masks"


def in_colours(masks, folder):
    """The same masks in the colours of `PALETTE`, in another folder."""
    colours = np.array([*COLOURS, (255, 255, 255)], "uint8")
    for path in sorted(masks.rglob("*.png")):
        numbers = np.asarray(Image.open(path))
        target = folder / path.relative_to(masks)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours[np.where(numbers == 255, 3, numbers)]).save(target)
    return folder
