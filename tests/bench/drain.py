"""Nodes are drained of VMs whose devices differ in version: who gets away, at which try, and how soon.

Real: kube-apiserver, kube-scheduler with our extender, the webhook, the operator. Stood in for: KubeVirt's
controller with its five migrations at a time and two from one node (tests/cluster/kubevirt), and the nodes
(tests/bench/lightnodes.py). What is right is found by trying all devices with ``tests/node/oracle.py``.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from migcompat.api import names

from tests.bench import product
from tests.bench.bigcluster import CRDS, POOL
from tests.bench.figures import BenchError, Row
from tests.bench.lightnodes import LightNodes
from tests.bench.ways import WEBHOOKS, Ways
from tests.cluster.api import Object
from tests.cluster.base import BaseCluster
from tests.cluster.binaries.build import BuildError
from tests.cluster.controlplane import ClusterError, ControlPlane
from tests.cluster.kubevirt import objects
from tests.cluster.kubevirt.timing import Timing
from tests.cluster.processes import Process
from tests.node.oracle import Entry, Mdev, accepting, any_mdev

COPYING_SECONDS = 10.0
"""How long a migration takes once its target runs."""
PATIENCE = 300.0
START_SECONDS = 120.0
ANSWER_SECONDS = 60.0
RATIO_GOAL = 1.1
NAMESPACE = "default"
VMIS = f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachineinstances"
MIGRATIONS = f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachineinstancemigrations"
ANSWERS = f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/migrationcompatibilities"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"


@dataclass(frozen=True)
class Size:
    """How much there is of everything."""

    nodes: int = 100
    drained: int = 10
    """Of the nodes; each has as many VMs."""
    vms: int = 50
    movable: int = 10
    """Of the VMs, where the rest is hopeless."""
    rounds: int = 3
    devices: int = 3
    """Of each node that is not drained."""


class DrainCluster(BaseCluster):
    """The control plane with light nodes, KubeVirt's stand-in, and our extender and operator as processes."""

    def __init__(self, plane: ControlPlane, scratch: Path) -> None:
        super().__init__(plane, timing=Timing(copying=COPYING_SECONDS), adapt=self._placed)
        self.light = LightNodes()
        self.homes: dict[str, str] = {}
        """Where each VM is to start."""
        self.targets: dict[str, Object] = {}
        """Every target pod there ever was, as last seen, by uid."""
        self.unschedulable: set[str] = set()
        """Uids of target pods that kube-scheduler once found no node for."""

    def pod_log(self, pod: str, namespace: str = NAMESPACE) -> str:
        """Nothing runs in the pods."""
        return ""

    @property
    def node_names(self) -> list[str]:
        """The nodes there are."""
        return list(self.light.nodes)

    def all_problems(self) -> list[str]:
        """Everything that a stand-in could not do so far."""
        return [*super().all_problems(), *self.light.problems]

    def _placed(self, pod: Object) -> Object:
        """A VM's first pod goes where the plan says, past kube-scheduler."""
        if names.MIGRATION_UID not in pod["metadata"]["labels"]:
            pod["spec"]["nodeName"] = self.homes[pod["metadata"]["annotations"][names.VMI_NAME]]
        return pod

    def _see_pod(self, kind: str, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        if names.MIGRATION_UID in (pod["metadata"].get("labels") or {}):
            self.targets[uid] = pod
            if any(
                c["type"] == "PodScheduled" and c["status"] == "False"
                for c in pod.get("status", {}).get("conditions") or ()
            ):
                self.unschedulable.add(uid)
        self.light.see(kind, pod)
        super()._see_pod(kind, pod)

    async def _end(self) -> None:
        await self.light.stop()
        await super()._end()


@dataclass(frozen=True)
class Outcome:
    """What a drain came to; VMs by name."""

    seconds: float
    """From the first node's cordon until all movable VMs are elsewhere."""
    movable: frozenset[str]
    stranded: frozenset[str]
    at_first_try: frozenset[str]
    refused: tuple[str, ...]
    on_refusing: tuple[str, ...]
    told: Mapping[str, str]
    """MIGRATABLE by VM, before the drain."""


def measure() -> list[Row]:
    """A drain of mixed versions, then one with and without hopeless VMs. Raises BenchError."""
    return run(Size())


def run(size: Size) -> list[Row]:
    """The same for a cluster of any size."""
    with _cluster(size) as cluster:
        site = Site(cluster, size)
        mixed = site.drain([_any(site.chance, number) for number in range(size.vms)])
        rows = _mixed_rows(mixed, size)
        alone: list[float] = []
        crowded: list[float] = []
        few = [_movable(number) for number in range(size.movable)]
        many = [*few, *(_hopeless(number) for number in range(size.vms - size.movable))]
        for number in range(size.rounds):
            turns = [(few, alone), (many, crowded)]
            for mdevs, seconds in reversed(turns) if number % 2 else turns:
                seconds.append(site.drain(mdevs).seconds)
    return [*rows, *_blocking_rows(alone, crowded, size)]


class Site:
    """Drains on one cluster, one after another, each with VMs of its own."""

    def __init__(self, cluster: DrainCluster, size: Size) -> None:
        self.chance = random.Random(6)
        self._cluster = cluster
        self._sources = [f"old-{number:02}" for number in range(size.drained)]
        self._slots = -(-size.vms // size.drained)
        self._others = {
            f"node-{number:03}": [any_mdev(self.chance) for _ in range(size.devices)]
            for number in range(size.nodes - size.drained)
        }
        self._run = 0
        for name in self._sources:
            cluster.run(cluster.light.add(cluster.api, name, [_hopeless(0)] * self._slots))
        for name, mdevs in self._others.items():
            cluster.run(cluster.light.add(cluster.api, name, mdevs))

    def drain(self, mdevs: Sequence[Mdev]) -> Outcome:
        """Start a VM on a device of each of *mdevs*, drain their nodes, and take the VMs away again.

        Raises BenchError when VMs that can move do not within the patience.
        """
        cluster, self._run = self._cluster, self._run + 1
        vms = [f"run{self._run}-vm{number:02}" for number in range(len(mdevs))]
        for number, name in enumerate(self._sources):
            own = list(mdevs[number :: len(self._sources)])
            spare = [_hopeless(99)] * (self._slots - len(own))
            cluster.run(cluster.light.refit(name, [*own, *spare]))
        cluster.light.taken.clear()
        cluster.light.refused.clear()
        cluster.homes = {vm: self._sources[number % len(self._sources)] for number, vm in enumerate(vms)}
        for vm in vms:
            cluster.run(cluster.api.create(VMIS, objects.vmi(vm, NAMESPACE, gpus=[POOL])))
        cluster.wait(lambda: self._running() >= set(vms), "all VMs run", within=START_SECONDS)
        held = {taken.vm: taken.device for taken in cluster.light.taken}
        free = [m for mdevs_there in self._others.values() for m in mdevs_there]
        movable = frozenset(vm for vm in vms if any(accepting(m, held[vm]) for m in free))
        self._check_plan(held, movable)
        told = self._told(vms)
        try:
            seconds = self._leave(movable)
            outcome = self._outcome(seconds, vms, movable, told)
        finally:
            self._clear()
        return outcome

    def _check_plan(self, held: Mapping[str, Mdev], movable: frozenset[str]) -> None:
        """Whoever can move can do so whatever the others take, and MIGRATABLE must say so of all.

        Raises BenchError: then the plan, not the product, is wrong.
        """
        free = [m for mdevs in self._others.values() for m in mdevs]
        for vm, source in held.items():
            takers = sum(bool(accepting(m, source)) for m in free)
            if vm in movable and takers < len(movable):
                raise BenchError(f"plan: only {takers} devices take {vm}, for {len(movable)} movable VMs")
            there = [m for name in self._sources for m in self._cluster.light.nodes[name].devices.values()]
            if vm not in movable and any(accepting(m, source) for m in there):
                raise BenchError(f"plan: a device of a drained node would take {vm}, and no other")

    def _told(self, vms: Sequence[str]) -> dict[str, str]:
        """MIGRATABLE of each VM once all are answered."""
        found: dict[str, str] = {}

        def answered() -> bool:
            items = self._cluster.run(self._cluster.api.get(ANSWERS))["items"]
            found.clear()
            for item in items:
                for condition in item.get("status", {}).get("conditions") or ():
                    if condition["type"] == "Migratable" and condition["status"] != "Unknown":
                        found[item["metadata"]["name"]] = condition["status"]
            return set(vms) <= set(found)

        self._cluster.wait(answered, "the operator has answered for all VMs", within=ANSWER_SECONDS)
        return {vm: found[vm] for vm in vms}

    def _leave(self, movable: frozenset[str]) -> float:
        """Seconds until all movable VMs run elsewhere and their migrations are over."""
        cluster = self._cluster
        start = time.perf_counter()
        for name in self._sources:
            self._cordon(name, on=True)
            cluster.run(_call(cluster.virt.evacuations.begin, name))

        def away() -> bool:
            where = {
                i["metadata"]["name"]: i.get("status", {}).get("nodeName") for i in cluster.virt.vmis.all()
            }
            left = {vm for vm in movable if where.get(vm) in self._sources}
            return not left and not self._moving(movable)

        cluster.wait(away, "all movable VMs have left the drained nodes", within=PATIENCE)
        return time.perf_counter() - start

    def _moving(self, vms: frozenset[str]) -> bool:
        return any(
            m["spec"]["vmiName"] in vms and m.get("status", {}).get("phase") not in ("Succeeded", "Failed")
            for m in self._cluster.virt.migrations.all()
        )

    def _outcome(
        self, seconds: float, vms: Sequence[str], movable: frozenset[str], told: Mapping[str, str]
    ) -> Outcome:
        cluster = self._cluster
        tries: dict[str, list[str]] = {vm: [] for vm in vms}
        for uid, pod in list(cluster.targets.items()):
            vm = pod["metadata"]["annotations"][names.VMI_NAME]
            if vm in tries:
                tries[vm].append(uid)
        denied = {
            event["involvedObject"]["name"]
            for event in cluster.run(cluster.api.get(EVENTS))["items"]
            if event["reason"] == "FailedCreate"
        }
        first = frozenset(
            vm
            for vm in movable
            if len(tries[vm]) == 1 and tries[vm][0] not in cluster.unschedulable and vm not in denied
        )
        taken = [t for t in cluster.light.taken if t.source is not None]
        return Outcome(
            seconds=seconds,
            movable=movable,
            stranded=frozenset(vms) - movable,
            at_first_try=first,
            refused=tuple(cluster.light.refused),
            on_refusing=tuple(t.vm for t in taken if t.source and not accepting(t.device, t.source)),
            told=told,
        )

    def _clear(self) -> None:
        """No VMs, no migrations, no events, no cordons."""
        cluster = self._cluster
        for name in self._sources:
            cluster.run(_call(cluster.virt.evacuations.end, name))
        for path in (VMIS, MIGRATIONS, EVENTS):
            cluster.run(cluster.api.request("DELETE", path, {"kind": "DeleteOptions", "apiVersion": "v1"}))
        for name in self._sources:
            self._cordon(name, on=False)
        cluster.wait(
            lambda: not cluster.pods.all() and not any(n.held for n in cluster.light.nodes.values()),
            "the VMs' pods are gone",
            within=START_SECONDS,
        )

    def _cordon(self, name: str, *, on: bool) -> None:
        patch = {"spec": {"unschedulable": on}}
        self._cluster.run(self._cluster.api.patch(f"/api/v1/nodes/{name}", patch))

    def _running(self) -> set[str]:
        return {
            item["metadata"]["name"]
            for item in self._cluster.virt.vmis.all()
            if item.get("status", {}).get("phase") == "Running"
        }


async def _call(action: Callable[[str], None], name: str) -> None:
    """In the stand-ins' loop."""
    action(name)


def _any(chance: random.Random, number: int) -> Mdev:
    """A device of a mixed fleet: two in ten are such that nothing accepts them."""
    return _hopeless(number) if chance.random() < 0.2 else any_mdev(chance)


def _movable(_: int) -> Mdev:
    """A device that many accept."""
    return Mdev("1.0.0", None, (Entry("1.0.0"),))


def _hopeless(number: int) -> Mdev:
    """A device that accepts others (every second one), and that nothing accepts, itself included."""
    entries = (Entry("1.2.0"),) if number % 2 else (Entry("8.0.0"),)
    return Mdev(f"{9 + number}.0.0", None, entries)


@contextmanager
def _cluster(size: Size) -> Iterator[DrainCluster]:
    """Everything runs, with no node yet. Raises BenchError."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="migcompat-bench-")))
        try:
            plane = stack.enter_context(ControlPlane())
            for path in CRDS:
                plane.kubectl("apply", "--server-side", "-f", str(path))
            plane.await_kinds()
            cluster = stack.enter_context(DrainCluster(plane, scratch))
            ways = Ways(plane, scratch)
            stack.callback(ways.stop)
            ways.start()
            stack.enter_context(_operator(plane, scratch))
            plane.restart_scheduler([ways.extender([POOL])])
            cluster.run(cluster.api.create(WEBHOOKS, ways.webhook()))
            yield cluster
        except (BuildError, ClusterError) as problem:
            raise BenchError(f"drain over {size.nodes} nodes: {problem}") from problem


@contextmanager
def _operator(plane: ControlPlane, scratch: Path) -> Iterator[None]:
    address = plane.addresses.control_plane
    health = f"{address}:{plane.addresses.free_port(address)}"
    process = Process(
        "migcompat-operator",
        [
            str(product.program("migcompat-operator")),
            f"--health-bind={health}",
            f"--kubeconfig={plane.kubeconfig}",
        ],
        log=scratch / "operator.log",
        environment=dict(os.environ),
    )
    try:
        product.await_ready(process, f"http://{health}/readyz")
        yield
    finally:
        process.stop()


def _mixed_rows(mixed: Outcome, size: Size) -> list[Row]:
    what = f"drain of {size.vms} VMs, {size.nodes} nodes, mixed versions"
    wrong = [vm for vm, status in mixed.told.items() if (status == "False") is not (vm in mixed.stranded)]
    for title, vms in (
        ("not at the first try", sorted(mixed.movable - mixed.at_first_try)),
        ("refused by the guard", mixed.refused),
        ("MIGRATABLE is wrong", wrong),
    ):
        if vms:
            print(f"bench: {what}: {title}: {', '.join(vms)}", file=sys.stderr)
    return [
        Row(name=f"{what}: movable in truth", value=len(mixed.movable), unit="VMs"),
        Row(
            name=f"{what}: of these placed at the first try",
            value=100 * len(mixed.at_first_try) / len(mixed.movable),
            unit="%",
            floor=100,
        ),
        Row(name=f"{what}: targets that the guard had to refuse", value=len(mixed.refused), unit="", goal=0),
        Row(name=f"{what}: started on a refusing device", value=len(mixed.on_refusing), unit="VMs", goal=0),
        Row(name=f"{what}: stranded in truth", value=len(mixed.stranded), unit="VMs"),
        Row(name=f"{what}: VMs whose MIGRATABLE says otherwise", value=len(wrong), unit="VMs", goal=0),
        Row(name=f"{what}: until all movable are elsewhere", value=mixed.seconds, unit="s"),
    ]


def _blocking_rows(alone: Sequence[float], crowded: Sequence[float], size: Size) -> list[Row]:
    base, ours = statistics.median(alone), statistics.median(crowded)
    hopeless = size.vms - size.movable
    what = f"drain until {size.movable} movable VMs are elsewhere"
    spread = "(least {:.1f}, most {:.1f})".format
    ratio = ours / base
    return [
        Row(name=f"{what}, alone {spread(min(alone), max(alone))}", value=base, unit="s"),
        Row(
            name=f"{what}, {hopeless} hopeless beside them {spread(min(crowded), max(crowded))}",
            value=ours,
            unit="s",
            baseline="alone",
            ratio=ratio,
        ),
        Row(name=f"{what}, with {hopeless} hopeless to without", value=ratio, unit="", goal=RATIO_GOAL),
    ]
