"""VMs that move and VMs that start, all at once, where devices differ; and what came of each attempt."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from migcompat.api import names

from tests.cluster.api import Object
from tests.cluster.kubevirt import objects
from tests.node import containers, oracle, vms
from tests.node.cluster import NodeCluster
from tests.node.oracle import Mdev
from tests.node.record import Version
from tests.node.vms import NAMESPACE, VARIABLE
from tests.scenario import nodes
from tests.scenario.nodes import POOL

Devices = Mapping[str, Mapping[str, Mdev]]
"""What the devices of each node are, by node and id."""

WITHIN = 120.0
"""Seconds until every VM has moved that can."""
QUIET = 3.0
"""Seconds for which no VM can move before that counts as the end."""
_MIGRATIONS = f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachineinstancemigrations"
_UNSCHEDULABLE = "kubevirt.io/migrationUnschedulablePodTimeoutSeconds"


@dataclass
class Traveller:
    """A VM that is to move, and what its first container was really given."""

    vm: str
    home: str
    pod: str
    ids: tuple[str, ...]
    sources: tuple[Mdev, ...]
    job: str = ""
    phase: str = ""

    @property
    def moved(self) -> bool:
        """Whether it runs elsewhere."""
        return self.phase == "Succeeded"


def device_path(cluster: NodeCluster, node: str, id_: str) -> Path:
    """The sysfs directory of a node's mdev, as the test reaches it."""
    return cluster.nodes[node].host / "sys" / nodes.PARENT / id_


def place(cluster: NodeCluster, devices: Devices) -> None:
    """The nodes' devices are these from now on; waits until that is published."""
    for node, mdevs in devices.items():
        for id_, mdev in mdevs.items():
            oracle.place(device_path(cluster, node, id_), mdev)
    wanted = {
        node: {id_: (mdev.own, mdev.patterns) for id_, mdev in mdevs.items()}
        for node, mdevs in devices.items()
    }
    cluster.wait(lambda: {node: _published(cluster, node) for node in wanted} == wanted, "all is published")


def _published(cluster: NodeCluster, node: str) -> dict[str, tuple[dict[str, str], list[dict[str, str]]]]:
    status = cluster.plane.get("vfionode", node)["status"]
    return {
        d["id"]: (
            status["profiles"][d["profile"]]["self"]["attributes"] | d.get("dynamic", {}),
            [entry["attributes"] for entry in status["acceptances"][d["acceptance"]]["entries"]],
        )
        for d in status["devices"]
        if d["resource"] == POOL
    }


def given(cluster: NodeCluster, running: vms.Launcher) -> tuple[str, ...]:
    """The devices that the environment of the VM's process names, in its order; PodResources agrees."""
    environment = Path(f"/proc/{running.pid}/environ").read_text().split("\0")
    (text,) = [v.partition("=")[2] for v in environment if v.startswith(f"{VARIABLE}=")]
    ids = tuple(text.split(","))
    assert sorted(ids) == list(running.devices), f"{running.pod}: environment and PodResources differ"
    return ids


def ordinary(vm: str, node: str, count: int) -> Object:
    """A VM with that many devices that starts on the node."""
    return objects.vmi(vm, NAMESPACE, gpus=[POOL] * count, node_selector={"kubernetes.io/hostname": node})


def settle(cluster: NodeCluster, devices: Devices, homes: Mapping[str, tuple[str, int]]) -> list[Traveller]:
    """Starts VMs, each at home with so many devices, free to move afterwards."""
    cluster.plane.apply(*(ordinary(vm, node, count) for vm, (node, count) in homes.items()))
    cluster.wait(lambda: _phases(cluster, homes) == {"Running"}, f"{', '.join(homes)} run", within=WITHIN)
    travellers = []
    for vm, (node, _) in homes.items():
        unpin = json.dumps([{"op": "remove", "path": "/spec/nodeSelector"}])
        cluster.plane.kubectl("patch", "vmi", vm, "-n", NAMESPACE, "--type=json", "-p", unpin)
        running = vms.launcher(cluster, vm)
        ids = given(cluster, running)
        sources = tuple(devices[node][id_] for id_ in ids)
        travellers.append(Traveller(vm, node, running.pod, ids, sources))
    held = {(t.home, id_): t.pod for t in travellers for id_ in t.ids}
    cluster.wait(
        lambda: {(n, id_): p for n in devices for id_, p in vms.allocated_to(cluster, n).items()} == held,
        "their VFIONodes say so",
    )
    return travellers


def strand(cluster: NodeCluster, devices: dict[str, dict[str, Mdev]], traveller: Traveller) -> None:
    """The VM's devices are of a kind that no other accepts from now on."""
    for id_ in traveller.ids:
        devices[traveller.home][id_] = oracle.UNIQUE
    place(cluster, devices)
    traveller.sources = (oracle.UNIQUE,) * len(traveller.ids)


