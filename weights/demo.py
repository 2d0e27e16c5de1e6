"""The main job from end to end on the embedded checkpoint, as `make demo` runs it.

A real PyTorch checkpoint becomes a Keras model, classifies photographs that scikit-image ships, becomes a .tflite file,
and that file classifies them again. Where the CIFAR-10 test images are at hand, both are also measured on them. Ends
with 1 where anything differs from what it should be.
"""

import argparse
import os
import time
import zipfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib.pyplot as plt
import numpy as np
import rich
import skimage
from rich.progress import track
from rich.table import Table

from keras_efficientformer import from_checkpoint, preprocess_input
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.imagenet import load_image, resize_and_crop

HERE = Path(__file__).parent
CHECKPOINT = HERE / "efficientformer_l1_cifar10.safetensors"
LABELS = (HERE / "cifar10_labels.txt").read_text().split()
# What the model card says, and how far a measurement may be from it, in points.
CARD_TOP1 = 82.34
TOLERANCE = 0.1
# The cat is of a class that the checkpoint knows; the others show what it makes of the unknown.
PHOTOGRAPHS = ("chelsea.png", "rocket.jpg", "motorcycle_left.png")
SIZE = (64, 64)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, help="folder with CIFAR-10's test images, CLASS/*.jpg, or their zip")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="where the files are written")
    arguments = parser.parse_args()
    arguments.output.mkdir(exist_ok=True)
    table = Table("step", "result", "seconds", title="EfficientFormer-L1 from PyTorch to Android", title_justify="left")

    started = time.perf_counter()
    model = from_checkpoint(CHECKPOINT)
    model.save(arguments.output / "efficientformer_l1_cifar10.keras")
    model = keras.saving.load_model(arguments.output / "efficientformer_l1_cifar10.keras")
    add(table, "convert to Keras", f"{model.count_params():,} parameters, saved and loaded again", started)

    started = time.perf_counter()
    folder = Path(skimage.__file__).parent / "data"
    photographs = np.stack([read(folder / name) for name in PHOTOGRAPHS])
    scores = classify(model, photographs)
    for name, row in zip(PHOTOGRAPHS, scores, strict=True):
        add(table, f"classify {name}", describe(row))
    add(table, "", "all photographs, the first call included", started)

    report = export_tflite(model, arguments.output, labels=LABELS, calibration=photographs, overwrite=True)
    add(table, "export to TFLite", f"{Path(report.path).name}, {report.size / 1e6:.1f} MB", seconds=report.seconds)
    exported = LiteRTModel(report.path)
    scores_exported = exported.predict(photographs)["probabilities"]
    difference = np.abs(scores - scores_exported).max()
    add(table, "run in LiteRT", f"the same photographs: scores differ by at most {difference:.1g}")
    agrees = difference < 1e-5

    images, classes = read_test_images(arguments.images)
    if images is not None:
        agrees &= measure(table, "Keras", lambda: classify(model, images), classes)
        agrees &= measure(table, "TFLite", lambda: exported.predict(images)["probabilities"], classes)
    draw(arguments.output / "photographs.png", photographs, scores_exported)
    rich.print(table)
    print(f"Files are in {arguments.output}/.")
    if images is None:
        print("CIFAR-10's test images are not at hand: make demo IMAGES=folder measures top-1 on them.")
    raise SystemExit(0 if agrees else "The results are not what they should be.")


def add(table, step, result, started=None, seconds=None):
    seconds = time.perf_counter() - started if started is not None else seconds
    table.add_row(step, result, f"{seconds:.1f}" if seconds is not None else "")


def read(file):
    """Raw RGB of the network's size; the whole short side, as the model was trained."""
    return resize_and_crop(load_image(file), SIZE, crop_fraction=1.0).astype("float32")


def classify(model, images):
    return model.predict(preprocess_input(images), verbose=0, batch_size=100)


def describe(scores):
    first, second = np.argsort(scores)[::-1][:2]
    return f"{LABELS[first]} {scores[first]:.0%}, {LABELS[second]} {scores[second]:.0%}"


def measure(table, name, scores, classes):
    started = time.perf_counter()
    top1 = 100 * np.mean(scores().argmax(-1) == classes)
    add(table, f"top-1 on {len(classes):,} CIFAR-10 images, {name}", f"{top1:.2f}% (card: {CARD_TOP1:.2f}%)", started)
    return abs(top1 - CARD_TOP1) <= TOLERANCE


def read_test_images(folder):
    """(images, classes) of CIFAR-10's test set in a folder or in its `cifar10-images.zip`, or (None, None)."""
    archive = folder / "cifar10-images.zip" if folder else None
    if archive and archive.is_file():
        with zipfile.ZipFile(archive) as content:
            names = [name for name in content.namelist() if name.startswith("test/") and name.endswith(".jpg")]
            images = [read(content.open(name)) for name in track(names, "Reading CIFAR-10", transient=True)]
        return np.stack(images), np.array([LABELS.index(name.split("/")[1]) for name in names])
    files = sorted(path for label in LABELS for path in folder.glob(f"{label}/*.*")) if folder else []
    if not files:
        return None, None
    images = [read(path) for path in track(files, "Reading CIFAR-10", transient=True)]
    return np.stack(images), np.array([LABELS.index(path.parent.name) for path in files])


def draw(path, images, scores):
    figure, axes = plt.subplots(1, len(images), figsize=(3 * len(images), 3.4))
    for axis, image, row in zip(axes, images, scores, strict=True):
        axis.imshow(image.astype("uint8"))
        axis.set_title(describe(row), fontsize=9)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
