"""Timing Core ML: coremltools' own benchmarker and remote device on a faked iPhone, and all that can be missing."""

import importlib
import json
import runpy
import sys

import coremltools as ct
import fake_apple
import keras
import numpy as np
import pytest
import typer
from coremltools.converters.mil import Builder as mb
from project import ROOT
from typer.testing import CliRunner

from keras_efficientformer.cli.measurements.benchmark_coreml import benchmark_coreml_command
from keras_efficientformer.deploy.benchmark.apple_device import connected_iphone, this_mac
from keras_efficientformer.deploy.benchmark.apple_timing import UNITS, benchmark_coreml, export_twin, logits_model
from keras_efficientformer.deploy.benchmark.mobilenet_reference import mobilenet_v2_package
from keras_efficientformer.deploy.benchmark.reports import DeviceReport
from keras_efficientformer.deploy.coreml.exporter import export_coreml
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.errors import DeviceError

BENCHMARKS = ROOT / "benchmarks"
RUNS = 4
LOUD = np.random.default_rng(0)


@pytest.fixture
def mac(tmp_path, monkeypatch):
    mac = fake_apple.FakeMac(tmp_path)
    fake_apple.install(monkeypatch, mac)
    yield mac
    monkeypatch.undo()
    importlib.reload(sys.modules["coremltools.models.ml_program.experimental.compute_plan_utils"])


@pytest.fixture(scope="module")
def mobilenet():
    """keras.applications' MobileNetV2 with loud BatchNorms and bias."""
    model = keras.applications.MobileNetV2(weights=None, classifier_activation=None)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(LOUD.uniform(0.5, 2.0, variable.shape))
        elif variable.name in ("beta", "moving_mean", "bias"):
            variable.assign(LOUD.normal(0.0, 0.3, variable.shape))
    return model


