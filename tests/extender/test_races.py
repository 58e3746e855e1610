"""Targets that race, replicas that lag, nominated nodes, sources that vanish: at most an attempt is lost."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from migcompat.api.cluster import Pod
from migcompat.fleet.fleet import Fleet
from migcompat_extender.filter import Filter
from migcompat_extender.refusals import Refusals
from migcompat_extender.settings import Settings
from migcompat_extender.table import Tables

from tests.extender.test_refusals import failed
from tests.extender.world import (
    admitted,
    all_well,
    args,
    by_name,
    filtered,
    patched,
    required_terms,
    review,
    target,
    world,
)
from tests.support.fleets import POOL, declared, node, pod, vfionode, vmi


class Replica:
    """One of several extenders, each with what its watches have brought so far."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.refusals = Refusals()
        self._filter = Filter(fleet, Tables(fleet), all_well, Settings(), self.refusals)

    def sees(self, item: Pod) -> None:
        self.refusals.note(item)
        self.fleet.put_pod(item)

    def filter(self, names: list[str], asked: Pod | None = None) -> tuple[list[str], dict[str, str]]:
        answer = json.loads(self._filter.answer(args(names, asked or target()))[0])
        return answer["NodeNames"], answer["FailedAndUnresolvableNodes"]


def two_vms() -> Fleet:
    """vm-a and vm-b on node-1; n2 and n3 with one device each that takes either."""
    fleet = world({"n2": "1.1.0", "n3": "1.1.0"})
    holders = {name: ("tenant-a", f"virt-launcher-{name}-src") for name in ("vm-a", "vm-b")}
    fleet.put_vfionode(vfionode("node-1", {name: declared("1.1.0") for name in holders}, allocated=holders))
    fleet.put_pod(pod("vm-b", "node-1"))
    fleet.put_vmi(vmi("vm-b", "node-1"))
    return fleet


def bound(vm: str, node_name: str) -> Pod:
    return pod(vm, node_name, source="node-1", suffix="tgt", phase="Pending")


def test_of_two_targets_the_second_sees_that_the_last_device_is_promised() -> None:
    one = Replica(two_vms())
    one.fleet.drop_vfionode("n3")
    assert one.filter(["n2"])[0] == ["n2"]
    one.sees(bound("vm-b", "n2"))
    passed, rejected = one.filter(["n2"])
    assert passed == []
    assert rejected["n2"].startswith("NoneFree: ")
    held = {"n2-0": ("tenant-a", "virt-launcher-vm-b-tgt")}
    one.fleet.put_vfionode(vfionode("n2", {"n2-0": declared("1.1.0")}, allocated=held))
    assert one.filter(["n2"])[1]["n2"].startswith("NoneFree: "), (
        "promised became held: one device all the same"
    )
    more = vfionode("n2", {"n2-0": declared("1.1.0"), "n2-1": declared("1.1.0")}, allocated=held)
    one.fleet.put_vfionode(more)
    assert one.filter(["n2"])[0] == ["n2"], "what it holds is not counted twice"


def test_a_pod_that_holds_only_some_of_its_devices_is_still_promised_the_others() -> None:
    fleet = two_vms()
    two = pod("vm-c", "n2", source="node-1", suffix="tgt", resources=[POOL, POOL], phase="Pending")
    fleet.put_pod(two)
    held = {"n2-0": ("tenant-a", two.metadata.name)}
    fleet.put_vfionode(vfionode("n2", {"n2-0": declared("1.1.0"), "n2-1": declared("1.1.0")}, allocated=held))
    assert filtered(fleet, args(["n2"]))["NodeNames"] == []


@pytest.mark.parametrize("reason", [f"OutOf{POOL}", "UnexpectedAdmissionError"])
def test_a_lost_race_costs_one_attempt(reason: str) -> None:
    """A lagging replica sends vm-a after vm-b to n2; the kubelet there fails the pod, and n3 is next."""
    quick, late = Replica(two_vms()), Replica(two_vms())
    quick.sees(bound("vm-b", "n2"))
    assert quick.filter(["n2", "n3"])[0] == ["n3"]
    assert late.filter(["n2", "n3"])[0] == ["n2", "n3"], "it does not know yet"
    lost = failed("vm-a", "n2", reason)
    late.sees(lost)
    passed, rejected = late.filter(["n2", "n3"])
    assert passed == ["n3"], "though it has still not heard of the other pod"
    assert rejected["n2"].startswith("KubeletRefused: ")
    assert late.filter(["n2", "n3"], bound("vm-b", ""))[0] == ["n2", "n3"], "another VM may try"
    for replica in (quick, late):
        replica.sees(bound("vm-b", "n2"))
        replica.sees(lost)
        assert replica.filter(["n2", "n3"])[0] == ["n3"]
    named = required_terms(patched(target(), admitted(late.fleet, review(target()), refusals=late.refusals)))
    assert named == [{"matchFields": [by_name("In", "n3")]}]


def test_a_pod_that_the_kubelet_failed_promises_nothing_any_more() -> None:
    one = Replica(two_vms())
    one.sees(bound("vm-b", "n2"))
    one.sees(failed("vm-b", "n2", f"OutOf{POOL}"))
    assert one.filter(["n2", "n3"])[0] == ["n2", "n3"]


def test_the_one_node_call_for_a_nominated_node_says_the_same_as_the_call_for_all() -> None:
    one = Replica(world({"n2": "1.1.0", "n3": "1.0.0", "n4": "1.1.0", "n5": "2.0.0"}, used=["n4"]))
    names = ["n2", "n3", "n4", "n5", "unknown"]
    passed, rejected = one.filter(names)
    for name in names:
        nominated = target()
        assert one.filter([name], nominated) == (
            [name] if name in passed else [],
            {key: text for key, text in rejected.items() if key == name},
        )


