"""Folders of tiny images to train on: squares of one colour under noise, or stripes of several; a class each."""

import itertools

import keras
import numpy as np
from PIL import Image

import keras_efficientformer as kef

COLOURS = {"blue": (40, 60, 200), "green": (40, 200, 60), "red": (200, 50, 50)}
TINY = {"depths": (1, 0, 0, 1), "widths": (8, 8, 16, 16), "num_meta3d": 1, "input_shape": (40, 40, 3)}


def pixels(colour, count, seed=0, noise=40, size=(40, 48)):
    """uint8 images (count, *size, 3)."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(COLOURS[colour], noise, (count, *size, 3)), 0, 255).astype("uint8")


def make_folder(folder, counts=None, **options):
    """Writes PNG files into a subfolder for each class; `counts` are {class: images}."""
    counts = counts or dict.fromkeys(COLOURS, 12)
    for seed, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index, image in enumerate(pixels(name if name in COLOURS else "red", count, seed, **options)):
            Image.fromarray(image).save(folder / name / f"{index:03}.png")
    return folder


def striped(labels, count, seed=0, noise=30):
    """uint8 images (count, 40, 40, 3): dark, with a stripe for each of these colours, at its own place."""
    image = np.full((40, 40, 3), 30.0)
    for place, (name, colour) in enumerate(COLOURS.items()):
        if name in labels:
            image[:, 13 * place : 13 * place + 13] = colour
    return np.clip(np.random.default_rng(seed).normal(image, noise, (count, 40, 40, 3)), 0, 255).astype("uint8")


def make_multi_label_folder(folder, count=10):
    """Writes so many striped PNG files for each set of colours, into subfolders called by the set."""
    sets = [labels for size in range(len(COLOURS) + 1) for labels in itertools.combinations(COLOURS, size)]
    for seed, labels in enumerate(sets):
        place = folder / ("+".join(labels) or "none")
        place.mkdir(parents=True)
        for index, image in enumerate(striped(labels, count, seed)):
            Image.fromarray(image).save(place / f"{index:03}.png")
    return folder


def make_model(classes=5, **arguments):
    """A tiny EfficientFormer, the same in every process."""
    keras.utils.set_random_seed(7)
    return kef.EfficientFormer(**{**TINY, **arguments}, classes=classes)
