"""Small loud networks, their Keras outputs, and a builder in NumPy that shares nothing with the package's own."""

import inspect

import numpy as np
import scipy.special
from keras.ops import convert_to_numpy as to_numpy

import keras_efficientformer as kef
from keras_efficientformer.deploy.network.builder import StepHooks
from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.deploy.network.keras_builder import KerasBuilder
from keras_efficientformer.imagenet import preprocess_input

SMALL = {"depths": (1, 1, 1, 2), "widths": (8, 16, 24, 32), "num_meta3d": 1, "input_shape": (64, 64, 3), "classes": 10}
# Of the second family, with every operation that it has, and few of each.
SMALLEST_V2 = {
    "depths": (1, 0, 1, 1),
    "widths": (8, 12, 16, 24),
    "num_attention": 1,
    "mlp_ratios": ((2,), (), (3,), (2,)),
    "input_shape": (64, 64, 3),
    "classes": 10,
}

MODELS = {
    "square": {},
    "non-square": {"input_shape": (64, 96, 3)},
    "odd size": {"input_shape": (75, 47, 3)},
    "one token": {"input_shape": (32, 32, 3)},
    "both heads": {"head": "both"},
    "single head": {"head": "single"},
    "softmax": {"classifier_activation": "softmax"},
    "sigmoid": {"classifier_activation": "sigmoid"},
    "both heads, softmax": {"head": "both", "classifier_activation": "softmax"},
    "features": {"include_top": False},
    "average of features": {"include_top": False, "pooling": "avg"},
    "maximum of features": {"include_top": False, "pooling": "max"},
    "no attention": {"num_meta3d": 0},
    "no attention, features": {"num_meta3d": 0, "include_top": False},
    "no attention, maximum": {"num_meta3d": 0, "include_top": False, "pooling": "max"},
    "last stage all attention": {"num_meta3d": 2},
    "last stage all attention, non-square features": {
        "num_meta3d": 2,
        "include_top": False,
        "input_shape": (96, 64, 3),
    },
    "empty stages": {"depths": (0, 2, 0, 1)},
    "stochastic depth": {"drop_path_rate": 0.5},
}


class NumPyBuilder(StepHooks):
    """Channels first, in float64, slow: feature maps (batch, channels, height, width), tokens (batch, channels, n)."""

    def __init__(self, images):
        self.images = images.astype("float64").transpose(0, 3, 1, 2)

    def image(self, height, width, channels, mean):
        assert self.images.shape[1:] == (channels, height, width)
        return self.images if mean is None else self.images - mean[:, None, None]

    def convolution(self, x, weights, bias, stride=1):
        products = (
            np.einsum("bihw,io->bohw", taps, weights[place]) for place, taps in windows(x, len(weights), stride)
        )
        return sum(products) + bias[:, None, None].astype("float64")

    def depthwise_convolution(self, x, weights, bias, stride=1):
        products = (taps * weights[place][:, None, None] for place, taps in windows(x, len(weights), stride))
        return sum(products) + bias[:, None, None].astype("float64")

    def relu(self, x):
        return np.where(x > 0, x, 0)

    def gelu(self, x):
        return x * (1 + scipy.special.erf(x / np.sqrt(2))) / 2

    def pooling_mixer(self, x, size, own, pooled):
        average, reach = np.empty_like(x), size // 2
        for y, column in np.ndindex(x.shape[2:]):
            rows = slice(max(0, y - reach), y + reach + 1)
            columns = slice(max(0, column - reach), column + reach + 1)
            average[:, :, y, column] = x[:, :, rows, columns].mean((2, 3))
        return self.affine(x, own) + self.affine(average, pooled)

    def resize(self, x, height, width):
        rows, columns = (centred_interpolation(*sides) for sides in zip(x.shape[2:], (height, width), strict=True))
        return np.einsum("bchw,Hh,Ww->bcHW", x, rows, columns)

    def enlarge(self, x, factor):
        return np.kron(x, np.ones((factor, factor)))

    def affine(self, x, scale, offset=None):
        offset = np.zeros_like(scale) if offset is None else offset
        shape = (-1,) + (1,) * (x.ndim - 2)
        return x * scale.reshape(shape) + offset.reshape(shape)

    def add(self, x, y):
        assert np.broadcast_shapes(x.shape, y.shape) == x.shape
        return x + y

    def tokens(self, x):
        return x.reshape(*x.shape[:2], -1)

    def feature_map(self, x, height, width):
        return x.reshape(*x.shape[:2], height, width)

    def layer_norm(self, x, epsilon):
        return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + epsilon)

    def group_norm(self, x, epsilon):
        flat = x.reshape(len(x), -1)
        mean, variance = flat.mean(1).reshape(-1, 1, 1, 1), flat.var(1).reshape(-1, 1, 1, 1)
        return (x - mean) / np.sqrt(variance + epsilon)

    def dense(self, x, weights, bias):
        return np.moveaxis(np.moveaxis(x, 1, -1) @ weights.astype("float64") + bias, -1, 1)

    def split_heads(self, x, num_heads, sizes):
        heads = x.reshape(len(x), num_heads, sum(sizes), -1)
        return tuple(np.split(heads, np.cumsum(sizes)[:-1], axis=2))

    def to_heads(self, x, num_heads):
        return x.reshape(len(x), num_heads, -1, x.shape[-1])

    def scores(self, query, key):
        return np.einsum("bhcn,bhcm->bhnm", query, key)

    def talking_heads(self, x, weights, bias):
        return np.einsum("bhnm,hg->bgnm", x, weights) + bias[:, None, None]

    def weighted_values(self, weights, value):
        return np.einsum("bhnm,bhcm->bhcn", weights, value)

    def merge_heads(self, x):
        return x.reshape(len(x), -1, x.shape[-1])

    def softmax(self, x):
        return scipy.special.softmax(x, axis=-1)

    def channel_softmax(self, x):
        return scipy.special.softmax(x, axis=1)

    def sigmoid(self, x):
        return scipy.special.expit(x)

    def mean(self, x):
        return x.reshape(*x.shape[:2], -1).mean(-1)

    def max(self, x):
        return x.reshape(*x.shape[:2], -1).max(-1)

    def concatenate(self, x, y):
        return np.concatenate([x, y], axis=1)

    def flatten(self, x):
        return np.moveaxis(x, 1, -1).reshape(len(x), -1)

    def reshape(self, x, height, width, channels):
        return np.moveaxis(np.moveaxis(x, 1, -1).reshape(len(x), height, width, channels), -1, 1)

    def output(self, x, name):
        return x