def test_a_nominated_node_that_has_just_refused_is_tried_again_rather_than_none() -> None:
    one = Replica(world({"n2": "1.1.0", "n3": "1.1.0"}))
    one.sees(failed("vm-a", "n2", f"OutOf{POOL}"))
    assert one.filter(["n2", "n3"])[0] == ["n3"]
    assert one.filter(["n2"])[0] == ["n2"]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_order_the_watches_bring_news_in_the_answers_come_to_agree(seed: int) -> None:
    """A migration of vm-b from node-1 to n2, as five watches may tell it: each in order, mixed anyhow."""
    chance = random.Random(seed)
    target_pod = "virt-launcher-vm-b-tgt"

    def holds(fleet: Fleet, **held: tuple[str, str]) -> Any:
        devices = {"vm-a": declared("1.1.0"), "vm-b": declared("1.1.0")}
        return fleet.put_vfionode(vfionode("node-1", devices, allocated=held))

    a, b = (("tenant-a", f"virt-launcher-{vm}-src") for vm in ("vm-a", "vm-b"))
    news: list[list[Callable[[Fleet], Any]]] = [
        [
            lambda f: f.put_pod(bound("vm-b", "n2")),
            lambda f: f.put_pod(pod("vm-b", "n2", source="node-1", suffix="tgt")),
            lambda f: f.put_pod(pod("vm-b", "node-1", phase="Succeeded")),
            lambda f: f.drop_pod("tenant-a", "virt-launcher-vm-b-src"),
        ],
        [
            lambda f: f.put_vfionode(
                vfionode("n2", {"n2-0": declared("1.1.0")}, allocated={"n2-0": ("tenant-a", target_pod)})
            )
        ],
        [lambda f: holds(f, **{"vm-a": a, "vm-b": b}), lambda f: holds(f, **{"vm-a": a})],
        [lambda f: f.put_vmi(vmi("vm-b", "n2"))],
        [lambda f: f.put_node(node("node-1", cordoned=True)), lambda f: f.put_node(node("n9"))],
    ]
    lagging, quick = Replica(two_vms()), Replica(two_vms())
    for told in news:
        for one in told:
            one(quick.fleet)
    while any(news):
        told = chance.choice([told for told in news if told])
        told.pop(0)(lagging.fleet)
        passed, rejected = lagging.filter(["n2", "n3", "n9"])
        assert "n9" in rejected
        assert {*passed, *rejected} == {"n2", "n3", "n9"}
        assert "n3" in passed
    assert lagging.filter(["n2", "n3", "n9"]) == quick.filter(["n2", "n3", "n9"])
    back = pod("vm-b", "", source="n2", suffix="back", phase="Pending")
    assert lagging.filter(["node-1", "n3"], back) == quick.filter(["node-1", "n3"], back)
    assert quick.filter(["node-1", "n3"], back)[0] == ["node-1", "n3"], (
        "the pod with the old label is its source"
    )


VANISHED: dict[str, Callable[[Fleet], Any]] = {
    "the node": lambda f: f.drop_node("node-1"),
    "its VFIONode": lambda f: f.drop_vfionode("node-1"),
    "the VM": lambda f: f.drop_vmi("tenant-a", "vm-a"),
    "the pod": lambda f: f.drop_pod("tenant-a", "virt-launcher-vm-a-src"),
    "the pod's life": lambda f: f.put_pod(pod("vm-a", "node-1", phase="Failed")),
    "the node's boot": lambda f: f.put_node(node("node-1", boot_id="later")),
    "the VM to another node": lambda f: f.put_vmi(vmi("vm-a", "n3")),
}


@pytest.mark.parametrize("what", VANISHED)
def test_a_target_whose_source_vanished_is_unknown_everywhere_with_one_text(what: str) -> None:
    fleet = world({"n2": "1.1.0", "n3": "1.1.0"})
    VANISHED[what](fleet)
    answer = filtered(fleet, args(["n2", "n3"]))
    assert answer["NodeNames"] == []
    (text,) = set(answer["FailedAndUnresolvableNodes"].values())
    assert text.startswith("Unknown: ")
    response = admitted(fleet, review(target()))
    assert response["allowed"] is False
    assert text.removeprefix("Unknown: ") in response["status"]["message"]


def test_a_vm_made_anew_under_the_same_name_is_not_the_source_of_the_old_ones_target() -> None:
    fleet = world({"n2": "1.1.0"})
    anew = vmi("vm-a", "node-1")
    anew.metadata.uid = "uid-anew"
    fleet.put_vmi(anew)
    failed_nodes = filtered(fleet, args(["n2"]))["FailedAndUnresolvableNodes"]
    assert failed_nodes["n2"] == "Unknown: the VirtualMachineInstance of the target pod is not known"


def test_a_source_pod_with_an_old_migration_label_is_still_the_source() -> None:
    """vm-a came to node-1 by a migration from node-0: what its pod carries is of that one."""
    fleet = world({"n2": "1.1.0", "n3": "1.0.0"})
    fleet.put_pod(pod("vm-a", "node-1", source="node-0"))
    answer = filtered(fleet, args(["n2", "n3"]))
    assert answer["NodeNames"] == ["n2"]
    assert answer["FailedAndUnresolvableNodes"]["n3"].startswith("VersionMinorOlder: ")
    assert admitted(fleet, review(target()))["allowed"] is True
