"""Checkpoints of snap-research's segmentation code: read and written, beside a transcription in PyTorch."""

import json

import keras
import numpy as np
import pytest
import timm_reference
import timm_reference_v2
import torch
from networks import make_loud as make_loud_model
from semantic_fpn_reference import SemanticFPNReference, logits_of, make_loud
from typer.testing import CliRunner

import keras_efficientformer as kef
from keras_efficientformer.cli import app
from keras_efficientformer.conversion import CheckpointError, read_checkpoint, write_checkpoint
from keras_efficientformer.conversion.checkpoint import names_in_dialect
from keras_efficientformer.conversion.dialects import DIALECTS, DIALECTS_V2
from keras_efficientformer.layers.image_normalization import normalization_of
from keras_efficientformer.layers.predictions import labels_of
from keras_efficientformer.opening import open_model
from keras_efficientformer.segmentation import (
    SemanticFPN,
    from_checkpoint,
    load_state_dict,
    paper_semantic_fpn,
    to_state_dict,
)
from keras_efficientformer.variants import Architecture, ArchitectureV2

SHAPE = (128, 128, 3)
SMALL_V2 = timm_reference_v2.SMALL


def first_family():
    network = timm_reference.at_resolution(timm_reference.small_model(), (4, 4))
    names = names_in_dialect(Architecture((1, 1, 1, 2), (8, 16, 24, 32), 1), DIALECTS["snap"])
    return network, names, True


def second_family():
    network = timm_reference_v2.small_model(size=128)
    names = names_in_dialect(
        ArchitectureV2(*(SMALL_V2[name] for name in ("depths", "widths", "num_attention", "mlp_ratios"))),
        DIALECTS_V2["snap"],
    )
    return network, names, False


@pytest.fixture(scope="module", params=[first_family, second_family])
def reference(request):
    """(the transcription, its checkpoint)."""
    network, names, group_norms = request.param()
    found = SemanticFPNReference(network, 5, 16, 8, group_norms)
    make_loud(found.norms)
    make_loud(found.neck)
    make_loud(found.decode_head)
    return found, found.checkpoint(names)


@pytest.fixture
def file(reference, tmp_path):
    """As mmsegmentation saves it."""
    torch.save({"meta": {"iter": 40000}, "state_dict": reference[1]}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


@pytest.fixture(scope="module")
def images():
    return timm_reference.images(*SHAPE[:2])


def test_equals_pytorch(reference, file, images):
    model = from_checkpoint(file, input_shape=SHAPE, activation=None)
    expected = logits_of(reference[0], images)
    assert model.output_shape[1:] == expected.shape[1:] == (128, 128, 5)
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, atol=1e-5 * np.abs(expected).max())
    assert expected.std() > 0.05


def test_comes_back(reference, file):
    model = from_checkpoint(file, input_shape=SHAPE)
    found = to_state_dict(model)
    assert found.input_size == SHAPE[:2]
    unused = [name for name in found if name.endswith(("attention_biases", "attention_bias_idxs"))]
    assert unused
    assert not any(found[name].any() for name in unused if name.endswith("attention_biases"))
    for name, tensor in reference[1].items():
        if name.endswith("num_batches_tracked"):
            continue
        expected = tensor.numpy()
        np.testing.assert_array_equal(found.pop(name).reshape(expected.shape), expected, err_msg=name)
    assert all(name.endswith(("biases", "idxs", "idxs_seg", "num_batches_tracked")) for name in found)


def test_mutations(reference, file, images):
    """Each kind of damage is one error, and the model stays as it was."""
    model = from_checkpoint(file, input_shape=SHAPE)
    before = model.predict(images, verbose=0)
    tensors = {name: tensor.numpy() for name, tensor in reference[1].items()}
    lateral = "neck.lateral_convs.2.conv.weight"
    mutations = (
        ({lateral: None}, rf"1 missing \({lateral} \(16, \d+, 1, 1\)\)"),
        ({"decode_head.more": tensors[lateral]}, r"1 that the model does not have \(decode_head.more"),
        ({lateral: tensors[lateral][:3]}, rf"{lateral}: found \(3, \d+, 1, 1\), expected \(16, "),
        ({lateral: np.full_like(tensors[lateral], np.nan)}, "values that are NaN"),
        ({lateral: tensors[lateral].astype("int64")}, f"other dtypes .*{lateral} int64"),
        ({"backbone.patch_embed.0.bias": None}, "1 missing"),
        ({name: None for name in tensors if name.startswith("backbone.")}, "no tensor's name begins with backbone"),
    )
    for changes, words in mutations:
        damaged = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
        with pytest.raises(CheckpointError, match=words):
            load_state_dict(model, damaged)
    np.testing.assert_array_equal(model.predict(images, verbose=0), before)


def test_who_reads_classifiers_says_where_to_go(file):
    with pytest.raises(CheckpointError, match=r"of a segmentation model, .*segmentation\.from_checkpoint"):
        kef.from_checkpoint(file)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_keras_files_are_read_by_keras(file, tmp_path, suffix):
    """Not as an EfficientFormer with layers of one's own, as which they were refused."""
    model, path = from_checkpoint(file, input_shape=SHAPE), tmp_path / f"m{suffix}"
    (model.save if suffix == ".keras" else model.save_weights)(path)
    with pytest.raises(CheckpointError, match=r"holds a segmentation model, .*commands take \.keras and \.safetensors"):
        read_checkpoint(path)


