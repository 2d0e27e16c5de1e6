"""What a model knows of its images and classes: normalisation inside or before, its own mean and deviation, labels.

They are kept when a model is saved, and read by all that prepares images for it or names its classes. Room: models.
"""

import keras
import numpy as np
import pytest
import safetensors.numpy
import training_images
from networks import SMALL, raw_images

import keras_efficientformer as kef
from keras_efficientformer import conversion
from keras_efficientformer.classifiers import KerasClassifier, open_classifier
from keras_efficientformer.deploy import export_coreml, export_tflite
from keras_efficientformer.imagenet import MEAN, STD, imagenet_labels, preprocess_input
from keras_efficientformer.layers.image_normalization import Normalization, normalization_of, takes_raw_pixels
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.opening import open_model
from keras_efficientformer.training import FineTuneConfig, evaluate, finetune, quantize_aware, to_keras

OWN = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.5, 0.2)}
NAMES = tuple(f"class {index}" for index in range(10))
KINDS = {
    "before": {},
    "inside": {"include_preprocessing": True},
    "own, before": OWN,
    "own, inside": {"include_preprocessing": True, **OWN},
}


@pytest.fixture(scope="module", params=list(KINDS), ids=list(KINDS))
def kind(request):
    return KINDS[request.param]


def small(build, **arguments):
    return build(labels=NAMES, **arguments)


def own_preprocessing(images, kind):
    """By this test's own code."""
    mean, std = kind.get("mean", MEAN), kind.get("std", STD)
    return ((images / 255.0 - np.array(mean)) / np.array(std)).astype("float32")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype("float32")


@pytest.fixture(scope="module")
def expected(build, kind, images):
    """The scores of a plain model for images that this test has prepared."""
    return build().predict(own_preprocessing(images, kind), verbose=0)


def test_model(build, kind, images, expected):
    model = small(build, **kind)
    taken = images if kind.get("include_preprocessing") else own_preprocessing(images, kind)
    np.testing.assert_allclose(model.predict(taken, verbose=0), expected, atol=1e-5)
    assert takes_raw_pixels(model) == bool(kind.get("include_preprocessing"))
    normalization = normalization_of(model)
    assert (normalization.mean, normalization.std) == (kind.get("mean", MEAN), kind.get("std", STD))


def test_saved(build, kind, images, expected, tmp_path):
    small(build, **kind).save(tmp_path / "m.keras")
    opened = open_classifier(tmp_path / "m.keras")
    np.testing.assert_allclose(opened.predict(images), expected, atol=1e-5)
    assert opened.labels == NAMES
    larger = open_model(tmp_path / "m.keras", (96, 64, 3))
    assert normalization_of(larger) == normalization_of(keras.saving.load_model(tmp_path / "m.keras"))
    assert takes_raw_pixels(larger) == bool(kind.get("include_preprocessing"))
    assert labels_of(larger) == NAMES


def test_converted(build, kind, images, expected, tmp_path):
    """The layer has no weights: checkpoints are the same in both directions."""
    conversion.write_checkpoint(tmp_path / "m.safetensors", conversion.to_state_dict(small(build, **kind)))
    model = kef.from_checkpoint(tmp_path / "m.safetensors", labels=NAMES, **kind)
    np.testing.assert_allclose(KerasClassifier(model).predict(images), expected, atol=1e-5)
    assert labels_of(model) == NAMES


@pytest.mark.parametrize("include_preprocessing", [True, False])
def test_exported(build, kind, images, expected, tmp_path, include_preprocessing):
    model = small(build, **kind)
    settings = {"include_preprocessing": include_preprocessing}
    export_tflite(model, tmp_path / "m.tflite", **settings)
    export_coreml(model, tmp_path / "m.mlpackage", precision="float32", image_input=include_preprocessing, **settings)
    for name in ("m.tflite", "m.mlpackage"):
        opened = open_classifier(tmp_path / name)
        np.testing.assert_allclose(opened.predict(images), expected, atol=2e-5)
        assert opened.labels == NAMES


def test_logits_package_has_its_labels(build, tmp_path):
    export_coreml(small(build, classifier_activation=None), tmp_path / "m.mlpackage")
    assert open_classifier(tmp_path / "m.mlpackage").labels == NAMES


def test_fine_tuned(build, kind, tmp_path):
    """Training prepares images as the model says, and what it saves is of the same kind and knows its classes."""
    folder = training_images.make_folder(tmp_path / "images", {"blue": 4, "green": 4, "red": 4})
    config = FineTuneConfig(epochs=1, batch_size=4, learning_rate=1e-9, warmup_epochs=0)
    report = finetune(build(**kind), folder, tmp_path / "run", config=config, verbose=0)
    model = keras.saving.load_model(report.model)
    assert normalization_of(model) == normalization_of(build(**kind))
    assert takes_raw_pixels(model) == bool(kind.get("include_preprocessing"))
    assert labels_of(model) == ("blue", "green", "red")
    assert evaluate(model, folder).classes_from == "by the model's labels"


def test_quantization_aware(build, kind):
    """Also what training makes of a model knows them."""
    network = quantize_aware(small(build, **kind)).fused_network
    assert network.labels == NAMES
    assert network.normalization == normalization_of(small(build, **kind))


def test_trained_model_as_keras(build, images, expected, kind):
    found = to_keras(quantize_aware(small(build, **kind)))
    np.testing.assert_allclose(KerasClassifier(found).predict(images), expected, atol=2e-3)


