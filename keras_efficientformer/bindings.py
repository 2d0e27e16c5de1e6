"""The inventory of a model: every variable of an EfficientFormer, once, under the name that timm gives it.

Conversion reads this list in both directions. The layers' attributes repeat timm's names, so the list is short.
"""

from dataclasses import dataclass

import numpy as np

from keras_efficientformer.variants import Architecture

HEADS = ("head", "head_dist")
# A shorter list of names would hide the pattern, a longer one the message.
NAMES_SHOWN = 10

_LAYER_NAMES = ("stem", "stage1", "stage2", "stage3", "stage4", "norm")
_TO_KERAS = {"conv": (2, 3, 1, 0), "dense": (1, 0)}
_TO_TORCH = {"conv": (3, 2, 0, 1), "dense": (1, 0)}


@dataclass(frozen=True)
class Binding:
    """One variable of a model and its tensor.

    Attributes:
        name: timm's name of the tensor.
        kind: how the two layouts differ: "conv" (OIHW and HWIO), "dense" (OI and IO), "vector" and "table" (alike).
        variable: the `keras.Variable`.
        resolution: of a "table", an attention's bias table: (height, width) of its token grid.
    """

    name: str
    kind: str
    variable: object
    resolution: tuple[int, int] | None = None

    @property
    def torch_shape(self):
        """The tensor's shape in PyTorch's layout."""
        shape = tuple(self.variable.shape)
        return tuple(shape[axis] for axis in _TO_TORCH[self.kind]) if self.kind in _TO_TORCH else shape


def to_keras_layout(tensor, kind):
    """An array in PyTorch's layout as a view in Keras'; one of another rank than the kind's is left as it is."""
    axes = _TO_KERAS.get(kind, ())
    return tensor.transpose(axes) if len(axes) == tensor.ndim else tensor


def to_torch_layout(array, kind):
    """An array in Keras' layout as a contiguous one in PyTorch's."""
    return np.ascontiguousarray(array.transpose(_TO_TORCH[kind]) if kind in _TO_TORCH else array)


def listing(names):
    """The first names of a list, for a message, and how many more there are."""
    more = len(names) - NAMES_SHOWN
    return (", ".join(names[:NAMES_SHOWN]) or "nothing") + (f" and {more} more" if more > 0 else "")


def architecture_of(model) -> Architecture:
    """Depths, widths and number of `Meta3D` blocks of a model of this package.

    Raises:
        ValueError: the model is not an EfficientFormer of this package.
    """
    stages = [layers_of(model)[f"stage{number}"] for number in (1, 2, 3, 4)]
    return Architecture(
        tuple(stage.depth for stage in stages), tuple(stage.dim for stage in stages), stages[3].num_meta3d
    )


def layers_of(model):
    """{name: layer} of an EfficientFormer of this package.

    Raises:
        ValueError: the model is none.
    """
    layers = {layer.name: layer for layer in getattr(model, "layers", ())}
    if any(name not in layers for name in _LAYER_NAMES):
        raise ValueError(
            f"{model!r} is not an EfficientFormer of this package: expected the layers {', '.join(_LAYER_NAMES)}, "
            f"found {listing(list(layers))}. If it is a part of the model, pass that part."
        )
    return layers


def bindings(model):
    """Every variable of the model under timm's name for it; a variable that has none is an error."""
    layers = layers_of(model)
    found = []
    for index, step in enumerate((layers["stem"].step1, layers["stem"].step2), start=1):
        found += [*_conv(f"stem.conv{index}", step.conv), *_batch_norm(f"stem.norm{index}", step.norm)]
    for index in range(4):
        found += _stage(f"stages.{index}", layers[f"stage{index + 1}"])
    found += _layer_norm("norm", layers["norm"])
    for head in HEADS:
        found += _dense(head, layers[head]) if head in layers else []
    bound = {id(binding.variable) for binding in found}
    foreign = [variable.path for variable in model.weights if id(variable) not in bound and "seed" not in variable.path]
    if foreign:
        raise ValueError(
            f"The model has variables that no EfficientFormer has: {listing(foreign)}. Convert the EfficientFormer "
            "alone, before layers of your own are added to it."
        )
    return found


def _stage(name, stage):
    found = []
    if stage.downsample is not None:
        found += _conv(f"{name}.downsample.conv", stage.downsample.conv)
        found += _batch_norm(f"{name}.downsample.norm", stage.downsample.norm)
    first_meta3d = stage.depth - stage.num_meta3d
    for index, block in enumerate(stage.blocks):
        if index < first_meta3d:
            found += _meta4d(f"{name}.blocks.{index}", block)
        else:
            found += _meta3d(f"{name}.blocks.{index + 1}", block)  # timm's Flat takes an index
    return found


def _meta4d(name, block):
    return [
        *_layer_scales(name, block),
        *_conv(f"{name}.mlp.fc1", block.mlp.fc1),
        *_batch_norm(f"{name}.mlp.norm1", block.mlp.norm1),
        *_conv(f"{name}.mlp.fc2", block.mlp.fc2),
        *_batch_norm(f"{name}.mlp.norm2", block.mlp.norm2),
    ]


def _meta3d(name, block):
    attention = block.token_mixer
    table = Binding(f"{name}.token_mixer.attention_biases", "table", attention.attention_biases, attention.resolution)
    return [
        *_layer_scales(name, block),
        *_layer_norm(f"{name}.norm1", block.norm1),
        *_dense(f"{name}.token_mixer.qkv", attention.qkv),
        *_dense(f"{name}.token_mixer.proj", attention.proj),
        table,
        *_layer_norm(f"{name}.norm2", block.norm2),
        *_dense(f"{name}.mlp.fc1", block.mlp.fc1),
        *_dense(f"{name}.mlp.fc2", block.mlp.fc2),
    ]


def _layer_scales(name, block):
    return [Binding(f"{name}.ls{n}.gamma", "vector", ls.gamma) for n, ls in ((1, block.ls1), (2, block.ls2))]


def _conv(name, layer):
    return [Binding(f"{name}.weight", "conv", layer.kernel), Binding(f"{name}.bias", "vector", layer.bias)]


def _dense(name, layer):
    return [Binding(f"{name}.weight", "dense", layer.kernel), Binding(f"{name}.bias", "vector", layer.bias)]


def _layer_norm(name, layer):
    return [Binding(f"{name}.weight", "vector", layer.gamma), Binding(f"{name}.bias", "vector", layer.beta)]


def _batch_norm(name, layer):
    return [
        *_layer_norm(name, layer),
        Binding(f"{name}.running_mean", "vector", layer.moving_mean),
        Binding(f"{name}.running_var", "vector", layer.moving_variance),
    ]
