"""Published checkpoints of full size, brought from a hub over HTTP into models whose logits are then timm's.

The hub is `hub_server` on this machine and the weights are loud; all else is as a user has it. Each hub needs a process
of its own, because huggingface_hub reads HF_* when it is imported; all that goes well has one. What can go wrong on the
way is in test_pretrained.py.
"""

import json
import os
import subprocess
from pathlib import Path

import forked
import numpy as np
import pytest
import safetensors.numpy
import timm_reference
import torch
from hub_server import Fault, HubServer
from project import HANG

from keras_efficientformer.imagenet import preprocess_input
from keras_efficientformer.images import seeded_images

L1 = "timm/efficientformer_l1.snap_dist_in1k"
L1_300 = "snap-research/efficientformer-l1-300"
L3 = "timm/efficientformer_l3.snap_dist_in1k"
L3_COMMIT = "ca929ef48f056232098ad9226a69e4c29a00cc46"
L3_SHA256 = "ab0c5bfd7c1863e6b7625a08615d0ea88b6acb978d30fdd0fbb24e2e12da3e2a"

# Makes the models of argv[1], a JSON list of [class, arguments], runs argv[2], images, through them and keeps what they
# say in argv[3]; prints warnings and errors. "pins" are hashes to be expected in place of the table's.
DRIVER = """
import dataclasses, json, sys, warnings
import numpy as np
import keras_efficientformer as kef
from keras_efficientformer.conversion import pretrained
tasks, images, results, pins = json.loads(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
for variant, sha256 in pins.items():
    entry = pretrained.PRETRAINED[variant, "imagenet"]
    pretrained.PRETRAINED[variant, "imagenet"] = dataclasses.replace(entry, sha256=sha256)
outputs, errors = {}, {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", UserWarning)
    for index, (name, arguments) in enumerate(tasks):
        try:
            model = getattr(kef, name)(**arguments)
        except Exception as error:
            errors[index] = [type(error).__name__, str(error)]
            continue
        height, width = model.inputs[0].shape[1:3]
        outputs[str(index)] = model.predict(images[:, :height, :width], verbose=0)
np.savez(results, **outputs)
print(json.dumps({"errors": errors, "warnings": [str(warning.message) for warning in caught]}))
"""


class Loaded:
    """What the process said and the models' outputs, in the order of the tasks."""

    def __init__(self, said, outputs):
        self.errors, self.warnings, self.outputs = said["errors"], said["warnings"], outputs


class Loading:
    """A process that makes models, each a tuple (class, arguments)."""

    def __init__(self, folder, endpoint, tasks, images, pins=None, home="home", **env):
        folder.mkdir(exist_ok=True)
        np.save(folder / "images.npy", images)
        self.results = folder / "results.npz"
        arguments = [json.dumps(tasks), folder / "images.npy", self.results, json.dumps(pins or {})]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / home), "NO_PROXY": "127.0.0.1", **env}
        command = [forked.programs(environment) / "python", "-c", DRIVER, *map(str, arguments)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)

    def finish(self):
        output, log = self.process.communicate(timeout=HANG)
        assert self.process.returncode == 0, log
        with np.load(self.results) as outputs:
            return Loaded(json.loads(output), [outputs[key] for key in sorted(outputs, key=int)])


def load(*arguments, **options):
    return Loading(*arguments, **options).finish()


@pytest.fixture(scope="module")
def images():
    """Two that a network tells apart, normalised; white noise of one kind or another would look the same to it."""
    coarse, fine = seeded_images((224, 224, 3))[[0, 3]]
    return preprocess_input(np.stack([coarse / 4, fine]))


