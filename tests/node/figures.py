"""Figures that tests measure in passing: printed and written at the end, never asserted."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

OUTPUT = Path(__file__).parents[2] / "build" / "node.json"


class Figures:
    """What was measured, in the order it was."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []
        self._spreads: dict[str, dict[str, float]] = {}

    def add(self, name: str, value: str) -> None:
        """One figure with its unit in `value`."""
        self.rows.append((name, value))

    def spread(self, name: str, seconds: Sequence[float]) -> None:
        """Measurements of one duration: number, median, 99th percentile (nearest rank) and maximum."""
        ordered = sorted(seconds)
        p99 = ordered[-(-99 * len(ordered) // 100) - 1]
        median = statistics.median(ordered)
        text = f"n {len(ordered)}, median {_time(median)}, p99 {_time(p99)}, max {_time(ordered[-1])}"
        self.add(name, text)
        numbers = (len(ordered), median, p99, ordered[-1])
        self._spreads[name] = dict(zip(("n", "median", "p99", "max"), numbers, strict=True))

    def table(self) -> str:
        """All of it, aligned."""
        width = max(len(name) for name, _ in self.rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.rows)

    def write(self, output: Path = OUTPUT) -> None:
        """All of it as JSON: ``name`` and ``value`` as in the table; ``seconds`` has a spread's numbers."""
        rows = [
            {"name": name, "value": value}
            | ({"seconds": self._spreads[name]} if name in self._spreads else {})
            for name, value in self.rows
        ]
        output.parent.mkdir(exist_ok=True)
        output.write_text(json.dumps(rows, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
