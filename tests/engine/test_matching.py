"""The stages of matching (semantics §3)."""

from __future__ import annotations

import msgspec
import pytest
from migcompat.engine.declaration import Declaration, Kind, Presence, SelfSet

from tests.engine.builders import ENTRY, SELF, accepts_text, own, reason, source, target, verdict

CCW = {
    "software_version": "1.2.3",
    "device_api": "vfio-ccw",
    "type": "T",
    "subchannel_type": "0",
}


def physical(**attributes: str) -> Declaration:
    return Declaration(Kind.PHYSICAL, own({**SELF, **attributes}, Kind.PHYSICAL))


def without(declared: Declaration, *names: str) -> Declaration:
    """*declared* without some of its own attributes; not checked again for must attributes."""
    left = {name: value for name, value in declared.self.attributes.items() if name not in names}
    return msgspec.structs.replace(declared, self=SelfSet(Presence.PRESENT, left))


def omit(entry: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in entry.items() if name not in names}


class TestDeviceApi:
    def test_the_targets_own_counts_when_the_entry_has_none(self) -> None:
        bare = omit(ENTRY, "device_api")
        assert reason(source(), target(bare)) == "Compatible"
        assert reason(source(device_api="vfio-ap"), target(bare)) == "DeviceApiMismatch"

    def test_underscores_are_hyphens_in_self_entry_and_own(self) -> None:
        assert accepts_text({"device_api": "vfio_pci"}, {"device_api": "vfio-pci"}) == "Compatible"
        assert accepts_text({"device_api": "vfio-pci"}, {"device_api": "vfio_pci"}) == "Compatible"

    def test_comparison_is_case_sensitive(self) -> None:
        assert accepts_text({"device_api": "VFIO-PCI"}, {}) == "DeviceApiMismatch"

    def test_a_set_attribute_of_the_policy_does_not_soften_it(self) -> None:
        pattern = {"device_api": "vfio-pci,vfio-ap"}
        assert accepts_text(pattern, {}, setAttributes=["device_api"]) == "DeviceApiMismatch"


class TestApiSpecific:
    def test_physical_own_pci_id(self) -> None:
        there = target(ENTRY, kind=Kind.PHYSICAL)
        assert reason(physical(), there) == "Compatible"
        assert reason(physical(pci_id="8086591e"), there) == "ApiSpecificMismatch"

    def test_physical_entrys_pci_id_replaces_the_own(self) -> None:
        there = target({**ENTRY, "pci_id": "8086591e"}, kind=Kind.PHYSICAL)
        assert reason(physical(), there) == "ApiSpecificMismatch"
        assert reason(physical(pci_id="8086591e"), there) == "Compatible"

    def test_an_mdevs_pci_id_counts_only_when_the_entry_names_it(self) -> None:
        assert reason(source(pci_id="11112222"), target(ENTRY)) == "Compatible"
        there = target({**ENTRY, "pci_id": "8086591d"})
        assert reason(source(pci_id="11112222"), there) == "ApiSpecificMismatch"
        assert reason(without(source(), "pci_id"), there) == "ApiSpecificMismatch"

    def test_a_physical_target_needs_the_pci_id_of_an_mdev_too(self) -> None:
        there = target(ENTRY, kind=Kind.PHYSICAL)
        assert reason(without(source(), "pci_id"), there) == "ApiSpecificMismatch"

    def test_ccw_subchannel_type_of_the_entry_or_the_own(self) -> None:
        def device(**attributes: str) -> Declaration:
            return Declaration(Kind.MDEV, own({**CCW, **attributes}))

        def accepting(entry: dict[str, str]) -> Declaration:
            return msgspec.structs.replace(target(entry), self=own(CCW))

        there = accepting(omit(CCW, "subchannel_type"))
        assert reason(device(), there) == "Compatible"
        assert reason(device(subchannel_type="0x1"), there) == "ApiSpecificMismatch"
        there = accepting({**CCW, "subchannel_type": "0x1"})
        assert reason(device(subchannel_type="0b1"), there) == "Compatible"
        assert reason(device(subchannel_type="0"), there) == "ApiSpecificMismatch"

    def test_another_apis_attribute_is_one_like_any_other(self) -> None:
        """``pci_id`` beside vfio-ap, ``subchannel_type`` beside vfio-pci: stage 6."""
        assert accepts_text({}, {"subchannel_type": "0"}) == "AttributeMissingOnTarget"
        matrix = {"device_api": "vfio-ap"}
        assert accepts_text(matrix, matrix) == "AttributeMissingOnTarget"
        assert accepts_text({**matrix, "pci_id": "8086591d"}, matrix) == "Compatible"


