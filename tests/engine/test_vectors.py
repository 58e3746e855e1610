"""Every machine-readable case, in every pair of layouts that it can be written in."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import msgspec
import pytest
import yaml
from migcompat.cli import application
from migcompat.engine.verdict import decide
from migcompat.sysfs.declaration import read_declaration
from typer.testing import CliRunner

from tests.engine import trees
from tests.engine.vectors import Case, cases

CASES = {case.id: case for case in cases()}


def write_all(place: Path, content: trees.Content, *, as_source: bool = False) -> dict[str, Path]:
    """*content* in every layout that can express it, by layout."""
    written = {}
    for layout in trees.LAYOUTS:
        said = trees.accepting_itself(content) if layout is trees.l4 and as_source else content
        try:
            layout(place / layout.__name__, said)
        except trees.NotExpressibleError:
            continue
        written[layout.__name__] = place / layout.__name__
    return written


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_vector_in_every_layout(case: Case, tmp_path: Path) -> None:
    policy = case.parsed_policy()
    sources = {
        k: read_declaration(v) for k, v in write_all(tmp_path / "source", case.source, as_source=True).items()
    }
    targets = {k: read_declaration(v) for k, v in write_all(tmp_path / "target", case.target).items()}
    assert len(sources) >= 6
    assert len(targets) >= 6
    for source, target in product(sources.values(), targets.values()):
        verdict = decide(source, target, policy)
        case.check(msgspec.to_builtins(verdict))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_vector_by_command(case: Case, tmp_path: Path) -> None:
    """Through the command, source and target in another layout each."""
    layouts = trees.LAYOUTS[:6]
    shift = list(CASES).index(case.id)
    layouts[shift % 6](tmp_path / "source", case.source)
    layouts[(shift + 2) % 6](tmp_path / "target", case.target)
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump(case.policy))
    arguments = [str(tmp_path / "source"), str(tmp_path / "target"), "--policy", str(policy)]
    result = CliRunner().invoke(application(), ["check", *arguments, "-o", "json"])
    verdict = json.loads(result.stdout)
    case.check(verdict)
    assert result.exit_code == (0 if case.expect["compatible"] else 1)
    keys = {"compatible", "reason", "message", "entry", "bindings", "obligations", "rank"}
    assert verdict.keys() == keys


def test_the_writer_of_l4_is_not_vacuous(tmp_path: Path) -> None:
    written = {
        name
        for name, case in CASES.items()
        if "l4" in write_all(tmp_path / name / "source", case.source, as_source=True)
        and "l4" in write_all(tmp_path / name / "target", case.target)
    }
    assert {"B2", "B5", "D2a", "D2b", "F11", "F13", "G1", "J1"} <= written
