"""Nodes without processes: what kubelet and agent do with a pod that is bound, as far as the API shows it.

A pod gets a device, its VFIONode says so, and the pod seems to run until it is deleted. For a target pod
that is the first free device that accepts the source's, as the real agent prefers it; where there is none,
the guard refuses, and the pod waits with the guard's text. What accepts what is asked of
``tests/node/oracle.py`` alone, and of nothing of the product.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
from migcompat.api import names
from migcompat.engine.declaration import Declaration

from tests.bench.bigcluster import POOL, add_node, publish
from tests.cluster.api import STRATEGIC, Api, ApiError, Object, now, path_of
from tests.cluster.standin import status
from tests.node.oracle import AGGREGATOR, Mdev, accepting
from tests.scenario import nodes as scenario
from tests.support import fleets

REFUSED = "device plugin PreStartContainer rpc failed with err: migcompat guard: AttributeMismatch: refused"
PRESTART_SECONDS = 0.5
"""Between Allocate and PreStartContainer, as measured on a kubelet 1.36."""


@dataclass
class Light:
    """One node: its devices, and which pod (namespace, name) holds which."""

    name: str
    devices: dict[str, Mdev]
    held: dict[str, tuple[str, str]] = field(default_factory=dict)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class Taken:
    """A device that a pod of a VM got; `source`: what it came from, None where it did not migrate."""

    vm: str
    node: str
    device: Mdev
    source: Mdev | None


class LightNodes:
    """All nodes of a cluster; lives in one event loop. Tell it of each pod with `see`."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.nodes: dict[str, Light] = {}
        self.taken: list[Taken] = []
        """Every device that a VM's pod got and started with, in order."""
        self.refused: list[str] = []
        """VMs whose target pod the guard refused."""
        self._api: Api | None = None
        self._by_vm: dict[str, dict[str, Mdev]] = {}
        self._pods: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, api: Api, name: str, devices: Sequence[Mdev]) -> None:
        """A node with these devices, all free."""
        self._api = api
        self.nodes[name] = Light(name, {f"d{number}": mdev for number, mdev in enumerate(devices)})
        await add_node(api, name, len(devices))
        await self._publish(self.nodes[name], new=True)

    async def refit(self, name: str, devices: Sequence[Mdev]) -> None:
        """The node has other devices, as many as before; nobody may hold one."""
        self.nodes[name].devices = {f"d{number}": mdev for number, mdev in enumerate(devices)}
        await self._publish(self.nodes[name])

    def see(self, kind: str, pod: Object) -> None:
        """A pod of the cluster has changed."""
        uid, node = pod["metadata"]["uid"], pod["spec"].get("nodeName", "")
        if kind == "DELETED" or "deletionTimestamp" in pod["metadata"]:
            if uid in self._pods:
                self._pods[uid].set()
        elif node in self.nodes and uid not in self._pods:
            self._pods[uid] = asyncio.Event()
            task = asyncio.create_task(self._guarded(self.nodes[node], pod))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """No pod is looked after any more."""
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _guarded(self, node: Light, pod: Object) -> None:
        try:
            await self._live(node, pod)
        except (ApiError, OSError, aiohttp.ClientError) as error:
            self.problems.append(f"{node.name}: pod {pod['metadata']['name']}: {error!r}")

    async def _live(self, node: Light, pod: Object) -> None:
        meta, api = pod["metadata"], self._api
        assert api is not None
        labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
        vm, deleted = annotations.get(names.VMI_NAME, ""), self._pods[meta["uid"]]
        source = None
        if names.MIGRATION_UID in labels:
            source = next(iter(self._by_vm.get(vm, {}).values()), None)
        device = choose(node, source)
        if device is None:
            raise OSError(f"no device of {node.name} is free")
        mdev = node.devices[device]
        node.held[device] = (meta["namespace"], meta["name"])
        starts = source is None or bool(accepting(mdev, source))
        try:
            await self._publish(node)
            await asyncio.sleep(PRESTART_SECONDS)
            if starts:
                self.taken.append(Taken(vm, node.name, mdev, source))
                self._by_vm.setdefault(vm, {})[meta["uid"]] = mdev
            else:
                self.refused.append(vm)
            await self._report(pod, starts=starts)
            await deleted.wait()
        finally:
            self._by_vm.get(vm, {}).pop(meta["uid"], None)
            del node.held[device]
        await self._publish(node)
        await api.delete(path_of(pod, "pods"), uid=meta["uid"], grace=0)

    async def _publish(self, node: Light, *, new: bool = False) -> None:
        assert self._api is not None
        async with node.writing:
            described: Mapping[str, Declaration] = {id_: declared(m) for id_, m in node.devices.items()}
            item = fleets.vfionode(node.name, described, allocated=dict(node.held), resource=POOL)
            await publish(self._api, item, new=new)

    async def _report(self, pod: Object, *, starts: bool) -> None:
        assert self._api is not None
        since = now()
        waiting = {"reason": "CreateContainerConfigError", "message": REFUSED}
        containers = [
            status.seeming(container, since=since if starts else "", waiting=waiting)
            for container in pod["spec"]["containers"]
        ]
        told = status.pod_status(pod, containers, [], address="10.0.0.1", host="10.0.0.1", since=since)
        body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": told}
        try:
            await self._api.patch(f"{path_of(pod, 'pods')}/status", body, STRATEGIC)
        except ApiError as error:
            if error.status not in (404, 409):
                raise


def declared(mdev: Mdev) -> Declaration:
    """What the mdev says, as its agent reads it."""
    own = mdev.own
    extra = {AGGREGATOR: own[AGGREGATOR]} if AGGREGATOR in own else {}
    return fleets.declared(mdev.version, type_=scenario.TYPE, accepts=mdev.patterns, extra=extra)


def choose(node: Light, source: Mdev | None) -> str | None:
    """The first free device that accepts *source*; any free one where none does."""
    free = [device for device in node.devices if device not in node.held]
    good = [device for device in free if source is None or accepting(node.devices[device], source)]
    return next(iter([*good, *free]), None)
