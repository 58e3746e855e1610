"""Lists of everything: once before the first answer, when kopf has listed, and from time to time.

Before the first answer, because half a cluster would give wrong ones. When kopf has listed, because after its
watch expired (410) it lists anew without saying what has gone meanwhile. From time to time, because it tells
nothing at all of a list that is empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Any

from migcompat.api.names import LAUNCHER_LABEL, LAUNCHER_VALUE
from migcompat.kube.client import Client
from migcompat.kube.errors import ApiError, NotFound
from migcompat.kube.kinds import PODS, Resource

from migcompat_operator.mirror import Mirror

log = logging.getLogger(__name__)

LAUNCHERS = f"{LAUNCHER_LABEL}={LAUNCHER_VALUE}"
FIRST = 20.0
"""Seconds until the second list: what went between ours and kopf's first."""
EVERY = 600.0
RETRY = 2.0
AGAIN = 15.0
"""Seconds until a kind that could not be listed, or whose CRD is not installed, is listed again."""
QUIET = 1.0
"""Seconds without an object from kopf's list after which it has ended."""
QUIET_LIMIT = 10.0
"""Seconds after which we list although kopf's list has not ended."""


class Resync:
    """Keeps the mirror honest.

    ``absent``: kinds whose CRD is not installed. ``synced``: everything was listed once; until then
    ``problem`` says why not.
    """

    def __init__(
        self, client: Client, mirror: Mirror, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._mirror = mirror
        self._clock = clock
        self._first = 0.0
        self._due: dict[str, float] = {}
        self._relisted: dict[str, float] = {}
        self._wake = asyncio.Event()
        self.absent: set[str] = set()
        self.synced = False
        self.problem = "nothing listed yet"

    async def prime(self) -> None:
        """List everything, as often as it takes until it succeeds."""
        self.synced = await self._all()
        while not self.synced:
            await asyncio.sleep(RETRY)
            self.synced = await self._all()
        self._first = self._clock() + FIRST
        self._due = {resource.plural: self._first for resource in self._mirror.resources}

    async def run(self) -> None:
        """List each kind again when it is due, for ever."""
        while True:
            self._wake.clear()
            await self.list_due()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(self._due.values()) - self._clock())):
                    await self._wake.wait()

    def relisted(self, resource: Resource[Any]) -> None:
        """kopf has told of an object from a list of its own: list that kind too, soon after the last one."""
        if not self.synced:
            return
        now = self._clock()
        since = self._relisted.setdefault(resource.plural, now)
        self._due[resource.plural] = min(now + QUIET, since + QUIET_LIMIT)
        self._wake.set()

    async def list_due(self) -> None:
        """List the kinds whose time has come."""
        for resource in self._mirror.resources:
            if self._due[resource.plural] > self._clock():
                continue
            self._relisted.pop(resource.plural, None)
            spread = random.uniform(0.9, 1.1)  # noqa: S311 - spreads load, no secret
            now = self._clock()
            self._due[resource.plural] = self._first if now < self._first else now + EVERY * spread
            if not await self._one(resource) or repr(resource) in self.absent:
                self._due[resource.plural] = now + AGAIN

    async def _all(self) -> bool:
        failed = [resource for resource in self._mirror.resources if not await self._one(resource)]
        self.problem = f"cannot list {', '.join(map(repr, failed))}" if failed else ""
        return not failed

    async def _one(self, resource: Resource[Any]) -> bool:
        try:
            listing = await self._client.list(resource, labels=LAUNCHERS if resource is PODS else "")
        except NotFound:
            if repr(resource) not in self.absent:
                self.absent.add(repr(resource))
                log.warning("%r: its CRD is not installed; it is watched as soon as it is", resource)
            else:
                # Said twice: kopf, which stops its watch with the CRD, may have missed that its objects went.
                self._mirror.clear(resource)
            return True
        except ApiError as problem:
            log.warning("cannot list %r, trying again: %s", resource, problem)
            return False
        if repr(resource) in self.absent:
            self.absent.discard(repr(resource))
            log.info("%r: its CRD is installed now", resource)
        self._mirror.sync(resource, listing.items, listing.resource_version)
        return True
