"""Stands in for what starts and ends VMIs: virt-controller's VMI part and the nodes' virt-handlers."""

from __future__ import annotations

from tests.cluster.api import Object, now, path_of
from tests.cluster.kubevirt import objects
from tests.cluster.kubevirt.world import FINAL, World, is_alive


class VMIs:
    """Gives each VMI its launcher pod, and its status what the pod does."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def run(self, item: Object) -> None:
        """Starts a VMI, and ends its pods when it is deleted."""
        uid = item["metadata"]["uid"]
        if item.get("status", {}).get("phase") not in ("Running", *FINAL):
            await self._begin(item)
        while (current := self._world.vmi(uid)) is not None:
            pods = self._world.pods_of(uid)
            if current.get("status", {}).get("phase") == "Running" and not [p for p in pods if is_alive(p)]:
                await self._world.patch_vmi(current, {"status": {"phase": "Failed"}})
                break
            await self._world.change()
        while self._world.vmi(uid) is not None:
            await self._world.change()
        for pod in self._world.pods_of(uid):
            await self._world.api.delete(path_of(pod, "pods"), uid=pod["metadata"]["uid"])

    async def _begin(self, item: Object) -> None:
        meta = item["metadata"]
        if not self._world.pods_of(meta["uid"]):
            await self._world.patch_vmi(item, {"status": {"phase": "Scheduling"}})
            path = f"/api/v1/namespaces/{meta['namespace']}/pods"
            await self._world.api.create(path, self._world.adapt(objects.source_pod(item)))
        while True:
            if self._world.vmi(meta["uid"]) is None:
                return
            for pod in self._world.pods_of(meta["uid"]):
                phase = pod.get("status", {}).get("phase")
                if phase == "Running":
                    await self._world.unpause(pod)
                    await self.hand_over(item, pod, started=True)
                    return
                if phase in FINAL:
                    await self._world.patch_vmi(item, {"status": {"phase": "Failed"}})
                    return
            await self._world.change()

    async def hand_over(self, item: Object, pod: Object, *, started: bool) -> None:
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
            current = self._world.vmi(item["metadata"]["uid"]) or item
            former = current.get("status", {}).get("activePods", {})
            status["activePods"] |= {uid: None for uid in former if uid != pod["metadata"]["uid"]}
        await self._world.patch_vmi(
            item,
            {
                "metadata": {
                    "labels": {"kubevirt.io/nodeName": node, "kubevirt.io/migrationTargetNodeName": None}
                },
                "status": status,
            },
        )
        labels = {"metadata": {"labels": {"kubevirt.io/nodeName": node}}}
        await self._world.ignoring_gone(self._world.api.patch(path_of(pod, "pods"), labels))
