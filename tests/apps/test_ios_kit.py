"""The iOS sample: it parses, and says of its models what real exports' reports say."""

import dataclasses
import inspect
import json
import re

import kits
import pytest
import yaml
from project import ROOT

from keras_efficientformer import EfficientFormerL1, imagenet
from keras_efficientformer.deploy.benchmark.apple_timing import UNITS
from keras_efficientformer.deploy.benchmark.reports import DeviceReport, Latency
from keras_efficientformer.labels import class_colors

KIT = ROOT / "coreml" / "ios"
SOURCES = kits.sources(KIT)
MODEL = KIT / "Sample" / "Model.swift"
LATENCY = KIT / "SampleTests" / "LatencyTests.swift"


@pytest.fixture(scope="module")
def constants():
    return kits.constants(kits.declaration(kits.parse(MODEL), "Model"))


@pytest.fixture(scope="module")
def report(tmp_path_factory, constants):
    """The report of the package that the app is made for, as the README's second step makes it, with random weights."""
    from keras_efficientformer.deploy import export_coreml

    folder = tmp_path_factory.mktemp("Sample")
    arguments = kits.export_arguments(KIT / "README.md")
    assert arguments["path"] == MODEL.parent.relative_to(ROOT)
    settings = {name: arguments[name] for name in ("precision", "compress", "minimum_ios")}
    export_coreml(EfficientFormerL1(weights=None), folder, **settings, max_difference=float("inf"))
    assert (folder / f"{constants['name']}.mlpackage").is_dir()
    return json.loads((folder / f"{constants['name']}.mlpackage.json").read_text())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_swift_parses(path):
    root = kits.parse(path)
    assert root.child_count
    assert kits.mistakes(root) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_parser_finds_a_missing_brace(path):
    content = path.read_bytes()
    last = content.rfind(b"}")
    assert kits.mistakes(kits.parse(path, content[:last] + content[last + 1 :]))


def test_model_equals_the_report(constants, report):
    (image,) = report["inputs"]
    outputs = {output["name"]: output for output in report["outputs"]}
    assert image["name"] == constants["input"]
    assert image["shape"] == [1, 3, constants["height"], constants["width"]]
    assert image["dtype"] == "uint8"  # an RGB image, not an array
    assert outputs.keys() == {constants["label"], constants["probabilities"]}
    assert outputs[constants["label"]]["dtype"] == "str"
    assert outputs[constants["probabilities"]]["shape"][-1] == constants["classes"]
    assert len(report["labels"]) == constants["classes"]
    assert report["preprocessing"]


def test_segmentation_model_equals_the_report(tmp_path):
    """The package that the README's command makes, but of a small network with random weights."""
    from coremltools.models import MLModel

    from keras_efficientformer.deploy import export_coreml

    facts = kits.constants(kits.declaration(kits.parse(MODEL), "SegmentationModel"))
    size = (facts["height"], facts["width"])
    export_coreml(
        kits.segmenter((*size, 3), facts["classes"]), tmp_path, mask_output="classes", max_difference=float("inf")
    )
    package = tmp_path / f"{facts['name']}.mlpackage"
    report = json.loads(package.with_name(f"{package.name}.json").read_text())
    (image,), (classes,) = report["inputs"], report["outputs"]
    assert (image["name"], image["dtype"], image["shape"]) == (facts["input"], "uint8", [1, 3, *size])
    assert (classes["name"], classes["dtype"], classes["shape"]) == (facts["output"], "int32", [1, *size])
    legend = json.loads(MLModel(str(package), skip_model_load=True).user_defined_metadata[facts["legend"]])
    assert legend == {"labels": report["labels"], "colors": class_colors(facts["classes"])}
    fields = kits.nodes(kits.declaration(kits.parse(KIT / "Sample" / "Segmenter.swift"), "Legend"), "pattern")
    assert {kits.text(field) for field in fields} >= legend.keys()


def test_crop_is_the_package_s(constants):
    assert constants["cropFraction"] == inspect.signature(imagenet.resize_and_crop).parameters["crop_fraction"].default


@pytest.mark.parametrize("owner", ["Model", "SegmentationModel"])
def test_facts_stand_in_model_only(owner):
    constants = kits.constants(kits.declaration(kits.parse(MODEL), owner))
    facts = {value for value in constants.values() if isinstance(value, str) or value > 100}
    used = set()
    for path in SOURCES:
        if path != MODEL:
            root = kits.parse(path)
            assert facts.isdisjoint(kits.literals(root)), path.name
            used |= kits.references(root, owner)
    assert used == constants.keys()


def test_compute_units_are_the_benchmark_s():
    root = kits.parse(KIT / "Sample" / "Classifier.swift")
    units = next(kits.nodes(root, "class_declaration"))
    assert "enum ComputeUnits" in kits.text(units)
    (cases,) = kits.nodes(units, "enum_entry")
    assert set(kits.text(cases).removeprefix("case").replace(",", " ").split()) == UNITS.keys()


def test_latencies_have_the_fields_of_device_reports():
    """The XCTest writes what benchmarks/devices/ holds."""
    latency, report = sorted(_dictionaries(LATENCY), key=len, reverse=True)[:2]
    assert latency == [field.name for field in dataclasses.fields(Latency)]
    assert report == [field.name for field in dataclasses.fields(DeviceReport)]


def _dictionaries(path):
    """The keys of each dictionary that is written out."""
    for dictionary in kits.nodes(kits.parse(path), "dictionary_literal"):
        keys = dictionary.children_by_field_name("key")
        yield [kits.literal(key) for key in keys if key.type == "line_string_literal"]


def test_project_names_folders_that_are_there():
    project = yaml.safe_load((KIT / "project.yml").read_text())
    app, tests = project["targets"]["Sample"], project["targets"]["SampleTests"]
    folders = {app["sources"][0]["path"], *tests["sources"]}
    assert {path.relative_to(KIT).parts[0] for path in SOURCES} == folders
    assert app["scheme"]["testTargets"] == ["SampleTests"]
    assert tests["dependencies"] == [{"target": "Sample"}]
    assert "@testable import Sample\n" in LATENCY.read_text()
    oldest = project["options"]["deploymentTarget"]["iOS"].removesuffix(".0")
    assert f"iOS {oldest} or newer" in (KIT / "README.md").read_text()


def test_readme_has_six_steps_and_names_files_that_are_there():
    readme = KIT / "README.md"
    assert len(kits.steps(readme)) == 6
    assert kits.missing_files(readme, KIT, ROOT) == set()


def test_readme_lists_every_source():
    readme = (KIT / "README.md").read_text()
    assert all(re.search(f"`{path.relative_to(KIT)}` \\|", readme) for path in SOURCES)
