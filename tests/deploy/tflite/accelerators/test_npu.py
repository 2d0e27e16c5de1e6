"""Files compiled for NPUs: with Intel's plugin and OpenVINO they are compiled and run; for others, what is missing.

OpenVINO computes on the CPU here; the partitions are those that it would compute on an NPU.
"""

import functools
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from exports import contents, run_litert
from networks import make_loud
from timm_reference_v2 import SMALL as SMALL_V2
from typer.testing import CliRunner

import keras_efficientformer as kef
from keras_efficientformer import cli
from keras_efficientformer.deploy import ExportError, export_tflite, save_export_page
from keras_efficientformer.deploy.report import NPUReport
from keras_efficientformer.deploy.tflite import file as tflite_file
from keras_efficientformer.deploy.tflite.accelerators import npu_targets
from keras_efficientformer.deploy.tflite.accelerators.npu import compile_file, left_operations, run_file
from keras_efficientformer.deploy.tflite.graph import schema
from keras_efficientformer.images import seeded_images

IMAGES = seeded_images((64, 64, 3))
NAMES = [f"class {i}" for i in range(10)]
COMPILED = "_IntelOpenVINO_CPU.tflite"
# The largest differences of probabilities from LiteRT's, at least half as much again as measured with and without
# VNNI, on which those of integers depend. Probabilities change by 0.23 (V1) and 0.08 (V2) from image to image.
FLOAT = 2e-6
MODES = {
    "v1": {
        "none": FLOAT,
        "float16": 0.002,
        "dynamic": 0.015,
        "weight_only": 0.01,
        "int8": 0.06,
        "int8_integer": 0.06,
        "int16x8": 0.015,
    },
    "v2": {"none": FLOAT, "int8": 0.02, "int8_integer": 0.02},
}


@pytest.fixture(scope="module")
def intel():
    pytest.importorskip("openvino", reason="needs OpenVINO: the extra npu-intel, on Linux on x86")
    return npu_targets.npu_target("intel")


@pytest.fixture(scope="module")
def networks(build):
    v2 = functools.partial(kef.EfficientFormerV2, **SMALL_V2, input_shape=(64, 64, 3), classes=10)
    return {"v1": build(), "v2": make_loud(v2())}


@pytest.fixture(scope="module")
def exported(intel, networks, tmp_path_factory):
    """(file, report) of a network in a mode, compiled for Intel."""
    folder = tmp_path_factory.mktemp("npu")

    @functools.cache
    def export(family, mode, **arguments):
        path = folder / f"{family}_{mode}{''.join(map(str, arguments.values()))}.tflite"
        arguments = {"quantize": mode, "calibration": IMAGES, "labels": NAMES, **arguments}
        return path, export_tflite(networks[family], path, npu="intel", **arguments)

    return export


@pytest.mark.parametrize(("family", "mode"), [(family, mode) for family, modes in MODES.items() for mode in modes])
def test_every_mode_is_whole_and_right(exported, intel, family, mode):
    path, report = exported(family, mode)
    npu, compiled = report.npu, path.with_name(path.stem + COMPILED)
    assert contents(path.parent).count(compiled.name) == 1
    assert (npu.target, npu.path, npu.size) == ("intel", str(compiled), compiled.stat().st_size)
    assert npu.is_whole
    assert (npu.partitions, npu.taken, npu.left) == (1, npu.operations, {})
    assert npu.operations == sum(report.operations.values())
    found, expected = run_file(compiled, IMAGES, 1, intel), run_litert(path, IMAGES)
    assert found.keys() == expected.keys() == {"probabilities"}
    assert np.ptp(expected["probabilities"], 0).max() > 2 * MODES[family][mode]
    difference = np.abs(found["probabilities"] - expected["probabilities"]).max()
    assert difference <= MODES[family][mode]
    (against_keras,) = npu.differences
    assert against_keras.relative <= report.limit
    assert against_keras.max == pytest.approx(report.differences[0].max, abs=MODES[family][mode])


def test_report_sidecar_and_page(exported, tmp_path):
    path, report = exported("v1", "none")
    said = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert said["npu"]["path"] == path.stem + COMPILED
    assert said["npu"]["differences"][0]["max"] == report.npu.differences[0].max
    assert said["versions"]["openvino"] == "2026.3.1"
    assert "takes all" in report.verdict
    assert "no NPU" in report.verdict
    save_export_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert report.npu.verdict in page
    assert path.stem + COMPILED in page


def test_labels_stay(exported):
    path, report = exported("v1", "none")
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(report.npu.path) as compiled:
        assert compiled.read("labels.txt") == plain.read("labels.txt")
    named = {entry.name for entry in tflite_file.read(path.read_bytes()).metadata}
    assert named <= {entry.name for entry in tflite_file.read(Path(report.npu.path).read_bytes()).metadata}


