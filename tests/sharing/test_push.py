"""Models on the hub: what huggingface_hub uploads to a local one comes back, strict-loads in timm and says what it is.

huggingface_hub reads HF_* when it is imported, so that one process does all that goes to the hub.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import training_images
import yaml
from hub_server import HubServer
from project import HANG, NO_COLLECTOR, ROOT
from typer.testing import CliRunner

from keras_efficientformer import cli
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.opening import open_model
from keras_efficientformer.sharing import write_repository
from keras_efficientformer.sharing.export_checks import check_exports
from keras_efficientformer.sharing.export_reports import read_reports
from keras_efficientformer.training import FineTuneConfig, finetune

TOKEN = "hf_of_anna"
LABELS = ["cat", "dog", "a | b <i>*_"]
# Of the repository's owner, who keeps them whatever is published.
OWN_FILES = {"my_labels.txt": b"mine", "learning_curves.png": b"mine too"}

# Publishes and reads back; prints what came of it, by name.
DRIVER = """
import json, os, sys
import keras, numpy as np, torch
import keras_efficientformer as kef
from keras_efficientformer import segmentation
from keras_efficientformer.conversion import load_state_dict, to_state_dict
from keras_efficientformer.sharing import UploadError, push
import timm_reference
import timm  # after it, which mends a torchvision that does not load
folder, token = sys.argv[1:]
labels = json.loads(os.environ["LABELS"])
found = {}

def refusal(*arguments, **options):
    try:
        return push(*arguments, **options).url
    except UploadError as error:
        return str(error)

def equal(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)

def in_timm(name, repo, model, **arguments):
    "How far timm's logits are from the model's, relative, and whether its tensors are the same bits."
    logits = kef.from_checkpoint(f"hf://{repo}", classifier_activation=None)
    theirs = timm.create_model(name, **arguments).eval()
    images = np.random.default_rng(0).standard_normal((2, *model.inputs[0].shape[1:])).astype("float32")
    # White noise of one kind looks the same to a network.
    images[1] += np.linspace(-2, 2, images.shape[1])[:, None, None] + np.linspace(0, 3, images.shape[2])[:, None]
    with torch.no_grad():
        answers = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    expected = logits.predict(images, verbose=0)
    tensors = {key: value.numpy() for key, value in theirs.state_dict().items()}
    return {
        "same bits": equal(tensors, to_state_dict(model)),
        "difference": float(np.abs(answers - expected).max() / np.abs(expected).max()),
        "told apart": float(np.abs(answers[0] - answers[1]).max() / np.abs(expected).max()),
        "cfg": theirs.pretrained_cfg,
    }

def loud(model):
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if "seed" not in variable.path:
            positive = variable.path.endswith(("gamma", "variance"))
            variable.assign(rng.uniform(*((0.5, 2.0) if positive else (-0.2, 0.2)), variable.shape))
    return model

run, export = f"{folder}/run", f"{folder}/run.tflite"
found["no token"] = refusal(run, "anna/run")
found["unknown token"] = refusal(run, "anna/run", token="hf_of_nobody")
os.environ["HF_TOKEN"] = token
found["other owner"] = refusal(run, "bert/run")
first = push(run, "anna/run", exports=[export], license="mit")
second = push(run, "anna/run")
found["first"], found["second"] = (
    {"url": u.url, "commit": u.commit, "files": u.files, "removed": u.removed, "timm": u.timm} for u in (first, second)
)
found["public"] = refusal(run, "anna/run", private=True)
found["of another"] = refusal(run, "bert/theirs")
best, again = keras.saving.load_model(f"{run}/best.keras"), kef.from_checkpoint("hf://anna/run")
images = np.random.default_rng(0).uniform(-1, 1, (3, *best.inputs[0].shape[1:])).astype("float32")
found["comes back"] = equal(to_state_dict(best), to_state_dict(again))
found["same answers"] = bool(np.array_equal(best.predict(images, verbose=0), again.predict(images, verbose=0)))
found["labels"] = list(again.get_layer("predictions").labels)
try:
    timm.create_model("hf-hub:anna/run", pretrained=True)
