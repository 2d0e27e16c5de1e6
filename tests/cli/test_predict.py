"""`efficientformer predict`: what it takes as images, how it prints, and that one bad image does not end the others."""

import csv
import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from project import ROOT

from keras_efficientformer import cli, from_checkpoint, photographs
from keras_efficientformer.deploy import export_tflite

LABELS = (ROOT / "weights" / "cifar10_labels.txt").read_text().split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and images: a.png, b.jpg, below/c.webp, and bad.jpg."""
    folder = tmp_path_factory.mktemp("predict")
    model = from_checkpoint(ROOT / "weights" / "efficientformer_l1_cifar10.safetensors")
    export_tflite(model, folder / "m.tflite", labels=LABELS)
    (folder / "images" / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (90, 120)), ("b.jpg", (64, 64)), ("below/c.webp", (300, 200))):
        blocks = rng.integers(0, 256, (4, 4, 3), "uint8")
        Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(folder / "images" / name)
    (folder / "bad.jpg").write_bytes(b"no image at all")
    return folder


@pytest.fixture
def predict(folder, monkeypatch, capsys):
    """Runs the command in the folder; the exit code, what it printed, and its errors."""

    def run(*arguments, expect=0):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["efficientformer", "predict", "--model", "m.tflite", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        found = capsys.readouterr()
        assert (end.value.code or 0) == expect, found.err
        return found

    return run


def images_of(found):
    return list(json.loads(found.out))


def test_folders_patterns_and_home(predict, monkeypatch, folder):
    everything = ["images/a.png", "images/b.jpg", "images/below/c.webp"]
    assert images_of(predict("images", "--json")) == everything
    assert images_of(predict("images/*", "--json")) == everything[:2]
    assert images_of(predict("images/**/*.webp", "images/a.png", "--json")) == [everything[2], everything[0]]
    assert images_of(predict("images/b.jpg", "images", "--json")) == [everything[1], everything[0], everything[2]]
    monkeypatch.setenv("HOME", str(folder))
    assert images_of(predict("~/images/a.png", "--json")) == [str(folder / "images" / "a.png")]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("missing.jpg", "missing.jpg does not exist"),
        ("*.gif", r"*.gif fits no image"),
        ("[a].png", "[a].png fits no image"),
    ],
)
def test_nothing_there(predict, image, words):
    found = predict("images/a.png", image, expect=1)
    assert (found.out, words in found.err) == ("", True)


def test_one_bad_image_does_not_end_the_others(predict):
    arguments = ("images/a.png", "bad.jpg", "images/b.jpg", "--json")
    found = predict(*arguments, expect=1)
    assert images_of(found) == ["images/a.png", "images/b.jpg"]
    assert found.err.startswith("error: 'bad.jpg' is not an image")
    found = predict(*arguments, "--skip-bad")
    assert images_of(found) == ["images/a.png", "images/b.jpg"]
    assert found.err.startswith("left out: 'bad.jpg' is not an image")
    assert predict("bad.jpg", expect=1).out == ""


def test_answers_are_objects(predict):
    (answers,) = json.loads(predict("images/a.png", "--json", "--top", "3").out).values()
    assert [list(answer) for answer in answers] == [["class", "label", "wordnet_id", "score"]] * 3
    assert [answer["score"] for answer in answers] == sorted((answer["score"] for answer in answers), reverse=True)
    assert [LABELS[answer["class"]] for answer in answers] == [answer["label"] for answer in answers]


def test_csv(predict):
    found = predict("images", "--csv", "--top", "2")
    rows = list(csv.DictReader(io.StringIO(found.out)))
    assert [(row["image"], row["rank"]) for row in rows[:3]] == [
        ("images/a.png", "1"),
        ("images/a.png", "2"),
        ("images/b.jpg", "1"),
    ]
    answers = json.loads(predict("images", "--json", "--top", "2").out)
    for row in rows:
        answer = answers[row["image"]][int(row["rank"]) - 1]
        assert (row["label"], float(row["score"])) == (answer["label"], answer["score"])
    assert predict("images", "--csv", "--json", expect=2).out == ""


def test_save_draws_the_answer(predict, tmp_path):
    copies = tmp_path / "copies"
    (tmp_path / "a.png").write_bytes(b"")
    predict("images", "images/below/c.webp", "--save", copies)
    assert sorted(path.name for path in copies.iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]
    with Image.open(copies / "c.jpg") as copy:
        assert copy.width == 300
        bar = np.asarray(copy)[200:]
    assert copy.height > 200
    assert bar.max() > 200  # the text is light
    assert np.median(bar) < 30  # on dark ground
    found = predict("images/a.png", "--save", copies, expect=1)
    assert "a.jpg exists. Choose another name, or pass --overwrite" in found.err
    predict("images/a.png", "--save", copies, "--overwrite")
    assert "is a file: --save needs a folder" in predict("images/a.png", "--save", tmp_path / "a.png", expect=1).err


def test_no_photograph_is_replaced_by_its_copy(predict, tmp_path, folder):
    content = (folder / "images" / "below" / "c.webp").read_bytes()
    with Image.open(folder / "images" / "a.png") as image:
        image.convert("RGB").save(tmp_path / "a.jpg")
    (tmp_path / "c.webp").write_bytes(content)
    before = (tmp_path / "a.jpg").read_bytes()
    found = predict(tmp_path / "c.webp", tmp_path / "a.jpg", "--save", tmp_path, "--overwrite", expect=1)
    assert "a.jpg is a photograph that is read: choose another folder to save in" in found.err
    assert (tmp_path / "a.jpg").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "c.webp"]


def test_copies_of_one_name(predict, tmp_path, folder):
    (folder / "more").mkdir(exist_ok=True)
    (folder / "more" / "a.png").write_bytes((folder / "images" / "a.png").read_bytes())
    predict("images/a.png", "more/a.png", "--save", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a_2.jpg"]


def test_standard_input(predict, folder, monkeypatch):
    class Input:
        buffer = io.BytesIO((folder / "images" / "a.png").read_bytes())

    monkeypatch.setattr(sys, "stdin", Input)
    answers = json.loads(predict("-", "images/a.png", "--json").out)
    assert answers["-"] == answers["images/a.png"]
    Input.buffer = io.BytesIO(b"")
    assert "standard input" in predict("-", expect=1).err
    monkeypatch.setattr(sys, "stdin", None)
    assert "Standard input is closed" in predict("-", expect=1).err


def test_heic(predict, folder, tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    with Image.open(folder / "images" / "a.png") as image:
        pillow_heif.from_pillow(image).save(tmp_path / "a.heic", quality=-1)
    assert images_of(predict(tmp_path, "--json")) == [str(tmp_path / "a.heic")]


class Server(BaseHTTPRequestHandler):
    """/a.png is an image, /moved leads to it, /endless never ends, /slow sends a byte now and then."""

    image = b""

    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.png?size=full")
            self.end_headers()
        elif self.path.startswith(("/a.png", "/k%C3%A4se%20bild.png?1%202")):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.image)
        elif self.path in ("/endless", "/slow"):
            self.send_response(200)
            self.end_headers()
            while not self.server.stop.is_set():
                try:
                    self.wfile.write(b"x" * (1 << 16 if self.path == "/endless" else 1))
                except OSError:
                    return
                if self.path == "/slow":
                    self.server.stop.wait(0.05)
        else:
            self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def url(folder):
    Server.image = (folder / "images" / "a.png").read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.stop = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.stop.set()
    server.shutdown()
    server.server_close()


def test_urls(predict, url, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    beyond_ascii = f"{url}/käse bild.png?1%202"  # as it stands in a browser's line
    answers = json.loads(predict(f"{url}/a.png", f"{url}/moved", beyond_ascii, "images/a.png", "--json").out)
    assert answers[f"{url}/a.png"] == answers[f"{url}/moved"] == answers[beyond_ascii] == answers["images/a.png"]
    monkeypatch.setattr(photographs, "MAX_DOWNLOAD", 1_000_000)
    monkeypatch.setattr(photographs, "DOWNLOAD_SECONDS", 0.5)
    bad = [f"{url}/{name}" for name in ("endless", "slow", "missing")] + ["http://127.0.0.1:1/a.png", "http://[x"]
    found = predict("images/a.png", *bad, "--json", expect=1)
    assert images_of(found) == ["images/a.png"]
    lines = found.err.strip().splitlines()
    for line, address, words in zip(
        lines,
        bad,
        ("more than 1 MB", "takes more than 0.5 s", "404", "could not be downloaded", "Invalid IPv6"),
        strict=True,
    ):
        assert line.startswith("error: ")
        assert address in line
        assert words in line


def test_the_table_says_size_and_crop(predict):
    out = " ".join(predict("images/a.png").out.split())
    assert "m.tflite, images of 64x64 pixels, crop 0.95" in out
    assert "crop 0.5" in " ".join(predict("images/a.png", "--crop", "0.5").out.split())


def test_a_size_that_a_file_does_not_take(predict):
    predict("images/a.png", "--size", "64")
    found = predict("images/a.png", "--size", "96", expect=1)
    assert "m.tflite takes images of 64x64 pixels and no others. Received: (96, 96)" in found.err


def test_labels_beside_a_file_are_used_and_said_so(predict, folder, tmp_path):
    export_tflite(from_checkpoint(ROOT / "weights" / "efficientformer_l1_cifar10.safetensors"), tmp_path / "n.tflite")
    arguments = ("images/a.png", "--model", tmp_path / "n.tflite", "--json", "--top", "1")
    (answer,) = json.loads(predict(*arguments).out)["images/a.png"]
    assert answer["label"] == f"class {answer['class']}"
    (tmp_path / "labels.txt").write_text("\n".join(name.upper() for name in LABELS))
    found = predict(*arguments)
    (answer,) = json.loads(found.out)["images/a.png"]
    assert answer["label"] == LABELS[answer["class"]].upper()
    assert f"{tmp_path / 'labels.txt'} does." in found.err
