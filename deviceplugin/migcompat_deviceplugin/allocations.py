"""Which pod holds which device: asks the kubelet again and again, because nobody tells a plugin."""

from __future__ import annotations

import asyncio
import logging

from migcompat.api.vfionode import PodRef
from migcompat.kubelet.connection import KubeletError
from migcompat.kubelet.podresources import PodResources

from migcompat_deviceplugin.state import State

log = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two calls. There is no Deallocate, so this is how soon a freed device is seen."""


class AllocationsPoller:
    """Keeps ``state.allocations`` current."""

    def __init__(self, pod_resources: PodResources, state: State) -> None:
        self._pod_resources = pod_resources
        self._state = state

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            try:
                await self.refresh()
            except KubeletError as error:
                if not self._state.allocations_problem:
                    log.warning("holders of devices are not known: %s", error)
                self._state.set_allocations_problem(str(error))
            await asyncio.sleep(INTERVAL)

    async def refresh(self) -> dict[tuple[str, str], PodRef]:
        """Ask now. Raises KubeletError."""
        allocations = await self._pod_resources.allocations()
        self._state.set_allocations(allocations)
        return allocations
