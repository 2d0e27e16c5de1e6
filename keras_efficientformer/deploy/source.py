"""What an export reads: a Keras model, or what training has made of one, at one input size or several. Room: deploy.

Both exporters make a `Source` of it at their entry, by `open_source`.
"""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

from keras_efficientformer.conversion.state_dict import changed_since, source_of
from keras_efficientformer.deploy.input_sizes import InputSize, checked_sizes, described
from keras_efficientformer.deploy.network.fuse import fuse, more_than_own
from keras_efficientformer.deploy.network.heads import efficientformer_in
from keras_efficientformer.deploy.network.recording import FusedNetwork
from keras_efficientformer.deploy.report_sidecar import content_hash
from keras_efficientformer.layers.image_normalization import Normalization, normalization_of, takes_raw_pixels
from keras_efficientformer.layers.initialization import weights_follow
from keras_efficientformer.layers.names import STAGES
from keras_efficientformer.models.opening import at_size
from keras_efficientformer.models.outputs import outputs_of


class Source(Protocol):
    """What an export reads.

    Attributes:
        ranges: {number of a step: (smallest, largest) of its tensors}, where quantization-aware training has learnt
            them; else empty.
    """

    ranges: dict[int, list[tuple[float, float]]]

    @property
    def preprocessing(self) -> bool:
        """Whether its network can have the normalisation inside: it is known and, if trained, it was made so."""

    @property
    def checkpoint(self) -> dict[str, str] | None:
        """{"file": name, "sha256": hex digits} of the checkpoint that it was loaded from, where that is known."""

    def network(self, include_preprocessing: bool, feature_maps: bool = False) -> FusedNetwork:
        """Its fused network, as `fuse` makes it."""

    def outputs(self, images: np.ndarray, network: FusedNetwork, quantized: bool) -> list[np.ndarray]:
        """The outputs of that network for raw images.

        Args:
            images: float32 array (number, height, width, channels), values in 0..255.
            network: what `network` returned.
            quantized: whether a quantization-aware source computes as it was trained; else in float32.

        Returns:
            A float32 array (number, ...) for each output of the network, in its order, channels last.
        """

    def at_size(self, size: tuple[int, int]) -> "Source":
        """The same for images of another (height, width); ValueError where it cannot be had for them."""


class KerasSource:
    """A Keras model, which is looked at when it is asked for something: settings are checked before.

    Args:
        model: the model.
        origin: of which it was made at another size.
    """

    def __init__(self, model: keras.Model, origin: keras.Model | None = None) -> None:
        self._model, self._origin = model, model if origin is None else origin
        self.ranges: dict[int, list[tuple[float, float]]] = {}

    @property
    def preprocessing(self) -> bool:
        return normalization_of(efficientformer_in(self._model)) is not None

    @property
    def checkpoint(self) -> dict[str, str] | None:
        return checkpoint_of(self._origin)

    def network(self, include_preprocessing: bool, feature_maps: bool = False) -> FusedNetwork:
        return fuse(self._model, include_preprocessing, feature_maps)

    def outputs(self, images: np.ndarray, network: FusedNetwork, quantized: bool) -> list[np.ndarray]:
        model = self._model
        stages = [name for name in network.outputs if name in STAGES and name not in model.output_names]
        if stages:
            model = keras.Model(model.inputs, [*(model.get_layer(name).output for name in stages), *model.outputs])
        taken = (
            images if takes_raw_pixels(efficientformer_in(self._model)) else normalised(images, network.normalization)
        )
        return outputs_of(_in_float32(model), taken)

    def at_size(self, size: tuple[int, int]) -> "KerasSource":
        if found := more_than_own(self._model):
            raise ValueError(
                f"{self._model.name} cannot be made for {described(size)} pixels: it has {found}, and `input_sizes` "
                "are for an EfficientFormer alone. Leave them out."
            )
        return KerasSource(at_size(self._model, (*size, self._model.inputs[0].shape[3])), self._model)


