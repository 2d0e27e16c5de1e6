"""Writes a page that classifies or segments images in a browser: a folder for any web server, offline. Room: apps.

The page's own files lie in `web/`. What it knows of the models stands in its models.json, taken from the files' own
metadata as `predict` reads them, with what LiteRT answers here for a picture that the page draws too: it asks itself on
every start.
"""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficientformer.apps.litert_js import PAGE, copy_litert_js, locked_version, node_modules
from keras_efficientformer.classifiers.exported_files import FileClassifier
from keras_efficientformer.classifiers.opening import open_tflite
from keras_efficientformer.deploy.report import TensorInfo
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.deploy.tflite.sizes.signatures import signature_sizes
from keras_efficientformer.files import bare_name, check_target, finished_file, size_of, write_json
from keras_efficientformer.imagenet import CROP, default_names
from keras_efficientformer.images import of_channels
from keras_efficientformer.labels import Labels, class_colors, class_names, labels_beside
from keras_efficientformer.layers.names import MASKS

PAGE_FILES = ("index.html", "style.css", "app.js", "network.js", "masks.js", "preprocessing.js")
FACTS_FILE = "models.json"
LITERT_FOLDER = "litert"
# The types of a tensor that LiteRT.js has.
BROWSER_TYPES = ("float32", "int32", "uint8")
# {what a file gives: what the page calls it}.
KINDS = {"scores": "classifier", MASKS: "segmenter"}
# Masks are compared at so many points in each direction: all their values would be as much to load as the file.
CHECKED_POINTS = 8


@dataclass(frozen=True)
class WebApp:
    """What was written.

    Attributes:
        folder: of the page.
        models: names of its .tflite files.
        litert_js: the release of LiteRT.js.
        bytes: of the whole folder; a browser loads the page, one WebAssembly file of 9 MB and the model that is chosen.
    """

    folder: str
    models: tuple[str, ...]
    litert_js: str
    bytes: int


