"""What the parts of the virt-controller stand-in share: caches, lookups, writes, and waiting for a change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

import aiohttp

from tests.cluster.api import MERGE, STRATEGIC, Api, ApiError, Cache, Object, now, path_of
from tests.cluster.kubevirt.objects import Adapt

log = logging.getLogger(__name__)

FINAL = ("Succeeded", "Failed")
"""Phases that a pod, a VMI or a migration never leaves."""

_UNPAUSED = "kubevirt.io/virtual-machine-unpaused"


class World:
    """KubeVirt's objects and their pods as the caches have them, and the writes that parts have in common."""

    def __init__(self, api: Api, pods: Cache, vmis: Cache, migrations: Cache, adapt: Adapt) -> None:
        self.api = api
        self.pods = pods
        self.vmis = vmis
        self.migrations = migrations
        self.adapt = adapt
        self.problems: list[str] = []
        self._pulse = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def vmi(self, uid: str) -> Object | None:
        """The VMI of that uid."""
        return next((i for i in self.vmis.all() if i["metadata"]["uid"] == uid), None)

    def pod(self, uid: str) -> Object | None:
        """The pod of that uid."""
        return next((p for p in self.pods.all() if p["metadata"]["uid"] == uid), None)

    def pods_of(self, vmi_uid: str) -> list[Object]:
        """All launcher pods of a VMI, migration targets too."""
        return [
            p
            for p in self.pods.all()
            if (p["metadata"].get("labels") or {}).get("kubevirt.io/created-by") == vmi_uid
        ]

    def target_of(self, job_uid: str) -> Object | None:
        """The target pod of a migration."""
        label = "kubevirt.io/migrationJobUID"
        return next(
            (p for p in self.pods.all() if (p["metadata"].get("labels") or {}).get(label) == job_uid), None
        )

    def active_pod(self, item: Object) -> Object | None:
        """The running pod that the VM is in."""
        node = item.get("status", {}).get("nodeName")
        for pod in self.pods_of(item["metadata"]["uid"]):
            active = pod["metadata"]["uid"] in item["status"].get("activePods", {})
            if active and pod["spec"].get("nodeName") == node and is_alive(pod):
                return pod
        return None

    async def unpause(self, pod: Object) -> None:
        """The condition that the pod's readiness gate waits for."""
        condition = {
            "type": _UNPAUSED,
            "status": "True",
            "reason": "NotPaused",
            "message": "the virtual machine is not paused",
            "lastProbeTime": now(),
            "lastTransitionTime": now(),
        }
        path = path_of(pod, "pods") + "/status"
        await self.ignoring_gone(self.api.patch(path, {"status": {"conditions": [condition]}}, STRATEGIC))

    async def patch_vmi(self, item: Object, change: Object) -> None:
        """Changes a VMI, if it is still there."""
        await self.ignoring_gone(self.api.patch(path_of(item, "virtualmachineinstances"), change, MERGE))

    async def set_phase(self, job: Object, phase: str, more: Object | None = None) -> None:
        """Moves a migration to a phase; `more` is merged into its status."""
        path = path_of(job, "virtualmachineinstancemigrations")
        current = await self.api.find(path)  # the cache may not have the last phase yet
        if current is None:
            return
        times = list(current.get("status", {}).get("phaseTransitionTimestamps", ()))
        times.append({"phase": phase, "phaseTransitionTimestamp": now()})
        status = {"phase": phase, "phaseTransitionTimestamps": times, **(more or {})}
        await self.ignoring_gone(self.api.patch(f"{path}/status", {"status": status}))

    async def event(self, about: Object, kind: str, reason: str, message: str) -> None:
        """An event of an object."""
        meta = about["metadata"]
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{meta['name']}.", "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": "virtualmachineinstance-controller"},
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "count": 1,
        }
        await self.api.create(f"/api/v1/namespaces/{meta['namespace']}/events", event)

    async def ignoring_gone(self, call: Coroutine[Any, Any, Any]) -> None:
        """Waits for a call; that its object is gone is no error."""
        try:
            await call
        except ApiError as error:
            if error.status != 404:
                raise

    def unfinished(self, item: Object) -> bool:
        """Whether the VMI has a migration that is not over."""
        return any(
            m["spec"]["vmiName"] == item["metadata"]["name"]
            and m["metadata"]["namespace"] == item["metadata"]["namespace"]
            and m.get("status", {}).get("phase") not in FINAL
            for m in self.migrations.all()
        )

    def notify(self) -> None:
        """Something has changed."""
        self._pulse.set()
        self._pulse = asyncio.Event()

    async def change(self, within: float | None = None) -> None:
        """Until something has changed, or `within` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._pulse.wait(), within)

    async def seen(self, pod_uid: str) -> None:
        """Until the cache has a pod that was just made (or it is gone again, after a second)."""
        deadline = asyncio.get_running_loop().time() + 5
        while self.pod(pod_uid) is None and asyncio.get_running_loop().time() < deadline:
            await self.change(within=1.0)

    def start(self, key: str, work: Coroutine[Any, Any, None]) -> None:
        """Runs one reconciliation to its end; an error of it is a problem of the stand-in."""

        async def guarded() -> None:
            try:
                await work
            except (ApiError, OSError, KeyError, aiohttp.ClientError) as error:
                log.exception("virt-controller stand-in: %s", key)
                self.problems.append(f"{key}: {error!r}")
            finally:
                self._tasks.pop(key, None)

        if key in self._tasks:
            work.close()
            return
        self._tasks[key] = asyncio.create_task(guarded())

    def cancel(self) -> None:
        """Ends every reconciliation."""
        for task in self._tasks.values():
            task.cancel()


def is_alive(pod: Object) -> bool:
    """Whether a pod has neither ended nor been deleted."""
    return pod.get("status", {}).get("phase") not in FINAL and "deletionTimestamp" not in pod["metadata"]
