"""Describes a folded EfficientFormer in `Builder`'s operations, up to the last norm. Room: deploy/network.

Folded, in float64 and exactly: BatchNorm into the convolution before it, layer scales into the convolution or dense
before them, LayerNorm's scale and offset into the dense after it, the attention's scale into its queries. The pooling
mixer's factor for each channel is deferred (`_deferred_scales`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_efficientformer.deploy.network.folding import array, dense, fold_into, fold_norm
from keras_efficientformer.deploy.network.recording import Recorder, Value
from keras_efficientformer.layers.common import relative_positions
from keras_efficientformer.layers.names import NORM, STAGES, STEM
from keras_efficientformer.layers.v1 import Meta3D

# Deferring the pooling mixer is exact, but multiplies activations: outside these bounds a stage computes it plainly.
MIN_KEPT = 0.1
MAX_DEFERRED = 64.0


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
    names = [name for name in STAGES if name in layers]
    scales = [_deferred_scales(layers[name]) for name in names]
    x = _stem(b.at(STEM), x, layers[STEM], std, out_scale=scales[0][0])
    in_scale = scales[0][0]
    for name, stage_scales in zip(names, scales, strict=True):
        stage = layers[name]
        x = _stage(b.at(name), x, stage, in_scale, stage_scales)
        in_scale = stage_scales[-1]
        if keep_stage is not None:
            keep_stage(name, _feature_map(b.at(name), x, stage, in_scale))
    return b.at(NORM).layer_norm(x, layers[NORM].epsilon) if NORM in layers else x


def _stem(b: Recorder, x: Value, stem: Any, std: np.ndarray | float, out_scale: np.ndarray) -> Value:
    weights, bias = fold_norm(stem.step1.conv, stem.step1.norm)
    weights = weights / np.broadcast_to(std, weights.shape[2])[:, None]
    first, second = b.at("step1"), b.at("step2")
    x = first.relu(first.convolution(x, weights, bias, stride=2))
    weights, bias = fold_norm(stem.step2.conv, stem.step2.norm)
    # Scales are positive, so they pass through the ReLU.
    return second.relu(second.convolution(x, weights / out_scale, bias / out_scale, stride=2))


def _stage(b: Recorder, x: Value, stage: Any, in_scale: np.ndarray, scales: np.ndarray) -> Value:
    if stage.downsample is not None:
        weights, bias = fold_norm(stage.downsample.conv, stage.downsample.norm)
        x = b.at("downsample").convolution(x, weights * in_scale[:, None] / scales[0], bias / scales[0], stride=2)
    num_meta4d = stage.depth - stage.num_meta3d
    for index, block in enumerate(stage.blocks[:num_meta4d]):
        x = _meta4d(b.at(f"blocks.{index}"), x, block, scales[index], scales[index + 1])
    if stage.num_meta3d:
        x = b.tokens(x)
        for index, block in enumerate(stage.blocks[num_meta4d:], num_meta4d):
            x = _meta3d(b.at(f"blocks.{index}"), x, block)
    return x


def _feature_map(b: Recorder, x: Value, stage: Any, scale: np.ndarray) -> Value:
    """The true output of a stage whose activations are stored divided by `scale`."""
    if stage.num_meta3d:
        return b.feature_map(x, *stage.output.shape[1:3])
    return b.affine(x, scale)


def _meta4d(b: Recorder, x: Value, block: Any, scale: np.ndarray, new_scale: np.ndarray) -> Value:
    """`x` is the block's input divided by `scale`; the result is its output divided by `new_scale`."""
    ls1, ls2 = array(block.ls1.gamma), array(block.ls2.gamma)
    kept = 1.0 - ls1
    pool_size, mixer = block.token_mixer.pool_size, b.at("token_mixer")
    if np.array_equal(new_scale, scale):
        x = mixer.pooling_mixer(x, pool_size, kept, ls1)
    else:
        x = mixer.pooling_mixer(x, pool_size, np.ones_like(kept), ls1 / kept)
    mlp = block.mlp
    weights, bias = fold_norm(mlp.fc1, mlp.norm1)
    hidden = b.at("mlp.act").gelu(b.at("mlp.fc1").convolution(x, weights * new_scale[:, None], bias))
    weights, bias = fold_norm(mlp.fc2, mlp.norm2)
    return b.add(x, b.at("mlp.fc2").convolution(hidden, weights * ls2 / new_scale, bias * ls2 / new_scale))


def _meta3d(b: Recorder, x: Value, block: Any) -> Value:
    normed = b.at("norm1").layer_norm(x, block.norm1.epsilon)
    x = b.add(x, _attention(b.at("token_mixer"), normed, block.norm1, block.token_mixer, array(block.ls1.gamma)))
    normed = b.at("norm2").layer_norm(x, block.norm2.epsilon)
    hidden = b.at("mlp.act").gelu(b.at("mlp.fc1").dense(normed, *fold_into(block.norm2, block.mlp.fc1)))
    weights, bias = dense(block.mlp.fc2)
    ls2 = array(block.ls2.gamma)
    return b.add(x, b.at("mlp.fc2").dense(hidden, weights * ls2, bias * ls2))


def _attention(b: Recorder, x: Value, norm: Any, attention: Any, layer_scale: np.ndarray) -> Value:
    """The attention of tokens whose LayerNorm `norm` still lacks its scale and offset."""
    sizes = (attention.key_dim, attention.key_dim, attention.value_dim)
    weights, bias = fold_into(norm, attention.qkv)
    queries = np.tile(np.arange(sum(sizes)) < attention.key_dim, attention.num_heads)
    factors = np.where(queries, attention.key_dim**-0.5, 1.0)
    query, key, value = b.split_heads(
        b.at("qkv").dense(x, weights * factors, bias * factors), attention.num_heads, sizes
    )
    table = array(attention.attention_biases)[:, relative_positions(attention.resolution)][None]
    probabilities = b.softmax(b.add(b.scores(query, key), table))
    weights, bias = dense(attention.proj)
    merged = b.merge_heads(b.weighted_values(probabilities, value))
    return b.at("proj").dense(merged, weights * layer_scale, bias * layer_scale)


def _deferred_scales(stage: Any) -> np.ndarray:
    """Per channel, by what the stored activations of a stage must be multiplied to be the true ones: before each
    Meta4D block, and at the end.

    With x = scale * s, the pooling mixer x + ls * (pool(x) - x) is s + ls / (1 - ls) * pool(s) under the new scale
    (1 - ls) * scale: one multiplication and one addition less. The convolutions around take the scales in. A stage
    starts so that its scales lie around 1; the last one so that it ends at 1, for LayerNorm and attention are not
    linear. Where a layer scale is near 1, or scales would leave [1/64, 64], all are 1 and nothing is deferred.
    """
    blocks = [block for block in stage.blocks if not isinstance(block, Meta3D)]
    kept = np.array([1.0 - array(block.ls1.gamma) for block in blocks]).reshape(-1, stage.dim)
    products = np.cumprod(np.concatenate([np.ones((1, stage.dim)), kept]), axis=0)
    plain = np.ones_like(products)
    if not blocks or np.abs(kept).min() < MIN_KEPT or (kept < 0).any():
        return plain
    is_last = stage.name == STAGES[-1]
    scales = products / (products[-1] if is_last else np.sqrt(products[-1]))
    within = scales.max() <= MAX_DEFERRED and scales.min() >= 1.0 / MAX_DEFERRED
    return scales if within else plain
