"""The page that `efficientformer app web` writes: its facts are the files', and a browser computes what LiteRT does.

Chromium is started once, by `web/drive.mjs` with Playwright from npm, and used by keyboard; WebGPU is SwiftShader's.
"""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from browser import find_browser
from networks import make_loud
from npm import fetch_litert_js, npm_ci
from PIL import Image, ImageColor
from project import HANG, ROOT

from keras_efficientformer import EfficientFormer, cli
from keras_efficientformer.apps import write_web_app
from keras_efficientformer.classifiers import open_classifier
from keras_efficientformer.deploy import export_tflite
from keras_efficientformer.deploy.tflite.modes import MODES
from keras_efficientformer.imagenet import load_image, preprocess_input, resize_and_crop
from keras_efficientformer.images import of_channels, scaled, seeded_images
from keras_efficientformer.labels import class_colors
from keras_efficientformer.segmentation import SemanticFPN

PAGE = ROOT / "keras_efficientformer" / "apps" / "web"
DRIVER = ROOT / "tests" / "apps" / "web"
SIZES = [(64, 64), (96, 64)]
LABELS = (*(f"kind {letter}" for letter in "abcdefgh"), "<b>bold</b>", 'ein "Hügel"')
# The same kernels compute in WebAssembly, but for modes that quantize while they run.
KINDS = (*MODES, "normalised", "grey", "uint8", "segmenter", "sizes")
TOLERANCE = dict.fromkeys(KINDS, 2e-6) | {"dynamic": 5e-3, "auto": 5e-3}


@pytest.fixture(scope="module")
def network():
    shape = {"input_shape": (64, 64, 3), "classes": len(LABELS), "classifier_activation": "softmax", "labels": LABELS}
    return make_loud(EfficientFormer((1, 1, 1, 2), (8, 16, 16, 32), **shape))


@pytest.fixture(scope="module")
def models(tmp_path_factory, network):
    """{mode: file}, files that take their pixels otherwise, normalised, grey, uint8, and a segmenter."""
    folder = tmp_path_factory.mktemp("models")
    images = seeded_images((64, 64, 3))
    files = {mode: folder / f"{mode}.tflite" for mode in MODES}
    for mode, file in files.items():
        calibration = images if MODES[mode].measures else None
        fewest_bits = {"max_drop": 100, "max_difference": float("inf")} if MODES[mode].chosen_bits else {}
        export_tflite(network, file, quantize=mode, calibration=calibration, **fewest_bits)
    files |= {name: folder / f"{name}.tflite" for name in TOLERANCE if name not in MODES}
    export_tflite(network, files["normalised"], include_preprocessing=False)
    export_tflite(network, files["uint8"], quantize="int8", io="uint8", calibration=images)
    raw = {"include_preprocessing": True, "mean": (0.5,), "std": (0.25,), "classifier_activation": None}
    grey = make_loud(EfficientFormer((1, 1, 1, 2), (8, 16, 16, 32), input_shape=(64, 64, 1), classes=4, **raw))
    export_tflite(grey, files["grey"])
    export_tflite(segmenter(), files["segmenter"])
    export_tflite(network, files["sizes"], input_sizes=SIZES)
    return files


def segmenter():
    """A segmentation model that finds several classes in the photograph."""
    backbone = EfficientFormer((1, 1, 1, 2), (8, 16, 16, 32), input_shape=(64, 64, 3), include_top=False)
    model = make_loud(SemanticFPN(backbone, len(LABELS), 16, 8, labels=LABELS))
    photograph = scaled(load_image(io.BytesIO(PICTURES["down"][0])), (64, 64))
    probabilities = model.predict(preprocess_input(photograph[None].astype("float32")), verbose=0)
    bias = model.get_layer("logits").bias
    bias.assign(bias - np.log(probabilities).mean((0, 1, 2)))
    return model


@pytest.fixture(scope="module")
def litert_js(tmp_path_factory):
    return fetch_litert_js(tmp_path_factory.mktemp("litert_js"))


