"""Pretrained weights over a real connection: every test starts Python anew, with its own HF_HOME, against a local hub.

huggingface_hub reads HF_* when it is imported, so nothing here can run in pytest's own process. The file downloaded is
a small made-up one; the loading of whole checkpoints is tested with the models.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hub_server import Fault, HubServer
from project import HANG, ROOT

REPO = "timm/efficientformer_l1.snap_dist_in1k"
REPO_300 = "snap-research/efficientformer-l1-300"
COMMIT_300 = "3606915" + "0" * 33
CHECKPOINT = safetensors.numpy.save({"weight": np.arange(50_000, dtype="float32")})
SHA256 = hashlib.sha256(CHECKPOINT).hexdigest()
FILES = {REPO: {"main": {"model.safetensors": CHECKPOINT}}}
OFFLINE = {"HF_HUB_OFFLINE": "1"}

# The program's module keeps the package from importing Keras: that takes seconds and is not needed here.
DRIVER = """
import dataclasses, json, os, pathlib, sys, warnings
sys.path.insert(0, sys.argv[1])
import efficientformer_command
import keras_efficientformer.conversion.pretrained as pretrained
assert "keras" not in sys.modules
name, changes, pauses = sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
pretrained.PRETRAINED["l1", name] = dataclasses.replace(pretrained.PRETRAINED["l1", name], **changes)
pretrained.PAUSES = pauses
result = {"path": None, "error": None}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        result["path"] = str(pretrained.download("l1", name))
    except pretrained.DownloadError as error:
        result["error"] = str(error)
result["warnings"] = [str(warning.message) for warning in caught]
# Looked at from here, because the disk of the test with the full disk exists for this process only.
cache = pathlib.Path(os.environ["HF_HOME"], "hub")
kinds = ("*/blobs/*", "*/snapshots/*/*", "**/*.incomplete")
result["left"] = [str(path) for kind in kinds for path in cache.glob(kind)]
print(json.dumps(result))
"""


def start(endpoint, home, name="imagenet", changes=None, pauses=(0.1, 0.1), env=None, prefix=()):
    """Starts a process that loads the weights; the pauses between its attempts are short."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **(env or {})}
    arguments = [str(ROOT), name, json.dumps(changes or {}), json.dumps(pauses)]
    command = [*prefix, sys.executable, "-c", DRIVER, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    output, log = process.communicate(timeout=HANG)
    assert process.returncode == 0, log
    return json.loads(output)


def load(*arguments, **options):
    return finish(start(*arguments, **options))


def assert_loaded(result):
    assert result["error"] is None
    assert Path(result["path"]).read_bytes() == CHECKPOINT
    assert not [path for path in result["left"] if path.endswith(".incomplete")]


def assert_refused(result, *words):
    """One error with all these words and the two ways to bring the file by hand; nothing left in the cache."""
    assert result["path"] is None
    for word in (*words, "To bring the file by hand", "hf download"):
        assert word in result["error"]
    assert result["left"] == []


def transfers(hub):
    return sum(path.startswith("/cdn/") for _, path in hub.requests)


@pytest.fixture
def hub():
    with HubServer(FILES) as server:
        yield server


def test_download_then_cache(hub, tmp_path):
    assert_loaded(load(hub.endpoint, tmp_path))
    asked = len(hub.requests)
    assert_loaded(load(hub.endpoint, tmp_path))
    assert len(hub.requests) == asked  # the second load asked the network nothing
    assert_loaded(load(hub.endpoint, tmp_path, env=OFFLINE))
    hub.__exit__()
    assert_loaded(load(hub.endpoint, tmp_path))


def test_pinned_revision_and_hash(tmp_path):
    revision = "ca929ef48f056232098ad9226a69e4c29a00cc46"
    with HubServer({REPO: {revision: FILES[REPO]["main"]}}) as hub:
        assert_loaded(load(hub.endpoint, tmp_path, changes={"revision": revision, "sha256": SHA256}))
        assert hub.requests[0] == ("HEAD", f"/{REPO}/resolve/{revision}/model.safetensors")
    assert_loaded(load(hub.endpoint, tmp_path, changes={"revision": revision, "sha256": SHA256}))


def test_pinned_hash_differs(hub, tmp_path):
    result = load(hub.endpoint, tmp_path, changes={"sha256": "0" * 64})
    assert_refused(result, f"its sha256 is {SHA256}", f"{'0' * 64} (pinned", "removed from the cache")


@pytest.mark.parametrize("fault", ["reset", "cut", "no connection", "unavailable"])
def test_trouble_once_is_retried(hub, tmp_path, fault):
    hub.faults = [Fault(fault, times=1)]
    assert_loaded(load(hub.endpoint, tmp_path))
    assert hub.faults[0].times == 0


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("reset", ["3 attempts failed", "ReadError", "Check the connection to http://127.0.0.1"]),
        ("short", ["3 attempts failed", f"should be of size {len(CHECKPOINT)} but has size {len(CHECKPOINT) // 2}"]),
        ("unavailable", ["3 attempts failed", "503 Service Unavailable"]),
        ("missing", ["answered 404 (RemoteEntryNotFoundError)", "HF_ENDPOINT"]),
        ("gated", ["answered 403 (GatedRepoError)", "hf auth login"]),
        ("corrupt", ["its sha256 is", f"{SHA256} (stated by the hub)", "removed from the cache"]),
    ],
)
def test_trouble_that_stays(hub, tmp_path, fault, words):
    hub.faults = [Fault(fault)]
    result = load(hub.endpoint, tmp_path)
    assert_refused(result, *words)
    assert "force_download" not in result["error"]
    hub.faults = []
    assert_loaded(load(hub.endpoint, tmp_path))


