"""Figures that tests measure in passing: printed at the end, never asserted."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


class Figures:
    """What was measured, in the order it was."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []

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

    def table(self) -> str:
        """All of it, aligned."""
        width = max(len(name) for name, _ in self.rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.rows)


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
