"""``migcompat check`` (semantics §7)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from migcompat.cli import application
from typer.testing import CliRunner

from tests.engine import trees
from tests.engine.builders import ENTRY, SELF

OTHER = {**ENTRY, "type": "U"}


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    trees.l2_blank_lines(tmp_path / "a", trees.Content({**SELF, "aggregator": "2"}, (ENTRY,)))
    trees.l3(
        tmp_path / "b",
        trees.Content({**SELF, "software_version": "1.4.0"}, ({**ENTRY, "type": "{n}"}, ENTRY)),
    )
    trees.l1_numbered(tmp_path / "c", trees.Content(dict(SELF), (OTHER,)))
    (tmp_path / "none").mkdir()
    return tmp_path


def run(devices: Path, *arguments: str) -> tuple[int, str, str]:
    os.chdir(devices)
    result = CliRunner().invoke(application(), ["check", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def _working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_json(devices: Path) -> None:
    status, out, err = run(devices, "a", "b", "-o", "json")
    assert status == 0
    assert json.loads(out) == {
        "compatible": True,
        "reason": "Compatible",
        "message": "target accepts the source",
        "entry": 1,
        "bindings": {},
        "obligations": {"aggregator": "2"},
        "rank": [0, 0, 2, 3],
    }
    assert err == (
        "Warning: compatible entry 0 of TARGET is skipped: the template variable n is not declared\n"
    )
    status, out, _ = run(devices, "a", "none", "--output", "json")
    assert status == 1
    assert json.loads(out) == {
        "compatible": False,
        "reason": "NotMigratable",
        "message": "target says nothing about itself",
        "entry": None,
        "bindings": {},
        "obligations": {},
        "rank": None,
    }


def test_text(devices: Path) -> None:
    assert run(devices, "a", "b")[:2] == (
        0,
        "Compatible: Compatible\n"
        "  target accepts the source\n"
        "  matched: compatible entry 1\n"
        "  before hand-over, write 2 to aggregator of the target\n",
    )
    assert run(devices, "a", "c") == (
        1,
        "Not compatible: TypeMismatch\n"
        '  type: source has "T", target accepts "U"\n'
        "  nearest: compatible entry 0\n",
        "",
    )


def test_policy(devices: Path) -> None:
    policy = devices / "policy.yaml"
    policy.write_text("compatible:\n- {software_version: 1.2.3, device_api: vfio-pci, type: T}\n")
    assert run(devices, "a", "c", "--policy", "policy.yaml")[0] == 0
    policy.write_text("unknown: Allow\n")
    assert (
        json.loads(run(devices, "a", "none", "--policy", "policy.yaml", "-o", "json")[1])["reason"]
        == "Unknown"
    )
    policy.write_text("")
    assert run(devices, "a", "none", "--policy", "policy.yaml")[0] == 1


def test_the_policy_supplies_both_sides(devices: Path) -> None:
    said = "software_version: 1.2.3\n  device_api: vfio-ap\n  type: T\n"
    entry = said.replace("\n  ", ", ").strip()
    (devices / "policy.yaml").write_text(f"self:\n  {said}compatible:\n- {{{entry}}}\n")
    (devices / "also-none").mkdir()
    assert run(devices, "none", "also-none", "--policy", "policy.yaml")[0] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("foo: 1", "unknown key 'foo'"),
        ("offValues: {x: [off]}", "offValues.x[0]: False is a boolean, not a string: quote it"),
        ("- a", "a policy is a mapping"),
        ("a: [", "is not YAML"),
        ("a: 2020-99-99", "is not YAML"),
        ("unknown: Deny\nunknown: Allow", "key 'unknown' is given twice"),
        ("self: {x: 2020-01-01}", "not a string"),
        ("self: !!python/object:os.system {}", "is not YAML"),
        ("a: \x00", "is not YAML"),
        ("\udcff", "is not YAML"),
        ("[" * 100_000, "nested too deeply"),
        ("compatible: &a [*a]", "nested too deeply"),
        ("#" * (1024 * 1024 + 1), "longer than"),
    ],
)
def test_unusable_policies(devices: Path, text: str, said: str) -> None:
    (devices / "policy.yaml").write_bytes(text.encode(errors="surrogateescape"))
    status, out, err = run(devices, "a", "b", "--policy", "policy.yaml")
    assert (status, out) == (2, "")
    assert err.startswith("Error: policy file policy.yaml")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "gone"], "Error: TARGET gone does not exist; give the sysfs directory of a device"),
        (["gone", "a"], "Error: SOURCE gone does not exist; give the sysfs directory of a device"),
        (["a/migration/self", "a"], "is not a directory"),
        (["a", "b", "--policy", "gone"], "Error: policy file gone cannot be read: No such file or directory"),
        (["a", "b", "--policy", "a"], "Error: policy file a cannot be read: Is a directory"),
        (["a"], "Missing argument"),
        (["a", "b", "c"], "unexpected extra argument"),
        (["a", "b", "-o", "xml"], "xml"),
        (["a", "b", "--nonsense"], "--nonsense"),
    ],
)
def test_unusable_arguments(devices: Path, arguments: list[str], said: str) -> None:
    status, out, err = run(devices, *arguments)
    assert (status, out) == (2, "")
    assert said in err


def test_an_mdev_is_what_has_an_mdev_type(devices: Path) -> None:
    """A physical vfio-pci device is compared by its own pci_id, an mdev is not."""
    for mdev, expected in ((True, 0), (False, 1)):
        content = trees.Content({**SELF, "pci_id": "8086591e"}, (ENTRY,), mdev)
        trees.l2_headings(devices / f"d{mdev}", content)
        assert run(devices, "a", f"d{mdev}")[0] == expected


def test_versions_beyond_64_bits(devices: Path) -> None:
    there = {**SELF, "software_version": f"1.{10**30}"}
    trees.l3(devices / "big", trees.Content(there, ({**ENTRY, "software_version": f"1.{10**30}"},)))
    assert json.loads(run(devices, "a", "big", "-o", "json")[1])["rank"][2] == 10**30 - 2


def test_as_a_program(devices: Path) -> None:
    program = Path(sys.executable).with_name("migcompat")
    for arguments, status in ((["a", "b"], 0), (["a", "c"], 1), (["a", "gone"], 2), ([], 2)):
        found = subprocess.run(
            [program, "check", *arguments], cwd=devices, capture_output=True, timeout=60, check=False
        )
        assert found.returncode == status
        assert b"Traceback" not in found.stderr
