"""Makes MobileNetV2 as an ML Program, beside which the paper has EfficientFormer's latencies. Room: deploy/benchmark.

There is no way from Keras 3 to Core ML, so the network is described here once more. Latency does not depend on the
weights' values; a test compares what the program computes with keras.applications' model.
"""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_efficientformer.deploy.coreml.modes import COREML_PRECISIONS
from keras_efficientformer.errors import require
from keras_efficientformer.files import finished_file

MOBILENET_SIZE = 224
BLOCKS = 17
# These blocks, by keras.applications' numbers, halve the feature map.
DOWNSAMPLING = (1, 3, 6, 13)


def export_mobilenet_v2(folder: str | os.PathLike, precision: str = "float16") -> Path:
    """Writes MobileNetV2 1.0 with random weights: 224x224, 1000 classes, normalised tensor in, logits out.

    Args:
        folder: an existing folder; the package is called `mobilenet_v2_224_float16.mlpackage` in it.
        precision: "float16" or "float32".

    Returns:
        The package.

    Raises:
        ValueError: `precision` is neither of the two.
        OSError: the folder is missing or cannot be written to, or holds the package already.
        ImportError: coremltools is not installed.
    """
    if precision not in COREML_PRECISIONS:
        raise ValueError(f"`precision` should be {' or '.join(COREML_PRECISIONS)}. Received: precision={precision!r}")
    require("coremltools", "Core ML export", "coreml")
    model = keras.applications.MobileNetV2(weights=None, classifier_activation=None)
    path = Path(folder) / f"mobilenet_v2_{MOBILENET_SIZE}_{precision}.mlpackage"
    with finished_file(path) as partial:
        mobilenet_v2_package(model, precision).save(str(partial))
    return path


def mobilenet_v2_package(model: keras.Model, precision: str = "float16") -> Any:
    """The ML Program, for iOS 16 and later, of a `keras.applications.MobileNetV2` of 224x224.

    Args:
        model: with 1.0 times the published widths, a classifier and its weights.
        precision: "float16" or "float32".

    Returns:
        A `coremltools.models.MLModel`, not loaded: `image` (1, 3, 224, 224) in -1..1 to `logits` (1, classes).
    """
    import coremltools as ct

    with contextlib.redirect_stderr(io.StringIO()):  # coremltools draws a progress bar for each of a dozen passes
        return ct.convert(
            mobilenet_v2_program(model),
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT16 if precision == "float16" else ct.precision.FLOAT32,
            skip_model_load=True,
        )


def mobilenet_v2_program(model: keras.Model) -> Any:
    """The MIL program of the same model, channels first, every BatchNorm folded into the convolution before it."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    def convolution(x: Any, conv: str, norm: str, stride: int = 1) -> Any:
        weights, bias = _folded(model.get_layer(conv), model.get_layer(norm))
        groups = x.shape[1] if isinstance(model.get_layer(conv), keras.layers.DepthwiseConv2D) else 1
        # Keras pads an even size for stride 2 with the odd pixel at the bottom and the right.
        before, after = (int(stride == 1), 1) if weights.shape[-1] == 3 else (0, 0)
        pad = [before, after, before, after]
        strides = [stride, stride]
        return mb.conv(x=x, weight=weights, bias=bias, strides=strides, pad_type="custom", pad=pad, groups=groups)

    def block(x: Any, number: int) -> Any:
        prefix = f"block_{number}" if number else "expanded_conv"
        stride = 2 if number in DOWNSAMPLING else 1
        y = mb.relu6(x=convolution(x, f"{prefix}_expand", f"{prefix}_expand_BN")) if number else x
        y = mb.relu6(x=convolution(y, f"{prefix}_depthwise", f"{prefix}_depthwise_BN", stride))
        y = convolution(y, f"{prefix}_project", f"{prefix}_project_BN")
        return mb.add(x=x, y=y) if stride == 1 and x.shape[1] == y.shape[1] else y

    @mb.program(
        input_specs=[mb.TensorSpec(shape=(1, 3, MOBILENET_SIZE, MOBILENET_SIZE))], opset_version=ct.target.iOS16
    )
    def program(image: Any) -> Any:
        x = mb.relu6(x=convolution(image, "Conv1", "bn_Conv1", stride=2))
        for number in range(BLOCKS):
            x = block(x, number)
        x = mb.relu6(x=convolution(x, "Conv_1", "Conv_1_bn"))
        x = mb.reduce_mean(x=x, axes=[2, 3], keep_dims=False)
        kernel, bias = (keras.ops.convert_to_numpy(weight) for weight in model.get_layer("predictions").weights)
        return mb.linear(x=x, weight=np.ascontiguousarray(kernel.T), bias=bias, name="logits")

    return program


def _folded(conv: keras.layers.Layer, norm: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """Weights OIHW and bias, float32, of a convolution without bias and the BatchNorm after it."""
    (kernel,) = (keras.ops.convert_to_numpy(weight).astype("float64") for weight in conv.weights)
    gamma, beta, mean, variance = (keras.ops.convert_to_numpy(weight).astype("float64") for weight in norm.weights)
    scale = gamma / np.sqrt(variance + norm.epsilon)
    order = (2, 3, 0, 1) if isinstance(conv, keras.layers.DepthwiseConv2D) else (3, 2, 0, 1)
    weights = kernel.transpose(order) * scale[:, None, None, None]
    return np.ascontiguousarray(weights, "float32"), (beta - mean * scale).astype("float32")
