"""What is to be done about one MigrationCompatibility, from objects alone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from migcompat.api import migrationcompatibility as api
from migcompat.api.cluster import VirtualMachineInstance
from migcompat.api.compatibilitypolicy import CompatibilityPolicy
from migcompat.api.meta import Condition, ObjectMeta
from migcompat.engine.declaration import Declaration, Kind
from migcompat.fleet.fleet import Fleet
from migcompat_operator.answer import condition
from migcompat_operator.reconcile import Plan, merge_patch, reconcile, wire

from tests.support.fleets import POOL, declared, node, pod, vfionode, vmi

NOW = "2026-01-01T00:00:00Z"
LATER = "2026-01-02T00:00:00Z"


def fleet_of(targets: dict[str, list[Declaration]], **annotations: str) -> Fleet:
    """vm-a on node-1 holds a device of version 1.1.0."""
    fleet = Fleet()
    fleet.put_node(node("node-1"))
    holder = {"src": ("tenant-a", "virt-launcher-vm-a-src")}
    fleet.put_vfionode(vfionode("node-1", {"src": declared("1.1.0")}, allocated=holder))
    fleet.put_pod(pod("vm-a", "node-1"))
    fleet.put_vmi(vmi("vm-a", "node-1", annotations=annotations))
    for name, declarations in targets.items():
        fleet.put_node(node(name))
        fleet.put_vfionode(vfionode(name, {f"{name}-{i}": d for i, d in enumerate(declarations)}))
    return fleet


def of(fleet: Fleet, name: str = "vm-a") -> VirtualMachineInstance | None:
    return fleet.vmi("tenant-a", name)


def stored(plan: Plan, existing: api.MigrationCompatibility | None = None) -> api.MigrationCompatibility:
    """The object as the API server would hold it after the plan."""
    item = existing or plan.create
    assert item is not None
    assert plan.status is not None
    meta = msgspec.structs.replace(item.metadata, uid="mc-uid", generation=1, resource_version="7")
    status = msgspec.convert(wire(plan.status), api.MigrationCompatibilityStatus)
    return msgspec.structs.replace(item, metadata=meta, status=status)


def verdict(plan: Plan) -> tuple[str, str]:
    assert plan.status is not None
    found = condition(plan.status, "Migratable")
    assert found is not None
    return found.status, found.reason


def question(**spec: Any) -> api.MigrationCompatibility:
    return api.MigrationCompatibility(
        ObjectMeta(name="q", namespace="tenant-a", uid="q-uid", generation=1),
        msgspec.convert(spec, api.MigrationCompatibilitySpec),
    )


def test_makes_an_owned_object_with_counts_groups_and_conditions() -> None:
    fleet = fleet_of(
        {
            "n2": [declared("1.0.0")],
            "n3": [declared("1.0.0")],
            "n4": [declared("1.2.0")],
            "n5": [declared("2.0.0")],
        }
    )
    plan = reconcile(fleet, None, of(fleet), now=NOW)
    assert plan.create is not None
    assert plan.create.is_made_by_operator
    owner = (plan.create.metadata.owner_references or [])[0]
    assert (owner.kind, owner.name, owner.uid) == ("VirtualMachineInstance", "vm-a", "uid-vm-a")
    assert plan.create.spec.virtual_machine_instance == api.VMIReference("vm-a")
    status = plan.status
    assert status is not None
    assert (status.source.node, status.device_count, status.targets) == ("node-1", 1, "1/4")
    assert (status.compatible, status.free, status.total, status.accepting) == (1, 1, 4, ["n4"])
    assert [(g.reason, g.count, g.nodes) for g in status.refusals] == [
        ("VersionMinorOlder", 2, ["n2", "n3"]),
        ("VersionMajorMismatch", 1, ["n5"]),
    ]
    assert status.source.devices[0].resource == POOL
    assert status.source.devices[0].attributes["software_version"] == "1.1.0"
    assert {c.type: (c.status, c.reason) for c in status.conditions} == {
        "DevicesCompatible": ("True", "Compatible"),
        "Migratable": ("True", "Compatible"),
        "Available": ("True", "TargetFree"),
    }
    assert all(c.last_transition_time == NOW for c in status.conditions)
    assert plan.urgent
    assert not plan.events, "a VM that can migrate from the start is no news"


def test_reason_is_the_largest_groups_and_the_event_names_causes_and_counts() -> None:
    fleet = fleet_of({"n2": [declared("1.0.0")], "n3": [declared("1.0.0")], "n5": [declared("2.0.0")]})
    plan = reconcile(fleet, None, of(fleet), now=NOW)
    assert verdict(plan) == ("False", "VersionMinorOlder")
    (event,) = plan.events
    assert (event.type, event.reason, event.about.kind) == (
        "Warning",
        "MigrationImpossible",
        "VirtualMachineInstance",
    )
    for part in ("None of 3 nodes", "2 VersionMinorOlder", "1 VersionMajorMismatch", "1.1.0"):
        assert part in event.message


def test_nothing_is_written_twice() -> None:
    fleet = fleet_of({"n2": [declared("1.0.0")], "n4": [declared("1.2.0")]})
    item = stored(reconcile(fleet, None, of(fleet), now=NOW))
    again = reconcile(fleet, item, of(fleet), now=LATER)
    assert again.is_empty
    assert again.survey is not None


def test_a_vm_that_has_moved_says_so_at_once() -> None:
    fleet = fleet_of({"n4": [declared("1.2.0")], "n5": [declared("1.2.0")]})
    item = stored(reconcile(fleet, None, of(fleet), now=NOW))
    fleet.put_pod(pod("vm-a", "n4", source="node-1", suffix="tgt"))
    holder = ("tenant-a", "virt-launcher-vm-a-tgt")
    fleet.put_vfionode(vfionode("n4", {"n4-0": declared("1.2.0")}, allocated={"n4-0": holder}))
    fleet.put_vmi(vmi("vm-a", "n4"))
    moved = reconcile(fleet, item, of(fleet), now=LATER)
    assert verdict(moved) == ("True", "Compatible"), "the verdict itself has not changed"
    assert moved.urgent
    assert moved.status is not None
    assert moved.status.source.node == "n4"


def test_a_count_may_wait_a_verdict_may_not() -> None:
    fleet = fleet_of({"n2": [declared("1.0.0")], "n4": [declared("1.2.0")]})
    item = stored(reconcile(fleet, None, of(fleet), now=NOW))
    fleet.put_node(node("n6"))
    fleet.put_vfionode(vfionode("n6", {"x": declared("1.2.0")}))
    more = reconcile(fleet, item, of(fleet), now=LATER)
    assert more.is_patient
    assert more.status is not None
    assert more.status.targets == "2/3"
    assert all(c.last_transition_time == NOW for c in more.status.conditions), "no status changed"
    fleet.drop_vfionode("n4")
    fleet.drop_vfionode("n6")
    none = reconcile(fleet, stored(more, item), of(fleet), now=LATER)
    assert none.urgent
    assert not none.is_patient
    assert verdict(none) == ("False", "VersionMinorOlder")
    found = condition(none.status or api.MigrationCompatibilityStatus(), "Migratable")
    assert found is not None
    assert found.last_transition_time == LATER
    assert [e.reason for e in none.events] == ["MigrationImpossible"]
    fleet.put_vfionode(vfionode("n4", {"x": declared("1.2.0")}))
    back = reconcile(fleet, stored(none, item), of(fleet), now=LATER)
    (event,) = back.events
    assert (event.type, event.reason) == ("Normal", "MigrationPossible")
    assert event.message == "1 of 2 nodes accepts its devices, 1 of them with free ones."


def test_compatible_but_none_free() -> None:
    fleet = fleet_of({})
    fleet.put_node(node("n2"))
    fleet.put_vfionode(vfionode("n2", {"x": declared("1.1.0")}, allocated={"x": ("a", "b")}))
    plan = reconcile(fleet, None, of(fleet), now=NOW)
    assert plan.status is not None
    assert verdict(plan) == ("True", "Compatible")
    found = condition(plan.status, "Available")
    assert found is not None
    assert (found.status, found.reason) == ("False", "NoneFree")


def test_kubevirts_own_no_is_kept_apart_from_what_devices_allow() -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")]})
    item = of(fleet)
    assert item is not None
    no = Condition("LiveMigratable", "False", "HostDeviceNotLiveMigratable", "VMI uses a host device")
    fleet.put_vmi(msgspec.structs.replace(item, status=msgspec.structs.replace(item.status, conditions=[no])))
    plan = reconcile(fleet, None, of(fleet), now=NOW)
    assert verdict(plan) == ("False", "KubeVirtNotMigratable")
    assert plan.status is not None
    found = {c.type: c for c in plan.status.conditions}
    assert "VMI uses a host device" in found["Migratable"].message
    assert (found["DevicesCompatible"].status, found["DevicesCompatible"].reason) == ("True", "Compatible")


def test_source_that_cannot_be_known_is_unknown_and_says_why() -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")]})
    fleet.put_vfionode(vfionode("node-1", {"src": declared("1.1.0")}))
    plan = reconcile(fleet, None, of(fleet), now=NOW)
    assert verdict(plan) == ("Unknown", "Unknown")
    found = condition(plan.status or api.MigrationCompatibilityStatus(), "Migratable")
    assert found is not None
    assert "has not published which devices the VM holds" in found.message
    assert not plan.events


def test_no_other_node_offers_the_pool() -> None:
    fleet = fleet_of({})
    plan = reconcile(fleet, None, of(fleet), now=NOW)
    assert verdict(plan) == ("False", "NoCandidates")
    assert POOL in plan.events[0].message


def test_our_object_goes_with_the_vm_or_its_devices_and_follows_a_restart() -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")]})
    item = stored(reconcile(fleet, None, of(fleet), now=NOW))
    reborn = vmi("vm-a", "node-1")
    reborn.metadata.uid = "uid-new"
    fleet.put_vmi(reborn)
    plan = reconcile(fleet, item, of(fleet), now=NOW)
    assert plan.adopt is not None
    assert plan.adopt.uid == "uid-new"
    fleet.put_vmi(vmi("vm-a", "node-1", resources=()))
    assert reconcile(fleet, item, of(fleet), now=NOW).delete
    assert reconcile(fleet, item, None, now=NOW).delete
    ended = vmi("vm-a", "node-1")
    for phase in ("Succeeded", "Failed"):
        ended.status = msgspec.structs.replace(ended.status, phase=phase)
        fleet.put_vmi(ended)
        assert reconcile(fleet, item, of(fleet), now=NOW).delete
        assert reconcile(fleet, None, of(fleet), now=NOW).is_empty


def test_a_users_object_of_the_same_name_is_answered_and_left_alone() -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")]})
    mine = api.MigrationCompatibility(
        ObjectMeta(name="vm-a", namespace="tenant-a", uid="mine", generation=3),
        api.MigrationCompatibilitySpec(virtual_machine_instance=api.VMIReference("vm-a")),
    )
    plan = reconcile(fleet, mine, of(fleet), now=NOW)
    assert (plan.create, plan.delete, plan.adopt) == (None, False, None)
    assert verdict(plan) == ("True", "Compatible")
    assert plan.status is not None
    assert plan.status.observed_generation == 3
    gone = reconcile(fleet, mine, None, now=NOW)
    assert not gone.delete


def test_an_answer_is_held_only_while_a_running_vms_devices_are_not_published_yet() -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")]})
    item = stored(reconcile(fleet, None, of(fleet), now=NOW))
    unpublished = vfionode("node-1", {"src": declared("1.1.0")})
    fleet.put_vfionode(unpublished)
    assert reconcile(fleet, item, of(fleet), now=LATER, hold=True).held
    unknown = reconcile(fleet, item, of(fleet), now=LATER)
    assert verdict(unknown) == ("Unknown", "Unknown")
    assert not reconcile(fleet, stored(unknown, item), of(fleet), now=LATER, hold=True).held

    fleet.drop_vfionode("node-1")
    gone = reconcile(fleet, item, of(fleet), now=LATER, hold=True)
    assert verdict(gone) == ("Unknown", "Unknown"), "nobody will publish anything there"

    fleet.put_vfionode(unpublished)
    scheduling = vmi("vm-a", "node-1")
    scheduling.status = msgspec.structs.replace(scheduling.status, phase="Scheduling")
    fleet.put_vmi(scheduling)
    assert not reconcile(fleet, item, of(fleet), now=LATER, hold=True).held
    reborn = vmi("vm-a", "node-1")
    reborn.metadata.uid = "uid-new"
    fleet.put_vmi(reborn)
    assert not reconcile(fleet, item, of(fleet), now=LATER, hold=True).held, "the answer is another VM's"


def test_overrides_of_a_users_object_are_no_news_about_the_vm() -> None:
    fleet = fleet_of({"n2": [declared("1.4.0")]})
    mine = question(virtualMachineInstance={"name": "vm-a"}, policy={"versionScheme": "exact"})
    mine.metadata.name = "vm-a"
    plan = reconcile(fleet, mine, of(fleet), now=NOW)
    assert verdict(plan)[0] == "False"
    assert (plan.events, plan.survey) == ((), None)


@pytest.mark.parametrize("part", ["labels", "owner_references"])
def test_only_what_bears_both_marks_of_ours_is_ours_to_delete(part: str) -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")]})
    item = stored(reconcile(fleet, None, of(fleet), now=NOW))
    setattr(item.metadata, part, None)
    assert not reconcile(fleet, item, None, now=NOW).delete


def test_an_object_that_is_being_deleted_is_left_alone() -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")]})
    item = stored(reconcile(fleet, None, of(fleet), now=NOW))
    item.metadata.deletion_timestamp = LATER
    fleet.drop_vfionode("n2")
    assert reconcile(fleet, item, of(fleet), now=LATER).is_empty
    assert reconcile(fleet, item, None, now=LATER).is_empty


def test_a_changed_question_is_answered_at_once_though_the_answer_is_the_same() -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")]})
    item = stored(reconcile(fleet, None, of(fleet), now=NOW))
    item.metadata.generation = 2
    plan = reconcile(fleet, item, of(fleet), now=LATER)
    assert plan.urgent
    assert plan.status is not None
    assert plan.status.observed_generation == 2


def test_an_object_that_asks_about_another_vm_says_nothing_on_the_vm_of_its_name() -> None:
    fleet = fleet_of({"n2": [declared("1.0.0")]})
    fleet.put_vmi(vmi("vm-b", "node-1"))
    item = question(virtualMachineInstance={"name": "vm-a"})
    item.metadata.name = "vm-b"
    plan = reconcile(fleet, item, of(fleet, "vm-b"), now=NOW)
    assert verdict(plan) == ("False", "VersionMinorOlder")
    assert (plan.events, plan.survey) == ((), None)


def allow_unknown(fleet: Fleet) -> Plan:
    fleet.put_policy(CompatibilityPolicy(ObjectMeta(name="lax"), msgspec.Raw(b'{"unknown": "Allow"}')))
    plan = reconcile(fleet, None, of(fleet), now=NOW)
    found = condition(plan.status or api.MigrationCompatibilityStatus(), "Migratable")
    assert found is not None
    assert "because policies allow what is unknown there" in found.message
    return plan


def test_what_policies_allow_unknown_is_told_as_unknown() -> None:
    nothing_said = fleet_of({"n2": [Declaration(Kind.MDEV)]})
    assert verdict(allow_unknown(nothing_said)) == ("True", "Unknown")
    no_source = fleet_of({"n2": [declared("1.1.0")]})
    no_source.drop_vfionode("node-1")
    assert verdict(allow_unknown(no_source)) == ("True", "Unknown")


def test_zeroes_are_written_because_columns_show_nothing_for_what_is_absent() -> None:
    told = wire(api.MigrationCompatibilityStatus())
    assert {key: told[key] for key in ("compatible", "free", "total")} == {
        "compatible": 0,
        "free": 0,
        "total": 0,
    }


def test_questions_about_a_device_and_about_literal_attributes() -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")], "n3": [declared("1.0.0")]})
    device = reconcile(fleet, question(device={"node": "n3", "id": "n3-0"}), None, now=NOW)
    assert device.status is not None
    assert (device.status.source.node, device.status.targets) == ("n3", "2/2")
    own = {"software_version": "1.1.0", "device_api": "vfio-pci", "type": "GRID-T4-1Q"}
    literal = reconcile(fleet, question(attributes={"resource": POOL, "self": own}), None, now=NOW)
    assert literal.status is not None
    assert literal.status.targets == "2/3", "n3 is older; node-1's own device counts, though in use"
    assert literal.status.free == 1


def test_literal_attributes_are_read_as_a_device_would_say_them() -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")]})
    own = {"interface_version": "1.1.0", "device_api": "vfio_pci", "mdev_type": "GRID-T4-1Q"}
    plan = reconcile(fleet, question(attributes={"resource": POOL, "self": own}), None, now=NOW)
    assert verdict(plan) == ("True", "Compatible")
    partial = reconcile(
        fleet, question(attributes={"resource": POOL, "self": {"type": "GRID-T4-1Q"}}), None, now=NOW
    )
    assert verdict(partial) == ("False", "MalformedSelf")


def test_overrides_change_the_answer_to_the_question() -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")], "n3": [declared("1.4.0")]})
    plain = reconcile(fleet, question(virtualMachineInstance={"name": "vm-a"}), None, now=NOW)
    exact = reconcile(
        fleet,
        question(virtualMachineInstance={"name": "vm-a"}, policy={"versionScheme": "exact"}),
        None,
        now=NOW,
    )
    both = reconcile(
        fleet,
        question(virtualMachineInstance={"name": "vm-a"}, policy={"requireReturnPath": True}),
        None,
        now=NOW,
    )
    assert [p.status.targets for p in (plain, exact, both) if p.status] == ["2/2", "1/2", "1/2"]


@pytest.mark.parametrize(
    "spec",
    [{}, {"device": {"node": "n", "id": "d"}, "virtualMachineInstance": {"name": "vm-a"}}],
)
def test_a_question_that_asks_nothing_or_several_things_is_told_so(spec: dict[str, Any]) -> None:
    plan = reconcile(fleet_of({}), question(**spec), None, now=NOW)
    assert verdict(plan) == ("Unknown", "InvalidSpec")


def test_a_question_about_what_is_not_there_is_told_so() -> None:
    fleet = fleet_of({})
    vm = reconcile(fleet, question(virtualMachineInstance={"name": "nobody"}), None, now=NOW)
    assert verdict(vm) == ("Unknown", "VirtualMachineInstanceNotFound")
    device = reconcile(fleet, question(device={"node": "node-1", "id": "x"}), None, now=NOW)
    assert verdict(device) == ("Unknown", "DeviceNotFound")


def test_unknown_annotation_values_warn_and_loosening_is_told() -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")]}, **{"migcompat.io/mode": "sometimes"})
    (event,) = reconcile(fleet, None, of(fleet), now=NOW).events
    assert (event.type, event.reason) == ("Warning", "UnknownAnnotationValue")
    assert "sometimes" in event.message
    lax = fleet_of({"n2": [declared("1.1.0")]}, **{"migcompat.io/mode": "ignore"})
    assert [e.reason for e in reconcile(lax, None, of(lax), now=NOW).events] == ["LooseningIgnored"]
    allowed = reconcile(lax, None, of(lax), now=NOW, allow_loosening=True)
    assert [e.reason for e in allowed.events] == ["RulesLoosened"]


def test_lists_are_bounded_counts_are_not() -> None:
    targets = {f"n{i:03}": [declared(f"1.0.{i % 40}")] for i in range(100)}
    targets |= {f"m{i:03}": [declared("1.2.0")] for i in range(15)}
    plan = reconcile(fleet := fleet_of(targets), None, of(fleet), now=NOW)
    status = plan.status
    assert status is not None
    assert (status.compatible, len(status.accepting)) == (15, 10)
    assert sum(group.count for group in status.refusals) == 100
    assert len(status.refusals) <= 21
    assert all(len(group.nodes) <= 10 for group in status.refusals)


def test_merge_patch_sets_removes_and_keeps() -> None:
    old = {"free": 1, "obligations": {"a": "1", "b": "2"}, "gone": [1], "same": {"x": 1}}
    new = {"free": 0, "obligations": {"a": "3"}, "same": {"x": 1}}
    assert merge_patch(old, new) == {"free": 0, "obligations": {"a": "3", "b": None}, "gone": None}
