"""Publishing: this node's VFIONode and the labels of its Node, written only when they change."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec
from migcompat.api.meta import ObjectMeta, OwnerReference
from migcompat.api.vfionode import Device, PodRef, VFIONode, VFIONodeStatus
from migcompat.kube.backoff import Backoff
from migcompat.kube.client import Client
from migcompat.kube.errors import ApiError, Conflict, NotFound
from migcompat.kube.kinds import NODES, VFIONODES
from migcompat.kubelet.podresources import Allocations

from migcompat_deviceplugin import metrics
from migcompat_deviceplugin.problems import Problem, Reason
from migcompat_deviceplugin.state import State
from migcompat_deviceplugin.status import build, conditions, label_patch, labels

log = logging.getLogger(__name__)

RESYNC = 300.0
"""Seconds after which the objects are read again, to mend what others did to them."""
RECHECK = 10.0
"""The same while the Node has another boot id: after a reboot its kubelet says the new one a moment later."""


class Publisher:
    """Writes what ``state`` holds. ``state.published`` says what the API server has confirmed.

    *recall* is told once, before anything is written, what this boot's earlier agent has published.
    """

    def __init__(
        self,
        client: Client,
        node_name: str,
        state: State,
        *,
        resync: float = RESYNC,
        recall: Callable[[Sequence[Device]], None] | None = None,
    ) -> None:
        self._client = client
        self._node_name = node_name
        self._state = state
        self._resync = resync
        self._recall = recall
        self._item: VFIONode | None = None
        self._written: VFIONodeStatus | None = None
        self._labels: dict[str, str] | None = None
        self._differs_since: float | None = None

    async def run(self) -> None:
        """Publish whenever something changes, and check now and then, until cancelled."""
        backoff = Backoff(0.5, 30.0)
        while True:
            every = RECHECK if self._differs_since is not None else self._resync * random.uniform(0.8, 1.2)  # noqa: S311
            if not await self._state.to_publish.wait(every):
                self._forget()
            while self._known():
                try:
                    await self.publish()
                except ApiError as error:
                    metrics.PUBLISH_FAILURES.inc()
                    self._forget()
                    if str(error) != self._state.publish_problem:
                        log.warning("cannot publish, trying again: %s", error)
                    self._state.publish_problem = str(error)
                    await asyncio.sleep(backoff.delay())
                    continue
                self._state.publish_problem = ""
                backoff.reset()
                break

    async def publish(self) -> None:
        """Bring VFIONode and labels in line with the state. Raises ApiError."""
        item = self._item or await self._fetch()
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if not self._devices_known():
            told = conditions(self._state, item.status.conditions, now)
            await self._write(item, msgspec.structs.replace(item.status, conditions=told))
            return
        if self._recall is not None:
            counts = item.status.boot_id == self._state.boot_id and item.status.mode is self._state.mode
            self._recall(item.status.devices if counts else [])
            self._recall = None
        told = conditions(self._state, item.status.conditions, now)
        devices = frozenset((d.resource, d.id) for d in self._state.inventory.values() if not d.waiting)
        status = build(
            self._state.inventory,
            self._allocations(item),
            boot_id=self._state.boot_id,
            conditions=told,
            now=now,
            mode=self._state.mode,
        )
        event, self._state.event = self._state.event, None
        try:
            await self._write(item, status)
        except ApiError:
            self._state.event = self._state.event if event is None else event
            raise
        if event is not None:
            metrics.PUBLISH_LAG_SECONDS.observe(asyncio.get_running_loop().time() - event)
        self._state.set_published(devices)
        await self._label(labels(status))

    async def _write(self, item: VFIONode, status: VFIONodeStatus) -> None:
        if status not in (item.status, self._written):
            item = await self._client.replace(
                VFIONODES,
                msgspec.structs.replace(item, status=status),
                self._node_name,
                subresource="status",
            )
            metrics.PUBLISHES.inc()
            log.info("published %d device(s), %s", len(status.devices), status.conditions[0].reason)
        self._item, self._written = item, status

    def _known(self) -> bool:
        """Whether there is anything true to say: of the devices, or why there is not."""
        return self._devices_known() or any(self._state.problems())

    def _devices_known(self) -> bool:
        """Whether there was a scan, in a known boot, and an answer or an error of PodResources."""
        state = self._state
        return state.scanned and bool(state.boot_id) and state.kubelet_asked

    def _allocations(self, item: VFIONode) -> Allocations:
        """Who holds what; while PodResources has not answered this process, what its forerunner published."""
        if self._state.holders is not None:
            return self._state.holders
        if item.status.boot_id != self._state.boot_id:
            return {}
        held: dict[tuple[str, str], PodRef] = {}
        for device in item.status.devices:
            if device.allocated_to is not None:
                held[(device.resource, device.id)] = device.allocated_to
        return held

    async def _fetch(self) -> VFIONode:
        """The VFIONode, made if need be and owned by the Node, so that it goes with it."""
        try:
            node = await self._client.get(NODES, self._node_name)
        except NotFound as error:
            raise NotFound(
                404, "NoSuchNode", f"there is no Node {self._node_name!r}: check --node-name"
            ) from error
        self._compare(node.status.node_info.boot_id)
        try:
            return await self._client.get(VFIONODES, self._node_name)
        except NotFound:
            pass
        owner = OwnerReference("v1", "Node", node.metadata.name, node.metadata.uid)
        item = VFIONode(ObjectMeta(name=self._node_name, owner_references=[owner]))
        try:
            return await self._client.create(VFIONODES, item)
        except Conflict:
            return await self._client.get(VFIONODES, self._node_name)

    def _compare(self, theirs: str) -> None:
        """Whether the Node's kubelet has the same boot id; for a moment after a reboot it has not."""
        ours = self._state.boot_id
        if not ours:
            return
        if theirs in ("", ours):
            self._differs_since = None
            self._state.set_boot_problem(None)
            return
        if self._differs_since is None:
            self._differs_since = time.monotonic()
        if time.monotonic() - self._differs_since < RECHECK:
            return
        problem = Problem(
            Reason.BOOT_ID_MISMATCH,
            f"the boot id is {ours} here and {theirs} for the Node's kubelet, so what is published does not"
            " count: is hostPaths.bootID the file that the kubelet reads?",
        )
        if problem != self._state.boot_problem:
            log.warning("%s", problem)
        self._state.set_boot_problem(problem)

    async def _label(self, wanted: dict[str, str]) -> None:
        if self._labels == wanted:
            return
        node = await self._client.get(NODES, self._node_name)
        patch = label_patch(node.metadata.labels or {}, wanted)
        if patch:
            await self._client.patch(NODES, self._node_name, {"metadata": {"labels": patch}})
            log.info("labelled the Node: %s", ", ".join(f"{k}={v}" for k, v in sorted(patch.items())))
        self._labels = wanted

    def _forget(self) -> None:
        """Read the objects anew next time."""
        self._item = self._written = self._labels = None
