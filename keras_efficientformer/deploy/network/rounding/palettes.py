"""Palettes: a layer's weights are of few values, whichever. Room: deploy/network/rounding.

The values are found by k-means, in which a weight counts as much as its input has power.
"""

import numpy as np

from keras_efficientformer.deploy.network.recording import Step
from keras_efficientformer.deploy.network.rounding.weight_rounding import LayerInputs, Storage, as_matrix, rounded

# With the last, weights stay as they are.
BITS = (4, 6, 8, 16)
KMEANS_ROUNDS = 30


def to_palette(step: Step, inputs: LayerInputs, bits: int) -> Step:
    """The step with weights of at most 2**bits values, all of them float16."""
    values = _values(as_matrix(step.arguments["weights"]), inputs.power, 2**bits)
    borders = _borders(values)
    return rounded(step, inputs, lambda row: values[np.searchsorted(borders, row)])


def _values(weights: np.ndarray, power: np.ndarray, count: int) -> np.ndarray:
    """Float16 values, ascending, that weights (inputs, outputs) are near to: k-means, by Lloyd's rounds."""
    order = np.argsort(weights, axis=None)
    points = weights.ravel()[order]
    counted = np.repeat(power, weights.shape[1])[order]
    # Sums up to each point, so that a cluster's are differences of two.
    counts, sums = (np.concatenate([[0.0], np.cumsum(terms)]) for terms in (counted, counted * points))
    quantiles = np.quantile(points, (np.arange(count) + 0.5) / count)
    values = (quantiles + np.linspace(points[0], points[-1], count)) / 2
    for _ in range(KMEANS_ROUNDS):
        ends = np.concatenate([[0], np.searchsorted(points, _borders(values)), [len(points)]])
        within, total = np.diff(counts[ends]), np.diff(sums[ends])
        values = np.sort(np.where(within > 0, total / np.where(within > 0, within, 1), values))
    return np.unique(values.astype("float16").astype("float64"))


def _borders(values: np.ndarray) -> np.ndarray:
    return (values[1:] + values[:-1]) / 2


PALETTE_STORAGE = Storage("palettes", bits=lambda step: BITS, rounded=to_palette)
