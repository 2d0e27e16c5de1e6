"""The metadata of TFLite files, read by others: MediaPipe's schema, zip archives, and MediaPipe's ImageClassifier.

The classifier is what Android apps open such files with. Here it runs on photographs and is compared with LiteRT and
with Keras. The embedded checkpoint shows that it sees the same, a small network which files it opens.
"""

import functools
import importlib.metadata
import zipfile

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from mediapipe_tasks import vision_tasks
from project import ROOT
from skimage import data
from tensorflow.lite.tools import flatbuffer_utils

import keras_efficientformer as kef
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.imagenet import MEAN, STD, preprocess_input, resize_and_crop
from keras_efficientformer.images import seeded_images

CHECKPOINT = ROOT / "weights" / "efficientformer_l1_cifar10.safetensors"
NAMES = (ROOT / "weights" / "cifar10_labels.txt").read_text().split()
PHOTOGRAPHS = ("chelsea", "rocket", "astronaut")

OPENED = [
    *((mode, "float32") for mode in ("none", "float16", "dynamic", "weight_only", "int8", "int8_integer", "int16x8")),
    ("int8", "uint8"),
    ("int8_integer", "uint8"),
]


@pytest.fixture(scope="module")
def schema():
    return pytest.importorskip("mediapipe.tasks.metadata.metadata_schema_py_generated")


@pytest.fixture(scope="module")
def tasks():
    """(MediaPipe's vision tasks, their options of a file, an image for them)."""
    return vision_tasks()


@pytest.fixture(scope="module")
def classify(tasks):
    """The classifications of an image by MediaPipe: for each output of a file its five best categories."""
    vision, of_file, image = tasks

    def classify(path, *images):
        options = vision.ImageClassifierOptions(**of_file(path), max_results=5)
        with vision.ImageClassifier.create_from_options(options) as classifier:
            return [classifier.classify(image(pixels)).classifications for pixels in images]

    return classify


@pytest.fixture(scope="module")
def photographs():
    """uint8, of the networks' size: nothing is left to scale."""
    return [resize_and_crop(getattr(data, name)(), (64, 64), 1.0) for name in PHOTOGRAPHS]


@pytest.fixture(scope="module")
def embedded():
    return kef.from_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def exported(build, tmp_path_factory):
    """The path of the small network's file, exported with these arguments."""
    folder, model = tmp_path_factory.mktemp("exported"), build()

    @functools.cache
    def export(labelled=True, **arguments):
        path = folder / ("_".join(map(str, arguments.values())) + f"_{labelled}.tflite")
        labels = NAMES if labelled else None
        return export_tflite(model, path, labels=labels, calibration=seeded_images((64, 64, 3)), **arguments).path

    return export


def metadata(path, schema):
    """The metadata's object tree, from the one entry that a file should have."""
    file = flatbuffer_utils.read_model(str(path))
    (entry,) = [entry for entry in file.metadata if entry.name == b"TFLITE_METADATA"]
    buffer = bytes(file.buffers[entry.buffer].data)
    assert buffer[4:8] == b"M001"
    return schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAs(buffer, 0))


