"""Makes and compiles a run's networks from a pretrained one: the trained and the saved one. Room: training."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_efficientformer import conversion
from keras_efficientformer.layers.image_normalization import normalization_arguments
from keras_efficientformer.layers.initialization import weights_follow
from keras_efficientformer.layers.names import BODY_LAYERS, HEADS
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.models.opening import build
from keras_efficientformer.segmentation.decoder import (
    LOGITS_LAYER,
    backbone_of,
    decoder_arguments,
    decoder_weights,
    is_segmenter,
    set_decoder_weights,
)
from keras_efficientformer.segmentation.semantic_fpn import SemanticFPN
from keras_efficientformer.training.config import FineTuneConfig
from keras_efficientformer.variants import AnyArchitecture

# These are the ends of the names of biases, of the norms' and layer scales' factors and offsets, and of the attention
# biases. TensorFlow appends ":0" to them.
NOT_DECAYED = r"(bias|biases|gamma|beta)(:\d+)?$"

# `Devices.share`.
Share = Callable[[Any], Any]


@dataclass(frozen=True)
class Network:
    """A pretrained network as data: what new ones are made from.

    Attributes:
        architecture: its shape.
        size: (height, width) of the images that the new ones take.
        channels: of those images.
        state_dict: its weights under timm's names; heads only if they are to be kept.
        classes: number of classes of its heads, or None where they are not kept.
        head: "average" or "single": the heads of the new ones.
        name: its name.
        normalization: its `normalization_arguments`.
        labels: the names of its heads' classes, or None where they are not kept or not known.
    """

    architecture: AnyArchitecture
    size: tuple[int, int]
    channels: int
    state_dict: dict[str, np.ndarray]
    classes: int | None
    head: str
    name: str
    normalization: dict[str, Any]
    labels: tuple[str, ...] | None

    @classmethod
    def of(cls, model: keras.Model, config: FineTuneConfig) -> "Network":
        """The network of a model; one with two heads keeps both where the config keeps heads.

        Raises:
            ValueError: the config keeps heads, and the model has none.
        """
        state_dict = conversion.to_state_dict(model)
        size = model.inputs[0].shape[1:3] if config.size is None else config.size
        size = (size, size) if isinstance(size, int) else tuple(size)
        heads = [head for head in HEADS if f"{head}.weight" in state_dict] if config.keep_head else []
        if config.keep_head and not heads:
            raise ValueError("`keep_head` needs a model with a classifier. Received: one without the top.")
        kept = {n: t for n, t in state_dict.items() if n.partition(".")[0] not in set(HEADS) - set(heads)}
        classes = len(state_dict["head.bias"]) if heads else None
        head = "average" if len(heads) == 2 else "single"
        return cls(
            conversion.architecture_of(model),
            size,
            int(model.inputs[0].shape[3]),
            kept,
            classes,
            head,
            model.name,
            normalization_arguments(model),
            labels_of(model) if heads else None,
        )

    def build(
        self, labels: tuple[str, ...], head: str, activation: str | None = None, drop_path: float = 0.0
    ) -> keras.Model:
        """A new model of these classes with these weights, and a fresh classifier where none is kept."""
        model = self._build(drop_path, classes=len(labels), classifier_activation=activation, head=head, labels=labels)
        fresh = conversion.to_state_dict(model)
        heads = {name: tensor for name, tensor in fresh.items() if name.partition(".")[0] in HEADS}
        conversion.load_state_dict(model, heads | self.state_dict)
        return model

    def build_backbone(self, drop_path: float) -> keras.Model:
        """A new model of these weights without the top."""
        model = self._build(drop_path, include_top=False)
        conversion.load_state_dict(model, self.state_dict)
        return model

    def _build(self, drop_path: float, **top: Any) -> keras.Model:
        shape = (*self.size, self.channels)
        with weights_follow():
            return build(
                self.architecture,
                input_shape=shape,
                name=self.name,
                drop_path_rate=drop_path,
                **self.normalization,
                **top,
            )


@dataclass(frozen=True)
class SegmentationNetwork:
    """What Semantic FPNs are made from: a pretrained backbone, and, where it was one already, its decoder.

    Attributes:
        backbone: the network that they stand on.
        decoder: {layer: weights} of a Semantic FPN, those of the classes only if they are to be kept; or none.
        arguments: of `SemanticFPN`, with which the decoder was made.
        classes, labels: of the kept classes, or None where they are not kept or not known.
        head: as of `Network`.
    """

    backbone: Network
    decoder: dict[str, list[np.ndarray]]
    arguments: dict[str, Any]
    classes: int | None
    labels: tuple[str, ...] | None
    head: str = "single"

    @classmethod
    def of(cls, model: keras.Model, config: FineTuneConfig) -> "SegmentationNetwork":
        """What new ones are made from: a Semantic FPN, or an EfficientFormer with or without its top.

        Raises:
            ValueError: the config keeps the classes of a model that gives no masks.
        """
        alone = dataclasses.replace(config, keep_head=False)
        if not is_segmenter(model):
            if config.keep_head:
                raise ValueError("`keep_head` with masks needs a model that gives masks. Received: one that does not.")
            return cls(Network.of(model, alone), {}, {}, None, None)
        arguments, weights = decoder_arguments(model), decoder_weights(model)
        classes, labels = (weights[LOGITS_LAYER][0].shape[-1], labels_of(model)) if config.keep_head else (None, None)
        kept = {name: values for name, values in weights.items() if config.keep_head or name != LOGITS_LAYER}
        return cls(Network.of(backbone_of(model), alone), kept, arguments, classes, labels)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images that the new ones take."""
        return self.backbone.size

    def build(
        self, labels: tuple[str, ...], head: str, activation: str | None = None, drop_path: float = 0.0
    ) -> keras.Model:
        """A new model of these classes with these weights, fresh where none are kept; of logits, for each pixel."""
        arguments = self.arguments if activation else {**self.arguments, "output_stride": 1}
        model = SemanticFPN(
            self.backbone.build_backbone(drop_path), len(labels), **arguments, activation=activation, labels=labels
        )
        set_decoder_weights(model, self.decoder)
        return model


