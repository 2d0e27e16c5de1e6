"""The project as it is distributed: an sdist and a wheel, built once for all tests of this folder."""

import email
import shutil
import subprocess
import sys
import zipfile

import pytest
from project import HANG, ROOT


@pytest.fixture(scope="session")
def distributions(tmp_path_factory):
    """(sdist, wheel) of a copy of the project, so that nothing is left in it and no older build gets into them.

    As `make dist` does, the wheel is built from the sdist, but with the setuptools that is installed.
    """
    source, target = tmp_path_factory.mktemp("source") / "project", tmp_path_factory.mktemp("dist")
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "*.safetensors")
    shutil.copytree(ROOT, source, ignore=unwanted)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", target, source]
    subprocess.run(command, check=True, capture_output=True, timeout=HANG)
    (sdist,), (wheel,) = target.glob("*.tar.gz"), target.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="session")
def wheel(distributions):
    return distributions[1]


@pytest.fixture(scope="session")
def metadata(wheel):
    """The wheel's METADATA, as an email message."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))
