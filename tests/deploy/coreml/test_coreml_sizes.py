"""Several input sizes in one Core ML package: each function is Keras at its size, and all share the weights."""

import json
import sys

import coremltools as ct
import numpy as np
import pytest
from networks import raw_images, small

from keras_efficientformer import cli, from_checkpoint
from keras_efficientformer.classifiers.opening import open_classifier
from keras_efficientformer.conversion import to_state_dict, write_checkpoint
from keras_efficientformer.deploy import export_coreml
from keras_efficientformer.deploy.coreml.package import PackageError, function_sizes, load_package
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.layer_errors import layer_errors
from keras_efficientformer.imagenet import preprocess_input

SIZES = {"main": (96, 64), "size_64": (64, 64)}
LABELS = tuple("abcdefghij")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{function: the same weights in Keras at its size}."""
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    write_checkpoint(path, to_state_dict(small()))
    arguments = {"classifier_activation": "softmax", "labels": LABELS}
    return {name: from_checkpoint(path, input_shape=size, **arguments) for name, size in SIZES.items()}


@pytest.fixture(scope="module")
def package(models, tmp_path_factory):
    """The package of both sizes, as the command writes it of a model whose own is the second."""
    folder = tmp_path_factory.mktemp("sizes")
    models["size_64"].save(folder / "model.keras")
    options = ("--precision", "float32", "--minimum-ios", 18, "--input-sizes", "96x64,64")
    run("export", "coreml", folder / "model.keras", folder, *options)
    return folder / "efficientformer_96x64_64_float32.mlpackage"


def run(*arguments):
    before, sys.argv = sys.argv, ["efficientformer", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
    finally:
        sys.argv = before
    assert not exit_info.value.code


@pytest.mark.parametrize("function", SIZES)
def test_each_size_is_keras_at_that_size(models, package, function):
    images = raw_images(models[function], 3)
    expected = models[function].predict(preprocess_input(images), verbose=0)
    opened = CoreMLModel(package, function=function)
    found = opened.predict(images)
    np.testing.assert_allclose(found["classLabel_probs"], expected, rtol=0, atol=1e-5)
    assert found["classLabel"].tolist() == [LABELS[index] for index in expected.argmax(-1)]
    assert np.ptp(expected, axis=0).max() > 0.01  # the images' answers are not all alike
    assert (opened.input_shape, opened.labels) == ((*SIZES[function], 3), LABELS)


def test_apple_s_description(package):
    """What Xcode and Vision read: an image for each function, and which of them opens by default."""
    spec = ct.models.MLModel(str(package), skip_model_load=True).get_spec()
    assert spec.specificationVersion == ct.target.iOS18
    assert spec.description.defaultFunctionName == "main"
    assert not spec.description.input
    for function in spec.description.functions:
        image = function.input[0].type.imageType
        assert (image.height, image.width) == SIZES[function.name]
        names = function.predictedFeatureName, function.predictedProbabilitiesName
        assert names == ("classLabel", "classLabel_probs")
    metadata = spec.description.metadata
    assert metadata.author == "keras-efficientformer"
    assert "96x64, 64x64" in metadata.shortDescription
    assert metadata.userDefined["com.apple.coreml.model.preview.type"] == "imageClassifier"


def offsets(path):
    """{function: {name of a constant in the file of weights: its place}}."""
    spec = load_package(path).spec
    found = {}
    for name, function in spec.mlProgram.functions.items():
        (block,) = function.block_specializations.values()
        constants = [(op.outputs[0].name, value) for op in block.operations for value in op.attributes.values()]
        found[name] = {key: value.blobFileValue.offset for key, value in constants if value.blobFileValue.offset}
    return found


@pytest.mark.parametrize("compress", ["none", "palette4"])
def test_weights_are_stored_once(models, package, compress, tmp_path):
    path = package
    if compress != "none":
        path = tmp_path / "model.mlpackage"
        report = export_coreml(models["size_64"], path, compress=compress, minimum_ios=18, input_sizes=[64, (96, 64)])
        assert [size.name for size in report.further_sizes] == ["size_96x64"]
        assert all(0 < difference.max <= report.limit for difference in report.all_differences)
    one, other = offsets(path).values()
    assert len(one) > 20
    # The biases of its attention, one addition, are each size's own.
    (own,) = (name for name in one if other.get(name) != one[name])
    assert own.startswith("add")


def test_the_report_has_both_sizes(package):
    report = json.loads((package.parent / f"{package.name}.json").read_text())
    (further,) = report["further_sizes"]
    assert further["name"] == "size_64"
    assert (report["inputs"][0]["shape"], further["inputs"][0]["shape"]) == ([1, 3, 96, 64], [1, 3, 64, 64])
    assert 0 < further["differences"][0]["max"] <= report["limit"]
    assert report["requires"] == "iOS 18 or newer"


def test_what_reads_packages_finds_the_size(models, package, capsys):
    assert function_sizes(package) == SIZES
    assert CoreMLModel(package).input_shape == (96, 64, 3)
    assert (open_classifier(package, (64, 64)).size, open_classifier(package).size) == ((64, 64), (96, 64))
    with pytest.raises(ValueError, match="takes images of 96x64, 64x64 pixels and no others"):
        open_classifier(package, (96, 96))
    with pytest.raises(PackageError, match="no function size_32"):
        CoreMLModel(package, function="size_32")
    errors = layer_errors(package, models["size_64"])
    assert len(errors.layers) > 20
    assert max(layer.error for layer in errors.layers) < 1e-4
    run("inspect", package, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["functions"] == {name: list(size) for name, size in SIZES.items()}
    assert facts["input_size"] == [96, 64]
    assert facts["operations"] == CoreMLModel(package).operations()
    found = [(finding["rule"], finding["operation"]) for finding in facts["findings"]]
    assert len(set(found)) == len(found)


def test_older_systems_have_no_functions(models, tmp_path):
    with pytest.raises(ValueError, match=r"need iOS 18, minimum_ios=18\. Received: minimum_ios=16"):
        export_coreml(models["size_64"], tmp_path / "model.mlpackage", input_sizes=[64, 96])
    with pytest.raises(ValueError, match="has 64x64 twice"):
        export_coreml(models["size_64"], tmp_path / "model.mlpackage", minimum_ios=18, input_sizes=[64, (64, 64)])
    assert not list(tmp_path.iterdir())