@pytest.fixture(scope="module")
def files(loud_state_dict, tmp_path_factory):
    """The loud L1 in full size, as the three code bases publish it."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / name for name in ("timm.safetensors", "hf.safetensors", "hf.bin", "snap.pth")}
    in_hf = timm_reference.in_dialect(loud_state_dict, "l1", "transformers")
    in_snap = timm_reference.in_dialect(loud_state_dict, "l1", "snap")
    safetensors.numpy.save_file(loud_state_dict, paths["timm.safetensors"])
    safetensors.numpy.save_file(in_hf, paths["hf.safetensors"])
    torch.save({name: torch.from_numpy(tensor) for name, tensor in in_hf.items()}, paths["hf.bin"])
    torch.save({"model": {name: torch.from_numpy(tensor) for name, tensor in in_snap.items()}}, paths["snap.pth"])
    return paths


@pytest.fixture(scope="module")
def l3():
    return timm_reference.loud_model("l3")


@pytest.fixture(scope="module")
def l3_file(l3, tmp_path_factory):
    path = tmp_path_factory.mktemp("l3") / "l3.safetensors"
    safetensors.numpy.save_file(timm_reference.state_dict(l3), path)
    return path


def l1_300(files):
    """The published repository: a pickle on its main branch, safetensors in a pull request."""
    return {
        "main": {"pytorch_model.bin": files["hf.bin"]},
        "refs/pr/5": {"model.safetensors": files["hf.safetensors"]},
    }


def logits(**arguments):
    return {"classifier_activation": None, **arguments}


def assert_equal(found, expected, limit=1e-5):
    """Within 1e-5 of the reference, or that part of its largest value."""
    assert found.shape == expected.shape
    largest_allowed = limit * max(1, np.abs(expected).max())
    assert np.abs(expected[0] - expected[1]).max() > 1000 * largest_allowed  # the reference tells images apart
    assert np.abs(found - expected).max() <= largest_allowed


@pytest.fixture(scope="module")
def online(files, l3_file, images, tmp_path_factory):
    """What one process made of a hub with three repositories, and the paths that it asked for.

    The made-up L3 is what the table's hash is changed to.
    """
    contents = {
        L1: {"main": {"model.safetensors": files["timm.safetensors"]}},
        L1_300: l1_300(files),
        L3: {L3_COMMIT: {"model.safetensors": l3_file}},
    }
    tasks = [
        ("EfficientFormerL1", logits()),
        ("EfficientFormerL1", {"include_top": False, "pooling": "avg"}),
        ("EfficientFormerL1", {"include_top": False}),
        ("EfficientFormerL1", logits(input_shape=[96, 160, 3])),
        ("EfficientFormerL1", logits(weights="imagenet-300")),
        ("EfficientFormerL3", logits()),
        ("EfficientFormerL1", {"classes": 10}),
    ]
    with HubServer(contents, commits={(L1_300, "refs/pr/5"): "3606915" + "0" * 33}) as hub:
        loaded = load(tmp_path_factory.mktemp("online"), hub.endpoint, tasks, images, pins={"l3": hash_of_l3(hub)})
        return loaded, list(hub.requests)


def hash_of_l3(hub):
    (found,) = {sha256 for (repo, _, _), sha256 in hub.hashes.items() if repo == L3}
    return found


def test_l1_of_every_kind(online, loud_l1, images):
    """Downloaded once; with the top, without it, and at another size."""
    loaded, requests = online
    with torch.no_grad():
        features = loud_l1.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    resized = timm_reference.at_resolution(loud_l1, (3, 5))
    assert_equal(loaded.outputs[0], timm_reference.logits(loud_l1, images)[0])
    assert_equal(loaded.outputs[1], features.mean(1))
    assert_equal(loaded.outputs[2].reshape(features.shape), features)
    assert loaded.outputs[2].shape == (2, 7, 7, 448)
    assert_equal(loaded.outputs[3], timm_reference.logits(resized, images[:, :96, :160])[0], limit=2e-5)
    ((kind, message),) = loaded.errors.values()
    assert kind == "ValueError"
    assert "`classes` should be 1000" in message
    assert loaded.warnings == []
    transfers = [path for method, path in requests if method == "GET" and path.startswith("/cdn/")]
    assert len(transfers) == 3  # each of the repositories' files


def test_l1_300_from_the_pull_request(online, loud_l1, images):
    loaded, requests = online
    assert not [path for _, path in requests if path.endswith("pytorch_model.bin")]
    assert_equal(loaded.outputs[4], timm_reference.logits(loud_l1, images)[0])


def test_l1_300_from_the_main_branch(files, loud_l1, images, tmp_path):
    commit = "1234567" + "0" * 33
    with HubServer({L1_300: l1_300(files)}, commits={(L1_300, "refs/pr/5"): commit}) as hub:
        loaded = load(tmp_path, hub.endpoint, [("EfficientFormerL1", logits(weights="imagenet-300"))], images)
    assert loaded.errors == {}
    (warning,) = loaded.warnings
    assert f"refs/pr/5 of {L1_300} is of commit {commit}, and commit 3606915 was expected" in warning
    assert "using pytorch_model.bin of main" in warning
    assert_equal(loaded.outputs[0], timm_reference.logits(loud_l1, images)[0])


def test_l3_of_the_pinned_commit_and_hash(online, l3, images):
    assert_equal(online[0].outputs[5], timm_reference.logits(l3, images)[0])


def test_other_networks_and_files_under_the_names_are_refused(l3_file, images, tmp_path):
    """L3's file as L1, whose hash nobody knows, and as L3, whose real hash it has not."""
    contents = {L1: {"main": {"model.safetensors": l3_file}}, L3: {L3_COMMIT: {"model.safetensors": l3_file}}}
    tasks = [("EfficientFormerL1", logits()), ("EfficientFormerL3", logits())]
    with HubServer(contents) as hub:
        refused = load(tmp_path, hub.endpoint, tasks, images)
        found = hash_of_l3(hub)
    assert refused.outputs == []
    (kind, message), (kind_of_l3, message_of_l3) = refused.errors.values()
    assert kind == "CheckpointError"
    assert "found EfficientFormer-L3" in message
    assert "expected EfficientFormer-L1" in message
    assert kind_of_l3 == "DownloadError"
    assert found in message_of_l3
    assert L3_SHA256 in message_of_l3
    assert not [path for path in tmp_path.glob(f"home/hub/models--{L3.replace('/', '--')}/**/*") if path.is_file()]


