"""A KerasHub backbone around the models of both families, with their feature maps. Room: hub.

The network is what `models.opening.build` makes; here is what KerasHub asks of it: a configuration, feature maps by
level, and presets.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from numbers import Integral
from typing import Any

import keras
import keras_hub

from keras_efficientformer import conversion
from keras_efficientformer.errors import listing
from keras_efficientformer.hub.presets import is_keras_preset, network_of
from keras_efficientformer.layers.initialization import weights_follow
from keras_efficientformer.models.assembly import DEFAULT_SIZE
from keras_efficientformer.models.opening import build
from keras_efficientformer.models.pyramid import feature_pyramid
from keras_efficientformer.variants import AnyArchitecture, Architecture, ArchitectureV2

# The keys are the classes of the families' architectures.
LORA_LAYERS: dict[type[AnyArchitecture], list[str]] = {Architecture: ["qkv"], ArchitectureV2: ["conv"]}


@keras.saving.register_keras_serializable(package="keras_efficientformer")
class EfficientFormerBackbone(keras_hub.models.FeaturePyramidBackbone):
    """An EfficientFormer of either family as a KerasHub backbone.

    Args:
        depths: blocks in each of the four stages, four integers >= 0.
        widths: channels of the four stages, four integers >= 1, the first even.
        num_meta3d: of the first family: how many of the last stage's blocks, counted from its end, have attention.
        num_attention: of the second family, with `mlp_ratios`: how many blocks of the third and of the fourth stage,
            counted from their ends, have attention.
        mlp_ratios: of the second family: for each stage, for each of its blocks: the FFN's hidden channels as a
            multiple of the width.
        image_shape: (h, w, channels), h and w at least 32. The attention biases belong to one size, so it has to be
            known; segmenters and detectors on this backbone need the same `image_shape`.
        drop_path_rate: rate of stochastic depth of the last block, in [0, 1); it grows linearly from 0 at the first.
        dtype: the policy of all layers; `None` means Keras' global one.
        **kwargs: `name` and `trainable`, as of `keras.Model`.

    Takes float images (batch, h, w, channels), normalised as `imagenet.preprocess_input` or
    `EfficientFormerImageConverter` does it. Gives the feature map after the final norm, float (batch, ceil(h/32),
    ceil(w/32), width of the last stage); `pyramid_outputs` has the stages' outputs as "P2" to "P5".

    Raises:
        ValueError: an argument is out of its range, or the arguments are of no family or of both.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        num_meta3d: int | None = None,
        num_attention: int | None = None,
        mlp_ratios: Sequence[Sequence[float]] | None = None,
        image_shape: tuple[int, int, int] = (DEFAULT_SIZE, DEFAULT_SIZE, 3),
        drop_path_rate: float = 0.0,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        architecture = _architecture(depths, widths, num_meta3d, num_attention, mlp_ratios)
        _check_image_shape(image_shape)
        with _global_policy(dtype):
            network = build(
                architecture, include_top=False, input_shape=tuple(image_shape), drop_path_rate=drop_path_rate
            )
            # The maps' own layers take the global policy too.
            maps = feature_pyramid(network).output
        super().__init__(inputs=network.input, outputs=network.output, dtype=dtype, **kwargs)
        self.pyramid_outputs = maps
        self.architecture = architecture
        self.image_shape = tuple(image_shape)
        self.drop_path_rate = drop_path_rate

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **asdict(self.architecture),
            "image_shape": self.image_shape,
            "drop_path_rate": self.drop_path_rate,
        }

    @classmethod
    def from_preset(
        cls, preset: str | os.PathLike[str], load_weights: bool = True, **kwargs: Any
    ) -> "EfficientFormerBackbone":
        """A backbone from a preset of KerasHub, or from a checkpoint by this package's converter.

        Args:
            preset: a folder that `save_to_preset` wrote, or its place on a hub (`kaggle://`, `hf://`,
                `modelscope://`); else what `opening.open_model` takes: "l1", "v2-s0",
                "hf://timm/efficientformer_l1.snap_dist_in1k", a checkpoint file.
            load_weights: whether the preset's weights are loaded; else they are random.
            **kwargs: other values of the constructor's arguments, e.g. `drop_path_rate`. For another `image_shape`
                the attention biases are resized.

        Raises:
            ValueError: it is a preset of another class, or the checkpoint is unfit.
            OSError: the preset is not there, or could not be downloaded.
        """
        preset, image_shape = os.fspath(preset), kwargs.pop("image_shape", None)
        if not is_keras_preset(preset):
            return cls.from_network(network_of(preset, load_weights, image_shape), load_weights, **kwargs)
        # KerasHub assigns weights as they are, so that the preset's own size comes first.
        backbone = super().from_preset(preset, load_weights, **kwargs)
        return backbone if image_shape is None else backbone.at_image_shape(image_shape)

    @classmethod
    def from_network(cls, network: keras.Model, load_weights: bool = True, **kwargs: Any) -> "EfficientFormerBackbone":
        """A backbone of the shape of an EfficientFormer of this package.

        Args:
            network: the model, with or without the top.
            load_weights: whether the backbone gets the model's weights; else they are random.
            **kwargs: other values of the constructor's arguments, e.g. `drop_path_rate`.

        Raises:
            ValueError: the model is no EfficientFormer of this package.
        """
        config = {**asdict(conversion.architecture_of(network)), "image_shape": network.input_shape[1:], **kwargs}
        if not load_weights:
            return cls(**config)
        with weights_follow():
            backbone = cls(**config)
        conversion.load_state_dict(backbone, conversion.to_state_dict(network))
        return backbone

    def at_image_shape(self, image_shape: tuple[int, int, int]) -> "EfficientFormerBackbone":
        """This backbone where it takes images of that shape, else one with its weights and resized attention biases."""
        if tuple(image_shape) == self.image_shape:
            return self
        config = {**self.get_config(), "image_shape": image_shape}
        with weights_follow():
            resized = type(self).from_config(config)
        conversion.load_state_dict(resized, conversion.to_state_dict(self))
        return resized

    def default_lora_layer_names(self) -> list[str]:
        """The layers that `enable_lora` is for, by KerasHub's rule the attentions': the first family's dense `qkv`. In
        the second all is convolutions, and those of its attentions are called as all others are."""
        return LORA_LAYERS[type(self.architecture)]

    def enable_lora(self, rank: int, target_layer_names: Sequence[str] | None = None) -> None:
        """Freezes all weights and puts LoRA on layers, as in KerasHub.

        Args:
            rank: of the factors.
            target_layer_names: names of dense layers or convolutions; None means `default_lora_layer_names`.

        Raises:
            ValueError: no layer that LoRA can be put on has such a name, so that nothing would be left to train.
        """
        names = self.default_lora_layer_names() if target_layer_names is None else list(target_layer_names)
        known = {layer.name for layer in self._flatten_layers(include_self=False) if hasattr(layer, "enable_lora")}
        if not known & set(names):
            raise ValueError(
                f"LoRA can be put on the layers {listing(sorted(known))} of {self.name}. "
                f"Received: target_layer_names={names}"
            )
        super().enable_lora(rank, names)


