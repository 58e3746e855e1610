"""``make bench``: all figures in one run, as a table and in build/bench.json (docs/benchmarks.md)."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import time
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from tests.bench.figures import BenchError, Row

OUTPUT = Path(__file__).parents[2] / "build" / "bench.json"
PARTS = {
    "filter": "tests.bench.filtering",
    "scan": "tests.bench.scanning",
    "verdicts": "tests.bench.verdicts",
    "memory": "tests.bench.memory",
    "agent": "tests.bench.agent",
    "scheduling": "tests.bench.scheduling",
    "drain": "tests.bench.drain",
}
"""Name of a part and its module, whose ``measure()`` gives its rows; imported late, so that one that is
broken leaves the others' figures."""


def main() -> int:
    """Run all parts, or those named as arguments; 1 when a part failed or missed its goal."""
    chosen = sys.argv[1:] or list(PARTS)
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        print(f"bench: no part named {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    # gRPC reports the agent's orderly end as news otherwise; it reads this when it is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    rows: list[Row] = []
    problems: dict[str, str] = {}
    for name in chosen:
        print(f"bench: {name} …", file=sys.stderr, flush=True)
        start = time.monotonic()
        try:
            rows += importlib.import_module(PARTS[name]).measure()
        except Exception as problem:
            told = str(problem) if isinstance(problem, BenchError) else f"{type(problem).__name__}: {problem}"
            problems[name] = told
        print(f"bench: {name} took {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    _print(rows)
    _write(rows, problems)
    missed = [
        f"{row.name}: {row.value:.1f} {row.unit}, the goal is {row.demand}"
        for row in rows
        if row.met is False
    ]
    for name, told in problems.items():
        print(f"bench: part {name} failed: {told}", file=sys.stderr)
    for told in missed:
        print(f"bench: goal not met: {told}", file=sys.stderr)
    return 1 if problems or missed else 0


def _print(rows: list[Row]) -> None:
    table = Table("figure", "value", "unit", "ratio", "to", "goal")
    for column in (1, 3):
        table.columns[column].justify = "right"
    for row in rows:
        goal = "" if row.met is None else f"{row.demand}: {'met' if row.met else 'NOT met'}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        value = f"{row.value:,.0f}" if row.value >= 1000 else f"{row.value:.2f}"
        table.add_row(row.name, value, row.unit, ratio, row.baseline, goal)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def _write(rows: list[Row], problems: dict[str, str]) -> None:
    OUTPUT.parent.mkdir(exist_ok=True)
    said = {
        "machine": {
            "cores": os.cpu_count(),
            "architecture": platform.machine(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "rows": [
            {**msgspec.to_builtins(row), **({} if row.met is None else {"met": row.met})} for row in rows
        ],
        "problems": problems,
    }
    OUTPUT.write_bytes(msgspec.json.format(msgspec.json.encode(said), indent=2) + b"\n")
    print(f"written to {OUTPUT.relative_to(Path.cwd()) if OUTPUT.is_relative_to(Path.cwd()) else OUTPUT}")


if __name__ == "__main__":
    sys.exit(main())
