"""Defines the modes of Core ML export: precisions, and on top the compression of weights. Room: deploy/coreml.

Weights are compressed by coremltools.optimize and unpacked on the device: arithmetic stays what `precision` says. The
first convolution and the attention biases are left as they are: they are small, and what errs there errs everywhere.
In "w8a8" activations are int8 too (`int8`), and so are all weights that are multiplied with them.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # it imports Keras, and who only lists the modes does without
    from keras_efficientformer.deploy.network.recording import FusedNetwork

# Each value is the largest `Difference.relative` at which an uncompressed package is written.
COREML_PRECISIONS = {"float32": 1e-5, "float16": 5e-3}

# What a segmentation model's output may be: the values of all classes, or the number of the best one.
MASK_OUTPUTS = ("values", "classes")
# `minimum_ios` of a package.
TARGETS = (15, 16, 17, 18)

# The step of int8 weights, a channel's largest weight / 127, is kept in float16: under 2**-25 it would be zero, and the
# channel with it. Weights of float16 packages have no finer step than 2**-24 themselves.
MIN_LARGEST = 127 * 2.0**-24 * 0.51
# The operations in MIL whose weights are compressed.
WEIGHTED = ("conv", "linear")
# How many values the palettes of "auto" have: those of 4, 6 and 8 bits.
PALETTES = (16, 64, 256)
# From iOS 18 on, this many channels share a palette in "palette4".
GROUP = 16


@dataclass(frozen=True)
class Compression:
    """One way to store weights.

    Attributes:
        minimum_ios: the first iOS that can read them.
        limit: the largest `Difference.relative` at which a package is written.
        int8_activations: whether activations are int8 too, of which the ranges must be known.
        chosen_bits: whether each layer's bits are chosen, and its weights rounded, with images in view.
    """

    minimum_ios: int
    limit: float
    int8_activations: bool = False
    chosen_bits: bool = False

    @property
    def measures(self) -> bool:
        """Whether something is measured on calibration images, besides the differences from Keras."""
        return self.int8_activations or self.chosen_bits


COMPRESSIONS = {
    "none": Compression(15, 0.0),
    "int8": Compression(16, 0.2),
    "w8a8": Compression(17, 0.5, int8_activations=True),
    "palette6": Compression(16, 0.5),
    "palette4": Compression(16, 1.0),
    "auto": Compression(16, 1.0, chosen_bits=True),
    "sparse": Compression(16, 1.0),
}


def mode_name(precision: str, compress: str) -> str:
    """The mode in file names: what distinguishes it from plain float16."""
    if compress == "none":
        return precision
    return compress if precision == "float16" else f"{precision}_{compress}"


def pass_pipeline(program: Any, compress: str, minimum_ios: int) -> Any:
    """coremltools' conversion with the compression of weights as its last step.

    Compressing a finished package would do for most, but coremltools cannot rewrite a classifier with further outputs.

    Args:
        program: the MIL program that will be converted.
        compress: a key of `COMPRESSIONS`.
        minimum_ios: of the package; from 18 on "palette4" has a palette for every 16 channels instead of one for all.

    Returns:
        A `coremltools.PassPipeline`.
    """
    import coremltools
    import coremltools.optimize.coreml as optimize

    pipeline = coremltools.PassPipeline.DEFAULT
    if compress == "none":
        return pipeline
    if compress in ("int8", "w8a8"):
        # By itself coremltools leaves weights of less than 2048 values, with which nothing is computed in int8.
        threshold = 0 if compress == "w8a8" else 2048
        name = "linear_quantize_weights"
        config = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=threshold)
    elif compress == "sparse":
        # In weights that were trained with pruning the smaller half are the zeros.
        name, config = "prune_weights", optimize.OpMagnitudePrunerConfig(target_sparsity=0.5)
    else:
        name, config = "palettize_weights", _palette(compress, minimum_ios)
    weighted = [operation for operation in program.functions["main"].operations if operation.op_type in WEIGHTED]
    left = [operation for place, operation in enumerate(weighted) if _is_left(operation, compress, place)]
    kinds = dict.fromkeys(WEIGHTED, config)
    # The cast to float16 replaces an operation by one of the second name.
    plain = dict.fromkeys(name for operation in left for name in (operation.name, f"{operation.name}_cast_fp16"))
    pipeline.append_pass(f"compression::{name}")
    configs = optimize.OptimizationConfig(op_type_configs=kinds, op_name_configs=plain)
    pipeline.set_options(f"compression::{name}", {"config": configs})
    return pipeline


def _is_left(operation: Any, compress: str, place: int) -> bool:
    """Whether the weights of an operation, by its place among those that have some, are stored as they are."""
    if compress == "w8a8":
        return operation.x.op is None or operation.x.op.op_type != "dequantize"
    return place == 0 or (compress == "auto" and len(_distinct(operation.weight.val)[0]) > PALETTES[-1])


def keep_weak_channels(network: "FusedNetwork") -> "FusedNetwork":
    """The network with no channel so weak that int8 weights would lose it (a layer scale near zero makes such).

    The largest weight of such a channel is raised, by less than 4e-6, to the least that gives a step that is not zero.
    """
    steps = tuple(
        replace(step, arguments=step.arguments | {"weights": _raised(step.arguments["weights"])})
        if "weights" in step.arguments and isinstance(step.arguments["weights"], np.ndarray)
        else step
        for step in network.steps
    )
    return replace(network, steps=steps)


def _raised(weights: np.ndarray) -> np.ndarray:
    """A copy of weights (..., output channels) whose weak channels have a largest weight of `MIN_LARGEST`."""
    raised = weights.copy()
    rows = raised.reshape(-1, raised.shape[-1])  # a view
    places = np.abs(rows).argmax(axis=0), np.arange(rows.shape[1])
    largest = rows[places]
    weak = (largest != 0) & (np.abs(largest) < MIN_LARGEST)
    rows[places] = np.where(weak, np.copysign(np.float32(MIN_LARGEST), largest), largest)
    return raised


def _distinct(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of weights, ascending, and each weight's place among them."""
    # NumPy 2.4's sorting of float16 is wrong on some processors, and coremltools' own mode "unique" relies on it.
    return np.unique(weights.astype("float32"), return_inverse=True)


def _own_values(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The palette of weights that have few values already, of a length that Core ML has, and each one's place in it."""
    values, places = _distinct(weights)
    palette = np.zeros(next(size for size in PALETTES if len(values) <= size), weights.dtype)
    palette[: len(values)] = values
    return palette, places.reshape(-1).astype("uint8")


def _palette(compress: str, minimum_ios: int) -> Any:
    import coremltools.optimize.coreml as optimize

    if compress == "auto":
        return optimize.OpPalettizerConfig(mode="custom", lut_function=_own_values)
    if compress == "palette4" and minimum_ios >= 18:
        return optimize.OpPalettizerConfig(
            mode="kmeans", nbits=4, granularity="per_grouped_channel", group_size=GROUP, channel_axis=0
        )
    return optimize.OpPalettizerConfig(mode="kmeans", nbits=int(compress.removeprefix("palette")))
