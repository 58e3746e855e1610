"""Which pod holds which device: asks the kubelet again and again, because nobody tells a plugin."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from migcompat.kubelet.connection import Identity, KubeletError, KubeletTooOldError
from migcompat.kubelet.podresources import Allocations

from migcompat_deviceplugin.problems import Problem, Reason
from migcompat_deviceplugin.state import State

log = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two calls. There is no Deallocate, so this is how soon a freed device is seen."""
SETTLING = 10.0
"""Seconds after a kubelet's restart for which what is missing in its answers proves nothing."""


class Asked(Protocol):
    """The kubelet that is asked."""

    def server(self) -> Identity | None:
        """Which one it is: another after a restart."""

    async def allocations(self) -> Allocations:
        """Who holds what. Raises KubeletError."""


class AllocationsPoller:
    """Keeps ``state.allocations`` current.

    A restarted kubelet answers before it has heard of its pods, for a second on an idle machine, with no
    holders at all. Devices must not be published as free meanwhile, so former holders stay until it has
    settled or names others.
    """

    def __init__(self, kubelet: Asked, state: State, clock: Callable[[], float] = time.monotonic) -> None:
        self._kubelet = kubelet
        self._state = state
        self._clock = clock
        self._server: Identity | None = None
        self._settled_at = 0.0

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            try:
                await self.refresh()
            except KubeletError as error:
                problem = _problem(error)
                before = self._state.allocations_problem
                if before is None or before.reason is not problem.reason:
                    log.warning("holders of devices are not known: %s", problem)
                self._state.set_allocations_problem(problem)
            await asyncio.sleep(INTERVAL)

    async def refresh(self) -> Allocations:
        """What the kubelet says now, and nothing else. Raises KubeletError."""
        server = self._kubelet.server()
        if server is not None and server != self._server:
            if self._server is not None:
                self._settled_at = self._clock() + SETTLING
            self._server = server
        allocations = await self._kubelet.allocations()
        former = self._state.allocations if self._clock() < self._settled_at else None
        if self._state.allocations_problem is not None:
            log.info("holders of devices are known again")
        self._state.set_allocations({**(former or {}), **allocations})
        return allocations

    async def holders(self) -> Allocations:
        """Who holds what now, or did and may do so still, as published. Raises KubeletError."""
        allocations = await self.refresh()
        return {**(self._state.allocations or {}), **allocations}


def _problem(error: KubeletError) -> Problem:
    consequence = "meanwhile the guard refuses migration targets; first starts are served"
    if isinstance(error, KubeletTooOldError):
        return Problem(Reason.KUBELET_TOO_OLD, f"{error}; {consequence}")
    hint = "is the kubelet running, with PodResources, and hostPaths.kubelet its --root-dir?"
    return Problem(Reason.POD_RESOURCES_UNAVAILABLE, f"{error}: {hint} {consequence.capitalize()}")
