"""Stage 1, the choice among entries, and the verdict (semantics §3, §4, §5)."""

from __future__ import annotations

import msgspec
import pytest
from migcompat.engine.declaration import Acceptance, Declaration, Entry, Kind, Presence, SelfSet

from tests.engine.builders import ENTRY, SELF, reason, source, target, verdict

NOTHING = Declaration(Kind.MDEV)
UNREAD = SelfSet(Presence.UNREADABLE, problem="migration/self/type cannot be read")
GARBLED = SelfSet(Presence.MALFORMED, problem="x holds a brace")
BARE = {"device_api": "vfio-pci", "type": "T"}


def having(declared: Declaration, own: SelfSet) -> Declaration:
    return msgspec.structs.replace(declared, self=own)


def spoiled(declared: Declaration, presence: Presence, *more: Entry) -> Declaration:
    entries = (*declared.accepts.entries, *more)
    return msgspec.structs.replace(declared, accepts=Acceptance(presence, entries, problem="unread"))


class TestPresence:
    def test_not_migratable(self) -> None:
        assert reason(NOTHING, target(ENTRY)) == "NotMigratable"
        assert reason(source(), NOTHING) == "NotMigratable"
        assert reason(NOTHING, NOTHING) == "NotMigratable"
        assert reason(having(target(ENTRY), SelfSet()), target(ENTRY)) == "NotMigratable"

    def test_a_target_without_self_but_with_entries_can_accept(self) -> None:
        there = having(target(ENTRY), SelfSet())
        found = verdict(source(), there)
        assert (found.compatible, found.rank) == (True, None)
        assert reason(source(), having(target(BARE), SelfSet())) == "MalformedSelf"

    def test_no_compatible_entry(self) -> None:
        assert reason(source(), target()) == "NoCompatibleEntry"
        assert reason(source(), having(target(), GARBLED)) == "NoCompatibleEntry"
        assert reason(source(), spoiled(target(), Presence.PRESENT, Entry({}, "bad"))) == "NoCompatibleEntry"
        assert reason(source(), spoiled(target(), Presence.MALFORMED)) == "NoCompatibleEntry"
        only_bad = having(spoiled(target(), Presence.PRESENT, Entry({}, "bad")), SelfSet())
        assert reason(source(), only_bad) == "NoCompatibleEntry"
        assert verdict(source(), target()).entry is None

    def test_unknown(self) -> None:
        assert reason(having(source(), UNREAD), target(ENTRY)) == "Unknown"
        assert reason(source(), having(target(), UNREAD)) == "Unknown"
        assert reason(source(), spoiled(NOTHING, Presence.UNREADABLE)) == "Unknown"

    def test_a_read_error_in_the_target_counts_only_when_no_readable_entry_matches(self) -> None:
        found = verdict(source(), spoiled(target(ENTRY), Presence.UNREADABLE, Entry({}, "unread")))
        assert (found.reason, found.entry) == ("Compatible", 0)
        assert reason(source(type="U"), spoiled(target(ENTRY), Presence.UNREADABLE)) == "Unknown"
        assert reason(source(), having(target(ENTRY), UNREAD)) == "Compatible"
        assert reason(source(), having(target(BARE), UNREAD)) == "Unknown"
        assert reason(source(type="U"), having(target(ENTRY), UNREAD)) == "Unknown"

    def test_what_cannot_be_read_of_the_sources_entries_plays_no_part(self) -> None:
        assert reason(spoiled(source(), Presence.UNREADABLE), target(ENTRY)) == "Compatible"
        assert reason(spoiled(source(), Presence.MALFORMED), target(ENTRY)) == "Compatible"

    def test_malformed_source(self) -> None:
        assert reason(having(source(), GARBLED), target(ENTRY)) == "MalformedSelf"
        assert reason(having(source(), GARBLED), target()) == "MalformedSelf"
        assert reason(having(source(), GARBLED), NOTHING) == "NotMigratable"
        assert reason(having(source(), GARBLED), having(target(), UNREAD)) == "MalformedSelf"

    @pytest.mark.parametrize("name", ["software_version", "device_api", "type"])
    def test_must_attributes(self, name: str) -> None:
        left = {key: value for key, value in SELF.items() if key != name}
        assert reason(Declaration(Kind.MDEV, SelfSet(Presence.PRESENT, left)), target(ENTRY)) == (
            "MalformedSelf"
        )

    def test_must_attributes_of_an_api(self) -> None:
        def malformed(kind: Kind, **attributes: str) -> bool:
            own = SelfSet(Presence.PRESENT, {"software_version": "1.0.0", "type": "T", **attributes})
            return reason(Declaration(kind, own), target(ENTRY)) == "MalformedSelf"

        assert malformed(Kind.PHYSICAL, device_api="vfio-pci")
        assert not malformed(Kind.PHYSICAL, device_api="vfio-pci", pci_id="8086591d")
        assert not malformed(Kind.MDEV, device_api="vfio-pci")
        assert malformed(Kind.MDEV, device_api="vfio-ccw")
        assert malformed(Kind.PHYSICAL, device_api="vfio-ccw")
        assert not malformed(Kind.MDEV, device_api="vfio-ccw", subchannel_type="0")
        assert not malformed(Kind.PHYSICAL, device_api="vfio-ap")


