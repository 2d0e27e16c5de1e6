"""What tests have from npm: packages by their lock files."""

import shutil
import subprocess
from pathlib import Path

import pytest
from project import HANG, ROOT


def npm_ci(folder: Path) -> Path:
    """Fills `node_modules` in a folder with a lock file; without npm or its registry the test is skipped."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs npm: Debian's packages nodejs and npm")
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG)
    if done.returncode:
        pytest.skip(f"needs npm's registry, which is not to be had: {done.stderr[-300:]}")
    return folder / "node_modules"


def fetch_litert_js(folder: Path) -> Path:
    """A folder `node_modules` with LiteRT.js, in an empty folder."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(ROOT / "keras_efficientformer" / "apps" / "web" / name, folder)
    return npm_ci(folder)
