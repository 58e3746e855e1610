"""Every version of some objects, as a watch shows them: what is true for a moment only is in there, too."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.cluster.api import Cache, Object
from tests.cluster.base import BaseCluster

PODS = "/api/v1/pods"
NODES = "/api/v1/nodes"
VFIONODES = "/apis/migcompat.io/v1alpha1/vfionodes"
MIGRATION_COMPATIBILITIES = "/apis/migcompat.io/v1alpha1/migrationcompatibilities"


@dataclass(frozen=True)
class Version:
    """An object as it became at `at` (monotonic seconds); `kind`: ADDED, MODIFIED or DELETED."""

    at: float
    kind: str
    item: Object

    @property
    def name(self) -> str:
        """The object's."""
        return str(self.item["metadata"]["name"])


@contextlib.contextmanager
def recording(cluster: BaseCluster, path: str) -> Iterator[list[Version]]:
    """The objects at `path` as they are now, and each change until the end of the block, in order."""
    versions: list[Version] = []

    def take(kind: str, item: Object) -> None:
        versions.append(Version(time.monotonic(), kind, item))

    async def begin() -> asyncio.Task[None]:
        cache = Cache(cluster.api, path, take)
        task = asyncio.create_task(cache.run())
        async with asyncio.timeout(30):
            await cache.synced.wait()
        return task

    async def end(task: asyncio.Task[None]) -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    task = cluster.run(begin())
    try:
        yield versions
    finally:
        cluster.run(end(task))
