"""Nodes whose guard has just refused a VM are avoided by that VM, for a while."""

from __future__ import annotations

import pytest
from migcompat.api.cluster import Pod
from migcompat.fleet.refusal import guard_refusal
from migcompat_extender.refusals import AVOIDED_SECONDS, Refusals

from tests.support.fleets import pod, refused

OTHER = "uid-of-another-vm"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def uid(of: Pod) -> str:
    assert of.metadata.labels is not None
    return of.metadata.labels["kubevirt.io/created-by"]


def test_the_guards_sentence_is_found_behind_the_kubelets_words() -> None:
    text = "rpc error: code = FailedPrecondition desc = migcompat guard: VersionMinorOlder: no"
    assert guard_refusal(refused("vm-a", "n2", text)) == "migcompat guard: VersionMinorOlder: no"
    assert guard_refusal(refused("vm-a", "n2", "something else")) == ""


def test_a_node_is_avoided_by_the_vm_that_it_refused_for_a_while() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    target = refused("vm-a", "n2")
    refusals.note(target)
    assert refusals.nodes(uid(target)) == {"n2"}
    assert refusals.nodes(OTHER) == frozenset()
    clock.now += AVOIDED_SECONDS - 1
    refusals.note(refused("vm-a", "n3"))
    assert refusals.nodes(uid(target)) == {"n2", "n3"}
    clock.now += 1
    assert refusals.nodes(uid(target)) == {"n3"}


@pytest.mark.parametrize(
    "other",
    [
        refused("vm-a", "n2", "something else"),
        pod("vm-a", "n2", source="node-1", suffix="tgt", phase="Pending"),
        pod("vm-a", "n2"),
    ],
)
def test_other_pods_make_no_node_avoided(other: Pod) -> None:
    refusals = Refusals()
    refusals.note(other)
    assert refusals.nodes(uid(other)) == frozenset()
