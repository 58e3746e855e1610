"""Stands in for KubeVirt's virt-controller and virt-handlers: VMIs start, migrate, and leave drained nodes.

Behaves as measured on a real virt-controller (KubeVirt 1.9): a target pod that an admission webhook denies
gives its VMI a ``FailedCreate`` warning with the whole text; the migration stays Pending and holds no slot;
it is tried again after 5 ms doubling, and at once when its object changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from tests.cluster.api import MERGE, STRATEGIC, Api, ApiError, Cache, Object, now, path_of
from tests.cluster.kubevirt import objects

log = logging.getLogger(__name__)

FINAL = ("Succeeded", "Failed")
_UNPAUSED = "kubevirt.io/virtual-machine-unpaused"
_UNSCHEDULABLE_ANNOTATION = "kubevirt.io/migrationUnschedulablePodTimeoutSeconds"
_PENDING_ANNOTATION = "kubevirt.io/migrationPendingPodTimeoutSeconds"


@dataclass
class Timing:
    """Seconds, as KubeVirt 1.9 has them; tests may shorten them."""

    first_retry: float = 0.005
    longest_retry: float = 1000.0
    unschedulable: float = 300.0
    pending: float = 900.0
    evacuation_backoff: float = 20.0
    copying: float = 0.3
    """How long a migration runs once its target pod is ready."""


class VirtController:
    """Reconciles VMIs, migrations and evacuations in one event loop."""

    def __init__(
        self, api: Api, pods: Cache, *, timing: Timing | None = None, per_cluster: int = 5, per_node: int = 2
    ) -> None:
        """`pods` is run by the caller, who passes each of its changes to `see_pod`."""
        self.timing = timing or Timing()
        self.vmis = Cache(api, "/apis/kubevirt.io/v1/virtualmachineinstances", self._see_vmi)
        self.migrations = Cache(
            api, "/apis/kubevirt.io/v1/virtualmachineinstancemigrations", self._see_migration
        )
        self.problems: list[str] = []
        """Errors of the stand-in itself."""
        self._api = api
        self._pods = pods
        self._per_cluster = per_cluster
        self._per_node = per_node
        self._pulse = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._touched: dict[str, asyncio.Event] = {}
        self._draining: set[str] = set()

    async def run(self) -> None:
        """Watches until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.vmis.run())
                group.create_task(self.migrations.run())
        finally:
            for task in self._tasks.values():
                task.cancel()

    def see_pod(self, _kind: str, _pod: Object) -> None:
        """A pod has changed."""
        self._notify()

    def drain(self, node: str) -> None:
        """Evacuates `node`: its migratable VMIs get migrations, again and again, until they are gone."""
        self._draining.add(node)
        self._start(f"drain/{node}", self._evacuate(node))

    def end_drain(self, node: str) -> None:
        """No new migrations for VMIs of `node`."""
        self._draining.discard(node)
        self._notify()

    # VMIs

    def _see_vmi(self, kind: str, item: Object) -> None:
        self._notify()
        if kind == "ADDED":
            self._start(f"vmi/{item['metadata']['uid']}", self._run_vmi(item))

    async def _run_vmi(self, item: Object) -> None:
        """Starts a VMI, and ends its pods when it is deleted."""
        uid = item["metadata"]["uid"]
        if item.get("status", {}).get("phase") not in ("Running", *FINAL):
            await self._begin(item)
        while (current := self._vmi(uid)) is not None:
            pods = self._pods_of(uid)
            if current.get("status", {}).get("phase") == "Running" and not [p for p in pods if _alive(p)]:
                await self._patch_vmi(current, {"status": {"phase": "Failed"}})
                break
            await self._change()
        while self._vmi(uid) is not None:
            await self._change()
        for pod in self._pods_of(uid):
            await self._api.delete(path_of(pod, "pods"), uid=pod["metadata"]["uid"])

    async def _begin(self, item: Object) -> None:
        meta = item["metadata"]
        if not self._pods_of(meta["uid"]):
            await self._patch_vmi(item, {"status": {"phase": "Scheduling"}})
            path = f"/api/v1/namespaces/{meta['namespace']}/pods"
            await self._api.create(path, objects.source_pod(item))
        while True:
            if self._vmi(meta["uid"]) is None:
                return
            for pod in self._pods_of(meta["uid"]):
                phase = pod.get("status", {}).get("phase")
                if phase == "Running":
                    await self._unpause(pod)
                    await self._hand_over(item, pod, started=True)
                    return
                if phase in FINAL:
                    await self._patch_vmi(item, {"status": {"phase": "Failed"}})
                    return
            await self._change()

    async def _hand_over(self, item: Object, pod: Object, *, started: bool) -> None:
        """The VMI runs in `pod`."""
        node, migratable = pod["spec"]["nodeName"], objects.is_migratable(item)
        live: Object = {"type": "LiveMigratable", "status": str(migratable)}
        if not migratable:
            live["reason"] = "HostDeviceNotLiveMigratable"
            live["message"] = "VMI specifies non-migratable generic PCI host device"
        status: Object = {
            "nodeName": node,
            "activePods": {pod["metadata"]["uid"]: node},
            "evacuationNodeName": None,
        }
        if started:
            status |= {
                "phase": "Running",
                "qosClass": "Burstable",
                "runtimeUser": 107,
                "machine": {"type": "q35"},
                "migrationTransport": "Unix",
                "launcherContainerImageVersion": "localhost/virt-launcher:x",
                "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": now()},
                    live,
                    {"type": "StorageLiveMigratable", "status": str(migratable)},
                ],
            }
        else:
            current = self._vmi(item["metadata"]["uid"]) or item
            former = current.get("status", {}).get("activePods", {})
            status["activePods"] |= {uid: None for uid in former if uid != pod["metadata"]["uid"]}
        await self._patch_vmi(
            item,
            {
                "metadata": {
                    "labels": {"kubevirt.io/nodeName": node, "kubevirt.io/migrationTargetNodeName": None}
                },
                "status": status,
            },
        )
        labels = {"metadata": {"labels": {"kubevirt.io/nodeName": node}}}
        await self._ignoring_gone(self._api.patch(path_of(pod, "pods"), labels))

    # migrations

    def _see_migration(self, kind: str, item: Object) -> None:
        self._notify()
        uid = item["metadata"]["uid"]
        self._touched.setdefault(uid, asyncio.Event()).set()
        if kind == "ADDED" and item.get("status", {}).get("phase") not in FINAL:
            self._start(f"vmim/{uid}", self._run_migration(item))

    async def _run_migration(self, job: Object) -> None:
        """One migration from Pending to its end."""
        uid = job["metadata"]["uid"]
        pod = self._target_of(uid)
        if pod is None:
            await self._set_phase(job, "Pending")
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
        meta, pause = job["metadata"], self.timing.first_retry
        touched = self._touched[meta["uid"]]
        while True:
            item = self.vmis.get(job["spec"]["vmiName"], meta["namespace"])
            current = self.migrations.get(meta["name"], meta["namespace"])
            if current is None or current["metadata"]["uid"] != meta["uid"]:
                return None
            if item is None or item.get("status", {}).get("phase") in FINAL:
                await self._set_phase(job, "Failed")
                return None
            source = self._active_pod(item)
            if source is None or not self._has_slot(item, meta["uid"]):
                await self._change()
                continue
            touched.clear()
            try:
                pod = await self._api.create(
                    f"/api/v1/namespaces/{meta['namespace']}/pods", objects.target_pod(item, current)
                )
            except ApiError as error:
                text = f"Error creating pod: {error.message}"
                await self._event(item, "Warning", "FailedCreate", text)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(touched.wait(), pause)
                pause = min(pause * 2, self.timing.longest_retry)
                continue
            await self._event(item, "Normal", "SuccessfulCreate", f"Created pod {pod['metadata']['name']}")
            state = {"migrationState": {"sourcePod": source["metadata"]["name"]}}
            await self._set_phase(job, "Scheduling", state)
            return pod

    async def _until_ready(self, job: Object, pod_uid: str) -> str:
        """Waits for the target pod to run; otherwise says why the migration fails."""
        loop = asyncio.get_running_loop()
        begun, unschedulable_since = loop.time(), 0.0
        annotations = job["metadata"].get("annotations") or {}
        unschedulable = float(annotations.get(_UNSCHEDULABLE_ANNOTATION, self.timing.unschedulable))
        pending = float(annotations.get(_PENDING_ANNOTATION, self.timing.pending))
        await self._seen(pod_uid)
        while True:
            pod = self._pod(pod_uid)
            if pod is None or "deletionTimestamp" in pod["metadata"]:
                return "target pod was deleted"
            status = pod.get("status", {})
            if status.get("phase") in FINAL:
                return "Migration failed because target pod shutdown during migration"
            if status.get("phase") == "Running":
                return ""
            if self.migrations.get(job["metadata"]["name"], job["metadata"]["namespace"]) is None:
                return "migration was deleted"
            if _is_unschedulable(pod):
                unschedulable_since = unschedulable_since or loop.time()
                if loop.time() - unschedulable_since > unschedulable:
                    return "target pod is unschedulable"
            else:
                unschedulable_since = 0.0
            if loop.time() - begun > pending:
                return "target pod is pending for too long"
            await self._change(within=1.0)

    async def _move(self, job: Object, pod_uid: str) -> None:
        """The target runs: hand-off, memory copy, and the source pod's end."""
        meta = job["metadata"]
        pod = self._pod(pod_uid)
        item = self.vmis.get(job["spec"]["vmiName"], meta["namespace"])
        source = self._active_pod(item) if item else None
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
        await self._set_phase(job, "Scheduled")
        await self._patch_vmi(
            item,
            {
                "metadata": {"labels": {"kubevirt.io/migrationTargetNodeName": node}},
                "status": {"migrationState": state, "activePods": {pod_uid: node}},
            },
        )
        await self._set_phase(job, "Running")
        await asyncio.sleep(self.timing.copying)
        pod = self._pod(pod_uid)
        if pod is None or not _alive(pod):
            await self._fail(job, pod_uid, "Migration failed because target pod shutdown during migration")
            return
        await self._unpause(pod)
        await self._hand_over(item, pod, started=False)
        ended = {**state, "endTimestamp": now(), "completed": True}
        await self._patch_vmi(item, {"status": {"migrationState": ended}})
        await self._set_phase(job, "Succeeded", {"migrationState": ended})
        await self._api.delete(path_of(source, "pods"), uid=source["metadata"]["uid"])

    async def _fail(self, job: Object, pod_uid: str, why: str) -> None:
        await self._event(job, "Warning", "FailedMigration", why)
        item = self.vmis.get(job["spec"]["vmiName"], job["metadata"]["namespace"])
        if item is not None:
            current = item.get("status", {}).get("migrationState", {})
            change: Object = {"activePods": {pod_uid: None}}
            if current.get("migrationUid") == job["metadata"]["uid"]:
                change["migrationState"] = {"failed": True, "endTimestamp": now()}
            await self._patch_vmi(item, {"status": change})
        await self._set_phase(job, "Failed")
        pod = self._pod(pod_uid)
        if pod is not None and pod.get("status", {}).get("phase") not in FINAL:
            await self._api.delete(path_of(pod, "pods"), uid=pod_uid)

    def _has_slot(self, item: Object, uid: str) -> bool:
        """Whether another target pod may exist: five in the cluster, two from one node by default."""
        running = [
            m
            for m in self.migrations.all()
            if m["metadata"]["uid"] != uid
            and m.get("status", {}).get("phase") not in (None, "Pending", *FINAL)
        ]
        node = item["status"].get("nodeName")
        sources = [self.vmis.get(m["spec"]["vmiName"], m["metadata"]["namespace"]) for m in running]
        same = [s for s in sources if s and s.get("status", {}).get("nodeName") == node]
        return len(running) < self._per_cluster and len(same) < self._per_node

    # evacuation

    async def _evacuate(self, node: str) -> None:
        """Gives each VMI on the node a migration when it has none; pauses double after a failure."""
        failures: dict[str, int] = {}
        begun: set[str] = set()
        while node in self._draining:
            for item in self.vmis.all():
                status, uid = item.get("status", {}), item["metadata"]["uid"]
                if status.get("nodeName") != node or status.get("phase") != "Running":
                    continue
                if not objects.is_migratable(item) or self._unfinished(item) or uid in begun:
                    continue
                begun.add(uid)
                self._start(f"evacuation/{uid}", self._evacuate_one(item, node, failures, begun))
            await self._change(within=1.0)

    async def _evacuate_one(self, item: Object, node: str, failures: dict[str, int], begun: set[str]) -> None:
        """One migration of one VMI; counts the failure when it fails."""
        meta = item["metadata"]
        count = failures.get(meta["uid"], 0)
        try:
            if count:
                await asyncio.sleep(self.timing.evacuation_backoff * 2 ** (count - 1))
            if node not in self._draining or self._vmi(meta["uid"]) is None:
                return
            await self._patch_vmi(item, {"status": {"evacuationNodeName": node}})
            path = f"/apis/kubevirt.io/v1/namespaces/{meta['namespace']}/virtualmachineinstancemigrations"
            body = objects.migration(meta["name"], meta["namespace"], evacuated_node=node)
            job = await self._api.create(path, body)
            while True:
                current = self.migrations.get(job["metadata"]["name"], meta["namespace"])
                phase = (current or {}).get("status", {}).get("phase")
                if phase in FINAL:
                    failures[meta["uid"]] = count + 1 if phase == "Failed" else 0
                    return
                await self._change(within=5.0)
        finally:
            begun.discard(meta["uid"])

    def _unfinished(self, item: Object) -> bool:
        return any(
            m["spec"]["vmiName"] == item["metadata"]["name"]
            and m["metadata"]["namespace"] == item["metadata"]["namespace"]
            and m.get("status", {}).get("phase") not in FINAL
            for m in self.migrations.all()
        )

    # lookups and writes

    def _vmi(self, uid: str) -> Object | None:
        return next((i for i in self.vmis.all() if i["metadata"]["uid"] == uid), None)

    def _pod(self, uid: str) -> Object | None:
        return next((p for p in self._pods.all() if p["metadata"]["uid"] == uid), None)

    def _pods_of(self, vmi_uid: str) -> list[Object]:
        return [
            p
            for p in self._pods.all()
            if (p["metadata"].get("labels") or {}).get("kubevirt.io/created-by") == vmi_uid
        ]

    def _target_of(self, job_uid: str) -> Object | None:
        label = "kubevirt.io/migrationJobUID"
        return next(
            (p for p in self._pods.all() if (p["metadata"].get("labels") or {}).get(label) == job_uid), None
        )

    def _active_pod(self, item: Object) -> Object | None:
        """The running pod that the VM is in."""
        node = item.get("status", {}).get("nodeName")
        for pod in self._pods_of(item["metadata"]["uid"]):
            active = pod["metadata"]["uid"] in item["status"].get("activePods", {})
            if active and pod["spec"].get("nodeName") == node and _alive(pod):
                return pod
        return None

    async def _unpause(self, pod: Object) -> None:
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
        await self._ignoring_gone(self._api.patch(path, {"status": {"conditions": [condition]}}, STRATEGIC))

    async def _patch_vmi(self, item: Object, change: Object) -> None:
        await self._ignoring_gone(self._api.patch(path_of(item, "virtualmachineinstances"), change, MERGE))

    async def _set_phase(self, job: Object, phase: str, more: Object | None = None) -> None:
        meta = job["metadata"]
        current = self.migrations.get(meta["name"], meta["namespace"]) or job
        times = list(current.get("status", {}).get("phaseTransitionTimestamps", ()))
        times.append({"phase": phase, "phaseTransitionTimestamp": now()})
        status = {"phase": phase, "phaseTransitionTimestamps": times, **(more or {})}
        path = path_of(job, "virtualmachineinstancemigrations") + "/status"
        await self._ignoring_gone(self._api.patch(path, {"status": status}))

    async def _event(self, about: Object, kind: str, reason: str, message: str) -> None:
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
        await self._api.create(f"/api/v1/namespaces/{meta['namespace']}/events", event)

    async def _ignoring_gone(self, call: Coroutine[Any, Any, Any]) -> None:
        try:
            await call
        except ApiError as error:
            if error.status != 404:
                raise

    # waiting

    def _notify(self) -> None:
        self._pulse.set()
        self._pulse = asyncio.Event()

    async def _change(self, within: float | None = None) -> None:
        """Until something has changed, or `within` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._pulse.wait(), within)

    async def _seen(self, pod_uid: str) -> None:
        """Until the cache has a pod that was just made (or it is gone again, after a second)."""
        deadline = asyncio.get_running_loop().time() + 5
        while self._pod(pod_uid) is None and asyncio.get_running_loop().time() < deadline:
            await self._change(within=1.0)

    def _start(self, key: str, work: Coroutine[Any, Any, None]) -> None:
        """Runs one reconciliation to its end; an error of it is a problem of the stand-in."""

        async def guarded() -> None:
            try:
                await work
            except (ApiError, OSError, KeyError, TimeoutError) as error:
                log.exception("virt-controller stand-in: %s", key)
                self.problems.append(f"{key}: {error!r}")
            finally:
                self._tasks.pop(key, None)

        if key in self._tasks:
            work.close()
            return
        self._tasks[key] = asyncio.create_task(guarded())


def _alive(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") not in FINAL and "deletionTimestamp" not in pod["metadata"]


def _is_unschedulable(pod: Object) -> bool:
    return any(
        c["type"] == "PodScheduled" and c["status"] == "False" and c.get("reason") == "Unschedulable"
        for c in pod.get("status", {}).get("conditions", ())
    )