@pytest.fixture(scope="module")
def page(tmp_path_factory, models, litert_js):
    """A page with all modes, and one beside it whose files were changed afterwards."""
    folder = tmp_path_factory.mktemp("site") / "page"
    write_web_app(list(models.values()), folder, modules=litert_js)
    damaged = folder / "damaged"
    shutil.copytree(folder, damaged)
    content = (damaged / "none.tflite").read_bytes()
    (damaged / "none.tflite").write_bytes(content[:60000])
    (damaged / "float16.tflite").write_bytes(bytes(len((damaged / "float16.tflite").read_bytes())))
    (damaged / "dynamic.tflite").unlink()
    facts = json.loads((damaged / "models.json").read_text())
    facts["models"] = facts["models"][:3]
    (damaged / "models.json").write_text(json.dumps(facts))
    return folder


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures():
    """(name, file's content, media type, size of the network, crop)"""
    rng = np.random.default_rng(0)
    noise = {shape: Image.fromarray(rng.integers(0, 256, (*shape, 3), "uint8")) for shape in [(90, 120), (700, 301)]}
    turned = Image.Exif()
    turned[0x0112] = 6
    smooth = noise[90, 120].resize((480, 300), Image.Resampling.BICUBIC)
    yield "down", encoded(noise[90, 120], "PNG"), "image/png", (64, 64), 0.95
    yield "tall, down first", encoded(noise[700, 301], "PNG"), "image/png", (64, 64), 0.95
    yield "up, not square", encoded(noise[90, 120], "PNG"), "image/png", (160, 224), 0.875
    yield "grey", encoded(noise[90, 120].convert("L"), "PNG"), "image/png", (64, 64), 1.0
    yield "turned JPEG", encoded(smooth, "JPEG", exif=turned, quality=90), "image/jpeg", (64, 64), 0.95


