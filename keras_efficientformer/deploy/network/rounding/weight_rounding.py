"""Rounds a layer's weights to few values, so that its outputs on images change least. Room: deploy/network/rounding.

Which values there are, a format says (`palettes`, `linear`). Weights are rounded row by row, and what one row's
rounding changes is made up for in the rows that are left: GPTQ (Frantar et al., arXiv 2210.17323, algorithm 1). What is
left of the mean goes into the bias (Nagel et al., arXiv 1906.04721, section 4.2).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from keras import ops

from keras_efficientformer.deploy.network.builder import Tensor
from keras_efficientformer.deploy.network.keras_builder import KerasBuilder
from keras_efficientformer.deploy.network.recording import FusedNetwork, Step, Value

# What has weights that are worth rounding.
WEIGHTED_OPERATIONS = ("convolution", "dense")
# So many inputs of a layer are looked at of each batch of images.
ROWS = 20_000
BATCH = 32
# Of the mean power of the inputs, added to each: the inverse exists, and few images are not trusted too far.
DAMPING = 0.01
# Rows are made up for in blocks, so that most of the work is matrix products.
BLOCK = 128

# Rounds a row of a layer's weights, float64 (outputs,), to what can be stored of it.
Nearest = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class LayerInputs:
    """What a layer's weights (inputs, outputs) are multiplied with, over images and positions.

    Attributes:
        products: mean of the products of each two inputs, float64 (inputs, inputs).
        mean: float64 (inputs,).
    """

    products: np.ndarray
    mean: np.ndarray

    @cached_property
    def power(self) -> np.ndarray:
        """Of each input, the mean of its square and the damping: float64 (inputs,)."""
        squares = np.diag(self.products)
        return squares + (DAMPING * squares.mean() or 1.0)

    @cached_property
    def order(self) -> np.ndarray:
        """The inputs' numbers, the one of most power first: it is rounded while there is most to make up with."""
        return np.argsort(-self.power)

    @cached_property
    def factor(self) -> np.ndarray:
        """The upper Cholesky factor of the inverse of the damped products, in `order`."""
        damped = self.products.copy()
        np.fill_diagonal(damped, self.power)
        return np.linalg.cholesky(np.linalg.inv(damped[np.ix_(self.order, self.order)])).T

    def error(self, change: np.ndarray) -> float:
        """Sum of the squares of what a change of the weights (inputs, outputs) changes in an output position."""
        return float(np.sum(change * (self.products @ change)))


def layers_with_weights(network: FusedNetwork) -> list[int]:
    """Numbers of the steps whose weights are rounded: all but the first, which is small and whose errors are in all."""
    numbers = [number for number, step in enumerate(network.steps) if step.operation in WEIGHTED_OPERATIONS]
    return numbers[1:]


def layer_inputs(network: FusedNetwork, images: np.ndarray) -> dict[int, LayerInputs]:
    """{number of a step: what its weights are multiplied with}, for images as the network takes them."""
    layers, random = layers_with_weights(network), np.random.default_rng(0)
    sums: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    counts = dict.fromkeys(layers, 0)
    for start in range(0, len(images), BATCH):
        builder = KerasBuilder(images[start : start + BATCH])
        tensors: dict[Value, Tensor] = {}
        for number, step in enumerate(network.steps):
            if number in counts:
                rows = _rows(ops.convert_to_numpy(tensors[step.arguments["x"]]), step)
                if len(rows) > ROWS:
                    rows = rows[random.choice(len(rows), ROWS, replace=False)]
                rows = rows.astype("float64")
                products, total = sums.get(number, (0.0, 0.0))
                sums[number] = products + rows.T @ rows, total + rows.sum(axis=0)
                counts[number] += len(rows)
            compute(builder, step, tensors)
            forget(tensors, network.steps[number + 1 :])
    return {number: LayerInputs(*(total / counts[number] for total in sums[number])) for number in layers}


def compute(builder: KerasBuilder, step: Step, tensors: dict[Value, Tensor]) -> None:
    """Computes a step of a network from the tensors that it takes, and adds what it gives."""
    tensors |= zip(step.results, step.build(builder, tensors), strict=True)


def forget(tensors: dict[Value, Tensor], steps: Iterable[Step]) -> None:
    """Leaves the tensors that steps still take."""
    needed = {argument for step in steps for argument in step.arguments.values() if isinstance(argument, Value)}
    for value in [value for value in tensors if value not in needed]:
        del tensors[value]


@dataclass(frozen=True)
class Storage:
    """How a format stores weights that are rounded.

    Attributes:
        name: "palettes".
        bits: what the weights of a step may have, ascending; with the last they stay as they are.
        rounded: the step with weights of at most that many bits.
    """

    name: str
    bits: Callable[[Step], tuple[int, ...]]
    rounded: Callable[[Step, LayerInputs, int], Step]


def as_matrix(weights: np.ndarray) -> np.ndarray:
    """Weights (..., outputs) as float64 (inputs, outputs)."""
    return weights.reshape(-1, weights.shape[-1]).astype("float64")


def rounded(step: Step, inputs: LayerInputs, nearest: Nearest) -> Step:
    """The step with weights that are rounded in turn, and a bias that keeps the mean output."""
    weights = step.arguments["weights"]
    exact = as_matrix(weights)
    found = _rounded_in_turn(exact, inputs, nearest)
    bias = step.arguments["bias"] + inputs.mean @ (exact - found)
    changes = {"weights": found.reshape(weights.shape).astype("float32"), "bias": bias.astype("float32")}
    return replace(step, arguments=step.arguments | changes)


def _rows(x: np.ndarray, step: Step) -> np.ndarray:
    """What the weights of a step, as a matrix, are multiplied with: (images * positions, inputs)."""
    weights = step.arguments["weights"]
    if step.operation == "convolution" and weights.shape[0] > 1:
        size, stride = weights.shape[0], step.arguments["stride"]
        margin = size // 2
        x = np.pad(x, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
        x = windows.transpose(0, 1, 2, 4, 5, 3)
        return x.reshape(-1, size * size * weights.shape[2])
    if step.operation == "convolution":
        x = x[:, :: step.arguments["stride"], :: step.arguments["stride"]]
    return x.reshape(-1, x.shape[-1])


def _rounded_in_turn(weights: np.ndarray, inputs: LayerInputs, nearest: Nearest) -> np.ndarray:
    """GPTQ: weights (inputs, outputs) rounded to what is nearest, inputs of most power first."""
    left, factor = weights[inputs.order], inputs.factor
    found = np.empty_like(left)
    for start, end in _blocks(len(left)):
        errors = np.empty((end - start, left.shape[1]))
        for row in range(start, end):
            found[row] = nearest(left[row])
            error = errors[row - start] = (left[row] - found[row]) / factor[row, row]
            left[row + 1 : end] -= np.outer(factor[row, row + 1 : end], error)
        left[end:] -= factor[start:end, end:].T @ errors
    in_place = np.empty_like(found)
    in_place[inputs.order] = found
    return in_place


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, BLOCK):
        yield start, min(start + BLOCK, length)
