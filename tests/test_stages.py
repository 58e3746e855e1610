"""Every test belongs to a stage that CI runs: none is forgotten when a directory is added."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.kernel import __main__ as kernel
from tests.node import __main__ as node
from tests.tools import cache_key

ROOT = Path(__file__).parents[1]


def test_every_test_file_belongs_to_exactly_one_stage(pytestconfig: pytest.Config) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "tests"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    files = [Path(f) for f in listed.stdout.split() if Path(f).name.startswith("test_") and f.endswith(".py")]
    stages = {
        "test": pytestconfig.getini("testpaths"),
        "test-node": node.TESTS,
        "test-kernel": kernel.TESTS,
    }
    homes = {
        file: [s for s, paths in stages.items() if any(file.is_relative_to(path) for path in paths)]
        for file in files
        if (ROOT / file).exists()
    }
    assert len(homes) > 50
    assert {file: found for file, found in homes.items() if len(found) != 1} == {}


def test_ci_runs_every_stage() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    targets = ("lint", "parts", "test", "test-node", "test-kernel")
    for target in targets:
        assert f"\n{target}: venv" in (ROOT / "Makefile").read_text()
    at = [text.index(f" make {target}\n") for target in targets]
    assert at == sorted(at), "no stage has to build what is built once"


def test_the_cache_key_changes_with_what_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = cache_key.key()
    assert before == cache_key.key()
    for name in cache_key.SOURCES:
        assert (ROOT / name).exists(), name
    monkeypatch.setattr(cache_key, "SOURCES", cache_key.SOURCES[1:])
    assert cache_key.key() != before
