"""The way to iOS: a Keras model becomes a Core ML package that has been run and compared before it gets its name."""

import contextlib
import importlib.metadata
import io
import os
import time
from pathlib import Path
from typing import Any

import keras

from keras_efficientformer.bindings import layers_of
from keras_efficientformer.checkpoint_files import finished_file
from keras_efficientformer.deploy import exporting
from keras_efficientformer.deploy.coreml_modes import (
    COMPRESSIONS,
    PRECISIONS,
    keep_weak_channels,
    mode_name,
    pass_pipeline,
)
from keras_efficientformer.deploy.images import seeded_images
from keras_efficientformer.deploy.network import fuse
from keras_efficientformer.deploy.recording import FusedNetwork
from keras_efficientformer.deploy.report import ExportReport, versions_of
from keras_efficientformer.imagenet import MEAN

INPUT = "image"
TARGETS = (15, 16, 17, 18)
# What Core ML calls the outputs of a classifier.
CLASS_LABEL, CLASS_PROBABILITIES = "classLabel", "classLabel_probs"
PREVIEW = {"com.apple.coreml.model.preview.type": "imageClassifier"}
TOOLS = ("keras-efficientformer", "keras", "coremltools", "numpy", "scikit-learn")


def export_coreml(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    precision: str = "float16",
    compress: str = "none",
    labels: str | os.PathLike | list[str] | None = None,
    minimum_ios: int = 16,
    image_input: bool = True,
    feature_maps: bool = False,
    max_difference: float | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Exports a model as a Core ML package, an ML Program, and a report, `.json`, beside it.

    The package holds the fused network (`deploy.network`), channels first and without transposes, and is written
    directly with coremltools' MIL builder: neither TensorFlow nor PyTorch is needed, on any Keras backend. A model that
    ends in softmax becomes a classifier, with the outputs `classLabel` and `classLabel_probs`; any other has `logits`
    or `scores`, without a classifier `features` or `embedding`; a model with two outputs also `..._distillation`.
    Before it gets its name the saved package is run (`CoreMLModel`) and compared with the Keras model.

    Args:
        model: an EfficientFormer of this package.
        path: the package to write, `.mlpackage`; or an existing folder, in which it is called by the model's name,
            input size and mode, e.g. `efficientformer_l1_224_float16.mlpackage`.
        precision: "float16", what the Neural Engine computes in, or "float32", for CPU and GPU.
        compress: how weights are stored: "none", "int8" (linear, a scale for each channel), "palette6" and "palette4"
            (64 or 16 values found by k-means; from iOS 18 on "palette4" has 16 for every 16 channels) or "sparse" (the
            smaller half of each layer's weights zero: for models trained with pruning).
        labels: class names, or a text file with one in each line; None means ImageNet's for 1000 classes. Core ML wants
            them unique: of alike ones each gets its class's number. A classifier without them has the numbers alone.
        minimum_ios: 15, 16, 17 or 18; compressed weights need 16.
        image_input: whether the input is an RGB image; else it is a float32 array (1, 3, height, width), RGB in 0..255
            too. Both are normalised inside. Of models with other than three channels the input is an array,
            normalised as in training.
        feature_maps: whether the outputs of the four stages are outputs too, `stage1` to `stage4`, float32
            (1, channels, height, width).
        max_difference: the largest difference from Keras, relative to the largest output where that is over 1, at which
            the package is written; None means the mode's own limit (`coreml_modes`; 5e-3 in float16), and
            `float("inf")` writes whatever comes.
        overwrite: whether existing files may be replaced.

    Returns:
        The `ExportReport`; it is also what the sidecar holds.

    Raises:
        ValueError: an argument is out of its range, labels do not match the classes, weights are not finite, or the
            model is no EfficientFormer.
        OSError: the folder is missing or cannot be written to, or a file exists and `overwrite` is False.
        ImportError: coremltools is not installed.
        ExportError: the package differs too much from the model. It is not written.
    """
    started = time.perf_counter()
    _check_arguments(precision, compress, minimum_ios)
    exporting.require("Core ML", "coreml", "coremltools")
    network = fuse(model, include_preprocessing=takes_rgb(model), feature_maps=feature_maps)
    if image_input and not network.preprocessing:
        raise ValueError(
            f"An image input is RGB, and {network.name} takes {network.input_shape[2]} channels. "
            "Export it with image_input=False."
        )
    if compress == "int8":
        network = keep_weak_channels(network)
    names = _unique(exporting.label_names(labels, network.classes))
    mode = mode_name(precision, compress)
    file = exporting.file_path(path, network, mode, ".mlpackage")
    limit = PRECISIONS[precision] if compress == "none" else COMPRESSIONS[compress].limit
    limit = limit if max_difference is None else float(max_difference)

    with finished_file(file, overwrite) as partial, finished_file(file.with_suffix(".json"), overwrite) as sidecar:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar for each of a dozen passes
            package = _convert(network, precision, compress, minimum_ios, image_input, names)
        _describe(package, network, mode)
        package.save(str(partial))
        del package
        images = seeded_images(network.input_shape)
        exported, found = _run(partial, network, images)
        differences = exporting.differences(model, network, found, images)
        exporting.check(differences, limit, file)
        report = ExportReport(
            path=str(file),
            mode=mode,
            size=sum(item.stat().st_size for item in partial.rglob("*") if item.is_file()),
            model=network.name,
            preprocessing=network.preprocessing,
            inputs=exported.inputs,
            outputs=exported.outputs,
            labels=names,
            differences=differences,
            limit=limit,
            images=len(images),
            images_from="seeded noise",
            operations=exported.operations(),
            partitions=None,
            checkpoint=exporting.checkpoint_of(model),
            versions=versions_of(*TOOLS),
            seconds=round(time.perf_counter() - started, 2),
        )
        sidecar.write_text(report.to_json())
    return report


def _check_arguments(precision, compress, minimum_ios):
    for name, value, choices in (
        ("precision", precision, PRECISIONS),
        ("compress", compress, COMPRESSIONS),
        ("minimum_ios", minimum_ios, TARGETS),
    ):
        if value not in choices:
            raise ValueError(f"`{name}` should be one of {', '.join(map(str, choices))}. Received: {name}={value!r}")
    needed = COMPRESSIONS[compress].minimum_ios
    if minimum_ios < needed:
        raise ValueError(f"compress={compress!r} needs iOS {needed}. Received: minimum_ios={minimum_ios}")


def _unique(names):
    """Class names as keys of a dictionary, which Core ML's probabilities are: ImageNet has two kinds of crane."""
    if names is None or len(set(names)) == len(names):
        return names
    found = tuple(f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names))
    return _unique(found)  # where one of them was another class's name


def takes_rgb(model: Any) -> bool:
    """Whether ImageNet's normalisation is for this model's images."""
    layers_of(model)  # or it may have no inputs
    return model.inputs[0].shape[-1] == len(MEAN)


def _convert(
    network: FusedNetwork, precision: str, compress: str, minimum_ios: int, image_input: bool, names: Any
) -> Any:
    import coremltools
    from coremltools.converters.mil import Builder as mb
    from threadpoolctl import threadpool_limits

    from keras_efficientformer.deploy.coreml_builder import MILBuilder
    from keras_efficientformer.deploy.coreml_steps import StepNames

    target = coremltools.target[f"iOS{minimum_ios}"]
    height, width, channels = network.input_shape
    shape = (1, channels, height, width)

    @mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=target)
    def program(image):
        return tuple(network.build(StepNames(MILBuilder(image))).values())

    with threadpool_limits(1):  # k-means of a few thousand values would spend its time on starting threads
        return coremltools.convert(
            program,
            convert_to="mlprogram",
            inputs=[_image_type(shape)] if image_input else None,
            classifier_config=_classifier(network, names),
            minimum_deployment_target=target,
            compute_precision=coremltools.precision[precision.upper()],
            pass_pipeline=pass_pipeline(program, compress, minimum_ios),
            skip_model_load=True,
        )


