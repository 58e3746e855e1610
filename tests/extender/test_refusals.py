"""Nodes that have just refused a VM are avoided by that VM, for a while."""

from __future__ import annotations

import pytest
from migcompat.api.cluster import Pod, PodStatus
from migcompat.fleet.refusal import guard_refusal, kubelet_refusal
from migcompat_extender.refusals import AVOIDED_SECONDS, GUARD_REFUSED, KUBELET_REFUSED, Refusals

from tests.support.fleets import POOL, pod, refused

OTHER = "uid-of-another-vm"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def uid(of: Pod) -> str:
    assert of.metadata.labels is not None
    return of.metadata.labels["kubevirt.io/created-by"]


def failed(vmi_name: str, node_name: str, reason: str, phase: str = "Failed") -> Pod:
    """The target pod of a VMI from node-1 that the kubelet did not admit, with this reason."""
    target = pod(vmi_name, node_name, source="node-1", suffix="tgt")
    target.status = PodStatus(phase, reason, "Pod was rejected")
    return target


def test_the_guards_sentence_is_found_behind_the_kubelets_words() -> None:
    text = "rpc error: code = FailedPrecondition desc = migcompat guard: VersionMinorOlder: no"
    assert guard_refusal(refused("vm-a", "n2", text)) == "migcompat guard: VersionMinorOlder: no"
    assert guard_refusal(refused("vm-a", "n2", "something else")) == ""


LOST = [f"OutOf{POOL}", "UnexpectedAdmissionError", "TopologyAffinityError"]


@pytest.mark.parametrize("reason", LOST)
def test_a_pod_that_the_kubelet_failed_for_want_of_a_device_is_told_by_its_reason(reason: str) -> None:
    assert kubelet_refusal(failed("vm-a", "n2", reason)) == reason
    assert kubelet_refusal(failed("vm-a", "n2", reason, "Pending")) == "", "it has not failed"


@pytest.mark.parametrize(
    "reason", ["OutOfcpu", "OutOfpods", "OutOf", "OutOfexample.com/other", "Evicted", ""]
)
def test_what_it_failed_for_otherwise_says_nothing_of_devices(reason: str) -> None:
    assert kubelet_refusal(failed("vm-a", "n2", reason)) == ""


def test_a_node_is_avoided_by_the_vm_that_it_refused_for_a_while() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    target = refused("vm-a", "n2")
    refusals.note(target)
    assert refusals.nodes(uid(target)) == {"n2": GUARD_REFUSED}
    assert refusals.nodes(OTHER) == {}
    clock.now += AVOIDED_SECONDS - 1
    refusals.note(failed("vm-a", "n3", LOST[0]))
    assert refusals.nodes(uid(target)) == {"n2": GUARD_REFUSED, "n3": KUBELET_REFUSED}
    clock.now += 1
    assert refusals.nodes(uid(target)) == {"n3": KUBELET_REFUSED}


@pytest.mark.parametrize(
    "other",
    [
        refused("vm-a", "n2", "something else"),
        pod("vm-a", "n2", source="node-1", suffix="tgt", phase="Pending"),
        pod("vm-a", "n2"),
        failed("vm-a", "n2", "OutOfcpu"),
        failed("vm-a", "", LOST[0]),
    ],
)
def test_other_pods_make_no_node_avoided(other: Pod) -> None:
    refusals = Refusals()
    refusals.note(other)
    assert refusals.nodes(uid(other)) == {}
