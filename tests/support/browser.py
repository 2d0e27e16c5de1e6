"""Opens pages in a real browser, Chromium without a window: what it shows, what it complains of, how wide it gets."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from project import HANG

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0")
# Opens a page in a frame of a width, and says in JSON what has become of it.
FRAME = """<!doctype html><iframe src="{url}" style="width: {width}px; height: 3000px; border: 0"></iframe><pre></pre>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  document.querySelector("pre").textContent = JSON.stringify({{
    width: page.documentElement.scrollWidth,
    images: [...page.images].map(image => image.naturalWidth),
    headings: [...page.querySelectorAll("h2")].map(heading => heading.textContent),
    scrolled: [...page.querySelectorAll(".scroll")].map(box => box.scrollWidth > box.clientWidth),
    pictures: page.querySelectorAll("svg").length,
  }});
}};
</script>"""


def find_browser():
    """The path of a browser; without one the test is skipped."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"needs a browser to look at pages with, one of {', '.join(NAMES)}: Debian's package chromium")
    return found


def _run(folder, *arguments):
    command = [find_browser(), *OPTIONS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)


def look(page, folder, width, dark=False):
    """(uint8 pixels (900, width, 3), what the page's console says) of an HTML file."""
    picture = folder / "screenshot.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    done = _run(folder, scheme, f"--window-size={width},900", f"--screenshot={picture}", page.as_uri())
    return np.asarray(Image.open(picture).convert("RGB")), re.findall(r"CONSOLE.*", done.stderr)


def measure(page, folder, width):
    """What becomes of an HTML file in a frame of so many pixels' width: the dictionary of `FRAME`."""
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(url=page.as_uri(), width=width))
    done = _run(folder, "--allow-file-access-from-files", "--dump-dom", frame.as_uri())
    return json.loads(re.search(r"<pre>(.+?)</pre>", done.stdout)[1])
