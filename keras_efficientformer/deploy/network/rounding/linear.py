"""Linear weights: whole numbers, times a factor for each output. Room: deploy/network/rounding."""

from dataclasses import dataclass

import numpy as np

from keras_efficientformer.deploy.network.recording import Step
from keras_efficientformer.deploy.network.rounding.weight_rounding import LayerInputs, as_matrix, rounded

# Of the scale with which no weight is cut off, shares that are tried: with a smaller one large weights are, and all
# others are nearer to a whole number.
SCALE_SHARES = np.linspace(0.5, 1.0, 21)


@dataclass(frozen=True, kw_only=True)
class LinearStep(Step):
    """A step whose weights are whole numbers times the scale of their output.

    Attributes:
        bits: of the whole numbers, which are symmetric: -7..7 of 4.
        scale: float32 (outputs,).
    """

    bits: int
    scale: np.ndarray

    @property
    def integers(self) -> np.ndarray:
        """The whole numbers, int8 of the weights' shape."""
        return np.round(self.arguments["weights"] / self.scale).astype("int8")


def to_linear(step: Step, inputs: LayerInputs, bits: int) -> LinearStep:
    """The step with weights of that many bits."""
    largest = 2 ** (bits - 1) - 1
    scale = _scale(as_matrix(step.arguments["weights"]), inputs.power, largest)
    found = rounded(step, inputs, lambda row: _nearest(row, scale, largest))
    return LinearStep(**vars(found), bits=bits, scale=scale.astype("float32"))


def _scale(weights: np.ndarray, power: np.ndarray, largest: int) -> np.ndarray:
    """For each output of weights (inputs, outputs) the scale, of those that are tried, that errs least on inputs of
    that power: a float32 number, as float64."""
    whole = np.abs(weights).max(axis=0) / largest
    whole[whole == 0] = 1.0  # weights that are all zero stay so
    scales = (SCALE_SHARES[:, None] * whole).astype("float32").astype("float64")
    errors = [power @ (weights - _nearest(weights, scale, largest)) ** 2 for scale in scales]
    return scales[np.argmin(errors, axis=0), np.arange(weights.shape[1])]


def _nearest(weights: np.ndarray, scale: np.ndarray, largest: int) -> np.ndarray:
    return np.clip(np.round(weights / scale), -largest, largest) * scale
