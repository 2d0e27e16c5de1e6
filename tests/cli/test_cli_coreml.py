"""The commands on Core ML packages: `export coreml`, `inspect` and `predict`, as a user types them."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from project import CHECKPOINT

from keras_efficientformer import cli

LABELS = CHECKPOINT.with_name("cifar10_labels.txt")


@pytest.fixture(scope="module")
def run():
    """Runs a command as the entry point does, and returns its exit code."""

    def run(*arguments):
        before, sys.argv = sys.argv, ["efficientformer", *map(str, arguments)]
        try:
            with pytest.raises(SystemExit) as exit_info:
                cli.main()
        finally:
            sys.argv = before
        return exit_info.value.code or 0

    return run


@pytest.fixture(scope="module")
def package(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    assert run("export", "coreml", CHECKPOINT, folder, "--labels", LABELS) == 0
    return folder / "efficientformer_l1_64_float16.mlpackage"


def test_export(package, run, tmp_path, capsys):
    assert package.is_dir()
    options = ("--compress", "int8", "--minimum-ios", "17", "--array", "--precision", "float32", "--json")
    assert run("export", "coreml", CHECKPOINT, tmp_path, *options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == "efficientformer_l1_64_float32_int8.mlpackage"
    assert report["inputs"][0]["dtype"] == "float32"
    assert report == json.loads((tmp_path / f"{report['path']}.json").read_text())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--compress", "int8", "--minimum-ios", "15"), "needs iOS 16"),
        (("--max-difference", "0"), "was not written"),
    ],
)
def test_export_refusals(run, tmp_path, capsys, options, words):
    assert run("export", "coreml", CHECKPOINT, tmp_path, *options) == 1
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_inspect(package, run, capsys):
    assert run("inspect", package) == 0
    output = capsys.readouterr().out
    assert "Neural Engine" in output
    assert "memory copy" in output
    assert not any(mark in output for mark in "{}'")  # words, not Python's values
    assert run("inspect", package, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["operations"]["conv"] == 37
    assert (facts["inputs"], facts["outputs"]) == (["image"], ["classLabel", "classLabel_probs"])
    assert facts["license"] == "Apache-2.0"
    assert (facts["input_size"], facts["pixels"]) == ([64, 64], "raw, in 0..255")
    assert facts["labels"] == LABELS.read_text().split()
    assert facts["bytes"] > facts["weights_bytes"] > 20e6
    assert {finding["rule"] for finding in facts["findings"]} == {"memory copy", "linear"}
    assert len(facts["largest"]) == 5


@pytest.mark.parametrize("what", ["missing", "empty", "damaged"])
def test_inspect_of_what_is_no_package(package, run, tmp_path, capsys, what):
    path = tmp_path / "m.mlpackage"
    if what != "missing":
        path.mkdir()
    if what == "damaged":
        (path / "Manifest.json").write_text("{")
    assert run("inspect", path) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "m.mlpackage" in error
    assert "Traceback" not in error


def test_predict_as_keras_does(package, run, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    scores = []
    for model in (package, CHECKPOINT):
        assert run("predict", tmp_path / "noise.png", "--model", model, "--labels", LABELS, "--json") == 0
        ((_, rows),) = json.loads(capsys.readouterr().out).items()
        scores.append({row["label"]: row["score"] for row in rows})
    assert scores[0].keys() == scores[1].keys()
    assert [*scores[0].values()] == pytest.approx([*scores[1].values()], abs=2e-3)
