"""Some mutated files of every kind, with fixed seeds: `support/fuzz.py` makes and reads any number. Room: tests."""

import os
import subprocess
import sys

import forked
import fuzz
import pytest
from project import ROOT


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    fuzz.make_seeds(folder)
    return folder


def test_mutated_files(seeds):
    """Every file ends in a result or in one clear error."""
    python = forked.programs(dict(os.environ)) / "python"
    outcomes, wrong = fuzz.fuzz(list(fuzz.KINDS), seeds, files=25, python=python)
    assert wrong == {}
    assert sum(outcomes.values()) == 25 * len(fuzz.KINDS)


def test_what_is_wrong_is_found(seeds):
    """A reader that raises something else is told."""
    program = "import fuzz; fuzz.KINDS['labels.txt'] = lambda path: 1 / 0; fuzz.main()"
    command = [sys.executable, "-c", program, "--batch", "labels.txt", str(seeds), "0", "2"]
    found = subprocess.run(command, cwd=ROOT / "tests" / "support", capture_output=True, text=True, check=True).stdout
    assert found.count("ZeroDivisionError: division by zero") == 2
