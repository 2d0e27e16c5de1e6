"""Several input sizes in one .tflite file: each is Keras at its size, and all share the weights."""

import json
import shutil
import sys

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from exports import run_litert
from mediapipe_tasks import vision_tasks
from networks import raw_images, small
from PIL import Image
from typer.testing import CliRunner

from keras_efficientformer import cli, from_checkpoint
from keras_efficientformer.classifiers.opening import open_classifier
from keras_efficientformer.conversion import to_state_dict, write_checkpoint
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.benchmark.computer import benchmark_tflite
from keras_efficientformer.deploy.layer_errors import layer_errors
from keras_efficientformer.deploy.report import short
from keras_efficientformer.deploy.tflite import file as tflite_file
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel, check_survival
from keras_efficientformer.deploy.tflite.sizes.signatures import signature_sizes
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.segmentation import SemanticFPN
from keras_efficientformer.sharing.pushing import write_repository

SIZES = {"serving_default": (96, 64), "size_64": (64, 64), "size_75x47": (75, 47)}
LABELS = tuple("abcdefghij")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{signature: the same weights in Keras at its size}."""
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    write_checkpoint(path, to_state_dict(small()))
    return {
        name: from_checkpoint(path, input_shape=size, classifier_activation="softmax") for name, size in SIZES.items()
    }


@pytest.fixture(scope="module")
def file(models, tmp_path_factory):
    """The file of three sizes, as the command writes it of a model whose own is the second."""
    folder = tmp_path_factory.mktemp("sizes")
    models["size_64"].save(folder / "model.keras")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    options = ("--labels", folder / "labels.txt", "--input-sizes", "96x64,64,75x47")
    run("export", "tflite", folder / "model.keras", folder, *options)
    (file,) = folder.glob("*.tflite")
    return file


def run(*arguments):
    before, sys.argv = sys.argv, ["efficientformer", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
    finally:
        sys.argv = before
    assert not exit_info.value.code


@pytest.mark.parametrize("signature", SIZES)
def test_each_size_is_keras_at_that_size(models, file, signature):
    images = raw_images(models[signature], 3)
    expected = models[signature].predict(preprocess_input(images), verbose=0)
    opened = LiteRTModel(file, signature=signature)
    np.testing.assert_allclose(opened.predict(images)["probabilities"], expected, rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.01  # the images' answers are not all alike
    assert (opened.input_shape, opened.outputs[0].name) == ((*SIZES[signature], 3), "probabilities")


def test_the_first_size_is_what_litert_opens(models, file):
    images = raw_images(models["serving_default"])
    found = run_litert(file, images)["probabilities"]
    np.testing.assert_array_equal(LiteRTModel(file).predict(images)["probabilities"], found)
    np.testing.assert_array_equal(
        LiteRTModel(file, signature="serving_default").predict(images)["probabilities"], found
    )
    assert signature_sizes(file) == SIZES
    assert list(signature_sizes(file)) == list(SIZES)


def test_weights_are_stored_once(file):
    read = tflite_file.read(file.read_bytes())
    contents = [bytes(buffer.data) for buffer in read.buffers if buffer.data is not None]
    assert len(set(contents)) == len(contents)
    # What a size adds is the tables of its attention, 8 heads x tokens x tokens, and shapes.
    own, *others = ({tensor.buffer for tensor in graph.tensors} for graph in read.subgraphs)
    for added in others:
        assert sum(len(read.buffers[number].data) for number in added - own if number) < 10_000
        assert (
            sum(len(read.buffers[number].data) for number in added & own if read.buffers[number].data is not None) > 2e5
        )


def test_all_sizes_are_one_xnnpack_partition(file, tmp_path):
    """LiteRT says it of a file's first network only, so each is put first."""
    for place in range(1, len(SIZES)):
        read = tflite_file.read(file.read_bytes())
        read.subgraphs[0], read.subgraphs[place] = read.subgraphs[place], read.subgraphs[0]
        read.signatureDefs[0].subgraphIndex, read.signatureDefs[place].subgraphIndex = place, 0
        (tmp_path / "turned.tflite").write_bytes(tflite_file.pack(read))
        turned = LiteRTModel(tmp_path / "turned.tflite")
        assert (turned.input_shape[:2], turned.partitions()) == (list(SIZES.values())[place], 1)
        # The operators that are read of the file are those that LiteRT lists.
        name = list(SIZES)[place]
        listed = LiteRTModel(file, signature=name).operator_details()
        expected = turned.operator_details()
        assert [operator["op_name"] for operator in listed] == [operator["op_name"] for operator in expected]
        for ends in ("inputs", "outputs"):
            assert [list(o[ends]) for o in listed] == [[index for index in o[ends] if index >= 0] for o in expected]


