"""Core ML packages with int8 activations: what lies between the pairs, with which scales, and what it is worth."""

import json
import sys

import numpy as np
import pytest
import timm_reference_v2
from PIL import Image

import keras_efficientformer as kef
from keras_efficientformer import cli
from keras_efficientformer.deploy import export_coreml
from keras_efficientformer.deploy.coreml.int8.coverage import int8_counts
from keras_efficientformer.deploy.coreml.int8.pairs import int8_scales
from keras_efficientformer.deploy.coreml.package import load_package
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.network.fuse import fuse
from keras_efficientformer.deploy.network.keras_builder import measured_ranges
from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.images import seeded_images

IMAGES = np.concatenate([seeded_images((64, 64, 3)) * share for share in (1.0, 0.8, 0.6)]).round()
W8A8 = {"compress": "w8a8", "minimum_ios": 17}


def noise(seed):
    return np.random.default_rng(seed).uniform(0, 255, (3, 64, 64, 3)).round().astype("float32")


@pytest.fixture(scope="module")
def model(build):
    return build(classifier_activation=None)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The report, and the package opened: with the stages as outputs, which stay float."""
    path = tmp_path_factory.mktemp("w8a8") / "m.mlpackage"
    with pytest.warns(UserWarning, match="Only 12 calibration images"):
        report = export_coreml(model, path, calibration=IMAGES, feature_maps=True, **W8A8)
    return report, CoreMLModel(path)


def operations(package, kind):
    return [operation for operation in package.block.operations if operation.op_type == kind]


def test_the_report(exported):
    report, _ = exported
    assert (report.mode, report.requires, report.images) == ("w8a8", "iOS 17 or newer", len(IMAGES))
    assert report.images_from == "the given arrays"
    # Int8 costs something, and far from everything.
    assert all(1e-3 < difference.relative < 0.1 for difference in report.differences)
    assert report.differences[-1].top1_agreement == 1


def test_all_that_multiplies_lies_between_pairs(exported):
    """But the scores, which a softmax takes, and the logits. Of the additions those of the mixers, whose averages are
    multiplied in float, and the last, which only a LayerNorm takes."""
    _, package = exported
    convolutions = len(operations(package, "conv"))
    assert convolutions > 15
    counts = int8_counts(load_package(package.path).program)
    assert counts | {"add": ""} == {
        "conv": f"{convolutions} of {convolutions}",
        "matmul": "1 of 2",
        "linear": "0 of 1",
        "add": "",
    }
    for operation in [*operations(package, "conv"), *operations(package, "linear")]:
        assert operation.weight.op.op_type == "constexpr_affine_dequantize"
        assert operation.weight.op.scale.shape == (operation.weight.shape[0],)  # one for each output channel
    for kind in ("softmax", "layer_norm"):
        assert {operation.outputs[0].dtype.__name__ for operation in operations(package, kind)} == {"fp16"}


def test_scales_are_symmetric_and_of_the_ranges_seen(exported):
    _, package = exported
    tensors = package.tensors(IMAGES)
    shares = {}
    for operation in operations(package, "quantize"):
        assert operation.output_dtype.val == "int8"
        assert operation.zero_point is None
        assert operation.scale.shape == ()
        shares[operation.name] = np.abs(tensors[operation.input.name]).max() / (127 * float(operation.scale.val))
    image, softmax = (next(name for name in shares if kind in name) for kind in ("image", "softmax"))
    mean = 255 * np.array([0.485, 0.456, 0.406])
    scale = next(operation.scale.val for operation in operations(package, "quantize") if operation.name == image)
    assert float(scale) == pytest.approx((255 - mean).max() / 127, rel=1e-3)
    others = [share for name, share in shares.items() if name not in (image, softmax)]
    # The ranges were measured in float32, and the tensors are of int8 arithmetic.
    assert len(others) > 30
    assert min(others) > 0.85
    assert max(others) < 1.15


def test_outputs_inside_are_not_rounded(exported, model):
    _, package = exported
    found = package.predict(noise(1))
    assert list(found) == ["stage1", "stage2", "stage3", "stage4", "logits"]
    for name in list(found)[:-1]:
        assert len(np.unique(found[name])) > 256
    expected = model.predict(preprocess_input(noise(1)), verbose=0)
    assert np.abs(found["logits"] - expected).max() < 0.1 * np.abs(expected).max()


def test_branches_too_weak_for_int8():
    """As fresh layer scales of 1e-5 leave them: scales would be zero in float16, and sums in multiples overflow it."""
    network = fuse(kef.EfficientFormer((1, 1, 1, 2), (8, 16, 24, 32), 1, weights=None, input_shape=(32, 32, 3)))
    makers = {value: (n, i) for n, step in enumerate(network.steps) for i, value in enumerate(step.results)}
    sums = [
        step.arguments
        for step in network.steps
        if step.operation == "add" and not isinstance(step.arguments["y"], np.ndarray)
    ]
    parts = [(makers[arguments["x"]], makers[arguments["y"]]) for arguments in sums[:2]]
    measured = {n: [(-1.0, 1.0)] * len(step.results) for n, step in enumerate(network.steps)}
    for (trunk, branch), (large, small) in zip(parts, ((1000.0, 1e-6), (0.0, 0.0)), strict=True):
        measured[trunk[0]], measured[branch[0]] = [(-large, 0.5 * large)], [(-0.5 * small, small)]
    found = int8_scales(network, measured, {})
    (trunk, branch), dead = parts
    assert found[trunk] == pytest.approx(1000 / 127)
    assert found[branch] == pytest.approx(found[trunk] / 256)
    assert [found[part] for part in dead] == [2.0**-14] * 2
    assert list(found.values()).count(1 / 127) > 20


def test_other_networks_and_precisions(tmp_path):
    """EfficientFormerV2 by EfficientFormer's rules: nothing of them knows the network."""
    model = kef.EfficientFormerV2(**timm_reference_v2.SMALL, input_shape=(64, 64, 3), classes=10)
    calibration = seeded_images((64, 64, 3))
    report = export_coreml(
        model, tmp_path / "v2.mlpackage", precision="float32", calibration=calibration, **W8A8 | {"minimum_ios": 18}
    )
    package = CoreMLModel(report.path)
    kinds = {operation.weight.op.op_type for operation in operations(package, "conv")}
    # What mixes the heads' scores is left in float, with its weights.
    assert kinds == {"constexpr_blockwise_shift_scale", "const"}
    inside, all_ = map(int, int8_counts(load_package(package.path).program)["conv"].split(" of "))
    heads = [operation for operation in operations(package, "conv") if "talking_heads" in operation.name]
    assert heads
    assert inside == all_ - len(heads)
    assert {output.dtype for output in package.outputs if output.dtype != "str"} == {"float32"}


