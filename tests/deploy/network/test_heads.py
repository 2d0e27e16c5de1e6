"""Heads of one's own on an EfficientFormer: read layer by layer, exported to both formats, or refused by name."""

import keras
import numpy as np
import pytest
from keras import layers
from networks import in_keras, in_numpy, raw_images, small

import keras_efficientformer as kef
from keras_efficientformer.classifiers import open_classifier
from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.imagenet import preprocess_input

V2 = {"depths": (1, 1, 2, 2), "widths": (8, 16, 16, 32), "num_attention": 1, "mlp_ratios": [[4], [4], [4, 4], [4, 4]]}


def features(**arguments):
    return small(**{"include_top": False, **arguments})


def features_v2(**arguments):
    return kef.EfficientFormerV2(**V2, include_top=False, input_shape=(64, 64, 3), **arguments)


def dense_head(base):
    x = layers.BatchNormalization(name="bn")(layers.GlobalAveragePooling2D()(base.output))
    x = layers.Dense(24, activation="gelu")(layers.Dropout(0.3)(x))
    return keras.Model(base.input, layers.Dense(5, activation="softmax", name="mine")(x))


def sequential(base):
    return keras.Sequential([base, layers.GlobalMaxPooling2D(), layers.Dropout(0.2), layers.Dense(7, name="values")])


def three_tasks(base):
    """The EfficientFormer is a layer; features as tokens become a map again, branches part and join."""
    image = keras.Input((64, 64, 3))
    x = base(image)
    mean, largest = layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)
    kind = layers.Dense(4, activation="softmax", name="kind")(mean)
    good = layers.Dense(1, activation="sigmoid", name="good")(layers.Concatenate()([mean, largest]))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(scale=False)(x))
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    x = layers.LayerNormalization(center=False)(layers.DepthwiseConv2D(3, padding="same")(x))
    flat = layers.Dense(2, name="flat")(layers.Flatten()(x))
    return keras.Model(image, [kind, good, layers.Conv2D(3, 1, name="mask")(x), flat])


def pyramid(base):
    """Stages without the last norm, a sum that is used before its ReLU and after, and a dictionary of outputs."""
    maps = [base.get_layer(name).output for name in ("stage2", "stage3", "stage4")]
    total = layers.Add()([layers.Resizing(8, 8)(layers.Conv2D(8, 1, activation="relu")(x)) for x in maps])
    ends = layers.Concatenate()([total, layers.Activation("relu")(total)])
    outputs = {"b": layers.Dense(6, name="dense")(ends), "a": layers.GlobalAveragePooling2D(name="vector")(total)}
    return keras.Model(base.input, outputs)


