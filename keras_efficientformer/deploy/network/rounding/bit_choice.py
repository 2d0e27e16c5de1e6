"""Chooses each layer's bits, for the smallest file that answers as the model. Room: deploy/network/rounding.

How much the rounding of a layer changes the outputs is tried once, in the fewest bits; each further bit halves the
step, and so quarters the change's square. From the fewest bits for all, layers then get more in the order of what a
byte gives, until the network answers on enough images as it does with exact weights.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from keras import ops

from keras_efficientformer.deploy.network.keras_builder import KerasBuilder
from keras_efficientformer.deploy.network.recording import FusedNetwork, Step, Value
from keras_efficientformer.deploy.network.rounding.palettes import PALETTE_STORAGE
from keras_efficientformer.deploy.network.rounding.trials import Effects, kept_effects
from keras_efficientformer.deploy.network.rounding.weight_rounding import BATCH, Storage, compute, forget, layer_inputs
from keras_efficientformer.errors import ExportError

# With so many bits weights stay as they are.
EXACT_BITS = 16
# On how many of a hundred images the best class may be another, where nobody says it.
MAX_DROP = 1.0
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

    @property
    def layers(self) -> dict[str, int]:
        """{where a layer comes from in the Keras model: bits of its weights}."""
        return {self.network.steps[number].location: bits for number, bits in self.bits.items()}


def check_max_drop(max_drop: float | None, argument: str, value: str, chosen: bool) -> None:
    """Raises ValueError where an export is given a `max_drop` that is none, or that its mode does not keep to.

    Args:
        max_drop: as given.
        argument, value: which names the mode.
        chosen: whether the mode chooses bits.
    """
    if max_drop is not None and not chosen:
        raise ValueError(f"`max_drop` is what {argument}='auto' keeps to. Received: {argument}={value!r}")
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise ValueError(f"`max_drop` should be in 0..100, a percentage. Received: max_drop={max_drop}")


def check_choice(setting: str, network: FusedNetwork, sizes: int) -> None:
    """Raises ValueError where no bits can be chosen for a network at a number of input sizes; `setting` names the mode,
    "compress='auto'"."""
    if network.classes in (None, 1):
        raise ValueError(
            f"{setting} looks at the best class, and {network.name} has {network.classes or 'none'}. Use another mode."
        )
    if sizes > 1:
        raise ValueError(
            f"{setting} rounds weights for one input size, and those of several are shared. Received: "
            f"{sizes} `input_sizes`"
        )


# Gives the best classes that a network with weights of chosen bits finds in images.
Answers = Callable[[FusedNetwork, np.ndarray], np.ndarray]


def choose_bits(
    network: FusedNetwork,
    images: np.ndarray,
    max_drop: float,
    storage: Storage = PALETTE_STORAGE,
    answers: Answers | None = None,
) -> BitChoice:
    """The network with the fewest bytes of weights that gives the exact network's best class often enough.

    Args:
        network: a classifier's or a segmentation model's.
        images: as the network takes them, float32 (number, height, width, channels): as many as `max_drop` can be
            told on.
        max_drop: on how many of a hundred images, or of their pixels, the best class may be another.
        storage: how weights are stored.
        answers: how the network is tried; None means as it is, in float32.

    Raises:
        ExportError: not even weights that stay as they are keep to `max_drop`.
    """
    answers = answers or _classes
    inputs = layer_inputs(network, images)

    @cache
    def step(number: int, bits: int) -> Step:
        exact = network.steps[number]
        return exact if bits == EXACT_BITS else storage.rounded(exact, inputs[number], bits)

    def tried(bits: dict[int, int]) -> BitChoice:
        changed = with_steps(network, {number: step(number, count) for number, count in bits.items()})
        return BitChoice(changed, bits, float(np.mean(answers(changed, images) == expected)))

    def measure() -> Effects:
        return dict(_effects(network, {number: step(number, bits[0]) for number, bits in ladders.items()}, images))

    expected = _classes(network, images)
    ladders = {number: storage.bits(network.steps[number]) for number in inputs}
    effects = kept_effects(network, images, storage.name, measure)
    sizes = {number: network.steps[number].arguments["weights"].size for number in inputs}
    plans = list(_plans(effects, sizes, ladders))
    low, high, best = 0, len(plans), None
    while low < high:
        middle = (low + high) // 2
        choice = tried(plans[middle])
        if 100 * (1 - choice.agreement) <= max_drop:
            high, best = middle, choice
        else:
            low = middle + 1
    if best is None:
        raise ExportError(
            f"{network.name} was not written: with all weights as they are the best class is another on "
            f"{100 * (1 - choice.agreement):.2f}% of {len(images)} calibration images, and max_drop is {max_drop}. "
            "Raise it, or leave the weights as they are."
        )
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
            # Outputs that are made before the step do not depend on it.
            later = exact[len(exact) - len(found) :]
            yield number, sum(float(np.mean((a - b) ** 2)) for a, b in zip(later, found, strict=True))
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


def _plans(effects: Effects, sizes: dict[int, int], ladders: dict[int, tuple[int, ...]]) -> Iterator[dict[int, int]]:
    """Bits for all layers: the fewest, then one layer's more at a time, in the order of what a byte gives.

    Args:
        effects: {number of a step: mean square of what its rounding to its fewest bits changes}.
        sizes: {number of a step: how many weights it has}.
        ladders: {number of a step: what its weights may have, ascending}.
    """
    bits = {number: ladder[0] for number, ladder in ladders.items()}
    yield dict(bits)
    raises = [
        (
            effects[number] * (_square(fewer, ladder) - _square(more, ladder)) / (more - fewer) / sizes[number],
            number,
            more,
        )
        for number, ladder in ladders.items()
        for fewer, more in pairwise(ladder)
    ]
    for _, number, more in sorted(raises, key=lambda entry: -entry[0]):
        bits[number] = more
        yield dict(bits)


def _square(bits: int, ladder: tuple[int, ...]) -> float:
    """What rounding changes, squared, relative to that in the fewest bits of a layer."""
    return 0.0 if bits == EXACT_BITS else 4.0 ** (ladder[0] - bits)


def _classes(network: FusedNetwork, images: np.ndarray) -> np.ndarray:
    """The best classes, of the last output for images as the network takes them."""
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    return np.concatenate([_outputs(KerasBuilder(batch), network.steps, {})[-1].argmax(-1) for batch in batches])
