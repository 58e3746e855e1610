"""core/v1 ``Event``, as far as we write it."""

from __future__ import annotations

import msgspec

from migcompat.api.meta import ObjectMeta


class ObjectReference(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The object an event is about. ``namespace`` is empty for cluster-scoped ones."""

    api_version: str
    kind: str
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""


class EventSource(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who says it."""

    component: str = ""


class Event(msgspec.Struct, omit_defaults=True, rename="camel"):
    """An Event; ``type`` is Normal or Warning. ``count`` says how often since ``first_timestamp``."""

    metadata: ObjectMeta
    involved_object: ObjectReference
    type: str = ""
    reason: str = ""
    message: str = ""
    count: int = 0
    first_timestamp: str | None = None
    last_timestamp: str | None = None
    source: EventSource = EventSource()
    reporting_component: str = ""
