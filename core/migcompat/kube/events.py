"""Events: what ``kubectl describe`` shows a person."""

from __future__ import annotations

import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from migcompat.api.event import Event, EventSource, ObjectReference
from migcompat.api.meta import ObjectMeta
from migcompat.kube.client import Client
from migcompat.kube.errors import ApiError, NotFound
from migcompat.kube.kinds import EVENTS
from migcompat.kube.limiter import Limiter

log = logging.getLogger(__name__)

MESSAGE_LIMIT = 1024
"""Bytes of ``message`` that the API server takes (k8s.io/kubernetes pkg/apis/core/validation/events.go)."""
REMEMBERED = 4096
"""Distinct events whose count we go on with; the least recently seen is forgotten first."""
REPEAT_AFTER = 60.0
"""Seconds between two writes of the same event; what happens between them is counted."""


class _Seen(msgspec.Struct):
    name: str
    first: str
    count: int
    written: float


class EventRecorder:
    """Records events about objects, the same event (object, type, reason, message) as one with a count.

    Events are told, never relied on: failure to write one is logged, and what exceeds five a second after
    a burst of fifty is dropped with a log line.
    """

    def __init__(
        self, client: Client, component: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._component = component
        self._clock = clock
        self._limiter = Limiter(5.0, 50.0, clock=clock)
        self._seen: OrderedDict[tuple[ObjectReference, str, str, str], _Seen] = OrderedDict()

    async def record(self, involved: ObjectReference, type: str, reason: str, message: str) -> bool:
        """Say *message* about *involved*; *type* is Normal or Warning, *reason* a word in CamelCase.

        Returns whether it was said: False when it was dropped or not written, so that a caller who says
        things only once can say it again. A repetition that is only counted for now was said.
        """
        message = message.encode()[:MESSAGE_LIMIT].decode(errors="ignore")
        about = msgspec.structs.replace(involved, resource_version="")
        key = (about, type, reason, message)
        seen = self._seen.get(key)
        if seen is not None:
            seen.count += 1
            self._seen.move_to_end(key)
            if self._clock() - seen.written < REPEAT_AFTER:
                return True
        if not self._limiter.take():
            log.info(
                "event dropped, too many: %s %s/%s %s: %s",
                about.kind,
                about.namespace,
                about.name,
                reason,
                message,
            )
            return False
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        namespace = about.namespace or "default"
        try:
            if seen is None or not await self._repeat(namespace, seen, now):
                self._seen[key] = await self._create(namespace, key, now, seen)
        except ApiError as problem:
            log.warning(
                "event about %s %s/%s not written: %s", about.kind, about.namespace, about.name, problem
            )
            return False
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return True

    async def _repeat(self, namespace: str, seen: _Seen, now: str) -> bool:
        """Raise the count of an event written earlier; False when it has expired meanwhile."""
        try:
            await self._client.patch(
                EVENTS, seen.name, {"count": seen.count, "lastTimestamp": now}, namespace
            )
        except NotFound:
            return False
        seen.written = self._clock()
        return True

    async def _create(
        self, namespace: str, key: tuple[ObjectReference, str, str, str], now: str, seen: _Seen | None
    ) -> _Seen:
        about, type_, reason, message = key
        new = _Seen(
            f"{about.name[:200].rstrip('-.')}.{secrets.token_hex(8)}",
            first=seen.first if seen else now,
            count=seen.count if seen else 1,
            written=self._clock(),
        )
        event = Event(
            ObjectMeta(name=new.name, namespace=namespace),
            about,
            type=type_,
            reason=reason,
            message=message,
            count=new.count,
            first_timestamp=new.first,
            last_timestamp=now,
            source=EventSource(self._component),
            reporting_component=self._component,
        )
        await self._client.create(EVENTS, event, namespace)
        return new
