"""Steering and guard under a crowd: several profiles in one pool, targets and first starts arriving together.

What may start where is judged by an oracle of the tests' own. Each run is made from a seed, which it prints;
what it meets is not all the seed's doing, because kubelets and controllers decide when.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.cluster.api import Object
from tests.node import devices, needs, oracle, podresources, run, steering, vms
from tests.node.addresses import BridgeNetwork
from tests.node.cluster import NodeCluster
from tests.node.controlplane import NodeControlPlane
from tests.node.figures import Figures
from tests.node.oracle import Entry, Mdev
from tests.node.record import PODS, recording
from tests.node.steering import Attempt, Traveller, Wave
from tests.node.vms import NAMESPACE
from tests.scenario import nodes
from tests.scenario.nodes import POOL
from tests.scenario.story import RETRY_LATE

# For the test alone: what the cluster's start may take, its own deadlines say.
pytestmark = pytest.mark.timeout(600, func_only=True)

NODES = ("node-1", "node-2", "node-3")
EACH = 6
"""Devices of a node."""
WITHOUT_CATALOGUE: Object = {"catalogue": {"policies": []}}
"""Only what devices say of themselves counts: the catalogue's policy for mtty would accept more."""


@pytest.fixture(scope="module")
def three(bridge: BridgeNetwork) -> Iterator[NodeCluster]:
    """Three Ready nodes of six devices each, with the product."""
    directory, cgroup = run.place()
    parts = needs.parts()
    with (
        NodeControlPlane(parts.programs, bridge, directory) as plane,
        NodeCluster(plane, parts, cgroup=cgroup, timing=RETRY_LATE) as cluster,
    ):
        cluster.add_nodes({node: lambda host: devices.prepare(host, ["1.0.0"] * EACH) for node in NODES})
        cluster.install_chart(WITHOUT_CATALOGUE)
        cluster.wait(
            lambda: {node: cluster.allocatable(node, POOL) for node in NODES} == dict.fromkeys(NODES, EACH),
            "all devices are counted",
        )
        yield cluster


@pytest.fixture(autouse=True)
def nothing_left(three: NodeCluster) -> Iterator[None]:
    """Each test finds nodes without VMs, whatever came of the one before."""
    yield
    vms.end(three)
    three.wait(lambda: not any(vms.allocated_to(three, node) for node in NODES), "all devices are free")


@pytest.fixture(scope="module")
def without_webhook(three: NodeCluster) -> None:
    """For the rest of the module nobody chooses nodes for targets."""
    three.install_chart({**WITHOUT_CATALOGUE, "webhook": {"enabled": False}})
    assert not three.plane.get("mutatingwebhookconfigurations")["items"]


@pytest.mark.parametrize("seed", [5, 7])
def test_with_the_webhook_every_vm_that_can_move_has_moved(
    three: NodeCluster, figures: Figures, seed: int
) -> None:
    stranded = crowd(three, figures, seed, NODES, "webhook on")
    assert stranded == [], "what nobody accepts gets no pod"


def test_a_kubelet_that_keeps_to_a_numa_node_is_refused_until_the_accepting_device_is_left(
    three: NodeCluster,
) -> None:
    """Its topology manager takes devices of the container's NUMA node first, whatever a plugin prefers."""
    home, there = NODES[0], NODES[2]
    old, new = (Mdev(v, None, (Entry(v),)) for v in ("1.0.0", "1.1.0"))
    ids = [nodes.device_id(there, number) for number in range(EACH)]
    near, away, far = ids[:2], ids[2:-1], ids[-1]
    steering.place(
        three,
        {
            home: {nodes.device_id(home, number): new for number in range(EACH)},
            NODES[1]: {nodes.device_id(NODES[1], number): old for number in range(EACH)},
            there: {id_: new if id_ == far else old for id_ in ids},
        },
    )
    node = three.nodes[there]
    with far_away(node.host / "sys", far, away):
        node.restart_kubelet(topologyManagerPolicy="best-effort")
        three.wait(lambda: counted(three, there) == sorted([*near, far]), "three devices are left")
        source = vms.start(three, "vm-a", home)
        with recording(three, PODS) as seen:
            job = three.migrate("vm-a", NAMESPACE)
            three.wait(lambda: vms.phase(three, job) == "Failed", "the guard refuses what the kubelet took")
            three.wait(lambda: not three.target_pods("vm-a"), "the refused pod is gone")
            (refused,) = steering.attempts(three, seen)
            assert (refused.node, refused.outcome) == (there, "refused")
            vms.assert_lives(three, source)
            for vm in ("near-1", "near-2"):
                assert set(vms.start(three, vm, there).devices) <= set(near)
            target = vms.migrate(three, "vm-a")
        assert (target.node, target.devices) == (there, (far,))
        assert [a.outcome for a in steering.attempts(three, seen)] == ["refused", "started"]
        vms.end(three)
    node.restart_kubelet()
    three.wait(lambda: counted(three, there) == sorted(ids), "the node is as before")


@pytest.mark.parametrize("seed", [9])
def test_without_the_webhook_the_guard_and_the_preference_see_to_it(
    three: NodeCluster, figures: Figures, without_webhook: None, seed: int
) -> None:
    # Nobody chooses the node here: a third one that refuses might attract each attempt.
    with vms.only(three, *NODES[:2]):
        stranded = crowd(three, figures, seed, NODES[:2], "webhook off")
    assert {"refused"} <= set(stranded) <= {"refused", "other"}, "only the guard sees what nobody accepts"