class TestType:
    def test_own_type_when_the_entry_has_none(self) -> None:
        bare = omit(ENTRY, "type")
        assert reason(source(), target(bare)) == "Compatible"
        assert reason(source(type="U"), target(bare)) == "TypeMismatch"

    def test_cross_type_deny_compares_the_own_type_in_addition(self) -> None:
        there = target({**ENTRY, "type": "U"})
        assert reason(source(type="U"), there) == "Compatible"
        assert reason(source(type="U"), there, crossType="Deny") == "TypeMismatch"
        assert reason(source(), there, crossType="Deny") == "TypeMismatch"
        assert reason(source(), target(ENTRY), crossType="Deny") == "Compatible"
        assert verdict(source(type="U"), there, crossType="Deny").message == (
            'type: source has "U", target is itself "T", and the policy denies other types'
        )

    def test_no_globbing_no_regular_expression_no_case_folding(self) -> None:
        for pattern in ("*", ".*", "t", "T*", "T,U"):
            assert accepts_text({"type": pattern}, {}) == "TypeMismatch"


class TestOtherAttributes:
    def test_missing_on_source_unless_the_pattern_may_be_empty(self) -> None:
        assert accepts_text({"x": "7"}, {}) == "AttributeMissingOnSource"
        assert accepts_text({"x": ""}, {}) == "Compatible"
        assert accepts_text({"x": '{v:string:"a",""}'}, {}) == "Compatible"
        assert accepts_text({"x": '{v:string:"a",""}b'}, {}) == "AttributeMissingOnSource"
        assert accepts_text({"x": '{v:string:"a",""}{w:string:"","b"}'}, {}) == "Compatible"

    def test_the_binding_that_makes_a_pattern_empty_is_shared(self) -> None:
        pattern = {"x": '{v:string:"a",""}', "y": "z{v}"}
        assert accepts_text(pattern, {"y": "z"}) == "Compatible"
        assert accepts_text(pattern, {"y": "za"}) != "Compatible"

    def test_a_set_that_the_source_lacks_is_missing_not_the_empty_set(self) -> None:
        assert accepts_text({"features": "A+B"}, {}) == "AttributeMissingOnSource"

    def test_an_empty_pattern_still_constrains_a_source_that_has_the_attribute(self) -> None:
        assert accepts_text({"x": ""}, {"x": "7"}) == "AttributeMismatch"
        assert accepts_text({"x": ""}, {"x": ""}) == "Compatible"
        assert accepts_text({"x": "7"}, {"x": ""}) == "AttributeMismatch"

    def test_missing_on_target_unless_empty_off_ignored_or_dynamic(self) -> None:
        assert accepts_text({}, {"x": "7"}) == "AttributeMissingOnTarget"
        assert accepts_text({}, {"x": ""}) == "Compatible"
        off = {"offValues": {"x": ["none", "off"]}}
        assert accepts_text({}, {"x": "off"}, **off) == "Compatible"
        assert accepts_text({}, {"x": "on"}, **off) == "AttributeMissingOnTarget"
        assert accepts_text({}, {"y": "off"}, **off) == "AttributeMissingOnTarget"
        assert accepts_text({}, {"x": "7"}, ignoredAttributes=["x"]) == "Compatible"
        assert accepts_text({}, {"x": "7"}, dynamicAttributes=["x"]) == "Compatible"

    def test_off_values_say_nothing_where_the_entry_has_the_attribute(self) -> None:
        assert accepts_text({"x": "on"}, {"x": "off"}, offValues={"x": ["off"]}) == "AttributeMismatch"

    def test_off_values_have_canonical_forms_too(self) -> None:
        off = {"offValues": {"chpid_type": ["0x1a"]}}
        assert accepts_text({}, {"chpid_type": "26"}, **off) == "Compatible"

    def test_ignored_counts_in_both_directions_and_for_different_values(self) -> None:
        ignored = {"ignoredAttributes": ["x"]}
        assert accepts_text({"x": "7"}, {}, **ignored) == "Compatible"
        assert accepts_text({"x": "7"}, {"x": "8"}, **ignored) == "Compatible"

    def test_ignored_does_not_reach_the_stages_before(self) -> None:
        everything = {"ignoredAttributes": ["type", "device_api", "software_version", "pci_id"]}
        assert accepts_text({"type": "U"}, {}, **everything) == "TypeMismatch"
        assert accepts_text({"pci_id": "11112222"}, {}, **everything) == "ApiSpecificMismatch"

    def test_templates_of_ignored_attributes_still_make_an_entry_malformed(self) -> None:
        assert accepts_text({"x": "{"}, {}, ignoredAttributes=["x"]) == "NoCompatibleEntry"

    def test_the_first_failure_in_alphabetical_order_is_told(self) -> None:
        assert accepts_text({"b": "1"}, {"a": "1"}) == "AttributeMissingOnTarget"
        assert accepts_text({"a": "1"}, {"b": "1"}) == "AttributeMissingOnSource"
        found = verdict(source(c="1", b="1"), target({**ENTRY, "b": "2", "c": "2"}))
        assert found.message == 'b: source has "1", target accepts "2"'

    def test_literals_are_whole_values(self) -> None:
        assert accepts_text({"x": "70"}, {"x": "7"}) == "AttributeMismatch"
        assert accepts_text({"x": "a"}, {"x": "A"}) == "AttributeMismatch"
        assert accepts_text({"x": "07"}, {"x": "7"}) == "AttributeMismatch"

    def test_chpid_type_in_any_base(self) -> None:
        for spelling in ("26", "0x1A", "0b11010", "0o32"):
            assert accepts_text({"chpid_type": spelling}, {"chpid_type": "0x1a"}) == "Compatible"
        assert accepts_text({"chpid_type": "032"}, {"chpid_type": "26"}) == "NoCompatibleEntry"
        assert accepts_text({"chpid_type": "26"}, {"chpid_type": "x"}) == "MalformedSelf"
        huge = "0x" + "f" * 4000
        assert (
            accepts_text({"chpid_type": huge}, {"chpid_type": huge.upper().replace("X", "x")}) == "Compatible"
        )


