"""Containers as host processes: started, probed, restarted with back-off, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from tests.cluster.api import Object, now
from tests.cluster.processes import Process
from tests.cluster.standin.containers import Start
from tests.cluster.standin.status import STATES

BACKOFF = 1.0
"""First pause before a restart, doubling; a kubelet begins with 10 s."""
LONGEST_BACKOFF = 30.0
_POLL = 0.1


class Container:
    """One container of one pod, with its own loop in `run`."""

    def __init__(
        self,
        spec: Object,
        start: Start,
        *,
        log: Path,
        address: str,
        restart: bool,
        on_change: Callable[[], None],
    ) -> None:
        """`restart`: whether it is started again when it ends; `on_change`: the status is another now."""
        self.spec = spec
        self.log = log
        self.ready = False
        self.restarts = 0
        self.over = False
        """It has ended and is not started again."""
        self.process: Process | None = None
        self._start = start
        self._address = address
        self._restart = restart
        self._on_change = on_change
        self._state: Object = {"waiting": {"reason": "ContainerCreating"}}
        self._last: Object = {}

    def status(self) -> Object:
        """An element of ``containerStatuses``."""
        return {
            "name": self.spec["name"],
            "image": self.spec.get("image", ""),
            "imageID": "",
            "ready": self.ready,
            "started": "running" in self._state,
            "restartCount": self.restarts,
            "state": STATES | self._state,
            "lastState": self._last,
        }

    async def run(self) -> None:
        """Starts the process, and again whenever it ends; returns only when it is over."""
        backoff = 0.0
        while True:
            code = await self._once()
            self.ready = False
            ended: Object = {
                "exitCode": code,
                "reason": "Completed" if code == 0 else "Error",
                "finishedAt": now(),
            }
            if not self._restart:
                self.over = True
                self._set({"terminated": ended})
                return
            self._last = {"terminated": ended}
            self._set({"waiting": {"reason": "CrashLoopBackOff", "message": f"it ended with {code}"}})
            await asyncio.sleep(backoff)
            backoff = min(LONGEST_BACKOFF, backoff * 2 or BACKOFF)
            self.restarts += 1

    async def stop(self, grace: float) -> None:
        """SIGTERM, SIGKILL after `grace` seconds."""
        process = self.process
        if process is None:
            return
        process.terminate()
        deadline = time.monotonic() + grace
        while process.exit_code() is None and time.monotonic() < deadline:
            await asyncio.sleep(_POLL)
        process.kill()
        while process.exit_code() is None:
            await asyncio.sleep(_POLL)

    async def _once(self) -> int:
        """One life of the process; its exit code."""
        try:
            self.process = Process(
                self.spec["name"],
                self._start.command,
                log=self.log,
                environment=self._start.environment,
            )
        except OSError as error:
            self.log.write_text(f"cannot start {self._start.command}: {error}\n")
            return 128
        self._set({"running": {"startedAt": now()}})
        async with contextlib.AsyncExitStack() as stack:
            prober = asyncio.create_task(self._probe())
            stack.callback(prober.cancel)
            code = self.process.exit_code()
            while code is None:
                await asyncio.sleep(_POLL)
                code = self.process.exit_code()
            return code

    async def _probe(self) -> None:
        """Readiness and liveness; a container without a readiness probe is ready as soon as it runs."""
        async with asyncio.TaskGroup() as group, aiohttp.ClientSession() as session:
            readiness, liveness = self.spec.get("readinessProbe"), self.spec.get("livenessProbe")
            if readiness:
                group.create_task(self._watch(session, readiness, self._set_ready))
            else:
                self._set_ready(True)
            if liveness:
                group.create_task(self._watch(session, liveness, self._set_alive))
            await asyncio.Event().wait()

    async def _watch(
        self, session: aiohttp.ClientSession, probe: Object, report: Callable[[bool], None]
    ) -> None:
        """Probes more often than asked while the answer is not yet positive: tests wait for it."""
        period = float(probe.get("periodSeconds", 10))
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        failures, good = 0, False
        while True:
            if await self._ask(session, probe):
                failures, good = 0, True
                report(True)
            else:
                failures += 1
                if good and failures >= probe.get("failureThreshold", 3):
                    report(False)
            await asyncio.sleep(period if good and not failures else min(period, 0.5))

    async def _ask(self, session: aiohttp.ClientSession, probe: Object) -> bool:
        timeout = float(probe.get("timeoutSeconds", 1))
        if "httpGet" in probe:
            get = probe["httpGet"]
            scheme = get.get("scheme", "HTTP").lower()
            url = f"{scheme}://{self._address}:{self.port(get['port'])}{get.get('path', '/')}"
            try:
                async with session.get(
                    url, timeout=aiohttp.ClientTimeout(total=timeout), ssl=False
                ) as response:
                    return response.status < 400
            except (aiohttp.ClientError, TimeoutError, OSError):
                return False
        if "tcpSocket" in probe:
            try:
                async with asyncio.timeout(timeout):
                    _, writer = await asyncio.open_connection(
                        self._address, self.port(probe["tcpSocket"]["port"])
                    )
            except (TimeoutError, OSError):
                return False
            writer.close()
            return True
        raise ValueError(f"the stand-in knows no probe like {probe}")

    def port(self, wanted: Any) -> int:
        """A port by number or by its name in the container's ``ports``."""
        if isinstance(wanted, int):
            return wanted
        ports: list[int] = [p["containerPort"] for p in self.spec.get("ports", ()) if p.get("name") == wanted]
        return ports[0]

    def _set(self, state: Object) -> None:
        self._state = state
        self._on_change()

    def _set_ready(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            self._on_change()

    def _set_alive(self, alive: bool) -> None:
        if not alive and self.process is not None:
            self.process.kill()
