"""Which pod holds which device: asks the kubelet, because nobody tells a plugin.

How often depends on what can have changed. Devices are given only through Allocate, which this process hears,
and with each allocation, whoever's, the kubelet replaces its checkpoint (``ManagerImpl.Allocate`` calls
``writeCheckpoint`` in pkg/kubelet/cm/devicemanager/manager.go). That a pod is over nobody tells, neither a
call (there is no Deallocate) nor the checkpoint (``UpdateAllocatedDevices`` leaves it as it is, and is itself
called by List). So while a pod holds a device of ours the kubelet is asked again and again; while none does,
only now and then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from migcompat.kubelet.connection import Identity, KubeletError, KubeletTooOldError, identity
from migcompat.kubelet.podresources import Allocations

from migcompat_deviceplugin import metrics
from migcompat_deviceplugin.problems import Problem, Reason
from migcompat_deviceplugin.state import Signal, State

log = logging.getLogger(__name__)

QUICK = 0.25
"""Seconds between two calls for ``QUICK_FOR`` seconds after an allocation: PodResources names its pod about
half a second later."""
QUICK_FOR = 3.0
HELD = 2.0
"""The same while a pod holds a device of ours, or may be about to: how soon a freed device is seen."""
FAILING = 1.0
"""The same while PodResources does not answer."""
FREE = 30.0
"""The same while none does: nothing can have changed that nothing told of."""
PENDING = 60.0
"""Seconds after an allocation for which a pod that is not named yet may still be."""
SETTLING = 10.0
"""Seconds after a kubelet's restart for which what is missing in its answers proves nothing."""
SERVING = "meanwhile the guard refuses migration targets; first starts are served"
"""What comes of that for an agent that serves devices."""


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

    def __init__(
        self,
        kubelet: Asked,
        state: State,
        clock: Callable[[], float] = time.monotonic,
        *,
        checkpoint: Path | None = None,
        consequence: str = SERVING,
    ) -> None:
        self._kubelet = kubelet
        self._state = state
        self._clock = clock
        self._checkpoint = checkpoint
        self._consequence = consequence
        self._server: Identity | None = None
        self._settled_at = 0.0
        self._stirred_at = clock()
        self._signs = self._look()
        self._due = Signal()

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            try:
                await self.refresh()
            except KubeletError as error:
                problem = unanswered(error, self._consequence)
                before = self._state.allocations_problem
                if before is None or before.reason is not problem.reason:
                    log.warning("holders of devices are not known: %s", problem)
                self._state.set_allocations_problem(problem)
            await self._due.wait(self.interval())

    def stir(self) -> None:
        """Devices are being allocated, or may be: ask at once, and closely for a while."""
        self._stirred_at = self._clock()
        self._due.set()

    def look(self) -> None:
        """:meth:`stir` if the kubelet's checkpoint or socket is another file than at the last look."""
        signs = self._look()
        if signs != self._signs:
            self._signs = signs
            self.stir()

    def interval(self) -> float:
        """Seconds until the next call."""
        state, since = self._state, self._clock() - self._stirred_at
        if state.allocations_problem is not None:
            return FAILING
        if since < QUICK_FOR:
            return QUICK
        if since < PENDING or any(id_ in state.inventory for _, id_ in state.holders or {}):
            return HELD
        return FREE

    def _look(self) -> tuple[Identity | None, Identity | None]:
        return self._kubelet.server(), identity(self._checkpoint) if self._checkpoint else None

    async def refresh(self) -> Allocations:
        """What the kubelet says now, and nothing else. Raises KubeletError."""
        server = self._kubelet.server()
        if server is not None and server != self._server:
            if self._server is not None:
                self._settled_at = self._clock() + SETTLING
            self._server = server
        try:
            allocations = await self._kubelet.allocations()
        except KubeletError:
            metrics.POD_RESOURCES_FAILURES.inc()
            raise
        former = self._state.allocations if self._clock() < self._settled_at else None
        if self._state.allocations_problem is not None:
            log.info("holders of devices are known again")
        self._state.set_allocations({**(former or {}), **allocations})
        return allocations

    async def holders(self) -> Allocations:
        """Who holds what now, or did and may do so still, as published. Raises KubeletError."""
        allocations = await self.refresh()
        return {**(self._state.allocations or {}), **allocations}


def unanswered(error: KubeletError, consequence: str) -> Problem:
    """Why PodResources does not answer, and what comes of it."""
    if isinstance(error, KubeletTooOldError):
        return Problem(Reason.KUBELET_TOO_OLD, f"{error}; {consequence}")
    hint = "is the kubelet running, with PodResources, and hostPaths.kubelet its --root-dir?"
    return Problem(Reason.POD_RESOURCES_UNAVAILABLE, f"{error}: {hint} {consequence.capitalize()}")
