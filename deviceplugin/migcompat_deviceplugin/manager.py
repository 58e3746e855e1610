"""The life of the resource servers: serve, then register; again after every restart of the kubelet.

Level-triggered: now and then, and after each sign of a change, the wanted state (published devices by
resource) is compared with what is, and what differs is put right. So it does not matter which sign of a
kubelet's restart is seen, in which order, or whether one is missed: ``kubelet.sock`` is another file, our own
socket is gone, or nobody listens.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from migcompat.kube.backoff import Backoff
from migcompat.kubelet.connection import Identity, KubeletError, KubeletTooOldError, identity
from migcompat.kubelet.registration import register

from migcompat_deviceplugin import metrics
from migcompat_deviceplugin.inventory import Device, pools
from migcompat_deviceplugin.problems import NOT_YET, Problem, Reason
from migcompat_deviceplugin.server import OPTIONS, ResourceServer
from migcompat_deviceplugin.state import State

log = logging.getLogger(__name__)

TICK = 1.0
"""Seconds between two looks while something is not as wanted, or nothing tells of the kubelet's files."""
CALM = 10.0
"""The same while all is well and ``to_serve`` tells of changes."""
UNHEARD = 5.0
"""Seconds after which a registered resource that nobody listens to is registered again."""
PREFIX = "migcompat-"
MakeServer = Callable[[str, Path], ResourceServer]


@dataclass
class _Served:
    """One resource. ``registered_with``: identity of the kubelet's socket at the last registration.

    ``heard``: since when nobody listens, if not ``listening``.
    """

    resource: str
    server: ResourceServer | None = None
    registered_with: Identity | None = None
    heard: float = 0.0
    listening: bool = False
    leaving: bool = False
    problem: Problem | None = NOT_YET
    retry_at: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(0.5, 15.0))


class Manager:
    """Keeps one ResourceServer for each resource with published devices.

    *watched* says whether each change of the kubelet's files sets ``state.to_serve``.
    """

    def __init__(
        self,
        plugin_dir: Path,
        state: State,
        make: MakeServer,
        watched: Callable[[], bool] = lambda: False,
    ) -> None:
        self._dir = plugin_dir
        self._kubelet = plugin_dir / "kubelet.sock"
        self._state = state
        self._make = make
        self._watched = watched
        self._served: dict[str, _Served] = {}
        self._numbers = itertools.count(1)
        self._leaving = False

    async def run(self) -> None:
        """Reconcile when something changes, and now and then, until cancelled."""
        self.remove_leftovers()
        while True:
            await self.reconcile()
            await self._state.to_serve.wait(CALM if self._watched() and self._is_calm() else TICK)

    def _is_calm(self) -> bool:
        return all(s.listening and s.problem is None and not s.leaving for s in self._served.values())

    def remove_leftovers(self) -> None:
        """Delete sockets of an earlier process of ours (one agent runs on a node at a time)."""
        for path in self._dir.glob(f"{PREFIX}*.sock"):
            log.info("removing %s, left by an earlier process", path)
            path.unlink(missing_ok=True)

    async def stop(self) -> None:
        """End all servers, without an empty list: an upgrade must not cost the node its capacity."""
        for served in self._served.values():
            await self._stop_server(served)
        self._served.clear()

    async def leave_for_good(self) -> None:
        """End all servers for good, each with an empty list: nobody serves their devices any more."""
        self._leaving = True
        servers = [served.server for served in self._served.values() if served.server is not None]
        await asyncio.gather(*(server.leave_for_good() for server in servers))

    async def reconcile(self) -> None:
        """Bring servers and registrations in line with what is published."""
        wanted = self._wanted()
        for resource in sorted(wanted.keys() | self._served.keys()):
            if self._leaving:
                return
            served = self._served.setdefault(resource, _Served(resource))
            await self._reconcile(served, wanted.get(resource, {}))
        self._state.set_registrations(
            {name: served.problem for name, served in self._served.items() if not served.leaving}
        )

    def _wanted(self) -> dict[str, dict[str, Device]]:
        """Devices to serve: those that VFIONode already shows (contract: published before registered)."""
        return pools(
            {
                id_: device
                for id_, device in self._state.inventory.items()
                if (device.resource, id_) in self._state.published
            }
        )

    async def _reconcile(self, served: _Served, devices: Mapping[str, Device]) -> None:
        if not devices:
            await self._leave(served)
            return
        served.leaving = False
        kubelet = identity(self._kubelet)
        if served.server is not None:
            await served.server.update(devices)
            if served.server.streams or served.listening:
                served.heard = time.monotonic()
            served.listening = served.server.streams > 0
            if not self._needs_registration(served, kubelet):
                return
        if time.monotonic() < served.retry_at:
            return
        try:
            await self._register(served, devices, kubelet)
        except (KubeletError, OSError) as error:
            metrics.REGISTRATION_FAILURES.labels(served.resource).inc()
            served.registered_with = None
            served.retry_at = time.monotonic() + served.backoff.delay()
            too_old = isinstance(error, KubeletTooOldError)
            problem = Problem(Reason.KUBELET_TOO_OLD if too_old else Reason.NOT_REGISTERED, str(error))
            if problem != served.problem:
                log.warning("%s: not registered, trying again: %s", served.resource, problem)
            served.problem = problem

    def _needs_registration(self, served: _Served, kubelet: Identity | None) -> bool:
        assert served.server is not None  # noqa: S101 - for the type checker
        if served.registered_with is None or served.registered_with != kubelet:
            return True
        if not served.server.socket.exists():
            return True
        return time.monotonic() - served.heard > UNHEARD

    async def _register(
        self, served: _Served, devices: Mapping[str, Device], kubelet: Identity | None
    ) -> None:
        """Serve on a new socket, then register it."""
        if kubelet is None:
            await self._stop_server(served)
            raise KubeletError(
                f"{self._kubelet} does not exist: is the kubelet running, and hostPaths.devicePlugins the"
                " directory where it meets device plugins?"
            )
        await self._stop_server(served)
        server = self._make(served.resource, self._dir / self._socket_name(served.resource))
        served.server = server
        await server.update(devices)
        await server.start()
        await register(self._kubelet, server.socket.name, served.resource, OPTIONS)
        served.registered_with = kubelet
        served.heard, served.listening = time.monotonic(), False
        served.problem = None
        served.backoff.reset()
        metrics.REGISTRATIONS.labels(served.resource).inc()
        log.info("%s: registered with %d device(s)", served.resource, len(devices))

    async def _leave(self, served: _Served) -> None:
        """The last device went: say so with an empty list, and stop serving a moment later."""
        if served.server is not None and not served.leaving:
            log.info("%s: no device left, leaving", served.resource)
            served.leaving = True
            await served.server.update({})
            return
        await self._stop_server(served)
        del self._served[served.resource]

    async def _stop_server(self, served: _Served) -> None:
        if served.server is not None:
            await served.server.stop()
            served.server = None

    def _socket_name(self, resource: str) -> str:
        """A new name each time: a server that ends late must not take its successor's socket with it.

        Short, because a socket's path has at most 107 bytes.
        """
        digest = hashlib.sha256(resource.encode()).hexdigest()[:10]
        return f"{PREFIX}{digest}-{next(self._numbers)}.sock"