class TestMalformedTarget:
    """``MalformedSelf`` of a target only at the first stage that needs its own value."""

    THERE = having(target(ENTRY), GARBLED)

    def test_a_complete_entry_needs_nothing_of_it(self) -> None:
        assert reason(source(), self.THERE) == "Compatible"
        assert reason(source(type="U"), self.THERE) == "TypeMismatch"

    @pytest.mark.parametrize("name", ["device_api", "type", "software_version"])
    def test_needed(self, name: str) -> None:
        entry = {key: value for key, value in ENTRY.items() if key != name}
        assert reason(source(), having(target(entry), GARBLED)) == "MalformedSelf"

    def test_a_stage_before_the_one_that_needs_it_is_told_first(self) -> None:
        assert reason(source(type="U"), having(target(BARE), GARBLED)) == "TypeMismatch"
        assert reason(source(device_api="vfio-ap"), having(target(BARE), GARBLED)) == "DeviceApiMismatch"

    def test_a_physical_target_needs_its_pci_id(self) -> None:
        there = having(target(ENTRY, kind=Kind.PHYSICAL), GARBLED)
        assert reason(source(), there) == "MalformedSelf"
        there = having(target({**ENTRY, "pci_id": "8086591d"}, kind=Kind.PHYSICAL), GARBLED)
        assert reason(source(), there) == "Compatible"

    def test_cross_type_deny_needs_its_type(self) -> None:
        assert reason(source(), self.THERE, crossType="Deny") == "MalformedSelf"

    def test_another_entry_that_matches_counts(self) -> None:
        found = verdict(source(), having(target(BARE, ENTRY), GARBLED))
        assert (found.compatible, found.entry) == (True, 1)

    def test_another_entry_that_gets_further_is_told(self) -> None:
        untyped = {"device_api": "vfio-pci", "software_version": "1.2.3"}
        older = {**ENTRY, "software_version": "1.1.0"}
        found = verdict(source(), having(target(untyped, older), GARBLED))
        assert (found.reason, found.entry) == ("VersionMinorOlder", 1)
        assert verdict(source(), having(target(untyped), GARBLED)).entry == 0


