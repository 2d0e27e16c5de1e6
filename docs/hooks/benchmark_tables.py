"""Tables of the results in benchmarks/results/, which the scripts of the same names in benchmarks/ have measured.

Nothing here knows a script. A dictionary of plain values is a row, the names above it are the row's, and rows of one
depth are a table; so a new file of results is on the page as it is.
"""

import ast
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from repository import ROOT

BENCHMARKS = ROOT / "benchmarks"
# Long lists within a row: the file itself has them.
LEFT_OUT = ("kinds", "kernels", "left", "versions", "faults", "made_by", "refused")
# These are plain values in some files, and long lists in others.
LEFT_OUT_IF_LONG = ("operations", "cpu_seconds")
# Rows with a name more than they need become one row, with a column for each of those names and these values in it.
IN_ONE_ROW = {
    "old_runtimes": ("from_keras", "same_top1_as_keras"),
    "newer_cpus": ("million_instructions",),
    "startup": ("cpu_seconds", "peak_mb"),
    "coreml_operations": ("operations", "bytes"),
}
WORDS = {
    "top1": "top-1",
    "bytes": "MB",
    "mb": "MB",
    "macs": "MACs",
    "core_ml": "Core ML",
    "ms": "ms",
    "p90_ms": "p90, ms",
}

Row = tuple[tuple[str, ...], dict[str, Any]]


def all_results() -> str:
    """A section for each file of results: what its script says it measures, its facts and its tables."""
    return "\n".join(_section(path) for path in sorted((BENCHMARKS / "results").glob("*.json")))


def figure(name: str, place: str) -> str:
    """One figure of a file of results, in words: `modes/int8/bytes` of tflite_modes is "12.7 MB"."""
    value = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    for key in place.split("/"):
        value = value[key]
    key = place.rpartition("/")[2]
    return in_words(key, value) + (" MB" if _is_size(key) else "")


def in_words(key: str, value: Any) -> str:
    """A value of a row; bytes are given in MB, several measurements as their median, a list of names as its length."""
    if isinstance(value, list):
        if value and all(isinstance(item, int | float) for item in value):
            return in_words(key, statistics.median(value))
        return str(len(value))
    if _is_size(key):
        return f"{value / 1e6:,.1f}"
    if isinstance(value, float):
        if "instructions" in key or abs(value) >= 100:
            return f"{value:,.1f}"
        return f"{value:.2f}" if abs(value) >= 1 or not value else f"{value:.2g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else str(value)


def _is_size(key: str) -> bool:
    return key == "bytes" or key.endswith("_bytes")


def _name(key: str) -> str:
    """What a key of JSON is called in a table."""
    return WORDS.get(key) or " ".join(WORDS.get(word, word) for word in key.split("_"))


def _section(path: Path) -> str:
    text = ast.get_docstring(ast.parse((BENCHMARKS / f"{path.stem}.py").read_text())) or ""
    first, _, rest = text.partition("\n")
    results = json.loads(path.read_text())
    title = first.partition(":")[0].rstrip(".")
    parts = [
        f"## {title} {{ #{path.stem} }}",
        first,
        rest.strip(),
        *_facts(results, path),
        *_tables(results, path.stem),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(results: Mapping[str, Any], path: Path) -> Iterator[str]:
    """What the file says of itself, and where it is."""
    facts = {_name(key): in_words(key, value) for key, value in results.items() if not isinstance(value, dict)}
    for key, value in results.items():
        if isinstance(value, dict) and all(not isinstance(item, dict) for item in value.values()):
            facts[_name(key)] = ", ".join(f"{name} {in_words(name, item)}" for name, item in value.items())
    lines = [f"- {name}: {words}" for name, words in facts.items()]
    yield "\n".join([*lines, f"- all of it: [{path.name}](benchmarks/results/{path.name})"])


def _tables(results: Mapping[str, Any], name: str) -> Iterator[str]:
    groups: dict[tuple[str, int], list[Row]] = {}
    # Where the file is one table, its rows have no name in common.
    one_table = all(isinstance(value, dict) for value in results.values())
    for names, row in _rows({"": results} if one_table else results, ()):
        groups.setdefault((names[0], len(names)), []).append((names[1:], row))
    # A group of one row is a fact, which stands above.
    for (group, depth), rows in groups.items():
        if depth > 1 and name in IN_ONE_ROW:
            title = f"{_name(group)} ({', '.join(map(_name, IN_ONE_ROW[name]))})"
            yield _table(title, _in_one_row(rows, IN_ONE_ROW[name]))
        elif depth > 1:
            yield _table(_name(group), rows)


def _rows(values: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[Row]:
    """(names above it, plain values) of every dictionary that has plain values."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict) and key not in LEFT_OUT}
    if plain and names:
        yield names, plain
    for key, value in values.items():
        if isinstance(value, dict) and key not in LEFT_OUT and not (key in LEFT_OUT_IF_LONG and plain):
            yield from _rows(value, (*names, key))


def _in_one_row(rows: list[Row], keys: tuple[str, ...]) -> list[Row]:
    joined: dict[tuple[str, ...], dict[str, Any]] = {}
    for names, row in rows:
        found = [in_words(key, row[key]) + (" MB" if _is_size(key) else "") for key in keys if key in row]
        joined.setdefault(names[:-1], {})[names[-1]] = ", ".join(found) or next(iter(row.values()))
    return list(joined.items())


def _table(title: str, rows: list[Row]) -> str:
    """Markdown, under a line with the title and the names that all rows have."""
    depth = len(rows[0][0])
    same = [index for index in range(depth) if len(rows) > 1 and len({names[index] for names, _ in rows}) == 1]
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    title = ", ".join(filter(None, [title, *(_name(rows[0][0][index]) for index in same)]))
    shown = [index for index in range(depth) if index not in same]
    lines = [f"**{title}**\n"] if title else []
    lines.append(_line([*("" for _ in shown), *map(_name, columns)]))
    lines.append("|" + "---|" * len(shown) + "---:|" * len(columns))
    for names, row in rows:
        cells = [in_words(key, row[key]) if key in row else "" for key in columns]
        lines.append(_line([*(names[index] or "none" for index in shown), *cells]))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
