"""Describes what a model computes after an EfficientFormer's features: heads of one's own. Room: deploy/network.

A head is made of standard Keras layers (`head_layers.LAYERS`) on the output of the last norm or of stages, in a
Functional or Sequential model that may hold the EfficientFormer as a layer. Layers that only training has, such as
Dropout, vanish; a BatchNormalization right after a convolution or dense is folded into it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_efficientformer.conversion.bindings import layers_of
from keras_efficientformer.deploy.network.head_layers import (
    LAYERS,
    Call,
    Features,
    activation_of,
    channel_axes,
    is_plain,
    takes_a_norm,
)
from keras_efficientformer.deploy.network.recording import Recorder, Value
from keras_efficientformer.errors import listing
from keras_efficientformer.layers.image_normalization import ImageNormalization
from keras_efficientformer.layers.names import MASKS, NORM, STAGES, STEM
from keras_efficientformer.layers.v1 import Stage
from keras_efficientformer.layers.v2 import StageV2

# What lies before the stages has no value of its own: these stand for it while layers are read.
IMAGE, STEMMED = "image", "stem"
WHAT_TO_DO = "Prepare images by include_preprocessing=True, or by the `mean` and `std` of the EfficientFormer."


def efficientformer_in(model: keras.Model) -> keras.Model:
    """The EfficientFormer that a model is, or holds as a layer; it may lack what follows some stage.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = list(_efficientformers(model))
    if len(found) > 1:
        raise ValueError(f"{model.name} holds {len(found)} EfficientFormers: one is expected.")
    if not found:
        layers_of(model)  # it raises, and says which layers were expected
    return found[0]


def check_readable(model: keras.Model) -> None:
    """Raises ValueError for a model whose layers cannot be read in their order: none of Functional or Sequential."""
    if not getattr(model, "inputs", None) or not (
        isinstance(model, keras.Sequential) or hasattr(model, "_nodes_by_depth")
    ):
        raise ValueError(
            f"{model.name}, {type(model).__name__}, does not say in which order its layers compute: write it as a "
            "Functional or Sequential model with an input."
        )


def _efficientformers(model: Any) -> Iterator[keras.Model]:
    layers = getattr(model, "layers", ())
    if any(layer.name == STAGES[0] and isinstance(layer, Stage | StageV2) for layer in layers):
        yield model
        return
    for layer in layers:
        yield from _efficientformers(layer)


def describe_head(
    b: Recorder, model: keras.Model, layers: Mapping[str, Any], features: Features | None, stages: Mapping[str, Value]
) -> tuple[tuple[str, ...], int | None]:
    """Records what follows the body, and the model's outputs under the names of the layers that give them.

    Args:
        b: what has recorded the body.
        model: the whole model.
        layers: those of its EfficientFormer, by their names.
        features: of the body; None where the model has no last norm.
        stages: {name of a stage that the model has: its output, a feature map}.

    Returns:
        The names of the outputs in the model's order, and the number of classes where the only output is a vector that
        ends in softmax or sigmoid, or the masks of a segmentation model.

    Raises:
        ValueError: a layer is none of `LAYERS`, has settings that no builder has or comes before the stages; two
            outputs have one name, or one has the input's; the model has several inputs.
    """
    names = tuple(tensor._keras_history.operation.name for tensor in model.outputs)
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ValueError(f"{model.name} has several outputs of one name, {listing(repeated)}: name its layers apart.")
    if IMAGE in names:
        raise ValueError(f"{model.name} has an output called {IMAGE}, as files call their input: name its layer anew.")
    if len(model.inputs) != 1:
        raise ValueError(f"{model.name} has {len(model.inputs)} inputs: one, the image, is expected.")
    made: dict[str, Any] = {STEM: STEMMED, **stages, **({NORM: features} if features else {})}
    given = dict(zip(made, (IMAGE, *made.values()), strict=False))
    of_layers = ({id(layers[name]): value for name, value in values.items()} for values in (made, given))
    values = HeadReader(b, *of_layers).read(model, [IMAGE])
    for name, value in zip(names, values, strict=True):
        b.output(value, name)
    shape, last = model.outputs[0].shape[1:], model.outputs[0]._keras_history.operation
    gives_scores = names == (MASKS,) or (len(shape) == 1 and activation_of(last) in ("softmax", "sigmoid"))
    return names, int(shape[-1]) if gives_scores and len(names) == 1 else None


