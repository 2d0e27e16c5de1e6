"""Files on LiteRT's GPU engine: every mode that promises the GPU, and files that it computes partly or wrongly.

The engine is real, its driver SwiftShader where there is no GPU (`tflite/gpu/setup.sh`).
"""

import json
import sys

import keras
import pytest
from exports import contents
from PIL import Image
from project import CHECKPOINT, ROOT
from typer.testing import CliRunner

import keras_efficientformer as kef
from keras_efficientformer.cli import app
from keras_efficientformer.deploy import ExportError, export_tflite
from keras_efficientformer.deploy.tflite.accelerators import gpu
from keras_efficientformer.deploy.tflite.accelerators.gpu import check_on_gpu
from keras_efficientformer.errors import DeviceError
from keras_efficientformer.images import seeded_images

sys.path.append(str(ROOT / "benchmarks"))
from arm_instructions import convert_plainly

# {mode: the largest difference from LiteRT's CPU, of the largest value}. What is quantized the GPU computes in float;
# what is stored in float16 a CPU may compute in float16.
ON_GPU = {
    "none": 2e-6,
    "float16": 0.005,
    "dynamic": 0.05,
    "weight_only": 2e-6,
    "int8": 0.05,
    "int8_integer": 0.05,
}
SOURCES = {
    "v1": ROOT / "tests" / "data" / "before_v1.keras",
    "v2": ROOT / "tests" / "data" / "before_v2.keras",
    "embedded": CHECKPOINT,
}


@pytest.fixture(scope="module", autouse=True)
def _driver():
    own = any(any(gpu.Path(folder).glob("*.json")) for folder in gpu.DRIVERS)
    if not own and not (gpu.software_folder() / "ready").exists():
        pytest.skip(f"no GPU driver, and none that computes on the CPU in {gpu.software_folder()}: tflite/gpu/setup.sh")


@pytest.fixture(scope="module", params=SOURCES)
def model(request):
    source = SOURCES[request.param]
    return keras.saving.load_model(source) if source.suffix == ".keras" else kef.from_checkpoint(source)


@pytest.fixture(scope="module")
def small():
    return keras.saving.load_model(SOURCES["v1"])


def export(model, path, mode, **arguments):
    images = seeded_images(model.input_shape[1:])
    return export_tflite(model, path, quantize=mode, calibration=images, max_difference=float("inf"), **arguments)


@pytest.mark.filterwarnings("ignore:Only 4 calibration images", "ignore:No labels")
@pytest.mark.parametrize("mode", ON_GPU)
def test_modes_that_promise_the_gpu(model, tmp_path, mode):
    export(model, tmp_path / "model.tflite", mode)
    check = check_on_gpu(tmp_path / "model.tflite")
    assert (check.found, check.on_cpu, check.refused, check.errors) == ("whole", 0, (), ())
    assert check.passes
    assert len(check.differences) == len(model.outputs)
    for difference in check.differences:
        assert difference.max <= ON_GPU[mode] * difference.largest


@pytest.mark.filterwarnings("ignore:Only 4 calibration images", "ignore:No labels")
@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "none", "batch_size": 3},
        {"mode": "int8", "io": "uint8"},
        {"mode": "int8_integer", "io": "int8", "batch_size": 2},
        {"mode": "float16", "include_preprocessing": False},
    ],
    ids=str,
)
def test_other_ends(small, tmp_path, arguments):
    export(small, tmp_path / "model.tflite", **arguments)
    check = check_on_gpu(tmp_path / "model.tflite")
    assert check.passes, check.verdict
    (difference,) = check.differences
    assert difference.max <= ON_GPU[arguments["mode"]] * difference.largest
    assert difference.largest > 0.1


@pytest.mark.filterwarnings("ignore:Only 4 calibration images", "ignore:No labels")
def test_each_of_several_sizes(small, tmp_path):
    """In the mode in which their tables of biases are stored otherwise than in a file of one size."""
    own = small.input_shape[1]
    photographs = [Image.fromarray(image.astype("uint8")) for image in seeded_images(small.input_shape[1:])]
    settings = {"quantize": "int8", "calibration": photographs, "max_difference": float("inf"), "require": "gpu"}
    report = export_tflite(small, tmp_path / "model.tflite", input_sizes=[own + 32, own], **settings)
    (further,) = report.further_sizes
    assert report.accelerator.startswith("whole")
    assert further.accelerator.startswith("whole")
    assert further.accelerator != report.accelerator  # each has a difference of its own


