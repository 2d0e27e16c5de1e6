"""Writes the results in benchmarks/devices/ into the READMEs of the kits, between their `devices` markers.

python benchmarks/devices_table.py [--check]
"""

import argparse
import dataclasses
import re
from pathlib import Path

from keras_efficientformer.deploy.benchmark.reports import DeviceReport, markdown_table, read_reports
from keras_efficientformer.files import finished_file

ROOT = Path(__file__).resolve().parents[1]
READMES = {ROOT / "tflite" / "README.md": ".tflite", ROOT / "coreml" / "README.md": ".mlpackage"}
MARKERS = re.compile(r"(<!-- devices:begin -->\n).*?(<!-- devices:end -->)", re.DOTALL)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a README is not up to date")
    check = parser.parse_args().check
    reports = read_reports(ROOT / "benchmarks" / "devices")
    for readme, suffix in READMES.items():
        if not readme.exists():
            continue
        text = readme.read_text(encoding="utf-8")
        updated = with_table(text, reports, suffix)
        if updated == text:
            continue
        if check:
            raise SystemExit(f"{readme} is not up to date: run python benchmarks/devices_table.py")
        with finished_file(readme, overwrite=True) as partial:
            partial.write_text(updated, encoding="utf-8")


def with_table(text: str, reports: list[DeviceReport], suffix: str) -> str:
    """A README's text with the results of files of one kind between its markers; without markers as it was."""
    table = markdown_table(
        dataclasses.replace(report, results=tuple(result for result in report.results if suffix in result.file))
        for report in reports
    )
    return MARKERS.sub(lambda found: found[1] + table + found[2], text)


if __name__ == "__main__":
    main()
