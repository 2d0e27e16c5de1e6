"""The commands `finetune` and `evaluate`: arguments in, one call of the library, one printed report out."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from keras_efficientformer.cli.shared import Json, choice, errors, track
from keras_efficientformer.cli.shared import output as console
from keras_efficientformer.deploy.report import facts_table
from keras_efficientformer.imagenet import read_labels
from keras_efficientformer.training import EvaluationReport, FineTuneConfig, FineTuneReport
from keras_efficientformer.training import evaluate as evaluate_model
from keras_efficientformer.training import finetune as finetune_model
from keras_efficientformer.training.config import DEVICES, PRECISIONS

WORST_SHOWN = 10


def finetune(
    folder: Annotated[Path, typer.Argument(help="A subfolder of images for each class; or train and val with those.")],
    output: Annotated[Path, typer.Option(help="The run's folder, which is made.")],
    model: Annotated[str, typer.Option(help="l1 ... v2_l (ImageNet), a .keras file or a checkpoint.")] = "l1",
    config: Annotated[
        str | None, typer.Option(help=r"TOML file with a table \[finetune], or imagenet: the paper's recipe.")
    ] = None,
    validation: Annotated[Path | None, typer.Option(help="Another folder of the same classes.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Model to distil from: as for --model.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.")] = None,
    freeze_epochs: Annotated[int | None, typer.Option(help="First epochs, in which only the head learns.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels.")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Mirror half of the images.")] = None,
    min_crop: Annotated[float | None, typer.Option(help="Smallest share of an image that a crop keeps.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without improvement before an early stop.")] = None,
    precision: Annotated[str | None, choice(PRECISIONS, "Arithmetic.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.")] = None,
    devices: Annotated[str | None, choice(DEVICES, "One device, or all.")] = None,
    tensorboard: Annotated[bool | None, typer.Option("--tensorboard", help="Write logs for TensorBoard.")] = None,
    skip_bad: Annotated[bool | None, typer.Option("--skip-bad", help="Leave unreadable images out.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on a folder of images."""
    chosen: dict[str, Any] = {
        "epochs": epochs,
        "freeze_epochs": freeze_epochs,
        "batch_size": batch_size,
        "learning_rate": lr,
        "size": size,
        "flip": flip,
        "min_crop": min_crop,
        "patience": patience,
        "precision": precision,
        "seed": seed,
        "devices": devices,
        "tensorboard": tensorboard,
        "skip_bad": skip_bad,
    }
    changes = {name: value for name, value in chosen.items() if value is not None}
    settings = FineTuneConfig.from_file(config, **changes) if config else FineTuneConfig(**changes)
    report = finetune_model(
        model,
        folder,
        output,
        validation=validation,
        teacher=_open_teacher(teacher),
        config=settings,
        resume=resume,
        verbose=0 if as_json else 1 if errors.is_terminal else 2,
        track=partial(track, description="Checking images"),
    )
    print(json.dumps(report.to_dict(), indent=2)) if as_json else console.print(_finetune_table(report, output))


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A subfolder of images for each class; or ImageNet's val files.")],
    model: Annotated[str, typer.Option(help="l1 ... v2_l, a .keras, checkpoint, .tflite or .mlpackage file.")] = "l1",
    labels: Annotated[Path | None, typer.Option(help="Text file with one class name in each line.")] = None,
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
        labels=read_labels(labels) if labels else None,
        ground_truth=ground_truth,
        input_shape=(size, size, 3) if size else None,
        crop_fraction=crop,
        batch_size=batch_size,
        skip_bad=skip_bad,
        track=partial(track, description="Evaluating"),
    )
    print(report.to_json(), end="") if as_json else console.print(_evaluation_table(report))


def _open_teacher(source: str | None) -> Any:
    if source is None:
        return None
    from keras_efficientformer.classifiers import open_classifier
    from keras_efficientformer.training.teachers import resizing

    classifier = open_classifier(source)
    return resizing(classifier.predict, classifier.size)


def _finetune_table(report: FineTuneReport, output: Path) -> Table:
    table = facts_table(f"Trained on {len(report.labels)} classes")
    table.add_row("best model", str(report.model))
    table.add_row("epoch", f"{report.best_epoch} of {len(report.history)}")
    if report.scores:
        table.add_row("validation top-1", f"{report.scores.top1:.2%}")
        table.add_row("validation top-5", f"{report.scores.top5:.2%}")
    table.add_row("left out", f"{len(report.skipped)} unreadable images")
    table.add_row("more", ", ".join(str(output / name) for name in ("report.json", "curves.png", "confusion.png")))
    return table


def _evaluation_table(report: EvaluationReport) -> Table:
    table = facts_table(Path(report.model).name)
    table.add_row("images", f"{report.images:,}")
    table.add_row("top-1", f"{report.scores.top1:.2%}")
    table.add_row("top-5", f"{report.scores.top5:.2%}")
    table.add_row("images per second", f"{report.images_per_second:,.1f}")
    table.add_row("left out", f"{len(report.skipped)} unreadable images")
    classes = sorted(report.to_dict()["classes"], key=lambda row: row["top1"])
    for row in classes[:WORST_SHOWN]:
        table.add_row(row["label"], f"{row['top1']:.1%} of {row['images']}")
    return table
