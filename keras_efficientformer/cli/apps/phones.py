"""What the commands that write apps for phones share: their arguments, and how they open a model. Room: cli/apps."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keras_efficientformer import models, segmentation
from keras_efficientformer.cli.options import MODEL_NAMES, RUNTIMES, check_inputs, open_keras
from keras_efficientformer.files import check_target
from keras_efficientformer.sharing.finished_runs import read_finished_run

if TYPE_CHECKING:  # its import takes seconds
    import keras

PhoneModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=f"The folder of a run of finetune, {MODEL_NAMES}, a .keras or checkpoint file, or an exported file.",
    ),
]
ProjectFolder = Annotated[Path, typer.Argument(help="The project's folder, which is made.")]
AppName = Annotated[str | None, typer.Option("--name", help="Of the app. Default: the model's.")]


def open_for(
    suffix: str, source: str, folder: Path, size: tuple[int, int] | None, overwrite: bool
) -> tuple["keras.Model | Path", float | None]:
    """What an app is written of, and the crop that a classifier's weights were measured with; None of a segmenter's.

    Args:
        suffix: of the exported files that the app runs, which are given on as they are.
        source: the command's MODEL.
        folder: that is written.
        size: (height, width) in pixels for a model; None means its own.
        overwrite: whether the folder may be replaced.

    Raises:
        ValueError: an exported file is of another format, or a size is given for one; or a folder holds no finished
            run.
        OSError: there is no such model, or the folder may not be written.
    """
    path = Path(source)
    if path.is_dir() and path.suffix != ".mlpackage":
        source = str(read_finished_run(path).model)
    check_inputs(source)
    check_target(folder, overwrite, Path.is_dir)
    if path.suffix in RUNTIMES and path.suffix != suffix:
        raise ValueError(f"This app runs {suffix} files. Give the model that {source} was exported from.")
    if path.suffix == suffix:
        if size is not None:
            raise ValueError(f"{source} is exported already: leave --size out. An app has every size that a file has.")
        return path, None
    model = open_keras(source, size)
    return model, None if segmentation.is_segmenter(model) else models.crop_of(source)
