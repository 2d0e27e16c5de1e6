"""The page of an export: what it says of the file, and how a browser shows it."""

import re

import browser
import numpy as np
import pytest

from keras_efficientformer.deploy import export_coreml, export_tflite, save_export_page
from keras_efficientformer.deploy.layer_errors import layer_errors
from keras_efficientformer.images import seeded_images

LABELS = ("<i>cat</i>", *"abcdefghi")


@pytest.fixture(scope="module")
def model(build):
    return build(classes=10)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """(report, path of the page, calibration images) of an int8 file."""
    folder = tmp_path_factory.mktemp("exported")
    images = seeded_images((64, 64, 3))
    arguments = {"quantize": "int8", "calibration": images, "max_difference": 9, "labels": LABELS}
    report = export_tflite(model, folder / "small.tflite", **arguments)
    save_export_page(report, folder / "small.html", model, images=images)
    return report, folder / "small.html", images


def test_says_what_the_report_says(model, exported):
    report, path, images = exported
    page = path.read_text()
    assert report.verdict in page
    assert page.index(report.verdict) < page.index("Differences from the Keras model")
    for name, number in report.operations.items():
        assert re.search(rf"<td>{name}</td><td class=\"number\">{number}</td>", page)
    found = re.findall(r"<tr><td>([\w.]+)</td><td>[^<]+</td><td>int8", page)
    assert found == [layer.location for layer in layer_errors(report.path, model, images).worst()]
    assert re.search(r"<td>small.tflite</td><td class=\"number\">0\.\d\d MB</td>", page)
    assert "small.tflite.json" in page
    assert str(path.parent) not in page
    assert "&lt;i&gt;cat&lt;/i&gt;" in page
    assert "<i>cat" not in page


def test_page_that_exists_is_kept(exported):
    report, path, _ = exported
    before = path.read_text()
    with pytest.raises(FileExistsError, match=r"small\.html exists"):
        save_export_page(report, path)
    assert path.read_text() == before
    save_export_page(report, path.with_name("short.html"))  # without the model, which errs nowhere
    assert "Layers that err most" not in path.with_name("short.html").read_text()


def test_package_lists_its_files(model, tmp_path):
    report = export_coreml(model, tmp_path / "small.mlpackage")
    save_export_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for name in ("small.mlpackage", "Manifest.json", "weights/weight.bin", "small.mlpackage.json"):
        assert re.search(rf"<td>[\w/.]*{re.escape(name)}</td><td class=\"number\">[\d.,]+ (MB|bytes)", page)
    # On a narrow screen only the differences, seven columns, are to be scrolled: the sizes of the files are seen.
    facts, differences, *others = browser.measure(tmp_path / "page.html", tmp_path, 400)["scrolled"]
    assert (facts, differences, any(others)) == (False, True, False)


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1280, True)])
def test_in_a_browser(exported, tmp_path, width, dark):
    _, path, _ = exported
    pixels, complaints = browser.look(path, tmp_path, width, dark)
    assert complaints == []
    assert np.median(pixels) < 60 if dark else np.median(pixels) > 200
    contrast = np.abs(pixels.astype(int) - np.median(pixels, axis=(0, 1))).max(-1)
    assert 0.01 < (contrast > 120).mean() < 0.3
    measured = browser.measure(path, tmp_path, width)
    assert (measured["width"], measured["pictures"]) == (width, 1)
    headings = ["Differences from the Keras model", "Layers that err most", "Files", "Operations"]
    assert measured["headings"] == headings
