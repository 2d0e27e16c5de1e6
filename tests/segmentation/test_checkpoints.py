"""Checkpoints of snap-research's segmentation code: read and written, beside a transcription in PyTorch."""

import numpy as np
import pytest
import timm_reference
import timm_reference_v2
import torch
from semantic_fpn_reference import SemanticFPNReference, logits_of, make_loud

import keras_efficientformer as kef
from keras_efficientformer.conversion import CheckpointError
from keras_efficientformer.conversion.checkpoint import names_in_dialect
from keras_efficientformer.conversion.dialects import DIALECTS, DIALECTS_V2
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
        ({lateral: None}, f"missing {lateral}"),
        ({"decode_head.more": tensors[lateral]}, "more than the model has decode_head.more"),
        ({lateral: tensors[lateral][:3]}, r"neck\.lateral_convs\.2\.conv\.weight: \(1, 1, \d+, 3\)"),
        ({lateral: np.full_like(tensors[lateral], np.nan)}, "values that are NaN"),
        ({"backbone.patch_embed.0.bias": None}, "missing"),
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


def test_classifiers_are_refused(tmp_path):
    torch.save(timm_reference.small_model().state_dict(), tmp_path / "classifier.pth")
    with pytest.raises(CheckpointError, match="no checkpoint of snap-research's segmentation code"):
        from_checkpoint(tmp_path / "classifier.pth")


def test_other_norms_and_other_models():
    backbone = kef.EfficientFormer((1, 1, 1, 2), (8, 16, 24, 32), input_shape=(64, 64, 3), include_top=False)
    with pytest.raises(ValueError, match="make it with feature_norm='group'"):
        to_state_dict(SemanticFPN(backbone, 3, 8, 8))
    with pytest.raises(ValueError, match="is no SemanticFPN of this package"):
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
