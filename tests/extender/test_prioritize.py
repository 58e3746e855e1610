"""``/prioritize``: nearest version first, keep what others need, spread."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from migcompat.fleet.fleet import Fleet, Preference
from migcompat_extender.prioritize import Prioritize, scores

from tests.extender.world import all_well, args, target, world
from tests.support.fleets import declared, node, pod, vfionode, vmi


def key(version: int | None = 0, common: int = 0, spare: int = 0) -> Preference:
    return False, version is None, () if version is None else (0, 0, version), -common, -spare


def test_scores_fall_by_preference_and_stay_above_refusals() -> None:
    ranked = [key(1), key(0), key(7), key(1), key(None), None, None]
    assert scores(ranked) == [9, 10, 8, 9, 7, 0, 0]
    assert scores([key(n) for n in range(30)]) == [*range(10, 0, -1), *[1] * 20]
    assert scores([]) == []
    assert scores([None, None]) == [0, 0]


def test_common_devices_go_before_rare_ones_and_then_many_before_few() -> None:
    asked = [key(common=1, spare=9), key(common=5, spare=1), key(common=5, spare=4), key(version=1, common=9)]
    assert scores(asked) == [8, 9, 10, 7]


def test_points_that_do_not_suffice_go_to_the_nearest_version() -> None:
    near = [key(0, 5, spare) for spare in range(20, 0, -1)]
    far = [key(1, 5, spare) for spare in range(20, 0, -1)]
    points = scores([*near, *far])
    assert points[:20] == [*range(10, 2, -1), *[2] * 12], "nine for the nearest, the last one shared"
    assert set(points[20:]) == {1}, "the farther version never gets a point of the nearer one"
    rare = [key(0, 4, spare) for spare in range(20, 0, -1)]
    points = scores([*near, *rare, *far])
    assert points == [*range(10, 3, -1), *[3] * 13, *[2] * 20, *[1] * 20]


@pytest.mark.parametrize("seed", range(30))
def test_no_part_ever_outweighs_an_earlier_one(seed: int) -> None:
    chance = random.Random(seed)
    keys = [
        key(
            chance.choice([None, *range(chance.choice([2, 5, 15]))]), chance.randrange(4), chance.randrange(9)
        )
        for _ in range(chance.choice([3, 12, 60]))
    ]
    points = scores(keys)
    assert max(points) == 10
    assert min(points) >= 1
    for (one, first), (other, second) in itertools.combinations(zip(keys, points, strict=True), 2):
        if first != second:
            assert (one < other) == (first > second)
    if len(set(keys)) <= 10:
        assert len(set(points)) == len(set(keys))


def test_wire_names_and_order() -> None:
    asked = Prioritize(world({"n2": "1.2.0", "n3": "1.1.0", "n4": "1.0.0"}), all_well)
    assert json.loads(asked.answer(args(["n2", "n3", "n4"]))) == [
        {"Host": "n2", "Score": 9},
        {"Host": "n3", "Score": 10},
        {"Host": "n4", "Score": 0},
    ]


@pytest.mark.parametrize("problem", [None, "not listed yet: nodes"])
def test_all_nodes_alike_where_there_is_nothing_to_say(problem: str | None) -> None:
    asked = Prioritize(world({"n2": "1.1.0"}), lambda: problem)
    pod = target(resources=()) if problem is None else target()
    assert {h["Score"] for h in json.loads(asked.answer(args(["n2", "n3"], pod)))} == {0}


def test_a_device_that_only_a_later_vm_needs_is_left_to_it() -> None:
    """The drain of node-1 with VMs of two versions: taken by name alone, n2 would go to the wrong one.

    The flexible device is even the more frequent kind: what counts is how much else would do for the others.
    """
    old, new = declared("1.1.0"), declared("2.0.0")
    accepts = [dict(old.self.attributes), dict(new.self.attributes)]
    both = declared("1.1.0", accepts=accepts)
    fleet = Fleet()
    held = {f"d-{vm}": ("tenant-a", f"virt-launcher-{vm}-src") for vm in ("old", "new-1", "new-2")}
    fleet.put_node(node("node-1", cordoned=True))
    fleet.put_vfionode(
        vfionode("node-1", {name: old if "old" in name else new for name in held}, allocated=held)
    )
    for name in ("old", "new-1", "new-2"):
        fleet.put_vmi(vmi(name, "node-1"))
        fleet.put_pod(pod(name, "node-1"))
    for name, device in (("n2", both), ("n3", both), ("n4", old)):
        fleet.put_node(node(name))
        fleet.put_vfionode(vfionode(name, {name: device}))
    placed: dict[str, str] = {}
    for vm in ("old", "new-1", "new-2"):
        asked = pod(vm, "", source="node-1", suffix="tgt", phase="Pending")
        points = json.loads(Prioritize(fleet, all_well).answer(args(["n2", "n3", "n4"], asked)))
        best = max(points, key=lambda said: said["Score"])
        assert best["Score"], f"{vm} is stranded: {placed}"
        placed[vm] = best["Host"]
        fleet.put_pod(pod(vm, best["Host"], source="node-1", suffix="tgt", phase="Pending"))
    assert placed == {"old": "n4", "new-1": "n2", "new-2": "n3"}


def test_of_equal_nodes_the_one_with_most_left_is_taken() -> None:
    fleet = world({"n2": "1.1.0", "n3": "1.1.0"})
    fleet.put_vfionode(vfionode("n3", {f"d{i}": declared("1.1.0") for i in range(3)}))

    def points() -> dict[str, int]:
        told = json.loads(Prioritize(fleet, all_well).answer(args(["n2", "n3"])))
        return {said["Host"]: said["Score"] for said in told}

    assert points() == {"n2": 9, "n3": 10}
    for vm in ("vm-b", "vm-c"):
        fleet.put_pod(pod(vm, "n3", source="node-1", suffix="tgt", phase="Pending"))
    assert points() == {"n2": 10, "n3": 10}, "two of them are promised to pods on their way"