class TestChoiceOfEntry:
    def test_furthest(self) -> None:
        entries = [
            {**ENTRY, "device_api": "vfio-ap"},
            {**ENTRY, "software_version": "1.1.0"},
            {**ENTRY, "type": "U"},
            {**ENTRY, "software_version": "2.0.0"},
        ]
        found = verdict(source(), target(*entries))
        assert (found.reason, found.entry) == ("VersionMinorOlder", 1)
        found = verdict(source(), target(*reversed(entries)))
        assert (found.reason, found.entry) == ("VersionMajorMismatch", 0)

    def test_all_other_attributes_are_one_stage(self) -> None:
        found = verdict(source(b="1"), target({**ENTRY, "a": "1"}, {**ENTRY, "b": "2"}))
        assert (found.reason, found.entry) == ("AttributeMissingOnSource", 0)

    def test_the_first_that_matches_is_the_one_told(self) -> None:
        found = verdict(source(), target({**ENTRY, "type": "U"}, ENTRY, ENTRY))
        assert (found.compatible, found.entry) == (True, 1)

    def test_malformed_entries_keep_their_place(self) -> None:
        there = target(ENTRY)
        accepts = Acceptance(Presence.PRESENT, (Entry({}, "bad"), Entry({}, "bad"), *there.accepts.entries))
        assert verdict(source(), msgspec.structs.replace(there, accepts=accepts)).entry == 2

    def test_equality_is_no_short_cut(self) -> None:
        same = target({**ENTRY, "type": "U"})
        assert reason(same, same) == "TypeMismatch"


class TestMessage:
    def test_names_the_attribute_and_both_values(self) -> None:
        found = verdict(source(x="1"), target({**ENTRY, "x": "2"}))
        assert found.message == 'x: source has "1", target accepts "2"'
        assert verdict(source(x="1"), target(ENTRY)).message == 'x: source has "1", target accepts none'
        assert verdict(source(), target({**ENTRY, "x": "1"})).message == (
            'x: source has none, target accepts "1"'
        )

    def test_stays_short(self) -> None:
        assert len(verdict(source(x="1" * 4000), target({**ENTRY, "x": "2" * 4000})).message) < 250


class TestReturnPath:
    def test_the_way_back_must_match_too(self) -> None:
        both = target(ENTRY)
        assert reason(source(), both) == "Compatible"
        assert reason(source(), both, requireReturnPath=True) == "ReturnPath"
        assert reason(both, both, requireReturnPath=True) == "Compatible"

    def test_a_newer_target_cannot_come_back(self) -> None:
        newer = {**ENTRY, "software_version": "1.3.0"}
        there = target(newer, software_version="1.3.0")
        found = verdict(target(ENTRY, aggregator="1"), there, requireReturnPath=True)
        assert (found.reason, found.compatible) == ("ReturnPath", False)
        assert (found.entry, found.bindings, found.obligations) == (0, {}, {})
        assert (
            found.message == 'on the way back, software_version: source has "1.3.0", target accepts "1.2.3"'
        )

    def test_the_way_there_is_told_first(self) -> None:
        assert reason(source(type="U"), target(ENTRY), requireReturnPath=True) == "TypeMismatch"


class TestUnknownAllow:
    """``unknown: Allow``: what cannot be known is compatible, with reason ``Unknown`` (semantics §5)."""

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (NOTHING, NOTHING),
            (NOTHING, target(ENTRY)),
            (source(), NOTHING),
            (having(source(), UNREAD), target(ENTRY)),
            (source(), having(target(), UNREAD)),
            (source(type="U"), spoiled(target(ENTRY), Presence.UNREADABLE)),
        ],
    )
    def test_covers_absent_and_unreadable(self, ours: Declaration, theirs: Declaration) -> None:
        found = verdict(ours, theirs, unknown="Allow")
        assert (found.compatible, found.reason) == (True, "Unknown")
        assert (found.entry, found.bindings, found.obligations) == (None, {}, {})
        assert not verdict(ours, theirs).compatible

    def test_covers_nothing_that_a_device_does_say(self) -> None:
        assert reason(source(), target(), unknown="Allow") == "NoCompatibleEntry"
        assert reason(having(source(), GARBLED), target(ENTRY), unknown="Allow") == "MalformedSelf"
        assert reason(source(type="U"), target(ENTRY), unknown="Allow") == "TypeMismatch"
        assert reason(source(), target(ENTRY), unknown="Allow") == "Compatible"

    def test_together_with_the_return_path(self) -> None:
        allow = {"unknown": "Allow", "requireReturnPath": True}
        assert reason(NOTHING, NOTHING, **allow) == "Unknown"
        assert reason(source(), NOTHING, **allow) == "Unknown"
        assert reason(source(), target(ENTRY), **allow) == "ReturnPath"
