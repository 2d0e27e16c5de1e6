"""The fused network: what an EfficientFormer computes on a phone, described once for all targets.

It is the same function as the Keras model's, with everything folded, in float64 and exactly, that can be: BatchNorm
into the convolution before it, layer scales into the convolution or dense before them, LayerNorm's scale and offset
into the dense after it, the attention's scale into its queries, both heads into one, ImageNet's normalisation into the
first convolution. The pooling mixer's factor per channel is deferred (`_deferred_scales`). Nothing of the Keras model
is changed.
"""

import keras
import numpy as np

from keras_efficientformer.bindings import BODY_LAYERS, HEADS, is_v2, layers_of, listing
from keras_efficientformer.deploy import network_v2
from keras_efficientformer.deploy.folding import array, dense, fold_into, fold_norm, scale_and_offset
from keras_efficientformer.deploy.recording import FusedNetwork, Recorder
from keras_efficientformer.imagenet import MEAN, STD
from keras_efficientformer.layers import Meta3D, relative_positions

PAPER, PAPER_V2 = "EfficientFormer (arXiv 2206.01191)", "EfficientFormerV2 (arXiv 2212.08059)"

# Activations of the last layer: what they are called in a builder, and how the output is named.
ACTIVATIONS = {"linear": (None, "logits"), "softmax": ("softmax", "probabilities"), "sigmoid": ("sigmoid", "scores")}

# With what models end, with a classifier and without.
CLASSIFIER_ENDS, FEATURE_ENDS = {"predictions", "predictions_dist"}, {"norm", "avg_pool", "max_pool"}

# Deferring the pooling mixer is exact, but multiplies activations: outside these bounds a stage computes it plainly.
MIN_KEPT = 0.1
MAX_DEFERRED = 64.0


def fuse(model: keras.Model, include_preprocessing: bool = True, feature_maps: bool = False) -> FusedNetwork:
    """The fused network of an EfficientFormer.

    Args:
        model: an EfficientFormer of this package, on any backend; it is read, not changed.
        include_preprocessing: whether the network takes raw RGB pixels in 0..255 and normalises them itself.
        feature_maps: whether the outputs of the stages are outputs of the network too, before the model's own.

    Raises:
        ValueError: the model is no EfficientFormer or more than one, has weights that are not finite, ends in an
            activation other than none, softmax or sigmoid, or takes images of other than three channels where
            preprocessing is included.
    """
    layers = layers_of(model)
    _check_whole(model, layers)
    _check_finite(model)
    input_shape = tuple(model.inputs[0].shape[1:])
    if include_preprocessing and input_shape[2] != len(MEAN):
        raise ValueError(
            f"ImageNet's normalisation is for RGB images, and the model takes {input_shape[2]} channels. "
            "Export it with include_preprocessing=False and normalise its input yourself."
        )
    recorder = Recorder()
    outputs = _describe(recorder, model, layers, input_shape, include_preprocessing, feature_maps)
    return FusedNetwork(
        name=model.name,
        paper=PAPER_V2 if is_v2(model) else PAPER,
        input_shape=input_shape,
        preprocessing=include_preprocessing,
        outputs=outputs,
        classes=int(layers["head"].units) if "head" in layers else None,
        steps=tuple(recorder.steps),
    )


def _check_whole(model, layers):
    """Raises ValueError where the model computes more than its EfficientFormer, or ends in the middle of it."""
    own = {*BODY_LAYERS, *HEADS, "head_average", *CLASSIFIER_ENDS, *FEATURE_ENDS}
    foreign = [
        layer.name for layer in model.layers if not (layer.name in own or isinstance(layer, keras.layers.InputLayer))
    ]
    ends = CLASSIFIER_ENDS if "head" in layers else FEATURE_ENDS
    others = [name for name in model.output_names if name not in ends]
    if foreign or others:
        found = f"the layers {listing(foreign)}" if foreign else f"the outputs {listing(others)}"
        raise ValueError(
            f"{model!r} is not an EfficientFormer of this package alone: found {found}, which the exported network "
            "would not have. Pass the EfficientFormer itself, made with your `classes`, `classifier_activation` and "
            "`head`; normalisation is part of every export."
        )


def _describe(b, model, layers, input_shape, include_preprocessing, feature_maps):
    """Describes the network to the builder `b` and returns the names of its outputs."""
    x = b.at("image").image(*input_shape, 255.0 * np.array(MEAN) if include_preprocessing else None)
    describe = network_v2.describe if is_v2(model) else _describe_body
    x = describe(b, x, layers, 255.0 * np.array(STD) if include_preprocessing else 1.0, feature_maps)
    stages = tuple(layers[f"stage{number}"].name for number in (1, 2, 3, 4)) if feature_maps else ()
    return (*stages, *(_classifier(b, x, layers) if "head" in layers else _features(b, x, model, layers)))


