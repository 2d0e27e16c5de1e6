"""What each TFLite mode costs the second family in accuracy: an EfficientFormerV2-S0 trained on CIFAR-10 for it.

No trained weights of the family come with this project, so the network learns first: from scratch, at 64x64, some
minutes for each epoch on two cores. How good it gets is no matter; what is measured is what quantization takes from it,
on the 5,000 test images, calibrated on training images. Says too which operations of the int8 file stay in float32.

    python benchmarks/v2_modes.py FOLDER --cifar10 cifar10-images.zip --output benchmarks/results/v2_modes.json
"""

import argparse
import dataclasses
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import keras
import numpy as np
from tflite_modes import measure_accuracy

from keras_efficientformer import EfficientFormerV2S0
from keras_efficientformer.deploy.tflite.modes import MODES
from keras_efficientformer.reporting import versions_of
from keras_efficientformer.training import FineTuneConfig, finetune

CONFIG = FineTuneConfig(
    freeze_epochs=0,
    batch_size=128,
    learning_rate=2e-3,
    warmup_epochs=0.5,
    keep_head=True,
    min_crop=0.5,
    crop_fraction=1.0,
    validation_split=0.02,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="for the images, the run and the files")
    parser.add_argument("--cifar10", type=Path, required=True, help="zip with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    config = dataclasses.replace(CONFIG, epochs=arguments.epochs)
    trained = train(arguments.cifar10, arguments.folder, config)
    rows = {mode: {} for mode in MODES}
    measure_accuracy(keras.models.load_model(trained.model), arguments.cifar10, arguments.folder, rows)
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions_of("keras-efficientformer", "tensorflow", "litert-quantizer", "ai-edge-litert"),
        "training": config.to_dict(),
        "modes": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(rows)


def train(archive, folder, config):
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder, [name for name in content.namelist() if name.startswith("train/")])
    labels = sorted(path.name for path in (folder / "train").iterdir())
    model = EfficientFormerV2S0(weights=None, input_shape=(64, 64, 3), classes=10, labels=labels)
    for variable in model.trainable_variables:
        if variable.name == "gamma" and "/ls" in variable.path:
            variable.assign(np.full(variable.shape, 0.2))  # the published 1e-5 is for hundreds of epochs
    return finetune(model, folder / "train", folder / "run", config=config)


def print_table(rows):
    """As rows of Markdown, for tflite/README.md."""
    print("| mode | top-1 | against float32 |", "|---|---|---|", sep="\n")
    for mode, row in rows.items():
        print(f"| `{mode}` | {row['top1']:.2f}% | {row['top1'] - rows['none']['top1']:+.2f} |")


if __name__ == "__main__":
    main()
