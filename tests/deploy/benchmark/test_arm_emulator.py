"""LiteRT's Arm build on an emulated CPU: what it counts, and that Arm computes what x86 does.

Needs what tflite/arm/setup.sh sets up, some 250 MB from Debian and PyPI; skipped where that is not there.
"""

import json
import shutil
from pathlib import Path

import ai_edge_litert
import numpy as np
import pytest
import typer
from ai_edge_litert.interpreter import Interpreter
from typer.testing import CliRunner

from keras_efficientformer.cli.measurements.benchmark_tflite import benchmark_tflite_command
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.benchmark.arm_emulator import LIBRARY, ArmEmulator, default_folder, function_symbols
from keras_efficientformer.deploy.benchmark.reports import DeviceReport
from keras_efficientformer.errors import DeviceError
from keras_efficientformer.images import seeded_images

CPUS = ("cortex-a53", "cortex-a76")
# The A76 computes in float16 what x86 does in float32, of int8 attention and LayerNorm; its limit is in steps of its
# output.
LIMITS = {"float32": 1e-5, "float16": 0.002, "dynamic": 0.015, "int8": 3}


@pytest.fixture(scope="module")
def emulators():
    if not (default_folder() / "ready").exists():
        pytest.skip(f"no emulated Arm CPUs in {default_folder()}: bash tflite/arm/setup.sh, on Debian 12")
    return {cpu: ArmEmulator(cpu) for cpu in CPUS}


@pytest.fixture(scope="module")
def exported(build, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    model = build()
    images = seeded_images((64, 64, 3))
    limit = float("inf")  # these weights are for differences between images, not for int8
    for arguments in ({}, {"quantize": "float16"}, {"quantize": "dynamic"}, {"quantize": "int8", "io": "int8"}):
        export_tflite(model, folder, calibration=images, max_difference=limit, **arguments)
    return {mode: folder / f"efficientformer_64_{mode}.tflite" for mode in LIMITS}


def images_for(mode):
    images = seeded_images((64, 64, 3))[:, None]
    return (images - 128).astype("int8") if mode == "int8" else images


def on_x86(file, inputs):
    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    (image,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for value in inputs:
        interpreter.set_tensor(image["index"], value)
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(output["index"]))
    return np.stack(outputs)


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("mode", LIMITS)
def test_arm_computes_what_x86_does(emulators, exported, cpu, mode):
    limit = LIMITS[mode]
    inputs = images_for(mode)
    expected = on_x86(exported[mode], inputs)
    (found,) = emulators[cpu].predict(exported[mode], inputs).values()
    assert found.dtype == expected.dtype
    # Real differences between the images, or nothing would be compared.
    assert np.ptp(expected.astype("float64"), axis=0).max() > 10 * limit
    assert np.abs(found.astype("float64") - expected).max() <= limit


@pytest.mark.parametrize("mode", ["float16", "int8"])
def test_layer_norm_of_a_large_channel_in_float16(emulators, build, tmp_path, mode):
    """Its squares are more than float16 holds, their mean over the channels is not."""
    model = build()
    for variable in model.get_layer("stage4").downsample.norm.trainable_variables:
        variable.assign(variable * np.where(np.arange(variable.shape[0]) == 0, 300, 1))
    file = tmp_path / "model.tflite"
    inputs = images_for("float16")
    export_tflite(model, file, quantize=mode, calibration=inputs[:, 0], max_difference=float("inf"))
    (found,) = emulators["cortex-a76"].predict(file, inputs).values()
    np.testing.assert_allclose(found, on_x86(file, inputs), atol={"float16": 0.002, "int8": 0.01}[mode])


def test_dynamic_computes_in_float16_between_its_products(emulators, exported):
    """All of it: XNNPACK leaves what stands beside a fully connected layer of dynamic ranges in float32."""
    names = [cost.name for cost in emulators["cortex-a76"].count(exported["dynamic"])]
    assert any("f16_vgelu" in name for name in names)
    assert any("qd8_f16" in name for name in names)
    assert not [name for name in names if "f32_vgelu" in name or "qd8_f32" in name]


@pytest.fixture(scope="module")
def kernels(emulators, exported):
    return {cpu: emulator.count(exported["int8"]) for cpu, emulator in emulators.items()}


def test_each_cpu_takes_its_own_kernels(kernels):
    """Dot products came with the A76; the A53's kernels do without, and need more instructions."""
    names = {cpu: " ".join(cost.name for cost in costs) for cpu, costs in kernels.items()}
    assert "neondot" in names["cortex-a76"]
    assert "neondot" not in names["cortex-a53"]
    totals = {cpu: sum(cost.amount for cost in costs) for cpu, costs in kernels.items()}
    assert totals["cortex-a53"] > 1.5 * totals["cortex-a76"]
    assert sum(cost.share for cost in kernels["cortex-a76"]) == pytest.approx(1)


def test_command_counts_the_same_again(kernels, exported):
    app = typer.Typer()
    app.command()(benchmark_tflite_command)
    result = CliRunner().invoke(app, [str(exported["int8"]), "--emulate", "cortex-a76", "--profile", "--json"])
    assert result.exit_code == 0
    content = json.loads(result.stdout)
    report = DeviceReport.from_json(json.dumps(content["report"]))
    assert (report.kind, report.standard_name) == ("emulator", "arm_cortex_a76_qemu_7_2.json")
    (latency,) = report.results
    assert (latency.runs, latency.median_ms, latency.threads) == (0, None, 1)
    # All but what the C library does around the kernels.
    assert latency.instructions == pytest.approx(sum(cost.amount for cost in kernels["cortex-a76"]), rel=2e-3)
    found = {cost["name"]: cost["amount"] for cost in content["profiles"]["efficientformer_64_int8.tflite"]}
    largest = kernels["cortex-a76"][0]
    assert found[largest.name] == largest.amount


@pytest.mark.skipif(not (shutil.which("nm") and shutil.which("c++filt")), reason="needs nm and c++filt of binutils")
def test_kernels_bear_the_names_of_the_source():
    """Of LiteRT's library for this computer, which is built of the same source as the one for Arm."""
    symbols = function_symbols(Path(ai_edge_litert.__file__).parent / Path(LIBRARY).name)
    names = {name for _, name in symbols}
    assert len(names) > 10_000
    mangled = [name for name in names if name.startswith("_Z")]
    assert len(mangled) < 0.01 * len(names)  # binutils 2.40 cannot read all of C++20's
    assert "tflite::ops::builtin::conv::EvalFloat<(tflite::ops::builtin::conv::KernelType)2>" in names
    assert symbols == sorted(symbols)


def test_files_that_do_not_run(emulators, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.tflite"):
        emulators["cortex-a76"].count(tmp_path / "missing.tflite")
    with pytest.raises(DeviceError, match=r"missing\.tflite does not run on the emulated cortex-a76"):
        emulators["cortex-a76"].predict(tmp_path / "missing.tflite", images_for("float32"))


def test_emulator_that_is_not_set_up(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFICIENTFORMER_ARM", str(tmp_path))
    assert default_folder() == tmp_path
    with pytest.raises(DeviceError, match=r"not set up in .*run tflite/arm/setup\.sh"):
        ArmEmulator("cortex-a76")


def test_unknown_cpu():
    with pytest.raises(ValueError, match=r"cortex-a53, cortex-a76, neoverse-n1, max\. Received: cortex-m4"):
        ArmEmulator("cortex-m4")
