"""Writes the comparison in benchmarks/results/modes.json into README.md, between its `modes` markers.

python benchmarks/modes.py [--check]

`efficientformer compare ... --output benchmarks/results` makes that file and the picture beside it.
"""

import argparse
import json
import re
from pathlib import Path

from keras_efficientformer.files import write_text

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
COMPARISON = ROOT / "benchmarks" / "results" / "modes.json"
MARKERS = re.compile(r"(<!-- modes:begin -->\n).*?(<!-- modes:end -->)", re.DOTALL)
HEADER = (
    "| mode | size | top-1 | below Keras | largest difference | ms here | Arm instructions | operations |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the README is not up to date")
    check = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    updated = with_modes(text, json.loads(COMPARISON.read_text(encoding="utf-8")))
    if check and updated != text:
        raise SystemExit("README.md is not up to date: run python benchmarks/modes.py")
    write_text(README, updated)


def with_modes(text: str, report: dict) -> str:
    """A text with a comparison between its markers: a table, what is recommended, and what it was measured with."""
    rows = "".join(row(result) for result in report["results"])
    advice = "".join(f"- {found['sentence']}\n" for found in report["recommendations"].values())
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    measured = (
        f"{report['images']:,} of {report['of']:,} images, calibrated on {report['calibrated_on']}; Keras "
        f"{report['keras_top1']:.2%}; {versions}; {report['date']}.\n"
    )
    return MARKERS.sub(lambda found: f"{found[1]}{HEADER}{rows}\n{advice}\n{measured}{found[2]}", text)


def row(result: dict) -> str:
    scores = result["scores"]
    cells = (
        f"`{result['mode']}`",
        f"{result['size'] / 1e6:.1f} MB",
        f"{scores['top1']:.2%}",
        f"{100 * scores['drop']:.2f} ± {100 * scores['error']:.2f}",
        f"{scores['largest_difference']:.1g}",
        "-" if result["milliseconds"] is None else f"{result['milliseconds']:.1f}",
        "-" if result["instructions"] is None else f"{result['instructions']:.1f} M",
        str(result["operations"]),
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    main()
