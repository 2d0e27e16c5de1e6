"""Records a network as a list of steps, which any builder is told. Room: deploy/network.

Recording rounds the folded weights to float32, once, and takes them out of the model: what is built later is the model
as it was when it was fused.
"""

import copy
import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from keras_efficientformer.deploy.network.builder import Builder, Tensor
from keras_efficientformer.layers.image_normalization import Normalization
from keras_efficientformer.layers.names import MASKS


@dataclass(frozen=True)
class Value:
    """Stands for a tensor while a network is recorded: the number of the result that will be it."""

    number: int


@dataclass(frozen=True)
class Step:
    """One operation of `Builder`, its arguments, and the values it gives.

    Attributes:
        operation: the name of the method.
        arguments: by their names, each a `Value`, a float32 array or a number.
        results: one value, or of `split_heads` one for each part.
        location: where in the Keras model it comes from, such as `stage3.blocks.2.mlp.fc1`.
    """

    operation: str
    arguments: dict[str, Any]
    results: tuple[Value, ...]
    location: str = ""

    def build(self, builder: Builder, tensors: dict[Value, Tensor]) -> tuple[Tensor, ...]:
        """Has a builder make this operation of the tensors that the values stand for; returns its results."""
        arguments = {
            name: tensors[argument] if isinstance(argument, Value) else argument
            for name, argument in self.arguments.items()
        }
        made = getattr(builder, self.operation)(**arguments)
        return made if len(self.results) > 1 else (made,)