class TestDynamic:
    def test_obligations_hold_the_sources_values(self) -> None:
        found = verdict(source(aggregator="2", remote_url="u"), target(ENTRY))
        assert found.obligations == {"aggregator": "2", "remote_url": "u"}

    def test_constrained_ones_are_matched_like_any_other(self) -> None:
        assert accepts_text({"aggregator": "1"}, {"aggregator": "2"}) == "AttributeMismatch"
        found = verdict(source(aggregator="1"), target({**ENTRY, "aggregator": "1"}))
        assert (found.compatible, found.obligations) == (True, {})
        assert accepts_text({"aggregator": "1"}, {}) == "AttributeMissingOnSource"

    def test_an_empty_value_is_no_obligation(self) -> None:
        found = verdict(source(aggregator=""), target(ENTRY))
        assert (found.compatible, found.obligations) == (True, {})

    def test_an_off_value_still_is(self) -> None:
        found = verdict(source(aggregator="1"), target(ENTRY), offValues={"aggregator": ["1"]})
        assert found.obligations == {"aggregator": "1"}

    def test_ignored_wins(self) -> None:
        found = verdict(source(aggregator="2"), target(ENTRY), ignoredAttributes=["aggregator"])
        assert (found.compatible, found.obligations) == (True, {})

    def test_there_are_no_obligations_without_a_match(self) -> None:
        assert verdict(source(aggregator="2", x="1"), target(ENTRY)).obligations == {}

    def test_a_policys_list_replaces_the_default(self) -> None:
        policy = {"dynamicAttributes": ["x"]}
        assert accepts_text({}, {"aggregator": "2"}, **policy) == "AttributeMissingOnTarget"
        assert verdict(source(x="1"), target(ENTRY), **policy).obligations == {"x": "1"}

    @pytest.mark.parametrize(
        "name",
        [
            "remove",
            "reset",
            "reset_method",
            "rescan",
            "driver_override",
            "new_id",
            "remove_id",
            "bind",
            "unbind",
            "uevent",
            "power",
            "enable",
            "config",
            "rom",
            "resource",
            "resource0",
            "resource2_wc",
            "msi_bus",
            "d3cold_allowed",
            "sriov_numvfs",
            "sriov_drivers_autoprobe",
            "../x",
            "power/control",
            "/etc/passwd",
            ".",
            "..",
        ],
    )
    def test_names_that_are_never_dynamic(self, name: str) -> None:
        """Neither by policy nor by the target's dynamic_resources."""
        ours = source(**{name: "1"})
        assert reason(ours, target(ENTRY), dynamicAttributes=[name]) == "AttributeMissingOnTarget"
        there = target(ENTRY)
        accepts = msgspec.structs.replace(there.accepts, dynamic=(name,))
        there = msgspec.structs.replace(there, accepts=accepts)
        assert reason(ours, there) == "AttributeMissingOnTarget"

    def test_only_the_targets_dynamic_resources_count(self) -> None:
        ours, there = source(x="1"), target(ENTRY)
        named = msgspec.structs.replace(there.accepts, dynamic=("x",))
        assert verdict(ours, msgspec.structs.replace(there, accepts=named)).obligations == {"x": "1"}
        talkative = msgspec.structs.replace(ours, accepts=named)
        assert reason(talkative, there) == "AttributeMissingOnTarget"


