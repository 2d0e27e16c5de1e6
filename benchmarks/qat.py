"""What quantization-aware training gives: top-1 on CIFAR-10 of the float32, the int8 and the trained int8 file.

The embedded checkpoint, at its own 64x64, is trained for one short epoch on training images, mirrored at random. It
learns the probabilities that the float32 model gives on average to an image and its mirror image: the checkpoint knows
the labels of these images already. All files then run the 5,000 test images in LiteRT.

    python benchmarks/qat.py --cifar10 cifar10-images.zip --output benchmarks/results/qat.json
"""

import argparse
import json
import tempfile
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tf_keras
from rich.progress import track
from tflite_modes import CHECKPOINT, read_cifar10

from keras_efficientformer import from_checkpoint
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.imagenet import load_image, preprocess_input, resize_and_crop
from keras_efficientformer.reporting import versions_of
from keras_efficientformer.training.compression.quantization import quantize_aware, to_keras

TOOLS = ("tensorflow", "tf_keras", "tensorflow-model-optimization", "litert-quantizer", "ai-edge-litert")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar10", type=Path, required=True, help="zip with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--images", type=int, default=5000, help="training images, evenly spread over the classes")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--rate", type=float, default=1e-5, help="first learning rate; it falls to 0 in a cosine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    model = from_checkpoint(CHECKPOINT)
    images, classes, calibration = read_cifar10(arguments.cifar10)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:

        def measure(name, model, **settings):
            report = export_tflite(model, Path(folder) / f"{name}.tflite", max_difference=float("inf"), **settings)
            scores = LiteRTModel(report.path).predict(images)["probabilities"]
            right = scores.argmax(-1) == classes
            rows[name] = {"top1": 100 * float(np.mean(right)), "bytes": report.size, "operations": report.operations}

        measure("float32", model)
        measure("int8", model, quantize="int8", calibration=calibration)
        qat_model, seconds = train(model, arguments)
        measure("int8 after QAT", qat_model, quantize="int8")
        measure("float32 after QAT", to_keras(qat_model))
    assert rows["int8"]["operations"] == rows["int8 after QAT"]["operations"]
    if arguments.output:
        settings = {name: getattr(arguments, name) for name in ("images", "batch", "rate", "seed")}
        report = {"date": datetime.now(UTC).date().isoformat(), "versions": versions_of(*TOOLS), "training": settings}
        report |= {"training_seconds": seconds, "files": rows}
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(rows)


def train(model, arguments):
    images = training_images(arguments.cifar10, arguments.images)
    rng = np.random.default_rng(arguments.seed)
    images = rng.permutation(images).astype("float32")
    mirrored = images[:, :, ::-1]
    teacher = sum(model.predict(preprocess_input(part), verbose=0) for part in (images, mirrored)) / 2
    images = np.where(rng.random((len(images), 1, 1, 1)) < 0.5, images, mirrored)
    qat_model = quantize_aware(model)
    steps = arguments.images // arguments.batch
    schedule = tf_keras.optimizers.schedules.CosineDecay(arguments.rate, steps)
    qat_model.compile(tf_keras.optimizers.Adam(schedule), tf_keras.losses.KLDivergence())
    started = time.perf_counter()
    qat_model.fit(images, teacher, batch_size=arguments.batch, shuffle=False, verbose=2)
    return qat_model, round(time.perf_counter() - started)


def training_images(archive, number):
    with zipfile.ZipFile(archive) as content:
        names = sorted(name for name in content.namelist() if name.startswith("train/") and name.endswith(".jpg"))
        names = names[:: len(names) // number][:number]
        return np.stack(
            [
                resize_and_crop(load_image(content.open(name)), (64, 64), 1.0)
                for name in track(names, description="reading")
            ]
        )


def print_table(rows):
    """As rows of Markdown, for tflite/README.md."""
    print("| file | size | top-1 | against float32 |", "|---|---|---|---|", sep="\n")
    for name, row in rows.items():
        drop = row["top1"] - rows["float32"]["top1"]
        print(f"| {name} | {row['bytes'] / 1e6:.1f} MB | {row['top1']:.2f}% | {drop:+.2f} |")


if __name__ == "__main__":
    main()
