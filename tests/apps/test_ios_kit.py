"""The iOS sample and the projects made of it: Swift that parses, and facts that are the packages'."""

import dataclasses
import itertools
import json
import re

import kits
import numpy as np
import pytest
import yaml
from PIL import Image
from project import ROOT

from keras_efficientformer import EfficientFormer
from keras_efficientformer.apps import write_ios_app
from keras_efficientformer.apps.ios_app import IOS as PROJECT
from keras_efficientformer.classifiers import open_classifier
from keras_efficientformer.deploy import export_coreml
from keras_efficientformer.deploy.benchmark.apple_timing import UNITS
from keras_efficientformer.deploy.benchmark.reports import DeviceReport, Latency
from keras_efficientformer.labels import class_colors

README = ROOT / "coreml" / "ios" / "README.md"
KIT = PROJECT.sample
SOURCES = kits.sources(KIT)
MODEL = KIT / "Sample" / "Model.swift"
LATENCY = KIT / "SampleTests" / "LatencyTests.swift"
# As a folder may be called.
FILE = 'a "5" $x \\(y) 花🐈.mlpackage'
NAME = 'Anna\'s "birds": #1'
SIZES = {"classification": ((64, 96), (64, 64)), "segmentation": ((64, 96),)}


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """{kind: (project, what was said of it)}, of a given package, of two sizes, and of a model that is exported."""
    folder = tmp_path_factory.mktemp("projects")
    export_coreml(kits.classifier(kits.LABELS), folder / FILE, minimum_ios=18, input_sizes=SIZES["classification"])
    classifier = write_ios_app(folder / FILE, folder / "birds", name=NAME, app_id="com.example.B1-rds", crop=0.875)
    segmenter = write_ios_app(kits.segmenter(kits.LABELS), folder / "streets", compress="int8")
    return {"classification": (folder / "birds", classifier), "segmentation": (folder / "streets", segmenter)}


def unquoted(text):
    """What a string literal of Swift without its quotes stands for."""
    assert not re.search(r"(?<!\\)(\\\\)*\\\(", text), "an interpolation"
    return re.sub(r"\\u\{(\w+)\}|\\(.)", lambda match: chr(int(match[1], 16)) if match[1] else match[2], text)


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


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_model_equals_the_package(projects, kind):
    from coremltools.models import MLModel

    project, said = projects[kind]
    root = kits.parse(project / "Sample" / "Model.swift")
    assert kits.mistakes(root) == []
    facts = kits.constants(kits.declaration(root, "Model"))
    package = project / PROJECT.models / said.model
    assert unquoted(facts["name"]) == package.stem
    description = MLModel(str(package), skip_model_load=True).get_spec().description
    sizes = kits.input_sizes(root)
    # A package of one size describes no functions, and is opened without naming one.
    functions = {function.name: function for function in description.functions} or {None: description}
    assert [function for function, *_ in sizes if kind == "classification"] == list(functions if len(sizes) > 1 else ())
    for function, (*_, width, height) in zip(functions.values(), sizes, strict=True):
        (image,) = function.input
        assert (image.name, image.type.WhichOneof("Type")) == (facts["input"], "imageType")
        assert (image.type.imageType.height, image.type.imageType.width) == (height, width)
        assert facts["output"] in [output.name for output in function.output]
    assert said.sizes == SIZES[kind] == tuple((height, width) for *_, width, height in sizes)
    assert (len(said.labels), list(said.labels)) == (facts["classes"], kits.LABELS)
    assert open_classifier(package).labels == said.labels
    assert kits.references(root, "ModelTask") == {said.task} == {kind}
    assert facts["cropFraction"] == (0.875 if kind == "classification" else 1.0)
    assert json.loads((project / f"{said.model}.json").read_text())["labels"] == kits.LABELS
    if kind == "segmentation":
        legend = json.loads(description.metadata.userDefined[facts["legend"]])
        assert legend == {"labels": kits.LABELS, "colors": class_colors(facts["classes"])}
        fields = kits.nodes(kits.declaration(kits.parse(KIT / "Sample" / "Segmenter.swift"), "Legend"), "pattern")
        assert {kits.text(field) for field in fields} >= legend.keys()
        (output,) = description.output
        assert list(output.type.multiArrayType.shape) == [1, *said.sizes[0]]


def test_project_has_names_and_the_oldest_ios(projects):
    (birds, said), (streets, other) = projects.values()
    project = yaml.safe_load((birds / "project.yml").read_text(encoding="utf-8"))
    settings = project["targets"]["Sample"]["settings"]["base"]
    assert settings["PRODUCT_BUNDLE_IDENTIFIER"] == project["options"]["bundleIdPrefix"] == "com.example.B1-rds"
    assert settings["INFOPLIST_KEY_CFBundleDisplayName"] == NAME
    assert (said.model, said.name, said.app_id) == (FILE, NAME, "com.example.B1-rds")
    assert project["options"]["deploymentTarget"] == {"iOS": "18.0"}
    assert (other.name, other.app_id) == ("street scenes", "org.example.street-scenes")
    assert yaml.safe_load((streets / "project.yml").read_text())["options"]["deploymentTarget"] == {"iOS": "16.0"}
    assert other.model == "street_scenes_64x96_int8.mlpackage"