def _image_type(shape):
    import coremltools

    # Without a bias: coremltools would subtract it in float32, off the Neural Engine.
    return coremltools.ImageType(name=INPUT, shape=shape, color_layout=coremltools.colorlayout.RGB)


def _classifier(network, names):
    import coremltools

    if "probabilities" not in network.outputs:
        return None
    return coremltools.ClassifierConfig(
        list(names) if names else list(range(network.classes)),
        predicted_feature_name=CLASS_LABEL,
        predicted_probabilities_output="probabilities",
    )


def _describe(package, network, mode):
    height, width, _ = network.input_shape
    package.author = exporting.AUTHOR
    package.license = exporting.LICENSE
    package.version = importlib.metadata.version("keras-efficientformer")
    package.short_description = f"{network.paper}: {network.name}, {height}x{width}, {mode}."
    package.input_description[INPUT] = (
        f"RGB image, {height} x {width} pixels; normalised inside."
        if network.preprocessing
        else f"Image, {height} x {width}, normalised as in training."
    )
    descriptions = exporting.OUTPUT_DESCRIPTIONS | {
        CLASS_LABEL: "The most probable class.",
        CLASS_PROBABILITIES: "Probability of each class.",
    }
    for output in package.get_spec().description.output:
        kind = output.name if output.name in descriptions else output.name.partition("_")[0].rstrip("1234")
        package.output_description[output.name] = descriptions[kind]
    if "probabilities" in network.outputs:
        package.user_defined_metadata.update(PREVIEW)


def _run(path: Path, network, images):
    """The saved package, opened from the disk, and its outputs by the network's names, channels last as Keras'."""
    from keras_efficientformer.deploy.coreml_model import CoreMLModel

    exported = CoreMLModel(path)
    found = exported.predict(exporting.network_inputs(images, network))
    found = {name: value.transpose(0, 2, 3, 1) if value.ndim == 4 else value for name, value in found.items()}
    return exported, {"probabilities": found.get(CLASS_PROBABILITIES)} | found
