"""Stands in for virt-controller's migration part: slots, target pods, denials, hand-over."""

from __future__ import annotations

import asyncio
import contextlib

from tests.cluster.api import ApiError, Object, now, path_of
from tests.cluster.kubevirt import objects
from tests.cluster.kubevirt.timing import Timing
from tests.cluster.kubevirt.vmis import VMIs
from tests.cluster.kubevirt.world import FINAL, World, is_alive

_UNSCHEDULABLE_ANNOTATION = "kubevirt.io/migrationUnschedulablePodTimeoutSeconds"
_PENDING_ANNOTATION = "kubevirt.io/migrationPendingPodTimeoutSeconds"


class Migrations:
    """Brings each VirtualMachineInstanceMigration to its end."""

    def __init__(self, world: World, vmis: VMIs, timing: Timing, *, per_cluster: int, per_node: int) -> None:
        """`per_cluster`, `per_node`: how many target pods there may be, and from one source node."""
        self._world = world
        self._vmis = vmis
        self._timing = timing
        self._per_cluster = per_cluster
        self._per_node = per_node
        self._touched: dict[str, asyncio.Event] = {}
        self._starting = asyncio.Lock()
        """virt-controller makes one target pod at a time (migrationStartLock)."""
        self._holding: dict[str, str] = {}
        """Source node by uid of each migration that holds a slot, whatever the caches have seen of it."""

    def touch(self, uid: str) -> None:
        """The migration's object has changed: a denied one is tried again at once."""
        self._touched.setdefault(uid, asyncio.Event()).set()

    async def run(self, job: Object) -> None:
        """One migration from Pending to its end."""
        try:
            await self._run(job)
        finally:
            if self._holding.pop(job["metadata"]["uid"], None) is not None:
                self._world.notify()

    async def _run(self, job: Object) -> None:
        uid = job["metadata"]["uid"]
        pod = self._world.target_of(uid)
        if pod is not None:
            self._holding[uid] = pod["metadata"]["labels"].get("kubevirt.io/nodeName", "")
        else:
            await self._world.set_phase(job, "Pending")
            pod = await self._make_target(job)
        if pod is None:
            return
        pod_uid = pod["metadata"]["uid"]
        outcome = await self._until_ready(job, pod_uid)
        if outcome:
            await self._fail(job, pod_uid, outcome)
            return
        await self._move(job, pod_uid)

    async def _make_target(self, job: Object) -> Object | None:
        """Creates the target pod once a slot is free and nobody denies it; None when the job is over."""
        meta, pause = job["metadata"], self._timing.first_retry
        touched = self._touched[meta["uid"]]
        while True:
            item = self._world.vmis.get(job["spec"]["vmiName"], meta["namespace"])
            current = self._world.migrations.get(meta["name"], meta["namespace"])
            if current is None or current["metadata"]["uid"] != meta["uid"]:
                return None
            if item is None or item.get("status", {}).get("phase") in FINAL:
                await self._world.set_phase(job, "Failed")
                return None
            source = self._world.active_pod(item)
            if source is None or not self._has_slot(item):
                await self._world.change()
                continue
            async with self._starting:
                if not self._has_slot(item):
                    continue
                touched.clear()
                try:
                    pod = await self._world.api.create(
                        f"/api/v1/namespaces/{meta['namespace']}/pods",
                        self._world.adapt(objects.target_pod(item, current)),
                    )
                    self._holding[meta["uid"]] = source["spec"]["nodeName"]
                    denied = ""
                except ApiError as error:
                    denied = f"Error creating pod: {error.message}"
            if denied:
                await self._world.event(item, "Warning", "FailedCreate", denied)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(touched.wait(), pause)
                pause = min(pause * 2, self._timing.longest_retry)
                continue
            await self._world.event(
                item, "Normal", "SuccessfulCreate", f"Created pod {pod['metadata']['name']}"
            )
            state = {"migrationState": {"sourcePod": source["metadata"]["name"]}}
            await self._world.set_phase(job, "Scheduling", state)
            return pod

    async def _until_ready(self, job: Object, pod_uid: str) -> str:
        """Waits for the target pod to run; otherwise says why the migration fails."""
        loop = asyncio.get_running_loop()
        begun, unschedulable_since = loop.time(), 0.0
        annotations = job["metadata"].get("annotations") or {}
        unschedulable = float(annotations.get(_UNSCHEDULABLE_ANNOTATION, self._timing.unschedulable))
        pending = float(annotations.get(_PENDING_ANNOTATION, self._timing.pending))
        await self._world.seen(pod_uid)
        while True:
            pod = self._world.pod(pod_uid)
            if pod is None or "deletionTimestamp" in pod["metadata"]:
                return "target pod was deleted"
            status = pod.get("status", {})
            if status.get("phase") in FINAL:
                return "Migration failed because target pod shutdown during migration"
            if status.get("phase") == "Running":
                return ""
            if self._world.migrations.get(job["metadata"]["name"], job["metadata"]["namespace"]) is None:
                return "migration was deleted"
            if _is_unschedulable(pod):
                unschedulable_since = unschedulable_since or loop.time()
                if loop.time() - unschedulable_since > unschedulable:
                    return "target pod is unschedulable"
            else:
                unschedulable_since = 0.0
            if loop.time() - begun > pending:
                return "target pod is pending for too long"
            await self._world.change(within=1.0)

    async def _move(self, job: Object, pod_uid: str) -> None:
        """The target runs: hand-off, memory copy, and the source pod's end."""
        meta = job["metadata"]
        pod = self._world.pod(pod_uid)
        item = self._world.vmis.get(job["spec"]["vmiName"], meta["namespace"])
        source = self._world.active_pod(item) if item else None
        if pod is None or item is None or source is None:
            await self._fail(job, pod_uid, "the VM or its target pod ended before the migration")
            return
        node = pod["spec"]["nodeName"]
        state = {
            "migrationUid": meta["uid"],
            "sourceNode": source["spec"]["nodeName"],
            "sourcePod": source["metadata"]["name"],
            "targetNode": node,
            "targetPod": pod["metadata"]["name"],
            "startTimestamp": now(),
        }
        await self._world.set_phase(job, "Scheduled")
        await self._world.patch_vmi(
            item,
            {
                "metadata": {"labels": {"kubevirt.io/migrationTargetNodeName": node}},
                "status": {"migrationState": state, "activePods": {pod_uid: node}},
            },
        )
        await self._world.set_phase(job, "Running")
        await asyncio.sleep(self._timing.copying)
        pod = self._world.pod(pod_uid)
        if pod is None or not is_alive(pod):
            await self._fail(job, pod_uid, "Migration failed because target pod shutdown during migration")
            return
        await self._world.unpause(pod)
        await self._vmis.hand_over(item, pod, started=False)
        ended = {**state, "endTimestamp": now(), "completed": True}
        await self._world.patch_vmi(item, {"status": {"migrationState": ended}})
        await self._world.set_phase(job, "Succeeded", {"migrationState": ended})
        await self._world.api.delete(path_of(source, "pods"), uid=source["metadata"]["uid"])

    async def _fail(self, job: Object, pod_uid: str, why: str) -> None:
        await self._world.event(job, "Warning", "FailedMigration", why)
        item = self._world.vmis.get(job["spec"]["vmiName"], job["metadata"]["namespace"])
        if item is not None:
            current = item.get("status", {}).get("migrationState", {})
            change: Object = {"activePods": {pod_uid: None}}
            if current.get("migrationUid") == job["metadata"]["uid"]:
                change["migrationState"] = {"failed": True, "endTimestamp": now()}
            await self._world.patch_vmi(item, {"status": change})
        await self._world.set_phase(job, "Failed")
        pod = self._world.pod(pod_uid)
        if pod is not None and pod.get("status", {}).get("phase") not in FINAL:
            await self._world.api.delete(path_of(pod, "pods"), uid=pod_uid)

    def _has_slot(self, item: Object) -> bool:
        """Whether another target pod may exist: five in the cluster, two from one node by default."""
        same = list(self._holding.values()).count(item["status"].get("nodeName"))
        return len(self._holding) < self._per_cluster and same < self._per_node


def _is_unschedulable(pod: Object) -> bool:
    return any(
        c["type"] == "PodScheduled" and c["status"] == "False" and c.get("reason") == "Unschedulable"
        for c in pod.get("status", {}).get("conditions", ())
    )