def test_two_processes_at_once(files, loud_l1, images, tmp_path):
    contents = {L1: {"main": {"model.safetensors": files["timm.safetensors"]}}}
    tasks, home = [("EfficientFormerL1", logits())], str(tmp_path / "home")
    with HubServer(contents, faults=[Fault("slow")]) as hub:
        both = [Loading(tmp_path / name, hub.endpoint, tasks, images, home=home) for name in ("one", "other")]
        loaded = [process.finish() for process in both]
    expected = timm_reference.logits(loud_l1, images)[0]
    for process in loaded:
        assert (process.errors, process.warnings) == ({}, [])
        assert_equal(process.outputs[0], expected)
    assert not list(Path(home).rglob("*.incomplete"))


def test_offline_there_is_one_error_and_no_model(files, loud_l1, images, tmp_path):
    """And what is on this disk, here snap-research's .pth, still loads."""
    tasks = [
        ("EfficientFormerL1", {}),
        ("EfficientFormerL7", {}),
        ("EfficientFormerL1", {"include_top": False}),
        ("EfficientFormerL1", logits(weights=str(files["snap.pth"]))),
    ]
    loaded = load(tmp_path, "http://127.0.0.1:9", tasks, images, HF_HUB_OFFLINE="1")
    assert list(loaded.errors) == ["0", "1", "2"]
    for kind, message in loaded.errors.values():
        assert kind == "DownloadError"
        assert "HF_HUB_OFFLINE forbids the network" in message
        assert "To bring the file by hand" in message
    assert loaded.warnings == []
    (found,) = loaded.outputs
    assert_equal(found, timm_reference.logits(loud_l1, images)[0])
