"""Newer wins, whatever side it comes from; what does not decode counts as absent."""

from __future__ import annotations

from typing import Any

from migcompat.fleet.fleet import Fleet
from migcompat.kube.kinds import COMPATIBILITIES, PODS, VFIONODES, VMIS
from migcompat_operator.handlers import take
from migcompat_operator.metrics import Metrics
from migcompat_operator.mirror import Dirty, Mirror, Subject
from prometheus_client import generate_latest

from tests.support.fleets import declared, pod, vfionode, vmi


def mirror() -> Mirror:
    return Mirror(Fleet(), Dirty(lambda: None))


def versioned(item: Any, version: int) -> Any:
    item.metadata.resource_version = str(version)
    return item


def test_an_older_version_changes_nothing() -> None:
    held = mirror()
    held.put(VMIS, versioned(vmi("vm-a", "node-2"), 5))
    held.put(VMIS, versioned(vmi("vm-a", "node-1"), 4))
    found = held.fleet.vmi("tenant-a", "vm-a")
    assert found is not None
    assert found.status.node_name == "node-2"
    held.drop(VMIS, ("tenant-a", "vm-a"), "4")
    assert held.fleet.vmi("tenant-a", "vm-a") is not None
    held.drop(VMIS, ("tenant-a", "vm-a"), "6")
    assert held.fleet.vmi("tenant-a", "vm-a") is None
    held.put(VMIS, versioned(vmi("vm-a", "node-2"), 5))
    assert held.fleet.vmi("tenant-a", "vm-a") is None, "an old list does not bring the dead back"


def test_a_list_drops_what_has_gone_and_keeps_what_is_newer_than_itself() -> None:
    held = mirror()
    held.put(VMIS, versioned(vmi("old", "node-1"), 3))
    held.put(VMIS, versioned(vmi("new", "node-1"), 9))
    held.sync(VMIS, [versioned(vmi("listed", "node-1"), 2)], "7")
    known = [held.fleet.vmi("tenant-a", name) is not None for name in ("old", "new", "listed")]
    assert known == [False, True, True]


def test_a_change_marks_what_it_may_affect_and_a_repetition_nothing() -> None:
    held = mirror()
    held.put(VFIONODES, versioned(vfionode("n1", {"a": declared()}), 1))
    assert held.dirty.take() == (True, [])
    held.put(VFIONODES, versioned(vfionode("n1", {"a": declared()}), 2))
    assert held.dirty.take() == (False, [])


def no_list(resource: object) -> None:
    raise AssertionError(f"{resource!r} was not listed")


def body(version: int, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "migcompat.io/v1alpha1",
        "kind": "MigrationCompatibility",
        "metadata": {"name": "q", "namespace": "tenant-a", "uid": "u", "resourceVersion": str(version)},
        "spec": spec,
    }


def test_an_event_that_does_not_decode_is_counted_and_everything_else_goes_on() -> None:
    held, metrics = mirror(), Metrics()
    good = body(1, virtualMachineInstance={"name": "vm-a"})
    take({"type": "ADDED", "object": good}, COMPATIBILITIES, held, metrics, no_list)
    assert held.dirty.take() == (False, [(Subject.QUESTION, ("tenant-a", "q"))])
    take({"type": "MODIFIED", "object": body(2, device="no object")}, COMPATIBILITIES, held, metrics, no_list)
    assert ("tenant-a", "q") not in held.compatibilities
    text = generate_latest(metrics.registry).decode()
    assert 'undecodable_objects_total{kind="migrationcompatibilities"} 1.0' in text
    take({"type": "MODIFIED", "object": body(3)}, COMPATIBILITIES, held, metrics, no_list)
    assert ("tenant-a", "q") in held.compatibilities
    held.dirty.take()
    take({"type": "DELETED", "object": body(4)}, COMPATIBILITIES, held, metrics, no_list)
    assert not held.compatibilities
    assert held.dirty.take() == (False, [(Subject.QUESTION, ("tenant-a", "q"))]), (
        "it may have to be made anew"
    )


def test_only_targets_that_have_not_ended_are_looked_at() -> None:
    held = mirror()
    held.put(PODS, versioned(pod("vm-a", "node-2", source="node-1", phase="Pending"), 1))
    assert held.started_migrations() == {"migration-vm-a"}
    assert held.dirty.take() == (True, [(Subject.TARGET, ("tenant-a", "virt-launcher-vm-a-src"))])
    held.put(PODS, versioned(pod("vm-a", source="node-1", phase="Failed"), 2))
    assert held.started_migrations() == set()