except KeyError as error:
    found["not in timm"] = str(error)

backbone = kef.EfficientFormer((1, 1, 1, 2), (8, 16, 24, 32), input_shape=(64, 64, 3), include_top=False)
masks = loud(segmentation.SemanticFPN(backbone, 3, 8, 8, output_stride=4, labels=labels))
push(masks, "anna/masks")
again = segmentation.from_checkpoint("hf://anna/masks")
found["masks"] = equal(segmentation.to_state_dict(again), segmentation.to_state_dict(masks)), again.output_shape

tensors = timm_reference.state_dict(timm_reference.loud_model("l1", num_classes=3))
l1 = kef.EfficientFormerL1(weights=None, classes=3, head="single", labels=labels)
load_state_dict(l1, tensors)
push(l1, "anna/l1", private=True)
file = kef.models.local_file("hf://anna/l1")
found["l1"] = in_timm("hf-hub:anna/l1", "anna/l1", l1, pretrained=True)
found["l1 by file"] = in_timm("efficientformer_l1", "anna/l1", l1, checkpoint_path=str(file), num_classes=3)
small = dict(depths=(1, 1, 1, 2), widths=(8, 16, 24, 32), num_meta3d=1, input_shape=(224, 224, 1), classes=4)
grey = loud(kef.EfficientFormer(**small, mean=(0.5,), std=(0.25,)))
push(grey, "anna/grey")
found["grey"] = in_timm("hf-hub:anna/grey", "anna/grey", grey, pretrained=True)
ratios = ((4,), (4,), (4, 3), (3,))
v2 = loud(kef.EfficientFormerV2((1, 1, 2, 1), (8, 16, 24, 32), 1, ratios, input_shape=(64, 96, 3), classes=5))
push(v2, "anna/v2")
found["v2"] = in_timm("hf-hub:anna/v2", "anna/v2", v2, pretrained=True)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run, an export of its model and one of another."""
    folder = tmp_path_factory.mktemp("work")
    training_images.make_folder(folder / "photos", dict.fromkeys(training_images.COLOURS, 5))
    config = FineTuneConfig(epochs=1, freeze_epochs=0, batch_size=4, crop_fraction=0.9)
    finetune(training_images.make_model(), folder / "photos", folder / "run", config=config, verbose=0)
    export_tflite(open_model(folder / "run" / "best.keras"), folder / "run.tflite")
    other = training_images.make_model(3, labels=sorted(training_images.COLOURS), classifier_activation="softmax")
    other.save(folder / "other.keras")
    export_tflite(open_model(folder / "other.keras"), folder / "other.tflite")
    return folder


@pytest.fixture(scope="module")
def hub():
    repositories = {"bert/theirs": {"main": {"README.md": b"hello"}}, "anna/grey": {"main": dict(OWN_FILES)}}
    with HubServer(repositories, users={TOKEN: "anna"}) as server:
        yield server


@pytest.fixture(scope="module")
def found(folder, hub):
    """What the process says that publishes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"KERAS_BACKEND": "torch", "NO_PROXY": "127.0.0.1", "LABELS": json.dumps(LABELS)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    command = [sys.executable, "-c", NO_COLLECTOR + DRIVER, str(folder), TOKEN]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_comes_back(found, hub):
    assert found["comes back"]
    assert found["same answers"]
    assert found["labels"] == sorted(training_images.COLOURS)
    first, second = found["first"], found["second"]
    assert first["url"] == f"{hub.endpoint}/anna/run"
    files = {
        "README.md",
        "config.json",
        "confusion.png",
        "curves.png",
        "labels.txt",
        "model.keras",
        "model.safetensors",
    }
    assert set(first["files"]) == files | {"run.tflite", "run.tflite.json"}
    # One commit each; what is the same is not sent again, and the export that went with the first one is gone.
    commits = [commit for commit in hub.history if commit["repo"] == "anna/run"]
    assert [commit["commit"] for commit in commits] == [first["commit"], second["commit"]]
    assert commits[0]["files"] == sorted(first["files"])
    assert commits[0]["summary"] == "Upload model with keras-efficientformer"
    assert commits[1]["removed"] == second["removed"] == ["run.tflite", "run.tflite.json"]
    assert "model.keras" not in commits[1]["files"]
    stored = hub.repos["anna/run"]["main"]
    assert set(stored) == files
    assert {name: len(content) for name, content in stored.items()} == second["files"]
    assert OWN_FILES.items() <= hub.repos["anna/grey"]["main"].items()


