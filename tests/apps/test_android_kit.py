"""The Android sample and the projects made of it: Kotlin that compiles, and facts that are the exported files'."""

import itertools
import json
import re
import tomllib
import xml.etree.ElementTree as ElementTree

import kits
import numpy as np
import pytest
from kotlin import compiled, in_class_file, run_class
from networks import make_loud
from project import ROOT

from keras_efficientformer import EfficientFormer
from keras_efficientformer.apps import write_android_app
from keras_efficientformer.apps.android_app import ANDROID as PROJECT
from keras_efficientformer.classifiers import open_classifier
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.labels import class_colors
from keras_efficientformer.segmentation import SemanticFPN

README = ROOT / "tflite" / "android" / "README.md"
KIT = PROJECT.sample
MAIN = KIT / "app" / "src" / "main"
SOURCES = kits.sources(KIT)
MODEL = next(path for path in SOURCES if path.name == "Model.kt")
ANDROID = "{http://schemas.android.com/apk/res/android}"
# As a file may be called on Linux.
FILE = 'a "5" $x ${y} \\n 花🐈.tflite'
NAME = 'Anna\'s "birds" <&> @\\'
SIZES = {"classification": ((64, 96), (64, 64)), "segmentation": ((64, 96),)}
# Prints which ways to run its model an app offers.
PROBE = 'package org.example.efficientformer\n\nfun main() = print(Engine.choices.joinToString(separator = "\\n"))\n'


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """{kind: (project, what was said of it)}, of a given file, of two sizes, and of a model that is exported."""
    folder = tmp_path_factory.mktemp("projects")
    export_tflite(kits.classifier(kits.LABELS), folder / FILE, input_sizes=SIZES["classification"])
    classifier = write_android_app(folder / FILE, folder / "birds", name=NAME, app_id="com.example.B1_rds", crop=0.875)
    segmenter = write_android_app(kits.segmenter(kits.LABELS), folder / "streets")
    return {"classification": (folder / "birds", classifier), "segmentation": (folder / "streets", segmenter)}


def facts(project):
    """What Model.kt says, as it is written there."""
    (model,) = project.rglob("Model.kt")
    root = kits.parse(model)
    (task,) = (text for text in kits.references(root, "Task"))
    return kits.constants(kits.declaration(root, "Model")) | {"TASK": task.lower()}


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


def test_kotlin_compiles_without_a_warning(projects, tmp_path):
    """Both projects, which differ in Model.kt alone: the segmenter's is compiled in another package."""
    (project, _), (other, _) = projects.values()
    differing = [
        path.name
        for path in project.rglob("*.kt*")
        if path.read_bytes() != (other / path.relative_to(project)).read_bytes()
    ]
    assert sorted(differing) == ["Model.kt", "build.gradle.kts"]
    (second,) = other.rglob("Model.kt")
    renamed = tmp_path / "SegmentationModel.kt"
    renamed.write_text(second.read_text().replace("package org.example.", "package other.example."))
    probe = tmp_path / "Probe.kt"
    probe.write_text(PROBE)
    classes = compiled(project / "app" / "src" / "main", renamed, probe, target=tmp_path)
    written = {path.relative_to(classes).as_posix() for path in classes.rglob("*.class")}
    assert {f"org/example/efficientformer/{name}.class" for name in ("MainActivity", "Segmenter", "Timing")} <= written
    content = (classes / "org/example/efficientformer/Model.class").read_bytes()
    assert in_class_file(FILE) in content
    # MediaPipe refuses files of several sizes.
    assert run_class(classes, "ProbeKt") == "LiteRT CompiledModel, CPU\nLiteRT CompiledModel, GPU"


def test_packages_are_those_of_the_folders():
    for path in MAIN.rglob("*.kt"):
        package = ".".join(path.parent.relative_to(MAIN / "java").parts)
        assert kits.text(next(kits.nodes(kits.parse(path), "package_header"))).split()[1] == package


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_model_equals_the_file(projects, kind):
    from ai_edge_litert.interpreter import Interpreter

    project, said = projects[kind]
    found = facts(project)
    file = project / PROJECT.models / said.model
    interpreter = Interpreter(model_content=file.read_bytes())
    (model,) = project.rglob("Model.kt")
    sizes = kits.input_sizes(kits.parse(model))
    ends = {"inputs": [found["INPUT"]], "outputs": [found["OUTPUT"]]}
    assert interpreter.get_signature_list() == {signature: ends for signature, *_ in sizes}
    for signature, *size in sizes:
        runner = interpreter.get_signature_runner(signature)
        image, output = runner.get_input_details()[found["INPUT"]], runner.get_output_details()[found["OUTPUT"]]
        assert (image["dtype"], list(image["shape"])) == (np.float32, [1, *size, 3])
        assert (output["dtype"], output["shape"][-1]) == (np.float32, found["CLASSES"])
    assert (found["TASK"], said.task) == (kind, kind)
    assert said.sizes == SIZES[kind] == tuple((height, width) for _, height, width in sizes)
    labels = (project / PROJECT.models / found["LABELS"]).read_text(encoding="utf-8").split("\n")
    assert labels == [*open_classifier(file).labels, ""]
    assert labels[:-1] == list(said.labels) == kits.LABELS
    report = json.loads((project / f"{said.model}.json").read_text())
    assert report["labels"] == kits.LABELS
    assert report["mode"] == ("float32" if kind == "classification" else "float16")
    assert found["CROP_FRACTION"] == (0.875 if kind == "classification" else 1.0)


