"""Writes a project for Xcode: an app that classifies or segments photos and what the camera sees. Room: apps.

The sample lies in `ios/`; the app knows its model by `Model.swift`, which is written from the package. The names of the
classes are in the package itself.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from keras_efficientformer.deploy.coreml.modes import COMPRESSIONS
from keras_efficientformer.deploy.coreml.package import function_sizes
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.report import CLASS_NUMBERS
from keras_efficientformer.deploy.report_sidecar import check_sidecar
from keras_efficientformer.files import bare_name
from keras_efficientformer.labels import Labels
from keras_efficientformer.layers.names import MASKS

if TYPE_CHECKING:  # its import takes seconds
    import keras

    from keras_efficientformer.deploy.calibration import Calibration

IOS = Project(
    sample=Path(__file__).with_name("ios"),
    mark="project.yml",
    models="Sample",
    id_pattern=r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+",
    id_words="of two or more words of ASCII letters, digits and -, as com.example.my-app",
    id_filler="-",
)
# Of the sample's code: the navigation, lists and photo picker that it uses.
OLDEST_IOS = 16


def write_ios_app(
    model: "keras.Model | str | os.PathLike[str]",
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    app_id: str | None = None,
    labels: Labels | None = None,
    crop: float | None = None,
    compress: str | None = None,
    calibration: "Calibration | None" = None,
    max_difference: float | None = None,
    overwrite: bool = False,
) -> PhoneApp:
    """Writes a project for XcodeGen and Xcode around a classifier or a segmentation model.

    The app takes photos and the live camera, runs the model with Vision and Core ML on the compute units that are
    chosen, and shows classes or a mask and the time; an XCTest times a classifier. Of a package of several input sizes
    it offers the choice.

    Args:
        model: a Keras model, which is exported and compared as by `export_coreml`, or the path of an .mlpackage.
        folder: the project's, which is made.
        name: of the app; None means the model's.
        app_id: the bundle identifier; None means one made of the model's name, in `org.example`.
        labels: names of the classes, for a Keras model; None means its own. A package has them inside.
        crop: share of a photograph's short side that a classifier sees, in (0, 1]; None means 0.95. Segmenters see all.
        compress: as of `export_coreml`, for a Keras model; None means "none". "w8a8" is for iOS 17 and newer.
        calibration: as of `export_coreml`, for a Keras model; None means no images.
        max_difference: as of `export_coreml`, for a Keras model; None means the mode's limit.
        overwrite: whether a project that was written before may be replaced.

    Raises:
        ValueError: a name, identifier or setting is not fit, the classes have no names, or the package is none that the
            app can run: it takes no image, gives logits, independent scores or an embedding, or masks of values.
        ExportError: the exported package differs too much from the model.
        OSError: a file cannot be read, or the folder cannot be written or exists.
        ImportError: coremltools is not installed.
    """
    folder = Path(folder)
    IOS.check_target(folder, overwrite)
    given = Path(model) if isinstance(model, str | os.PathLike) else model
    name, app_id = IOS.names(given.stem if isinstance(given, Path) else given.name, name, app_id)
    if "$" in name:
        raise ValueError(
            f"An iOS app's name has no $, by which Xcode knows variables: choose another name. Received: {name}"
        )
    settings: dict[str, Any] = {
        "labels": labels,
        "compress": compress,
        "calibration": calibration,
        "max_difference": max_difference,
    }
    with exported(given, ".mlpackage", _export, settings) as file:
        check_sidecar(file)
        package = CoreMLModel(file)
        network = FileClassifier(package, package.facts)
        task = task_of(file, network)
        _check(file, network)
        if network.labels is None or not package.has_names:
            raise no_labels(file)
        sizes = function_sizes(file)
        facts = {
            "name = ": swift_string(file.stem),
            "task = ": f"ModelTask.{task}",
            "input = ": swift_string(package.inputs[0].name),
            "sizes = ": f"[{_input_sizes(sizes)}]",
            "cropFraction: CGFloat = ": str(crop_for(task, crop)),
            "output = ": swift_string(network.output_name),
            "classes = ": str(len(network.labels)),
        }
        oldest = max(OLDEST_IOS, package.minimum_ios)
        lines = {
            "Sample/Model.swift": {f"static let {fact}": value for fact, value in facts.items()},
            "project.yml": {
                "bundleIdPrefix: ": f'"{app_id}"',
                "PRODUCT_BUNDLE_IDENTIFIER: ": f'"{app_id}"',
                "INFOPLIST_KEY_CFBundleDisplayName: ": json.dumps(name, ensure_ascii=False),
                "iOS: ": f'"{oldest}.0"',
            },
        }
        size = IOS.write(folder, overwrite, file, lines)
    return PhoneApp(bare_name(folder), name, app_id, file.name, task, tuple(sizes.values()), network.labels, size)


def _input_sizes(sizes: Mapping[str, tuple[int, int]]) -> str:
    """The elements of Swift's array, of {function: (height, width)}; a package of one size is loaded without a name."""
    return ", ".join(
        f"InputSize(function: {swift_string(name) if len(sizes) > 1 else 'nil'}, width: {width}, height: {height})"
        for name, (height, width) in sizes.items()
    )


def _export(model: "keras.Model", folder: str, **settings: Any) -> None:
    """The package of a model as the app takes it."""
    mask_output = "classes" if MASKS in model.output_names else "values"
    compression = COMPRESSIONS.get(settings.get("compress", "none"))  # another name is refused by the export
    oldest = max(OLDEST_IOS, compression.minimum_ios) if compression else OLDEST_IOS
    deploy.export_coreml(model, folder, mask_output=mask_output, minimum_ios=oldest, **settings)


def _check(file: Path, network: FileClassifier) -> None:
    """Raises for a package that the app's code cannot run as it is."""
    found = None
    if network.file.inputs[0].dtype != "uint8":
        found = "takes an array in place of an image: export it with --image"
    elif network.output == MASKS and network.output_name != CLASS_NUMBERS:
        found = "gives the values of all classes for every pixel: export it with --mask-output classes"
    elif network.output != MASKS and network.output_name != "classLabel_probs":
        found = f"gives {network.output_name}, and Vision's classifiers give probabilities: end the model in softmax"
    if found:
        raise ValueError(f"The app cannot run {file.name}: it {found}.")


def swift_string(text: str) -> str:
    """A string literal of Swift."""
    return quoted(text, {'"': '\\"', "\\": "\\\\"}, lambda character: f"\\u{{{ord(character):x}}}")