def test_the_report_has_all_sizes(file):
    assert file.name == "efficientformer_96x64_64_75x47_float32.tflite"
    report = json.loads((file.parent / f"{file.name}.json").read_text())
    assert report["inputs"][0]["shape"] == [1, 96, 64, 3]
    assert [size["name"] for size in report["further_sizes"]] == ["size_64", "size_75x47"]
    for size in report["further_sizes"]:
        assert size["inputs"][0]["shape"] == [1, *SIZES[size["name"]], 3]
        assert 0 < size["differences"][0]["max"] <= report["limit"]
        assert size["operations"] == report["operations"]
    assert "open files of one input size only" in report["requires"]


def test_mediapipe_opens_the_first_size_where_it_takes_files_of_several(models, file):
    """Its ImageEmbedder does; its ImageClassifier does not, as READMEs and reports say."""
    vision, options, image = vision_tasks()
    pixels = raw_images(models["serving_default"])[0].astype("uint8")
    with vision.ImageEmbedder.create_from_options(vision.ImageEmbedderOptions(**options(file))) as embedder:
        found = embedder.embed(image(pixels)).embeddings[0].embedding
    np.testing.assert_allclose(found, run_litert(file, pixels[None].astype("float32"))["probabilities"][0], atol=1e-6)
    with pytest.raises(ValueError, match="assumed to have a single subgraph"):
        vision.ImageClassifier.create_from_options(vision.ImageClassifierOptions(**options(file)))


