"""Lists of everything: once before the first answer, and from time to time.

Before the first answer, because half a cluster would give wrong ones. From time to time, because kopf, after
its watch expired (410), lists anew without saying what has gone meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import random
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


class Resync:
    """Keeps the mirror honest.

    ``absent``: kinds whose CRD is not installed. ``synced``: everything was listed once; until then
    ``problem`` says why not.
    """

    def __init__(self, client: Client, mirror: Mirror, *, every: float = EVERY, first: float = FIRST) -> None:
        self._client = client
        self._mirror = mirror
        self._every = every
        self._first = first
        self.absent: set[str] = set()
        self.synced = False
        self.problem = "nothing listed yet"

    async def prime(self) -> None:
        """List everything, as often as it takes until it succeeds."""
        self.synced = await self._all()
        while not self.synced:
            await asyncio.sleep(RETRY)
            self.synced = await self._all()

    async def run(self) -> None:
        """List everything again, for ever."""
        await asyncio.sleep(self._first)
        while True:
            await self._all()
            await asyncio.sleep(self._every * random.uniform(0.9, 1.1))  # noqa: S311 - spreads load, no secret

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
            self._mirror.sync(resource, [], "0")
            return True
        except ApiError as problem:
            log.warning("cannot list %r, trying again: %s", resource, problem)
            return False
        if repr(resource) in self.absent:
            self.absent.discard(repr(resource))
            log.info("%r: its CRD is installed now", resource)
        self._mirror.sync(resource, listing.items, listing.resource_version)
        return True
