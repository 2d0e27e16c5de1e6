"""Modes compared on images: what is measured, what goes on after an interrupt, what is recommended and refused."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import training_images
from filelock import FileLock
from networks import make_loud
from PIL import Image
from project import ROOT

from keras_efficientformer import cli
from keras_efficientformer.deploy import compare_modes, plot_comparison
from keras_efficientformer.deploy.comparison.measuring import Instruments
from keras_efficientformer.deploy.comparison.modes import all_modes, chosen_modes
from keras_efficientformer.deploy.comparison.results import ModeResult, ModeScores, front
from keras_efficientformer.deploy.comparison.targets import MEGABYTES, TARGET_RULES, recommend
from keras_efficientformer.deploy.coreml.runtime import CoreMLModel
from keras_efficientformer.deploy.tflite.runtime import LiteRTModel
from keras_efficientformer.image_folders.image_folder import list_images
from keras_efficientformer.imagenet import load_image, preprocess_input, resize_and_crop

MODES = ("tflite:none", "tflite:int8", "coreml:palette4")
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(autouse=True, scope="module")
def places(tmp_path_factory):
    """No emulator and no GPU, which have tests of their own; comparisons lie in a folder of the test's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("EFFICIENTFORMER_ARM", "EFFICIENTFORMER_GPU", "EFFICIENTFORMER_COMPARISONS"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name)))
        yield


@pytest.fixture(scope="module")
def model():
    model = training_images.make_model(classes=3, classifier_activation="softmax")
    make_loud(model)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images to score in `val`, and others in `train`."""
    folder = tmp_path_factory.mktemp("photographs")
    training_images.make_folder(folder / "train", dict.fromkeys(training_images.COLOURS, 11))
    training_images.make_folder(folder / "val", dict.fromkeys(training_images.COLOURS, 4), noise=90)
    return folder


class Tracked:
    """What was tracked; an interrupt comes before the item of that number."""

    def __init__(self, interrupt=None):
        self.names, self.interrupt = [], interrupt

    def __call__(self, modes):
        for number, mode in enumerate(modes):
            if number == self.interrupt:
                raise KeyboardInterrupt
            self.names.append(mode.name)
            yield mode


@pytest.fixture(scope="module")
def compared(model, folder, tmp_path_factory):
    """A comparison that was interrupted in its second mode and went on: the report, its folder, what each run made."""
    keep = tmp_path_factory.mktemp("kept") / "files"
    (keep / ".partial-4567").mkdir(parents=True)  # of a process that was killed before there were results
    first, second = Tracked(interrupt=1), Tracked()
    with pytest.raises(KeyboardInterrupt):
        compare_modes(model, folder, modes=MODES, keep=keep, track=first)
    left = sorted(path.name for path in keep.iterdir())
    before = (keep / left[1]).stat().st_mtime_ns
    (keep / ".partial-0123").mkdir()  # as a killed process leaves it
    report = compare_modes(model, folder, modes=MODES, keep=keep, track=second)
    return report, keep, (first.names, left, before), second.names


def test_interrupted_comparison_goes_on(compared):
    report, keep, (first, left, before), second = compared
    assert (first, second) == ([MODES[0]], list(MODES[1:]))
    assert left == [
        ".lock",
        "efficientformer_40_float32.tflite",
        "efficientformer_40_float32.tflite.json",
        "results.json",
    ]
    assert (keep / left[1]).stat().st_mtime_ns == before
    assert [result.mode for result in report.results] == list(MODES)
    assert not list(keep.glob(".partial-*"))


def test_a_file_that_was_changed_is_made_and_measured_again(compared, model, folder):
    report, keep, *_ = compared
    file = keep / report.results[1].file
    content = file.read_bytes()
    file.write_bytes((keep / report.results[0].file).read_bytes())
    again = compare_modes(model, folder, modes=MODES[:2], keep=keep, track=(tracked := Tracked()))
    assert tracked.names == ["tflite:int8"]
    assert file.read_bytes() == content
    assert [result.scores for result in again.results] == [result.scores for result in report.results[:2]]


def test_what_is_set_up_later_is_measured_then(compared, model, folder, monkeypatch):
    """Instructions are a stub's here: the emulator has tests of its own."""
    report, keep, *_ = compared
    monkeypatch.setattr(Instruments, "instructions", lambda self, file: float(file.stat().st_size))
    again = compare_modes(model, folder, modes=MODES, keep=keep, track=(tracked := Tracked()))
    assert tracked.names == []
    assert [result.instructions for result in again.results] == [*(r.size for r in report.results[:2]), None]
    assert "Arm instructions" not in " ".join(again.notes)
    assert "GPU: not measured" in " ".join(again.notes)


