"""What is to be done about a migration's target pod, from objects alone."""

from __future__ import annotations

import msgspec
import pytest
from migcompat.api import names
from migcompat.api.cluster import ContainerState, ContainerStatus, Pod, PodStatus, Waiting
from migcompat.fleet import stamp
from migcompat.fleet.fleet import Fleet
from migcompat_operator.targets import reconcile_target

from tests.operator.test_reconcile import fleet_of
from tests.support.fleets import declared, node, pod, vfionode, vmi


def target(fleet: Fleet, node_name: str = "", **changes: object) -> Pod:
    made = pod("vm-a", node_name, source="node-1", suffix="dst", phase="Pending")
    made = msgspec.structs.replace(made, **changes)
    fleet.put_pod(made)
    return made


def test_a_pod_without_a_valid_stamp_is_stamped() -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")]})
    item = target(fleet)
    plan = reconcile_target(fleet, item)
    told = stamp.decode(plan.stamp, "migration-vm-a")
    assert (told.name, told.node, told.devices[0].id) == ("vm-a", "node-1", "src")
    assert not plan.events
    item.metadata.annotations = {**(item.metadata.annotations or {}), names.SOURCE: plan.stamp}
    assert not reconcile_target(fleet, item).stamp
    item.metadata.labels = {**(item.metadata.labels or {}), names.MIGRATION_UID: "another"}
    assert reconcile_target(fleet, item).stamp, "a stamp of another migration does not count"


def test_a_forged_stamp_is_replaced_and_a_running_pods_left_alone() -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")]})
    item = target(fleet)
    ours = reconcile_target(fleet, item).stamp
    forged = ours.replace("1.1.0", "0.0.1")
    assert stamp.decode(forged, "migration-vm-a"), "it can be read, and names the right migration"
    item.metadata.annotations = {**(item.metadata.annotations or {}), names.SOURCE: forged}
    assert reconcile_target(fleet, item).stamp == ours
    assert not reconcile_target(fleet, msgspec.structs.replace(item, status=PodStatus("Running"))).stamp
    fleet.put_vfionode(vfionode("node-1", {"src": declared("1.1.0")}))
    assert not reconcile_target(fleet, item).stamp, "the source is not known: nothing better to say"


def test_a_forged_stamp_goes_when_ours_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")]})
    item = target(fleet)
    monkeypatch.setattr(stamp, "LIMIT", 10)
    plan = reconcile_target(fleet, item)
    assert (plan.stamp, plan.unstamp) == ("", False)
    item.metadata.annotations = {**(item.metadata.annotations or {}), names.SOURCE: "{}"}
    plan = reconcile_target(fleet, item)
    assert (plan.stamp, plan.unstamp) == ("", True)


def test_a_source_that_is_not_known_is_not_stamped() -> None:
    fleet = fleet_of({"n2": [declared("1.1.0")]})
    fleet.put_vfionode(vfionode("node-1", {"src": declared("1.1.0")}))
    assert not reconcile_target(fleet, target(fleet)).stamp


def test_a_pod_that_no_node_takes_says_why_and_a_changed_count_is_the_same_cause() -> None:
    fleet = fleet_of({"n2": [declared("1.0.0")], "n3": [declared("1.0.0")]})
    item = target(fleet)
    (event,) = reconcile_target(fleet, item).events
    assert (event.type, event.reason, event.about.kind) == ("Warning", "NoAcceptingNode", "Pod")
    assert "None of 2 nodes accepts its devices: 2 VersionMinorOlder" in event.message
    fleet.drop_vfionode("n3")
    (again,) = reconcile_target(fleet, item).events
    assert again.message != event.message
    assert again.cause == event.cause


def test_bound_running_and_ended_pods_and_pods_of_others_are_left_alone() -> None:
    fleet = fleet_of({"n2": [declared("1.0.0")]})
    assert not reconcile_target(fleet, target(fleet, "n2")).events
    running = target(fleet, "n2", status=PodStatus("Running"))
    assert reconcile_target(fleet, running) == reconcile_target(fleet, pod("vm-a", "node-1"))
    assert not reconcile_target(fleet, running).stamp
    ended = target(fleet, "n2", status=refused("Failed"))
    assert not reconcile_target(fleet, ended).delete


def refused(phase: str = "Pending") -> PodStatus:
    text = "rpc error: code = FailedPrecondition desc = migcompat guard: VersionMinorOlder: no"
    waiting = ContainerState(Waiting("CreateContainerConfigError", text))
    return PodStatus(phase, container_statuses=[ContainerStatus("compute", waiting)])


def test_a_pod_whose_guard_refused_is_deleted_and_both_pod_and_vm_say_so() -> None:
    fleet = fleet_of({"n2": [declared("1.0.0")]})
    plan = reconcile_target(fleet, target(fleet, "n2", status=refused()))
    assert plan.delete
    assert [(e.about.kind, e.reason) for e in plan.events] == [
        ("Pod", "GuardRefused"),
        ("VirtualMachineInstance", "GuardRefused"),
    ]
    assert plan.events[0].message == "migcompat guard: VersionMinorOlder: no"
    assert "node n2" in plan.events[1].message
    leaving = target(fleet, "n2", status=refused())
    leaving.metadata.deletion_timestamp = "2026-01-01T00:00:00Z"
    assert not reconcile_target(fleet, leaving).delete
    assert reconcile_target(fleet, leaving).events == plan.events, "still to be said if it was not"


def test_a_pod_that_is_being_deleted_is_not_deleted_again() -> None:
    fleet = fleet_of({"n2": [declared("1.0.0")]})
    item = target(fleet, "n2", status=refused())
    item.metadata.deletion_timestamp = "2026-01-01T00:00:00Z"
    assert not reconcile_target(fleet, item).delete


def test_a_vm_of_the_same_name_that_came_later_hears_nothing_of_it() -> None:
    fleet = fleet_of({"n2": [declared("1.0.0")]})
    later = vmi("vm-a", "node-1")
    later.metadata.uid = "uid-later"
    fleet.put_vmi(later)
    plan = reconcile_target(fleet, target(fleet, "n2", status=refused()))
    assert [e.about.kind for e in plan.events] == ["Pod"]


def test_a_lax_vm_is_not_told_that_no_node_accepts_it() -> None:
    fleet = Fleet(allow_loosening=True)
    fleet.put_node(node("n2"))
    fleet.put_vfionode(vfionode("n2", {"x": declared("1.0.0")}))
    fleet.put_vmi(vmi("vm-a", "node-1", annotations={names.MODE: "prefer"}))
    assert not reconcile_target(fleet, target(fleet)).events


def test_only_migration_targets_are_ever_deleted() -> None:
    fleet = fleet_of({})
    first_start = msgspec.structs.replace(pod("vm-a", "node-1"), status=refused())
    assert not reconcile_target(fleet, first_start).delete