PICTURES = {name: rest for name, *rest in pictures()}


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def seen(tmp_path_factory, page, models):
    """What drive.mjs found."""
    folder = tmp_path_factory.mktemp("seen")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(DRIVER / name, folder)
    (folder / "images" / "below").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(PICTURES["down"][0])
    (folder / "images" / "below" / "b.jpg").write_bytes(PICTURES["turned JPEG"][0])
    (folder / "images" / "notes.txt").write_text("not an image")
    (folder / "broken.png").write_bytes(PICTURES["down"][0][:100])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=page))
    asked = {
        "node_modules": str(npm_ci(folder)),
        "browser": find_browser(),
        "url": f"http://127.0.0.1:{server.server_port}/",
        "models": [file.name for file in models.values()],
        "pixels": seeded_images((64, 64, 3))[0].astype(int).ravel().tolist(),
        "pictures": [
            {"content": base64.b64encode(content).decode(), "type": kind, "size": size, "crop": crop}
            for content, kind, size, crop in PICTURES.values()
        ],
        "photo": str(folder / "images" / "a.png"),
        "other": str(folder / "broken.png"),
        "folder": str(folder / "images"),
    }
    (folder / "asked.json").write_text(json.dumps(asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        command = ["node", str(DRIVER / "drive.mjs"), str(folder / "asked.json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout) | {"url": asked["url"]}


def answers(file, image, size=(64, 64)):
    """What the page should show of an image: (label, score in words, width of its bar) of the best five classes."""
    scores = open_classifier(file, size).predict(resize_and_crop(image, size)[None].astype("float32"))[0]
    order = np.argsort(-scores, kind="stable")[:5]
    return [(LABELS[index], float(scores[index])) for index in order]


def assert_shows(result, expected):
    assert [label for label, *_ in result["classes"]] == [label for label, _ in expected]
    for (_, words, width), (_, score) in zip(result["classes"], expected, strict=True):
        assert float(words.rstrip("%")) == pytest.approx(100 * score, abs=0.06)
        assert float(width.rstrip("%")) == pytest.approx(100 * score, abs=0.06)


@pytest.mark.parametrize("name", TOLERANCE)
def test_scores_are_litert_s(name, seen, models):
    classifier = open_classifier(models[name])
    (expected,) = classifier.predict(of_channels(seeded_images((64, 64, 3))[:1], classifier.channels))
    found = np.array(seen["scores"][f"{name}.tflite"], "float32").reshape(expected.shape)
    assert np.ptp(expected) > 0.05
    assert np.abs(found - expected).max() <= TOLERANCE[name]


@pytest.mark.parametrize("name", PICTURES)
def test_pixels_are_the_package_s(name, seen):
    content, _, size, crop = PICTURES[name]
    image = load_image(io.BytesIO(content))
    # Decoders of JPEG may round otherwise; what comes after them is exact.
    limit = 2 if "JPEG" in name else 0
    for way, expected in (("cropped", resize_and_crop(image, size, crop)), ("stretched", scaled(image, size))):
        found = np.reshape(seen["pixels"][way][list(PICTURES).index(name)], expected.shape)
        assert np.abs(found - expected.astype(int)).max() <= limit, way


def test_keyboard_alone_is_enough(seen, models):
    expected = answers(models["none"], load_image(io.BytesIO(PICTURES["down"][0])))
    photo = seen["photo"]
    (result,) = photo["results"]
    assert result["name"] == "a.png"
    assert_shows(result, expected)
    assert photo["alert"] is None
    assert re.fullmatch(rf"{re.escape(expected[0][0])}, [\d.]+%, [\d.]+ ms\.", photo["status"])
    assert "float16" in seen["second"]["status"]
    assert "64x64 pixels, 10 classes, probabilities" in seen["second"]["facts"]


def test_masks(seen, models):
    """Over the whole photograph, in the classes' colours, with a legend of their shares."""
    assert seen["segmenter"]["heading"] == "Image segmenter"
    assert "64x64 pixels, 10 classes, one for each pixel" in seen["segmenter"]["facts"]
    words = r"Checked on a test picture: the masks differ from LiteRT's by ([\d.e-]+)\."
    assert float(re.fullmatch(words, seen["segmenter"]["check"])[1]) < 2e-6
    image = load_image(io.BytesIO(PICTURES["down"][0]))
    masks = open_classifier(models["segmenter"]).predict(scaled(image, (64, 64))[None].astype("float32"))
    classes = masks[0].argmax(-1)
    counts = np.bincount(classes.ravel(), minlength=len(LABELS))
    assert np.sum(counts > 0) > 2
    (result,) = seen["segmented"]["results"]
    order = [number for number in np.argsort(-counts, kind="stable") if counts[number]]
    assert_shows(result, [(LABELS[number], counts[number] / classes.size) for number in order])
    assert seen["segmented"]["status"].startswith(f"{LABELS[order[0]]}, {100 * counts.max() / classes.size:.1f}%, ")
    colors = np.array([ImageColor.getrgb(color) for color in class_colors(len(LABELS))])
    assert seen["swatches"] == ["rgb({}, {}, {})".format(*colors[number]) for number in order]
    drawn = np.reshape(seen["drawn"]["data"], (seen["drawn"]["height"], seen["drawn"]["width"], 4))[..., :3]
    nearest = Image.fromarray(classes.astype("uint8")).resize(image.shape[1::-1], Image.Resampling.NEAREST)
    expected = 0.4 * image + 0.6 * colors[np.asarray(nearest)]
    assert drawn.shape == expected.shape
    assert np.mean(np.abs(drawn - expected).max(-1) <= 2) > 0.99


def test_folder(seen, models):
    first, second = sorted(seen["folder"]["results"], key=lambda result: result["name"])
    assert (first["name"], second["name"]) == ("images/a.png", "images/below/b.jpg")
    assert_shows(first, answers(models["none"], load_image(io.BytesIO(PICTURES["down"][0]))))
    assert re.fullmatch(r"2 of 2 images classified, [\d.]+ ms each\.", seen["folder"]["status"])


def test_camera(seen):
    assert seen["camera"]["pressed"] == "true"
    (result,) = seen["camera"]["results"]
    assert len(result["classes"]) == 5
    assert seen["camera"]["status"] in [f"Camera: {label}." for label in LABELS]
    assert seen["cameraOff"] == {"pressed": "false", "video": False}


def test_another_size_is_taken_without_the_server(seen, models):
    image = load_image(io.BytesIO(PICTURES["down"][0]))
    (first,), (second,) = (seen["sizes"][name]["results"] for name in ("first", "second"))
    assert_shows(first, answers(models["sizes"], image))
    assert_shows(second, answers(models["sizes"], image, SIZES[1]))
    assert first["classes"] != second["classes"]
    assert seen["sizes"]["offered"] == ["64x64 pixels", "96x64 pixels"]
    assert seen["sizes"]["facts"].startswith("96x64 pixels, 10 classes")
    words = r"Checked on a test picture: the scores differ from LiteRT's by ([\d.e-]+)\."
    assert float(re.fullmatch(words, seen["sizes"]["check"])[1]) < 2e-6
    assert seen["sizes"]["otherwise"] == 0  # models of one size offer no choice


def test_an_unreadable_image_does_not_end_the_others(seen):
    good, bad = seen["several"]["results"]
    assert good["classes"]
    assert bad["name"] == "broken.png: it is no image that this browser can read."
    assert re.fullmatch(r"1 of 2 images classified, [\d.]+ ms each\.", seen["several"]["status"])


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("none.tflite", r"none\.tflite has 60000 bytes, and had \d+ when this page was made\. Make it again\."),
        ("float16.tflite", r"float16\.tflite cannot be used here: .+"),
        ("dynamic.tflite", r"dynamic\.tflite cannot be loaded: 404 File not found"),
    ],
)
def test_wrong_models_are_told(file, words, seen):
    assert re.fullmatch(words, seen["damaged"][file]["alert"])


def test_nothing_leaves_the_host_and_nothing_complains(seen):
    requests, complaints = seen["heard"]["requests"], seen["heard"]["complaints"]
    assert len(requests) > 10
    assert {url for url in requests if not url.startswith(seen["url"])} == set()
    assert complaints == []


def test_webgpu(seen):
    """One file, computed by another set of kernels: SwiftShader's WebGPU."""
    if seen["webgpu"]["backend"] != "webgpu":
        pytest.skip(f"this Chromium has no WebGPU: {seen['webgpu']['check']}")
    words = r"Checked on a test picture: the scores differ from LiteRT's by ([\d.e-]+)\."
    assert float(re.fullmatch(words, seen["webgpu"]["check"])[1]) < 1e-4
    assert float(re.fullmatch(words, seen["wasm"]["check"])[1]) < 1e-6
    assert seen["wasm"]["backend"] == "wasm"


def test_screens(seen):
    assert all(content <= width for width, content in seen["widths"])
    light, dark = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in seen["colours"])
    assert light > 600
    assert dark < 150


def test_facts_are_the_file_s(page, models, network):
    facts = {entry["file"]: entry for entry in json.loads((page / "models.json").read_text())["models"]}
    assert list(facts) == [file.name for file in models.values()]
    entry = facts["int8.tflite"]
    assert (page / "int8.tflite").read_bytes() == models["int8"].read_bytes()
    (size,) = entry["sizes"]
    assert (size["signature"], size["size"], entry["channels"], entry["crop"]) == (None, [64, 64], 3, 0.95)
    assert (entry["mean"], entry["std"], entry["labels"]) == ([0.0] * 3, [1.0] * 3, list(LABELS))
    assert (entry["kind"], entry["scores"], size["output"]["index"], entry["bytes"]) == (
        "classifier",
        "probabilities",
        0,
        models["int8"].stat().st_size,
    )
    entry = facts["segmenter.tflite"]
    assert (entry["kind"], entry["scores"], entry["colors"]) == ("segmenter", "masks", class_colors(len(LABELS)))
    (size,) = entry["sizes"]
    assert (size["output"]["shape"], len(size["check"])) == ([1, 64, 64, 10], 64 * 10)
    sizes = facts["sizes.tflite"]["sizes"]
    assert [(size["signature"], size["size"]) for size in sizes] == [
        ("serving_default", [64, 64]),
        ("size_96x64", [96, 64]),
    ]


def test_command(models, litert_js, tmp_path, monkeypatch, capsys):
    arguments = ["app", "web", models["none"], models["int8"], tmp_path / "page", "--node-modules", litert_js]
    monkeypatch.setattr(sys, "argv", ["efficientformer", *map(str, arguments), "--crop", "0.9", "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    found = capsys.readouterr()
    assert not end.value.code
    assert json.loads(found.out)["models"] == ["none.tflite", "int8.tflite"]
    assert f"python -m http.server --directory {tmp_path / 'page'}" in found.err
    facts = json.loads((tmp_path / "page" / "models.json").read_text())["models"]
    assert [entry["crop"] for entry in facts] == [0.9, 0.9]


def test_what_a_page_does_not_run(network, models, tmp_path):
    with pytest.raises(ValueError, match=r"Export it first: efficientformer export tflite l1$"):
        write_web_app(["l1"], tmp_path / "page")
    with pytest.raises(ValueError, match="Two files have one name"):
        write_web_app([models["none"], models["int8"], models["none"]], tmp_path / "page")
    with pytest.raises(FileNotFoundError, match=r"none\.tflite does not exist"):
        write_web_app([tmp_path / "none.tflite"], tmp_path / "page")
    backbone = EfficientFormer((1, 1, 1, 2), (8, 16, 16, 32), input_shape=(64, 64, 3), include_top=False)
    export_tflite(backbone, tmp_path / "features.tflite")
    with pytest.raises(ValueError, match="is neither a classifier nor a segmenter: it gives features"):
        write_web_app([tmp_path / "features.tflite"], tmp_path / "page")
    export_tflite(network, tmp_path / "two.tflite", batch_size=2)
    with pytest.raises(ValueError, match="takes 2 images at once: export it with --batch-size 1"):
        write_web_app([tmp_path / "two.tflite"], tmp_path / "page")
    export_tflite(
        network, tmp_path / "whole.tflite", quantize="int8", io="int8", calibration=seeded_images((64, 64, 3))
    )
    with pytest.raises(ValueError, match=r"has image in int8, and LiteRT\.js has float32, int32, uint8"):
        write_web_app([tmp_path / "whole.tflite"], tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_litert_js_is_asked_for(models, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"holds no @litertjs/core: --node-modules is the folder that `npm ci` fills"):
        write_web_app([models["none"]], tmp_path / "page", modules=tmp_path)
    package = tmp_path / "@litertjs" / "core" / "package.json"
    package.parent.mkdir(parents=True)
    package.write_text('{"version": "0.1.0"}')
    with pytest.raises(ValueError, match=r"holds @litertjs/core 0\.1\.0, and this page is made for 2\."):
        write_web_app([models["none"]], tmp_path / "page", modules=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"install Node\.js"):
        write_web_app([models["none"]], tmp_path / "page")
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\necho 'npm error no such host' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(OSError, match=r"npm could not fetch LiteRT.js: no such host\."):
        write_web_app([models["none"]], tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_a_page_is_replaced_and_nothing_else(models, litert_js, tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="page exists"):
        write_web_app([models["none"]], tmp_path / "page", modules=litert_js)
    with pytest.raises(IsADirectoryError, match="a folder of another kind"):
        write_web_app([models["none"]], tmp_path / "page", modules=litert_js, overwrite=True)
    assert (tmp_path / "page" / "mine.txt").read_text() == "mine"
    shutil.rmtree(tmp_path / "page")
    write_web_app([models["none"], models["int8"]], tmp_path / "page", modules=litert_js)
    app = write_web_app([models["int8"]], tmp_path / "page", labels=[*"abcdefghij"], modules=litert_js, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "page").glob("*.tflite")) == ["int8.tflite"]
    assert json.loads((tmp_path / "page" / "models.json").read_text())["models"][0]["labels"] == [*"abcdefghij"]
    assert app.models == ("int8.tflite",)
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_the_page_itself():
    html = (PAGE / "index.html").read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    (imports,) = re.findall(r'<script type="importmap">(.*?)</script>', html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(imports.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert not re.search(r"\w+://", policy)
    lock = json.loads((PAGE / "package-lock.json").read_text())["packages"]
    wanted = json.loads((PAGE / "package.json").read_text())["dependencies"]
    assert lock["node_modules/@litertjs/core"]["version"] == wanted["@litertjs/core"]
    assert all(entry["integrity"].startswith("sha512-") for name, entry in lock.items() if name)
