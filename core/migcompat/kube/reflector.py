"""Keeping a copy of a resource's objects current: list once, then watch for ever."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Generic, NamedTuple, TypeVar

from migcompat.api.meta import ObjectMeta
from migcompat.kube.answers import EventType, WatchEvent
from migcompat.kube.backoff import Backoff
from migcompat.kube.client import Client
from migcompat.kube.errors import ApiError, Gone, NotFound
from migcompat.kube.kinds import Resource

log = logging.getLogger(__name__)

T = TypeVar("T")

STALE_AFTER = 120.0
"""Seconds without a sign of life after which a copy must not be relied on: two watches' length."""
_STEADY = 10.0
"""A round that lasted this long (seconds) worked: the next trouble starts with a short delay again."""


class Key(NamedTuple):
    """Who an object is; ``namespace`` is empty for cluster-scoped ones."""

    namespace: str
    name: str


class Reflector(Generic[T]):
    """Calls ``on_put(object)`` for what exists or changes, ``on_drop(namespace, name)`` for what goes.

    An object that does not decode into its type is dropped: a copy that may be outdated must not look
    current. The callbacks are plain functions called in the event loop; an exception in one is logged and
    the object dropped. ``synced`` is set after the first complete list. :meth:`run` returns never; cancel it.

    *optional*: the kind may be unknown to the API server (404: its CRD is not installed, or was removed). It
    has no objects then, which is a complete answer, and is asked for again. (While the API server does not
    yet know which kinds it serves, it says 503.)
    """

    def __init__(
        self,
        client: Client,
        resource: Resource[T],
        on_put: Callable[[T], object],
        on_drop: Callable[[str, str], object],
        *,
        labels: str = "",
        fields: str = "",
        namespace: str = "",
        optional: bool = False,
        backoff: Backoff | None = None,
    ) -> None:
        self.resource = resource
        self.synced = asyncio.Event()
        self._on_put = on_put
        self._on_drop = on_drop
        self._client = client
        self._labels = labels
        self._fields = fields
        self._namespace = namespace
        self._optional = optional
        self._absent = False
        self._backoff = backoff or Backoff()
        self._known: set[Key] = set()
        self._version = ""
        self._alive = float("-inf")

    def age(self) -> float:
        """Seconds since the API server last said anything (infinite before it did).

        Quiet resources give a sign about once a minute: a bookmark or the end of a watch.
        """
        return time.monotonic() - self._alive

    def trouble(self) -> str | None:
        """Why the copy must not be relied on, or None: for readiness checks."""
        if not self.synced.is_set():
            return f"{self.resource!r}: not listed yet"
        if self.age() > STALE_AFTER:
            return f"{self.resource!r}: no sign of life from the API server for {self.age():.0f} s"
        return None

    async def run(self) -> None:
        """List and watch until cancelled, whatever goes wrong."""
        while True:
            began = time.monotonic()
            try:
                if not self._version:
                    await self._list()
                await self._follow()
            except Gone as gone:
                log.info(
                    "%r: listing again, our version %s is too old: %s", self.resource, self._version, gone
                )
                self._version = ""
            except ApiError as problem:
                if self._optional and isinstance(problem, NotFound):
                    self._nothing()
                else:
                    log.warning("%r: cannot list or watch, trying again: %s", self.resource, problem)
            if time.monotonic() - began >= _STEADY:
                self._backoff.reset()
            await asyncio.sleep(self._backoff.delay())

    async def _list(self) -> None:
        listed: set[Key] = set()
        version = ""
        source = self._client.pages(self.resource, self._namespace, self._labels, self._fields)
        async with aclosing(source) as pages:
            async for page in pages:
                self._alive = time.monotonic()
                version = page.resource_version
                for obj in page.items:
                    key = _key(obj)
                    listed.add(key)
                    self._put(key, obj)
        for key in self._known - listed:
            self._drop(key)
        self._version = version
        if self._absent or not self.synced.is_set():
            log.info("%r: %d objects listed", self.resource, len(self._known))
        self._absent = False
        self.synced.set()

    def _nothing(self) -> None:
        """The API server does not know the kind."""
        self._alive = time.monotonic()
        self._version = ""
        for key in list(self._known):
            self._drop(key)
        if not self._absent:
            log.info("%r: not installed here, looking again from time to time", self.resource)
        self._absent = True
        self.synced.set()

    async def _follow(self) -> None:
        source = self._client.watch(
            self.resource,
            self._version,
            namespace=self._namespace,
            labels=self._labels,
            fields=self._fields,
        )
        async with aclosing(source) as events:
            async for event in events:
                self._alive = time.monotonic()
                self._take(event)
                self._version = event.resource_version or self._version
        self._alive = time.monotonic()

    def _take(self, event: WatchEvent[T]) -> None:
        if event.type is EventType.BOOKMARK:
            return
        key = Key(event.namespace, event.name)
        if event.type in (EventType.ADDED, EventType.MODIFIED) and event.object is not None:
            self._put(key, event.object)
        else:
            self._drop(key)

    def _put(self, key: Key, obj: T) -> None:
        self._known.add(key)
        try:
            self._on_put(obj)
        except Exception:
            log.exception("%r %s/%s: cannot take it in, dropping it", self.resource, *key)
            self._drop(key)

    def _drop(self, key: Key) -> None:
        if key not in self._known:
            return
        self._known.discard(key)
        try:
            self._on_drop(*key)
        except Exception:
            log.exception("%r %s/%s: cannot drop it", self.resource, *key)


def _key(obj: object) -> Key:
    metadata: ObjectMeta = obj.metadata  # type: ignore[attr-defined]
    return Key(metadata.namespace, metadata.name)