def test_two_processes_do_not_meet_in_one_folder(compared, model, folder):
    _, keep, *_ = compared
    with (
        FileLock(keep / ".lock", is_singleton=False),
        pytest.raises(ValueError, match=r"Another process is at the comparison in .*: wait for it"),
    ):
        compare_modes(model, folder, modes=MODES, keep=keep)


def test_scores_are_those_of_the_files(compared, model, folder):
    report, keep, *_ = compared
    _, images = list_images(folder / "val")
    pixels = np.stack([resize_and_crop(load_image(file), (40, 40)) for file in images.files]).astype("float32")
    expected = model.predict(preprocess_input(pixels), verbose=0)
    assert report.keras_top1 == np.mean(expected.argmax(-1) == images.targets)
    assert (report.images, report.of) == (12, 12)
    for result in report.results:
        is_tflite = result.mode.startswith("tflite")
        opened = (LiteRTModel if is_tflite else CoreMLModel)(keep / result.file)
        found = opened.predict(pixels)["probabilities" if is_tflite else "classLabel_probs"]
        assert result.scores.top1 == np.mean(found.argmax(-1) == images.targets)
        assert result.scores.agreement == np.mean(found.argmax(-1) == expected.argmax(-1))
        assert result.scores.drop == pytest.approx(report.keras_top1 - result.scores.top1)
        assert result.scores.largest_difference == pytest.approx(np.abs(found - expected).max(), abs=1e-6)
        assert result.operations == sum(opened.operations().values())
    none, int8, palette4 = report.results
    assert none.milliseconds > 0 < int8.milliseconds
    assert palette4.milliseconds is None
    assert none.scores.largest_difference < 1e-5 < palette4.scores.largest_difference
    assert palette4.neural_engine.keys() == {"memory copy", "linear"}


def test_report_says_what_was_not_measured(compared):
    report, *_ = compared
    notes = " ".join(report.notes)
    assert "tflite/arm/setup.sh" in notes
    assert report.calibrated_on == "33 images of train"
    mode, words = report.recommendations["android-cpu"]
    assert mode is None or "ms an image on this computer" in words
    assert json.loads(report.to_json())["results"][0]["scores"]["top1"] == report.results[0].scores.top1


def test_folder_of_another_comparison_is_refused(compared, model, folder, tmp_path):
    _, keep, *_ = compared
    before = (keep / "results.json").read_text()
    with pytest.raises(ValueError, match="comparison of another model, of other images"):
        compare_modes(model, folder, modes=MODES[:1], images=6, keep=keep)
    assert (keep / "results.json").read_text() == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files that are no comparison's"):
        compare_modes(model, folder, modes=MODES[:1], keep=tmp_path)


def test_picture(compared, tmp_path):
    plot_comparison(compared[0], tmp_path / "modes.png")
    with Image.open(tmp_path / "modes.png") as picture:
        assert picture.format == "PNG"
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {(31, 119, 180), (255, 127, 14), (105, 105, 105)} <= colours  # both formats, and the line of the front


@pytest.fixture(scope="module")
def run():
    """Runs the command as the entry point does, and returns its exit code."""

    def run(*arguments):
        before, sys.argv = sys.argv, ["efficientformer", "compare", *map(str, arguments)]
        try:
            with pytest.raises(SystemExit) as exit_info:
                cli.main()
        finally:
            sys.argv = before
        return exit_info.value.code or 0

    return run