def _architecture(
    depths: Sequence[int],
    widths: Sequence[int],
    num_meta3d: int | None,
    num_attention: int | None,
    mlp_ratios: Sequence[Sequence[float]] | None,
) -> AnyArchitecture:
    """The shape that the arguments state."""
    if num_meta3d is not None and num_attention is None and mlp_ratios is None:
        return Architecture(tuple(depths), tuple(widths), num_meta3d)
    if num_meta3d is None and num_attention is not None and mlp_ratios is not None:
        return ArchitectureV2(tuple(depths), tuple(widths), num_attention, tuple(map(tuple, mlp_ratios)))
    raise ValueError(
        "An EfficientFormer has `num_meta3d`, an EfficientFormerV2 has `num_attention` and `mlp_ratios`: pass the one "
        f"or the others. Received: num_meta3d={num_meta3d}, num_attention={num_attention}, mlp_ratios={mlp_ratios}"
    )


def _check_image_shape(image_shape: Any) -> None:
    """Raises ValueError for KerasHub's usual (None, None, 3), and other shapes that are not known."""
    if (
        not isinstance(image_shape, Sequence)
        or len(image_shape) != 3
        or not all(isinstance(side, Integral) for side in image_shape)
    ):
        raise ValueError(
            "`image_shape` should be three integers (height, width, channels), because the attention biases belong to "
            f"one image size. Received: image_shape={image_shape}"
        )


@contextlib.contextmanager
def _global_policy(dtype: Any) -> Iterator[None]:
    """Makes `dtype` Keras' global policy for a while: the layers are made by functions that know no other."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(before if dtype is None else dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
