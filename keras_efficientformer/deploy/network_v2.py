"""What EfficientFormerV2 computes on a phone: the second family's part of `network`, up to the last norm.

Folded, in float64 and exactly: every BatchNorm into the convolution before it, layer scales into the convolution
before them, the attention's scale into its queries, the bias table through the first talking heads, and the query's
shortcut into its depthwise convolution. The first talking heads' bias is left out: it adds the same to all scores of a
query, which softmax does not see.
"""

import numpy as np

from keras_efficientformer.deploy.folding import array, fold_norm


def describe(b, x, layers, std, feature_maps):
    """From the image, not yet divided by `std` (3,), to the features without the last norm's scale and offset."""
    x = _stem(b.at("stem"), x, layers["stem"], std)
    for number in (1, 2, 3, 4):
        stage = layers[f"stage{number}"]
        inside = b.at(stage.name)
        if stage.downsample is not None:
            x = _downsample(inside.at("downsample"), x, stage.downsample)
        for index, block in enumerate(stage.blocks):
            x = _block(inside.at(f"blocks.{index}"), x, block)
        if feature_maps:
            b.output(x, stage.name)
    return x


def _stem(b, x, stem, std):
    weights, bias = fold_norm(stem.conv1.conv, stem.conv1.bn)
    weights = weights / np.broadcast_to(std, weights.shape[2])[:, None]
    first, second = b.at("conv1"), b.at("conv2")
    x = first.gelu(first.convolution(x, weights, bias, stride=2))
    return second.gelu(_conv_norm(second, x, stem.conv2))


def _conv_norm(b, x, layer, factor=1.0):
    """A convolution with its BatchNorm, times a factor or one for each channel."""
    weights, bias = fold_norm(layer.conv, layer.bn)
    operation = b.depthwise_convolution if layer.depthwise else b.convolution
    return operation(x, weights * factor, bias * factor, stride=layer.strides)


def _downsample(b, x, downsample):
    embedded = _conv_norm(b.at("conv"), x, downsample.conv)
    if downsample.attn is None:
        return embedded
    attention, inside = downsample.attn, b.at("attn")
    weights = array(attention.q.local.kernel)[..., 0]
    weights[1, 1] += 1.0  # the shortcut: every second pixel itself
    query = inside.at("q.local").depthwise_convolution(x, weights, array(attention.q.local.bias), stride=2)
    query = _conv_norm(inside.at("q.proj"), query, attention.q.proj, attention.key_dim**-0.5)
    query = inside.to_heads(inside.tokens(query), attention.num_heads)
    key = inside.to_heads(inside.tokens(_conv_norm(inside.at("k"), x, attention.k)), attention.num_heads)
    probabilities = inside.softmax(inside.add(inside.scores(query, key), _bias_table(attention)[None]))
    shape = attention.compute_output_shape((None, *attention.grid, 0))
    mixed = _mixed_values(inside, x, probabilities, attention, shape)
    return b.add(_conv_norm(inside.at("proj"), inside.at("act").gelu(mixed), attention.proj), embedded)


def _block(b, x, block):
    if block.token_mixer is not None:
        x = b.add(x, _attention(b.at("token_mixer"), x, block.token_mixer, array(block.ls1.gamma)))
    fc1, mid, fc2 = b.at("mlp.fc1"), b.at("mlp.mid"), b.at("mlp.fc2")
    hidden = fc1.gelu(_conv_norm(fc1, x, block.mlp.fc1))
    hidden = mid.gelu(_conv_norm(mid, hidden, block.mlp.mid))
    return b.add(x, _conv_norm(fc2, hidden, block.mlp.fc2, array(block.ls2.gamma)))


def _attention(b, x, attention, layer_scale):
    if attention.stride_conv is not None:
        x = _conv_norm(b.at("stride_conv"), x, attention.stride_conv)
    queries_and_keys = b.tokens(_queries_and_keys(b, x, attention))
    query, key = b.split_heads(queries_and_keys, attention.num_heads, (attention.key_dim, attention.key_dim))
    before, after = array(attention.talking_head1.kernel)[0, 0], array(attention.talking_head2.kernel)[0, 0]
    scores = b.at("talking_head1").talking_heads(b.scores(query, key), before, np.zeros(attention.num_heads))
    bias_table = np.einsum("hqk,hg->gqk", _bias_table(attention), before)
    probabilities = b.softmax(b.add(scores, bias_table[None]))
    probabilities = b.at("talking_head2").talking_heads(probabilities, after, array(attention.talking_head2.bias))
    mixed = _mixed_values(b, x, probabilities, attention, (None, *attention.grid, 0))
    if attention.stride_conv is not None:
        mixed = b.resize(mixed, *attention.resolution)
    return _conv_norm(b.at("proj"), b.at("act").gelu(mixed), attention.proj, layer_scale)


def _queries_and_keys(b, x, attention):
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


def _bias_table(attention):
    """(heads, queries, keys)."""
    return array(attention.attention_biases)[:, attention._positions]


def _mixed_values(b, x, probabilities, attention, shape):
    """The values under attention weights plus those of their neighbourhood, a feature map of `shape`."""
    value = _conv_norm(b.at("v"), x, attention.v)
    local = _conv_norm(b.at("v_local"), value, attention.v_local)
    value = b.to_heads(b.tokens(value), attention.num_heads)
    mixed = b.merge_heads(b.weighted_values(probabilities, value))
    return b.add(b.feature_map(mixed, *shape[1:3]), local)