def test_what_training_does_not_learn_follows_from_the_rest():
    """Of attention, which TFLite computes in float, training learns what comes in and what goes out."""
    network = fuse(kef.EfficientFormerV2(**timm_reference_v2.SMALL, input_shape=(64, 64, 3), classes=10))
    measured = measured_ranges(network, noise(2))
    unknown = ("split_heads", "to_heads", "scores", "softmax", "talking_heads", "weighted_values")
    learnt = {n: ends for n, ends in measured.items() if network.steps[n].operation not in unknown}
    exact, found = int8_scales(network, measured, {}), int8_scales(network, {}, learnt)
    assert found.keys() == exact.keys()
    # The same or, where a range follows from others, wider.
    assert all(found[result] >= exact[result] * 0.999 for result in found)
    assert sum(found[result] > exact[result] for result in found) < len(found) / 4
    del learnt[next(n for n in learnt if network.steps[n].operation == "gelu")]
    with pytest.raises(
        ValueError, match=r"Nothing is known of the range of step \d+ .*, gelu at stem.*pass calibration"
    ):
        int8_scales(network, {}, learnt)


def test_the_command(model, tmp_path, capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["efficientformer", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        assert not exit_info.value.code
        return capsys.readouterr().out

    (tmp_path / "images").mkdir()
    for number, image in enumerate(IMAGES.astype("uint8")):
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    model.save(tmp_path / "m.keras")
    options = ("--compress", "w8a8", "--calibration", tmp_path / "images", "--minimum-ios", 17, "--json")
    report = json.loads(run("export", "coreml", tmp_path / "m.keras", tmp_path / "m.mlpackage", *options))
    assert (report["mode"], report["images_from"], report["images"]) == ("w8a8", "images", 12)
    printed = run("inspect", tmp_path / "m.mlpackage")
    assert "computed in int8" in printed
    assert "float beside int8" in printed
    facts = json.loads(run("inspect", tmp_path / "m.mlpackage", "--json"))
    assert facts["computed_in_int8"]["matmul"] == "1 of 2"
    assert {finding["message"] for finding in facts["findings"]} >= {
        "gives a float to add",
        "takes a float from mul",
        "gives a float to the program's output",
    }
