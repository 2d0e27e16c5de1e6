"""Puts the pairs of `quantize` and `dequantize` into an ML Program, between which it computes in int8.

Room: deploy/coreml/int8. A tensor that an int8 operation takes is rounded where it is made, once for all that take it,
to whole multiples of one scale, without an offset: symmetric and per tensor, which is what Apple's hardware speeds up
(https://apple.github.io/coremltools/docs-guides/source/opt-quantization-perf.html). Core ML can fuse an operation with
the `dequantize` before it and the `quantize` after it.

What int8 is too coarse for stays in the program's own precision, from `dequantize` on: LayerNorm, whose variance may be
small; softmax with its scores, of which exp makes a step a factor, and what mixes heads around it; averages, factors
and resizing, which have no weights and cost little. GELU takes int8, so that the convolution before it gives int8: of
1,000 CIFAR-10 images the embedded checkpoint finds 832 right so, 833 with GELU's input in float16, and 832 in float32.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_efficientformer.deploy.coreml.step_names import int8_name, rounded_name, step_results
from keras_efficientformer.deploy.network.recording import FusedNetwork, Step, Value

# These operations of `Builder` take int8.
TAKE_INT8 = (
    "convolution",
    "depthwise_convolution",
    "dense",
    "scores",
    "weighted_values",
    "add",
    "gelu",
    "pooling_mixer",
)
# What these give is what they take; the first are no operation in a package at all.
NAMES_ONLY = ("tokens", "feature_map")
LAYOUTS = (*NAMES_ONLY, "split_heads", "to_heads", "merge_heads")

LARGEST, LARGEST_PIXEL = 127, 255.0
# Scales are stored in float16, in which smaller ones are inexact or zero.
SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)
# coremltools has sums computed in multiples of one part's scale, in float16, which must hold 127 of the other's. Of a
# part of a smaller scale, such as a fresh layer scale of 1e-5 leaves of a branch, nothing reaches the sum.
SMALLEST_PART = 2.0**-8

# A result of a step: (number of the step, which of its results).
StepResult = tuple[int, int]
# {number of a step: (smallest, largest) of its results}.
StepRanges = dict[int, list[tuple[float, float]]]


def int8_scales(network: FusedNetwork, measured: StepRanges, learnt: StepRanges) -> dict[StepResult, float]:
    """The scales of all results of steps that are rounded to int8.

    Args:
        network: what the program will be made of.
        measured: of all steps, on images; may be empty where all are learnt.
        learnt: what quantization-aware training has learnt of some steps, which goes before what was measured.

    Returns:
        {result: its scale}.

    Raises:
        ValueError: nothing is known of a result.
    """
    makers = _makers(network)
    found = {
        makers[value]: max(_largest(value, network, makers, measured, learnt) / LARGEST, SMALLEST_SCALE)
        for step in network.steps
        for value in _taken_in_int8(step)
    }
    for step in network.steps:
        if step.operation == "add":
            _widen([makers[value] for value in _taken_in_int8(step)], found)
    return found


def _widen(parts: list[StepResult], found: dict[StepResult, float]) -> None:
    """Widens the scale of a part that is too small beside the others of a sum."""
    largest = max((found[part] for part in parts), default=0.0)
    for part in parts:
        found[part] = max(found[part], SMALLEST_PART * largest)


def _makers(network: FusedNetwork) -> dict[Value, StepResult]:
    """Where each value is made; what only renames a tensor makes none."""
    makers: dict[Value, StepResult] = {}
    for number, step in enumerate(network.steps):
        for index, value in enumerate(step.results):
            makers[value] = makers[step.arguments["x"]] if step.operation in NAMES_ONLY else (number, index)
    return makers


def _taken_in_int8(step: Step) -> Iterator[Value]:
    # The biases of attention are added to scores, which stay as they are.
    if step.operation in TAKE_INT8 and not isinstance(step.arguments.get("y"), np.ndarray):
        yield from (argument for argument in step.arguments.values() if isinstance(argument, Value))


def _largest(
    value: Value, network: FusedNetwork, makers: dict[Value, StepResult], measured: StepRanges, learnt: StepRanges
) -> float:
    """The largest magnitude of a value, which is known of pixels and probabilities."""
    number, index = makers[value]
    step = network.steps[number]
    if step.operation == "softmax":
        return 1.0
    if step.operation == "image" and step.arguments["mean"] is not None:
        mean = step.arguments["mean"]
        return float(max(mean.max(), (LARGEST_PIXEL - mean).max()))
    if number in learnt:
        # Training may know more tensors of a step, the last of which is its result.
        return max(map(abs, learnt[number][-1]))
    if number in measured:
        return max(map(abs, measured[number][index]))
    # Training learns nothing of what TFLite's int8 files, after which it is done, compute in float.
    if step.operation in LAYOUTS:
        return _largest(step.arguments["x"], network, makers, measured, learnt)
    if step.operation == "talking_heads":
        weights, bias = np.abs(step.arguments["weights"]), np.abs(step.arguments["bias"])
        largest = _largest(step.arguments["x"], network, makers, measured, learnt)
        return float((weights.sum(0) * largest + bias).max())
    raise ValueError(
        f"Nothing is known of the range of step {number} of {network.name}, {step.operation} at {step.location}: pass "
        "calibration."
    )


def insert_pairs(program: Any, result_scales: dict[StepResult, float]) -> None:
    """Rounds results of steps to int8, in a program as `MILBuilder` has written it, for iOS 17 or newer.

    Outputs of the program stay as they are, also where what follows takes them rounded.

    Args:
        program: a MIL program, which is changed.
        result_scales: what `int8_scales` returned.
    """
    function = program.functions["main"]
    results, outputs, operations = step_results(function), function.outputs, list(function.operations)
    with function:
        for operation, following in itertools.pairwise(operations):
            for index, variable in enumerate(operation.outputs):
                result = results.get(id(variable))
                if result in result_scales:
                    name = operation.name if len(operation.outputs) == 1 else f"{operation.name}_{index}"
                    _insert_pair(function, variable, name, np.float32(result_scales[result]), following)
        function.set_outputs(outputs)


def _insert_pair(function: Any, variable: Any, name: str, scale: np.float32, following: Any) -> None:
    """Has all that follows take a variable rounded."""
    from coremltools.converters.mil import Builder as mb

    stored = mb.quantize(input=variable, scale=scale, output_dtype="int8", name=int8_name(name), before_op=following)
    rounded = mb.dequantize(input=stored, scale=scale, name=rounded_name(name), before_op=following)
    function.replace_uses_of_var_after_op(anchor_op=rounded.op, old_var=variable, new_var=rounded)
