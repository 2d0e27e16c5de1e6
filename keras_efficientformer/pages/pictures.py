"""Makes the pictures of report pages: SVG for light and dark, thumbnails as data URIs. Room: pages."""

import base64
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

# matplotlib has no colour that means "the page's text": this one, which nobody else draws with, is replaced by it.
TEXT_COLOUR = "#0a0b0c"
TEXT_SETTINGS = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
STYLE: dict[Any, Any] = dict.fromkeys(TEXT_SETTINGS, TEXT_COLOUR) | {
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "svg.fonttype": "none",  # letters, in the reader's fonts, and not their outlines
    "svg.hashsalt": "keras-efficientformer",  # the same names of parts in every process
    "font.family": "sans-serif",
}
THUMBNAIL_SIDE = 160
JPEG_QUALITY = 80


def svg(draw: Callable[[], Any], description: str) -> Any:
    """A picture of matplotlib's as SVG to stand in a page, as `markupsafe.Markup`.

    Args:
        draw: makes the `Figure`.
        description: what it shows, for those who do not see it.
    """
    import matplotlib
    from markupsafe import Markup, escape

    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        # Without the metadata, which name the time and matplotlib's version.
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        draw().savefig(buffer, format="svg", bbox_inches="tight", metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(TEXT_COLOUR, "currentColor")
    # The names of groups are the same in every picture, and nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1))


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """An image, float or integer array (height, width, 3) in 0..255, as uint8 of at most 160 pixels on each side."""
    image = Image.fromarray(np.asarray(pixels).astype("uint8"))
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return np.asarray(image)


def jpeg_uri(pixels: np.ndarray) -> str:
    """An image, uint8 array (height, width, 3), as the data URI of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
