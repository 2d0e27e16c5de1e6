"""`efficientformer app android` and `app ios`: what is wrong with their arguments is told before a model is opened."""

import sys

import pytest
from typer.testing import CliRunner

from keras_efficientformer import EfficientFormer, conversion, segmentation
from keras_efficientformer.cli import app
from keras_efficientformer.cli.apps.phones import open_for

FORMATS = {"android": ".tflite", "ios": ".mlpackage"}


def failure(*arguments):
    result = CliRunner().invoke(app, ["app", *map(str, arguments)])
    assert result.exit_code != 0
    return result


@pytest.fixture
def _no_keras(monkeypatch):
    """An import of the module that opens Keras models fails."""
    monkeypatch.setitem(sys.modules, "keras_efficientformer.opening", None)


@pytest.mark.usefixtures("_no_keras")
@pytest.mark.parametrize("kind", FORMATS)
def test_bad_arguments(kind, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "taken").mkdir()
    exported = tmp_path / f"model{FORMATS[kind]}"
    exported.touch()
    (other,) = (tmp_path / f"other{suffix}" for suffix in FORMATS.values() if suffix != FORMATS[kind])
    other.touch()
    cases = [
        (("l11", "app"), FileNotFoundError, "Did you mean l1"),
        ((tmp_path / "none.keras", "app"), FileNotFoundError, "is neither a file nor"),
        ((tmp_path / "photos", tmp_path / "app"), ValueError, "holds no finished run"),
        (("l1", tmp_path / "taken"), FileExistsError, "taken exists"),
        (("l1", tmp_path / "none" / "app"), FileNotFoundError, "The folder .* does not exist"),
        ((exported, tmp_path / "app", "--size", "64"), ValueError, "leave --size out"),
        ((other, tmp_path / "app"), ValueError, f"This app runs {FORMATS[kind]} files. Give the model that"),
        (("l1", tmp_path / "app", "--labels", tmp_path / "none.txt"), FileNotFoundError, "none.txt does not exist"),
    ]
    for arguments, error, message in cases:
        result = failure(kind, *arguments)
        assert type(result.exception) is error, (arguments, result.exception)
        with pytest.raises(error, match=message):
            raise result.exception
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "taken", exported.name, other.name}


def test_crop_is_the_one_that_is_stated_and_segmenters_have_none(tmp_path):
    backbone = EfficientFormer((1, 1, 1, 1), (8, 8, 8, 8), input_shape=(32, 32, 3), include_top=False)
    masks = segmentation.SemanticFPN(backbone, 2, 8, 8)
    for name, tensors in (("m", segmentation.to_state_dict(masks)), ("b", conversion.to_state_dict(backbone))):
        conversion.write_checkpoint(tmp_path / f"{name}.safetensors", tensors)
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"crop_pct": 0.8}}')
    for name, crop in (("m", None), ("b", 0.8)):
        source = str(tmp_path / f"{name}.safetensors")
        assert open_for(".tflite", source, tmp_path / "app", None, False)[1] == crop


@pytest.mark.parametrize(("kind", "option"), [("android", "--quantize"), ("ios", "--compress")])
def test_wrong_usage(kind, option):
    assert failure(kind, "l1", "folder", option, "int3").exit_code == 2


def test_a_folder_is_no_model(tmp_path):
    """Where it is a run, its best model is named."""
    for advice in (r"give the path of a model's file\.", r"a model's file, here .*best\.keras\."):
        result = CliRunner().invoke(app, ["inspect", str(tmp_path)])
        with pytest.raises(IsADirectoryError, match=rf"is a folder: .*{advice}"):
            raise result.exception
        (tmp_path / "best.keras").touch()
