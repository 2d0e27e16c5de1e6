"""The command `efficientformer`: arguments in, one call of the library, one printed report out.

Exit codes: 0 done, 1 the file or image is not fit or the result not good enough, 2 wrong usage. Reports go to standard
output, as a table or with --json as JSON; progress and errors go to standard error.
"""

import dataclasses
import hashlib
import json
import sys
import time
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from rich.text import Text

from keras_efficientformer import EfficientFormerL1, EfficientFormerL3, EfficientFormerL7, conversion, from_checkpoint
from keras_efficientformer.checkpoint_files import finished_file, suffix_of
from keras_efficientformer.deploy import ExportError, export_coreml, export_tflite
from keras_efficientformer.deploy.coreml import TARGETS
from keras_efficientformer.deploy.coreml_modes import COMPRESSIONS, PRECISIONS
from keras_efficientformer.deploy.images import find_images
from keras_efficientformer.deploy.litert import LiteRTModel
from keras_efficientformer.deploy.tflite_modes import IO_TYPES, MODES
from keras_efficientformer.imagenet import decode_predictions, load_image, preprocess_input, resize_and_crop

PUBLISHED = {"l1": EfficientFormerL1, "l3": EfficientFormerL3, "l7": EfficientFormerL7}
BATCH_SIZE = 32

# Not as markup: paths, shapes and class names are full of brackets.
output = Console(markup=False, emoji=False)
errors = Console(stderr=True)
app = typer.Typer(help=__doc__.partition("\n")[0], no_args_is_help=True, pretty_exceptions_enable=False)
export = typer.Typer(help="Write a file for phones, run it and compare it with the Keras model.", no_args_is_help=True)
app.add_typer(export, name="export")