def test_classifiers_are_refused(tmp_path):
    torch.save(timm_reference.small_model().state_dict(), tmp_path / "classifier.pth")
    with pytest.raises(CheckpointError, match="no checkpoint of snap-research's segmentation code"):
        from_checkpoint(tmp_path / "classifier.pth")


@pytest.mark.parametrize("reference", [first_family], indirect=True)
def test_commands(file, tmp_path):
    """mmsegmentation's file to Keras' and back; what there is in a file is said of both kinds alike."""

    def run(command, *arguments):
        return CliRunner().invoke(app, [command, *map(str, arguments), "--json"], catch_exceptions=False).stdout

    keras_file, again = tmp_path / "model.keras", tmp_path / "again.pth"
    assert json.loads(run("convert", file, keras_file))["output"] == [[128, 128, 5]]
    run("convert", keras_file, again)
    same_weights(open_model(again), from_checkpoint(file))
    for path in (keras_file, again):
        found = json.loads(run("inspect", path))
        assert (found["classes"], found["pyramid_channels"], found["head_channels"]) == (5, 16, 8)
        assert (found["input_size"], found["feature_norm"], found["finite"]) == ([128, 128], "group", True)
    with pytest.raises(ValueError, match="Received: timm; leave --dialect out"):
        run("convert", keras_file, tmp_path / "t.pth", "--dialect", "timm")


def same_weights(model, other):
    for variable, expected in zip(model.weights, other.weights, strict=True):
        if "seed" not in variable.path:
            np.testing.assert_array_equal(variable, expected, err_msg=variable.path)


def test_what_is_stated_comes_back(tmp_path):
    """A model of other norms, of other raw images and with names, through a .safetensors file."""
    arguments = {"include_top": False, "mean": (0.5,), "std": (0.25,)}
    backbone = kef.EfficientFormer((1, 1, 1, 2), (8, 16, 24, 32), input_shape=(64, 96, 1), **arguments)
    model = SemanticFPN(backbone, 3, 8, 8, "batch", None, labels=("sky", "road", "tree"))
    make_loud_model(model)
    write_checkpoint(tmp_path / "model.safetensors", to_state_dict(model))
    again = open_model(tmp_path / "model.safetensors")
    assert labels_of(again) == ("sky", "road", "tree")
    assert normalization_of(again) == normalization_of(model)
    same_weights(again, model)
    assert again.get_layer("masks").activation is model.get_layer("masks").activation is keras.activations.linear
    assert open_model(tmp_path / "model.safetensors", (64, 64)).output_shape == (None, 64, 64, 3)


def test_damaged_files_of_commands(reference, tmp_path):
    """What a command is given is as strictly checked as what the function is."""
    tensors = reference[1]
    logits = "decode_head.conv_seg.weight"
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("neck.")}
    narrow = tensors | {logits: tensors[logits][:, :4]}
    wrong_sides = rf"{logits}: found \(5, 4, 1, 1\), expected \(5, 8, 1, 1\)"
    for damaged, words in ((narrow, wrong_sides), (without, "it lacks neck")):
        torch.save(damaged, tmp_path / "damaged.pth")
        with pytest.raises(CheckpointError, match=words):
            open_model(tmp_path / "damaged.pth")


def test_other_models():
    backbone = kef.EfficientFormer((1, 1, 1, 2), (8, 16, 24, 32), input_shape=(64, 64, 3), include_top=False)
    with pytest.raises(ValueError, match="is no SemanticFPN"):
        to_state_dict(backbone)


def test_the_papers_model():
    """Its channels and norms; the head alone has more weights than an L1's has in its body."""
    first = kef.EfficientFormer((1, 1, 1, 1), (8, 8, 8, 8), input_shape=(64, 64, 3), include_top=False)
    model = paper_semantic_fpn(first, activation=None)
    assert model.output_shape == (None, 64, 64, 150)
    assert model.get_layer("P2_pyramid").filters == 256
    assert model.get_layer("P5_head3_conv").filters == 128
    assert to_state_dict(model)["decode_head.conv_seg.weight"].shape == (150, 128, 1, 1)


def test_published_l1_at_its_size(tmp_path):
    """L1 with the names of snap-research's own files, at 512x512 with the paper's channels."""
    network = timm_reference.at_resolution(timm_reference.loud_model("l1"), (16, 16))
    found = SemanticFPNReference(network, 150, 256, 128, group_norms=True)
    make_loud(found.norms)
    rows = timm_reference.tensor_table("l1")
    torch.save({"state_dict": found.checkpoint({row[0]: row[1] for row in rows})}, tmp_path / "l1.pth")
    images = timm_reference.images(512, 512, batch=1)
    model = from_checkpoint(tmp_path / "l1.pth", activation=None)
    expected = logits_of(found, images)
    difference = np.abs(model.predict(images, verbose=0) - expected).max() / np.abs(expected).max()
    print(f"largest difference {difference:.1e} of the largest logit")
    assert difference < 1e-5
    assert model.name == "efficientformer_l1_semantic_fpn"