class HeadReader:
    """Reads the layers of models in their order and records them.

    Args:
        b: what records.
        made: {id of a layer of the body: what it gives}.
        before: {id of a layer of the body: what it has to be given}.
    """

    def __init__(self, b: Recorder, made: Mapping[int, Any], before: Mapping[int, Any]) -> None:
        self._b, self._made, self._before = b, made, before
        # {id of a layer's call: the norm after it}, and the ids of those norms' calls.
        self._norms: dict[int, keras.layers.BatchNormalization] = {}
        self._folded: set[int] = set()

    def read(self, model: keras.Model, inputs: list[Any]) -> list[Any]:
        """What the outputs of a model are for these inputs."""
        functional = keras.Model(model.inputs, model.outputs) if isinstance(model, keras.Sequential) else model
        nodes = [
            node for depth in sorted(functional._nodes_by_depth)[::-1] for node in functional._nodes_by_depth[depth]
        ]
        uses = Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
        # What comes in and what goes out may be used elsewhere too.
        uses.update(map(id, (*functional.inputs, *functional.outputs)))
        self._fold_norms(nodes, uses)
        found = dict(zip(map(id, functional.inputs), inputs, strict=True))
        for node in nodes:
            if not node.is_input:
                given = [found[id(tensor)] for tensor in node.input_tensors]
                is_shared = any(uses[id(tensor)] > 1 for tensor in node.input_tensors)
                found |= zip(map(id, node.outputs), self._results(node, given, is_shared), strict=True)
        return [self._value(found[id(tensor)], tensor) for tensor in functional.outputs]

    def _fold_norms(self, nodes: list[Any], uses: Counter[int]) -> None:
        """Finds every norm of channels that is all that follows the call of a layer, and that call."""
        made_by = {id(tensor): node for node in nodes for tensor in node.outputs}
        for node in nodes:
            norm = node.operation
            if isinstance(norm, keras.layers.BatchNormalization) and uses[id(node.input_tensors[0])] == 1:
                before = made_by[id(node.input_tensors[0])]
                is_of_channels = norm.axis in channel_axes(node.input_tensors[0].shape[1:])
                if is_of_channels and takes_a_norm(before.operation):
                    self._norms[id(before)] = norm
                    self._folded.add(id(node))

    def _results(self, node: Any, given: list[Any], is_shared: bool) -> list[Any]:
        layer = node.operation
        if isinstance(layer, keras.Model):
            check_readable(layer)
            return self.read(layer, given)
        if id(layer) in self._made:
            if given != [self._before[id(layer)]]:
                raise ValueError(f"{layer.name} is not given what the layer before it gives. {WHAT_TO_DO}")
            return [self._made[id(layer)]]
        if isinstance(layer, ImageNormalization) and given == [IMAGE]:
            return given
        if any(isinstance(value, str) for value in given):
            raise ValueError(
                f"{layer.name}, {type(layer).__name__}, comes before the stages, where exports know none. {WHAT_TO_DO}"
            )
        if type(layer) not in LAYERS:
            raise ValueError(
                f"{layer.name}, {type(layer).__name__}, is no layer that exports know after the features. Use some of "
                f"{', '.join(sorted(kind.__name__ for kind in LAYERS))}, or export the model up to it."
            )
        return [self._layer(node, given, is_shared)]

    def _layer(self, node: Any, given: list[Any], is_shared: bool) -> Value:
        layer, b = node.operation, self._b.at(node.operation.name)
        if type(layer) is keras.layers.GlobalAveragePooling2D and isinstance(given[0], Features) and is_plain(layer):
            return given[0].mean(b)
        values = tuple(self._value(value, tensor) for value, tensor in zip(given, node.input_tensors, strict=True))
        if id(node) in self._folded:
            return values[0]
        *all_taken, given_shape = (tuple(tensor.shape[1:]) for tensor in (*node.input_tensors, node.outputs[0]))
        return LAYERS[type(layer)](Call(b, layer, values, all_taken, given_shape, is_shared, self._norms.get(id(node))))

    def _value(self, value: Any, tensor: Any) -> Any:
        """A value as a feature map or vector of that symbolic tensor's shape."""
        return value.feature_map(self._b.at(NORM), tensor.shape[1:3]) if isinstance(value, Features) else value