AnyNetwork = Network | SegmentationNetwork


def set_trainable(model: keras.Model, everything: bool) -> None:
    """Lets all layers learn, or the heads alone; frozen BatchNorms use their running statistics."""
    for layer in model.layers:
        layer.trainable = everything or layer.name not in BODY_LAYERS


def compile_student(
    model: keras.Model,
    config: FineTuneConfig,
    warmup: int,
    steps: int | None,
    distilled: bool,
    masks: bool = False,
    share: Share | None = None,
) -> None:
    """Gives a model of logits its loss and a new optimizer, built.

    Args:
        model: one output, or, if distilled, two.
        config: of the run.
        warmup: steps of the warm-up.
        steps: of the whole schedule; None means a constant learning rate.
        distilled: whether the second output learns a teacher's choices.
        masks: whether it gives masks.
        share: as of `PixelCrossentropy`.
    """
    optimizer = keras.optimizers.AdamW(
        _learning_rate(config, warmup, steps),
        weight_decay=config.weight_decay,
        global_clipnorm=config.clip_norm,
        use_ema=config.ema > 0,
        ema_momentum=config.ema,
    )
    optimizer.exclude_from_weight_decay(var_names=[NOT_DECAYED])
    kind = keras.losses.BinaryCrossentropy if config.multi_label else keras.losses.CategoricalCrossentropy
    loss: Any = kind(from_logits=True, label_smoothing=config.label_smoothing)
    if distilled:
        choices = keras.losses.CategoricalCrossentropy(from_logits=True)
        weights = [1 - config.distillation, config.distillation]
        model.compile(optimizer, [loss, choices], loss_weights=weights, metrics=[["accuracy"], []])
    elif masks:
        model.compile(optimizer, PixelCrossentropy(config.label_smoothing, share), metrics=[pixel_accuracy])
    else:
        model.compile(optimizer, loss, metrics=[label_accuracy if config.multi_label else "accuracy"])
    model.optimizer.build(model.trainable_variables)