class TrainedSource:
    """A tf_keras model that `training` has made of an EfficientFormer: quantization-aware or pruned."""

    def __init__(self, model: Any) -> None:
        from keras_efficientformer.deploy.network import tf_keras_builder  # it imports TensorFlow

        self._model = model
        self._build = tf_keras_builder.build_tf_keras
        self._network = tf_keras_builder.trained_network(model)
        self.preprocessing = self._network.preprocessing
        self.ranges = tf_keras_builder.trained_ranges(model)
        self.checkpoint: dict[str, str] | None = None

    def network(self, include_preprocessing: bool, feature_maps: bool = False) -> FusedNetwork:
        if feature_maps:
            raise ValueError(f"{self._model.name} was made for training and has no feature maps of its stages.")
        if self._network.preprocessing != include_preprocessing:
            raise ValueError(
                f"{self._model.name} was made for training with include_preprocessing={self._network.preprocessing}: "
                f"export it with the same. Received: include_preprocessing={include_preprocessing}"
            )
        return self._network

    def outputs(self, images: np.ndarray, network: FusedNetwork, quantized: bool) -> list[np.ndarray]:
        # A quantization-aware model computes as TFLite's "int8" does, nearly as Core ML's "w8a8", and as no other mode.
        model = self._model if quantized else self._build(network)
        return keras.tree.flatten(model.predict(network_inputs(images, network), verbose=0))

    def at_size(self, size: tuple[int, int]) -> "TrainedSource":
        raise ValueError(
            f"{self._model.name} was made for training at one size and has no other. Leave `input_sizes` out."
        )


def open_source(model: Any) -> Source:
    """What an export reads of a model: a Keras model's, or a tf_keras model's that training has made.

    Raises:
        ValueError: the model is no EfficientFormer of this package, or has not been trained yet.
    """
    # Whoever has a tf_keras model has imported tf_keras, which costs seconds and is not always installed.
    tf_keras = sys.modules.get("tf_keras")
    return TrainedSource(model) if tf_keras and isinstance(model, tf_keras.Model) else KerasSource(model)


@dataclass(frozen=True)
class SizedNetwork:
    """What is exported at one input size.

    Attributes:
        source, network: as in `ExportJob`.
        size: (height, width).
    """

    source: Source
    network: FusedNetwork

    @property
    def size(self) -> tuple[int, int]:
        return self.network.input_shape[:2]


def at_sizes(
    source: Source, network: FusedNetwork, input_sizes: Sequence[InputSize] | None, feature_maps: bool
) -> tuple[SizedNetwork, ...]:
    """A source and its network at the sizes that are asked for, of which the first is the file's default.

    Raises:
        ValueError: as `checked_sizes`, or the source cannot be had at another size.
    """
    own = SizedNetwork(source, network)
    return tuple(
        own if size == own.size else _at_size(source, network, size, feature_maps)
        for size in checked_sizes(input_sizes, own.size)
    )


def _at_size(source: Source, network: FusedNetwork, size: tuple[int, int], feature_maps: bool) -> SizedNetwork:
    source = source.at_size(size)
    return SizedNetwork(source, source.network(network.preprocessing, feature_maps))


def network_inputs(images: np.ndarray, network: FusedNetwork) -> np.ndarray:
    """Raw images, float32 (number, height, width, channels) in 0..255, as the network takes them."""
    return images if network.preprocessing else normalised(images, network.normalization)


def normalised(images: np.ndarray, normalization: Normalization | None) -> np.ndarray:
    """Raw images, float32 (number, height, width, channels) in 0..255, normalised."""
    # Where nobody has said how, any range that networks are used to will do for a comparison.
    return images / 127.5 - 1.0 if normalization is None else normalization(images)


def _in_float32(model: keras.Model) -> keras.Model:
    """The model, or where it computes in another precision a copy that does not: what it stands for is compared."""
    if {layer.compute_dtype for layer in model.layers} == {"float32"}:
        return model
    return changed_copy(model, _with_float32_policies(model.get_config()))


def changed_copy(model: keras.Model, config: dict[str, Any]) -> keras.Model:
    """A model of that configuration with the weights of `model`."""
    with weights_follow():
        copy = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    return copy


def _with_float32_policies(config: Any) -> Any:
    if isinstance(config, list | tuple):
        return type(config)(map(_with_float32_policies, config))
    if not isinstance(config, dict):
        return config
    return {name: "float32" if name == "dtype" else _with_float32_policies(value) for name, value in config.items()}


def checkpoint_of(model: keras.Model) -> dict[str, str] | None:
    """File name and sha256 of the checkpoint that the model was loaded from, where that is known; and whether its
    weights were changed since."""
    source = source_of(model)
    if source is None:
        return None
    found = {"file": Path(source).name, "sha256": "unknown: the file is gone"}
    with contextlib.suppress(OSError):
        found["sha256"] = content_hash(source)
    return found | ({"weights": "changed since"} if changed_since(model) else {})
