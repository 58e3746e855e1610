"""A pytest plugin of the booted machine: each report becomes a line of a file that the host reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

RESULTS = Path("/mnt/out/results.jsonl")


class Relay:
    """Writes reports of tests, and of modules that cannot be imported."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._write(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(report)

    def _write(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(data)}\n")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Relay(config))