def test_transfer_always_cut_at_the_same_byte(hub, tmp_path):
    hub.faults = [Fault("cut")]
    # One attempt: within it huggingface_hub resumes five times, a second apart.
    result = load(hub.endpoint, tmp_path, pauses=())
    assert_refused(result, "RemoteProtocolError", "peer closed connection without sending complete message body")
    assert transfers(hub) >= 5


def test_refusals_are_not_retried(hub, tmp_path):
    hub.faults = [Fault("missing")]
    load(hub.endpoint, tmp_path)
    assert len(hub.requests) == 1


def test_repository_not_found(tmp_path):
    with HubServer({}) as hub:
        assert_refused(load(hub.endpoint, tmp_path), "answered 401 (RepositoryNotFoundError)")


def test_server_is_down(tmp_path):
    with HubServer({}) as hub:
        pass
    result = load(hub.endpoint, tmp_path)
    assert_refused(result, "ConnectError", f"{hub.endpoint}/{REPO}/resolve/main/model.safetensors")


def test_offline(hub, tmp_path):
    result = load(hub.endpoint, tmp_path, env=OFFLINE)
    assert_refused(result, "HF_HUB_OFFLINE forbids the network", f"{hub.endpoint}/{REPO}/resolve/main/")
    assert hub.requests == []


@pytest.mark.parametrize("name", ["imagenet", "imagenet-300"])
def test_the_way_by_hand_works(tmp_path, name):
    """The command of the error message, run where there is a network, and its folder copied to where there is none."""
    files = {**FILES, REPO_300: {"refs/pr/5": {"model.safetensors": CHECKPOINT}}}
    with HubServer(files, commits={(REPO_300, "refs/pr/5"): COMMIT_300}) as hub:
        error = load(hub.endpoint, tmp_path / "offline", name, env=OFFLINE)["error"]
        command = re.search("`(hf download .*?)`", error).group(1).split()[1:]
        connected = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "connected")}
        subprocess.run([Path(sys.executable).with_name("hf"), *command], env=connected, check=True, capture_output=True)
    folder = Path("hub", re.search("copy the folder (.*?) from", error).group(1))
    shutil.copytree(tmp_path / "connected" / folder, tmp_path / "offline" / folder, symlinks=True)
    assert_loaded(load(hub.endpoint, tmp_path / "offline", name, env=OFFLINE))


def test_full_disk(hub, tmp_path):
    # A disk of 128 kB, mounted in a namespace of its own: it vanishes with the process and needs no root.
    script = 'mount -t tmpfs -o size=128k tmpfs "$HF_HOME" && exec "$@"'
    prefix = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*prefix, "true"], env={**os.environ, "HF_HOME": str(tmp_path)}, capture_output=True).returncode:
        pytest.skip("a full disk is made with a small tmpfs, and this system lets nobody mount one in a namespace")
    result = load(hub.endpoint, tmp_path, prefix=prefix)
    assert_refused(result, "No space left on device", "needs 49.3 MB", f"the cache {tmp_path}", "set HF_HOME")
    assert transfers(hub) == 1


def test_cache_folder_is_a_file(hub, tmp_path):
    (tmp_path / "hub").write_text("")
    assert_refused(load(hub.endpoint, tmp_path), "cannot be used", str(tmp_path / "hub"))


@pytest.mark.parametrize("env", [{}, OFFLINE])
def test_damage_on_disk(hub, tmp_path, env):
    blob = Path(load(hub.endpoint, tmp_path)["path"]).resolve()
    damaged = CHECKPOINT[:-1] + b"\0"
    blob.write_bytes(damaged)
    result = load(hub.endpoint, tmp_path, env=env)
    assert_refused(result, hashlib.sha256(damaged).hexdigest(), f"{SHA256} (stated by the hub)", "start again")
    assert_loaded(load(hub.endpoint, tmp_path))


