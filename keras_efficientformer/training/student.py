"""Makes and compiles a run's networks from a pretrained one: the trained and the saved one. Room: training."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_efficientformer import conversion
from keras_efficientformer.layers.image_normalization import normalization_arguments
from keras_efficientformer.layers.initialization import weights_follow
from keras_efficientformer.layers.names import HEADS
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.models.opening import build
from keras_efficientformer.training.config import FineTuneConfig
from keras_efficientformer.variants import AnyArchitecture

# These are the ends of the names of biases, of the norms' and layer scales' factors and offsets, and of the attention
# biases. TensorFlow appends ":0" to them.
NOT_DECAYED = r"(bias|biases|gamma|beta)(:\d+)?$"


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
        with weights_follow():
            model = build(
                self.architecture,
                input_shape=(*self.size, self.channels),
                classes=len(labels),
                classifier_activation=activation,
                name=self.name,
                head=head,
                drop_path_rate=drop_path,
                labels=labels,
                **self.normalization,
            )
        fresh = conversion.to_state_dict(model)
        heads = {name: tensor for name, tensor in fresh.items() if name.partition(".")[0] in HEADS}
        conversion.load_state_dict(model, heads | self.state_dict)
        return model


def set_trainable(model: keras.Model, everything: bool) -> None:
    """Lets all layers learn, or the heads alone; frozen BatchNorms use their running statistics."""
    for layer in model.layers:
        layer.trainable = everything or layer.name in HEADS


def compile_student(
    model: keras.Model, config: FineTuneConfig, warmup: int, steps: int | None, distilled: bool
) -> None:
    """Gives a model of logits its loss and a new optimizer, built.

    Args:
        model: one output, or, if distilled, two.
        config: of the run.
        warmup: steps of the warm-up.
        steps: of the whole schedule; None means a constant learning rate.
        distilled: whether the second output learns a teacher's choices.
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
    else:
        model.compile(optimizer, loss, metrics=[label_accuracy if config.multi_label else "accuracy"])
    model.optimizer.build(model.trainable_variables)


def label_accuracy(labels: Any, logits: Any) -> Any:
    """The share of right answers of each image (batch,), of all labels alike; mixed labels count as the nearer one."""
    right = keras.ops.equal(keras.ops.greater(labels, 0.5), keras.ops.greater(logits, 0))
    return keras.ops.mean(keras.ops.cast(right, "float32"), axis=-1)


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
    model.optimizer.finalize_variable_values(model.trainable_variables)
    weights = model.get_weights()
    for variable, value in zip(model.trainable_variables, learning, strict=True):
        variable.assign(value)
    return weights
