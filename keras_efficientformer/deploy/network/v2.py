"""Describes a folded EfficientFormerV2 in `Builder`'s operations, up to the last norm. Room: deploy/network.

Folded, in float64 and exactly: every BatchNorm into the convolution before it, layer scales into the convolution
before them, the attention's scale into its queries, the bias table through the first talking heads, and the query's
shortcut into its depthwise convolution. The first talking heads' bias is left out: it adds the same to all scores of a
query, which softmax does not see.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_efficientformer.deploy.network.folding import array, fold_norm
from keras_efficientformer.deploy.network.recording import Recorder, Value
from keras_efficientformer.layers.names import STAGES, STEM


def describe(
    b: Recorder,
    x: Value,
    layers: dict[str, Any],
    std: np.ndarray | float,
    keep_stage: Callable[[str, Value], Any] | None = None,
) -> Value:
    """Records the network from the image to the features.

    Args:
        b: what records it.
        x: the image, not yet divided by `std`.
        layers: the Keras model's top-level layers by their names; what follows some stage may be missing.
        std: (channels,) or one for all, in the image's units; the first convolution divides by it.
        keep_stage: told the name and the output, a feature map, of every stage when it is recorded; None leaves them.

    Returns:
        The features, to which the last norm's scale and offset have not been applied; without it, those of the stage.
    """
    x = _stem(b.at(STEM), x, layers[STEM], std)
    for name in filter(layers.get, STAGES):
        stage, inside = layers[name], b.at(name)
        if stage.downsample is not None:
            x = _downsample(inside.at("downsample"), x, stage.downsample)
        for index, block in enumerate(stage.blocks):
            x = _block(inside.at(f"blocks.{index}"), x, block)
        if keep_stage is not None:
            keep_stage(name, x)
    return x


def _stem(b: Recorder, x: Value, stem: Any, std: np.ndarray | float) -> Value:
    weights, bias = fold_norm(stem.conv1.conv, stem.conv1.bn)
    weights = weights / np.broadcast_to(std, weights.shape[2])[:, None]
    first, second = b.at("conv1"), b.at("conv2")
    x = first.gelu(first.convolution(x, weights, bias, stride=2))
    return second.gelu(_conv_norm(second, x, stem.conv2))


def _conv_norm(b: Recorder, x: Value, layer: Any, factor: np.ndarray | float = 1.0) -> Value:
    """A convolution with its BatchNorm, times a factor or one for each channel."""
    weights, bias = fold_norm(layer.conv, layer.bn)
    operation = b.depthwise_convolution if layer.depthwise else b.convolution
    return operation(x, weights * factor, bias * factor, stride=layer.strides)


def _downsample(b: Recorder, x: Value, downsample: Any) -> Value:
    embedded = _conv_norm(b.at("conv"), x, downsample.conv)
    if downsample.attn is None:
        return embedded
    attention, inside = downsample.attn, b.at("attn")
    weights = array(attention.q.local.kernel)[..., 0]
    weights[1, 1] += 1.0  # this is the shortcut: every second pixel itself
    query = inside.at("q.local").depthwise_convolution(x, weights, array(attention.q.local.bias), stride=2)
    query = _conv_norm(inside.at("q.proj"), query, attention.q.proj, attention.key_dim**-0.5)
    query = inside.to_heads(inside.tokens(query), attention.num_heads)
    key = inside.to_heads(inside.tokens(_conv_norm(inside.at("k"), x, attention.k)), attention.num_heads)
    probabilities = inside.softmax(inside.add(inside.scores(query, key), _bias_table(attention)[None]))
    _, height, width, _ = attention.compute_output_shape((None, *attention.grid, 0))
    mixed = _mixed_values(inside, x, probabilities, attention, (height, width))
    return b.add(_conv_norm(inside.at("proj"), inside.at("act").gelu(mixed), attention.proj), embedded)


def _block(b: Recorder, x: Value, block: Any) -> Value:
    if block.token_mixer is not None:
        x = b.add(x, _attention(b.at("token_mixer"), x, block.token_mixer, array(block.ls1.gamma)))
    fc1, mid, fc2 = b.at("mlp.fc1"), b.at("mlp.mid"), b.at("mlp.fc2")
    hidden = fc1.gelu(_conv_norm(fc1, x, block.mlp.fc1))
    hidden = mid.gelu(_conv_norm(mid, hidden, block.mlp.mid))
    return b.add(x, _conv_norm(fc2, hidden, block.mlp.fc2, array(block.ls2.gamma)))


def _attention(b: Recorder, x: Value, attention: Any, layer_scale: np.ndarray) -> Value:
    if attention.stride_conv is not None:
        x = _conv_norm(b.at("stride_conv"), x, attention.stride_conv)
    queries_and_keys = b.tokens(_queries_and_keys(b, x, attention))
    query, key = b.split_heads(queries_and_keys, attention.num_heads, (attention.key_dim, attention.key_dim))
    before, after = array(attention.talking_head1.kernel)[0, 0], array(attention.talking_head2.kernel)[0, 0]
    scores = b.at("talking_head1").talking_heads(b.scores(query, key), before, np.zeros(attention.num_heads))
    bias_table = np.einsum("hqk,hg->gqk", _bias_table(attention), before)
    probabilities = b.softmax(b.add(scores, bias_table[None]))
    probabilities = b.at("talking_head2").talking_heads(probabilities, after, array(attention.talking_head2.bias))
    mixed = _mixed_values(b, x, probabilities, attention, attention.grid)
    if attention.stride_conv is not None:
        mixed = b.resize(mixed, *attention.resolution)
    return _conv_norm(b.at("proj"), b.at("act").gelu(mixed), attention.proj, layer_scale)


def _queries_and_keys(b: Recorder, x: Value, attention: Any) -> Value:
    """Both in one convolution, head by head, each [q k]."""
    scale = attention.key_dim**-0.5
    parts = [fold_norm(attention.q.conv, attention.q.bn), fold_norm(attention.k.conv, attention.k.bn)]
    weights, bias = (
        np.concatenate(
            [part.reshape(*part.shape[:-1], attention.num_heads, -1) for part in (query * scale, key)], axis=-1
        ).reshape(*query.shape[:-1], -1)
        for query, key in zip(*parts, strict=True)
    )
    return b.at("qk").convolution(x, weights, bias)


def _bias_table(attention: Any) -> np.ndarray:
    """The attention's biases, (heads, queries, keys)."""
    return array(attention.attention_biases)[:, attention.positions]


def _mixed_values(b: Recorder, x: Value, probabilities: Value, attention: Any, size: tuple[int, int]) -> Value:
    """The values under attention weights plus those around them, a feature map of `size` (height, width)."""
    value = _conv_norm(b.at("v"), x, attention.v)
    local = _conv_norm(b.at("v_local"), value, attention.v_local)
    value = b.to_heads(b.tokens(value), attention.num_heads)
    mixed = b.merge_heads(b.weighted_values(probabilities, value))
    return b.add(b.feature_map(mixed, *size), local)
