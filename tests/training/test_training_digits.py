"""README's example of fine-tuning, shortened: fewer digits and epochs; `benchmarks/digits.py` runs it whole."""

import sys

import pytest
from project import ROOT

sys.path.append(str(ROOT / "benchmarks"))


def test_digits(tmp_path):
    """The pretrained backbone makes 400 digits enough for much more than chance (10%)."""
    pytest.importorskip("sklearn")
    import digits

    report = digits.train(digits.write_digits(tmp_path / "digits", 400), tmp_path / "run", epochs=3)
    assert report.scores.top1 >= 0.7
    assert report.labels == tuple("0123456789")
