"""What the name of a model stands for: published names in every spelling, repositories of the hub, files."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import forked
import numpy as np
import pytest
import safetensors.numpy
import timm_reference
from hub_server import HubServer
from project import HANG, NO_COLLECTOR, ROOT

from keras_efficientformer import from_checkpoint
from keras_efficientformer.models import HubModel, PublishedModel, crop_of, model_source
from keras_efficientformer.opening import open_model
from keras_efficientformer.training import FineTuneConfig

CHECKPOINT = ROOT / "weights" / "efficientformer_l1_cifar10.safetensors"
L1, S0 = PublishedModel("l1"), PublishedModel("v2_s0")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("l1", L1),
        ("L1", L1),
        ("EfficientFormerL1", L1),
        ("efficientformer_l1", L1),
        ("efficientformer-l1", L1),
        ("l1:imagenet", L1),
        ("L1:imagenet-300", PublishedModel("l1", "imagenet-300")),
        ("timm/efficientformer_l1.snap_dist_in1k", L1),
        ("hf://timm/efficientformer_l1.snap_dist_in1k", L1),
        ("snap-research/efficientformer-l1-300", PublishedModel("l1", "imagenet-300")),
        ("v2_s0", S0),
        ("v2-s0", S0),
        ("V2S0", S0),
        ("EfficientFormerV2S0", S0),
        ("efficientformerv2_s0", S0),
        ("timm/efficientformerv2_l.snap_dist_in1k", PublishedModel("v2_l")),
        ("hf://owner/name", HubModel("owner/name")),
        ("hf://owner/my-model.v1@refs/pr/5", HubModel("owner/my-model.v1", "refs/pr/5")),
        ("hf://timm/efficientformer_l1.snap_dist_in1k@abc", HubModel("timm/efficientformer_l1.snap_dist_in1k", "abc")),
        (str(CHECKPOINT), CHECKPOINT),
        (CHECKPOINT, CHECKPOINT),
    ],
    ids=str,
)
def test_names(name, expected):
    assert model_source(name) == expected


def test_home_and_files_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.keras").touch()
    assert model_source("~/m.keras") == tmp_path / "m.keras"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~of nobody.keras").touch()
    assert model_source("~of nobody.keras") == Path("~of nobody.keras")
    # A published name stays one; what has a folder in it is a file where there is one.
    (tmp_path / "l1").touch()
    assert model_source("l1") == L1
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "efficientformer_l1.snap_dist_in1k").touch()
    assert model_source("timm/efficientformer_l1.snap_dist_in1k").exists()


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("l9", FileNotFoundError, "Did you mean l"),
        ("v2_s3", FileNotFoundError, "Did you mean v2_s"),
        ("EficientFormerL3", FileNotFoundError, "EfficientFormerL3"),
        ("timm/efficientformer_l7", FileNotFoundError, "timm/efficientformer_l7.snap_dist_in1k"),
        ("resnet50", FileNotFoundError, "neither a file nor one of the names l1, l3, l7, v2_s0, v2_s1, v2_s2, v2_l"),
        ("{folder}/modell.keras", FileNotFoundError, "Did you mean {folder}/model.keras?"),
        ("l1:imagenet21k", ValueError, '"imagenet", "imagenet-300"'),
        ("hf://name", ValueError, "hf://owner/name"),
        ("hf://a/b/c", ValueError, "Received: hf://a/b/c"),
        ("", FileNotFoundError, "neither a file"),
    ],
)
def test_wrong_names_get_the_nearest_right_ones(tmp_path, name, error, words):
    (tmp_path / "model.keras").touch()
    with pytest.raises(error) as raised:
        model_source(name.format(folder=tmp_path))
    assert words.format(folder=tmp_path) in str(raised.value)


def test_crop_is_the_one_of_the_published_accuracy():
    assert crop_of("l1:imagenet-300") == crop_of("snap-research/efficientformer-l1-300") == 0.875
    assert crop_of("l1") == crop_of("v2_l") == crop_of(CHECKPOINT) == 0.95


def test_crop_that_a_configuration_states(tmp_path):
    """timm's, or that of the run of which a file is."""
    checkpoint, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    checkpoint.touch()
    for content, crop in (({"crop_pct": 1.0}, 1.0), ({"crop_pct": None}, 0.95), ({}, 0.95)):
        config.write_text(json.dumps({"pretrained_cfg": content}))
        assert crop_of(checkpoint) == crop
    config.write_text(json.dumps({"config": dataclasses.asdict(FineTuneConfig(crop_fraction=0.8)), "arguments": {}}))
    (tmp_path / "best.keras").touch()
    assert crop_of(tmp_path / "best.keras") == 0.8
    for crop in (0, 87.5, "0.9"):
        config.write_text(json.dumps({"pretrained_cfg": {"crop_pct": crop}}))
        with pytest.raises(ValueError, match=f"should state a crop_pct above 0 and up to 1. Found: {crop!r}"):
            crop_of(checkpoint)


def test_open_model_takes_every_spelling_of_a_file():
    assert open_model(CHECKPOINT).name == open_model(str(CHECKPOINT)).name == "efficientformer_l1"


PROGRAM = """
import json, sys
import numpy as np
from keras_efficientformer import from_checkpoint
from keras_efficientformer.layers.image_normalization import normalization_of
from keras_efficientformer.models import crop_of
model = from_checkpoint(sys.argv[1])
image = np.linspace(-1, 1, 32 * 32 * 3, dtype="float32").reshape(1, 32, 32, 3)
print(json.dumps([model.predict(image, verbose=0).tolist(), normalization_of(model).mean, crop_of(sys.argv[1])]))
"""


def python(hub, home, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    command = [forked.programs(environment) / "python", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG, cwd=ROOT)


def test_repositories_of_the_hub(tmp_path):
    """A checkpoint and what states how its images are normalised; then from the cache, without a request."""
    model = timm_reference.small_model()
    tensors = timm_reference.state_dict(model)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"input_size": "32x32"})
    config = {"pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.5, 0.5], "crop_pct": 0.875}}
    files = {
        "owner/name": {
            "main": {
                "model.safetensors": (tmp_path / "model.safetensors").read_bytes(),
                "config.json": json.dumps(config).encode(),
            }
        },
        "owner/empty": {"main": {"README.md": b"no checkpoint"}},
    }
    with HubServer(files) as hub:
        process = python(hub, tmp_path / "home", "-c", NO_COLLECTOR + PROGRAM, "hf://owner/name")
        assert process.returncode == 0, process.stderr
        scores, mean, crop = json.loads(process.stdout.splitlines()[-1])
        assert (mean, crop) == ([0.5, 0.4, 0.3], 0.875)
        local = from_checkpoint(tmp_path / "model.safetensors")
        image = np.linspace(-1, 1, 32 * 32 * 3, dtype="float32").reshape(1, 32, 32, 3)
        np.testing.assert_allclose(scores, local.predict(image, verbose=0), atol=1e-6)
        requests = len(hub.requests)
        program = "import efficientformer_command; efficientformer_command.main()"
        process = python(hub, tmp_path / "home", "-c", program, "inspect", "hf://owner/name", "--json")
        assert process.returncode == 0, process.stderr
        assert json.loads(process.stdout)["tensors"] == len(tensors)
        assert len(hub.requests) == requests
        process = python(hub, tmp_path / "home", "-c", program, "inspect", "hf://owner/empty")
        assert process.returncode == 1
        assert "owner/empty at main holds no checkpoint: expected one of model.safetensors" in process.stderr
