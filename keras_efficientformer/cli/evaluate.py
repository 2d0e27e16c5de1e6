"""The command `efficientformer evaluate`: measures accuracy and speed on a folder of images. Room: cli."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from keras_efficientformer.cli.options import Json, left_out, track
from keras_efficientformer.cli.options import output as console
from keras_efficientformer.reporting import facts_table
from keras_efficientformer.training import EvaluationReport
from keras_efficientformer.training import evaluate as evaluate_model
from keras_efficientformer.training.scores import worst_classes


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A subfolder of images for each class; or ImageNet's val files.")],
    model: Annotated[str, typer.Option(help="l1 ... v2_l, a .keras, checkpoint, .tflite or .mlpackage file.")] = "l1",
    labels: Annotated[Path | None, typer.Option(help="Text file with one class name in each line.")] = None,
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="Images have several labels or none: see finetune --multi-label.")
    ] = False,
    ground_truth: Annotated[Path | None, typer.Option(help="Classes of ImageNet's ILSVRC2012_val_*.JPEG.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images, for Keras models and checkpoints.")] = None,
    crop: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the image that is looked at.")] = 0.95,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a prediction.")] = 32,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a model's accuracy and speed on a folder of images."""
    report = evaluate_model(
        model,
        folder,
        labels=labels,
        multi_label=multi_label,
        ground_truth=ground_truth,
        input_shape=(size, size) if size else None,
        crop_fraction=crop,
        batch_size=batch_size,
        skip_bad=skip_bad,
        track=partial(track, description="Evaluating"),
    )
    print(report.to_json(), end="") if as_json else console.print(_evaluation_table(report))


def _evaluation_table(report: EvaluationReport) -> Table:
    table = facts_table(Path(report.model).name)
    table.add_row("images", f"{report.images:,}")
    table.add_row("folders taken", report.classes_from)
    for name, share in report.scores.summary.items():
        table.add_row(name, f"{share:.2%}")
    table.add_row("images per second", f"{report.images_per_second:,.1f}")
    table.add_row("left out", left_out(report.skipped, report.other_files))
    for label, words in worst_classes(report.scores, report.labels):
        table.add_row(label, words)
    return table