def _phases(cluster: NodeCluster, chosen: Iterable[str]) -> set[str]:
    found = cluster.plane.get("vmi", "-n", NAMESPACE)["items"]
    return {i.get("status", {}).get("phase", "") for i in found if i["metadata"]["name"] in set(chosen)}


@dataclass
class Weather:
    """Free devices that are unhealthy or gone for a while, so that no preference for them can be followed."""

    cluster: NodeCluster
    chance: random.Random
    due: list[float]
    """Seconds since the beginning at which one befalls a device."""
    lasts: float = 5.0
    told: list[str] = field(default_factory=list)
    _away: dict[tuple[str, str], tuple[float, Path, Path]] = field(default_factory=dict)

    def is_away(self, node: str, id_: str) -> bool:
        """Whether the device is not to be had now."""
        return (node, id_) in self._away

    @property
    def lasting(self) -> bool:
        """Whether any device is not to be had now."""
        return bool(self._away)

    def blow(self, at: float, wanted: Sequence[tuple[str, str]]) -> None:
        """What is due `at` seconds after the beginning; `wanted`: free devices, as (node, id)."""
        for key, (until, link, leads) in list(self._away.items()):
            if at >= until:
                link.symlink_to(leads)
                del self._away[key]
        free = [key for key in wanted if key not in self._away]
        if self.due and at >= self.due[0] and free:
            self.due.pop(0)
            node, id_ = self.chance.choice(free)
            sysfs = self.cluster.nodes[node].host / "sys"
            kind, link = self.chance.choice(
                (
                    ("has no driver", sysfs / nodes.PARENT / id_ / "driver"),
                    ("is gone", sysfs / "bus/mdev/devices" / id_),
                )
            )
            self._away[node, id_] = at + self.lasts, link, link.readlink()
            link.unlink()
            self.told.append(f"{id_} of {node} {kind}")

    def end(self) -> None:
        """All devices are there."""
        for _, link, leads in self._away.values():
            link.symlink_to(leads)
        self._away.clear()


class Wave:
    """Moves travellers, again after each failure, until none can move that has not."""

    def __init__(
        self, cluster: NodeCluster, devices: Devices, travellers: Sequence[Traveller], weather: Weather
    ) -> None:
        """`devices`: of the nodes that take pods."""
        self.cluster = cluster
        self.devices = devices
        self.travellers = travellers
        self.weather = weather
        self._begun = time.monotonic()

    def start(self, traveller: Traveller) -> None:
        """One more migration of the VM."""
        item = objects.migration(traveller.vm, NAMESPACE)
        # KubeVirt waits for 5 minutes by default.
        item["metadata"].setdefault("annotations", {})[_UNSCHEDULABLE] = "10"
        made = self.cluster.run(self.cluster.api.create(_MIGRATIONS, item))
        traveller.job, traveller.phase = str(made["metadata"]["name"]), ""

    def run(self) -> None:
        """Until all have moved, or for a while none of the others could.

        Raises:
            AssertionError: not in time; with who could move, and where.
        """
        deadline, quiet_since = time.monotonic() + WITHIN, 0.0
        while not all(t.moved for t in self.travellers):
            could = self.attend()
            over = all(t.phase in ("Pending", "Failed", "Succeeded") for t in self.travellers)
            calm = not could and over and not self.weather.lasting
            quiet_since = (quiet_since or time.monotonic()) if calm else 0.0
            if calm and time.monotonic() - quiet_since > QUIET:
                return
            assert time.monotonic() < deadline, f"could move, and did not: {could}; {self.state()}"
            time.sleep(0.2)

    def attend(self) -> dict[str, list[str]]:
        """One look: weather, and another try for whom the last one failed; who could move, and where to."""
        self._look()
        free = self._free()
        could = {t.vm: ways for t in self.travellers if not t.moved and (ways := self._ways(t, free))}
        wanted = [(n, id_) for n, ids in free.items() for id_ in ids if self._is_wanted(n, id_)]
        self.weather.blow(time.monotonic() - self._begun, wanted)
        for traveller in self.travellers:
            if traveller.phase == "Failed" and traveller.vm in could:
                self.start(traveller)
        return could

    def give_up(self) -> None:
        """Withdraws the migrations of those that cannot move."""
        for traveller in self.travellers:
            if not traveller.moved:
                self.cluster.plane.kubectl("delete", "vmim", traveller.job, "-n", NAMESPACE, "--wait=false")

    def state(self) -> str:
        """What a person would look at."""
        cluster = self.cluster
        pods = cluster.plane.kubectl("get", "pods,vmim", "-n", NAMESPACE, "-o", "wide")
        free = {node: sorted(ids) for node, ids in self._free().items()}
        logs = [cluster.pod_log(cluster.agent(n)["metadata"]["name"])[-3000:] for n in self.devices]
        told = [f"{t.vm}: {t.sources}" for t in self.travellers]
        return "\n".join([pods, f"free: {free}", *told, *self.weather.told, *logs])

    def _look(self) -> None:
        phases = {
            m["metadata"]["name"]: m.get("status", {}).get("phase", "")
            for m in self.cluster.migrations(NAMESPACE)
        }
        for traveller in self.travellers:
            traveller.phase = phases.get(traveller.job, "")

    def _free(self) -> dict[str, list[str]]:
        """Devices that nobody holds and that are to be had, by node."""
        free = {}
        for node, mdevs in self.devices.items():
            held = {id_ for ids in self.cluster.held(node, POOL).values() for id_ in ids}
            free[node] = [id_ for id_ in mdevs if id_ not in held and not self.weather.is_away(node, id_)]
        return free

    def _ways(self, traveller: Traveller, free: Mapping[str, Sequence[str]]) -> list[str]:
        """Nodes that have devices for the VM now."""
        return [
            node
            for node, ids in free.items()
            if node != traveller.home
            and any(oracle.assignments(traveller.sources, [self.devices[node][id_] for id_ in ids]))
        ]

    def _is_wanted(self, node: str, id_: str) -> bool:
        mdev = self.devices[node][id_]
        waiting = [t for t in self.travellers if not t.moved and t.home != node]
        return any(oracle.accepting(mdev, source) for t in waiting for source in t.sources)


