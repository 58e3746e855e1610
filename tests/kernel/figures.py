"""Figures that guest tests measure: carried in pytest's user properties, shown as a table at the end."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

KEY = "figure"
"""The user property's name; its value is [name, value, unit]."""
OUTPUT = Path(__file__).parents[2] / "build" / "kernel.json"


class Figure(NamedTuple):
    """One measured value."""

    name: str
    value: float
    unit: str

    def __str__(self) -> str:
        value = (
            f"{self.value:,.0f}"
            if self.value >= 100 or self.value == int(self.value)
            else f"{self.value:.2f}"
        )
        return f"{self.name:<64} {value:>10} {self.unit}"


class Figures:
    """All figures of a session, in the order in which they came."""

    def __init__(self) -> None:
        self._all: dict[str, Figure] = {}

    def add(self, name: str, value: float, unit: str) -> None:
        """Take one figure; a later one of the same name replaces it."""
        self._all[name] = Figure(name, value, unit)

    def take(self, properties: Iterable[tuple[str, object]]) -> None:
        """Take the figures among a report's user properties."""
        for key, value in properties:
            if key == KEY and isinstance(value, list):
                self.add(*value)

    def show(self, reporter: pytest.TerminalReporter) -> None:
        """Print the table, and write it to build/kernel.json."""
        reporter.section("figures")
        for figure in self._all.values():
            reporter.write_line(str(figure))
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text(json.dumps([figure._asdict() for figure in self._all.values()], indent=2) + "\n")