def test_a_plain_conversion_is_found_wrong(small, tmp_path):
    """Its int8 file: the engine says that it is fully accelerated, and returns noise."""
    path = tmp_path / "plain.tflite"
    images = seeded_images(small.input_shape[1:])
    path.write_bytes(convert_plainly(small, "int8", images))
    check = check_on_gpu(path, images)
    assert (check.found, check.on_cpu, check.refused) == ("wrong", 0, ())
    assert any("WGSL" in error for error in check.errors)
    assert check.differences[0].max > 10 * ON_GPU["int8"] * check.differences[0].largest
    found = CliRunner().invoke(app, ["inspect", str(path), "--gpu", "--json"])
    assert found.exit_code == 1
    assert json.loads(found.stdout)["gpu"]["found"] == "wrong"
    found = CliRunner().invoke(app, ["benchmark", "tflite", str(path), "--unit", "gpu"])
    assert isinstance(found.exception, DeviceError)
    assert "not wholly and rightly computed" in str(found.exception)


@pytest.mark.filterwarnings("ignore:Only 4 calibration images", "ignore:No labels")
def test_int16x8_is_for_other_hardware(small, tmp_path):
    path = tmp_path / "model.tflite"
    with pytest.raises(ExportError, match=r"not written, because the GPU is required: partial: \d+ of"):
        export(small, path, "int16x8", require="gpu")
    assert contents(tmp_path) == []
    export(small, path, "int16x8")
    check = check_on_gpu(path)
    assert check.found == "partial"
    assert any(reason.startswith("GELU: Tensor type(INT16)") for reason in check.refused)
    found = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert found.exit_code == 0
    assert "NPUs and DSPs" in json.loads(found.stdout)["hardware"]


@pytest.mark.filterwarnings("ignore:No labels")
def test_an_export_can_demand_the_gpu(small, tmp_path):
    report = export_tflite(small, tmp_path / "model.tflite", require="gpu")
    assert report.accelerator.startswith(f"whole: all {sum(report.operations.values())} operations on ")
    assert json.loads((tmp_path / "model.tflite.json").read_text())["accelerator"] == report.accelerator
    found = CliRunner().invoke(app, ["inspect", str(tmp_path / "model.tflite"), "--gpu"])
    assert found.exit_code == 0
    assert "whole: all" in found.stdout
    with pytest.raises(ValueError, match=r"`require` should be None or 'gpu'\. Received: require='npu'"):
        export_tflite(small, tmp_path / "other.tflite", require="npu")


@pytest.mark.filterwarnings("ignore:No labels")
def test_times(small, tmp_path):
    export_tflite(small, tmp_path / "model.tflite", quantize="float16")
    command = ["benchmark", "tflite", str(tmp_path / "model.tflite"), "--gpu", "--runs", "3", "--warmup", "1", "--json"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0
    report = json.loads(found.stdout)["report"]
    assert (
        report["command"] == "efficientformer benchmark tflite model.tflite --unit=gpu --threads=1 --runs=3 --warmup=1"
    )
    (result,) = report["results"]
    assert (result["unit"], result["runs"], result["threads"]) == ("gpu", 3, None)
    assert 0 < result["min_ms"] <= result["median_ms"] <= result["load_ms"]


@pytest.mark.filterwarnings("ignore:No labels")
def test_no_driver(small, tmp_path, monkeypatch):
    monkeypatch.setenv("VK_ICD_FILENAMES", str(tmp_path / "missing.json"))
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    with pytest.raises(DeviceError, match=r"LiteRT finds no GPU here: it needs a Vulkan driver.*tflite/gpu/setup\.sh"):
        export_tflite(small, tmp_path / "model.tflite", require="gpu")
    assert contents(tmp_path) == []


def test_only_tflite_files(tmp_path):
    found = CliRunner().invoke(app, ["inspect", str(SOURCES["v1"]), "--gpu"])
    assert found.exit_code == 2
    assert "--gpu runs .tflite files" in found.output