def test_imagenet_weights_bring_their_labels(monkeypatch, tmp_path, loud_state_dict):
    conversion.write_checkpoint(tmp_path / "l1.safetensors", loud_state_dict)
    monkeypatch.setattr(conversion.pretrained, "download", lambda variant, name: tmp_path / "l1.safetensors")
    assert labels_of(kef.EfficientFormerL1(input_shape=(64, 64, 3)))[285] == "Egyptian_cat"
    own = [f"name {index}" for index in range(1000)]
    assert labels_of(kef.EfficientFormerL1(input_shape=(64, 64, 3), labels=own)) == tuple(own)
    assert labels_of(kef.EfficientFormerL1(weights=None, input_shape=(64, 64, 3))) is None
    assert labels_of(kef.EfficientFormerL1(weights=None, classes=2, labels=["a", "b"])) == ("a", "b")
    assert len(imagenet_labels()) == 1000


def test_mixed_precision(images):
    """Raw pixels are normalised in float32, whatever the policy."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = kef.EfficientFormer(**SMALL, include_preprocessing=True)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("normalization").compute_dtype == "float32"
    assert np.isfinite(model.predict(images, verbose=0)).all()


def test_gray_images():
    model = kef.EfficientFormer(
        **{**SMALL, "input_shape": (64, 64, 1)}, mean=[0.4], std=[0.2], include_preprocessing=True
    )
    assert normalization_of(model).mean == (0.4,)
    pixels = raw_images(model)
    assert model.predict(pixels, verbose=0).shape == (2, 10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mean": MEAN}, "`mean` and `std` go together"),
        ({"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}, "scaled to 0..1.*divide them by 255"),
        ({"mean": (0.5,), "std": (0.5,)}, "3 channels, and its normalisation 1"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5, 0.5)}, "a number for each channel"),
        ({"mean": 0.5, "std": 0.5}, "a number for each channel"),
        ({"mean": MEAN, "std": (0.2, 0.0, 0.2)}, "`std` above 0"),
        ({"mean": MEAN, "std": (0.2, float("nan"), 0.2)}, "finite"),
        ({"include_preprocessing": True, "input_shape": (64, 64, 1)}, "1 channels, and its normalisation 3"),
        ({"labels": ["a", "b"]}, "10 classes, and there are 2 labels"),
        ({"labels": NAMES, "include_top": False}, "no classes that `labels` could be of"),
    ],
)
def test_unfit(arguments, words):
    with pytest.raises(ValueError, match=words):
        kef.EfficientFormer(**{**SMALL, **arguments})


def test_same_as_keras_applications_way(build, images):
    """`preprocess_input` takes a mean and a deviation too, in tf.data and on tensors."""
    found = preprocess_input(images, mean=OWN["mean"], std=OWN["std"])
    np.testing.assert_allclose(found, own_preprocessing(images, OWN), atol=1e-6)
    tensor = preprocess_input(keras.ops.convert_to_tensor(images), mean=OWN["mean"], std=OWN["std"])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(tensor), found, atol=1e-5)


def test_files_say_size_labels_normalisation_and_activation(tmp_path):
    """Whatever is said of a model comes back with its checkpoint, in every dialect, and other tools still read it."""
    names = [f"kind {index}, très\tbon" for index in range(3)]
    model = kef.EfficientFormer(
        (1, 1, 1, 1),
        (8, 8, 8, 16),
        input_shape=(40, 36, 3),
        classes=3,
        classifier_activation="sigmoid",
        labels=names,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
    )
    paths = [tmp_path / "model.keras"]
    model.save(paths[0])
    for dialect in ("timm", "snap", "transformers"):
        paths.append(tmp_path / f"{dialect}.safetensors")
        conversion.write_checkpoint(paths[-1], conversion.to_state_dict(model, dialect))
    for path in paths:
        found = kef.from_checkpoint(path)
        assert found.input_shape == model.input_shape
        assert labels_of(found) == tuple(names)
        assert normalization_of(found) == normalization_of(model)
        assert found.get_layer("predictions").activation is keras.activations.sigmoid
        classifier = open_classifier(path)
        assert (classifier.labels, classifier.independent) == (tuple(names), True)
        # What is given counts more than what is stated.
        other = kef.from_checkpoint(
            path, labels=["a", "b", "c"], classifier_activation=None, mean=(0, 0, 0), std=(1, 1, 1)
        )
        assert labels_of(other) == ("a", "b", "c")
        assert other.get_layer("predictions").activation is keras.activations.linear
        assert normalization_of(other).mean == (0, 0, 0)
    for path in paths[1:]:
        with safetensors.safe_open(path, "np") as file:
            assert file.metadata()["format"] == "pt"
    # Files that say nothing are of ImageNet's normalisation and a softmax, as before.
    bare = dict(conversion.to_state_dict(model))
    conversion.write_checkpoint(tmp_path / "bare.safetensors", bare)
    with safetensors.safe_open(tmp_path / "bare.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    found = kef.from_checkpoint(tmp_path / "bare.safetensors", input_shape=(32, 32, 3))
    assert (labels_of(found), normalization_of(found)) == (None, Normalization())
    assert found.get_layer("predictions").activation is keras.activations.softmax


@pytest.mark.parametrize(
    "text", ["no JSON", "[]", '{"mean": [1]}', '{"activation": 3}', '{"labels": [1]}', '{"mean": ["a"], "std": [1]}']
)
def test_damaged_statements_are_refused(tmp_path, text):
    safetensors.numpy.save_file({"a": np.zeros(1)}, tmp_path / "a.safetensors", {"keras_efficientformer": text})
    with pytest.raises(ValueError, match=r"a\.safetensors has metadata of this package that are damaged"):
        conversion.read_checkpoint(tmp_path / "a.safetensors")
