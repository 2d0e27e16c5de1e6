"""README's example of fine-tuning, whole: the embedded checkpoint's backbone learns scikit-learn's handwritten digits.

    python benchmarks/digits.py FOLDER

Writes the 1,797 digits as PNG files into FOLDER/digits and the run into FOLDER/run; prints the held-out accuracy and
what it cost.
"""

import argparse
import time
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

from keras_efficientformer.training import FineTuneConfig, FineTuneReport, finetune

CHECKPOINT = Path(__file__).parents[1] / "weights" / "efficientformer_l1_cifar10.safetensors"


def write_digits(folder: Path, count: int | None = None) -> Path:
    """The digits, 8x8 grey values in 0..16, as PNG files in a subfolder for each class: the first `count`, or all."""
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images[:count], digits.target[:count], strict=True)):
        path = folder / str(label) / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype("uint8")).save(path)
    return folder


def train(folder: Path, output: Path, epochs: int = 4) -> FineTuneReport:
    """README's call: a fifth of the images is held out, digits are not mirrored, crops keep most of them."""
    config = FineTuneConfig(epochs=epochs, size=40, flip=False, min_crop=0.7)
    return finetune(CHECKPOINT, folder, output, config=config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder

    images = write_digits(folder / "digits")
    started, cpu = time.perf_counter(), time.process_time()
    report = train(images, folder / "run")
    assert report.scores is not None  # a share of the digits is held out
    print(
        f"held-out accuracy {report.scores.summary['top-1']:.2%} after {time.perf_counter() - started:.0f} s, "
        f"{time.process_time() - cpu:.0f} s of CPU time"
    )


if __name__ == "__main__":
    main()
