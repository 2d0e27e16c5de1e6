"""Every command and block of code of every README and page of docs/ runs as it stands, on local files and a local hub.

The blocks of a document run in their order, in a folder that holds what the document names: commands by bash, line by
line, and Python in one process, as a reader pastes it.
"""

import csv
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import masked_images
import pytest
import timm_reference
import torch
import training_images
from commands import command_options
from hub_server import HubServer
from PIL import Image
from project import HANG, ROOT, documents

from keras_efficientformer.conversion import write_checkpoint
from keras_efficientformer.deploy import export_tflite

sys.path.append(str(ROOT / "benchmarks"))
from digits import write_digits

TEXTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in documents()
    if "README" in path.name or ROOT / "docs" in path.parents
}
FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SHELL = ("sh", "bash")
# In the middle of a sentence.
INLINE = re.compile(r"`((?:efficientformer|python|make) [^`]+)`")
EXTRA = re.compile(r"keras-efficientformer\[([\w,-]+)\]")

NO_PHONE = "needs a phone"
# {document: {how a command begins: why it cannot run here}}; commands of pip only have their extras checked.
NO_GPU = "needs a GPU or a driver; tests/deploy/tflite/accelerators/test_gpu.py runs it"
NOT_RUN = {
    "README.md": {
        "make demo": "installs into a new environment; tests/apps/test_demo.py runs what it runs then",
        "make test": "runs this test",
        **dict.fromkeys(
            [f"efficientformer app {kind} digits" for kind in ("android", "ios", "web")],
            "tests/cli/test_labels_all_the_way.py runs it of a smaller network",
        ),
    },
    "tflite/README.md": {
        "efficientformer export tflite l1 efficientformer_l1.tflite --npu": "needs Qualcomm's compiler",
        "efficientformer export tflite l1 l1_int8.tflite": "test_npu.py runs it of a smaller network, for OpenVINO",
        "efficientformer benchmark tflite int8.tflite --adb": NO_PHONE,
        "efficientformer inspect model.tflite --gpu": NO_GPU,
        "efficientformer export tflite l1 . --quantize float16 --require gpu": NO_GPU,
        "efficientformer benchmark tflite model.tflite --unit gpu": NO_GPU,
        "bash tflite/gpu/setup.sh": "fetches a driver",
        "bash tflite/arm/setup.sh": "installs qemu and a compiler into the system",
        "efficientformer benchmark tflite int8.tflite --emulate": "needs qemu, which setup.sh installs",
    },
    "tflite/web/README.md": {
        "efficientformer app web": "fetches LiteRT.js from npm; tests/apps/test_web_app.py runs it",
        "python -m http.server": "runs until it is stopped",
    },
    "benchmarks/devices/README.md": {
        "efficientformer benchmark tflite efficientformer_l1_224_int8.tflite --threads 4 --adb": NO_PHONE,
        "efficientformer benchmark tflite efficientformer_l1_224_int8.tflite --emulate": "needs qemu",
        "efficientformer benchmark coreml": "needs a Mac and an iPhone",
    },
    "tests/data/README.md": {"python make_dialects.py": "needs packages that do not go with the tests'"},
}

# Runs the blocks of argv[1], a JSON list of [language, where it stands, text], in one namespace. What a reader has
# typed stands in the log before what came of it. The first command is the real one; those after it take the programs of
# the folder argv[2], if any.
DRIVER = """
import json, os, subprocess, sys
namespace = {"__name__": "__main__"}
for language, place, text in json.loads(sys.argv[1]):
    print(f"--- {place}: {text}", flush=True)
    if language == "python":
        exec(compile(text, place, "exec"), namespace)
    else:
        subprocess.run(["bash", "-e", "-c", text], check=True)
        os.environ["PATH"] = os.pathsep.join([*sys.argv[2:], os.environ["PATH"]])
"""


def blocks(document, *languages):
    """(language, line number, text) of the fenced blocks in these languages, in order."""
    found = []
    for match in FENCE.finditer(TEXTS[document]):
        if match[2] in languages:
            text = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
            found.append((match[2], TEXTS[document][: match.start(3)].count("\n") + 1, text))
    return found


def commands(text):
    """The lines of a block that do something; one that ends in a backslash goes on in the next."""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def steps(document):
    """What a reader can run: blocks of Python, and commands one by one, but for those of NOT_RUN and of pip."""
    left_out = tuple(NOT_RUN.get(document, ()))
    for language, line, text in blocks(document, "python", *SHELL):
        place = f"{document}:{line}"
        if language == "python":
            yield "python", place, text
        else:
            run = [c for c in commands(text) if not c.startswith(left_out) and "pip install" not in c]
            yield from (("sh", place, command) for command in run)


STEPS = {document: found for document in TEXTS if (found := list(steps(document)))}
# This page goes on where the README ends, in whose process the libraries are imported already.
STEPS["README.md"] += STEPS.pop("docs/migration.md")