def test_command_reports_a_refused_mode_and_goes_on(run, folder, tmp_path, capsys):
    """Logits of a million are infinite in float16. The images have no classes here."""
    model = training_images.make_model(classes=3, classifier_activation="softmax")
    make_loud(model)
    for name in ("head", "head_dist"):
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * 1e6)
    model.save(tmp_path / "model.keras")
    flat = folder / "val" / "red"
    modes = ("--mode", "coreml:float16", "--mode", "coreml:float32")
    options = ("--for", "iphone", "--output", tmp_path, "--json", "--max-drop", 100)
    assert run(tmp_path / "model.keras", flat, *modes, *options) == 1
    report = json.loads(capsys.readouterr().out)
    refused, written = report["results"]
    assert refused["failure"].startswith("efficientformer_40_float16.mlpackage was not written: its output")
    assert refused["failure"].endswith("the limit is 0.005")  # advice for single exports is none here
    assert refused["scores"] is None
    assert written["scores"] == {**written["scores"], "top1": None, "agreement": 1.0, "drop": 0.0}
    assert (report["images"], report["calibrated_on"]) == (3, "1 images of red, evenly spread, which are not scored")
    assert report["recommendations"]["iphone"]["mode"] is None
    assert report == json.loads((tmp_path / "modes.json").read_text())
    assert (tmp_path / "modes.png").stat().st_size > 10_000
    assert not list(Path(os.environ["EFFICIENTFORMER_COMPARISONS"]).iterdir())  # it is finished


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--mode", "tflite:int9"), 2, "Did you mean tflite:int8"),
        (("--for", "android"), 2, "is not one of android-cpu, android-gpu"),
        (("--mode", "tflite:none", "--without", "tflite:none"), 2, "No mode is left"),
        (("--output", "missing"), 1, "The folder missing does not exist"),
    ],
)
def test_command_refuses_wrong_usage_before_it_loads_a_model(run, folder, capsys, options, code, words):
    assert run("l1", folder, *options) == code
    assert words in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_unfit_images_and_models(model, folder, tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        compare_modes(model, tmp_path, modes=MODES[:1])
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="holds one image"):
        compare_modes(model, tmp_path, modes=MODES[:1])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        compare_modes(model, tmp_path / "nowhere", modes=MODES[:1])
    with pytest.raises(ValueError, match=r"is no classifier.*features"):
        compare_modes(training_images.make_model(include_top=False), folder, modes=MODES[:1])
    with pytest.raises(ValueError, match="has one class, which is the best of every image"):
        compare_modes(training_images.make_model(classes=1), folder, modes=MODES[:1])
    with pytest.raises(ValueError, match="images=0"):
        compare_modes(model, folder, images=0)
    with pytest.raises(ValueError, match=r"Received: 'iphones'\. Did you mean iphone"):
        compare_modes(model, folder, targets=["iphones"])


def test_missing_packages_are_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    modes, missing = chosen_modes(None)
    assert {mode.format for mode in modes} == {"tflite"}
    assert missing.keys() == {name for name in all_modes() if name.startswith("coreml")}
    assert "pip install 'keras-efficientformer[coreml]'" in missing["coreml:float16"]
    with pytest.raises(ImportError, match="The mode coreml:int8 needs coremltools"):
        chosen_modes(["coreml:int8"])


def test_modes_get_what_they_need():
    modes = all_modes()
    assert modes["coreml:w8a8"].options == {"compress": "w8a8", "minimum_ios": 17}
    assert modes["coreml:palette4"].options == {"compress": "palette4", "minimum_ios": 16}
    calibrated = [name for name, mode in modes.items() if mode.calibrated and mode.format == "coreml"]
    assert calibrated == ["coreml:w8a8", "coreml:auto"]


@pytest.fixture(scope="module")
def tables():
    """The rows of the tables in tflite/README.md and coreml/README.md, of 5,000 images, as results."""
    found = []
    for format_ in ("tflite", "coreml"):
        report = json.loads((RESULTS / f"{format_}_modes.json").read_text())
        rows = report["modes"]
        keras = report.get("keras_top1") or rows["none"]["top1"]
        for name, row in rows.items():
            if f"{format_}:{name}" in all_modes():
                drop, agreement = (keras - row["top1"]) / 100, row.get("same_top1", 100) / 100
                # No drop has a larger error than where all images that differ were lost or won.
                scores = ModeScores(row["top1"] / 100, agreement, drop, np.sqrt((1 - agreement) / 5000), 0.0)
                found.append(
                    ModeResult(
                        f"{format_}:{name}",
                        size=row["bytes"],
                        scores=scores,
                        milliseconds=row.get("milliseconds"),
                        instructions=row.get("million_instructions"),
                    )
                )
    auto = json.loads((RESULTS / "auto_tflite.json").read_text())["modes"]["auto"]
    scores = ModeScores(auto["top1"] / 100, auto["same_top1"] / 100, -auto["against_float32"] / 100, 0.001, 0.0)
    # The instructions are L1's at 224x224, as the other modes', with all layers at their fewest bits.
    found.append(ModeResult("tflite:auto", size=auto["bytes"], scores=scores, instructions=199.9))
    return found


