"""The command `efficientformer predict`: classifies photographs. Room: cli."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Column, Table

from keras_efficientformer.classifiers import open_classifier
from keras_efficientformer.cli.options import Json, LabelsFile, Size, image_shape, output, track
from keras_efficientformer.imagenet import decode_predictions, load_image, resize_and_crop
from keras_efficientformer.images import find_images, of_channels
from keras_efficientformer.labels import class_names

BATCH_SIZE = 32


def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    model: Annotated[str, typer.Option(help="As for convert, a .tflite file or an .mlpackage.")] = "l1",
    top: Annotated[int, typer.Option(min=1, help="How many classes to print.")] = 5,
    labels: LabelsFile = None,
    size: Size = None,
    crop: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the image that is looked at.")] = 0.95,
    as_json: Json = False,
) -> None:
    """Classify photographs."""
    files = [file for path in images for file in (find_images(path) if path.is_dir() else [path])]
    network = open_classifier(model, image_shape(size))
    if network.output == "features" or (network.output == "embedding" and not as_json):
        raise ValueError(
            f"{model} has no classifier: it gives {network.output}. With --json the embedding of each image is printed."
        )
    names = class_names(labels) if labels else network.labels
    results: dict[str, Any] = {}
    for start in track(range(0, len(files), BATCH_SIZE), "Classifying"):
        batch = files[start : start + BATCH_SIZE]
        pixels = np.stack([resize_and_crop(load_image(file), network.size, crop) for file in batch])
        scores = network.predict(of_channels(pixels.astype("float32"), network.channels))
        if not np.isfinite(scores).all():
            raise ValueError(f"{model} answers with scores that are not finite: its weights are damaged.")
        rows = scores.tolist() if network.output == "embedding" else _decode(scores, top, names)
        results |= zip(map(str, batch), rows, strict=True)
    if as_json:
        print(json.dumps(results, indent=2))
        return
    table = Table(Column("image", overflow="fold"), "class", "score")
    are_logits = any(not 0 <= score <= 1 for rows in results.values() for *_, score in rows)
    for file, rows in results.items():
        for index, (_, name, score) in enumerate(rows):
            shown = f"{score:.3f}" if are_logits else f"{score:.1%}"
            table.add_row(file if index == 0 else "", name, shown, end_section=index == len(rows) - 1)
    output.print(table)


def _decode(scores: np.ndarray, top: int, names: tuple[str, ...] | None) -> list[list[tuple[str, str, float]]]:
    """[(class id, name, score), ...] of each image, the highest scores first."""
    if names is None and scores.shape[-1] != 1000:
        names = tuple(f"class {index}" for index in range(scores.shape[-1]))
    if names is not None:
        names = class_names(names, scores.shape[-1])
    return decode_predictions(scores, top=top, labels=names)