def maps(base):
    """Enlarged by repeating pixels; probabilities of every pixel; a norm of the whole map."""
    x = layers.GroupNormalization(1, epsilon=1e-3)(base.get_layer("stage3").output)
    x = layers.UpSampling2D(3)(layers.Conv2D(6, 1)(layers.UpSampling2D(2)(x)))
    pixels, scores = layers.Dense(4, activation="softmax", name="pixels")(x), layers.Softmax(name="s")(x)
    height, width, channels = x.shape[1:]
    wider = layers.Reshape((height // 2, 2 * width, channels))(x)
    grid = layers.Reshape((height, -1, 2 * channels), name="grid")(layers.Flatten()(wider))
    return keras.Model(base.input, [pixels, scores, grid])


def early(base):
    """Up to the second stage."""
    return keras.Model(base.input, base.get_layer("stage2").output)


HEADS = (dense_head, sequential, three_tasks, pyramid, maps, early)
NAMES = {
    dense_head: ("mine",),
    sequential: ("values",),
    three_tasks: ("kind", "good", "mask", "flat"),
    pyramid: ("vector", "dense"),  # in the order in which Keras sorts a dictionary's keys
    maps: ("pixels", "s", "grid"),
    early: ("stage2",),
}


def loud(model):
    numbers = np.random.default_rng(0)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if variable.name == "kernel":
            variable.assign(numbers.normal(0, np.prod(shape[:-1]) ** -0.5, shape))
        elif variable.name in ("gamma", "moving_variance"):
            variable.assign(numbers.uniform(0.3, 0.9, shape))
        elif "seed" not in variable.path:
            variable.assign(numbers.uniform(-0.3, 0.3, shape))
    return model


@pytest.fixture(
    scope="module",
    params=[(head, base) for head in HEADS for base in (features, features_v2)],
    ids=lambda pair: " on ".join(function.__name__ for function in pair),
)
def head_and_model(request):
    head, base = request.param
    return head, loud(head(base()))


def expected_outputs(model, images):
    return [np.asarray(x) for x in keras.tree.flatten(model.predict(preprocess_input(images), verbose=0))]


def test_equals_keras(head_and_model):
    head, model = head_and_model
    network, images = fuse(model), raw_images(model)
    assert network.outputs == NAMES[head]
    assert network.classes == (5 if head is dense_head else None)
    for run in (in_keras, in_numpy):
        for found, expected in zip(run(network, images).values(), expected_outputs(model, images), strict=True):
            assert found.shape == expected.shape
            assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()
            np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.filterwarnings("ignore:No labels")
def test_files(head_and_model, tmp_path):
    head, model = head_and_model
    report = export_tflite(model, tmp_path / "model.tflite")  # its own limit is 1e-5
    assert tuple(tensor.name for tensor in report.outputs) == NAMES[head]
    assert report.partitions == 1
    report = export_coreml(model, tmp_path / "model.mlpackage")  # 5e-3 in float16
    assert {difference.output for difference in report.differences} == set(NAMES[head])


@pytest.mark.filterwarnings("ignore:No labels", "ignore:Only 2 calibration images")
@pytest.mark.parametrize("quantize", ["dynamic", "weight_only", "int8", "int8_integer"])
def test_quantized_files(quantize, tmp_path):
    model = loud(three_tasks(features()))
    images = raw_images(model)
    report = export_tflite(model, tmp_path / "model.tflite", quantize=quantize, calibration=images)
    assert all(difference.max < 0.1 * difference.largest for difference in report.differences)


@pytest.mark.filterwarnings("ignore:No labels", "ignore:Only 2 calibration images")
def test_ranges_of_outputs_are_known_by_what_makes_them(tmp_path):
    base = features()
    x = layers.GlobalAveragePooling2D()(base.output)
    ends = layers.Dense(5, "relu", name="probabilities"), layers.Dense(5, "sigmoid", name="kind")
    model = loud(keras.Model(base.input, [end(x) for end in ends]))
    for end in ends:
        end.kernel.assign(0.05 * end.kernel)
        end.bias.assign([1.5, -1.5, 0.5, -2.5, 1.0])
    images = raw_images(model)
    report = export_tflite(model, tmp_path / "model.tflite", quantize="int8_integer", calibration=images, io="uint8")
    largest = {output.name: 255 * output.scale for output in report.outputs}
    # Shares may come up to 1, larger ones than have been seen; what only has such a name ends where it was seen to.
    values, shares = (output.max() for output in expected_outputs(model, images))
    assert shares < 0.9 < 1.2 < values
    assert largest == pytest.approx({"probabilities": values, "kind": 1.0}, rel=0.05)


def logits_and_shares(base):
    """The last operator takes an output."""
    logits = layers.Dense(4, name="logits")(layers.GlobalAveragePooling2D()(base.output))
    return keras.Model(base.input, [logits, layers.Softmax(name="shares")(logits)])


def values_twice(base):
    """One tensor under two names, which is the sum of a third output and itself."""
    values = layers.Dense(4, name="values")(layers.GlobalMaxPooling2D()(base.output))
    doubled = layers.Add(name="doubled")([values, values])
    return keras.Model(base.input, [values, doubled, layers.Identity(name="again")(doubled)])


@pytest.mark.filterwarnings("ignore:No labels", "ignore:Only 2 calibration images")
@pytest.mark.parametrize("head", [logits_and_shares, values_twice])
def test_outputs_that_something_else_takes(head, tmp_path):
    model = loud(head(features()))
    images = raw_images(model)
    for quantize, io in (("int8", "uint8"), ("int8_integer", "float32"), ("int16x8", "float32")):
        report = export_tflite(
            model, tmp_path / f"{quantize}.tflite", quantize=quantize, io=io, batch_size=2, calibration=images
        )
        assert all(difference.max < 0.1 * difference.largest for difference in report.differences)
    report = export_coreml(model, tmp_path / "model.mlpackage")
    assert [difference.output for difference in report.differences] == model.output_names


def norm_of_a_vector(base):
    x = layers.Dense(8)(layers.GlobalAveragePooling2D()(base.output))
    return keras.Model(base.input, layers.GroupNormalization(1)(x))


def test_norms_are_folded_where_a_layer_comes_before():
    base = features()
    x = layers.Conv2D(8, 3, padding="same")(base.output)
    model = keras.Model(base.input, layers.Conv2D(4, 1)(layers.BatchNormalization()(x)))
    steps = [step.operation for step in fuse(loud(model)).steps]
    assert steps[-6:] == ["layer_norm", "affine", "feature_map", "convolution", "convolution", "output"]


def shared_convolution(base):
    """Called twice, once before a norm: the norm is not of both calls."""
    convolution = layers.Conv2D(32, 1)
    once = layers.BatchNormalization()(convolution(base.output))
    return keras.Model(base.input, [layers.Activation("linear", name="a")(once), convolution(once)])


def shared_across_models(base):
    """A nested model has a norm after it, and the outer one none."""
    convolution = layers.Conv2D(32, 1)
    inner = keras.Input(base.output.shape[1:])
    normalised = keras.Model(inner, layers.BatchNormalization()(convolution(inner)))(base.output)
    return keras.Model(base.input, convolution(normalised))


def shared_norm(base):
    norm, x = layers.BatchNormalization(), layers.Conv2D(32, 1)(base.output)
    return keras.Model(base.input, layers.Add()([norm(x), norm(base.output)]))


def relu_inside(base):
    """What a nested model's ReLU takes, others take as it was."""
    x = layers.Conv2D(8, 1)(base.output)
    inner = keras.Input(x.shape[1:])
    rectified = keras.Model(inner, layers.ReLU()(inner))(x)
    return keras.Model(base.input, layers.Add()([x, rectified]))


@pytest.mark.filterwarnings("ignore:No labels")
@pytest.mark.parametrize("head", [shared_convolution, shared_across_models, shared_norm, relu_inside, norm_of_a_vector])
def test_what_is_used_twice(head, tmp_path):
    model = loud(head(features()))
    images = raw_images(model)
    for found, expected in zip(in_numpy(fuse(model), images).values(), expected_outputs(model, images), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())
    export_tflite(model, tmp_path / "model.tflite")


def test_labels_and_the_file_in_use(tmp_path):
    model = loud(dense_head(features()))
    export_tflite(model, tmp_path / "model.tflite", labels=list("abcde"))
    with pytest.raises(ValueError, match=r"has no output of classes: expected one of probabilities.*Found: mine"):
        open_classifier(tmp_path / "model.tflite")
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="not an EfficientFormer of this package alone: found the layers"):
        open_classifier(tmp_path / "model.keras")


class Doubled(layers.Dense):
    pass


def with_layer(head):
    base = features()
    return keras.Model(base.input, head(base.output))


def map_and_vector(x):
    return layers.Add()([x, layers.GlobalAveragePooling2D()(x)])


def between_stages():
    base = features()
    changed = layers.Activation("relu")(base.get_layer("stage1").output)
    return keras.Model(base.input, base.get_layer("stage2")(changed))


def of_equal_names():
    base = features()
    inner = keras.Input((2, 2, 32))
    pair = keras.Model(inner, [layers.Conv2D(2, 1)(inner), layers.Conv2D(3, 1)(inner)], name="pair")
    return keras.Model(base.input, pair(base.output))


def twice():
    image = keras.Input((64, 64, 3))
    return keras.Model(image, [features(name="a")(image), features(name="b")(image)])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.base, self.head = features(), layers.Dense(3)

    def call(self, images):
        return self.head(self.base(images))


def two_inputs():
    base, other = features(), keras.Input((32,))
    pooled = layers.GlobalAveragePooling2D()(base.output)
    return keras.Model([base.input, other], layers.Add()([pooled, other]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: with_layer(layers.LeakyReLU(name="mine")), "mine, LeakyReLU, is no layer that exports know.*Conv2D"),
        (lambda: with_layer(Doubled(3, name="mine")), "mine, Doubled, is no layer"),
        (lambda: with_layer(layers.Dense(3, "tanh", name="mine")), "mine, Dense, .* activation='tanh'.*relu"),
        (lambda: with_layer(layers.Conv2D(3, 2, padding="same")), r"kernel_size=\(2, 2\): expected a square of odd"),
        (lambda: with_layer(layers.Conv2D(3, 3, strides=2, padding="same")), r"strides=\(2, 2\).*not 2"),
        (lambda: with_layer(layers.Conv2D(4, 1, groups=2)), "groups=2: expected 1"),
        (lambda: with_layer(layers.Conv2D(4, 3, dilation_rate=2, padding="same")), "dilation_rate"),
        (lambda: with_layer(layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")), "depth_multiplier=2"),
        (lambda: with_layer(layers.BatchNormalization(axis=1)), "axis=1: expected -1 or 3"),
        (
            lambda: with_layer(lambda x: layers.BatchNormalization(axis=1)(layers.Conv2D(2, 1)(x))),
            "axis=1: expected -1",
        ),
        (lambda: with_layer(layers.GlobalAveragePooling2D("channels_first")), "data_format='channels_first': expected"),
        (lambda: with_layer(layers.GlobalMaxPooling2D("channels_first")), "data_format='channels_first': expected"),
        (lambda: with_layer(layers.Flatten("channels_first")), "data_format='channels_first': expected"),
        (lambda: with_layer(map_and_vector), r"shapes=\[\(2, 2, 32\), \(32,\)\]: expected inputs of one shape"),
        (lambda: with_layer(layers.ReLU(max_value=6)), "max_value=6.*expected None"),
        (lambda: with_layer(layers.UpSampling2D((2, 3))), r"size=\(2, 3\): expected one factor"),
        (lambda: with_layer(layers.UpSampling2D(2, interpolation="bicubic")), "'bicubic': expected 'bilinear'"),
        (lambda: with_layer(layers.GroupNormalization(4)), "groups=4: expected 1"),
        (lambda: with_layer(layers.Reshape((4, 32))), r"target_shape=\(4, 32\): expected a vector"),
        (between_stages, "stage2 is not given what the layer before it gives"),
        (of_equal_names, "several outputs of one name, pair"),
        (lambda: with_layer(layers.Conv2D(3, 1, name="image")), "an output called image, as files call their input"),
        (Subclassed, "mine, Subclassed, does not say in which order its layers compute: write it as a Functional"),
        (lambda: with_layer(layers.Activation(lambda x: x * 2)), "cannot be exported with activation="),
        (lambda: with_layer(layers.LayerNormalization(rms_scaling=True)), "rms_scaling=True: expected False"),
        (twice, "holds 2 EfficientFormers: one is expected"),
        (two_inputs, "has 2 inputs: one, the image, is expected"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        fuse(make())


@pytest.mark.parametrize("name", ["kind-of-leaf", "kind of leaf", "2nd", "gr\u00f6\u00dfe"])
def test_names_that_core_ml_changes(name, tmp_path):
    with pytest.raises(ValueError, match=f"outputs called '{name}', and Core ML's are called by letters"):
        export_coreml(with_layer(layers.Conv2D(3, 1, name=name)), tmp_path / "model.mlpackage")


def test_feature_maps_are_of_an_efficientformer_alone():
    with pytest.raises(ValueError, match="in place of `feature_maps`, give it the stages as outputs"):
        fuse(dense_head(features()), feature_maps=True)
