"""A segmentation model, trained from the embedded checkpoint on digits pasted into photographs, and its files.

    python benchmarks/segmentation.py FOLDER --output benchmarks/results/segmentation.json --picture tflite/masks.png

Pictures and masks are those of `pasted_digits.py`: 11 classes at 96x96, made of what scikit-learn and scikit-image
install. Writes them, the run and the files into FOLDER; says what training cost and how many points of mean IoU each
file loses on the held-out pictures.
"""

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pasted_digits import CLASSES, SIDE, write_scenes
from PIL import Image
from rich import print as rich_print
from rich.table import Table

from keras_efficientformer.classifiers import open_classifier
from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.labels import class_colors
from keras_efficientformer.opening import open_model
from keras_efficientformer.reporting import versions_of
from keras_efficientformer.segmentation.palette import colour_values, drawn_over
from keras_efficientformer.training import FineTuneConfig, evaluate, finetune
from keras_efficientformer.training.scores import MaskScores

CHECKPOINT = Path(__file__).parents[1] / "weights" / "efficientformer_l1_cifar10.safetensors"
MODES = ("none", "float16", "dynamic", "weight_only", "int8")
SHOWN = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument(
        "--picture", type=Path, help="PNG file to write: held-out pictures, their masks and the model's"
    )
    arguments = parser.parse_args()
    folder = arguments.folder

    images, masks = write_scenes(folder)
    # Digits are not mirrored, and crops keep most of them. The average of the weights does better on photographs that
    # are not among the few of training.
    config = FineTuneConfig(
        epochs=arguments.epochs, size=SIDE, flip=False, min_crop=0.5, color_jitter=0.5, ema=0.99, label_smoothing=0.0
    )
    started, cpu = time.perf_counter(), time.process_time()
    finetune(CHECKPOINT, images, folder / "run", masks=masks, labels=CLASSES, config=config)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    best = folder / "run" / "best.keras"
    rows = {"Keras": row_of(best, images, masks)}
    for kind, file in written(best, images, folder):
        rows[kind] = row_of(file, images, masks)
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions_of("keras-efficientformer", "keras", "tensorflow", "ai-edge-litert", "coremltools"),
        "epochs": arguments.epochs,
        "training_minutes": round(seconds / 60, 1),
        "training_cpu_minutes": round(cpu_seconds / 60, 1),
        "files": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.picture:
        draw(best, images / "val", masks / "val", arguments.picture)
    print_table(report)


def written(model: Path, images: Path, folder: Path) -> list[tuple[str, Path]]:
    """(what it is, the file) of each export."""
    network, files = open_model(model), []
    for mode in MODES:
        # What a file loses is what is measured.
        file = folder / f"{mode}.tflite"
        calibration = images / "train"
        export_tflite(
            network, file, quantize=mode, calibration=calibration, max_difference=float("inf"), overwrite=True
        )
        files.append((f"TFLite {'float32' if mode == 'none' else mode}", file))
    package = folder / "float16.mlpackage"
    export_coreml(network, package, max_difference=float("inf"), overwrite=True)
    return [*files, ("Core ML float16", package)]


def row_of(file: Path, images: Path, masks: Path) -> dict[str, float]:
    """Its size, and its scores on the held-out pictures."""
    scores = evaluate(file, images / "val", masks=masks / "val").scores
    assert isinstance(scores, MaskScores)
    size = (
        sum(path.stat().st_size for path in file.rglob("*") if path.is_file()) if file.is_dir() else file.stat().st_size
    )
    return {
        "megabytes": round(size / 1e6, 2),
        "mean_iou": round(scores.mean_iou, 4),
        "pixel_accuracy": round(scores.accuracy, 4),
    }


def draw(model: Path, images: Path, masks: Path, file: Path) -> None:
    """Rows of pictures: the first held-out ones, their masks, and the model's masks over them."""
    paths = sorted(images.iterdir())[:SHOWN]
    pictures = np.stack([np.asarray(Image.open(path)) for path in paths])
    truths = np.stack([np.asarray(Image.open(masks / path.name)) for path in paths])
    answers = open_classifier(model).predict(pictures.astype("float32")).argmax(-1)
    colors = colour_values(class_colors(len(CLASSES)))
    rows = [pictures, colors[truths], [drawn_over(*pair, colors) for pair in zip(pictures, answers, strict=True)]]
    whole = np.concatenate([np.concatenate(list(row), axis=1) for row in rows]).astype("uint8")
    Image.fromarray(whole).save(file)


def print_table(report: dict) -> None:
    print(
        f"training: {report['training_minutes']} min, {report['training_cpu_minutes']} min of CPU time, "
        f"{report['epochs']} epochs"
    )
    rows = report["files"]
    table = Table("file", "MB", "mean IoU", "points lost", "pixel accuracy")
    for kind, row in rows.items():
        lost = 100 * (rows["Keras"]["mean_iou"] - row["mean_iou"])
        table.add_row(
            kind, f"{row['megabytes']:.1f}", f"{row['mean_iou']:.2%}", f"{lost:.2f}", f"{row['pixel_accuracy']:.2%}"
        )
    rich_print(table)


if __name__ == "__main__":
    main()
