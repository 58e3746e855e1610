"""Stands in for virt-controller's evacuation part: VMs leave a node that is drained."""

from __future__ import annotations

import asyncio

from tests.cluster.api import Object
from tests.cluster.kubevirt import objects
from tests.cluster.kubevirt.timing import Timing
from tests.cluster.kubevirt.world import FINAL, World


class Evacuations:
    """Makes ``kubevirt-evacuation-`` migrations, again and again, until a node has no migratable VMI."""

    def __init__(self, world: World, timing: Timing) -> None:
        self._world = world
        self._timing = timing
        self._draining: set[str] = set()

    def begin(self, node: str) -> None:
        """Evacuates `node` until `end`."""
        self._draining.add(node)
        self._world.start(f"drain/{node}", self._evacuate(node))

    def end(self, node: str) -> None:
        """No new migrations for VMIs of `node`."""
        self._draining.discard(node)
        self._world.notify()

    async def _evacuate(self, node: str) -> None:
        """Gives each VMI on the node a migration when it has none; pauses double after a failure."""
        failures: dict[str, int] = {}
        begun: set[str] = set()
        while node in self._draining:
            for item in self._world.vmis.all():
                status, uid = item.get("status", {}), item["metadata"]["uid"]
                if status.get("nodeName") != node or status.get("phase") != "Running":
                    continue
                if not objects.is_migratable(item) or self._world.unfinished(item) or uid in begun:
                    continue
                begun.add(uid)
                self._world.start(f"evacuation/{uid}", self._evacuate_one(item, node, failures, begun))
            await self._world.change(within=1.0)

    async def _evacuate_one(self, item: Object, node: str, failures: dict[str, int], begun: set[str]) -> None:
        """One migration of one VMI; counts the failure when it fails."""
        meta = item["metadata"]
        count = failures.get(meta["uid"], 0)
        try:
            if count:
                await asyncio.sleep(self._timing.evacuation_backoff * 2 ** (count - 1))
            if node not in self._draining or self._world.vmi(meta["uid"]) is None:
                return
            await self._world.patch_vmi(item, {"status": {"evacuationNodeName": node}})
            path = f"/apis/kubevirt.io/v1/namespaces/{meta['namespace']}/virtualmachineinstancemigrations"
            body = objects.migration(meta["name"], meta["namespace"], evacuated_node=node)
            job = await self._world.api.create(path, body)
            while True:
                current = self._world.migrations.get(job["metadata"]["name"], meta["namespace"])
                phase = (current or {}).get("status", {}).get("phase")
                if phase in FINAL:
                    failures[meta["uid"]] = count + 1 if phase == "Failed" else 0
                    return
                await self._world.change(within=5.0)
        finally:
            begun.discard(meta["uid"])