@pytest.fixture(scope="module")
def l1(tmp_path_factory, loud_state_dict):
    """A folder with EfficientFormer-L1 of loud weights, as the hub has it and as snap-research publishes it."""
    folder = tmp_path_factory.mktemp("l1")
    write_checkpoint(folder / "model.safetensors", loud_state_dict)
    tensors = timm_reference.in_dialect(loud_state_dict, "l1", "snap")
    tensors = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    torch.save({"model": tensors}, folder / "efficientformer_l1_1000d.pth")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory, l1):
    """A folder with what the documents name: photographs, models of the reader's own, the project's folders."""
    folder = tmp_path_factory.mktemp("files")
    photographs = iter(training_images.pixels("green", 80, size=(96, 72)))

    def photograph(path):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(next(photographs)).save(folder / path)

    counts = {"train": 4, "val": 2}
    paths = [f"PHOTOS/{part}/{name}/{i}.jpg" for part in counts for name in ("cat", "dog") for i in range(counts[part])]
    for path in ("photo.jpg", *(f"photographs/{i}.jpg" for i in range(3)), *paths):
        photograph(path)
    # The README's own rows, and as many more as a batch needs.
    ((_, _, text),) = blocks("README.md", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    rows += [{"file": f"photos/{i}.jpg", "labels": rows[i % 2]["labels"]} for i in range(3, 19)]
    for name, part in (("PHOTOS.csv", rows), ("TEST.csv", rows[:4])):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file", "labels"])
            writer.writeheader()
            writer.writerows(part)
    for row in rows:
        photograph(row["file"])
    write_digits(folder / "digits", 200)
    images, masks = masked_images.make_masked_folders(folder, {"train": 8, "val": 2})
    images.rename(folder / "STREETS")
    masked_images.in_colours(masks, folder / "MASKS")
    (folder / "palette.txt").write_text(masked_images.PALETTE)

    (folder / "own").mkdir()
    model = training_images.make_model(10)
    model.save(folder / "own" / "model.keras")
    (folder / "own" / "labels.txt").write_text("".join(f"class {i}\n" for i in range(10)))
    for name in ("float32", "int8", "efficientformer_l1_224_int8"):
        export_tflite(model, folder / f"{name}.tflite", labels=folder / "own" / "labels.txt")
    shutil.copy(l1 / "efficientformer_l1_1000d.pth", folder)
    for name in ("weights", "tflite", "coreml", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def environment(l1, tmp_path_factory):
    """What a reader's programs see: no backend chosen, no settings of Keras, and the hub."""
    home = tmp_path_factory.mktemp("home")
    hub_files = {"timm/efficientformer_l1.snap_dist_in1k": {"main": {"model.safetensors": l1 / "model.safetensors"}}}
    with HubServer(hub_files, users={"hf_token": "owner"}) as hub:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        changes = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": home, "KERAS_HOME": home, "PYTHONPATH": ROOT, "PATH": path}
        changes |= {"HF_TOKEN": "hf_token", "HF_HUB_DISABLE_XET": "1"}  # of the reader, who publishes a model
        kept = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
        yield {**kept, **{name: str(value) for name, value in changes.items()}}


@pytest.mark.parametrize("document", STEPS)
def test_blocks_run(document, files, environment, tmp_path):
    folder = tmp_path / "work"
    # Links, because the documents' commands write new files and leave those of others alone.
    shutil.copytree(files, folder, copy_function=os.link, ignore=shutil.ignore_patterns("own"))
    if document != "README.md":  # which makes its own
        shutil.copytree(files / "own", folder, copy_function=os.link, dirs_exist_ok=True)
    command = [sys.executable, "-c", DRIVER, json.dumps(STEPS[document])]
    if sum(language in SHELL for language, *_ in STEPS[document]) > 2:
        command.append(forked.programs(environment))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=folder, env=environment, timeout=3 * HANG, **streams)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "Traceback" not in done.stdout, done.stdout
    if document == "README.md":  # the pretrained backbone makes 200 digits enough for much more than chance (10%)
        assert json.loads((folder / "digits_run" / "report.json").read_text())["scores"]["top1"] >= 0.7


def test_no_block_is_overlooked():
    found = [match for text in TEXTS.values() for match in FENCE.finditer(text)]
    # "py" is code of other packages, on the page about those.
    assert {match[2] for match in found} == {"python", "sh", "csv", "swift", "py"}
    assert 2 * len(found) == sum(text.count("```") for text in TEXTS.values())


def test_what_is_not_run_is_there():
    for document, entries in NOT_RUN.items():
        found = [command for _, _, text in blocks(document, *SHELL) for command in commands(text)]
        for start in entries:
            assert any(command.startswith(start) for command in found), f"{document} has no command {start}"


def test_extras_exist(monkeypatch):
    monkeypatch.setattr("setuptools.setup", lambda **arguments: None)
    extras = runpy.run_path(str(ROOT / "setup.py"))["EXTRAS"]
    named = {extra for text in TEXTS.values() for group in EXTRA.findall(text) for extra in group.split(",")}
    assert {"tflite", "coreml", "train"} <= named <= extras.keys()
    table = re.findall(r"^\| `([a-z]+(?:-[a-z]+)*)` \|", TEXTS["README.md"], re.MULTILINE)
    assert sorted([*table, "docs", "test"]) == sorted(extras)


def test_commands_in_sentences_exist():
    """With their options, and scripts with their files; what they are given is often a placeholder there."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = [words.split() for text in TEXTS.values() for words in INLINE.findall(text)]
    assert len(found) > 20
    for program, *words in found:
        options = {word for word in words if word.startswith("--")}
        if program == "make":
            assert words[0] in targets
        elif program == "efficientformer":
            assert options <= command_options(words), words
        else:
            source = (ROOT / words[0]).read_text()
            ours = re.search(r"^    main\((.+)\)$", source, re.MULTILINE)
            named = command_options(re.findall(r'"(\w+)"', ours[1])) if ours else set(re.findall(r"--[\w-]+", source))
            assert options <= named, words