def _describe_body(b, x, layers, std, feature_maps):
    """From the image, not yet divided by `std` (3,), to the features without the last norm's scale and offset."""
    scales = [_deferred_scales(layers[f"stage{number}"]) for number in (1, 2, 3, 4)]
    x = _stem(b.at("stem"), x, layers["stem"], std, out_scale=scales[0][0])
    for index in range(4):
        in_scale = scales[index - 1][-1] if index else None
        stage = layers[f"stage{index + 1}"]
        x = _stage(b.at(stage.name), x, stage, in_scale, scales[index])
        if feature_maps:
            b.output(_feature_map(b.at(stage.name), x, stage, scales[index][-1]), stage.name)
    return b.at("norm").layer_norm(x, layers["norm"].epsilon)


def _stem(b, x, stem, std, out_scale):
    weights, bias = fold_norm(stem.step1.conv, stem.step1.norm)
    weights = weights / np.broadcast_to(std, weights.shape[2])[:, None]
    first, second = b.at("step1"), b.at("step2")
    x = first.relu(first.convolution(x, weights, bias, stride=2))
    weights, bias = fold_norm(stem.step2.conv, stem.step2.norm)
    # Scales are positive, so they pass through the ReLU.
    return second.relu(second.convolution(x, weights / out_scale, bias / out_scale, stride=2))


def _stage(b, x, stage, in_scale, scales):
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


def _feature_map(b, x, stage, scale):
    """The true output of a stage whose activations are stored divided by `scale`."""
    if stage.num_meta3d:
        return b.feature_map(x, *stage.output.shape[1:3])
    return b.affine(x, scale)


def _meta4d(b, x, block, scale, new_scale):
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


def _meta3d(b, x, block):
    normed = b.at("norm1").layer_norm(x, block.norm1.epsilon)
    x = b.add(x, _attention(b.at("token_mixer"), normed, block.norm1, block.token_mixer, array(block.ls1.gamma)))
    normed = b.at("norm2").layer_norm(x, block.norm2.epsilon)
    hidden = b.at("mlp.act").gelu(b.at("mlp.fc1").dense(normed, *fold_into(block.norm2, block.mlp.fc1)))
    weights, bias = dense(block.mlp.fc2)
    ls2 = array(block.ls2.gamma)
    return b.add(x, b.at("mlp.fc2").dense(hidden, weights * ls2, bias * ls2))


def _attention(b, x, norm, attention, layer_scale):
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


def _deferred_scales(stage):
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
    is_last = stage.name == "stage4"
    scales = products / (products[-1] if is_last else np.sqrt(products[-1]))
    within = scales.max() <= MAX_DEFERRED and scales.min() >= 1.0 / MAX_DEFERRED
    return scales if within else plain


def _classifier(b, x, layers):
    """`x`: the features, to which the last norm's scale and offset have not been applied."""
    heads = [layers[name] for name in ("head", "head_dist") if name in layers]
    folded = [fold_into(layers["norm"], head) for head in heads]
    if "head_average" in layers:
        folded = [tuple(np.mean(pair, axis=0) for pair in zip(*folded, strict=True))]
    activation = keras.activations.serialize(layers["predictions"].activation)
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"The model ends in the activation {activation!r}, which exports do not have: "
            f"use one of {', '.join(ACTIVATIONS)}."
        )
    operation, name = ACTIVATIONS[activation]
    names = (name, f"{name}_distillation")[: len(folded)]
    pooled = b.at("pool").mean(x)
    for name, weights in zip(names, folded, strict=True):
        logits = b.at("head").dense(pooled, *weights)
        b.output(getattr(b.at("predictions"), operation)(logits) if operation else logits, name)
    return names


def _features(b, x, model, layers):
    """`x`: the features, to which the last norm's scale and offset have not been applied."""
    scale, offset = scale_and_offset(layers["norm"])
    if "avg_pool" in layers:
        b.output(b.affine(b.mean(x), scale, offset), "embedding")
        return ("embedding",)
    x = b.affine(x, scale, offset)
    if "max_pool" in layers:
        b.output(b.max(x), "embedding")
        return ("embedding",)
    if getattr(layers["stage4"], "num_meta3d", 0):  # the features are tokens
        x = b.feature_map(x, *model.outputs[0].shape[1:3])
    b.output(x, "features")
    return ("features",)


def _check_finite(model):
    wrong = [variable.path for variable in model.weights if not np.isfinite(array(variable)).all()]
    if wrong:
        raise ValueError(
            f"{model.name} has weights that are NaN or infinite: {', '.join(wrong[:10])}"
            f"{f' and {len(wrong) - 10} more' if len(wrong) > 10 else ''}. Nothing was exported."
        )