def windows(x, size, stride):
    """((dy, dx), what a kernel of this size sees at that place of it), for every place."""
    x = np.pad(x, ((0, 0), (0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    height, width = ((side - size) // stride + 1 for side in x.shape[2:])
    for dy, dx in np.ndindex(size, size):
        yield (dy, dx), x[:, :, dy : dy + stride * height : stride, dx : dx + stride * width : stride]


def centred_interpolation(size, new_size):
    """Matrix (new_size, size) of linear interpolation between the centres of pixels, held at the borders."""
    places = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size)))


def in_numpy(network, images):
    """The outputs, as Keras has their axes."""
    outputs = network.build(NumPyBuilder(images))
    return {name: np.moveaxis(output, 1, -1) for name, output in outputs.items()}


def in_keras(network, images):
    outputs = network.build(KerasBuilder(images))
    return {name: to_numpy(output) for name, output in outputs.items()}


def make_loud(model, layer_scales=(0.05, 0.5), seed=0):
    """Draws every weight, all of them large enough to be missed."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        shape = variable.shape
        if "/ls1/" in variable.path or "/ls2/" in variable.path:
            variable.assign(rng.uniform(*layer_scales, shape))
        elif variable.name == "kernel":
            variable.assign(rng.normal(0, np.prod(shape[:-1]) ** -0.5, shape))
        elif variable.name == "moving_variance":
            variable.assign(rng.uniform(0.5, 2, shape))
        elif variable.name == "gamma":
            variable.assign(rng.uniform(0.5, 1.5, shape))
        elif variable.name == "attention_biases":
            variable.assign(rng.uniform(-2, 2, shape))
        else:
            assert variable.name in ("bias", "beta", "moving_mean"), variable.path
            variable.assign(rng.uniform(-0.3, 0.3, shape))
    return model


def raw_images(model, batch=2):
    """Raw pixels, the first image dark and the second one light: far from the mean, which the borders must not see."""
    shape = (batch, *model.inputs[0].shape[1:])
    images = np.random.default_rng(1).integers(0, 100, shape)
    images[1::2] += 155
    return images.astype("float32")


def keras_outputs(model, images):
    outputs = model(images, training=False)
    return [to_numpy(output) for output in (outputs if isinstance(outputs, list) else [outputs])]


def largest_difference(model, run=in_keras, network=None):
    """Between the network, fused with its normalisation, and the model; relative to each output's largest value."""
    images = raw_images(model)
    expected = keras_outputs(model, preprocess_input(images))
    found = run(network or fuse(model), images)
    assert [output.shape for output in found.values()] == [output.shape for output in expected]
    for output in expected:  # an output that is the same whatever the image would prove nothing
        assert np.abs(output[0] - output[1]).max() > 0.01 * np.abs(output).max()
    pairs = zip(found.values(), expected, strict=True)
    return max(np.abs(output - wanted).max() / np.abs(wanted).max() for output, wanted in pairs)


def count(network, operation):
    return sum(step.operation == operation for step in network.steps)


def small(**arguments):
    return make_loud(kef.EfficientFormer(**{**SMALL, "classifier_activation": None, **arguments}))


def public_methods(builder):
    functions = inspect.getmembers(builder, inspect.isfunction)
    return {name: list(inspect.signature(f).parameters) for name, f in functions if not name.startswith("_")}