def test_project_is_the_sample_with_a_model(projects):
    project, said = projects["classification"]
    package = project / PROJECT.models / said.model
    files = {path for path in project.rglob("*") if path.is_file() and package not in path.parents}
    found = {path.relative_to(project).as_posix() for path in files}
    sample = {path.relative_to(KIT).as_posix() for path in KIT.rglob("*") if path.is_file()}
    assert found == sample | {f"{said.model}.json"}
    changed = {name for name in sample if (KIT / name).read_bytes() != (project / name).read_bytes()}
    assert changed == {"Sample/Model.swift", "project.yml"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"app_id": "com.ex_ample"}, "two or more words of ASCII letters, digits and -.*Received: 'com.ex_ample'"),
        ({"name": "$(HOME)"}, r"has no \$.*choose another name"),
        ({"crop": 1.5}, r"`crop` should be in \(0, 1\]"),
        ({"compress": "int8"}, "exported already: leave compress out"),
        ({"labels": kits.LABELS}, "exported already: leave labels out"),
    ],
)
def test_bad_arguments(projects, tmp_path, arguments, message):
    project, said = projects["classification"]
    with pytest.raises(ValueError, match=message):
        write_ios_app(project / PROJECT.models / said.model, tmp_path / "app", **{"name": NAME, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_compression_that_measures_and_needs_a_newer_system(tmp_path):
    images = np.random.default_rng(0).uniform(0, 255, (32, 64, 96, 3))
    write_ios_app(kits.classifier(kits.LABELS), tmp_path / "app", compress="w8a8", calibration=images)
    assert 'iOS: "17.0"' in (tmp_path / "app" / "project.yml").read_text()


def test_models_that_the_app_cannot_run(tmp_path):
    package = tmp_path / "m.mlpackage"
    export_coreml(kits.segmenter(kits.LABELS), package)
    with pytest.raises(ValueError, match="values of all classes for every pixel: export it with --mask-output classes"):
        write_ios_app(package, tmp_path / "app")
    unnamed = EfficientFormer((1, 1, 1, 2), (8, 16, 16, 32), input_shape=(64, 64, 3), classes=3)
    with pytest.warns(UserWarning, match="No labels"), pytest.raises(ValueError, match="pass labels"):
        write_ios_app(unnamed, tmp_path / "app")
    assert {path.name for path in tmp_path.iterdir()} == {package.name, f"{package.name}.json"}


def test_icon_is_one_that_apple_takes():
    (icon,) = KIT.rglob("*.png")
    with Image.open(icon) as picture:
        assert (picture.size, picture.mode) == ((1024, 1024), "RGB")  # an alpha channel is refused
    assert json.loads(icon.with_name("Contents.json").read_text())["images"][0]["filename"] == icon.name


def test_facts_stand_in_model_only():
    constants = kits.constants(kits.declaration(kits.parse(MODEL), "Model"))
    sizes = kits.input_sizes(kits.parse(MODEL))
    facts = [*constants.values(), *itertools.chain.from_iterable(sizes)]
    values = {value for value in facts if isinstance(value, str) or value > 100}
    used = set()
    for path in SOURCES:
        if path != MODEL:
            root = kits.parse(path)
            assert values.isdisjoint(kits.literals(root)), path.name
            used |= kits.references(root, "Model")
    assert used == constants.keys() | {"task", "sizes"}


def test_compute_units_are_the_benchmark_s():
    units = kits.declaration(kits.parse(KIT / "Sample" / "Network.swift"), "ComputeUnits")
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
    assert {path.relative_to(KIT).parts[0] for path in SOURCES} == {*app["sources"], *tests["sources"]}
    assert app["scheme"]["testTargets"] == ["SampleTests"]
    assert tests["dependencies"] == [{"target": "Sample"}]
    assert "@testable import Sample\n" in LATENCY.read_text()
    assert app["settings"]["base"]["INFOPLIST_KEY_NSCameraUsageDescription"]
    assert project["settings"]["base"]["SWIFT_VERSION"] == "6.0"
    oldest = project["options"]["deploymentTarget"]["iOS"].removesuffix(".0")
    assert f"iOS {oldest} or newer" in README.read_text()


def test_readme_has_steps_and_names_files_that_are_there():
    assert len(kits.steps(README)) == 5
    assert kits.missing_files(README, KIT, README.parent, ROOT) == set()


def test_readme_lists_every_source():
    assert all(f"`{path.relative_to(KIT)}`" in README.read_text() for path in SOURCES)