def test_recommendations_agree_with_the_tables(tables):
    advice = {target: recommend(tables, target, 0.5, 5000)[0] for target in TARGET_RULES}
    assert advice == {
        "android-cpu": "tflite:int8",
        "android-gpu": "tflite:float16",
        "iphone": "coreml:auto",
        "iphone-a17": "coreml:w8a8",
        "web": "tflite:auto",
    }


def test_readme_has_the_comparison_and_the_tables_advice(tables):
    """benchmarks/results/modes.json is what `compare` found on fewer images than the tables are of."""
    report = json.loads((RESULTS / "modes.json").read_text())
    text = (ROOT / "README.md").read_text()
    spec = importlib.util.spec_from_file_location("modes", ROOT / "benchmarks" / "modes.py")
    modes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modes)
    assert modes.with_modes(text, report) == text
    for target, found in report["recommendations"].items():
        assert found["mode"] in (recommend(tables, target, 0.5, 5000)[0], "coreml:w8a8")


def test_recommendations_follow_the_drop_and_the_gpu(tables):
    assert recommend(tables, "iphone", 1.0, 5000)[0] == "coreml:palette4"
    mode, words = recommend(tables, "iphone", 0.0, 5000)
    assert mode == "coreml:palette6"  # it is better than Keras by more than its error
    assert "top-1 0.28 ± 0.15 points above Keras' on 5,000 images" in words
    dropped = [ModeResult("coreml:float16", size=1, scores=ModeScores(0.5, 0.9, 0.02, 0.01, 0.1))]
    mode, words = recommend(dropped, "iphone", 1.5, 100)
    assert mode is None
    assert "coreml:float16 comes nearest, top-1 2.00 ± 1.00 points below Keras' on 100 images." in words
    assert "may be beyond that" in recommend(dropped, "iphone", 2.5, 100)[1]
    partial = [
        ModeResult("tflite:none", size=2, scores=dropped[0].scores, gpu=("whole", "")),
        ModeResult("tflite:float16", size=1, scores=dropped[0].scores, gpu=("partial", "")),
    ]
    assert recommend(partial, "android-gpu", 5, 100)[0] == "tflite:none"
    assert recommend(partial[1:], "android-gpu", 5, 100)[1].startswith("For android-gpu no mode is fit: the GPU")
    assert "nothing can be said" in recommend(partial, "iphone", 5, 100)[1]
    w8a8 = ModeResult("coreml:w8a8", size=9, scores=ModeScores(0.5, 1.0, 0.0, 0.0, 0.0))
    assert recommend([*tables, w8a8], "iphone-a17", 0.5, 5000)[0] == "coreml:w8a8"
    assert recommend([w8a8], "iphone", 0.5, 5000)[0] is None


def test_front(tables):
    coreml = [result for result in tables if result.mode.startswith("coreml")]
    assert [result.mode for result in front(coreml, MEGABYTES.of)] == [
        "coreml:palette4",
        "coreml:auto",
        "coreml:palette6",
    ]


def test_scores_without_classes():
    expected, found = np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[0, 1, 2, 1]]
    scores = ModeScores.of(expected, found, None)
    assert (scores.top1, scores.agreement, scores.drop) == (None, 0.75, 0.25)
    assert scores.error == pytest.approx(np.sqrt(0.25 * 0.75 / 4))
    assert scores.beside_keras(4) == "another top-1 than Keras' on 25.00 ± 21.65% of 4 images"
    with_classes = ModeScores.of(expected, found, np.array([0, 0, 2, 1]))
    assert (with_classes.top1, with_classes.drop, with_classes.error) == (0.75, -0.25, pytest.approx(0.21650635))
    assert not scores.keeps_within(24)
    assert scores.keeps_within(25)
    assert scores.may_exceed(25)
