"""The Android sample: it parses, and says of its models what real exports' reports say."""

import inspect
import json
import re
import tomllib
import xml.etree.ElementTree as ElementTree

import kits
import pytest
from project import ROOT

from keras_efficientformer import EfficientFormerL1, imagenet
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.labels import class_colors

KIT = ROOT / "tflite" / "android"
APP = KIT / "app" / "src" / "main"
SOURCES = kits.sources(KIT)
MODEL = next(path for path in SOURCES if path.name == "Model.kt")
ANDROID = "{http://schemas.android.com/apk/res/android}"


@pytest.fixture(scope="module")
def constants():
    return kits.constants(kits.declaration(kits.parse(MODEL), "Model"))


@pytest.fixture(scope="module")
def segmentation_constants():
    return kits.constants(kits.declaration(kits.parse(MODEL), "SegmentationModel"))


@pytest.fixture(scope="module")
def export(tmp_path_factory, constants):
    """The file that the app is made for, as the README's second step makes it, but with random weights."""
    folder = tmp_path_factory.mktemp("assets")
    arguments = kits.export_arguments(KIT / "README.md")
    assert arguments["path"] == (APP / "assets").relative_to(ROOT)
    export_tflite(EfficientFormerL1(weights=None), folder, quantize=arguments["quantize"])
    return folder / constants["ASSET"]


@pytest.fixture(scope="module")
def report(export, constants):
    return json.loads((export.parent / constants["REPORT"]).read_text())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_kotlin_parses(path):
    root = kits.parse(path)
    assert root.child_count
    assert kits.mistakes(root) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_parser_finds_a_missing_brace(path):
    content = path.read_bytes()
    last = max(content.rfind(b"}"), content.rfind(b")"))
    assert kits.mistakes(kits.parse(path, content[:last] + content[last + 1 :]))


def test_packages_are_those_of_the_folders():
    for path in APP.rglob("*.kt"):
        package = ".".join(path.parent.relative_to(APP / "java").parts)
        assert kits.text(next(kits.nodes(kits.parse(path), "package_header"))).split()[1] == package


def test_model_equals_the_report(constants, report):
    (image,), (probabilities,) = report["inputs"], report["outputs"]
    size = [constants["HEIGHT"], constants["WIDTH"], constants["CHANNELS"]]
    assert image["name"] == constants["INPUT"]
    assert image["dtype"] == constants["INPUT_TYPE"]
    assert image["shape"] == [1, *size]
    assert probabilities["name"] == constants["OUTPUT"]
    assert probabilities["dtype"] == constants["OUTPUT_TYPE"]
    assert probabilities["shape"] == [1, constants["CLASSES"]]
    assert len(report["labels"]) == constants["CLASSES"]
    assert report["preprocessing"]


def test_signature_is_the_file_s(export, constants):
    from ai_edge_litert.interpreter import Interpreter

    signatures = Interpreter(str(export)).get_signature_list()
    assert signatures == {constants["SIGNATURE"]: {"inputs": [constants["INPUT"]], "outputs": [constants["OUTPUT"]]}}


def test_crop_is_the_package_s(constants):
    assert constants["CROP_FRACTION"] == inspect.signature(imagenet.resize_and_crop).parameters["crop_fraction"].default


def test_segmentation_model_equals_the_report(segmentation_constants, tmp_path):
    """The file that the README's command makes, but of a small network with random weights."""
    facts = segmentation_constants
    size = (facts["HEIGHT"], facts["WIDTH"], facts["CHANNELS"])
    export_tflite(kits.segmenter(size, facts["CLASSES"]), tmp_path, quantize="float16")
    assert {path.name for path in tmp_path.iterdir()} == {facts["ASSET"], facts["REPORT"]}
    report = json.loads((tmp_path / facts["REPORT"]).read_text())
    image, masks = ((facts[end], facts[f"{end}_TYPE"]) for end in ("INPUT", "OUTPUT"))
    assert [(tensor["name"], tensor["dtype"]) for tensor in report["inputs"] + report["outputs"]] == [image, masks]
    assert report["inputs"][0]["shape"] == [1, *size]
    assert report["outputs"][0]["shape"] == [1, *size[:2], facts["CLASSES"]]
    assert len(report["labels"]) == facts["CLASSES"]
    assert report["preprocessing"]
    assert facts["WIDTH"] % 16 == 0  # else MediaPipe pads the mask's rows


def test_colors_are_the_package_s():
    (array,) = ElementTree.parse(APP / "res/values/colors.xml").iter("array")
    assert [item.text for item in array] == class_colors(256)
    (segmenter,) = (path for path in SOURCES if path.name == "Segmenter.kt")
    assert f"R.array.{array.get('name')}" in segmenter.read_text()


@pytest.mark.parametrize("owner", ["Model", "SegmentationModel"])
def test_facts_stand_in_model_only(owner):
    constants = kits.constants(kits.declaration(kits.parse(MODEL), owner))
    facts = {value for value in constants.values() if isinstance(value, str) or value > 100}
    used = set()
    for path in APP.rglob("*.kt"):
        if path != MODEL:
            root = kits.parse(path)
            assert facts.isdisjoint(kits.literals(root)), path.name
            used |= kits.references(root, owner)
    assert used == constants.keys()


def test_xml_parses_and_resources_exist():
    files = list(APP.rglob("*.xml"))
    trees = [ElementTree.parse(file) for file in files]
    strings = {element.get("name") for tree in trees for element in tree.iter("string")}
    ids = {value.removeprefix("@+id/") for tree in trees for e in tree.iter() if (value := e.get(f"{ANDROID}id"))}
    attributes = " ".join(value for tree in trees for element in tree.iter() for value in element.attrib.values())
    code = (APP / "java/org/example/efficientformer/MainActivity.kt").read_text()
    assert set(re.findall(r"@string/(\w+)", attributes) + re.findall(r"R\.string\.(\w+)", code)) == strings
    assert set(re.findall(r"screen\.(\w+)\.", code)) == ids
    assert {file.stem for file in files} >= set(re.findall(r"@xml/(\w+)", attributes))
    assert "$packageName.photos" in code
    assert "${applicationId}.photos" in attributes


def test_build_files_agree():
    catalog = tomllib.loads((KIT / "gradle/libs.versions.toml").read_text())
    entries = [*catalog["libraries"].values(), *catalog["plugins"].values()]
    assert {entry["version"]["ref"] for entry in entries} == catalog["versions"].keys()
    script = (KIT / "app/build.gradle.kts").read_text()
    wanted = {name.replace("-", ".") for name in catalog["libraries"]}
    assert set(re.findall(r"implementation\(libs\.([\w.]+)\)", script)) == wanted
    gradle = re.search(r"gradle-([\d.]+)-bin", (KIT / "gradle/wrapper/gradle-wrapper.properties").read_text())[1]
    assert f"Gradle {gradle}" in (KIT / "gradle/libs.versions.toml").read_text()


def test_readme_has_six_steps_and_names_files_that_are_there():
    readme = KIT / "README.md"
    assert len(kits.steps(readme)) == 6
    assert kits.missing_files(readme, KIT, ROOT) == {"./gradlew"}  # which the command before it makes


def test_readme_lists_every_source_of_the_app():
    readme = (KIT / "README.md").read_text()
    assert all(f"`{path.relative_to(KIT)}`" in readme for path in APP.rglob("*.kt"))