def test_what_reads_files_finds_the_size(models, file, capsys):
    images = raw_images(models["size_64"])
    classifier = open_classifier(file, (64, 64))
    np.testing.assert_array_equal(
        classifier.predict(images), LiteRTModel(file, signature="size_64").predict(images)["probabilities"]
    )
    assert (classifier.labels, open_classifier(file).size) == (LABELS, (96, 64))
    with pytest.raises(ValueError, match="takes images of 96x64, 64x64, 75x47 pixels and no others"):
        open_classifier(file, (96, 96))
    errors = layer_errors(file, models["size_75x47"])
    assert len(errors.layers) > 20
    assert max(layer.error for layer in errors.layers) < 1e-4
    run("inspect", file, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["signatures"] == {name: list(size) for name, size in SIZES.items()}
    with pytest.raises(ValueError, match=r"no signature 'size_32'\. Found: serving_default, size_64, size_75x47"):
        LiteRTModel(file, signature="size_32")
    (result,) = benchmark_tflite([file], runs=1, warmup=0).results
    assert result.note == f"{file.name}: the first of its sizes, 96x64, 64x64, 75x47; all of them are loaded"
    refused = CliRunner().invoke(cli.app, ["inspect", str(file), "--size", "64"])
    assert (refused.exit_code, "model that --against names" in " ".join(refused.stderr.split())) == (2, True)


def test_what_is_published_is_checked_at_the_size_of_the_model(file, tmp_path):
    """Which is not the file's first; the card tells the largest difference of all sizes."""
    exported = tmp_path / file.name
    shutil.copy(file, exported)
    report = json.loads((file.parent / f"{file.name}.json").read_text())
    found = [difference["max"] for size in (report, *report["further_sizes"]) for difference in size["differences"]]
    report["further_sizes"][0]["differences"][0]["max"] = largest = 2 * max(found)
    (tmp_path / f"{file.name}.json").write_text(json.dumps(report))
    write_repository(file.parent / "model.keras", "owner/name", tmp_path / "repository", exports=[exported])
    (row,) = (row for row in (tmp_path / "repository" / "README.md").read_text().splitlines() if file.name in row)
    assert f" {short(largest)} " in row


def test_a_later_network_that_cannot_run_is_found(file, tmp_path):
    read = tflite_file.read(file.read_bytes())
    later = read.subgraphs[2]
    later.tensors[later.inputs[0]].shape = [1, 75, 47, 4]
    (tmp_path / "bad.tflite").write_bytes(tflite_file.pack(read))
    LiteRTModel(tmp_path / "bad.tflite")
    with pytest.raises(ValueError, match=r"bad.tflite is not a TFLite file that LiteRT can run"):
        check_survival(tmp_path / "bad.tflite")


@pytest.mark.filterwarnings("ignore:Only 4 calibration images")
@pytest.mark.parametrize(("mode", "stored"), [("int8", "INT8"), ("dynamic", "FLOAT16")])
def test_quantized_sizes_answer_as_a_file_of_each_alone(models, tmp_path, mode, stored):
    """Ranges are those of each size; only the tables of biases are stored smaller than in a file of one size."""
    rng = np.random.default_rng(5)
    noise = [Image.fromarray(rng.integers(0, 256, (8, 9, 3), "uint8")).resize((120, 100)) for _ in range(4)]
    arguments = {"quantize": mode, "labels": LABELS, "max_difference": 1.0}
    several, alone = tmp_path / "several.tflite", tmp_path / "alone.tflite"
    export_tflite(models["serving_default"], several, input_sizes=[(96, 64), 64], calibration=iter(noise), **arguments)
    report = export_tflite(models["size_64"], alone, calibration=noise, **arguments)
    for graph in tflite_file.read(several.read_bytes()).subgraphs:
        tensors = {tensor.name: tensor for tensor in graph.tensors}
        (name,) = (name for name in tensors if b"add" in name and name.endswith(b"/DEQUANTIZE"))
        table, of_it = tensors[name], tensors[name.removesuffix(b"/DEQUANTIZE")]
        assert (of_it.type, table.type) == (getattr(schema.TensorType, stored), schema.TensorType.FLOAT32)
    images = raw_images(models["size_64"], 8)
    exact = models["size_64"].predict(preprocess_input(images), verbose=0)
    found = LiteRTModel(several, signature="size_64").predict(images)["probabilities"]
    error = np.abs(LiteRTModel(alone).predict(images)["probabilities"] - exact).mean()
    assert 0 < np.abs(found - exact).mean() < 1.1 * error
    # What is dequantized is no operation that XNNPACK leaves out.
    assert LiteRTModel(several).partitions() == report.partitions


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([64, 31], "32 at least. Received: 31"),
        ([64, (64, 31)], "32 at least"),
        ([64, 96.5], "whole numbers of pixels"),
        ([64, True], "whole numbers of pixels"),
        ([64, (96, 96, 3)], "pairs"),
        ([64, 96, (64, 64)], "has 64x64 twice"),
        ([96, 128], "the model's own size among them, 64x64"),
        ([], "the model's own size among them"),
        (64, r"a list such as \[224, \(384, 288\)\]"),
        ("64", "a list such as"),
    ],
    ids=str,
)
def test_sizes_that_are_none(models, tmp_path, sizes, words):
    with pytest.raises(ValueError, match=words):
        export_tflite(models["size_64"], tmp_path / "model.tflite", labels=LABELS, input_sizes=sizes)
    assert not list(tmp_path.iterdir())


def test_models_and_targets_that_have_one_size(models, tmp_path):
    sizes = {"input_sizes": [64, 96]}
    model = models["size_64"]
    body = small(include_top=False, pooling="avg")
    headed = keras.Model(body.inputs, keras.layers.Dense(3, name="own")(body.outputs[0]))
    for other in (headed, SemanticFPN(small(), 3, 8, 8)):
        with pytest.raises(
            ValueError, match=r"cannot be made for 96x96 pixels: it has .* for an EfficientFormer alone"
        ):
            export_tflite(other, tmp_path / "model.tflite", labels=LABELS[:3], **sizes)
    with pytest.raises(ValueError, match="at one size: leave `input_sizes` or `npu` out"):
        export_tflite(model, tmp_path / "model.tflite", labels=LABELS, npu="qualcomm:SM8750", **sizes)
    arrays = np.zeros((2, 64, 64, 3), "uint8")
    with pytest.raises(ValueError, match="Images of the shape"):
        export_tflite(model, tmp_path / "model.tflite", labels=LABELS, calibration=arrays, **sizes)
    assert not list(tmp_path.iterdir())
