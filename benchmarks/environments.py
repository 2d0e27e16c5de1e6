"""Environments of other Pythons and packages, in which scripts of this folder run what they measure."""

import shutil
import subprocess
import sys


def make_environment(folder, version, *installs):
    """The Python of an environment that is made anew.

    Args:
        folder: where; what is there goes.
        version: of Python, as in the command's name: "3.11".
        *installs: arguments of `pip install`, one call for each.
    """
    command = f"python{version}"
    if not shutil.which(command):
        sys.exit(f"{folder.name} needs Python {version}, and there is no {command} on the PATH.")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([command, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    for arguments in installs:
        # Isolated, for pip takes what PYTHONPATH leads to for installed.
        command = [str(python), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, *arguments], check=True)
    return python
