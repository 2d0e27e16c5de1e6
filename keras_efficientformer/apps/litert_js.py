"""Fetches LiteRT.js from npm, in the release and with the hashes of the page's lock file. Room: apps."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keras_efficientformer.errors import first_line

PAGE = Path(__file__).with_name("web")
LOCK = "package-lock.json"
CORE = "@litertjs/core"
# {package: the folder of a page that gets it}; only what browsers load is taken.
PACKAGES = {CORE: "core", "@litertjs/wasm-utils": "wasm-utils"}
NEEDED = ("*.js", "*.wasm")
FETCH_SECONDS = 600


@contextmanager
def node_modules(folder: Path | None) -> Iterator[Path]:
    """A folder `node_modules` with LiteRT.js: the one that is given, checked, or a fresh one, removed afterwards.

    Raises:
        ValueError: the folder that is given has no LiteRT.js, or another release of it.
        OSError: npm is not installed, or cannot fetch it.
    """
    if folder is not None:
        _check(folder)
        yield folder
        return
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            "LiteRT.js comes from npm, which is not installed: install Node.js (https://nodejs.org), which brings it, "
            "or run `npm ci` elsewhere and pass --node-modules."
        )
    with tempfile.TemporaryDirectory() as place:
        for name in ("package.json", LOCK):
            shutil.copy(PAGE / name, place)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        try:
            subprocess.run(command, cwd=place, check=True, capture_output=True, text=True, timeout=FETCH_SECONDS)
        except subprocess.CalledProcessError as error:
            raise OSError(f"npm could not fetch LiteRT.js: {_of_npm(error.stderr)}.") from error
        except subprocess.TimeoutExpired as error:
            raise OSError(f"npm has not fetched LiteRT.js in {FETCH_SECONDS} s: is there a connection?") from error
        yield Path(place) / "node_modules"


def copy_litert_js(modules: Path, target: Path) -> None:
    """Copies what a page needs of LiteRT.js from `node_modules` into a new folder."""
    for package, name in PACKAGES.items():
        source = modules / package
        for path in sorted(path for pattern in NEEDED for path in source.rglob(pattern)):
            copy = target / name / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def locked_version() -> str:
    """The release of LiteRT.js that the lock file names."""
    lock: dict[str, Any] = json.loads((PAGE / LOCK).read_text(encoding="utf-8"))
    return str(lock["packages"][f"node_modules/{CORE}"]["version"])


def _check(folder: Path) -> None:
    package = folder / CORE / "package.json"
    if not package.is_file():
        raise ValueError(f"{folder} holds no {CORE}: --node-modules is the folder that `npm ci` fills.")
    found, wanted = json.loads(package.read_text(encoding="utf-8"))["version"], locked_version()
    if found != wanted:
        raise ValueError(f"{folder} holds {CORE} {found}, and this page is made for {wanted}: run `npm ci`.")


def _of_npm(log: str) -> str:
    """What npm says went wrong, in one line: the first that is no code."""
    lines = [line.removeprefix("npm error").strip() for line in log.splitlines() if line.startswith("npm error")]
    return first_line(next((line for line in lines if line and not line.startswith(("code ", "errno "))), log))