@pytest.fixture(scope="module")
def packages(build, mobilenet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    mobilenet_file = folder / "mobilenet_v2_224_float16.mlpackage"
    mobilenet_v2_package(mobilenet).save(str(mobilenet_file))
    return [export_twin(build(), folder), mobilenet_file]


def test_a_twin_in_int8(build, tmp_path, recwarn):
    """Its ranges are of noise, which nobody need be told: it is there to be timed."""
    path = export_twin(build(), tmp_path, compress="w8a8")
    assert path.name.endswith("_64_w8a8.mlpackage")
    assert CoreMLModel(path).operations()["quantize"] > 30
    assert not [warning for warning in recwarn if "calibration" in str(warning.message)]


def check_latencies(benchmark, packages, units):
    expected = [(package.name, unit) for package in packages for unit in units]
    assert [(row.file, row.unit) for row in benchmark.report.results] == expected
    for row in benchmark.report.results:
        assert row.runs == RUNS
        # Of 1.01, 1.02, 1.03 and 1.04 ms: the first prediction, of 1.00, was the warm-up.
        assert (row.median_ms, row.p90_ms, row.min_ms) == pytest.approx((1.025, 1.037, 1.01))
        assert row.load_ms == fake_apple.LOAD_MS
        assert row.mode == "float16"
        costs = [cost for cost in benchmark.operations if (cost.file, cost.unit) == (row.file, row.unit)]
        assert sum(cost.share for cost in costs) == pytest.approx(1.0)
        assert sum(cost.milliseconds for cost in costs) == pytest.approx(row.median_ms)
        assert len({cost.output for cost in costs}) == len(costs)
        assert row.note.endswith(f"of {len(costs)} operations")
        convolutions = [cost for cost in costs if cost.operation == "conv"]
        assert min(cost.share for cost in convolutions) > 7 * max(c.share for c in costs if c.operation != "conv")
        assert {cost.device for cost in convolutions} == {"CPU" if row.unit == "cpuOnly" else "Neural Engine"}
        assert {cost.device for cost in costs if cost.operation == "linear"} == {"CPU"}


def test_times_on_a_connected_iphone(packages, mac):
    device = connected_iphone()
    assert (device.name, device.os, device.soc, device.kind) == ("iPhone 12", "iOS 17.4.1", "Apple A14 Bionic", "phone")

    units = ("all", "cpuOnly")
    benchmark = benchmark_coreml(packages[:1], device, team=fake_apple.TEAM, units=units, runs=RUNS, loads=2)

    check_latencies(benchmark, packages[:1], units)
    assert DeviceReport.from_json(benchmark.report.to_json()) == benchmark.report
    assert "Anna" not in benchmark.to_json()
    assert fake_apple.TEAM not in benchmark.to_json()
    predictions = mac.requests("MLModelService.Prediction")
    shapes = {tuple(tensor["shape"]) for request in predictions for tensor in request["inputs"].values()}
    assert shapes == {(1, 3, 64, 64)}
    # For each unit two loads, and none of them is left on the phone.
    assert len(mac.requests("MLModelService.Load")) == len(mac.requests("MLModelService.Unload")) == 4


def test_times_on_this_mac(packages, mac):
    device = this_mac()
    assert (device.name, device.os, device.soc) == ("MacBookPro18,3", "macOS 15.1", "Apple M1 Pro")
    units = ("all", "cpuOnly")
    benchmark = benchmark_coreml(packages, device, units=units, runs=RUNS, loads=1)
    check_latencies(benchmark, packages, units)
    assert benchmark.report.kind == "computer"
    assert [row.bytes < 1e6 for row in benchmark.report.results] == [True] * 2 + [False] * 2
    content = json.loads(benchmark.to_json())
    assert len(content["report"]["results"]) == 4
    assert len(content["operations"]) == len(benchmark.operations)


def run_command(*arguments):
    app = typer.Typer()
    app.command()(benchmark_coreml_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command(build, mac, tmp_path):
    build().save(tmp_path / "model.keras")
    arguments = (tmp_path / "model.keras", "--device", "mac", "--unit", "all", "--runs", RUNS, "--output", tmp_path)
    done = run_command(*arguments)
    assert done.exit_code == 0, done.output
    assert "1.7 ms" in done.output  # what the paper has for MobileNetV2
    assert "Dearest operations of efficientformer_64_float16.mlpackage on all" in " ".join(done.output.split())
    report = DeviceReport.from_json((tmp_path / "macbookpro18_3_macos_15_1.json").read_text())
    assert (
        report.command
        == f"efficientformer benchmark coreml {arguments[0]} --precision=float16 --compress=none --runs=4"
    )


def test_command_checks_before_it_measures(mac, tmp_path):
    done = run_command("no.keras", "--device", "mac")
    assert isinstance(done.exception, FileNotFoundError)
    assert "no.keras is neither a file nor one of the names" in str(done.exception)
    done = run_command("l1", "--device", "mac", "--output", tmp_path / "no" / "report.json")
    assert isinstance(done.exception, FileNotFoundError)
    assert "no does not exist" in str(done.exception)
    (tmp_path / "macbookpro18_3_macos_15_1.json").touch()
    done = run_command("l1", "--device", "mac", "--output", tmp_path)
    assert isinstance(done.exception, FileExistsError)
    done = run_command("l1")
    assert isinstance(done.exception, DeviceError)
    assert "--team" in str(done.exception)


@pytest.mark.skipif(sys.platform == "darwin", reason="it is about other systems")
def test_elsewhere_it_says_what_is_needed():
    for device in ("mac", "Anna's iPhone"):
        done = run_command("l1", "--device", device)
        assert isinstance(done.exception, DeviceError)
        assert "timing needs a Mac with macOS 14.4 or later, with an iPhone connected or alone" in str(done.exception)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"phones": []}, "No iPhone is connected: .*--device mac.*This Mac knows no iPhone"),
        ({"phones": [fake_apple.phone(tunnelState="unavailable")]}, "No iPhone is connected.*knows Anna's iPhone"),
        ({"phones": [fake_apple.phone(deviceType="iPad")]}, "No iPhone is connected"),
        ({"phones": [fake_apple.phone(), fake_apple.phone("B")]}, "2 iPhones are connected: Anna's iPhone, B. Choose"),
        ({"phones": [fake_apple.phone(pairingState="unpaired")]}, "Anna's iPhone does not trust this Mac.*tap Trust"),
        ({"phones": [fake_apple.phone(osVersionNumber="17.3")]}, "needs iOS 17.4 or later. Anna's iPhone has iOS 17.3"),
        ({"phones": [fake_apple.phone(developerModeStatus="disabled")]}, "is not in Developer Mode: switch it on"),
        ({"unreachable": True}, "cannot be reached: unlock it and plug it in.*The device is not available"),
        ({"xcode": "14.3"}, "needs Xcode 15.0 or later.*Found Xcode 14.3"),
    ],
)
def test_says_what_the_phone_lacks(mac, state, message):
    mac.set(**state)
    with pytest.raises(DeviceError, match=message):
        connected_iphone()


def test_a_phone_can_be_named(mac):
    mac.set(phones=[fake_apple.phone(), fake_apple.phone("B", osVersionNumber="18.0")])
    assert connected_iphone("B").os == "iOS 18.0"
    with pytest.raises(DeviceError, match=r"No iPhones are called C. This Mac knows Anna's iPhone, B"):
        connected_iphone("C")


def test_needs_xcode(mac, monkeypatch):
    (mac.tools / "xcodebuild").unlink()
    with pytest.raises(DeviceError, match=r"needs Xcode 15.0 or later: install it.*Found none"):
        connected_iphone()


