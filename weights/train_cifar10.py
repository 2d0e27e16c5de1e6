"""Trains the embedded checkpoint on, as `cifar10_recipe.toml` says, and writes it in timm's names and float16.

    python weights/train_cifar10.py cifar10-images.zip FOLDER --start efficientformer_l1_cifar10.safetensors

The zip has train/CLASS/*.jpg and test/CLASS/*.jpg. FOLDER gets the images, the run (`run/`, which `--resume` goes on
with) and the new checkpoint; its top-1 on the test images, which training never sees, is printed. An hour on two cores.
"""

import argparse
import zipfile
from pathlib import Path

import keras

from keras_efficientformer import conversion
from keras_efficientformer.training import FineTuneConfig, evaluate, finetune

RECIPE = Path(__file__).with_name("cifar10_recipe.toml")
# The classes in the order of the checkpoint's outputs, which it does not name.
LABELS = Path(__file__).with_name("cifar10_labels.txt")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start", type=Path, required=True, help="the checkpoint to go on from")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.archive) as content:
        content.extractall(arguments.folder)
    config = FineTuneConfig.from_file(RECIPE)
    images, run = arguments.folder / "train", arguments.folder / "run"
    report = finetune(arguments.start, images, run, labels=LABELS, config=config, resume=arguments.resume)
    target = arguments.folder / "efficientformer_l1_cifar10.safetensors"
    tensors = conversion.to_state_dict(keras.models.load_model(report.model))
    half = {n: tensor.astype("float16") if tensor.dtype == "float32" else tensor for n, tensor in tensors.items()}
    conversion.write_checkpoint(target, half, overwrite=True)
    scores = evaluate(target, arguments.folder / "test", crop_fraction=1.0).scores
    print(f"{target}: {scores.top1:.2%} of {scores.confusion.sum():,} test images")


if __name__ == "__main__":
    main()
