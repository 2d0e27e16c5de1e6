"""Base classes, helpers, LayerScale and StochasticDepth, which the layers of both families share. Room: layers.

Every layer is built explicitly, those without weights too: where one is not, Keras' first `predict` on JAX computes
the network operation by operation.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from numbers import Integral
from typing import Any, TypeVar

import keras
import numpy as np
from keras import ops

from keras_efficientformer.layers.initialization import GlorotUniform, TruncatedNormal

# A tensor's shape with the batch axis; None stands for a size that is not known.
Shape = tuple[int | None, ...]
Side = TypeVar("Side", int, int | None)

# Every inner layer gets this explicitly, because Keras' global default may change after a model was made.
CHANNELS_LAST = "channels_last"

register = keras.saving.register_keras_serializable(package="keras_efficientformer")


def linear(
    units: int, name: str, dtype: Any = None, initializer: Callable[..., Any] = TruncatedNormal
) -> keras.layers.Dense:
    """A dense layer as the reference initialises it: truncated normal of 0.02, zero biases."""
    # Each layer has its own initializer, because Keras draws the same numbers again from a shared one.
    return keras.layers.Dense(units, kernel_initializer=initializer(stddev=0.02), name=name, dtype=dtype)


def conv2d(*args: Any, **kwargs: Any) -> keras.layers.Conv2D:
    """A `keras.layers.Conv2D` of feature maps with their channels last."""
    return keras.layers.Conv2D(*args, kernel_initializer=GlorotUniform(), data_format=CHANNELS_LAST, **kwargs)


def depthwise_conv2d(*args: Any, **kwargs: Any) -> keras.layers.DepthwiseConv2D:
    """A `keras.layers.DepthwiseConv2D` of feature maps with their channels last."""
    initializer = GlorotUniform()
    return keras.layers.DepthwiseConv2D(*args, depthwise_initializer=initializer, data_format=CHANNELS_LAST, **kwargs)


def require_channels(layer: keras.layers.Layer, input_shape: Shape, rank: int, channels: int) -> None:
    """Raises ValueError for an input that is not of this rank, 3 or 4, or does not end in this many channels."""
    if len(input_shape) != rank or input_shape[-1] != channels:
        kind = "feature map (batch, height, width, channels)" if rank == 4 else "tokens (batch, tokens, channels)"
        raise ValueError(
            f"{type(layer).__name__} {layer.name!r} takes a {kind} with {channels} channels, channels last. "
            f"Received: input_shape={tuple(input_shape)}"
        )


def require_positive(**arguments: float) -> None:
    """Raises ValueError for the first argument, given by its name, that is not at least 1."""
    for name, value in arguments.items():
        if not value >= 1:
            raise ValueError(f"`{name}` should be at least 1. Received: {name}={value}")


def pair(resolution: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a resolution that may be given as one integer for both; a ValueError for what is neither."""
    sides: Any = (resolution, resolution) if isinstance(resolution, Integral) else resolution
    if np.shape(sides) != (2,) or not all(isinstance(side, Integral) for side in sides):
        raise ValueError(
            f"`resolution` should be an integer or two of them, (height, width). Received: resolution={resolution!r}"
        )
    return int(sides[0]), int(sides[1])


def halved(size: Side) -> Side:
    """Side of a feature map after a padded 3x3 stride-2 convolution: ceil(size / 2), and None where it is not known."""
    return None if size is None else (size + 1) // 2


def relative_positions(resolution: int | Sequence[int]) -> np.ndarray:
    """Column of the bias table for each pair of tokens: |dy| * width + |dx| (reference: `attention_bias_idxs`).

    Args:
        resolution: (height, width) of the token grid, or one integer for both, >= 1.

    Returns:
        int64 array (height*width, height*width), symmetric, values in [0, height*width).
    """
    height, width = pair(resolution)
    positions = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).reshape(2, -1)
    offsets = np.abs(positions[:, :, None] - positions[:, None, :])
    return offsets[0] * width + offsets[1]


