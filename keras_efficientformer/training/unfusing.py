"""The way back: a fused network as an EfficientFormer, its foldable layers being identities.

It reads the steps in the order in which `deploy.network` described them.
"""

import keras
import numpy as np

from keras_efficientformer.bindings import layers_of
from keras_efficientformer.deploy.network import ACTIVATIONS
from keras_efficientformer.deploy.recording import FusedNetwork
from keras_efficientformer.efficientformer import EfficientFormer
from keras_efficientformer.imagenet import STD
from keras_efficientformer.normalization import NORM_EPSILON


def unfuse(network: FusedNetwork) -> keras.Model:
    """An EfficientFormer that computes what the fused network does, its images normalised by `preprocess_input`.

    Args:
        network: of an EfficientFormer (`deploy.network.fuse`), its weights as they were or trained.

    Raises:
        ValueError: a pooling mixer's scales are such that no layer scale gives them.
    """
    model = _model(network)
    layers = layers_of(model)
    for variable in model.weights:
        if variable.name == "moving_variance":
            variable.assign(np.full(variable.shape, 1 - NORM_EPSILON))  # so that BatchNorm divides by 1
    convolutions, denses = _all(network, "convolution"), _all(network, "dense")
    mixers, tables = _mixers(network), _tables(network)

    _set(layers["stem"].step1.conv, next(convolutions), 255.0 * np.array(STD) if network.preprocessing else 1.0)
    for number in (1, 2, 3, 4):
        stage = layers[f"stage{number}"]
        num_meta4d = stage.depth - stage.num_meta3d
        own_mixers = [next(mixers) for _ in range(num_meta4d)]
        # By what the stored activations are to be multiplied; after the last of the stage's mixers it is 1.
        scale = np.prod([own + pooled for own, pooled in own_mixers], axis=0)
        first = layers["stem"].step2 if number == 1 else stage.downsample
        _set(first.conv, next(convolutions), out_factor=scale)
        for block, (own, pooled) in zip(stage.blocks, own_mixers, strict=False):
            scale = scale / (own + pooled)
            _set_meta4d(block, pooled / (own + pooled), scale, convolutions)
        for block in stage.blocks[num_meta4d:]:
            _set_meta3d(block, denses, tables)
    _set_end(layers, network, denses)
    return model


def _model(network):
    """An EfficientFormer of the network's shape, with fresh weights."""
    widths, depths = [], []
    for step in network.steps:
        if step.arguments.get("stride") == 2:
            widths.append(step.arguments["weights"].shape[3])
            depths.append(0)
        elif step.operation in ("pooling_mixer", "scores"):
            depths[-1] += 1
    names = {name: activation for activation, (_, name) in ACTIVATIONS.items()}
    return EfficientFormer(
        depths[1:],  # the stem has two convolutions of stride 2
        widths[1:],
        sum(step.operation == "scores" for step in network.steps),
        include_top=network.classes is not None,
        input_shape=network.input_shape,
        pooling=_pooling(network),
        classes=network.classes or 1,
        classifier_activation=names.get(network.outputs[0]),
        name=network.name,
        head="both" if len(network.outputs) == 2 else "average",
    )


def _pooling(network):
    if network.outputs != ("embedding",):
        return None
    return "max" if any(step.operation == "max" for step in network.steps) else "avg"


def _all(network, operation):
    return iter([step.arguments for step in network.steps if step.operation == operation])


def _tables(network):
    """The biases that attention adds to its scores, (heads, tokens): those of the first token with every other."""
    arrays = [arguments["y"] for arguments in _all(network, "add") if isinstance(arguments["y"], np.ndarray)]
    return iter([array[0, :, 0] for array in arrays])


def _mixers(network):
    """(factor of the input, factor of its average), float64 (channels,), of every pooling mixer."""
    mixers = [
        tuple(arguments[name].astype("float64") for name in ("own", "pooled"))
        for arguments in _all(network, "pooling_mixer")
    ]
    lowest = min(((own + pooled).min() for own, pooled in mixers), default=1.0)
    if lowest <= 0:
        raise ValueError(
            f"{network.name} has a pooling mixer whose two factors add up to {lowest:.3g}: no layer scale gives a sum "
            "that is not positive. Train with a lower learning rate."
        )
    return iter(mixers)


def _set(layer, arguments, in_factor=1.0, out_factor=1.0):
    """Sets a convolution or dense to a step's weights, times a factor for each channel in and out."""
    in_factor = np.reshape(in_factor, (-1, 1))
    layer.kernel.assign(arguments["weights"] * in_factor * out_factor)
    layer.bias.assign(arguments["bias"] * out_factor)


def _set_meta4d(block, layer_scale, scale, convolutions):
    block.ls1.gamma.assign(layer_scale)
    _set(block.mlp.fc1, next(convolutions), in_factor=1 / scale)
    _set(block.mlp.fc2, next(convolutions), out_factor=scale)
    block.ls2.gamma.assign(np.ones(block.dim))


def _set_meta3d(block, denses, tables):
    attention = block.token_mixer
    queries = np.arange(2 * attention.key_dim + attention.value_dim) < attention.key_dim
    _set(
        attention.qkv,
        next(denses),
        out_factor=np.tile(np.where(queries, attention.key_dim**0.5, 1.0), attention.num_heads),
    )
    attention.attention_biases.assign(next(tables))
    _set(attention.proj, next(denses))
    _set(block.mlp.fc1, next(denses))
    _set(block.mlp.fc2, next(denses))
    for layer_scale in (block.ls1, block.ls2):
        layer_scale.gamma.assign(np.ones(block.dim))


def _set_end(layers, network, denses):
    if network.classes is None:
        *_, arguments = _all(network, "affine")
        layers["norm"].gamma.assign(arguments["scale"])
        layers["norm"].beta.assign(arguments["offset"])
        return
    heads = [layers["head"], layers["head_dist"]]
    folded = list(denses)
    for head, arguments in zip(heads, folded * (3 - len(folded)), strict=True):
        _set(head, arguments)
