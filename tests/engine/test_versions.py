"""Rule V (semantics §3)."""

from __future__ import annotations

import pytest

from tests.engine.builders import ENTRY, SELF, accepts_text, own, reason, source, target, verdict


def check(ours: str, accepted: str, **policy: str) -> str:
    return accepts_text({"software_version": accepted}, {"software_version": ours}, **policy)


@pytest.mark.parametrize(
    ("ours", "accepted", "expected"),
    [
        ("2.0.0", "2.0.1", "Compatible"),
        ("2.0.1", "2.0.0", "Compatible"),
        ("2.0", "2.0.7", "Compatible"),
        ("2.0.7", "2.0", "Compatible"),
        ("2.0.1", "2.1.0", "Compatible"),
        ("2.10.0", "2.9.0", "VersionMinorOlder"),
        ("2.9.0", "2.10.0", "Compatible"),
        ("3.0.0", "2.9.0", "VersionMajorMismatch"),
        ("0.0.0", "0.0", "Compatible"),
        ("1." + "9" * 4000, "1." + "9" * 4000, "Compatible"),
        ("1." + "9" * 4001, "1." + "9" * 4000, "VersionMinorOlder"),
        ("2.0.1.4", "2.0.1", "VersionMalformed"),
        ("2", "2.0.0", "VersionMalformed"),
        ("", "2.0.0", "VersionMalformed"),
        ("v2.0.0", "2.0.0", "VersionMalformed"),
        ("02.0.0", "2.0.0", "VersionMalformed"),
        ("2.00.0", "2.0.0", "VersionMalformed"),
        ("2.0.00", "2.0.0", "VersionMalformed"),
        ("2.0.", "2.0.0", "VersionMalformed"),
        ("2.0.-1", "2.0.0", "VersionMalformed"),
        ("2.0.0-rc1", "2.0.0", "VersionMalformed"),
        ("2.0.0 ", "2.0.0", "VersionMalformed"),
        ("2.0.0", "v2", "VersionMalformed"),
        ("2.0.0", "", "VersionMalformed"),
        ("2.0.0,2.1.0", "2.0.0", "VersionMalformed"),
    ],
)
def test_one_version(ours: str, accepted: str, expected: str) -> None:
    assert check(ours, accepted) == expected


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ("2.0.1", "VersionMinorOlder"),
        ("2.0.2", "Compatible"),
        ("2.0.4", "Compatible"),
        ("2.0.5", "VersionMinorOlder"),
        ("2.1.0", "Compatible"),
        ("2.99.99", "Compatible"),
        ("3.0.0", "VersionMajorMismatch"),
        ("1.0.0", "VersionMajorMismatch"),
    ],
)
def test_the_bugfix_counts_in_ranges_and_an_open_one_ends_before_the_next_major(
    ours: str, expected: str
) -> None:
    assert check(ours, "2.0.2-2.0.4,2.1.0-") == expected


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ("2.0.2", "Compatible"),
        ("2.0.3", "VersionMinorOlder"),
        ("2.0.0", "VersionMinorOlder"),
        ("2.1", "Compatible"),
        ("2.1.0", "Compatible"),
        ("4.0.0", "VersionMajorMismatch"),
    ],
)
def test_a_list_of_several_items_is_explicit(ours: str, expected: str) -> None:
    assert check(ours, "2.0.2, 2.1") == expected


def test_a_single_range_is_a_range() -> None:
    assert check("2.0.1", "2.0.2-2.0.4") == "VersionMinorOlder"
    assert check("2.0.3", "2.0.2-2.0.4") == "Compatible"
    assert check("2.1.0", "2.0.2-") == "Compatible"
    assert check("2.0.2", "2.0.2-2.0.2") == "Compatible"


def test_a_range_may_span_majors() -> None:
    assert check("2.5.0", "1.0.0-3.0.0") == "Compatible"
    assert check("3.0.1", "1.0.0-3.0.0") == "VersionMinorOlder"


def test_a_range_written_backwards_makes_the_entry_malformed() -> None:
    assert check("2.0.3", "2.0.4-2.0.2") == "NoCompatibleEntry"
    assert check("2.0.3", "2.0.3,2.0.4-2.0.2") == "NoCompatibleEntry"
    assert check("2.0.3", "junk,2.0.4-2.0.2") == "NoCompatibleEntry"
    assert check("2.0.3", "2.0.{n:int:1,2}-2.0.1") == "NoCompatibleEntry"
    both = target({**ENTRY, "software_version": "2.0.4-2.0.2"}, {**ENTRY, "software_version": "2.0.3"})
    found = verdict(source(software_version="2.0.3"), both)
    assert (found.compatible, found.entry) == (True, 1)


