"""A release: one version everywhere, and distributions that the tools of RELEASE.md accept."""

import email
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from project import HANG, ROOT

import keras_efficientformer

SCRIPTS = Path(sys.executable).parent
ADDRESS = "https://example.org/owner/project"


def test_one_version():
    version = keras_efficientformer.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    heading = rf"^## (\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d|\[Unreleased\] - {re.escape(version)})$"
    assert len(re.findall(heading, (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)) == 1


def test_one_address():
    (address,) = re.findall(r'^ADDRESS = "(.*)"$', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text()).get("repository-code", "") == address


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(README, METADATA) of a copy of the project that has an address and, in its README, an image."""
    source, target = tmp_path_factory.mktemp("published") / "project", tmp_path_factory.mktemp("metadata")
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "*.safetensors", "tests")
    shutil.copytree(ROOT, source, ignore=unwanted)
    setup, readme = source / "setup.py", source / "README.md"
    setup.write_text(re.sub(r'^ADDRESS = ".*"$', f'ADDRESS = "{ADDRESS}"', setup.read_text(), flags=re.MULTILINE))
    readme.write_text(f"[![Curves](weights/cifar10_curves.png)](weights/README.md#curves)\n{readme.read_text()}")
    program = f"from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel({str(target)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True, timeout=HANG)
    (file,) = target.glob("*.dist-info/METADATA")
    return readme.read_text(), email.message_from_bytes(file.read_bytes())


def test_published_page_has_no_relative_link(published):
    readme, metadata = published
    page = metadata.get_payload(decode=True).decode()
    targets = re.findall(r"\]\(([^)]+)\)", page)
    assert len(targets) > 10
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    version = keras_efficientformer.__version__
    assert (
        f"[![Curves]({ADDRESS}/raw/v{version}/weights/cifar10_curves.png)]({ADDRESS}/blob/v{version}/weights/" in page
    )
    # Nothing but links has changed, not even what looks like one in code.
    assert re.sub(rf"{ADDRESS}/(raw|blob)/v[\d.]+/", "", page).strip() == readme.strip()


def test_published_metadata_say_where_the_project_is(published):
    _, metadata = published
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert urls.keys() == {"Source", "Issues", "Changelog", "Documentation"}
    assert all(url.startswith(ADDRESS) for url in urls.values())
    assert "Private :: Do Not Upload" not in metadata.get_all("Classifier")


def test_nothing_without_an_address_can_be_uploaded(metadata):
    """PyPI refuses the classifier; the links of what it once has are never mended."""
    assert ("Private :: Do Not Upload" in metadata.get_all("Classifier")) == (metadata["Project-URL"] is None)


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
