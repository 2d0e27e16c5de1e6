"""Finds the photographs that a person names, and reads them: files, folders, patterns, URLs. Room: top level."""

import glob
import http.client
import io
import os
import string
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from keras_efficientformer.errors import first_line
from keras_efficientformer.imagenet import load_image
from keras_efficientformer.images import find_images, image_suffixes

STANDARD_INPUT = "-"
SCHEMES = ("http://", "https://")
MAX_DOWNLOAD = 50_000_000  # bytes
DOWNLOAD_SECONDS = 30


def find_photographs(arguments: Iterable[str]) -> list[str]:
    """What the arguments stand for: paths of files, URLs and "-", each once, in their order.

    Args:
        arguments: files, folders (all images in them and below), patterns such as "*.jpg" or "**/*.png", http and
            https URLs, and "-" for an image on standard input; "~" is the home folder.

    Raises:
        FileNotFoundError: there is no such file, or a pattern fits none.
        ValueError: a folder holds no images.
    """
    return list(dict.fromkeys(name for argument in arguments for name in _expanded(argument)))


def _expanded(argument: str) -> list[str]:
    if argument == STANDARD_INPUT or argument.startswith(SCHEMES):
        return [argument]
    path = Path(os.path.expanduser(argument))
    if path.is_dir():
        return list(map(str, find_images(path)))
    if path.exists():
        return [str(path)]
    matches = sorted(glob.glob(str(path), recursive=True))
    found = [name for name in matches if Path(name).suffix.lower() in image_suffixes()]
    if not found:
        what = "fits no image" if glob.has_magic(argument) else "does not exist"
        raise FileNotFoundError(f"{argument} {what}.")
    return found


def read_photograph(name: str) -> np.ndarray:
    """One of `find_photographs`' as an RGB image, uint8 (height, width, 3) in 0..255.

    Raises:
        ImageError: it is no image, or damaged.
        OSError: it cannot be read or downloaded, takes longer than 30 s, or has more than 50 MB.
    """
    if name == STANDARD_INPUT:
        if sys.stdin is None:
            raise OSError("Standard input is closed, and no image can be read from it.")
        return load_image(_Named(sys.stdin.buffer.read(), "standard input"))
    return load_image(_Named(_download(name), name)) if name.startswith(SCHEMES) else load_image(name)


class _Named(io.BytesIO):
    """Bytes of an image, with the name that an error calls it by."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def _quoted(url: str) -> str:
    """The URL as browsers send it: spaces and letters beyond ASCII, of its path and query, in percents."""
    parts = urllib.parse.urlsplit(url)
    # "%" stays: what is quoted already is not quoted again.
    path, query = (urllib.parse.quote(part, safe="%" + string.punctuation) for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit(parts._replace(path=path, query=query, fragment=""))


def _download(url: str) -> bytes:
    end = time.monotonic() + DOWNLOAD_SECONDS
    content = bytearray()
    try:
        # Many servers refuse urllib's own name.
        request = urllib.request.Request(_quoted(url), headers={"User-Agent": "keras-efficientformer"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_SECONDS) as response:
            while part := response.read1():
                content += part
                if len(content) > MAX_DOWNLOAD:
                    raise OSError(f"{url} has more than {MAX_DOWNLOAD / 1e6:.0f} MB: download it yourself.")
                if time.monotonic() > end:
                    raise OSError(f"{url} takes more than {DOWNLOAD_SECONDS} s: download it yourself.")
    # A URL that is none is a ValueError.
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        raise OSError(f"{url} could not be downloaded: {first_line(error)}") from error
    return bytes(content)
