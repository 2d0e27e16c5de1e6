"""What benchmarks write down: statistics, the report's JSON and its schema, the READMEs' tables, the plot."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import matplotlib
import numpy as np
import pytest
from PIL import Image
from project import ROOT

from keras_efficientformer.deploy.benchmark.plots import plot_report
from keras_efficientformer.deploy.benchmark.reports import (
    DeviceReport,
    Latency,
    markdown_table,
    model_and_mode,
    read_reports,
    this_computer,
)

DEVICES = ROOT / "benchmarks" / "devices"
SCHEMA = json.loads((DEVICES / "schema.json").read_text())
FACTS = {
    "file": "efficientformer_l1_224_int8.tflite",
    "model": "efficientformer_l1_224",
    "mode": "int8",
    "bytes": 12_407_822,
    "unit": "cpu",
    "threads": 2,
}


def report(**changes):
    result = Latency.of([5.0, 1.0, 2.0, 4.0, 3.0], **FACTS, load_ms=20.5)
    counted = Latency(
        **FACTS | {"threads": None},
        runs=0,
        median_ms=None,
        p90_ms=None,
        mean_ms=None,
        min_ms=None,
        instructions=135.5,
        note="instructions, not a time",
    )
    fields = {
        "device": "iPhone 12",
        "os": "iOS 17",
        "soc": None,
        "kind": "phone",
        "date": "2026-11-23",
        "command": "efficientformer benchmark",
        "versions": {"coremltools": "9.0"},
        "results": (result, counted),
    }
    return DeviceReport(**fields | changes)


def test_statistics_of_runs():
    samples = np.random.default_rng(0).gamma(2, 3, 101)
    latency = Latency.of(samples, **FACTS)
    ordered = np.sort(samples)
    # 101 samples: the percentiles are samples themselves.
    assert (latency.runs, latency.median_ms, latency.p90_ms) == (101, ordered[50], ordered[90])
    assert latency.min_ms == ordered[0]
    assert latency.mean_ms == pytest.approx(sum(samples) / 101)
    with pytest.raises(ValueError, match="at least one timed run"):
        Latency.of([], **FACTS)


def test_json_gives_the_report_back(tmp_path):
    saved = report().save(tmp_path)
    assert saved.name == "iphone_12_ios_17.json"
    assert DeviceReport.from_json(saved.read_text()) == report()
    with pytest.raises(FileExistsError, match=r"iphone_12_ios_17\.json exists"):
        report().save(tmp_path)
    assert report(date="2026-11-24").save(saved, overwrite=True) == saved
    assert [file.name for file in tmp_path.iterdir()] == [saved.name]
    assert DeviceReport.from_json(saved.read_text()).date == "2026-11-24"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content.pop("soc"), "missing soc; unknown none"),
        (lambda content: content.update(owner="me"), "missing none; unknown owner"),
        (lambda content: content["results"][1].pop("p90_ms"), "result 1 .*missing p90_ms"),
        (
            lambda content: content["results"][0].update(median_ms="3"),
            "result 0 has a median_ms of the wrong type.*'3'",
        ),
        (lambda content: content["results"][0].update(bytes=True), "bytes of the wrong type.*True"),
        (lambda content: content["versions"].update(python=3), "versions of the wrong type"),
        (lambda content: content.update(kind="tablet"), "phone, computer, emulator. Received: 'tablet'"),
        (lambda content: content.update(date="23.11.2026"), "23.11.2026"),
        (lambda content: content.update(results=[1]), "result 0 should be an object"),
    ],
)
def test_damaged_reports_are_refused(damage, message):
    content = json.loads(report().to_json())
    damage(content)
    with pytest.raises(ValueError, match=message):
        DeviceReport.from_json(json.dumps(content))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)


def test_a_whole_number_is_a_float_in_json():
    content = json.loads(report().to_json())
    content["results"][0]["median_ms"] = 3
    assert DeviceReport.from_json(json.dumps(content)) == report()


def test_damaged_files_are_named(tmp_path):
    report().save(tmp_path)
    (tmp_path / "pixel.json").write_text("{}")
    with pytest.raises(ValueError, match=r"pixel\.json: .*missing command, date, device"):
        read_reports(tmp_path)


def test_the_schema_describes_the_classes():
    latency = SCHEMA["$defs"]["latency"]
    for described, kind in ((SCHEMA, DeviceReport), (latency, Latency)):
        names = [field.name for field in dataclasses.fields(kind)]
        assert list(described["properties"]) == names
        assert described["required"] == names
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(report().to_json()), SCHEMA)


@pytest.mark.parametrize(
    "file", sorted(file for file in DEVICES.glob("*.json") if file.name != "schema.json"), ids=lambda file: file.stem
)
def test_reports_from_devices_follow_the_schema(file):
    jsonschema.validate(json.loads(file.read_text()), SCHEMA)
    assert file.name == DeviceReport.from_json(file.read_text()).standard_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("efficientformer_l1_224_int8_integer.tflite", ("efficientformer_l1_224", "int8_integer")),
        ("efficientformer_l3_160x224_float32.tflite", ("efficientformer_l3_160x224", "float32")),
        ("efficientformerv2_s0_224_float16.mlpackage", ("efficientformerv2_s0_224", "float16")),
        ("my.model.tflite", ("my.model", "unknown")),
    ],
)
def test_model_and_mode_by_the_name(name, expected):
    assert model_and_mode(Path("folder") / name) == expected


def test_this_computer_has_a_name():
    device, system = this_computer()
    assert device
    assert any(digit in system for digit in "0123456789")


def test_markdown_table():
    lines = markdown_table([report()]).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "| cpu, 2 threads | 3.0 ms | 4.6 ms | 20.5 ms | - | - | 2026-11-23 |" in lines[2]
    assert "| cpu | - | - | - | - | 135.5 M |" in lines[3]


def test_readmes_show_the_reports():
    script = load_script()
    for readme, suffix in script.READMES.items():
        if readme.exists():
            text = readme.read_text()
            assert script.with_table(text, read_reports(DEVICES), suffix) == text


def test_the_table_goes_between_the_markers():
    with_table = load_script().with_table
    text = "before\n<!-- devices:begin -->\nold\n<!-- devices:end -->\nafter\n"
    found = with_table(text, [report()], ".tflite")
    assert found == f"before\n<!-- devices:begin -->\n{markdown_table([report()])}<!-- devices:end -->\nafter\n"
    assert "iPhone" not in with_table(text, [report()], ".mlpackage")
    assert with_table("no markers", [report()], ".tflite") == "no markers"


def test_plot(tmp_path):
    first = report().results[0]
    slow = dataclasses.replace(first, file="pay$ and $ more.tflite", median_ms=6.0, p90_ms=9.0)
    file = tmp_path / "plot.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_report(report(results=(first, slow, report().results[1])), file)
        with pytest.raises(FileExistsError):
            plot_report(report(), file)
    drawn = ElementTree.parse(file)
    texts = {"".join(text.itertext()) for text in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {first.file, slow.file, "iPhone 12", "median", "90th percentile"} <= texts
    # Each bar has its number, and against the first file it took twice the time.
    assert {"3.00 ms", "4.60 ms", "6.00 ms, 0.50x as fast", "9.00 ms", "not measured"} <= texts
    widths = bar_widths(drawn)
    assert [width / widths[0] for width in widths] == pytest.approx([1, 2, 0, 4.6 / 3, 3, 0], rel=0.01)


def test_plot_of_instructions(tmp_path):
    counted = report().results[1]
    half = dataclasses.replace(counted, file="half.tflite", instructions=67.75)
    plot_report(report(kind="emulator", results=(counted, half)), tmp_path / "plot.png")
    blue = np.all(np.asarray(Image.open(tmp_path / "plot.png").convert("RGB")) == (31, 119, 180), axis=-1)
    lengths = np.unique(blue.sum(1))  # of rows without a bar, with the short and with the long one
    assert lengths[1] / lengths[2] == pytest.approx(0.5, abs=0.02)


def bar_widths(drawn):
    """Of the bars of an SVG file, which are its paths of four corners within the axes."""
    paths = [path.get("d").split() for path in drawn.iterfind(".//{*}g[@clip-path]/{*}path")]
    paths += [path.get("d").split() for path in drawn.iterfind(".//{*}path[@clip-path]")]
    return [float(path[4]) - float(path[1]) for path in paths]


def load_script():
    spec = importlib.util.spec_from_file_location("devices_table", ROOT / "benchmarks" / "devices_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
