"""A real control plane with thousands of nodes, which only exist as objects, and the real extender beside it.

Nodes are Node and VFIONode objects as a kubelet and our agent write them; VMs are KubeVirt's objects with a
launcher pod bound to a node. Nothing runs the pods: what counts here ends when kube-scheduler has bound them.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from migcompat.api import names
from migcompat.api.vfionode import VFIONode
from migcompat.engine.declaration import Declaration

from tests.bench.figures import BenchError
from tests.bench.ways import WEBHOOK, WEBHOOKS, Ways
from tests.cluster.api import Api, ApiError, Cache, Object
from tests.cluster.binaries.build import BuildError
from tests.cluster.controlplane import ClusterError, ControlPlane
from tests.cluster.kubevirt import objects
from tests.support import fleets

ROOT = Path(__file__).parents[2]
CRDS = (ROOT / "charts/migcompat/files/crds", ROOT / "tests/cluster/kubevirt/crds.yaml")
NAMESPACE = "bench"
POOL = fleets.POOL
AT_ONCE = 32
"""Requests under way at a time while objects are made."""
WEBHOOK_SECONDS = 30.0
GONE_SECONDS = 60.0
VFIONODES = f"/apis/{names.API_VERSION}/vfionodes"
VMIS = f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachineinstances"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_CAPACITY = {
    "cpu": "64",
    "memory": "512Gi",
    "pods": "250",
    "ephemeral-storage": "1Ti",
    "devices.kubevirt.io/kvm": "250",
    "devices.kubevirt.io/tun": "250",
    "devices.kubevirt.io/vhost-net": "250",
}
_LABELS = {
    "kubernetes.io/arch": "amd64",
    "kubernetes.io/os": "linux",
    "kubevirt.io/schedulable": "true",
    "cpu-vendor.node.kubevirt.io/Intel": "true",
    "machine-type.node.kubevirt.io/q35": "true",
}


@dataclass(frozen=True)
class NodePlan:
    """A node: how many devices it has, all alike, and the VMs that hold the first of them."""

    name: str
    devices: int
    declaration: Declaration
    vms: tuple[str, ...] = ()


@dataclass
class Placement:
    """What became of a pod: its node and when (perf_counter) it was bound, and whether an attempt failed."""

    node: str = ""
    bound: float = 0.0
    failed: bool = False


class Placements:
    """What kube-scheduler does with each pod of the namespace, as it happens."""

    def __init__(self, api: Api) -> None:
        self.cache = Cache(api, PODS, self._see)
        self._found: dict[str, Placement] = {}
        self._changed = asyncio.Event()

    def __getitem__(self, name: str) -> Placement:
        return self._found.setdefault(name, Placement())

    def _see(self, kind: str, pod: Object) -> None:
        name = pod["metadata"]["name"]
        if kind == "DELETED":
            self._found.pop(name, None)
        else:
            placement = self[name]
            if not placement.node and (node := pod["spec"].get("nodeName")):
                placement.node, placement.bound = node, time.perf_counter()
            placement.failed |= not placement.node and any(
                condition["type"] == "PodScheduled" and condition["status"] == "False"
                for condition in pod.get("status", {}).get("conditions") or ()
            )
        self._changed.set()

    async def bound(self, pods: Sequence[str], within: float) -> int:
        """How many of *pods* are bound, once all are or *within* seconds are over."""
        await self._until(lambda: all(self[name].node for name in pods), within)
        return sum(bool(self[name].node) for name in pods)

    async def begun(self, pods: Sequence[str], within: float) -> int:
        """How many of *pods* are bound, once one is or *within* seconds are over."""
        await self._until(lambda: any(self[name].node for name in pods), within)
        return sum(bool(self[name].node) for name in pods)

    def names(self) -> list[str]:
        """All pods there are but those that hold devices."""
        return [name for name in self._found if not name.startswith("holder-")]

    async def gone(self, within: float) -> None:
        """Until no pod is left but those that hold devices. Raises BenchError."""
        if not await self._until(lambda: not self.names(), within):
            raise BenchError(f"pods were deleted, and after {within:g} s some are still there")

    async def known(self, count: int, within: float) -> None:
        """Until the watch has told of *count* pods beside the holders. Raises BenchError."""

        if not await self._until(lambda: len(self.names()) >= count, within):
            raise BenchError(f"{count} pods were made; the watch has not told of all within {within:g} s")

    async def _until(self, condition: Any, within: float) -> bool:
        deadline = time.perf_counter() + within
        while not condition():
            left = deadline - time.perf_counter()
            if left <= 0:
                return False
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        return True


class BigCluster:
    """The control plane with its nodes and VMs, the extender's process, and what pods become."""

    def __init__(self, plane: ControlPlane, api: Api, scratch: Path) -> None:
        self.plane = plane
        self.api = api
        self.placements = Placements(api)
        self.nodes: dict[str, NodePlan] = {}
        self.vms: dict[str, Object] = {}
        self.ways = Ways(plane, scratch)

    # objects

    async def add_nodes(self, plans: Iterable[NodePlan]) -> None:
        """Make the nodes, the VMs on them, and what their agents would publish."""
        plans = list(plans)
        self.nodes |= {plan.name: plan for plan in plans}
        await all_of(self._add_node(plan) for plan in plans)
        await all_of(self._add_vm(vm, plan.name) for plan in plans for vm in plan.vms)

    async def _add_node(self, plan: NodePlan) -> None:
        allocated = {f"d{number}": (NAMESPACE, f"holder-{vm}") for number, vm in enumerate(plan.vms)}
        devices = {f"d{number}": plan.declaration for number in range(plan.devices)}
        await add_node(self.api, plan.name, plan.devices)
        await publish(self.api, fleets.vfionode(plan.name, devices, allocated=allocated), new=True)

    async def _add_vm(self, name: str, node: str) -> None:
        body = objects.vmi(name, NAMESPACE, gpus=[POOL])
        body["status"] = {
            "phase": "Running",
            "nodeName": node,
            "conditions": [{"type": "LiveMigratable", "status": "True"}],
        }
        made = await self.api.create(VMIS, body)
        pod = objects.source_pod(made)
        pod["metadata"] = {**pod["metadata"], "name": f"holder-{name}"}
        pod["metadata"]["labels"] |= {names.NODE_NAME: node}
        pod["spec"]["nodeName"] = node
        await self.api.create(PODS, pod)
        self.vms[name] = made

    def target_pod(self, vm: str, **spec: Any) -> Object:
        """A target pod for a VM as virt-controller makes it; *spec*: what its spec is to have besides."""
        made = self.vms[vm]
        job = {"metadata": {"name": f"migration-{vm}", "uid": f"migration-{vm}"}, "spec": {}}
        pod = objects.target_pod(made, job)
        pod["metadata"]["labels"] |= {names.NODE_NAME: made["status"]["nodeName"]}
        pod["spec"] |= spec
        return pod

    async def create_pod(self, pod: Object, **params: str) -> Object:
        """The pod as kube-apiserver stored it."""
        return await self.api.request("POST", PODS, pod, params=params)

    async def delete_pod(self, name: str) -> None:
        """Delete a pod at once."""
        await self.api.delete(f"{PODS}/{name}", grace=0)

    async def delete_pods(self) -> None:
        """Delete all pods but those that hold devices, at once, and wait until they are gone."""
        await all_of(self.delete_pod(name) for name in self.placements.names())
        await self.placements.gone(GONE_SECONDS)

    # the ways

    @contextlib.asynccontextmanager
    async def webhook(self, vm: str) -> AsyncIterator[None]:
        """The webhook is registered as the chart does it, and kube-apiserver asks it (tried with *vm*)."""
        await self.api.create(WEBHOOKS, self.ways.webhook())
        try:
            await self._await_webhook(vm, steers=True)
            yield
        finally:
            await self.api.delete(f"{WEBHOOKS}/{WEBHOOK}")
        await self._await_webhook(vm, steers=False)

    async def _await_webhook(self, vm: str, *, steers: bool) -> None:
        deadline = time.monotonic() + WEBHOOK_SECONDS
        told = ""
        while time.monotonic() < deadline:
            try:
                pod = await self.create_pod(self.target_pod(vm), dryRun="All")
                told = f"the pod's annotations are {pod['metadata']['annotations']}"
                if (names.SOURCE in pod["metadata"]["annotations"]) is steers:
                    return
            except ApiError as error:
                told = str(error)
            await asyncio.sleep(0.2)
        what = "does not take effect" if steers else "is still asked"
        raise BenchError(f"the webhook {what} after {WEBHOOK_SECONDS:g} s: {told}")