@dataclass(frozen=True)
class Attempt:
    """A target pod and its end: ``started``, ``refused`` (by the guard), or ``other``."""

    vm: str
    uid: str
    pod: str
    node: str
    outcome: str


def attempts(cluster: NodeCluster, seen: Sequence[Version]) -> list[Attempt]:
    """Every target pod that there was, in the order they were made; what started is containerd's word."""
    versions: dict[str, list[Version]] = {}
    for version in seen:
        if names.MIGRATION_UID in (version.item["metadata"].get("labels") or {}):
            versions.setdefault(version.item["metadata"]["uid"], []).append(version)
    found = []
    for uid, own in versions.items():
        last = own[-1].item
        node = last["spec"].get("nodeName", "")
        asked = containers.asked_for(cluster.nodes[node], uid) if node else []
        told = " ".join(
            status.get("state", {}).get("waiting", {}).get("message", "")
            for v in own
            for status in v.item["status"].get("containerStatuses", ())
        )
        outcome = "started" if "compute" in asked else "refused" if "migcompat guard:" in told else "other"
        vm = last["metadata"]["labels"]["vmi.kubevirt.io/id"]
        found.append(Attempt(vm, uid, last["metadata"]["name"], node, outcome))
    return found


def assert_only_accepting_devices_were_used(
    cluster: NodeCluster, devices: Devices, travellers: Sequence[Traveller], made: Sequence[Attempt]
) -> None:
    """No container of a target started but on devices that accept its VM, obligations fulfilled."""
    by_vm = {t.vm: t for t in travellers}
    started: dict[str, Attempt] = {}
    for attempt in made:
        if attempt.outcome == "started":
            assert attempt.vm not in started, f"{attempt.vm} arrived twice: {made}"
            started[attempt.vm] = attempt
    assert started.keys() == {t.vm for t in travellers if t.moved}
    for vm, attempt in started.items():
        running = vms.launcher(cluster, vm)
        assert (running.pod, running.node) == (attempt.pod, attempt.node)
        ids = given(cluster, running)
        targets = [devices[running.node][id_] for id_ in ids]
        reads = [
            (device_path(cluster, running.node, id_) / oracle.AGGREGATOR).read_text().strip() for id_ in ids
        ]
        sources = by_vm[vm].sources
        assert oracle.explains(sources, targets, reads), f"{vm}: {sources} went to {targets}, {reads}"


def assert_nobody_shares_a_device(cluster: NodeCluster, chosen: Iterable[str]) -> None:
    """Each device is in one VM's environment only."""
    taken: dict[tuple[str, str], str] = {}
    for vm in chosen:
        running = vms.launcher(cluster, vm)
        for id_ in given(cluster, running):
            other = taken.setdefault((running.node, id_), vm)
            assert other == vm, f"{id_} of {running.node} is given to {vm} and {other}"


@contextlib.contextmanager
def weather(cluster: NodeCluster, chance: random.Random, due: Sequence[float]) -> Iterator[Weather]:
    """Devices fail and go at these seconds; at the end all are there."""
    made = Weather(cluster, chance, list(due))
    try:
        yield made
    finally:
        made.end()