def test_batches_of_bytes(exported, intel):
    """The last batch is filled up, and integers go in and come out as the file stores them."""
    path, report = exported("v1", "int8_integer", io="uint8", batch_size=3)
    pixels = IMAGES.round().astype("uint8")
    (expected,) = run_litert(path, np.concatenate([pixels, pixels[:2]])).values()
    (found,) = run_file(path.with_name(path.stem + COMPILED), pixels, 3, intel).values()
    assert found.dtype == expected.dtype == np.uint8
    assert np.abs(found / 256 - expected[: len(pixels)] / 256).max() <= MODES["v1"]["int8_integer"]
    assert report.npu.is_whole


@pytest.fixture(scope="module")
def partly(exported, tmp_path_factory):
    """The small network with ELU in place of GELU, which Intel's plugin does not take."""
    path, _ = exported("v1", "none")
    file = tflite_file.read(path.read_bytes())
    for code in file.operatorCodes:
        if code.builtinCode == schema.BuiltinOperator.GELU:
            code.builtinCode, code.version = schema.BuiltinOperator.ELU, 1
            code.deprecatedBuiltinCode = schema.BuiltinOperator.ELU
    changed = tmp_path_factory.mktemp("partly") / "elu.tflite"
    changed.write_bytes(tflite_file.pack(file))
    return changed


def test_refused_operations_are_told(partly, intel, tmp_path):
    report = compile_file(partly, tmp_path / "compiled.tflite", intel)
    elus = sum(kind == "ELU" for kind, _ in tflite_file.operators(tflite_file.read(partly.read_bytes())))
    assert elus > 3
    assert report.left == left_operations(tmp_path / "compiled.tflite") == {"ELU": elus}
    assert report.taken == report.operations - elus
    assert report.partitions > 1
    assert not report.is_whole
    assert f"takes only {report.taken} of {report.operations} operations" in report.verdict
    assert f"left to the CPU: {elus} ELU" in report.verdict
    (found,), (expected,) = (
        results.values()
        for results in (run_file(tmp_path / "compiled.tflite", IMAGES, 1, intel), run_litert(partly, IMAGES))
    )
    np.testing.assert_allclose(found, expected, atol=FLOAT)


def test_nothing_taken_is_an_error(partly, intel, tmp_path):
    file = tflite_file.read(partly.read_bytes())
    (graph,) = file.subgraphs
    graph.operators = [op for kind, op in tflite_file.operators(file) if kind == "ELU"]
    (tmp_path / "elus.tflite").write_bytes(tflite_file.pack(file))
    count = len(graph.operators)
    with pytest.raises(ExportError, match=rf"^elus.tflite was not .* for intel: .* none of its {count} operations\.$"):
        compile_file(tmp_path / "elus.tflite", tmp_path / "compiled.tflite", intel)
    assert contents(tmp_path) == ["elus.tflite"]


def test_too_different_leaves_nothing(exported, networks, tmp_path):
    """A limit between the exported file's difference and the compiled one's, in a mode where that is larger."""
    reports = {mode: exported("v1", mode)[1] for mode in MODES["v1"]}
    mode, report = next((m, r) for m, r in reports.items() if r.npu.differences[0].max > r.differences[0].max)
    limit = (report.npu.differences[0].max + report.differences[0].max) / 2
    arguments = {"quantize": mode, "calibration": IMAGES, "labels": NAMES, "max_difference": limit}
    with pytest.raises(ExportError, match=rf"{COMPILED} was not written: its output probabilities differs"):
        export_tflite(networks["v1"], tmp_path, npu="intel", **arguments)
    assert contents(tmp_path) == []
    assert export_tflite(networks["v1"], tmp_path, **arguments).npu is None


def test_existing_compiled_file_is_kept(networks, intel, tmp_path):
    (tmp_path / f"a{COMPILED}").write_text("mine")
    with pytest.raises(FileExistsError, match=f"a{COMPILED} exists"):
        export_tflite(networks["v1"], tmp_path / "a.tflite", labels=NAMES, npu="intel")
    assert contents(tmp_path) == [f"a{COMPILED}"]


def test_damaged_compiled_file(exported, intel, tmp_path):
    _, report = exported("v1", "none")
    content = Path(report.npu.path).read_bytes()
    (tmp_path / "damaged.tflite").write_bytes(content[:3000] + b"\0" * len(content[3000:]))
    with pytest.raises(ExportError, match=r"damaged.tflite, compiled for intel, does not run: "):
        run_file(tmp_path / "damaged.tflite", IMAGES, 1, intel)