def label_accuracy(labels: Any, logits: Any) -> Any:
    """The share of right answers of each image (batch,), of all labels alike; mixed labels count as the nearer one."""
    right = keras.ops.equal(keras.ops.greater(labels, 0.5), keras.ops.greater(logits, 0))
    return keras.ops.mean(keras.ops.cast(right, "float32"), axis=-1)


class PixelCrossentropy(keras.losses.Loss):
    """The mean cross-entropy of logits (batch, height, width, classes), of pixels in proportion to their weights.

    Args:
        label_smoothing: of the labels, in [0, 1).
        share: `Devices.share` of what trains, so that pixels count alike on all devices, however many of them have a
            class on each; None for one device.
    """

    def __init__(self, label_smoothing: float, share: Share | None = None) -> None:
        super().__init__(reduction="mean_with_sample_weight")
        self.label_smoothing, self._share = label_smoothing, share

    def __call__(self, masks: Any, logits: Any, sample_weight: Any = None) -> Any:
        loss = super().__call__(masks, logits, sample_weight)
        if self._share is None or sample_weight is None:
            return loss
        return loss * self._share(keras.ops.sum(keras.ops.cast(sample_weight, "float32")))

    def call(self, masks: Any, logits: Any) -> Any:
        # Keras' cross-entropy of class numbers has no label smoothing. Pixels without a class have no weight.
        classes = keras.ops.maximum(keras.ops.cast(masks, "int32"), 0)
        rows = keras.ops.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
        return keras.losses.categorical_crossentropy(
            rows, logits, from_logits=True, label_smoothing=self.label_smoothing
        )


def pixel_weights(masks: np.ndarray, class_weights: np.ndarray | None) -> np.ndarray:
    """float32 weights of masks' pixels: 0 where they have no class, else 1 or the class' own."""
    judged = (masks >= 0).astype("float32")
    return judged if class_weights is None else judged * class_weights[np.maximum(masks, 0)]


def pixel_accuracy(masks: Any, logits: Any) -> Any:
    """The share of right answers among the pixels that have a class, of each image (batch,)."""
    judged = keras.ops.cast(keras.ops.greater_equal(masks, 0), "float32")
    found = keras.ops.cast(keras.ops.argmax(logits, axis=-1), masks.dtype)
    right = keras.ops.cast(keras.ops.equal(found, masks), "float32")
    return keras.ops.divide_no_nan(keras.ops.sum(right * judged, axis=(1, 2)), keras.ops.sum(judged, axis=(1, 2)))


def _learning_rate(
    config: FineTuneConfig, warmup: int, steps: int | None
) -> "float | keras.optimizers.schedules.LearningRateSchedule":
    """The learning rate of `compile_student`: a constant, or half a cosine after a linear warm-up."""
    if steps is None:
        return config.learning_rate
    alpha = config.final_learning_rate / config.learning_rate
    decay = max(1, steps - warmup)
    if not warmup:
        return keras.optimizers.schedules.CosineDecay(config.learning_rate, decay, alpha=alpha)
    return keras.optimizers.schedules.CosineDecay(
        0.0, decay, alpha=alpha, warmup_target=config.learning_rate, warmup_steps=warmup
    )


def averaged_weights(model: keras.Model) -> list[np.ndarray]:
    """A compiled model's weights, those that learn as the optimizer's moving average, if it has one."""
    learning = [keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables]
    # In mixed_float16 all steps so far may have been left out, and there is nothing to average.
    if int(keras.ops.convert_to_numpy(model.optimizer.iterations)):
        model.optimizer.finalize_variable_values(model.trainable_variables)
    weights = model.get_weights()
    for variable, value in zip(model.trainable_variables, learning, strict=True):
        variable.assign(value)
    return weights
