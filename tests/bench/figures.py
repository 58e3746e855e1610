"""What a benchmark says: rows of figures, and how they are made of samples."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec


class BenchError(Exception):
    """A part of the benchmark cannot run or answers wrongly; says which, and what to do."""


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One figure.

    ``baseline`` names what ``ratio`` compares with, measured in the same run: ratios can be compared
    between machines, absolute values cannot. ``goal`` is an upper bound of ``value``, ``floor`` a lower one.
    """

    name: str
    value: float
    unit: str
    baseline: str = ""
    ratio: float | None = None
    goal: float | None = None
    floor: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether what is demanded holds; None where nothing is."""
        if self.goal is None and self.floor is None:
            return None
        return (self.goal is None or self.value <= self.goal) and (
            self.floor is None or self.value >= self.floor
        )

    @property
    def demand(self) -> str:
        """What is demanded of the value, such as ``<= 5``; empty where nothing is."""
        bounds = (("<=", self.goal), (">=", self.floor))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)


def percentile(samples: Sequence[float], percent: int) -> float:
    """The *percent*-th percentile (exclusive method: p99 of 100 samples lies between the two largest)."""
    return statistics.quantiles(samples, n=100)[percent - 1]