def test_names_are_quoted(projects):
    project, said = projects["classification"]
    assert facts(project)["ASSET"] == 'a \\"5\\" \\$x \\${y} \\\\n 花🐈.tflite'
    assert (said.model, said.name, said.app_id) == (FILE, NAME, "com.example.B1_rds")
    strings = ElementTree.parse(project / "app/src/main/res/values/strings.xml")
    (name,) = (item.text for item in strings.iter("string") if item.get("name") == "app_name")
    assert re.sub(r"\\(.)", r"\1", name) == NAME
    assert name.startswith("Anna\\'s \\\"birds")
    assert 'applicationId = "com.example.B1_rds"\n' in (project / "app/build.gradle.kts").read_text()


def test_names_come_from_the_model(projects):
    project, said = projects["segmentation"]
    assert (said.name, said.app_id) == ("street scenes", "org.example.street_scenes")
    assert PROJECT.names("7 Meere", None, None) == ("7 Meere", "org.example.app7_meere")
    assert PROJECT.names("花", None, None) == ("花", "org.example.app")
    assert f'applicationId = "{said.app_id}"\n' in (project / "app/build.gradle.kts").read_text()


def test_project_is_the_sample_with_a_model(projects):
    """And nothing that Android Studio has left in the sample's folder, or its code in another place."""
    project, said = projects["segmentation"]
    own = {"app/src/main/assets/labels.txt", f"app/src/main/assets/{said.model}", f"{said.model}.json"}
    found = {path.relative_to(project).as_posix(): path for path in project.rglob("*") if path.is_file()}
    sample = {path.relative_to(KIT).as_posix(): path for path in KIT.rglob("*") if path.is_file()}
    assert found.keys() == sample.keys() | own
    changed = {name for name in sample if sample[name].read_bytes() != found[name].read_bytes()}
    assert changed == {
        "app/build.gradle.kts",
        "app/src/main/java/org/example/efficientformer/Model.kt",
        "app/src/main/res/values/strings.xml",
    }
    assert said.bytes == sum(path.stat().st_size for path in found.values())


