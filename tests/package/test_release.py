"""A release: one version everywhere, and distributions that the tools of RELEASE.md accept."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import yaml
from project import HANG, ROOT

import keras_efficientformer

SCRIPTS = Path(sys.executable).parent


def test_one_version():
    version = keras_efficientformer.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    heading = rf"^## (\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d|\[Unreleased\] - {re.escape(version)})$"
    assert len(re.findall(heading, (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)) == 1


def test_changelog_keeps_its_form():
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    kinds = {line for line in lines if line.startswith("### ")}
    assert kinds <= {f"### {kind}" for kind in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")}


def test_sdist_builds_the_package_and_holds_nothing_else(distributions):
    sdist, _ = distributions
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    version = keras_efficientformer.__version__
    assert sdist.name == f"keras_efficientformer-{version}.tar.gz"
    assert {name.split("/")[0] for name in names - {""}} == {
        "LICENSE",
        "MANIFEST.in",
        "PKG-INFO",
        "efficientformer_command.py",
        "README.md",
        "keras_efficientformer",
        "keras_efficientformer.egg-info",
        "pyproject.toml",
        "setup.cfg",
        "setup.py",
    }


def test_tools_accept_the_distributions(distributions):
    subprocess.run([SCRIPTS / "twine", "check", "--strict", *distributions], check=True, timeout=HANG)
    subprocess.run([SCRIPTS / "check-wheel-contents", distributions[1]], check=True, timeout=HANG)