def crowd(cluster: NodeCluster, figures: Figures, seed: int, among: Sequence[str], how: str) -> list[str]:
    """VMs move and start at once among the nodes; asserts who moved, and on what.

    Returns what came of the attempts of a VM that no device accepts.
    """
    print(f"seed {seed}, {how}")
    chance = random.Random(seed)
    pool = {
        node: {nodes.device_id(node, number): oracle.any_mdev(chance) for number in range(EACH)}
        for node in among
    }
    steering.place(cluster, pool)
    homes = {f"vm-{n}": (node, 1) for n, node in enumerate([*among, *among], 1)}
    homes["vm-two"] = (chance.choice(among), 2)
    travellers = steering.settle(cluster, pool, homes)
    stranded = travellers[0]
    steering.strand(cluster, pool, stranded)
    beside = {f"ordinary-{n}": (node, 1) for n, node in enumerate(among, 1)}
    arrivals: list[Traveller | str] = [*travellers, *beside]
    chance.shuffle(arrivals)
    begun = time.monotonic()
    with (
        recording(cluster, PODS) as seen,
        steering.weather(cluster, chance, [0.5, 2.5]) as weather,
    ):
        wave = Wave(cluster, pool, travellers, weather)
        for arrival in arrivals:
            if isinstance(arrival, Traveller):
                wave.start(arrival)
            else:
                cluster.plane.apply(steering.ordinary(arrival, *beside[arrival]))
            time.sleep(chance.uniform(0, 0.3))
            wave.attend()
        wave.run()
        here = [t.vm for t in travellers]
        steering.assert_nobody_shares_a_device(cluster, [*here, *running(cluster, beside)])
        # What they held is free for those that had to stay.
        vms.end(cluster, *beside)
        wave.run()
        if stranded.phase == "Failed":
            # Once more, now that there are free devices: before there may have been none.
            wave.start(stranded)
            wave.run()
        wave.give_up()
        made = steering.attempts(cluster, seen)
    steering.assert_only_accepting_devices_were_used(cluster, pool, travellers, made)
    moved = [t for t in travellers if t.moved]
    assert moved
    for traveller in travellers:
        if not traveller.moved:
            assert vms.launcher(cluster, traveller.vm).pod == traveller.pod, "it lives on where it was"
    tell(figures, f"steering, seed {seed}, {how}", travellers, made, time.monotonic() - begun)
    print("\n".join([*weather.told, *map(str, made)]))
    return [attempt.outcome for attempt in made if attempt.vm == stranded.vm]


@contextlib.contextmanager
def far_away(sysfs: Path, far: str, away: Sequence[str]) -> Iterator[None]:
    """The mdevs' parent is on NUMA node 0; `far` is on another parent, on NUMA node 1; `away` are gone."""
    near_parent, far_parent = sysfs / nodes.PARENT, (sysfs / nodes.PARENT).with_name("far")
    bus = sysfs / "bus/mdev/devices"
    group = (near_parent / far / "iommu_group").resolve() / "devices"
    shutil.copytree(near_parent / "mdev_supported_types", far_parent / "mdev_supported_types", symlinks=True)
    (far_parent / "numa_node").write_text("1\n")
    (near_parent / "numa_node").write_text("0\n")

    def move(source: Path, target: Path) -> None:
        (bus / far).unlink()
        (source / far).rename(target / far)
        for link, up in ((bus / far, "../../.."), (group / far, "../../../..")):
            link.unlink(missing_ok=True)
            link.symlink_to(Path(up) / (target / far).relative_to(sysfs))

    leads = {id_: (bus / id_).readlink() for id_ in away}
    for id_ in away:
        (bus / id_).unlink()
    move(near_parent, far_parent)
    try:
        yield
    finally:
        move(far_parent, near_parent)
        for id_, path in leads.items():
            (bus / id_).symlink_to(path)
        (near_parent / "numa_node").unlink()
        shutil.rmtree(far_parent)


def counted(cluster: NodeCluster, node: str) -> list[str]:
    """Healthy devices that the node's kubelet has."""
    return podresources.allocatable(cluster.nodes[node].root / "kubelet/pod-resources/kubelet.sock", POOL)


def tell(
    figures: Figures, title: str, travellers: Sequence[Traveller], made: Sequence[Attempt], seconds: float
) -> None:
    """Hits, misses and attempts of one run."""
    own = {t.vm: [a.outcome for a in made if a.vm == t.vm] for t in travellers}
    first = Counter(outcomes[0] for outcomes in own.values() if outcomes)
    until = sorted(len(own[t.vm]) for t in travellers if t.moved)
    all_of = Counter(a.outcome for a in made)
    figures.add(
        title,
        f"{len(until)} of {len(travellers)} VMs moved in {seconds:.0f} s; "
        f"first attempts: {first['started']} hits, {first['refused']} misses, "
        f"{first['other']} other; attempts until there: {until}; "
        f"of all {len(made)} attempts the guard refused {all_of['refused']}",
    )


def running(cluster: NodeCluster, chosen: Iterable[str]) -> list[str]:
    """Those of the VMs that run: one whose device went while it was allocated has failed."""

    def phases() -> dict[str, str]:
        return {vm: cluster.vmi(vm, NAMESPACE).get("status", {}).get("phase", "") for vm in chosen}

    cluster.wait(lambda: set(phases().values()) <= {"Running", "Failed"}, "first starts are over")
    return [vm for vm, phase in phases().items() if phase == "Running"]