def test_command(intel, tmp_path, networks):
    networks["v1"].save(tmp_path / "model.keras")
    arguments = ["export", "tflite", str(tmp_path / "model.keras"), str(tmp_path / "a.tflite"), "--npu"]
    done = CliRunner().invoke(cli.app, [*arguments, "intel", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["npu"]["partitions"] == 1
    assert contents(tmp_path) == ["a.tflite", "a.tflite.json", f"a{COMPILED}", "model.keras"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("qualcomm:SM8751", r"Did you mean qualcomm:SM8750"),
        ("qualcom:SM8750", r"Did you mean qualcomm:SM8750"),
        ("google", r"Its names are google:Tensor_G3, .*google:Tensor_G6\.$"),
        ("apple:M4", r"the makers are google, intel, mediatek, qualcomm, samsung\.$"),
        ("", r"the makers are"),
    ],
)
def test_unknown_target(networks, tmp_path, name, hint):
    with pytest.raises(ValueError, match=rf"^`npu` should name an NPU .* Received: '{name}'\. .*{hint}"):
        export_tflite(networks["v1"], tmp_path, npu=name)
    assert contents(tmp_path) == []


def test_names_are_litert_tables():
    names = npu_targets.npu_names()
    assert names[0] == "intel"
    assert {"google:Tensor_G5", "intel:PTL", "mediatek:MT6991", "qualcomm:SM8750", "samsung:E9965"} <= set(names)
    assert not [name for name in names if name.endswith("ALL")]


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("qualcomm:sm8750", "ai-edge-litert-sdk-qualcomm"),
        ("mediatek:MT6991", "ai-edge-litert-sdk-mediatek"),
        ("google:tensor_g5", "ai-edge-litert-sdk-google-tensor"),
        ("samsung:E9965", "ai-edge-litert-sdk-samsung"),
    ],
)
def test_missing_compiler(name, package):
    with pytest.raises(ImportError, match=rf"its maker's compiler: pip install {package}, "):
        npu_targets.npu_target(name)


SDK = """
import pathlib

def path_to_sdk_libs(version="v8"):
    print("a warning")
    folder = pathlib.Path(__file__).parent / "data"
    return folder / version if folder.is_dir() else None
"""


@pytest.fixture
def sdk(tmp_path, monkeypatch):
    """Makes a package as LiteRT's are, with a folder of what it has downloaded or without."""
    monkeypatch.syspath_prepend(tmp_path / "packages")

    def make(name, version=None):
        folder = tmp_path / "packages" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(SDK)
        if version:
            (folder / "data" / version).mkdir(parents=True)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return make


def test_empty_compiler_package(sdk):
    """So pip leaves it where the maker's server could not be reached."""
    sdk("ai_edge_litert_sdk_qualcomm")
    with pytest.raises(ImportError, match=r"without the compiler .* --no-cache-dir ai-edge-litert-sdk-qualcomm$"):
        npu_targets.npu_target("qualcomm:SM8750")


def test_generations_of_mediatek(sdk):
    sdk("ai_edge_litert_sdk_mediatek", "v9")
    target = npu_targets.npu_target("mediatek:MT6993")
    assert (target.suffix, target.libraries) == ("_MediaTek_MT6993", None)
    with pytest.raises(ImportError, match="ai-edge-litert-sdk-mediatek is installed without"):
        npu_targets.npu_target("mediatek:MT6991")


def test_compiler_that_fails(networks, intel, sdk, tmp_path):
    """Intel's for NPUs proper, which is not here: its own words are in the error."""
    sdk("ai_edge_litert_sdk_intel", "v8")
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(ExportError, match=r"was not compiled for intel:PTL: .*intel_npu_compiler_loader"):
        export_tflite(networks["v1"], folder / "a.tflite", labels=NAMES, npu="intel:PTL")
    assert contents(folder) == []


def test_compiler_that_lacks_libraries(networks, sdk, tmp_path):
    sdk("ai_edge_litert_sdk_qualcomm", "v8")
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(ExportError, match=r"was not compiled for qualcomm:SM8750: .*libQnnHtp.so"):
        export_tflite(networks["v1"], folder, labels=NAMES, npu="qualcomm:SM8750")
    assert contents(folder) == []


def test_other_release_of_openvino(tmp_path, monkeypatch):
    """LiteRT's plugin is linked to one release, which is named before anything is compiled."""
    (tmp_path / "openvino" / "libs").mkdir(parents=True)
    (tmp_path / "openvino" / "__init__.py").touch()
    (tmp_path / "openvino" / "libs" / "libopenvino.so.2700").touch()
    (tmp_path / "openvino-2027.0.0.dist-info").mkdir()
    (tmp_path / "openvino-2027.0.0.dist-info" / "METADATA").write_text("Name: openvino\nVersion: 2027.0.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    with pytest.raises(ImportError, match=r"2027\.0\.0 is installed: pip install openvino==2026\.3\.1$"):
        npu_targets.npu_target("intel")


def test_missing_openvino(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"needs openvino: pip install 'keras-efficientformer\[npu-intel\]'$"):
        npu_targets.npu_target("intel")


def test_words_of_a_file_that_is_not_run():
    """Qualcomm's compiler on `dynamic`, as it was once measured."""
    report = NPUReport("qualcomm:SM8750", "a", 1, "", 165, 132, 34, {"GELU": 20, "ADD": 13})
    assert report.verdict == (
        "qualcomm:SM8750 takes only 132 of 165 operations, in 34 partitions; left to the CPU: 20 GELU, 13 ADD; "
        "not run here"
    )
