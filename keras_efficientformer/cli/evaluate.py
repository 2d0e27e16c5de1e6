"""The command `efficientformer evaluate`: measures accuracy and speed on a folder of images. Room: cli."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from keras_efficientformer import training
from keras_efficientformer.cli.options import (
    Crop,
    Json,
    LabelsFile,
    Masks,
    ModelOption,
    PaletteFile,
    Size,
    SkipBad,
    check_inputs,
    left_out,
    prepare_for,
    track,
    worst_classes,
)
from keras_efficientformer.cli.options import output as console
from keras_efficientformer.cli.quiet import import_keras_alone
from keras_efficientformer.reporting import facts_table


def evaluate(
    folder: Annotated[
        Path,
        typer.Argument(help="A subfolder of images for each class; ImageNet's val files; with --masks any images."),
    ],
    model: ModelOption = "l1",
    labels: LabelsFile = None,
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="Images have several labels or none: see finetune --multi-label.")
    ] = False,
    masks: Masks = None,
    palette: PaletteFile = None,
    ground_truth: Annotated[
        Path | None,
        typer.Option(help="Classes of ImageNet's ILSVRC2012_val_*.JPEG. Default: the file beside them."),
    ] = None,
    size: Size = None,
    crop: Crop = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a prediction.")] = 32,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Measure a model's accuracy and speed on a folder of images."""
    check_inputs(model, folder, labels, masks, palette, ground_truth)
    prepare_for(model)
    import_keras_alone()  # evaluating uses it, whatever is evaluated
    report = training.evaluate(
        model,
        folder,
        labels=labels,
        multi_label=multi_label,
        masks=masks,
        palette=palette,
        ground_truth=ground_truth,
        input_shape=size,
        crop_fraction=crop,
        batch_size=batch_size,
        skip_bad=skip_bad,
        track=partial(track, description="Evaluating"),
    )
    print(report.to_json(), end="") if as_json else console.print(
        _evaluation_table(report), worst_classes(report.scores, report.labels)
    )


def _evaluation_table(report: "training.EvaluationReport") -> Table:
    table = facts_table(Path(report.model).name)
    height, width = report.image_size
    table.add_row("images", f"{report.images:,} of {height}x{width} pixels, crop {report.crop_fraction:g}")
    table.add_row("folders taken", report.classes_from)
    for name, share in report.scores.summary.items():
        table.add_row(name, f"{share:.2%}")
    table.add_row("images per second", f"{report.images_per_second:,.1f}")
    table.add_row("left out", left_out(report.skipped, report.other_files))
    return table