@pytest.mark.parametrize("accepted", ["2.0.0,junk", "2.0.0,", ",2.0.0", "-2.0.0", "2.0.0--2.0.1", "2.0.0-x"])
def test_a_garbled_item_spoils_the_list(accepted: str) -> None:
    assert check("2.0.0", accepted) == "VersionMalformed"


def test_exact_is_string_equality() -> None:
    assert check("580.95.05", "580.95.05", versionScheme="exact") == "Compatible"
    assert check("580.95.5", "580.95.05", versionScheme="exact") == "VersionMajorMismatch"
    assert check("r2,r1", "r2,r1", versionScheme="exact") == "Compatible"
    assert check("r1", "r2,r1", versionScheme="exact") == "VersionMajorMismatch"
    assert check("9", "9-1", versionScheme="exact") == "VersionMajorMismatch"
    assert verdict(source(), target(ENTRY), versionScheme="exact").rank is None


@pytest.mark.parametrize(
    ("ours", "accepted", "expected"),
    [
        ("580.95.05", "580.95.5", "Compatible"),
        ("580.95.05", "580.95", "VersionMinorOlder"),
        ("580", "580.0.0", "Compatible"),
        ("580.0.0", "580", "Compatible"),
        ("580.95.06", "580.95.05", "VersionMinorOlder"),
        ("581", "580.95.05", "VersionMajorMismatch"),
        ("579.99", "580.95.05", "VersionMajorMismatch"),
        ("1.2.3.4.5.6.7.8", "1.2.3.4.5.6.7.8", "Compatible"),
        ("1.2.3.4.5.6.7.8.9", "1.2.3.4.5.6.7.8", "VersionMalformed"),
        ("580.95-beta", "580.95", "VersionMalformed"),
        ("580.95.05", "580.90-580.95.05", "Compatible"),
        ("580.95.06", "580.90-580.95.05", "VersionMinorOlder"),
        ("580.200", "580.90-", "Compatible"),
        ("581.0", "580.90-", "VersionMajorMismatch"),
        ("580.95.04", "580.95.05,580.95.03", "VersionMinorOlder"),
        ("580.95.3", "580.95.05,580.95.03", "Compatible"),
        ("580.95", "580.95.05-580.90", "NoCompatibleEntry"),
    ],
)
def test_dotted(ours: str, accepted: str, expected: str) -> None:
    assert check(ours, accepted, versionScheme="dotted") == expected


def test_the_targets_own_version_counts_when_the_entry_has_none() -> None:
    bare = {"device_api": "vfio-pci", "type": "T"}
    assert reason(source(software_version="1.5.0"), target(bare, software_version="1.4.0")) == (
        "VersionMinorOlder"
    )
    assert reason(source(software_version="1.3.9"), target(bare, software_version="1.4.0")) == "Compatible"


def test_the_targets_own_version_is_never_a_list() -> None:
    bare = {"device_api": "vfio-pci", "type": "T"}
    listed = target(bare, software_version="1.0.0-,2.0.0")
    assert reason(source(software_version="1.2.0"), listed) == "VersionMalformed"
    same = source(software_version="1.0.0-,2.0.0")
    assert reason(same, listed, versionScheme="exact") == "Compatible"


def test_of_several_bindings_the_reason_nearest_to_a_pass_counts() -> None:
    assert check("2.5.0", "{m:int:1,2}.0.0") == "VersionMinorOlder"
    assert check("2.5.0", "{m:int:2,1}.0.0") == "VersionMinorOlder"


def test_rank() -> None:
    def rank(ours: str, theirs: str, **policy: str) -> tuple[int, ...] | None:
        entry = {**ENTRY, "software_version": "0.0.0-" if not policy else "0-"}
        return verdict(source(software_version=ours), target(entry, software_version=theirs), **policy).rank

    assert rank("1.2.3", "1.2.3") == (0, 0, 0, 0)
    assert rank("1.2.3", "1.4.0") == (0, 0, 2, 3)
    assert rank("1.2.3", "1.2.1") == (1, 0, 0, 2)
    assert rank("1.2", "1.2.7") == (0, 0, 0, 7)
    assert rank("580.82.07", "580.95.05", versionScheme="dotted") == (0, 0, 13, 2)
    assert rank("580.82.07", "580.95", versionScheme="dotted") == (0, 0, 13, 7)
    assert rank("1.2.3", "r5") is None
    assert rank("r5", "1.2.3") is None
    best_first = sorted(["1.1.9", "1.3.0", "1.2.4", "1.2.3"], key=lambda v: rank("1.2.3", v) or ())
    assert best_first == ["1.2.3", "1.2.4", "1.3.0", "1.1.9"]


def test_rank_is_there_with_a_refusal_and_not_without_a_usable_self() -> None:
    assert verdict(source(software_version="1.3.0"), target(ENTRY)).rank == (1, 0, 1, 3)
    assert own({**SELF, "software_version": "{x}"}).problem
    assert verdict(source(), target(ENTRY, software_version="{x}")).rank is None
