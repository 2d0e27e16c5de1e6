"""What report pages are made of: pictures for light and dark, thumbnails, templates that escape."""

import base64
import io
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from keras_efficientformer.pages.pictures import TEXT_COLOUR, jpeg_uri, svg, thumbnail
from keras_efficientformer.pages.render import require_page_tools, write_page

NASTY = '<script>alert("1")</script> & $x$'


def figure():
    made = Figure()
    axes = made.subplots()
    axes.plot([1, 2], label="a line")
    axes.set_title(NASTY, parse_math=False)
    axes.imshow(np.zeros((2, 2)))
    axes.legend()
    return made


def test_svg_is_part_of_a_page():
    picture = svg(figure, NASTY)
    root = ElementTree.fromstring(picture)
    assert root.get("aria-label") == NASTY
    assert NASTY in "".join(root.itertext())  # as text, and not as a script
    assert not root.findall(".//{*}script")
    # The text and the frame have the page's colour, light or dark, and nothing covers its background.
    assert picture.count("currentColor") > 10
    assert TEXT_COLOUR not in picture
    assert "#ffffff" not in picture
    # Nothing is asked for from elsewhere, and nothing tells when it was drawn.
    targets = re.findall(r'(?:href|src)="([^"]*)"', picture)
    assert targets
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
    assert "<metadata" not in picture
    assert svg(figure, NASTY) == picture


def test_thumbnails():
    pixels = np.zeros((400, 200, 3), "float32")
    pixels[..., 0] = 200
    small = thumbnail(pixels)
    assert (small.shape, small.dtype) == ((160, 80, 3), np.uint8)
    assert thumbnail(pixels[:20, :20]).shape == (20, 20, 3)
    head, _, content = jpeg_uri(small).partition(",")
    assert head == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert (image.format, image.size) == ("JPEG", (80, 160))
    np.testing.assert_allclose(np.asarray(image).mean((0, 1)), (200, 0, 0), atol=4)


def test_pages_name_all_that_they_need(tmp_path):
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="'title' is undefined"):
        write_page("run.html", tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_what_is_missing_is_one_line(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as caught:
        require_page_tools("train")
    assert str(caught.value) == f"A report's page needs {module}: pip install 'keras-efficientformer[train]'"
