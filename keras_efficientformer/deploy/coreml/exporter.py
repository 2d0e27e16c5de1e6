"""Exports a model as a Core ML package, which is run and compared before it gets its name. Room: deploy/coreml."""

import contextlib
import functools
import importlib.metadata
import io
import json
import os
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_efficientformer.deploy.calibration import (
    ROUNDING_EFFECTS,
    Calibration,
    check_calibration,
    images_to_compare,
    kept_for_sizes,
)
from keras_efficientformer.deploy.coreml.int8.pairs import StepResult, insert_pairs, int8_scales
from keras_efficientformer.deploy.coreml.modes import (
    COMPRESSIONS,
    COREML_PRECISIONS,
    MASK_OUTPUTS,
    TARGETS,
    Compression,
    keep_weak_channels,
    mode_name,
    pass_pipeline,
)
from keras_efficientformer.deploy.coreml.multifunction import MULTIFUNCTION_IOS, save_joined
from keras_efficientformer.deploy.coreml.package import MAIN
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.export import (
    AUTHOR,
    LICENSE,
    ExportJob,
    FurtherSize,
    Opened,
    file_path,
    label_names,
    output_description,
    warn_without_labels,
    write_checked,
)
from keras_efficientformer.deploy.file_facts import ENTRY, FileFacts
from keras_efficientformer.deploy.input_sizes import InputSize, described, size_name
from keras_efficientformer.deploy.network.keras_builder import measured_ranges
from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.deploy.network.rounding.bit_choice import (
    MAX_DROP,
    check_choice,
    check_max_drop,
    choose_bits,
)
from keras_efficientformer.deploy.report import CLASS_NUMBERS, ExportReport
from keras_efficientformer.deploy.source import SizedNetwork, at_sizes, network_inputs, open_source
from keras_efficientformer.errors import listing, require
from keras_efficientformer.labels import Labels, class_colors, unique_names
from keras_efficientformer.layers.names import MASKS

IMAGE = "image"
# Core ML gives the outputs of a classifier these names.
CLASS_LABEL, CLASS_PROBABILITIES = "classLabel", "classLabel_probs"
PREVIEW_TYPE = "com.apple.coreml.model.preview.type"
# Xcode draws masks in these colours.
PREVIEW_PARAMETERS = "com.apple.coreml.model.preview.parameters"
RGB_CHANNELS = 3
OUTPUT_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
COREML_TOOLS = ("keras-efficientformer", "keras", "coremltools", "numpy", "scikit-learn")