def test_a_project_is_replaced_when_asked_to_alone(projects, tmp_path):
    project, said = projects["classification"]
    file = project / PROJECT.models / said.model
    folder = tmp_path / "app"
    write_android_app(file, folder, labels=kits.LABELS[::-1])
    (folder / "old").touch()
    with pytest.raises(FileExistsError, match="overwrite"):
        write_android_app(file, folder)
    assert (folder / "old").exists()
    assert write_android_app(file, folder, overwrite=True).labels == tuple(kits.LABELS)
    assert not (folder / "old").exists()
    (tmp_path / "photos").mkdir()
    with pytest.raises(IsADirectoryError, match="another kind"):
        write_android_app(file, tmp_path / "photos", overwrite=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"app_id": "birds"}, "two or more words of ASCII letters, digits and _.*Received: 'birds'"),
        ({"app_id": "com.1example"}, "two or more words"),
        ({"app_id": "com.exämple"}, "two or more words"),
        ({"name": " "}, "one line of text"),
        ({"name": "a\nb"}, "one line of text"),
        ({"crop": 0.0}, r"`crop` should be in \(0, 1\]"),
        ({"labels": ["a", "b"]}, "5 classes, and there are 2 labels"),
        ({"quantize": "int8"}, "exported already: leave quantize out"),
    ],
)
def test_bad_arguments(projects, tmp_path, arguments, message):
    project, said = projects["classification"]
    with pytest.raises(ValueError, match=message):
        write_android_app(project / PROJECT.models / said.model, tmp_path / "app", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_files_that_the_app_cannot_run(projects, tmp_path):
    project, said = projects["segmentation"]
    with pytest.raises(ValueError, match="whole photographs: leave the crop out"):
        write_android_app(project / PROJECT.models / said.model, tmp_path / "app", crop=0.9)
    with pytest.raises(FileNotFoundError, match=r"none.tflite does not exist"):
        write_android_app(tmp_path / "none.tflite", tmp_path / "app")
    with pytest.raises(ValueError, match=r"runs a \.tflite file.*model.pth"):
        write_android_app(tmp_path / "model.pth", tmp_path / "app")
    shape = {"input_shape": (64, 64, 3), "classes": 3}
    tiny = ((1, 1, 1, 2), (8, 16, 16, 32))
    logits = EfficientFormer(*tiny, **shape, classifier_activation=None, labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="gives logits, not probabilities"):
        write_android_app(logits, tmp_path / "app")
    with pytest.warns(UserWarning, match="No labels"), pytest.raises(ValueError, match="pass labels"):
        write_android_app(EfficientFormer(*tiny, **shape), tmp_path / "app")
    backbone = EfficientFormer(*tiny, input_shape=(64, 64, 3), include_top=False)
    small = make_loud(SemanticFPN(backbone, 2, 16, 8, labels=["a", "b"], output_stride=4))
    with pytest.raises(ValueError, match=r"masks \(16, 16\) of images \(64, 64\)"):
        write_android_app(small, tmp_path / "app")
    assert list(tmp_path.iterdir()) == []


def test_colors_are_the_package_s():
    (array,) = ElementTree.parse(MAIN / "res/values/colors.xml").iter("array")
    assert [item.text for item in array] == class_colors(256)
    (segmenter,) = (path for path in SOURCES if path.name == "Segmenter.kt")
    assert f"R.array.{array.get('name')}" in segmenter.read_text()


def test_facts_stand_in_model_only():
    constants = kits.constants(kits.declaration(kits.parse(MODEL), "Model"))
    sizes = kits.input_sizes(kits.parse(MODEL))
    facts = [*constants.values(), *itertools.chain.from_iterable(sizes)]
    values = {value for value in facts if isinstance(value, str) or value > 100}
    used = set()
    for path in MAIN.rglob("*.kt"):
        if path != MODEL:
            root = kits.parse(path)
            assert values.isdisjoint(kits.literals(root)), path.name
            used |= kits.references(root, "Model")
    assert used == constants.keys() | {"TASK", "SIZES"}


def test_xml_parses_and_resources_exist():
    files = list(MAIN.rglob("*.xml"))
    trees = [ElementTree.parse(file) for file in files]
    named = {(item.tag, item.get("name")) for tree in trees for item in tree.iter() if item.get("name")}
    named |= {(file.parent.name.partition("-")[0], file.stem) for file in files}
    attributes = " ".join(value for tree in trees for element in tree.iter() for value in element.attrib.values())
    code = (MAIN / "java/org/example/efficientformer/MainActivity.kt").read_text()
    asked = set(re.findall(r"@(string|color|drawable|mipmap|xml)/(\w+)", attributes))
    assert {name for name in asked if name not in named} == set()
    strings = {name for kind, name in named if kind == "string"}
    assert {name for kind, name in asked if kind == "string"} | set(re.findall(r"R\.string\.(\w+)", code)) == strings
    assert "android.permission.CAMERA" in attributes
    assert "Manifest.permission.CAMERA" in code


def test_build_files_agree():
    catalog = tomllib.loads((KIT / "gradle/libs.versions.toml").read_text())
    entries = [*catalog["libraries"].values(), *catalog["plugins"].values()]
    assert {entry["version"]["ref"] for entry in entries} == catalog["versions"].keys()
    script = (KIT / "app/build.gradle.kts").read_text()
    wanted = {name.replace("-", ".") for name in catalog["libraries"]}
    assert set(re.findall(r"(?:implementation|runtimeOnly)\(libs\.([\w.]+)\)", script)) == wanted
    gradle = re.search(r"gradle-([\d.]+)-bin", (KIT / "gradle/wrapper/gradle-wrapper.properties").read_text())[1]
    assert f"Gradle {gradle}" in (KIT / "gradle/libs.versions.toml").read_text()


def test_libraries_that_the_code_names_are_direct_dependencies():
    """Of each package that is imported, the library that it is in."""
    script = (KIT / "app/build.gradle.kts").read_text()
    libraries = {
        "androidx.activity": "activity",
        "androidx.camera.core": "camera.core",
        "androidx.camera.lifecycle": "camera.lifecycle",
        "androidx.lifecycle.AndroidViewModel": "lifecycle.viewmodel",
        "androidx.lifecycle.Lifecycle": "lifecycle.common",
        "androidx.lifecycle": "lifecycle.runtime",
        "com.google.ai.edge.litert": "litert",
        "com.google.mediapipe.framework.image": "mediapipe.tasks.core",
        "com.google.mediapipe.tasks.core": "mediapipe.tasks.core",
        "com.google.mediapipe.tasks.vision": "mediapipe.tasks.vision",
        "kotlinx.coroutines": "coroutines.core",
    }
    imported = {name for path in MAIN.rglob("*.kt") for name in re.findall(r"^import ([\w.]+)", path.read_text(), re.M)}
    foreign = {name for name in imported if not name.startswith(("android.", "java.", "kotlin.", "org.example."))}
    needed = {next(library for start, library in libraries.items() if name.startswith(start)) for name in foreign}
    assert needed == set(libraries.values())
    assert needed == set(re.findall(r"implementation\(libs\.([\w.]+)\)", script))


def test_readme_has_steps_and_names_files_that_are_there():
    assert len(kits.steps(README)) == 5
    made = {"./gradlew", f"{PROJECT.models}/labels.txt"}  # by Gradle, and for each project
    assert kits.missing_files(README, KIT, README.parent, ROOT) == made


def test_readme_lists_every_source_of_the_app():
    assert all(f"`{path.name}`" in README.read_text() for path in MAIN.rglob("*.kt"))