Model = Annotated[
    str,
    typer.Argument(help="l1, l3 or l7 (ImageNet, downloaded), l1:imagenet-300, a .keras file or a checkpoint file."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
Size = Annotated[str | None, typer.Option(help="Input size, 224 or 160x224 (height x width). Default: its own.")]
MaxDifference = Annotated[float | None, typer.Option(help="Write nothing beyond it. Default: the mode's.")]
Labels = Annotated[Path | None, typer.Option(help="Text file with one class name in each line.")]


class DialectName(StrEnum):
    """The choices of --dialect."""

    TIMM = "timm"
    SNAP = "snap"
    TRANSFORMERS = "transformers"


@app.command()
def convert(
    source: Model,
    target: Annotated[Path, typer.Argument(help=".keras, .weights.h5, .safetensors, .pth, .pt or .bin")],
    dialect: Annotated[DialectName, typer.Option(help="Tensor names of a PyTorch target.")] = DialectName.TIMM,
    size: Size = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint: PyTorch's in any dialect, or Keras', to Keras' or PyTorch's in any dialect."""
    started = time.perf_counter()
    suffix = suffix_of(target)
    if suffix is None:
        raise typer.BadParameter(f"{target} should end in .keras, .weights.h5, .safetensors, .pth, .pt or .bin")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists. Choose another name, or pass --overwrite.")
    model = _open(source, size)
    if suffix in (".keras", ".weights.h5"):
        with finished_file(target, overwrite) as partial:
            model.save(partial) if suffix == ".keras" else model.save_weights(partial)
    else:
        conversion.write_checkpoint(target, conversion.to_state_dict(model, dialect.value), overwrite)
    _print(
        {
            "source": source,
            "target": str(target),
            "model": model.name,
            "input": list(model.inputs[0].shape[1:]),
            "output": [list(output.shape[1:]) for output in model.outputs],
            "parameters": model.count_params(),
            "bytes": target.stat().st_size,
            "seconds": round(time.perf_counter() - started, 2),
        },
        as_json,
        f"Converted to {target.name}",
    )


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    model: Annotated[str, typer.Option(help="As for convert, or a .tflite file.")] = "l1",
    top: Annotated[int, typer.Option(min=1, help="How many classes to print.")] = 5,
    labels: Labels = None,
    size: Size = None,
    crop: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of the image that is looked at.")] = 0.95,
    as_json: Json = False,
) -> None:
    """Classify photographs."""
    files = [file for path in images for file in (find_images(path) if path.is_dir() else [path])]
    network = _TFLiteClassifier(model) if model.endswith(".tflite") else _KerasClassifier(_open(model, size))
    names = labels.read_text(encoding="utf-8").splitlines() if labels else network.labels
    results: dict[str, Any] = {}
    for start in _track(range(0, len(files), BATCH_SIZE), "Classifying"):
        batch = files[start : start + BATCH_SIZE]
        pixels = np.stack([resize_and_crop(load_image(file), network.size, crop) for file in batch])
        decoded = _decode(network.predict(pixels.astype("float32")), top, names)
        results |= zip(map(str, batch), decoded, strict=True)
    if as_json:
        print(json.dumps({file: [list(row) for row in rows] for file, rows in results.items()}, indent=2))
        return
    table = Table(Column("image", overflow="fold"), "class", "score")
    for file, rows in results.items():
        for index, (_, name, score) in enumerate(rows):
            table.add_row(file if index == 0 else "", name, f"{score:.1%}", end_section=index == len(rows) - 1)
    output.print(table)


@export.command("tflite")
def tflite_command(
    model: Model,
    path: Annotated[Path, typer.Argument(help="The .tflite file, or an existing folder.")],
    quantize: Annotated[str, typer.Option(help=", ".join(MODES))] = "none",
    calibration: Annotated[Path | None, typer.Option(help="Folder of images to measure ranges and errors on.")] = None,
    labels: Labels = None,
    size: Size = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one inference.")] = 1,
    io: Annotated[str, typer.Option(help="Type of input and output: " + ", ".join(IO_TYPES))] = "float32",
    preprocessing: Annotated[bool, typer.Option(help="Take raw RGB 0..255 and normalise inside.")] = True,
    max_difference: MaxDifference = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a TFLite file for Android."""
    report = export_tflite(
        _open(model, size),
        path,
        quantize=quantize,
        calibration=calibration,
        labels=labels,
        include_preprocessing=preprocessing,
        batch_size=batch_size,
        io=io,
        max_difference=max_difference,
        overwrite=overwrite,
    )
    print(report.to_json(), end="") if as_json else output.print(report)


@export.command("coreml")
def coreml_package(
    model: Model,
    path: Annotated[Path, typer.Argument(help="The .mlpackage, or an existing folder to name it in.")] = Path("."),
    precision: Annotated[str, typer.Option(help=" | ".join(PRECISIONS))] = "float16",
    compress: Annotated[str, typer.Option(help=" | ".join(COMPRESSIONS))] = "none",
    labels: Labels = None,
    size: Size = None,
    minimum_ios: Annotated[int, typer.Option(help=" | ".join(map(str, TARGETS)))] = 16,
    image_input: Annotated[bool, typer.Option("--image/--array", help="Type of the input: image or float32.")] = True,
    feature_maps: Annotated[bool, typer.Option("--feature-maps", help="Also output the four stages.")] = False,
    max_difference: MaxDifference = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a Core ML package for iOS."""
    report = export_coreml(
        _open(model, size),
        path,
        precision=precision,
        compress=compress,
        labels=labels,
        minimum_ios=minimum_ios,
        image_input=image_input,
        feature_maps=feature_maps,
        max_difference=max_difference,
        overwrite=overwrite,
    )
    print(report.to_json(), end="") if as_json else output.print(report)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A checkpoint, a .keras, .weights.h5 or .tflite file.")],
    as_json: Json = False,
) -> None:
    """Say what is in a file."""
    found = _inspect_tflite(file) if file.suffix == ".tflite" else _inspect_checkpoint(file)
    with file.open("rb") as content:
        found |= {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}
    _print(found, as_json, file.name)


class _KerasClassifier:
    """A Keras model as `predict` wants it: raw RGB in 0..255 to scores."""

    labels = None

    def __init__(self, model):
        self._model = model
        self.size = tuple(model.inputs[0].shape[1:3])

    def predict(self, pixels):
        scores = self._model.predict(preprocess_input(pixels), verbose=0)
        # Of two heads, the one that was trained on labels.
        return scores[0] if isinstance(scores, list) else scores


class _TFLiteClassifier:
    """A .tflite file the same way; its sidecar has the labels and says whether the file normalises by itself."""

    def __init__(self, path):
        self._model = LiteRTModel(path)
        self.size = self._model.input_shape[:2]
        sidecar = Path(path).with_suffix(".json")
        report = json.loads(sidecar.read_text()) if sidecar.exists() else {}
        self.labels = report.get("labels")
        self._preprocessing = report.get("preprocessing", True)

    def predict(self, pixels):
        outputs = self._model.predict(pixels if self._preprocessing else preprocess_input(pixels))
        return outputs[self._model.outputs[0].name]


def _decode(scores, top, names):
    if names is None and scores.shape[-1] != 1000:
        names = [f"class {index}" for index in range(scores.shape[-1])]
    return decode_predictions(scores, top=top, labels=names)


def _open(source: str, size: str | None) -> keras.Model:
    """The model that a command's argument names."""
    variant, _, weights = source.partition(":")
    shape = _shape(size)
    if variant in PUBLISHED:
        return PUBLISHED[variant](weights=weights or "imagenet", input_shape=shape)
    if source.endswith(".keras") and shape is None:
        return keras.saving.load_model(source, compile=False)
    return from_checkpoint(source, input_shape=shape, progress=partial(_track, description="Loading weights"))


def _track(sequence, description):
    """A progress bar on standard error, where somebody can see it."""
    return track(sequence, description, console=errors, transient=True, disable=not errors.is_terminal)


def _shape(size):
    if size is None:
        return None
    sides = size.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise typer.BadParameter(f"--size should be a number of pixels or HEIGHTxWIDTH. Received: {size}")
    height, width = int(sides[0]), int(sides[-1])
    return height, width, 3


def _inspect_checkpoint(file):
    checkpoint = conversion.read_checkpoint(file)
    info = dataclasses.asdict(conversion.infer_variant(checkpoint))
    floats = [tensor for tensor in checkpoint.values() if tensor.dtype.kind not in "iub"]
    return info | {
        "wrappers": list(checkpoint.wrappers),
        "tensors": len(checkpoint),
        "values": sum(tensor.size for tensor in floats),
        "dtypes": sorted({tensor.dtype.name for tensor in checkpoint.values()}),
        "finite": all(bool(np.isfinite(tensor).all()) for tensor in floats),
    }


def _inspect_tflite(file):
    model = LiteRTModel(file)
    inputs, outputs = ([dataclasses.asdict(tensor) for tensor in ends] for ends in (model.inputs, model.outputs))
    return {"inputs": inputs, "outputs": outputs, "operations": model.operations()}


def _print(report: dict[str, Any], as_json: bool, title: str) -> None:
    if as_json:
        print(json.dumps(report, indent=2))
        return
    table = Table("", Column(overflow="fold"), title=title, show_header=False, title_justify="left")
    for name, value in report.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
    output.print(table)


def main(*command: str) -> None:
    """Runs the command line, or one of its commands with the arguments of this process.

    Failures that a user can mend are one line, without a traceback.
    """
    try:
        app([*command, *sys.argv[1:]])
    except (ValueError, OSError, ImportError, ExportError) as error:
        # Not as markup: paths and shapes are full of brackets.
        errors.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        raise SystemExit(1) from None
