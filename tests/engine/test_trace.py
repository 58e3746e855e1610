"""The explanation of a verdict is the verdict's own: what the matching did, row by row (semantics §3)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from migcompat.engine.declaration import Acceptance, Declaration, Entry, Kind, Presence
from migcompat.engine.dynamic import may_be_dynamic
from migcompat.engine.policy import DEFAULT_POLICY, Policy, parse_policy, supply
from migcompat.engine.trace import EntryTrace, Finding, Row, Rule, Trace, trace
from migcompat.engine.verdict import Reason, decide
from migcompat.sysfs.declaration import read_declaration

from tests.engine import trees
from tests.engine.builders import ENTRY, SELF, source, target
from tests.engine.test_properties import bounded, contents, declare, orders, policies
from tests.engine.vectors import Case, cases

CASES = {case.id: case for case in cases()}


def check(ours: Declaration, theirs: Declaration, policy: Policy) -> Trace:
    """The trace of a pair, after all that must be true of any."""
    told = trace(ours, theirs, policy)
    verdict = told.verdict
    assert verdict == decide(ours, theirs, policy)
    assert len(told.entries) == len(theirs.accepts.entries)
    back_asked = policy.require_return_path and (verdict.compatible or verdict.reason is Reason.RETURN_PATH)
    assert (told.back is not None) is back_asked
    if told.back is not None:
        assert told.back.verdict.compatible is verdict.compatible
        assert told.back.back is None
        consistent(told.back, theirs)
    consistent(told, ours, forth=verdict.compatible or verdict.reason is Reason.RETURN_PATH)
    return told


def consistent(told: Trace, ours: Declaration, forth: bool | None = None) -> None:
    verdict = told.verdict
    compatible = verdict.compatible if forth is None else forth
    for one in told.entries:
        refusing = [row for row in one.rows if row.finding is Finding.REFUSES]
        after = [row.finding for row in one.rows]
        if one.reason == Reason.COMPATIBLE:
            assert not refusing
            assert Finding.NOT_REACHED not in after
        elif one.reason == Reason.UNKNOWN:
            assert Finding.UNKNOWN in after
        elif one.reason:
            (row,) = refusing
            assert row.message == one.message
            assert set(after[after.index(Finding.REFUSES) + 1 :]) <= {
                Finding.NOT_REACHED,
                Finding.IGNORED,
                Finding.UNKNOWN,
            }
        else:
            assert not one.rows
        if one.rows:
            names = [row.attribute for row in one.rows]
            assert len(set(names)) == len(names)
            assert set(ours.self.attributes) <= set(names), "every attribute of the source has its row"
            assert all(row.source == ours.self.attributes.get(row.attribute) for row in one.rows)
    if verdict.entry is None:
        assert told.presence.message
        assert (told.presence.finding is Finding.OK) is compatible
        return
    counts = told.entries[verdict.entry]
    if counts.reason == Reason.UNKNOWN or told.presence.section == "§5 unknown":
        assert told.presence.message
        return
    assert told.presence.finding is Finding.OK
    assert (counts.reason == Reason.COMPATIBLE) is compatible
    if verdict.compatible or not compatible:
        assert counts.message == verdict.message
        assert counts.reason == verdict.reason
    if verdict.compatible:
        owed = {row.attribute: row.source for row in counts.rows if row.finding is Finding.OBLIGATION}
        assert owed == verdict.obligations


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_vector(case: Case, tmp_path: Path) -> None:
    trees.l3(tmp_path / "source", case.source)
    trees.l3(tmp_path / "target", case.target)
    policy = case.parsed_policy()
    ours, theirs = (supply(read_declaration(tmp_path / name), policy) for name in ("source", "target"))
    told = check(ours, theirs, policy)
    check(theirs, ours, policy)
    assert told.verdict.compatible is case.expect["compatible"]


@bounded
@given(contents, contents, policies, orders)
def test_any_pair(
    ours: trees.Content, theirs: trees.Content, policy: dict[str, object], order: list[int]
) -> None:
    check(declare(ours, order), declare(theirs, order), parse_policy(policy))


def rows(told: Trace, index: int = 0) -> dict[str, Row]:
    return {row.attribute: row for row in told.entries[index].rows}


def test_each_attribute_says_what_it_was_held_against_and_by_which_section() -> None:
    policy = parse_policy(
        {
            "orderedAttributes": ["level"],
            "ignoredAttributes": ["noise"],
            "offValues": {"mode": ["off"]},
            "crossType": "Deny",
        }
    )
    ours = source(
        aggregator="2", features="b+a", level="1", noise="x", mode="off", empty="", chpid_type="0x1", late="z"
    )
    theirs = target({"type": '{n:string:"T","U"}', "features": "a,b,c", "level": "2", "chpid_type": "1"})
    found = rows(check(ours, theirs, policy))
    said = {name: (row.source, row.target, row.rule, row.finding, row.section) for name, row in found.items()}
    ok, own, entry, none, by_policy = Finding.OK, Rule.OWN, Rule.ENTRY, Rule.NONE, Rule.POLICY
    assert said == {
        "device_api": ("vfio-pci", "vfio-pci", own, ok, "§3 stage 2"),
        "pci_id": ("8086591d", None, none, Finding.IGNORED, "§3 stage 3"),
        "type": ("T", '{n:string:"T","U"}, own T', Rule.BOTH, ok, "§3 stage 4 and §5 crossType"),
        "software_version": ("1.2.3", "1.2.3", own, ok, "§3 stage 5, rule V"),
        "aggregator": ("2", None, by_policy, Finding.OBLIGATION, "§3 dynamic"),
        "chpid_type": ("1", "1", entry, ok, "§3 stage 6"),
        "empty": ("", None, none, ok, "§3 stage 6"),
        "features": ("b+a", "a,b,c", entry, ok, "§3 set-valued"),
        "late": ("z", None, none, Finding.REFUSES, "§3 stage 6"),
        "level": ("1", "2", entry, Finding.NOT_REACHED, "§3 stage 6"),
        "mode": ("off", None, none, Finding.NOT_REACHED, "§3 stage 6"),
        "noise": ("x", None, by_policy, Finding.IGNORED, "§5 ignoredAttributes"),
    }
    assert found["late"].message == 'late: source has "z", target accepts none'
    assert (
        found["aggregator"].message
        == "2 is to be written to aggregator of the target before it is handed over"
    )
    del ours.self.attributes["late"]
    found = rows(check(ours, theirs, policy))
    assert (found["level"].finding, found["level"].section) == (ok, "§3 ordered")
    assert (found["mode"].finding, found["mode"].section) == (ok, "§5 offValues")


def test_entries_that_were_skipped_or_not_looked_at_are_told_as_such() -> None:
    theirs = target({**ENTRY, "type": "{n}"}, {**ENTRY, "type": "U"}, ENTRY, {**ENTRY, "type": "V"})
    told = check(source(), theirs, DEFAULT_POLICY)
    assert [(one.index, one.reason, one.problem) for one in told.entries] == [
        (0, "", "the template variable n is not declared"),
        (1, "TypeMismatch", ""),
        (2, "Compatible", ""),
        (3, "", ""),
    ]
    assert told.entries[3] == EntryTrace(3)


@pytest.mark.parametrize(
    ("ours", "theirs", "section", "says"),
    [
        (Declaration(Kind.MDEV), target(ENTRY), "§3 stage 1", "source says nothing about itself"),
        (source(), Declaration(Kind.MDEV), "§3 stage 1", "target says nothing about itself"),
        (source(), target(), "§3 stage 1", "it accepts nothing"),
        (
            source(),
            Declaration(Kind.MDEV, target().self, Acceptance(Presence.UNREADABLE, problem="EIO")),
            "§5 unknown",
            "cannot be read: EIO",
        ),
    ],
)
def test_where_there_is_nothing_to_compare_stage_1_says_so(
    ours: Declaration, theirs: Declaration, section: str, says: str
) -> None:
    told = check(ours, theirs, DEFAULT_POLICY)
    assert (told.presence.finding, told.presence.section) == (Finding.REFUSES, section)
    assert says in told.presence.message


def test_what_the_policy_lets_pass_unknown_is_told_of_the_policy() -> None:
    told = check(Declaration(Kind.MDEV), target(ENTRY), parse_policy({"unknown": "Allow"}))
    row = told.presence
    assert (row.finding, row.rule, row.section) == (Finding.OK, Rule.POLICY, "§5 unknown")


def test_an_attribute_that_a_policy_compares_and_the_target_does_not_show_is_unknown() -> None:
    entry = Entry(dict(ENTRY), unknown=("ecc",))
    theirs = Declaration(Kind.MDEV, target().self, Acceptance(Presence.PRESENT, (entry,)))
    told = check(source(ecc="1"), theirs, DEFAULT_POLICY)
    assert told.verdict.reason is Reason.UNKNOWN
    row = rows(told)["ecc"]
    assert (row.finding, row.rule, row.section) == (Finding.UNKNOWN, Rule.POLICY, "§5 unknown")


def test_the_way_back_has_a_trace_of_its_own() -> None:
    ours, theirs = target(ENTRY), target(ENTRY, software_version="1.3.0")
    told = check(ours, theirs, parse_policy({"requireReturnPath": True}))
    assert told.verdict.reason is Reason.RETURN_PATH
    assert told.entries[0].reason == "Compatible"
    assert told.back is not None
    assert rows(told.back)["software_version"].finding is Finding.REFUSES


def test_what_may_not_be_written_is_no_obligation() -> None:
    assert not may_be_dynamic("remove")
    told = check(source(remove="1"), target(ENTRY), parse_policy({"dynamicAttributes": ["remove"]}))
    assert rows(told)["remove"].finding is Finding.REFUSES
    assert set(SELF) <= rows(told).keys()