def run(path, image):
    """(real values, step) of a file's one output for raw pixels, by LiteRT alone; the step is 0 for float outputs."""
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (input_,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    if input_["dtype"] != np.float32:
        assert input_["quantization"] == (1.0, 0)
    interpreter.set_tensor(input_["index"], image[None].astype(input_["dtype"]))
    interpreter.invoke()
    values, (scale, zero_point) = interpreter.get_tensor(output["index"])[0], output["quantization"]
    return (values, 0.0) if values.dtype == np.float32 else ((values.astype("float32") - zero_point) * scale, scale)


def assert_same_five(categories, expected, tolerance):
    """The five best classes with their scores; places may be swapped only where scores are equal to the tolerance."""
    assert len(categories) == 5
    for category, score in zip(categories, np.sort(expected)[::-1], strict=False):
        assert category.score == pytest.approx(expected[category.index], abs=tolerance)
        assert category.score == pytest.approx(score, abs=tolerance)
        assert category.category_name == NAMES[category.index]
    assert len({category.index for category in categories}) == 5


# What is written.


@pytest.mark.parametrize("mode", ["none", "float16", "int8"])
def test_model(exported, schema, mode):
    found = metadata(exported(quantize=mode), schema)
    name = {"none": "float32"}.get(mode, mode)
    assert found.name.decode() == f"efficientformer 64x64 {name}"
    assert found.description.decode() == (
        f"EfficientFormer (arXiv 2206.01191), 64x64, {name}, by keras-efficientformer."
    )
    assert found.version.decode() == importlib.metadata.version("keras-efficientformer")
    assert found.author == b"keras-efficientformer"
    assert found.license == b"Apache-2.0"
    assert found.minParserVersion == b"1.0.0"
    assert len(found.subgraphMetadata) == 1
    assert flatbuffer_utils.read_model(exported(quantize=mode)).description == found.description


def test_input(exported, schema):
    (image,) = metadata(exported(), schema).subgraphMetadata[0].inputTensorMetadata
    assert image.name == b"image"
    assert image.description == b"RGB image, values in 0..255; normalised inside."
    assert image.content.contentPropertiesType == schema.ContentProperties.ImageProperties
    assert image.content.contentProperties.colorSpace == schema.ColorSpaceType.RGB
    assert (image.stats.min.tolist(), image.stats.max.tolist()) == ([0.0], [255.0])
    (unit,) = image.processUnits
    assert unit.optionsType == schema.ProcessUnitOptions.NormalizationOptions
    assert (unit.options.mean.tolist(), unit.options.std.tolist()) == ([0.0], [1.0])


def test_input_without_preprocessing(exported, schema):
    (image,) = metadata(exported(include_preprocessing=False), schema).subgraphMetadata[0].inputTensorMetadata
    options = image.processUnits[0].options
    mean, std = np.mean(MEAN) * 255, np.mean(STD) * 255
    np.testing.assert_allclose([*options.mean, *options.std], [mean, std], rtol=1e-6)
    np.testing.assert_allclose([*image.stats.min, *image.stats.max], [-mean / std, (255 - mean) / std], rtol=1e-6)
    assert str(MEAN) in image.description.decode()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, ["probabilities"]),
        ({"classifier_activation": None}, ["logits"]),
        ({"classifier_activation": "sigmoid"}, ["scores"]),
        ({"head": "both"}, ["probabilities", "probabilities_distillation"]),
    ],
    ids=["probabilities", "logits", "scores", "both heads"],
)
def test_outputs(build, schema, tmp_path, arguments, names):
    report = export_tflite(build(**arguments), tmp_path / "model.tflite", labels=NAMES)
    outputs = metadata(report.path, schema).subgraphMetadata[0].outputTensorMetadata
    assert [output.name.decode() for output in outputs] == names == [output.name for output in report.outputs]
    for output in outputs:
        assert output.description
        assert output.content.contentPropertiesType == schema.ContentProperties.FeatureProperties
        (file,) = output.associatedFiles
        assert (file.name, file.type) == (b"labels.txt", schema.AssociatedFileType.TENSOR_AXIS_LABELS)


def test_labels_are_in_the_file(exported):
    with zipfile.ZipFile(exported()) as archive:
        assert archive.namelist() == ["labels.txt"]
        assert archive.testzip() is None
        assert archive.getinfo("labels.txt").compress_type == zipfile.ZIP_STORED
        assert archive.read("labels.txt").decode().split("\n") == NAMES


def test_labels_of_any_alphabet(build, tmp_path):
    names = [f"classe n° {index} 猫" for index in range(10)]
    path = export_tflite(build(), tmp_path / "model.tflite", labels=names).path
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode("utf-8").splitlines() == names


def test_without_labels_there_is_no_archive(exported, schema):
    path = exported(labelled=False)
    assert not zipfile.is_zipfile(path)
    (output,) = metadata(path, schema).subgraphMetadata[0].outputTensorMetadata
    assert not output.associatedFiles


# MediaPipe.


@pytest.mark.parametrize(("mode", "io"), OPENED)
def test_mediapipe_equals_litert(classify, exported, photographs, mode, io):
    path = exported(quantize=mode, io=io)
    tops = []
    for photograph, classifications in zip(photographs, classify(path, *photographs), strict=True):
        (only,) = classifications
        assert only.head_name == "probabilities"
        expected, step = run(path, photograph)
        assert_same_five(only.categories, expected, max(1e-6, step))
        tops.append([category.score for category in only.categories])
    assert np.ptp(tops, axis=0).max() > 0.05  # the photographs do differ