@pytest.mark.parametrize("name", ["l1", "l1 by file", "grey", "v2"])
def test_timm_loads_it(found, name):
    assert found[name]["same bits"]
    assert found[name]["difference"] < 1e-5
    assert found[name]["told apart"] > 1e-3


def test_timm_knows_how_images_are_prepared(found, hub):
    assert found["l1"]["cfg"]["label_names"] == LABELS
    cfg = found["grey"]["cfg"]
    assert (cfg["mean"], cfg["std"], cfg["input_size"], cfg["crop_pct"]) == ([0.5], [0.25], [1, 224, 224], 0.95)
    assert "label_names" not in cfg
    assert found["v2"]["cfg"]["input_size"] == [3, 64, 96]
    assert hub.private == {"anna/l1"}


def test_a_segmentation_model_comes_back(found, hub):
    assert found["masks"] == [True, [None, 16, 16, 3]]
    assert "config.json" not in hub.repos["anna/masks"]["main"]


def test_what_timm_has_no_network_for_is_refused_there(found, hub):
    """Its EfficientFormer has attention for 7x7 tokens, and this one has 2x2."""
    assert found["not in timm"] == "'architecture'"
    assert not found["first"]["timm"]
    assert "timm and transformers do not open it" in hub.repos["anna/run"]["main"]["README.md"].decode()


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            "no token",
            "Uploading needs a token that may write: log in (`hf auth login`), set HF_TOKEN, or pass `token`.",
        ),
        ("unknown token", "answered 401 (Invalid username or password): the token is unknown or has expired"),
        ("other owner", 'answered 403 (You don\'t have the rights to create a model under the namespace "bert")'),
        ("of another", "answered 403 (Forbidden: you must use a write token to upload to a repository)"),
        ("public", "anna/run exists and is public: make it private in its settings, or choose another name."),
    ],
)
def test_refusals_are_one_line(found, case, words):
    assert words in found[case]
    assert "\n" not in found[case]