def export_coreml(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    precision: str = "float16",
    compress: str = "none",
    calibration: Calibration | None = None,
    max_drop: float | None = None,
    labels: Labels | None = None,
    minimum_ios: int = 16,
    include_preprocessing: bool = True,
    image_input: bool = True,
    feature_maps: bool = False,
    input_sizes: Sequence[InputSize] | None = None,
    mask_output: str = "values",
    max_difference: float | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Exports a model as a Core ML package, an ML Program, and a report, `.mlpackage.json`, beside it.

    The package holds the fused network (`deploy.network`), channels first and without transposes, and is written
    directly with coremltools' MIL builder: neither TensorFlow nor PyTorch is needed, on any Keras backend. A model that
    ends in softmax becomes a classifier, with the outputs `classLabel` and `classLabel_probs`; any other has `logits`
    or `scores`, without a classifier `features` or `embedding`; a model with two outputs also `..._distillation`.
    Before it gets its name the saved package is run (`CoreMLModel`) and compared with the Keras model.

    Args:
        model: an EfficientFormer of this package, alone or with a head of standard Keras layers on it, whose outputs
            are named after them (README, "Android"); or what `training` made of one: a quantization-aware model, whose
            learnt ranges "w8a8" takes, so that it needs no calibration, or a pruned one, for which there is "sparse".
        path: the package to write, `.mlpackage`; or an existing folder, in which it is called by the model's name,
            input size and mode, e.g. `efficientformer_l1_224_float16.mlpackage`.
        precision: "float16", what the Neural Engine computes in, or "float32", for CPU and GPU.
        compress: how weights are stored: "none", "int8" (linear, a scale for each channel), "palette6" and "palette4"
            (64 or 16 values found by k-means; from iOS 18 on "palette4" has 16 for every 16 channels) or "sparse" (the
            smaller half of each layer's weights zero: for models trained with pruning). "w8a8" has weights as "int8"
            has them, and int8 activations, each tensor with one symmetric scale, between which convolutions, matrix
            products and additions are computed: for Neural Engines from A17 Pro and M4 on. "auto" gives each layer's
            weights 4, 6, 8 or 16 bits: the fewest with which a classifier or segmentation model keeps within
            `max_drop`, and rounds them so that the layers' outputs on calibration images change least.
        calibration: raw RGB images, values in 0..255: a folder, searched recursively, an array (number, height, width,
            3), or a dataset or other iterable of images or batches, labels left out; at most 128 are taken. "w8a8"
            and "auto" measure on them and cannot do without; all modes are compared with Keras on them, or on four
            seeded images where there are none.
        max_drop: of "auto", on how many of a hundred calibration images, or of their pixels, the best class may be
            another than the exact network's; 0..100, None means 1.
        labels: class names, or a text file with one in each line; None means ImageNet's for 1000 classes. Core ML wants
            them unique: of alike ones each gets its class's number. A classifier without them has the numbers alone.
        minimum_ios: 15, 16, 17 or 18; compressed weights need 16, "w8a8" needs 17, several `input_sizes` 18.
        include_preprocessing: whether raw pixels in 0..255 are normalised inside; without it the input is an array, for
            `image_input=False`, of what `preprocess_input` returns. Where nobody has said how a model's images are
            normalised, which of other than three channels are, they are taken as in training.
        image_input: whether the input is an RGB image; else it is a float32 array (1, channels, height, width).
        feature_maps: whether the outputs of the four stages are outputs too, `stage1` to `stage4`, float32
            (1, channels, height, width).
        input_sizes: sizes in pixels that the package takes, such as [224, 256, (384, 288)] (height, width), the model's
            own among them: one function for each, which share the weights, each compared with Keras at its size. The
            first is "main", which Vision opens, the others are "size_256" and "size_384x288", which
            `MLModelConfiguration.functionName` chooses. None means the model's own alone.
        mask_output: of a segmentation model, "values", `masks`, a float of each class for every pixel (1, classes,
            height, width), or "classes", `classes`, the number of the best one, int32 (1, height, width); of these the
            share of an image's pixels with another than in Keras is limited.
        max_difference: the largest difference from Keras, relative to the largest output where that is over 1, at which
            the package is written; None means the mode's own limit (`deploy.coreml.modes`; 5e-3 in float16), and
            `float("inf")` writes whatever comes.
        overwrite: whether existing files may be replaced.

    Returns:
        The `ExportReport`; it is also what the sidecar holds.

    Raises:
        ValueError: an argument is out of its range, labels do not match the classes, weights are not finite, the model
            is no EfficientFormer, or calibration images are needed and not there.
        OSError: the folder is missing or cannot be written to, or a file exists and `overwrite` is False.
        ImportError: coremltools is not installed.
        ExportError: the package differs too much from the model. It is not written.
    """
    started = time.perf_counter()
    _check_arguments(precision, compress, minimum_ios, max_drop)
    require("coremltools", "Core ML export", "coreml")
    source, kind = open_source(model), COMPRESSIONS[compress]
    if kind.int8_activations and not source.ranges:
        check_calibration(f"compress={compress!r}", calibration)
    if kind.chosen_bits:
        check_calibration(f"compress={compress!r}", calibration, ROUNDING_EFFECTS)
    network = source.network(include_preprocessing and source.preprocessing, feature_maps)
    sizes = at_sizes(source, network, input_sizes, feature_maps)
    if len(sizes) > 1 and minimum_ios < MULTIFUNCTION_IOS:
        raise ValueError(
            f"Several `input_sizes` need iOS {MULTIFUNCTION_IOS}, minimum_ios={MULTIFUNCTION_IOS}. Received: "
            f"minimum_ios={minimum_ios}"
        )
    channels = network.input_shape[2]
    if image_input and (not network.preprocessing or channels != RGB_CHANNELS):
        taken = "normalised images" if channels == RGB_CHANNELS else f"{channels} channels"
        raise ValueError(
            f"An image input is raw RGB, and {network.name} takes {taken}. Export it with image_input=False."
        )
    _check_mask_output(mask_output, network)
    _check_output_names(network)
    if kind.chosen_bits:
        check_choice(f"compress={compress!r}", network, len(sizes))
    if compress in ("int8", "w8a8"):
        sizes = tuple(replace(sized, network=keep_weak_channels(sized.network)) for sized in sizes)
    source, network = sizes[0].source, sizes[0].network
    names = label_names(labels, network)
    # Core ML's probabilities are a dictionary.
    names = names and unique_names(names)
    warn_without_labels(network, names)
    mode = mode_name(precision, compress)
    calibration = kept_for_sizes(calibration, len(sizes))
    further = tuple(_further_size(sized, calibration, kind) for sized in sizes[1:])
    limit = COREML_PRECISIONS[precision] if compress == "none" else kind.limit

    def package_of(sized: SizedNetwork, images: np.ndarray) -> Any:
        network = sized.network
        scales = _int8_scales(sized, calibration, images) if kind.int8_activations else {}
        # coremltools shows a progress bar for each of a dozen passes.
        with contextlib.redirect_stderr(io.StringIO()):
            package = _convert(network, precision, compress, minimum_ios, image_input, names, mask_output, scales)
        _describe(package, network, mode, names)
        return package

    def write(file: Path, images: np.ndarray) -> dict[str, int] | None:
        choice, sized = None, sizes[0]
        if kind.chosen_bits:
            inputs = network_inputs(images, network)
            choice = choose_bits(network, inputs, MAX_DROP if max_drop is None else max_drop)
            sized = replace(sized, network=choice.network)
        package = package_of(sized, images)
        # A classifier has the labels in a place of their own, which other tools know.
        facts = FileFacts.of(network, None if "probabilities" in network.outputs else names)
        package.user_defined_metadata[ENTRY] = facts.to_json()
        if not further:
            package.save(str(file))
            return choice.layers if choice else None
        others = {size.name: package_of(size.sized, size.images()) for size in further}
        pixels = ", ".join(described(sized.size) for sized in sizes)
        save_joined({MAIN: package} | others, file, f"{network.paper}: {network.name}, {pixels}, {mode}.")
        return None

    return write_checked(
        ExportJob(
            source=source,
            network=network,
            file=file_path(path, sizes, mode, ".mlpackage"),
            mode=mode,
            labels=names,
            limit=limit if max_difference is None else float(max_difference),
            images=lambda: images_to_compare(calibration, network.input_shape, kind.measures),
            write=write,
            run=lambda file, images: _run(file, network, images),
            tools=COREML_TOOLS,
            requires=f"iOS {minimum_ios} or newer",
            overwrite=overwrite,
            started=started,
            quantized=kind.int8_activations,
            may_replace=lambda found: (found / "Manifest.json").exists(),
            further=further,
        )
    )


def _further_size(sized: SizedNetwork, calibration: Calibration | None, kind: Compression) -> FurtherSize:
    network = sized.network
    return FurtherSize(
        sized,
        images=functools.cache(lambda: images_to_compare(calibration, network.input_shape, kind.measures)[0]),
        run=lambda file, images: _run(file, network, images, size_name(sized.size)),
    )


def _check_arguments(precision: str, compress: str, minimum_ios: int, max_drop: float | None) -> None:
    checks: tuple[tuple[str, str | int, Collection[str | int]], ...] = (
        ("precision", precision, COREML_PRECISIONS),
        ("compress", compress, COMPRESSIONS),
        ("minimum_ios", minimum_ios, TARGETS),
    )
    for name, value, choices in checks:
        if value not in choices:
            raise ValueError(f"`{name}` should be one of {', '.join(map(str, choices))}. Received: {name}={value!r}")
    check_max_drop(max_drop, "compress", compress, COMPRESSIONS[compress].chosen_bits)
    needed = COMPRESSIONS[compress].minimum_ios
    if minimum_ios < needed:
        raise ValueError(f"compress={compress!r} needs iOS {needed}. Received: minimum_ios={minimum_ios}")


def _check_mask_output(mask_output: str, network: FusedNetwork) -> None:
    if mask_output not in MASK_OUTPUTS:
        raise ValueError(
            f"`mask_output` should be one of {', '.join(MASK_OUTPUTS)}. Received: mask_output={mask_output!r}"
        )
    if mask_output == "classes" and not network.has_masks:
        raise ValueError(
            f"mask_output='classes' is for models that end in masks, as SemanticFPN's do, and {network.name} does not."
        )


def _check_output_names(network: FusedNetwork) -> None:
    """Raises ValueError for outputs, called after a head's layers, whose names coremltools would change."""
    unfit = [name for name in network.outputs if not OUTPUT_NAME.fullmatch(name)]
    if unfit:
        raise ValueError(
            f"{network.name} has outputs called {listing(list(map(repr, unfit)))}, and Core ML's are called by letters "
            "without accents, digits and underscores, no digit first: name the layers so."
        )


def _convert(
    network: FusedNetwork,
    precision: str,
    compress: str,
    minimum_ios: int,
    image_input: bool,
    names: tuple[str, ...] | None,
    mask_output: str,
    scales: dict[StepResult, float],
) -> Any:
    """The network as a `coremltools.models.MLModel`, which is not on disk yet; `scales` as `int8.pairs` has them."""
    import coremltools
    from coremltools.converters.mil import Builder as mb
    from threadpoolctl import threadpool_limits

    from keras_efficientformer.deploy.coreml.builder import MILBuilder  # it imports coremltools

    target = coremltools.target[f"iOS{minimum_ios}"]
    height, width, channels = network.input_shape
    shape = (1, channels, height, width)

    @mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=target)
    def program(image: Any) -> Any:
        if mask_output == "classes":
            (values,) = network.without_softmax().build(MILBuilder(image)).values()
            return mb.reduce_argmax(x=values, axis=1, keep_dims=False, name=CLASS_NUMBERS)
        return tuple(network.build(MILBuilder(image)).values())

    if scales:
        insert_pairs(program, scales)
    # k-means of a few thousand values would spend its time on starting threads.
    with threadpool_limits(1):
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


def _int8_scales(sized: SizedNetwork, calibration: Calibration | None, images: np.ndarray) -> dict[StepResult, float]:
    """The scales of activations, by what training has learnt and what is measured on calibration images."""
    network = sized.network
    measured = {} if calibration is None else measured_ranges(network, network_inputs(images, network))
    return int8_scales(network, measured, sized.source.ranges)


def _image_type(shape: tuple[int, int, int, int]) -> Any:
    import coremltools

    # The mean is not given as `bias`: coremltools would subtract it in float32, off the Neural Engine.
    return coremltools.ImageType(name=IMAGE, shape=shape, color_layout=coremltools.colorlayout.RGB)


def _classifier(network: FusedNetwork, names: tuple[str, ...] | None) -> Any:
    """A `coremltools.ClassifierConfig`, or None for a network without probabilities."""
    import coremltools

    if "probabilities" not in network.outputs or network.classes is None:
        return None
    return coremltools.ClassifierConfig(
        list(names) if names else list(range(network.classes)),
        predicted_feature_name=CLASS_LABEL,
        predicted_probabilities_output="probabilities",
    )


def _describe(package: Any, network: FusedNetwork, mode: str, names: tuple[str, ...] | None) -> None:
    """Writes author, license, version, descriptions and preview into a `coremltools.models.MLModel`."""
    height, width, _ = network.input_shape
    package.author = AUTHOR
    package.license = LICENSE
    package.version = importlib.metadata.version("keras-efficientformer")
    package.short_description = f"{network.paper}: {network.name}, {height}x{width}, {mode}."
    package.input_description[IMAGE] = (
        f"RGB image, {height} x {width} pixels; normalised inside."
        if network.preprocessing
        else f"Image, {height} x {width}, normalised as in training."
    )
    descriptions = {
        CLASS_LABEL: "The most probable class.",
        CLASS_PROBABILITIES: "Probability of each class.",
        CLASS_NUMBERS: "Number of the best class for every pixel.",
    }
    for output in package.get_spec().description.output:
        package.output_description[output.name] = descriptions.get(output.name) or output_description(output.name)
    if "probabilities" in network.outputs:
        package.user_defined_metadata[PREVIEW_TYPE] = "imageClassifier"
    if network.has_masks and network.classes is not None:
        labels = names or [str(number) for number in range(network.classes)]
        package.user_defined_metadata[PREVIEW_TYPE] = "imageSegmenter"
        package.user_defined_metadata[PREVIEW_PARAMETERS] = json.dumps(
            {"labels": list(labels), "colors": class_colors(network.classes)}
        )


def _run(path: Path, network: FusedNetwork, images: np.ndarray, function: str | None = None) -> Opened:
    """The saved package, opened from the disk, and its outputs by the network's names, channels last as Keras'."""
    opened = CoreMLModel(path, function=function)
    found = opened.predict(network_inputs(images, network))
    found = {name: value.transpose(0, 2, 3, 1) if value.ndim == 4 else value for name, value in found.items()}
    if CLASS_PROBABILITIES in found:
        found["probabilities"] = found[CLASS_PROBABILITIES]
    if network.has_masks and CLASS_NUMBERS in found:
        found[MASKS] = found[CLASS_NUMBERS]
    return Opened(opened.inputs, opened.outputs, opened.operations(), None, found)