async def add_node(api: Api, name: str, devices: int) -> None:
    """A Node as a kubelet keeps it, on which KubeVirt's pods may run, with that many devices of the pool."""
    built = msgspec.to_builtins(fleets.node(name))
    built["metadata"]["labels"] |= _LABELS
    amounts = {**_CAPACITY, POOL: str(devices)}
    status = {**built["status"], "capacity": amounts, "allocatable": amounts}
    head = {"apiVersion": "v1", "kind": "Node"}
    await api.create("/api/v1/nodes", {**head, "metadata": built["metadata"], "status": status})


async def publish(api: Api, item: VFIONode, *, new: bool = False) -> None:
    """Write a VFIONode's status as the agent of its node does; *new*: make the object first."""
    name = item.metadata.name
    head = {"apiVersion": names.API_VERSION, "kind": "VFIONode", "metadata": {"name": name}}
    if new:
        await api.create(VFIONODES, head)
    status = msgspec.to_builtins(item.status)
    # Not a merge, which keeps keys that it is not told about: profiles have their digests as keys.
    await api.apply(f"{VFIONODES}/{name}/status", {**head, "status": status})


async def all_of(work: Iterable[Awaitable[Any]]) -> None:
    """Do everything, some of it at a time; raises what first went wrong."""
    queue = iter(work)

    async def worker() -> None:
        for one in queue:
            await one

    tasks = [asyncio.create_task(worker()) for _ in range(AT_ONCE)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


@contextlib.asynccontextmanager
async def big_cluster(plans: Sequence[NodePlan]) -> AsyncIterator[BigCluster]:
    """A cluster with these nodes and a ready extender; no kube-scheduler runs yet. Raises BenchError."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="migcompat-bench-")))
        try:
            plane = await asyncio.to_thread(ControlPlane)
            stack.callback(plane.stop)
            await asyncio.to_thread(_prepare, plane)
        except (BuildError, ClusterError) as problem:
            raise BenchError(f"no control plane: {problem}") from problem
        async with Api(plane.kubeconfig) as api:
            cluster = BigCluster(plane, api, scratch)
            watch = asyncio.create_task(cluster.placements.cache.run())
            try:
                start = time.monotonic()
                await cluster.add_nodes(plans)
                await asyncio.to_thread(cluster.ways.start)
                say(f"{len(plans)} nodes, {len(cluster.vms)} VMs in {time.monotonic() - start:.0f} s")
                yield cluster
            except (ApiError, aiohttp.ClientError, TimeoutError) as problem:
                raise BenchError(f"a call of kube-apiserver failed: {problem!r}") from problem
            finally:
                await asyncio.to_thread(cluster.ways.stop)
                watch.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watch


def _prepare(plane: ControlPlane) -> None:
    plane.start()
    plane.stop_scheduler()
    for path in CRDS:
        plane.kubectl("apply", "--server-side", "-f", str(path))
    plane.await_kinds()
    plane.kubectl("create", "namespace", NAMESPACE)
    deadline = time.monotonic() + 60
    while "default" not in plane.kubectl("get", "serviceaccounts", "-n", NAMESPACE, "-o", "name"):
        if time.monotonic() > deadline:
            raise ClusterError(f"namespace {NAMESPACE} has no service account after 60 s")
        time.sleep(0.2)


def say(text: str) -> None:
    """A line of progress, to stderr."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