def test_finds_devicectl_inside_xcode(mac, monkeypatch):
    # coremltools calls it by its bare name, which is not on every Mac's PATH.
    inside = mac.folder / "Xcode"
    inside.mkdir()
    (mac.tools / "devicectl").rename(inside / "devicectl")
    (mac.tools / "xcrun").write_text(
        f'#!/bin/sh\n[ "$1" = --find ] && echo "{inside}/$2" || exec "{inside}/devicectl" "${{@:2}}"\n'.replace(
            "#!/bin/sh", "#!/bin/bash"
        )
    )
    assert connected_iphone().name == "iPhone 12"


def test_needs_a_new_macos(mac, monkeypatch):
    monkeypatch.setattr("platform.mac_ver", lambda: ("14.3", ("", "", ""), "arm64"))
    with pytest.raises(DeviceError, match=r"needs macOS 14.4 or later. This Mac has macOS 14.3"):
        this_mac()


@pytest.mark.parametrize("team", [None, "", "a1b2c3d4e5", "Anna Smith"])
def test_needs_a_team(packages, mac, team):
    with pytest.raises(DeviceError, match="must be signed: pass --team"):
        benchmark_coreml(packages, connected_iphone(), team=team, units=("all",), runs=RUNS)


def test_says_that_the_app_was_not_signed(packages, mac):
    mac.set(unsigned=True)
    with pytest.raises(DeviceError, match=r"app could not be built, signed for the team .*Xcode > Settings"):
        benchmark_coreml(packages, connected_iphone(), team=fake_apple.TEAM, units=("all",), runs=RUNS)


def test_says_that_core_ml_refused_the_package(packages, mac):
    mac.set(refuses="MLModelService.Load")
    with pytest.raises(
        DeviceError,
        match=r"efficientformer_64_float16.mlpackage could not be timed on all of the iPhone 12.*execution plan",
    ):
        benchmark_coreml(packages, connected_iphone(), team=fake_apple.TEAM, units=("all",), runs=RUNS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": ("gpu",)}, f"should be of {', '.join(UNITS)}. Received: gpu"),
        ({"units": ()}, "Received: none"),
        ({"runs": 0}, "at least 1. Received: runs=0"),
    ],
)
def test_refuses_bad_arguments(packages, mac, arguments, message):
    with pytest.raises(ValueError, match=message):
        benchmark_coreml(packages, this_mac(), **arguments)


def test_refuses_packages_for_images(build, mac, tmp_path):
    report = export_coreml(build(), tmp_path)
    with pytest.raises(ValueError, match=r"has image \(imageType\), classLabel .*Time its twin"):
        benchmark_coreml([report.path], this_mac())


def test_logits_model(build):
    images = LOUD.normal(size=(2, 64, 64, 3)).astype("float32")
    model = build()
    logits = logits_model(model).predict(images, verbose=0)
    np.testing.assert_allclose(keras.ops.softmax(logits), model.predict(images, verbose=0), atol=1e-6)
    with pytest.raises(ValueError, match="has no classifier"):
        logits_model(build(include_top=False))


def test_operations_are_counted_without_constants(tmp_path):
    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3, 8, 8))])
    def program(image):
        x = mb.conv(x=image, weight=LOUD.normal(size=(64, 3, 7, 7)).astype("float32"))
        first, second = mb.split(x=x, num_splits=2, axis=1)
        return mb.add(x=mb.relu(x=first), y=second)

    package = ct.convert(program, convert_to="mlprogram", compute_precision=ct.precision.FLOAT32)
    package = ct.optimize.coreml.linear_quantize_weights(
        package, ct.optimize.coreml.OptimizationConfig(ct.optimize.coreml.OpLinearQuantizerConfig(weight_threshold=1))
    )
    package.save(str(tmp_path / "small.mlpackage"))
    count_operations = runpy.run_path(str(BENCHMARKS / "coreml_operations.py"))["count_operations"]
    assert count_operations(tmp_path / "small.mlpackage") == {"conv": 1, "split": 1, "relu": 1, "add": 1}


def test_mobilenet_computes_what_keras_computes(mobilenet, tmp_path):
    images = LOUD.uniform(-1.0, 1.0, (2, 224, 224, 3)).astype("float32")
    mobilenet_v2_package(mobilenet, "float32").save(str(tmp_path / "mobilenet.mlpackage"))
    found = CoreMLModel(tmp_path / "mobilenet.mlpackage").predict(images)["logits"]
    expected = mobilenet.predict(images, verbose=0)
    assert np.abs(expected).max() > 1.0
    np.testing.assert_allclose(found, expected, atol=2e-5)