@pytest.mark.parametrize(
    ("mode", "io", "tolerance"), [("none", "float32", 1e-5), ("int8", "uint8", 0.1)], ids=["float32", "int8 uint8"]
)
def test_mediapipe_equals_keras(classify, embedded, photographs, tmp_path, mode, io, tolerance):
    """The embedded checkpoint: float32 exactly, and in int8 the same best class."""
    calibration = np.stack(photographs + [photograph[:, ::-1] for photograph in photographs])
    report = export_tflite(embedded, tmp_path, quantize=mode, io=io, calibration=calibration, labels=NAMES)
    expected = embedded.predict(preprocess_input(np.stack(photographs)), verbose=0)
    for scores, (found,) in zip(expected, classify(report.path, *photographs), strict=True):
        print(mode, io, found.categories[0].category_name, found.categories[0].score, scores.max())
        assert found.categories[0].index == scores.argmax()
        for category in found.categories:
            assert category.score == pytest.approx(scores[category.index], abs=tolerance)
        if mode == "none":
            assert_same_five(found.categories, scores, tolerance)
    assert expected.max() > 0.5


def test_mediapipe_names_both_heads(classify, build, photographs, tmp_path):
    model = build(head="both")
    path = export_tflite(model, tmp_path / "both.tflite", labels=NAMES).path
    (heads,) = classify(path, photographs[0])
    assert [head.head_name for head in heads] == ["probabilities", "probabilities_distillation"]
    for head, scores in zip(heads, model.predict(preprocess_input(photographs[0][None]), verbose=0), strict=True):
        assert_same_five(head.categories, scores[0], 1e-5)


@pytest.mark.parametrize("normalised", [False, True])
def test_mediapipe_embeds(tasks, build, photographs, tmp_path, normalised):
    """A file without the top opens in its ImageEmbedder, which gives LiteRT's values, or those of length 1."""
    vision, of_file, image = tasks
    report = export_tflite(build(include_top=False, pooling="avg"), tmp_path / "embedding.tflite")
    expected = np.stack([run(report.path, photograph)[0] for photograph in photographs])
    if normalised:
        expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    options = vision.ImageEmbedderOptions(**of_file(report.path), l2_normalize=normalised)
    with vision.ImageEmbedder.create_from_options(options) as embedder:
        for pixels, values in zip(photographs, expected, strict=True):
            (found,) = embedder.embed(image(pixels)).embeddings
            assert found.head_name == "embedding"
            np.testing.assert_allclose(found.embedding, values, atol=2e-6 * np.abs(values).max())


def test_mediapipe_without_labels_gives_numbers(classify, exported, photographs):
    path = exported(labelled=False)
    ((found,),) = classify(path, photographs[0])
    assert [category.index for category in found.categories] == list(np.argsort(-run(path, photographs[0])[0])[:5])
    assert not any(category.category_name for category in found.categories)


def test_mediapipe_normalises_only_nearly(classify, build, exported, photographs):
    """One mean and deviation for all channels is all it has, which is why files normalise by themselves."""
    model, pixels = build(), np.stack(photographs).astype("float32")
    nearly = model.predict((pixels - 255 * np.mean(MEAN)) / (255 * np.mean(STD)), verbose=0)
    for scores, (found,) in zip(nearly, classify(exported(include_preprocessing=False), *photographs), strict=True):
        assert_same_five(found.categories, scores, 1e-5)
    difference = np.abs(nearly - model.predict(preprocess_input(pixels), verbose=0)).max()
    print(f"one mean for three channels: {difference:.3f}")
    assert difference > 0.01


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"quantize": "int8", "io": "int8"}, "one of these types: uint8/float32, got INT8"),
        ({"quantize": "int8_integer", "io": "int8"}, "one of these types: uint8/float32, got INT8"),
        ({"batch_size": 2}, "Got 2 x 64 x 64 x 3"),
    ],
    ids=["int8 input", "int8_integer int8 input", "batch of 2"],
)
def test_mediapipe_refuses(classify, exported, photographs, arguments, words):
    """Not for want of metadata: it takes one image, in float32 or uint8. For apps that use it there is `io="uint8"`."""
    with pytest.raises(ValueError, match=words):
        classify(exported(**arguments), photographs[0])