class Recorder:
    """A `Builder` that builds nothing and remembers everything; the last steps name the outputs.

    Attributes:
        steps: what has been recorded.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._numbers = itertools.count()
        self._location: tuple[str, ...] = ()

    def at(self, location: str) -> "Recorder":
        """The same recorder, for what lies at `location` within the place that this one is for."""
        inner = copy.copy(self)
        inner._location = (*self._location, location)
        return inner

    def begin(self, number: int, operation: str, location: str) -> None:
        """Does nothing: steps are numbered by their place in `steps`."""

    def end(self, results: tuple[Value, ...]) -> None:
        """Does nothing."""

    def image(self, height: int, width: int, channels: int, mean: np.ndarray | None) -> Value:
        return self._record("image", height=height, width=width, channels=channels, mean=mean)

    def convolution(self, x: Value, weights: np.ndarray, bias: np.ndarray, stride: int = 1) -> Value:
        return self._record("convolution", x=x, weights=weights, bias=bias, stride=stride)

    def depthwise_convolution(self, x: Value, weights: np.ndarray, bias: np.ndarray, stride: int = 1) -> Value:
        return self._record("depthwise_convolution", x=x, weights=weights, bias=bias, stride=stride)

    def relu(self, x: Value) -> Value:
        return self._record("relu", x=x)

    def gelu(self, x: Value) -> Value:
        return self._record("gelu", x=x)

    def pooling_mixer(self, x: Value, size: int, own: np.ndarray, pooled: np.ndarray) -> Value:
        return self._record("pooling_mixer", x=x, size=size, own=own, pooled=pooled)

    def resize(self, x: Value, height: int, width: int) -> Value:
        return self._record("resize", x=x, height=height, width=width)

    def enlarge(self, x: Value, factor: int) -> Value:
        return self._record("enlarge", x=x, factor=factor)

    def affine(self, x: Value, scale: np.ndarray, offset: np.ndarray | None = None) -> Value:
        return self._record("affine", x=x, scale=scale, offset=offset)

    def add(self, x: Value, y: Value | np.ndarray) -> Value:
        return self._record("add", x=x, y=y)

    def tokens(self, x: Value) -> Value:
        return self._record("tokens", x=x)

    def feature_map(self, x: Value, height: int, width: int) -> Value:
        return self._record("feature_map", x=x, height=height, width=width)

    def layer_norm(self, x: Value, epsilon: float) -> Value:
        return self._record("layer_norm", x=x, epsilon=epsilon)

    def group_norm(self, x: Value, epsilon: float) -> Value:
        return self._record("group_norm", x=x, epsilon=epsilon)

    def dense(self, x: Value, weights: np.ndarray, bias: np.ndarray) -> Value:
        return self._record("dense", x=x, weights=weights, bias=bias)

    def split_heads(self, x: Value, num_heads: int, sizes: tuple[int, ...]) -> tuple[Value, ...]:
        return self._record_all("split_heads", len(sizes), x=x, num_heads=num_heads, sizes=sizes)

    def to_heads(self, x: Value, num_heads: int) -> Value:
        return self._record("to_heads", x=x, num_heads=num_heads)

    def scores(self, query: Value, key: Value) -> Value:
        return self._record("scores", query=query, key=key)

    def talking_heads(self, x: Value, weights: np.ndarray, bias: np.ndarray) -> Value:
        return self._record("talking_heads", x=x, weights=weights, bias=bias)

    def weighted_values(self, weights: Value, value: Value) -> Value:
        return self._record("weighted_values", weights=weights, value=value)

    def merge_heads(self, x: Value) -> Value:
        return self._record("merge_heads", x=x)

    def softmax(self, x: Value) -> Value:
        return self._record("softmax", x=x)

    def channel_softmax(self, x: Value) -> Value:
        return self._record("channel_softmax", x=x)

    def sigmoid(self, x: Value) -> Value:
        return self._record("sigmoid", x=x)

    def mean(self, x: Value) -> Value:
        return self._record("mean", x=x)

    def max(self, x: Value) -> Value:
        return self._record("max", x=x)

    def concatenate(self, x: Value, y: Value) -> Value:
        return self._record("concatenate", x=x, y=y)

    def flatten(self, x: Value) -> Value:
        return self._record("flatten", x=x)

    def reshape(self, x: Value, height: int, width: int, channels: int) -> Value:
        return self._record("reshape", x=x, height=height, width=width, channels=channels)

    def output(self, x: Value, name: str) -> Value:
        return self._record("output", x=x, name=name)

    def needed(self) -> tuple[Step, ...]:
        """The steps without those whose results nothing uses."""
        used: set[Value] = set()
        kept = []
        for step in reversed(self.steps):
            if step.operation == "output" or not used.isdisjoint(step.results):
                kept.append(step)
                used |= {argument for argument in step.arguments.values() if isinstance(argument, Value)}
        return tuple(reversed(kept))

    def _record(self, operation: str, **arguments: Any) -> Value:
        return self._record_all(operation, 1, **arguments)[0]

    def _record_all(self, operation: str, count: int, **arguments: Any) -> tuple[Value, ...]:
        rounded = {name: _rounded(argument) for name, argument in arguments.items()}
        results = tuple(Value(next(self._numbers)) for _ in range(count))
        self.steps.append(Step(operation, rounded, results, ".".join(self._location)))
        return results


def _rounded(argument: Any) -> Any:
    return argument.astype("float32") if isinstance(argument, np.ndarray) else argument


@dataclass(frozen=True)
class FusedNetwork:
    """A network that any builder can build.

    Attributes:
        name: of the model.
        paper: its family's name and paper.
        input_shape: (height, width, channels) of the image.
        preprocessing: whether the image is raw, in 0..255; else it is normalised before.
        normalization: how raw images are, inside or before; None where nobody has said so.
        outputs: names of the outputs, in the order of the Keras model's.
        classes: number of classes, or None without a classifier.
        labels: their names, or None where the model does not know them.
        steps: the network, in an order in which every value is made before it is used.
    """

    name: str
    paper: str
    input_shape: tuple[int, int, int]
    preprocessing: bool
    normalization: Normalization | None
    outputs: tuple[str, ...]
    classes: int | None
    labels: tuple[str, ...] | None
    steps: tuple[Step, ...]

    @property
    def has_masks(self) -> bool:
        """Whether it is a segmentation model, whose only output has a value of each class for every pixel."""
        return self.outputs == (MASKS,) and self.classes is not None

    @property
    def softmax(self) -> Step | None:
        """The step of a segmentation model that makes probabilities of its logits; None where it gives logits."""
        return next((step for step in self.steps[-2:] if step.operation == "channel_softmax"), None)

    def without_softmax(self) -> "FusedNetwork":
        """A segmentation model that gives the logits."""
        if self.softmax is None:
            return self
        *steps, output = (step for step in self.steps if step is not self.softmax)
        logits = replace(output, arguments=output.arguments | {"x": self.softmax.arguments["x"]})
        return replace(self, steps=(*steps, logits))

    def build(self, builder: Builder) -> dict[str, Tensor]:
        """Tells the network to a builder; returns {output name: tensor} in the order of `outputs`.

        This is the one place where steps are numbered: by their place in `steps`.
        """
        tensors: dict[Value, Tensor] = {}
        outputs = {}
        for number, step in enumerate(self.steps):
            builder.begin(number, step.operation, step.location)
            results = step.build(builder, tensors)
            builder.end(results)
            tensors |= zip(step.results, results, strict=True)
            if step.operation == "output":
                (outputs[step.arguments["name"]],) = results
        return outputs
