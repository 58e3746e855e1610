"""docs/reference/extender.md names every flag, endpoint, metric and outcome there is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from migcompat_extender import admission
from migcompat_extender.cli import extender
from migcompat_extender.metrics import Metrics
from migcompat_extender.server import make_app

from tests.extender.world import all_well, world

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "extender.md").read_text()


def documented(pattern: str) -> set[str]:
    return set(re.findall(pattern, PAGE, re.MULTILINE))


def test_flags() -> None:
    flags = {f"--{name.replace('_', '-')}" for name in inspect.signature(extender).parameters}
    assert documented(r"^\| `(--[a-z-]+)") == flags


def test_endpoints() -> None:
    paths = {r.get_info()["path"] for r in make_app(world({}), all_well).router.resources()}
    assert documented(r"^### `[A-Z]+ (/[a-z]+)") == paths


def test_metrics() -> None:
    kinds = {"counter": "_total", "histogram": "", "gauge": ""}
    names = {f"{family.name}{kinds[family.type]}" for family in Metrics().registry.collect()}
    assert documented(r"^\| `(migcompat_extender_[a-z_]+)`") == names


def test_outcomes() -> None:
    source = inspect.getsource(admission)
    used = set(re.findall(r'(?:, |outcome = )"([a-z_]+)"$', source, re.MULTILINE))
    (line,) = documented(r"^\| `migcompat_extender_admissions_total` .*left out: (.*) \|$")
    assert set(re.findall(r"`([a-z_]+)`", line)) == used
