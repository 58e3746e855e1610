"""Policies: their keys, their errors, and what they supply (semantics §5)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from migcompat.engine.declaration import Acceptance, Declaration, Entry, Kind, Presence, SelfSet
from migcompat.engine.policy import (
    DEFAULT_POLICY,
    Choice,
    Policy,
    PolicyError,
    VersionScheme,
    check_policy,
    parse_policy,
    supply,
)
from migcompat.engine.verdict import decide

from tests.engine.builders import ENTRY, SELF, own, source, target

NOTHING = Declaration(Kind.MDEV)


class TestParse:
    def test_nothing_is_the_default(self) -> None:
        assert parse_policy(None) == parse_policy({}) == DEFAULT_POLICY

    def test_every_key(self) -> None:
        parsed = parse_policy(
            {
                "versionScheme": "dotted",
                "crossType": "Deny",
                "setAttributes": ["a"],
                "orderedAttributes": ["b"],
                "ignoredAttributes": ["c"],
                "dynamicAttributes": [],
                "offValues": {"d": ["off", "none"]},
                "requireReturnPath": True,
                "unknown": "Allow",
                "self": {"type": "T"},
                "compatible": [{"type": "T{n:int:1,2}"}],
            }
        )
        assert parsed == Policy(
            VersionScheme.DOTTED,
            Choice.DENY,
            ("a",),
            ("b",),
            ("c",),
            (),
            {"d": ("off", "none")},
            True,
            Choice.ALLOW,
            {"type": "T"},
            ({"type": "T{n:int:1,2}"},),
        )

    @pytest.mark.parametrize(
        ("raw", "said"),
        [
            ([], "a policy is a mapping"),
            ("x", "a policy is a mapping"),
            ({"ignored": ["x"]}, "unknown key 'ignored'"),
            ({"selector": {}}, "unknown key 'selector'"),
            ({"kind": "CompatibilityPolicy", "spec": {}}, "give the keys of a CompatibilityPolicy's spec"),
            ({True: 1}, "unknown key True"),
            ({"offValues": {"x": [False]}}, "offValues.x[0]: False is a boolean, not a string: quote it"),
            ({"offValues": {False: ["x"]}}, "the name False is a boolean"),
            ({"offValues": {"x": "off"}}, "offValues"),
            ({"offValues": ["x"]}, "offValues"),
            ({"self": {"software_version": 1.2}}, "self.software_version: 1.2 is a number"),
            ({"self": {"aggregator": 2}}, "self.aggregator: 2 is a number"),
            ({"self": {"x": None}}, "self.x: None is empty"),
            ({"self": {"x": ["a"]}}, "self"),
            ({"compatible": [{"x": True}]}, "compatible[0].x: True is a boolean"),
            ({"compatible": {"x": "1"}}, "compatible"),
            ({"setAttributes": None}, "setAttributes: None is empty"),
            ({"setAttributes": "features"}, "setAttributes"),
            ({"setAttributes": [1]}, "setAttributes[0]: 1 is a number"),
            ({"unknown": False}, "unknown: False is a boolean"),
            ({"unknown": "allow"}, "unknown"),
            ({"versionScheme": "semantic"}, "versionScheme"),
            ({"crossType": "No"}, "crossType"),
            ({"requireReturnPath": "true"}, "requireReturnPath"),
            ({"requireReturnPath": 1}, "requireReturnPath"),
            ({"self": {"x": "{v:int:1}"}}, "self: x holds a brace"),
            ({"self": {"pci_id": "1"}}, "self: pci_id"),
            ({"self": {"type": "T", "mdev_type": "U"}}, "given twice"),
            ({"self": {"": "1"}}, "empty key"),
            ({"self": {"x": "\x00"}}, "not printable"),
            ({"self": {"x": "é"}}, "not printable"),
            ({"self": {"x": "y" * 4097}}, "longer than 4096"),
            ({"compatible": [{}, {"x": "{v}"}]}, "compatible[1]: the template variable v is not declared"),
            ({"compatible": [{"chpid_type": "x"}]}, "compatible[0]: chpid_type"),
            ({"compatible": [{}] * 257}, "more than 256 entries"),
            ({"offValues": {"x": [[["y"]]]}}, "nested too deeply"),
        ],
    )
    def test_errors_name_the_key(self, raw: Any, said: str) -> None:
        with pytest.raises(PolicyError) as caught:
            parse_policy(raw)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_policy_decoded_elsewhere_can_be_checked(self) -> None:
        check_policy(DEFAULT_POLICY)
        with pytest.raises(PolicyError):
            check_policy(Policy(supplied_self={"x": "{"}))


class TestSupply:
    def test_nothing_to_supply(self) -> None:
        assert supply(source(), DEFAULT_POLICY) == source()
        assert supply(NOTHING, Policy(supplied_self={}, supplied_compatible=({},))) == NOTHING

    def test_an_absent_self_is_supplied_whole(self) -> None:
        filled = supply(NOTHING, Policy(supplied_self=SELF))
        assert filled.self == SelfSet(Presence.PRESENT, SELF)

    def test_what_is_there_stays(self) -> None:
        filled = supply(source(x=""), Policy(supplied_self={"type": "U", "x": "1", "y": "2"}))
        assert filled.self.attributes == {**SELF, "x": "", "y": "2"}

    def test_supplied_names_and_values_are_made_canonical(self) -> None:
        policy = Policy(supplied_self={"mdev_type": "U", "device_id": "8086:591E", "x": '" 1 "'})
        assert supply(source(), policy).self.attributes == {**SELF, "x": " 1 "}
        incomplete = Declaration(Kind.MDEV, own({"software_version": "1.0.0", "device_api": "vfio_pci"}))
        assert supply(incomplete, policy).self.attributes["pci_id"] == "8086591e"

    def test_a_missing_must_attribute_may_be_supplied(self) -> None:
        """Readers never derive ``pci_id`` from vendor and device; a provider may supply it (semantics §3)."""
        left = {name: value for name, value in SELF.items() if name != "pci_id"}
        device = Declaration(Kind.PHYSICAL, own(left, Kind.PHYSICAL))
        assert device.self.presence is Presence.MALFORMED
        filled = supply(device, Policy(supplied_self={"pci_id": "8086591d"}))
        assert filled.self == SelfSet(Presence.PRESENT, SELF)

    def test_still_missing_is_still_malformed(self) -> None:
        filled = supply(NOTHING, Policy(supplied_self={"type": "T"}))
        assert filled.self.presence is Presence.MALFORMED
        assert filled.self.problem == "self lacks software_version"

    @pytest.mark.parametrize("presence", [Presence.MALFORMED, Presence.UNREADABLE])
    def test_what_was_malformed_or_unreadable_stays_so(self, presence: Presence) -> None:
        spoiled = SelfSet(presence, {}, "why")
        filled = supply(Declaration(Kind.MDEV, spoiled), Policy(supplied_self=SELF))
        assert filled.self == spoiled

    def test_entries_are_appended(self) -> None:
        policy = Policy(supplied_compatible=({"mdev_type": "U"}, {}, {"type": "V"}))
        filled = supply(target(ENTRY), policy)
        assert [entry.attributes for entry in filled.accepts.entries] == [ENTRY, {"type": "U"}, {"type": "V"}]
        filled = supply(NOTHING, policy)
        assert filled.accepts == Acceptance(Presence.PRESENT, (Entry({"type": "U"}), Entry({"type": "V"})))

    @pytest.mark.parametrize("presence", [Presence.MALFORMED, Presence.UNREADABLE])
    def test_entries_are_appended_to_what_could_not_be_used(self, presence: Presence) -> None:
        device = Declaration(Kind.MDEV, own(SELF), Acceptance(presence, problem="why"))
        filled = supply(device, Policy(supplied_compatible=(ENTRY,)))
        assert filled.accepts.presence is presence
        assert decide(source(), filled).compatible

    def test_a_malformed_supplied_part_never_raises(self) -> None:
        policy = Policy(supplied_self={"x": "{"}, supplied_compatible=({"pci_id": "x"}, {"type": "{"}))
        filled = supply(source(), policy)
        assert filled.self.presence is Presence.MALFORMED
        assert decide(source(), filled, policy).reason == "NoCompatibleEntry"

    def test_real_hardware_that_says_nothing(self) -> None:
        """What the text of §5 is for: both sides say nothing, the policy says it for them."""
        policy = Policy(supplied_self=SELF, supplied_compatible=(ENTRY,))
        found = decide(supply(NOTHING, policy), supply(NOTHING, policy), policy)
        assert (found.compatible, found.rank) == (True, (0, 0, 0, 0))

    def test_a_supplied_device_survives_encoding(self) -> None:
        filled = supply(NOTHING, Policy(supplied_self=SELF, supplied_compatible=(ENTRY,)))
        assert msgspec.json.decode(msgspec.json.encode(filled), type=Declaration) == filled


SHOWN = {**SELF, "pci_revision": "a1", "ecc_mode": "on"}


def showing(**attributes: str) -> Declaration:
    return Declaration(Kind.PHYSICAL, shown={**SHOWN, **attributes})


class TestShown:
    """What a device shows without declaring it (docs/semantics.md, appendix)."""

    def test_is_nothing_while_no_policy_supplies_anything(self) -> None:
        policy = Policy(unknown=Choice.ALLOW, set_attributes=("pci_revision",))
        assert supply(showing(), policy) == showing()
        assert decide(showing(), showing(), DEFAULT_POLICY).reason == "NotMigratable"

    def test_completes_self_with_must_attributes_and_what_entries_name(self) -> None:
        filled = supply(showing(), Policy(supplied_compatible=({"pci_revision": "a1"},)))
        assert filled.self == SelfSet(Presence.PRESENT, {**SELF, "pci_revision": "a1"})
        filled = supply(showing(), Policy(supplied_compatible=({"x": "{self:ecc_mode}"},)))
        assert filled.self.attributes == {**SELF, "ecc_mode": "on"}

    def test_gives_way_to_the_policy_and_to_the_device(self) -> None:
        declared = msgspec.structs.replace(showing(), self=own({**SELF, "pci_revision": "b2"}))
        policy = Policy(
            supplied_self={"ecc_mode": "off"}, supplied_compatible=({"pci_revision": "x", "ecc_mode": "x"},)
        )
        assert supply(declared, policy).self.attributes == {**SELF, "pci_revision": "b2", "ecc_mode": "off"}

    def test_too_little_is_no_self(self) -> None:
        """The device said nothing, so nothing it said is malformed; ``unknown: Allow`` still covers it."""
        little = Declaration(Kind.PHYSICAL, shown={"pci_id": "8086591d"})
        policy = Policy(supplied_compatible=(ENTRY,), unknown=Choice.ALLOW)
        assert supply(little, policy).self == SelfSet()
        assert decide(supply(little, policy), supply(little, policy), policy).reason == "Unknown"

    @pytest.mark.parametrize("value", ["{", "\x01"])
    def test_what_is_no_value_is_left_out(self, value: str) -> None:
        filled = supply(showing(pci_revision=value), Policy(supplied_compatible=({"pci_revision": "a1"},)))
        assert filled.self == SelfSet(Presence.PRESENT, SELF)


ALLOWING = Policy(unknown=Choice.ALLOW)


class TestLikeMe:
    """``{self:<attribute>}`` in supplied entries."""

    POLICY = Policy(supplied_compatible=({"pci_revision": "{self:pci_revision}"},))

    @pytest.mark.parametrize(("theirs", "reason"), [("a1", "Compatible"), ("a2", "AttributeMismatch")])
    def test_stands_for_the_targets_own_value(self, theirs: str, reason: str) -> None:
        found = decide(supply(showing(pci_revision=theirs), self.POLICY), supply(showing(), self.POLICY))
        assert found.reason == reason

    def test_what_the_target_does_not_show_is_unknown_until_another_entry_matches(self) -> None:
        dumb = Declaration(Kind.PHYSICAL, shown=SELF)
        found = decide(supply(showing(), self.POLICY), supply(dumb, self.POLICY))
        assert found.reason == "Unknown"
        assert found.message == "pci_revision: the policy compares it, and the target does not show it"
        assert decide(supply(showing(), self.POLICY), supply(dumb, self.POLICY), ALLOWING).compatible
        other = Policy(supplied_compatible=(*self.POLICY.supplied_compatible, {"pci_revision": "a1"}))
        assert decide(supply(showing(), other), supply(dumb, other)).compatible

    def test_a_value_of_two_is_unknown_where_one_of_them_is(self) -> None:
        policy = Policy(supplied_compatible=({"x": "{self:pci_revision}-{self:absent}"},))
        assert supply(showing(), policy).accepts.entries == (Entry(unknown=("x",)),)

    def test_what_is_known_not_to_match_is_not_unknown(self) -> None:
        policy = Policy(
            supplied_compatible=({"pci_id": "{self:pci_id}", "pci_revision": "{self:pci_revision}"},)
        )
        dumb = Declaration(Kind.PHYSICAL, shown={**SELF, "pci_id": "8086ffff"})
        found = decide(supply(showing(), policy), supply(dumb, policy), ALLOWING)
        assert (found.compatible, found.reason) == (False, "ApiSpecificMismatch")

    def test_a_target_that_shows_nothing_is_unknown(self) -> None:
        nothing = Declaration(Kind.PHYSICAL)
        policy = Policy(supplied_compatible=({"type": "{self:type}", "pci_id": "{self:pci_id}"},))
        assert decide(supply(showing(), policy), supply(nothing, policy)).reason == "Unknown"

    def test_nothing_is_known_of_a_target_whose_self_is_malformed(self) -> None:
        flawed = SelfSet(Presence.MALFORMED, {"pci_revision": "a1"}, "it lacks type")
        filled = supply(Declaration(Kind.PHYSICAL, flawed), self.POLICY)
        assert filled.self == flawed
        assert filled.accepts.entries == (Entry(unknown=("pci_revision",)),)

    def test_what_only_the_source_does_not_show_is_unknown_too(self) -> None:
        dumb = supply(Declaration(Kind.PHYSICAL, shown=SELF), self.POLICY)
        found = decide(dumb, supply(showing(), self.POLICY))
        assert (found.compatible, found.reason, found.entry) == (False, "Unknown", 0)
        assert found.message == "pci_revision: the policy compares it, and the source does not show it"
        assert decide(dumb, supply(showing(), self.POLICY), ALLOWING).compatible
        other = Policy(supplied_compatible=(*self.POLICY.supplied_compatible, {"type": SELF["type"]}))
        found = decide(dumb, supply(showing(), other))
        assert (found.reason, found.entry) == ("Compatible", 1)

    def test_what_is_known_not_to_match_is_not_unknown_for_the_source_either(self) -> None:
        policy = Policy(supplied_compatible=({"ecc_mode": "off", "pci_revision": "{self:pci_revision}"},))
        dumb = Declaration(Kind.PHYSICAL, shown={**SELF, "ecc_mode": "on"})
        found = decide(supply(dumb, policy), supply(showing(), policy), ALLOWING)
        assert (found.compatible, found.reason) == (False, "AttributeMismatch")

    def test_what_neither_shows_is_the_targets(self) -> None:
        dumb = supply(Declaration(Kind.PHYSICAL, shown=SELF), self.POLICY)
        assert "the target does not show it" in decide(dumb, dumb).message

    def test_what_is_ignored_or_empty_need_not_be_shown(self) -> None:
        dumb = supply(Declaration(Kind.PHYSICAL, shown=SELF), self.POLICY)
        ignoring = msgspec.structs.replace(self.POLICY, ignored_attributes=("pci_revision",))
        assert decide(dumb, supply(showing(), ignoring), ignoring).compatible
        empty = msgspec.structs.replace(self.POLICY, supplied_self={"pci_revision": ""})
        assert decide(dumb, supply(showing(), empty)).compatible

    @pytest.mark.parametrize(
        "says", [{"self": own(SELF)}, {"accepts": Acceptance(Presence.PRESENT, (Entry(ENTRY),))}]
    )
    def test_a_source_that_declares_anything_lacks_what_it_does_not_declare(
        self, says: dict[str, SelfSet | Acceptance]
    ) -> None:
        declared = Declaration(Kind.PHYSICAL, shown=SELF, **says)  # type: ignore[arg-type]
        found = decide(supply(declared, self.POLICY), supply(showing(), self.POLICY), ALLOWING)
        assert (found.compatible, found.reason) == (False, "AttributeMissingOnSource")

    def test_a_value_that_the_policy_names_and_a_devices_own_entry_are_demanded(self) -> None:
        dumb = supply(Declaration(Kind.PHYSICAL, shown=SELF), self.POLICY)
        literal = Policy(supplied_compatible=({"pci_revision": "a1"},))
        assert decide(dumb, supply(showing(), literal), ALLOWING).reason == "AttributeMissingOnSource"
        accepts = Acceptance(Presence.PRESENT, (Entry({**ENTRY, "pci_revision": "a1"}),))
        declared = msgspec.structs.replace(showing(), self=own(SELF), accepts=accepts)
        assert decide(dumb, declared, ALLOWING).reason == "AttributeMissingOnSource"

    def test_keeps_braces_out_of_a_devices_own_entries(self) -> None:
        device = target({**ENTRY, "type": "{self:type}"})
        assert decide(source(), supply(device, self.POLICY)).reason != "Compatible"

    @pytest.mark.parametrize("name", ["x", "X9", "example.com_a-b"])
    def test_names_any_attribute(self, name: str) -> None:
        policy = Policy(supplied_self={name: "1"}, supplied_compatible=({name: f"v{{self:{name}}}"},))
        (entry,) = supply(showing(), policy).accepts.entries
        assert entry == Entry({name: "v1"})

    def test_may_stand_in_a_policy(self) -> None:
        raw = {"compatible": [{"pci_id": "{self:pci_id}", "x": "v{self:driver_version}"}]}
        assert parse_policy(raw).supplied_compatible == tuple(raw["compatible"])
        with pytest.raises(PolicyError, match=r"compatible\[0\]"):
            parse_policy({"compatible": [{"x": "{self:a}{b}"}]})
