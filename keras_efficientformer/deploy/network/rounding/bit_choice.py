"""Chooses each layer's bits, for the smallest file that answers as the model. Room: deploy/network/rounding.

How much the rounding of a layer changes the outputs is tried once, in the fewest bits; each further bit halves the
step, and so quarters the change's square. From the fewest bits for all, layers then get more in the order of what a
byte gives, until the network answers on enough images as it does with exact weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from keras import ops

from keras_efficientformer.deploy.network.keras_builder import KerasBuilder
from keras_efficientformer.deploy.network.recording import FusedNetwork, Step, Value
from keras_efficientformer.deploy.network.rounding.weight_rounding import BATCH, compute, forget, layer_inputs, rounded

FEWEST_BITS = 4
# What a layer's weights may have; with the last they stay as they are.
BITS = (FEWEST_BITS, 6, 8, 16)
EXACT_BITS = BITS[-1]
# On so many images a layer's effect on the outputs is tried.
TRIED_IMAGES = 32


@dataclass(frozen=True)
class BitChoice:
    """A network with weights of chosen bits.

    Attributes:
        network: with rounded weights.
        bits: {number of a step: bits of its weights}.
        agreement: share of the images on which its best class is that of the exact network.
    """

    network: FusedNetwork
    bits: dict[int, int]
    agreement: float


def choose_bits(network: FusedNetwork, images: np.ndarray, max_drop: float) -> BitChoice:
    """The network with the fewest bytes of weights that gives the exact network's best class often enough.

    Args:
        network: a classifier's or a segmentation model's.
        images: as the network takes them, float32 (number, height, width, channels): as many as `max_drop` can be
            told on.
        max_drop: on how many of a hundred images, or of their pixels, the best class may be another.
    """
    inputs = layer_inputs(network, images)

    @cache
    def step(number: int, bits: int) -> Step:
        exact = network.steps[number]
        return exact if bits == EXACT_BITS else rounded(exact, inputs[number], bits)

    def tried(bits: dict[int, int]) -> BitChoice:
        changed = with_steps(network, {number: step(number, count) for number, count in bits.items()})
        return BitChoice(changed, bits, float(np.mean(_classes(changed, images) == expected)))

    expected = _classes(network, images)
    effects = dict(_effects(network, {number: step(number, FEWEST_BITS) for number in inputs}, images))
    sizes = {number: network.steps[number].arguments["weights"].size for number in inputs}
    plans = list(_plans(effects, sizes))
    low, best = 0, tried(plans[-1])
    high = len(plans) - 1
    while low < high:
        middle = (low + high) // 2
        choice = tried(plans[middle])
        if 100 * (1 - choice.agreement) <= max_drop:
            high, best = middle, choice
        else:
            low = middle + 1
    return best


def with_steps(network: FusedNetwork, steps: dict[int, Step]) -> FusedNetwork:
    """The network with other steps in the places of some."""
    return replace(network, steps=tuple(steps.get(number, step) for number, step in enumerate(network.steps)))


def _effects(network: FusedNetwork, steps: dict[int, Step], images: np.ndarray) -> Iterator[tuple[int, float]]:
    """(number, mean square of what the step alone changes in the outputs) of each step, up to which all is exact."""
    builder = KerasBuilder(images[:TRIED_IMAGES])
    exact = _outputs(builder, network.steps, {})
    tensors: dict[Value, Any] = {}
    for number, step in enumerate(network.steps):
        if number in steps:
            found = _outputs(builder, (steps[number], *network.steps[number + 1 :]), tensors)
            yield number, sum(float(np.mean((a - b) ** 2)) for a, b in zip(exact, found, strict=True))
        compute(builder, step, tensors)
        forget(tensors, network.steps[number + 1 :])


def _outputs(builder: KerasBuilder, steps: tuple[Step, ...], tensors: dict[Value, Any]) -> list[np.ndarray]:
    """The outputs of a network's last steps, given the tensors that they take from those before."""
    tensors, found = dict(tensors), []
    for number, step in enumerate(steps):
        compute(builder, step, tensors)
        if step.operation == "output":
            found.append(ops.convert_to_numpy(tensors[step.results[0]]).astype("float64"))
        forget(tensors, steps[number + 1 :])
    return found


def _plans(effects: dict[int, float], sizes: dict[int, int]) -> Iterator[dict[int, int]]:
    """Bits for all layers: the fewest, then one layer's more at a time, in the order of what a byte gives.

    Args:
        effects: {number of a step: mean square of what its rounding to the fewest bits changes}.
        sizes: {number of a step: how many weights it has}.
    """
    bits = dict.fromkeys(effects, FEWEST_BITS)
    yield dict(bits)
    raises = [
        (effects[number] * (_square(fewer) - _square(more)) / (sizes[number] * (more - fewer)), number, more)
        for number in effects
        for fewer, more in pairwise(BITS)
    ]
    for _, number, more in sorted(raises, key=lambda entry: -entry[0]):
        bits[number] = more
        yield dict(bits)


def _square(bits: int) -> float:
    """What rounding changes, squared, relative to that in the fewest bits."""
    return 0.0 if bits == EXACT_BITS else 4.0 ** (FEWEST_BITS - bits)


def _classes(network: FusedNetwork, images: np.ndarray) -> np.ndarray:
    """The best classes, of the last output for images as the network takes them."""
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    return np.concatenate([_outputs(KerasBuilder(batch), network.steps, {})[-1].argmax(-1) for batch in batches])