def test_truncated_on_disk(hub, tmp_path):
    os.truncate(Path(load(hub.endpoint, tmp_path)["path"]).resolve(), 1000)
    assert_refused(load(hub.endpoint, tmp_path), f"{SHA256} (stated by the hub)")
    assert_loaded(load(hub.endpoint, tmp_path))


def test_blob_lost_from_the_cache(hub, tmp_path):
    Path(load(hub.endpoint, tmp_path)["path"]).resolve().unlink()
    assert_loaded(load(hub.endpoint, tmp_path))


def test_without_symbolic_links(hub, tmp_path):
    env = {"HF_HUB_DISABLE_SYMLINKS": "1"}
    hub.faults = [Fault("corrupt", times=1)]
    assert_refused(load(hub.endpoint, tmp_path, env=env), f"{SHA256} (stated by the hub)")
    assert_loaded(load(hub.endpoint, tmp_path, env=env))
    assert_loaded(load(hub.endpoint, tmp_path, env=env | OFFLINE))


def test_blob_in_the_store_of_all_repositories(hub, tmp_path):
    """With Xet, the blob is itself a link; damage is then removed from the store too, or it would be linked again."""
    blob = Path(load(hub.endpoint, tmp_path)["path"]).resolve()
    store = tmp_path / "hub" / "blobs" / "ab" / ("ab" * 32)
    store.parent.mkdir(parents=True)
    blob.rename(store)
    blob.symlink_to(os.path.relpath(store, blob.parent))
    assert_loaded(load(hub.endpoint, tmp_path))
    store.write_bytes(b"damaged")
    assert_refused(load(hub.endpoint, tmp_path), f"{SHA256} (stated by the hub)")
    assert not store.exists()


def test_two_processes_at_once(hub, tmp_path):
    hub.faults = [Fault("slow")]
    processes = [start(hub.endpoint, tmp_path) for _ in range(2)]
    results = [finish(process) for process in processes]
    for result in results:
        assert_loaded(result)
    assert transfers(hub) == 1


def test_two_processes_at_once_find_damage(hub, tmp_path):
    Path(load(hub.endpoint, tmp_path)["path"]).resolve().write_bytes(b"damaged")
    processes = [start(hub.endpoint, tmp_path) for _ in range(2)]
    results = [finish(process) for process in processes]
    assert any("stated by the hub" in (result["error"] or "") for result in results)
    assert_loaded(load(hub.endpoint, tmp_path))


def test_imagenet_300_from_the_pull_request(tmp_path):
    files = {REPO_300: {"refs/pr/5": {"model.safetensors": CHECKPOINT}, "main": {"pytorch_model.bin": b"pickle"}}}
    with HubServer(files, commits={(REPO_300, "refs/pr/5"): COMMIT_300}) as hub:
        result = load(hub.endpoint, tmp_path, "imagenet-300")
    assert_loaded(result)
    assert result["warnings"] == []
    assert Path(result["path"]).parts[-2:] == (COMMIT_300, "model.safetensors")
    assert_loaded(load(hub.endpoint, tmp_path, "imagenet-300", env=OFFLINE))


@pytest.mark.parametrize("pull_request", [{"refs/pr/5": {"model.safetensors": b"other weights"}}, {}])
def test_imagenet_300_from_main(tmp_path, pull_request):
    """The pull request has moved on, or is gone: the other copy is used, and said to be."""
    with HubServer({REPO_300: {**pull_request, "main": {"pytorch_model.bin": CHECKPOINT}}}) as hub:
        result = load(hub.endpoint, tmp_path, "imagenet-300")
        found = hub.commit(REPO_300, "refs/pr/5") if pull_request else "not there"
    assert_loaded(result)
    assert Path(result["path"]).name == "pytorch_model.bin"
    assert [found in warning and "using pytorch_model.bin" in warning for warning in result["warnings"]] == [True]
    assert_loaded(load(hub.endpoint, tmp_path, "imagenet-300", env=OFFLINE))


def test_unknown_names():
    from keras_efficientformer.conversion import pretrained

    with pytest.raises(ValueError, match=r'EfficientFormerL1 has "imagenet", "imagenet-300"\).*weights=imagenet-21k'):
        pretrained.download("l1", "imagenet-21k")
    with pytest.raises(ValueError, match=r'EfficientFormerL3 has "imagenet"\).*weights=imagenet-300'):
        pretrained.download("l3", "imagenet-300")
    assert "a network of these depths and widths has none" in str(pretrained.unknown_weights(None, "imagenet"))


def test_table():
    from keras_efficientformer.conversion.pretrained import PRETRAINED
    from keras_efficientformer.variants import model_name

    for (variant, _), entry in PRETRAINED.items():
        assert f"/{model_name(variant)}" in entry.repo.replace("-", "_")
        assert "snap" in entry.repo
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
        assert entry.commit or entry.revision == "main" or re.fullmatch("[0-9a-f]{40}", entry.revision)
        assert 76 < entry.top1 < 84
        assert 0 < entry.crop <= 1