class TestSets:
    @pytest.mark.parametrize(
        ("ours", "theirs", "expected"),
        [
            ("A+B", "B+A+C", "Compatible"),
            ("A,B", "B+A", "Compatible"),
            ("A+A+B", "A+B", "Compatible"),
            ("", "A", "Compatible"),
            ("A", "A+", "Compatible"),
            ("A+B", "A", "AttributeMismatch"),
            ("a", "A", "AttributeMismatch"),
            ("A B", "A+B", "AttributeMismatch"),
            ("A", "", "AttributeMismatch"),
        ],
    )
    def test_subset(self, ours: str, theirs: str, expected: str) -> None:
        for name in ("features", "pv_mode", "alg_set"):
            assert accepts_text({name: theirs}, {name: ours}) == expected

    def test_templates_in_sets(self) -> None:
        pattern = {"pv_mode": 'none+{v:string:"ppgtt","context"}'}
        assert accepts_text(pattern, {"pv_mode": "context+none"}) == "Compatible"
        assert accepts_text(pattern, {"pv_mode": "context+ppgtt"}) == "AttributeMismatch"

    def test_a_policys_list_replaces_the_default(self) -> None:
        assert accepts_text({"pv_mode": "a+b"}, {"pv_mode": "b"}, setAttributes=["x"]) == "AttributeMismatch"
        assert accepts_text({"x": "a+b"}, {"x": "b"}, setAttributes=["x"]) == "Compatible"
        assert accepts_text({"x": "a+b"}, {"x": "b"}) == "AttributeMismatch"

    def test_the_targets_l4_lists_are_sets(self) -> None:
        ours, there = source(x="b"), target({**ENTRY, "x": "a,b"})
        assert reason(ours, there) == "AttributeMismatch"
        accepts = msgspec.structs.replace(there.accepts, sets=("x",))
        assert reason(ours, msgspec.structs.replace(there, accepts=accepts)) == "Compatible"


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ("2", "10", "Compatible"),
        ("10", "10", "Compatible"),
        ("11", "10", "AttributeMismatch"),
        ("-1", "0", "Compatible"),
        ("x", "10", "AttributeMismatch"),
        ("1", "x", "AttributeMismatch"),
        ("x", "x", "AttributeMismatch"),
        ("", "1", "AttributeMismatch"),
        ("3", "{v:int:2,4}", "Compatible"),
        ("5", "{v:int:2,4}", "AttributeMismatch"),
    ],
)
def test_ordered(ours: str, theirs: str, expected: str) -> None:
    assert accepts_text({"q": theirs}, {"q": ours}, orderedAttributes=["q"]) == expected
