"""The page of a fine-tuning run: what it says, that names of files stay names, and how a browser shows it."""

import json
import os
import re

import browser
import numpy as np
import pytest
import training_images

from keras_efficientformer.training import FineTuneConfig, finetune
from keras_efficientformer.training.data.batches import Batch, one_hot
from keras_efficientformer.training.worst_images import IMAGES_KEPT, WorstImages

NASTY = "<script>document.title=1<script>.png"  # a slash cannot stand in a file's name
CLASSES = ("<b>blue", "green", "red")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short run with unnamely named images, some of which are mistaken."""
    folder = tmp_path_factory.mktemp("page")
    images = training_images.make_folder(folder / "images", dict.fromkeys(training_images.COLOURS, 16), noise=250)
    (images / "blue").rename(images / CLASSES[0])
    for path in [*images.rglob("*.png")][::4]:
        path.rename(path.with_name(path.stem + NASTY))
    for path in [*(images / "red").iterdir()]:  # bytes that are no UTF-8
        os.rename(path, os.path.join(os.fsencode(path.parent), b"\xe9" + os.fsencode(path.name)))
    config = FineTuneConfig(epochs=2, freeze_epochs=0, batch_size=8, validation_split=0.5, label_smoothing=0.1)
    finetune(training_images.make_model(), images, folder / "run", config=config, verbose=False)
    return folder / "run"


@pytest.fixture(scope="module")
def page(run):
    return (run / "report.html").read_text()


def test_says_what_the_report_says(run, page):
    report = json.loads((run / "report.json").read_text())
    assert f"{report['scores']['top1']:.2%} of the validation images are right" in page
    assert f"best epoch {report['best_epoch']} of 2" in page
    assert "harder by random crops, random flips, label smoothing of 0.1;" in page
    assert "predicted" in page
    assert page.count("<svg") == 4
    # The confusion matrix, with its counts: all 24 validation images.
    matrix = page[page.index('aria-label="confusion matrix"') :]
    matrix = matrix[: matrix.index("</svg>")]
    cells = [int(number) for number in re.findall(r">(\d+)</text>", matrix)]
    assert (len(cells), sum(cells)) == (9, 24)
    worst = page[page.index("Worst images") :]
    assert worst.count("data:image/jpeg;base64,") == 24  # no more than there are
    mistakes = page[page.index("Most confident mistakes") : page.index("Worst images")]
    assert mistakes.count("data:image/jpeg;base64,") == round(24 * (1 - report["scores"]["top1"])) > 0


def test_needs_nothing_else(run, page):
    assert str(run.parent) not in page
    assert not re.search(r'(?:href|src|action|url\()\s*=?\s*"?(?:https?:|//|/)', page)
    targets = set(re.findall(r'(?:src|href)="([^#"][^",]*)', page))
    assert targets == {"data:image/jpeg;base64", "data:image/png;base64"}


def test_names_are_no_html(page):
    assert "<script" not in page
    assert "<b>blue" not in page
    assert "&lt;script&gt;document.title=1&lt;script&gt;.png" in page
    assert "&lt;b&gt;blue" in page
    assert r"red/\udce9" in page


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_in_a_browser(run, tmp_path, width, dark):
    report = run / "report.html"
    pixels, complaints = browser.look(report, tmp_path, width, dark)
    assert complaints == []
    assert pixels.shape == (900, width, 3)
    assert np.median(pixels) < 60 if dark else np.median(pixels) > 200  # the background
    # Something stands on it: text that can be read, and curves in their colours.
    contrast = np.abs(pixels.astype(int) - np.median(pixels, axis=(0, 1))).max(-1)
    assert 0.01 < (contrast > 120).mean() < 0.3
    assert (np.abs(pixels.astype(int) - (255, 127, 14)).max(-1) < 12).sum() > 50
    measured = browser.measure(report, tmp_path, width)
    assert measured["width"] == width  # nothing makes the page wider
    assert len(measured["images"]) > 24
    assert min(measured["images"]) == 40
    assert measured["pictures"] == 4


def test_a_browser_would_complain(run, page, tmp_path):
    """Of a script and of an image from elsewhere, neither of which the page would let happen."""
    broken = tmp_path / "broken.html"
    broken.write_text(page.replace("<h1>", '<script>1</script><img src="http://example.invalid/a.png"><h1>'))
    _, complaints = browser.look(broken, tmp_path, 400)
    assert len(complaints) == 2
    assert all("Content Security Policy" in complaint for complaint in complaints)


def test_without_validation(tmp_path):
    class Loader:
        def __len__(self):
            return 1

        def __iter__(self):
            yield training_images.pixels("red", 8, size=(40, 40)), np.arange(8) % 3

    config = FineTuneConfig(epochs=1, freeze_epochs=0)
    arguments = {"labels": CLASSES, "config": config, "verbose": False}
    finetune(training_images.make_model(), Loader(), tmp_path / "run", **arguments)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Not validated: the model is that of the last epoch" in page
    assert page.count("<svg") == 3
    assert "Worst images" not in page


@pytest.mark.parametrize("batch_size", [7, 100])
def test_the_worst_of_all_batches_are_kept(batch_size):
    rng = np.random.default_rng(0)
    number = 100
    probabilities = rng.dirichlet(np.ones(4), number)
    true, predicted = rng.integers(0, 4, number), probabilities.argmax(1)
    images = np.zeros((number, 8, 8, 3), "float32")
    images[..., 0] = np.arange(number)[:, None, None]
    worst = WorstImages()
    for start in range(0, number, batch_size):
        part = slice(start, start + batch_size)
        worst.look(Batch(images[part], one_hot(true[part], 4), None), probabilities[part])
    own, highest = probabilities[np.arange(number), true], probabilities.max(1)
    wrong = [place for place in np.argsort(-highest) if true[place] != predicted[place]]
    assert [image.place for image in worst.confident] == wrong[:IMAGES_KEPT]
    assert [image.place for image in worst.worst] == [*np.argsort(own)[:IMAGES_KEPT]]
    for image in [*worst.confident, *worst.worst]:
        place = image.place
        assert image.true == ((true[place], own[place]),)
        assert image.predicted == ((predicted[place], highest[place]),)
        assert image.pixels[0, 0, 0] == place


def test_the_worst_of_images_with_several_labels():
    """The first is right, the second has a label too many, the third one too many and one too few."""
    answers = np.array([[0.9, 0.2, 0.8], [0.6, 0.7, 0.1], [0.95, 0.1, 0.4]])
    labels = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1]], "float32")
    worst = WorstImages(multi_label=True)
    worst.look(Batch(np.zeros((3, 8, 8, 3), "float32"), labels, None), answers)
    assert [image.place for image in worst.confident] == [2, 1]
    assert [image.place for image in worst.worst] == [2, 1, 0]
    assert worst.confident[0].predicted == ((0, 0.95),)
    assert worst.confident[0].true == ((2, 0.4),)
    assert worst.confident[1].confidence == pytest.approx(0.6)
    assert worst.worst[2].loss == pytest.approx(-np.log([0.9, 0.8, 0.8]).mean())