def test_card(folder, tmp_path):
    # A run that began from published weights; no other has a licence of its own.
    run = shutil.copytree(folder / "run", tmp_path / "run")
    settings = json.loads((run / "config.json").read_text())
    settings["arguments"]["model"] = "l1"
    (run / "config.json").write_text(json.dumps(settings))
    written = write_repository(run, "anna/run", tmp_path / "card", exports=[folder / "run.tflite"])
    assert written.license == "apache-2.0"
    assert written.files["model.keras"] == (folder / "run" / "best.keras").stat().st_size
    _, metadata, text = (tmp_path / "card" / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(metadata)
    assert (facts["license"], facts["pipeline_tag"], facts["library_name"]) == (
        "apache-2.0",
        "image-classification",
        "keras-efficientformer",
    )
    assert facts["base_model"] == "timm/efficientformer_l1.snap_dist_in1k"
    scores = json.loads((folder / "run" / "report.json").read_text())["scores"]
    (entry,) = facts["model-index"]
    assert entry["results"][0]["dataset"] == {"type": "imagefolder", "name": "photos", "split": "validation"}
    values = {metric["name"]: metric["value"] for metric in entry["results"][0]["metrics"]}
    assert values == {"top-1 accuracy": scores["top1"]}  # the best five of three classes say nothing
    assert f"| top-1 accuracy | {100 * scores['top1']:.2f}% |" in text
    assert "| batch_size | 4 | 32 |" in text
    assert "| learning_rate |" not in text
    assert 'from_checkpoint("hf://anna/run")' in text
    assert "| run.tflite |" in text
    assert "![curves.png](curves.png)" in text
    assert str(folder) not in text
    config = json.loads((tmp_path / "card" / "config.json").read_text())
    assert config["pretrained_cfg"]["crop_pct"] == 0.9


def test_names_of_classes_are_text(tmp_path):
    model = training_images.make_model(3, labels=LABELS)
    written = write_repository(model, "anna/x", tmp_path / "x")
    text = (tmp_path / "x" / "README.md").read_text()
    assert r"cat, dog, a \| b \<i\>\*\_." in text
    assert "Nothing was measured" in text
    assert written.license is None
    assert "license" not in yaml.safe_load(text.split("---\n")[1])


def command(*arguments, code=0):
    result = CliRunner().invoke(cli.app, ["push", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_alike_class_names_have_numbers_in_an_export(tmp_path):
    """So Core ML's packages have them."""
    model = training_images.make_model(3, labels=["crane", "crane", "owl"], classifier_activation="softmax")
    export_tflite(model, tmp_path / "model.tflite", labels=["crane (0)", "crane (1)", "owl"])
    check_exports(model, read_reports([tmp_path / "model.tflite"]))
    export_tflite(model, tmp_path / "model.tflite", labels=["crane", "owl", "crow"], overwrite=True)
    with pytest.raises(ValueError, match="calls its classes otherwise"):
        check_exports(model, read_reports([tmp_path / "model.tflite"]))


def test_dry_run(folder, tmp_path):
    arguments = [folder / "run", "anna/run", "--export", folder / "run.tflite", "--dry-run", tmp_path / "shown"]
    report = json.loads(command(*arguments, "--json").stdout)
    files = {p.relative_to(tmp_path / "shown").as_posix(): p.stat().st_size for p in (tmp_path / "shown").iterdir()}
    assert report["files"] == files
    assert report["bytes"] == sum(files.values())
    assert isinstance(command(*arguments, code=1).exception, FileExistsError)


@pytest.fixture(scope="module")
def unfit_files(folder):
    """Exports with the wrong reports or none, and a run that has not ended, beside the others."""
    content = (folder / "run.tflite").read_bytes()
    other = json.loads((folder / "other.tflite.json").read_text())
    for name, report in (
        ("alone", None),
        ("damaged", {}),
        ("swapped", other),
        ("unknown", other | {"checkpoint": None}),
    ):
        (folder / f"{name}.tflite").write_bytes(
            (folder / "other.tflite").read_bytes() if name == "unknown" else content
        )
        if report is not None:
            (folder / f"{name}.tflite.json").write_text(json.dumps(report))
    (folder / "begun").mkdir()
    shutil.copy(folder / "run" / "config.json", folder / "begun")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing", "anna/x"], "missing does not exist"),
        (["run", "x"], "A repository is OWNER/NAME"),
        (["run", "anna/a--b"], "anna/a--b"),
        (["photos", "anna/x"], "has no config.json, best.keras, report.json. Give the folder that finetune wrote"),
        (["begun", "anna/x"], "has no best.keras, report.json. Go on with the run (finetune --resume)"),
        (["run/report.json", "anna/x"], "report.json"),
        (
            ["run", "anna/x", "--export", "other.tflite"],
            "other.tflite was exported of another file: other.keras of sha",
        ),
        (["run", "anna/x", "--export", "unknown.tflite"], "unknown.tflite is another model's: its answers differ"),
        (["run", "anna/x", "--export", "run/labels.txt"], "An export ends in .tflite or .mlpackage"),
        (["run", "anna/x", "--export", "alone.tflite"], "has no report beside it, alone.tflite.json"),
        (["run", "anna/x", "--export", "damaged.tflite"], "is not the report that an export writes"),
        (["run", "anna/x", "--export", "swapped.tflite"], "is the report of another file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_unfit_inputs(folder, unfit_files, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    error = command(*arguments, "--dry-run", tmp_path / "shown", code=1).exception
    assert words in str(error)
    assert isinstance(error, ValueError | OSError)
    assert list(tmp_path.iterdir()) == []