class Composite(keras.layers.Layer):
    """Base class of layers with layers inside: which of those are frozen goes into copies and files too.

    Keras asks the outermost layer alone whether it is trained, and does not tell the layers that it is made of.

    Args:
        frozen: paths, below this layer's, of the layers inside that are not trained; of a layer that is itself not
            trained, none means all.
    """

    def __init__(self, *, frozen: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._frozen = tuple(frozen)

    def _post_build(self) -> None:
        super()._post_build()
        if self.trainable and not self._frozen:
            return
        # A layer comes before those inside it, to which setting it is passed on.
        for path, layer in self._inner_layers().items():
            layer.trainable = bool(self._frozen) and path not in self._frozen

    def _inner_layers(self) -> dict[str, keras.layers.Layer]:
        """{path below this layer's: layer}, outer ones first."""
        inner = self._flatten_layers(include_self=False)
        return {layer.path.removeprefix(f"{self.path}/"): layer for layer in inner}

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        inner = self._inner_layers() if self.built else {}
        frozen = [path for path, layer in inner.items() if not layer.trainable]
        # Files say nothing of it where nothing has to be said.
        is_told = frozen and (self.trainable or len(frozen) < len(inner))
        return {**config, "frozen": frozen} if is_told else config


class SameShape(Composite):
    """Base class of layers whose output has the shape of their input."""

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)


@register
class LayerScale(SameShape):
    """Learned factor per channel on a residual branch (CaiT, arXiv 2103.17239, section 2; paper, equations 4 and 5).

    Args:
        init_value: every factor's start, a float (reference: 1e-5).

    Call: float tensor (..., channels) -> the same shape.
    """

    def __init__(self, init_value: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.init_value = init_value

    def build(self, input_shape: Shape) -> None:
        initializer = keras.initializers.Constant(self.init_value)
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer=initializer, name="gamma")

    def call(self, x: Any) -> Any:
        return x * self.gamma

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "init_value": self.init_value}


@register
class StochasticDepth(SameShape):
    """Drops a residual branch for whole samples while training, and scales the kept ones by 1 / (1 - rate).

    Source: Deep Networks with Stochastic Depth, arXiv 1603.09382; timm's `DropPath`.

    Args:
        rate: probability in [0, 1) that a sample's branch is dropped; 0 makes the layer the identity.
        seed: int or None, the seed of the layer's own generator.

    Call: float tensor (batch, ...) -> the same shape.

    Raises:
        ValueError: `rate` is outside [0, 1).
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` should be in the range [0, 1). Received: rate={rate}")
        self.rate = float(rate)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed) if rate else None

    def call(self, x: Any, training: bool = False) -> Any:
        if not training or not self.rate:
            return x
        per_sample = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        return keras.random.dropout(x, self.rate, noise_shape=per_sample, seed=self.seed_generator)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


class BiasedAttention(Composite):
    """Base class of all attentions: their sizes, and a table of biases that files hold with its resolution.

    Attributes:
        grid: (height, width) of the keys' tokens, to which the table belongs.
        positions: for each pair of a query and a key, the table's column: integer array (queries, keys).
    """

    positions: np.ndarray

    def __init__(
        self,
        dim: int,
        key_dim: int,
        num_heads: int,
        attn_ratio: float,
        resolution: int | Sequence[int],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.resolution = pair(resolution)
        require_positive(dim=dim, key_dim=key_dim, num_heads=num_heads, resolution=min(self.resolution))
        self.dim = dim
        self.key_dim = key_dim
        self.num_heads = num_heads
        self.attn_ratio = attn_ratio
        self.value_dim = int(attn_ratio * key_dim)
        require_positive(value_dim=self.value_dim)
        self.grid = self.resolution

    def _add_table(self, input_shape: Shape) -> None:
        """Adds the variable `attention_biases`, (num_heads, height * width) of `grid`, for inputs of this shape."""
        # Those of other sizes would often go through: one token's bias is added to all, and tokens become images.
        self.input_spec = keras.layers.InputSpec(shape=(None, *input_shape[1:]))
        shape = (self.num_heads, self.grid[0] * self.grid[1])
        self.attention_biases = self.add_weight(shape=shape, initializer="zeros", name="attention_biases")

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Saves the table with its resolution."""
        super().save_own_variables(store)
        # The table alone does not tell a grid of 4x9 tokens from one of 6x6.
        store["resolution"] = np.array(self.grid)

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Loads a table of the same resolution; where the two differ, a ValueError says both."""
        grid = tuple(int(side) for side in store["resolution"])
        if grid != self.grid:
            raise ValueError(
                f"{type(self).__name__} {self.name!r} has a resolution of {self.grid} and the file's is {grid}. "
                "To resize its biases, pass the file as `weights` when the model is made."
            )
        self.attention_biases.assign(store["0"])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dim": self.dim,
            "key_dim": self.key_dim,
            "num_heads": self.num_heads,
            "attn_ratio": self.attn_ratio,
            "resolution": self.resolution,
        }
