"""Writes a project for Android Studio: an app that classifies or segments photos and what the camera sees. Room: apps.

The sample lies in `android/`; the app knows its model by `Model.kt`, which is written from the exported file.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from keras_efficientformer import deploy
from keras_efficientformer.apps.projects import (
    PhoneApp,
    Project,
    crop_for,
    exported,
    no_labels,
    quoted,
    task_of,
)
from keras_efficientformer.classifiers.exported_files import FileClassifier
from keras_efficientformer.classifiers.opening import open_tflite
from keras_efficientformer.deploy.tflite.sizes.signatures import signature_sizes
from keras_efficientformer.deploy.tflite.step_names import SIGNATURE
from keras_efficientformer.files import bare_name
from keras_efficientformer.labels import Labels, class_names, labels_beside
from keras_efficientformer.layers.names import MASKS

if TYPE_CHECKING:  # its import takes seconds
    import keras

    from keras_efficientformer.deploy.tflite.exporter import Calibration

ANDROID = Project(
    sample=Path(__file__).with_name("android"),
    mark="settings.gradle.kts",
    models="app/src/main/assets",
    id_pattern=r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)+",
    id_words="of two or more words of ASCII letters, digits and _, as com.example.my_app",
    id_filler="_",
)
ASSET_OF_LABELS = f"{ANDROID.models}/labels.txt"
CODE = "app/src/main/java/org/example/efficientformer"
# Half the size of float32, in half precision where the phone can, and no images are needed for it.
QUANTIZE = "float16"
# MediaPipe's masks are bytes.
MOST_MASK_CLASSES = 256


def write_android_app(
    model: "keras.Model | str | os.PathLike[str]",
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    app_id: str | None = None,
    labels: Labels | None = None,
    crop: float | None = None,
    quantize: str | None = None,
    calibration: "Calibration | None" = None,
    max_difference: float | None = None,
    overwrite: bool = False,
) -> PhoneApp:
    """Writes a project for Android Studio around a classifier or a segmentation model.

    The app takes photos and the live camera, runs the model with MediaPipe Tasks and, a classifier, with LiteRT on the
    CPU or the GPU, and shows classes or a mask and the time. Of a file of several input sizes it offers the choice, and
    runs it with LiteRT alone, because MediaPipe refuses such files.

    Args:
        model: a Keras model, which is exported and compared as by `export_tflite`, or the path of a .tflite file.
        folder: the project's, which is made.
        name: of the app; None means the model's.
        app_id: the application id; None means one made of the model's name, in `org.example`.
        labels: names of the classes; None means the model's own or, of a file, a `labels.txt` beside it.
        crop: share of a photograph's short side that a classifier sees, in (0, 1]; None means 0.95. Segmenters see all.
        quantize: as of `export_tflite`, for a Keras model; None means "float16".
        calibration: as of `export_tflite`, for a Keras model; None means no images.
        max_difference: as of `export_tflite`, for a Keras model; None means the mode's limit.
        overwrite: whether a project that was written before may be replaced.

    Raises:
        ValueError: a name, identifier or setting is not fit, the classes have no names, or the file is none that the
            app can run: it takes other than one raw RGB image in float32, gives logits or an embedding, or has several
            outputs, masks of another size than its input's or of more than 256 classes.
        ExportError: the exported file differs too much from the model.
        OSError: a file cannot be read, or the folder cannot be written or exists.
        ImportError: LiteRT is not installed.
    """
    folder = Path(folder)
    ANDROID.check_target(folder, overwrite)
    given = Path(model) if isinstance(model, str | os.PathLike) else model
    name, app_id = ANDROID.names(given.stem if isinstance(given, Path) else given.name, name, app_id)
    settings = {"quantize": quantize, "calibration": calibration, "max_difference": max_difference}
    if not isinstance(given, Path):
        settings |= {"labels": labels, "quantize": quantize or QUANTIZE}
    with exported(given, ".tflite", deploy.export_tflite, settings) as file:
        network = open_tflite(file)
        task = task_of(file, network)
        _check(file, network)
        classes = network.file.outputs[0].shape[-1]
        known = labels or network.labels or labels_beside(file)
        if known is None:
            raise no_labels(file)
        names = class_names(known, classes)
        sizes = signature_sizes(file) or {SIGNATURE: network.size}
        facts = {
            "ASSET": kotlin_string(file.name),
            "INPUT": kotlin_string(network.file.inputs[0].name),
            "CROP_FRACTION": str(crop_for(task, crop)),
            "OUTPUT": kotlin_string(network.output_name),
            "CLASSES": str(classes),
        }
        constants = {f"const val {fact} = ": value for fact, value in facts.items()}
        lines = {
            f"{CODE}/Model.kt": constants
            | {"val TASK = ": f"Task.{task.upper()}", "val SIZES = ": f"listOf({_input_sizes(sizes)})"},
            "app/build.gradle.kts": {"applicationId = ": f'"{app_id}"'},
            "app/src/main/res/values/strings.xml": {'<string name="app_name">': f"{android_text(name)}</string>"},
        }
        size = ANDROID.write(folder, overwrite, file, lines, {ASSET_OF_LABELS: "".join(f"{name}\n" for name in names)})
    return PhoneApp(bare_name(folder), name, app_id, file.name, task, tuple(sizes.values()), names, size)


def _input_sizes(sizes: Mapping[str, tuple[int, int]]) -> str:
    """The arguments of Kotlin's `listOf`, of {signature: (height, width)}."""
    return ", ".join(f"InputSize({kotlin_string(key)}, {height}, {width})" for key, (height, width) in sizes.items())


def _check(file: Path, network: FileClassifier) -> None:
    """Raises for a file that the app's code cannot run as it is."""
    image, outputs = network.file.inputs[0], network.file.outputs
    found = None
    if len(outputs) != 1:
        found = f"has the outputs {', '.join(output.name for output in outputs)}: export it with one"
    elif network.output_name == "logits":
        found = "gives logits, not probabilities: make the model with classifier_activation='softmax'"
    elif image.shape[0] != 1:
        found = f"takes {image.shape[0]} images at once: export it with --batch-size 1"
    elif (image.dtype, outputs[0].dtype) != ("float32", "float32"):
        found = f"takes {image.dtype} and gives {outputs[0].dtype}: export it with --io float32"
    elif not network.facts.takes_raw_pixels:
        found = "takes normalised images: export it with the normalisation inside"
    elif network.output == MASKS and outputs[0].shape[1:3] != network.size:
        found = f"gives masks {outputs[0].shape[1:3]} of images {network.size}: make the model with output_stride=1"
    elif network.output == MASKS and outputs[0].shape[-1] > MOST_MASK_CLASSES:
        found = f"has {outputs[0].shape[-1]} classes, and MediaPipe's masks have {MOST_MASK_CLASSES} at most"
    if found:
        raise ValueError(f"The app cannot run {file.name}: it {found}.")


def kotlin_string(text: str) -> str:
    """A string literal of Kotlin, in which `$` begins a template."""
    special = {'"': '\\"', "\\": "\\\\", "$": "\\$"}
    return quoted(text, special, _utf16)


def _utf16(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def android_text(text: str) -> str:
    """The content of a string resource."""
    text = escape("".join(f"\\{c}" if c in "\\'\"" else c for c in text))
    return f"\\{text}" if text[0] in "@?" else text
