"""The watches that keep the fleet current, and whether it can be trusted."""

from __future__ import annotations

import asyncio
from typing import Any

from migcompat.api.cluster import Pod
from migcompat.api.names import LAUNCHER_LABEL, LAUNCHER_VALUE
from migcompat.fleet.fleet import Fleet
from migcompat.kube.client import Client
from migcompat.kube.kinds import NODES, PODS, POLICIES, VFIONODES, VMIS
from migcompat.kube.reflector import STALE_AFTER, Reflector

from migcompat_extender.refusals import Refusals


class Caches:
    """One watch for each kind that decides where a VM may go, feeding *fleet*; pods feed *refusals*, too.

    Without KubeVirt there are no VMs: that is an answer, and KubeVirt may be installed later.

    *stale_after*: seconds without a sign of life from the API server after which nothing is trusted.
    """

    def __init__(
        self,
        client: Client,
        fleet: Fleet,
        refusals: Refusals | None = None,
        *,
        stale_after: float = STALE_AFTER,
    ) -> None:
        def put_pod(pod: Pod) -> None:
            if refusals is not None:
                refusals.note(pod)
            fleet.put_pod(pod)

        self._stale_after = stale_after
        self._reflectors: list[Reflector[Any]] = [
            Reflector(client, NODES, fleet.put_node, lambda _, name: fleet.drop_node(name)),
            Reflector(client, VFIONODES, fleet.put_vfionode, lambda _, name: fleet.drop_vfionode(name)),
            Reflector(client, POLICIES, fleet.put_policy, lambda _, name: fleet.drop_policy(name)),
            Reflector(client, VMIS, fleet.put_vmi, fleet.drop_vmi, optional=True),
            Reflector(client, PODS, put_pod, fleet.drop_pod, labels=f"{LAUNCHER_LABEL}={LAUNCHER_VALUE}"),
        ]

    def problem(self) -> str | None:
        """Why answers cannot be given now, or None. The text does not change from second to second."""
        missing = [repr(r.resource) for r in self._reflectors if not r.synced.is_set()]
        if missing:
            return f"not listed yet: {', '.join(missing)}"
        stale = [repr(r.resource) for r in self._reflectors if r.age() > self._stale_after]
        if stale:
            return f"no news from kube-apiserver for {self._stale_after:g} s of: {', '.join(stale)}"
        return None

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for reflector in self._reflectors:
                group.create_task(reflector.run(), name=f"watch {reflector.resource!r}")
