"""Reads the tables of operations that LiteRT's profiler prints. Room: deploy/benchmark.

Phone and computer print the same ones. The format is that of `StatsCalculator::GetOutputString` and
`ProfileSummaryDefaultFormatter` (LiteRT, tflite/profiling/profile_summary_formatter.cc): a table "Run Order" with a row
for each operation, one more for what happens inside of delegates, and summaries of both, which are not needed.
"""

import collections
import re
import statistics
from collections.abc import Mapping, Sequence

from keras_efficientformer.deploy.benchmark.reports import Cost

TABLE_TITLE = re.compile(r"=+ (Profiling Info|Run Order|Top by Computation Time|Summary by node type)")
# Tabs part the columns on a phone, and spaces in the C API's summary; a name has single spaces inside.
COLUMNS = re.compile(r"\s*\t\s*|\s{2,}")
NAMES = re.compile(r"\[[^]]+\]")
INITIALIZATION_TITLE = "Profiling Info for Benchmark Initialization"
RUNS_TITLE = "Operator-wise Profiling Info for Regular Benchmark Runs"
INSIDE_TITLE = "Delegate internal"


def read_op_profile(text: str, runs: int = 1) -> tuple[Cost, ...]:
    """The operations' costs in milliseconds, equal ones added up, the largest first.

    Args:
        text: what benchmark_model printed with --enable_op_profiling, or `LiteRtGetProfileSummary` returned.
        runs: over how many inferences the tables add up "times called"; 1 where they are per inference.

    Raises:
        ValueError: the text has no such table.
    """
    text = text.partition(RUNS_TITLE)[2] or text.partition(INITIALIZATION_TITLE)[0]
    graph, _, inside = text.partition(INSIDE_TITLE)
    rows = _run_order(graph)
    if inside:  # the rows of the delegates themselves are the sum of those
        rows = [row for row in rows if "Delegate" not in row[0]] + _run_order(inside)
    rows = [row for row in rows if row[2]]  # what was done once, before the runs, bears the number 0
    if not rows:
        raise ValueError(f"No table of operations was found in the profiler's output: {text.strip()[:200]!r}")
    calls: dict[str, int] = collections.defaultdict(int)
    amounts: dict[str, float] = collections.defaultdict(float)
    for name, average, called in rows:
        calls[name] += called // runs
        amounts[name] += average * called / runs
    return _sorted_costs(calls, amounts)


def median_profile(profiles: Sequence[tuple[Cost, ...]]) -> tuple[Cost, ...]:
    """The profile whose amounts are the medians of others', of the same file: one interruption does not show."""
    amounts = collections.defaultdict(list)
    for cost in (cost for profile in profiles for cost in profile):
        amounts[cost.name].append(cost.amount)
    calls = {cost.name: cost.calls for cost in profiles[0]}
    return _sorted_costs(calls, {name: statistics.median(values) for name, values in amounts.items()})


def _sorted_costs(calls: Mapping[str, int | None], amounts: Mapping[str, float]) -> tuple[Cost, ...]:
    """The costs of {name: calls} and {name: amount}, the largest amount first."""
    total = sum(amounts.values())
    names = sorted(amounts, key=lambda name: -amounts[name])
    return tuple(Cost(name, calls[name], amounts[name], amounts[name] / total) for name in names)


def _run_order(text: str) -> list[tuple[str, float, int]]:
    """(kind, average milliseconds of a call, calls) of each row."""
    rows: list[tuple[str, float, int]] = []
    header: list[str] | None = None
    for line in text.splitlines():
        if title := TABLE_TITLE.search(line):
            header = [] if title[1] == "Run Order" else None
        elif header is not None:
            cells = COLUMNS.split(line.strip())
            if "[avg ms]" in line:
                header = NAMES.findall(line)
            elif len(cells) >= len(header) > 0:
                row = dict(zip(header, cells, strict=False))
                kind = row["[node type]"].removeprefix("Delegate/")
                rows.append((kind, float(row["[avg ms]"]), int(row["[times called]"])))
    return rows