def write_web_app(
    models: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    labels: Labels | None = None,
    crop: float = CROP,
    modules: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> WebApp:
    """Writes a page that classifies or segments photographs, folders and what the camera sees with .tflite files.

    Args:
        models: one or more .tflite files, of which the page offers the choice.
        folder: is made; any web server may serve it.
        labels: names of the classes, for all files; None means the files' own, a `labels.txt` beside each, ImageNet's
            where there are 1000 classes, or numbers.
        crop: share of the resized image's side that classifiers see; segmenters see the whole image, stretched to
            their shape.
        modules: a folder `node_modules` with LiteRT.js; None fetches it from npm.
        overwrite: whether a page that was written before may be replaced.

    Raises:
        ValueError: a file is no .tflite file, does not say how images are prepared for it, gives neither scores of
            classes nor masks, takes several images at once or values that LiteRT.js does not have; or two have one
            name.
        OSError: a file cannot be read, the folder cannot be written or exists, or LiteRT.js cannot be fetched.
        ImportError: LiteRT is not installed.
    """
    files = list(map(Path, models))
    check_models(files)
    check_target(folder, overwrite, _is_page)
    facts = [_facts(file, labels, crop) for file in files]
    with (
        node_modules(None if modules is None else Path(modules)) as found,
        finished_file(folder, overwrite, _is_page) as partial,
    ):
        partial.mkdir()
        for name in PAGE_FILES:
            shutil.copyfile(PAGE / name, partial / name)
        for file in files:
            shutil.copyfile(file, partial / file.name)
        write_json(partial / FACTS_FILE, {"models": facts})
        copy_litert_js(found, partial / LITERT_FOLDER)
    return WebApp(bare_name(folder), tuple(file.name for file in files), locked_version(), size_of(folder))


def check_models(files: Sequence[Path]) -> None:
    """Raises for what is no .tflite file by its name, is not there, or would get a name twice, before any is opened."""
    for file in files:
        if file.suffix != ".tflite":
            raise ValueError(
                f"A page runs .tflite files. Received: {file}. Export it first: efficientformer export tflite {file}"
            )
        if not file.exists():
            raise FileNotFoundError(f"{file} does not exist.")
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        raise ValueError(f"Two files have one name, and a page has them in one folder. Received: {', '.join(names)}")


def _is_page(folder: Path) -> bool:
    return (folder / FACTS_FILE).is_file() and (folder / LITERT_FOLDER).is_dir()


def _facts(file: Path, labels: Labels | None, crop: float) -> dict[str, Any]:
    """An entry of models.json."""
    networks = _networks(file)
    network = networks[0][1]
    if network.output not in KINDS:
        raise ValueError(f"{file} is neither a classifier nor a segmenter: it gives {network.output}.")
    sizes = [_size_facts(file, *named) for named in networks]
    classes = sizes[0]["output"]["shape"][-1]
    names = labels or network.labels or labels_beside(file) or default_names(classes)
    return {
        "file": file.name,
        "kind": KINDS[network.output],
        "bytes": file.stat().st_size,
        "channels": network.channels,
        "crop": crop,
        "mean": list(network.facts.mean),
        "std": list(network.facts.std),
        "scores": network.output_name,
        "labels": list(class_names(names, classes)),
        "colors": class_colors(classes) if network.output == MASKS else None,
        "sizes": sizes,
    }


def _networks(file: Path) -> list[tuple[str | None, FileClassifier]]:
    """The signature and the network of each of a file's input sizes, of which the first opens by default; a file of one
    size is run without naming a signature."""
    first = open_tflite(file)
    sizes = signature_sizes(file)
    if len(sizes) < 2:
        return [(None, first)]
    return [(key, FileClassifier(LiteRTModel(file, signature=key), first.facts)) for key in sizes]


def _size_facts(file: Path, signature: str | None, network: FileClassifier) -> dict[str, Any]:
    """What the page knows of one of a file's input sizes."""
    tensors = network.file.inputs[0], *network.file.outputs
    index = [tensor.name for tensor in network.file.outputs].index(network.output_name)
    _check_tensors(file, tensors)
    return {
        "signature": signature,
        "size": list(network.size),
        "input": dataclasses.asdict(tensors[0]),
        "output": dataclasses.asdict(tensors[1 + index]) | {"index": index},
        "check": [float(str(value)) for value in _checked(_test_answer(file, network)).ravel()],
    }


def _check_tensors(file: Path, tensors: Sequence[TensorInfo]) -> None:
    for tensor in tensors:
        if tensor.dtype not in BROWSER_TYPES:
            raise ValueError(
                f"{file} has {tensor.name} in {tensor.dtype}, and LiteRT.js has {', '.join(BROWSER_TYPES)}: export it "
                "with --io float32 or --io uint8."
            )
    if tensors[0].shape[0] != 1:
        raise ValueError(f"{file} takes {tensors[0].shape[0]} images at once: export it with --batch-size 1.")


def _test_answer(file: Path, network: FileClassifier) -> np.ndarray:
    """Scores, float32 (classes,), or masks (height, width, classes), of the picture that `testPicture` in network.js
    draws."""
    height, width = network.size
    y, x = np.mgrid[:height, :width]
    colours = 255 * x // (width - 1), 255 * y // (height - 1), 255 * (x + y) // (width + height - 2)
    picture = np.stack(colours, -1)
    (values,) = network.predict(of_channels(picture[None].astype("float32"), network.channels))
    if not np.isfinite(values).all():
        raise ValueError(f"{file} answers with {network.output} that are not finite: its weights are damaged.")
    return values


def _checked(values: np.ndarray) -> np.ndarray:
    """The values that the page compares, as `atPoints` in network.js takes them of masks."""
    if values.ndim == 1:
        return values
    places = 2 * np.arange(CHECKED_POINTS) + 1
    rows, columns = (places * side // (2 * CHECKED_POINTS) for side in values.shape[:2])
    return values[np.ix_(rows, columns)]
