"""Stands in for KubeVirt's virt-controller and virt-handlers: VMIs start, migrate, and leave drained nodes.

Behaves as measured on a real virt-controller (KubeVirt 1.9): a target pod that an admission webhook denies
gives its VMI a ``FailedCreate`` warning with the whole text; the migration stays Pending and holds no slot;
it is tried again after 5 ms doubling, and at once when its object changes.
"""

from __future__ import annotations

import asyncio

from tests.cluster.api import Api, Cache, Object
from tests.cluster.kubevirt import objects
from tests.cluster.kubevirt.evacuations import Evacuations
from tests.cluster.kubevirt.migrations import Migrations
from tests.cluster.kubevirt.timing import Timing
from tests.cluster.kubevirt.vmis import VMIs
from tests.cluster.kubevirt.world import FINAL, World


class VirtController:
    """Reconciles VMIs, migrations and evacuations in one event loop."""

    def __init__(
        self,
        api: Api,
        pods: Cache,
        *,
        timing: Timing | None = None,
        adapt: objects.Adapt = objects.as_recorded,
        per_cluster: int = 5,
        per_node: int = 2,
    ) -> None:
        """`pods` is run by the caller, who passes each of its changes to `see_pod`."""
        timing = timing or Timing()
        group = "/apis/kubevirt.io/v1"
        self.vmis = Cache(api, f"{group}/virtualmachineinstances", self._see_vmi)
        self.migrations = Cache(api, f"{group}/virtualmachineinstancemigrations", self._see_migration)
        self._world = World(api, pods, self.vmis, self.migrations, adapt)
        self._vmis = VMIs(self._world)
        self._migrations = Migrations(
            self._world, self._vmis, timing, per_cluster=per_cluster, per_node=per_node
        )
        self.evacuations = Evacuations(self._world, timing)

    @property
    def problems(self) -> list[str]:
        """Errors of the stand-in itself."""
        return self._world.problems

    async def run(self) -> None:
        """Watches until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.vmis.run())
                group.create_task(self.migrations.run())
        finally:
            self._world.cancel()

    def see_pod(self, _kind: str, _pod: Object) -> None:
        """A pod has changed."""
        self._world.notify()

    def _see_vmi(self, kind: str, item: Object) -> None:
        self._world.notify()
        if kind == "ADDED":
            self._world.start(f"vmi/{item['metadata']['uid']}", self._vmis.run(item))

    def _see_migration(self, kind: str, item: Object) -> None:
        self._world.notify()
        uid = item["metadata"]["uid"]
        self._migrations.touch(uid)
        if kind == "ADDED" and item.get("status", {}).get("phase") not in FINAL:
            self._world.start(f"vmim/{uid}", self._migrations.run(item))
