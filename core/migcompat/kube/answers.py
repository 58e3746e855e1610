"""What the API server answers, taken apart: pages of lists, lines of watches, errors.

Items are cut out raw first and decoded one by one, so that one that does not fit its type costs only itself.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import AsyncGenerator
from typing import Generic, NamedTuple, TypeVar

import aiohttp
import msgspec

from migcompat.kube.errors import ApiError, Unreachable, api_error
from migcompat.kube.kinds import Resource

log = logging.getLogger(__name__)

T = TypeVar("T")

LINE_LIMIT = 16 * 1024 * 1024
"""No object is larger (etcd refuses more than 1.5 MiB); a longer line of a watch is not one of ours."""


class Listing(NamedTuple, Generic[T]):
    """All objects, or one page of them; ``resource_version`` is where a watch continues."""

    items: list[T]
    resource_version: str


class EventType(enum.Enum):
    """What a watch says. UNDECODABLE is ours: the object exists but does not fit its type."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    UNDECODABLE = "UNDECODABLE"


class WatchEvent(msgspec.Struct, Generic[T], frozen=True):
    """One change. ``object`` is None for BOOKMARK and UNDECODABLE; the name of a BOOKMARK is empty."""

    type: EventType
    namespace: str
    name: str
    resource_version: str
    object: T | None


class _Identity(msgspec.Struct, rename="camel"):
    namespace: str = ""
    name: str = ""
    resource_version: str = ""


class _Identified(msgspec.Struct):
    metadata: _Identity


class _PageMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class Page(msgspec.Struct):
    """One page of a list, its items not decoded yet."""

    metadata: _PageMeta
    items: list[msgspec.Raw] | None = None


class _Line(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    reason: str = ""
    message: str = ""
    code: int = 0


def error_of(status: int, raw: bytes, method: str, path: str) -> ApiError:
    """What a Status body says; in a watch the HTTP *status* is not known (0) and the body's code counts."""
    try:
        told = msgspec.json.decode(raw, type=_Status)
    except (msgspec.DecodeError, RecursionError):
        told = _Status(message=raw[:200].decode(errors="replace"))
    return api_error(
        status or told.code, told.reason or "Unknown", told.message or "no message", method, path
    )


def _identity(raw: msgspec.Raw) -> _Identity:
    try:
        return msgspec.json.decode(raw, type=_Identified).metadata
    except (msgspec.DecodeError, RecursionError):
        return _Identity()


def decode_item(res: Resource[T], raw: msgspec.Raw) -> T | None:
    """The object, or None and a log entry (its name, the path of the misfit) if it does not decode."""
    try:
        return res.decode(raw)
    except (msgspec.DecodeError, RecursionError) as problem:
        who = _identity(raw)
        log.warning(
            "%r %s/%s does not fit its type and counts as absent: %s", res, who.namespace, who.name, problem
        )
        return None


async def lines_of(content: aiohttp.StreamReader, path: str) -> AsyncGenerator[bytes]:
    """Lines of a stream; raises Unreachable when it ends inside one."""
    rest = bytearray()
    async for chunk in content.iter_any():
        rest += chunk
        if b"\n" not in chunk:
            if len(rest) > LINE_LIMIT:
                raise Unreachable(f"a line of the watch is longer than {LINE_LIMIT} bytes", "GET", path)
            continue
        *lines, last = bytes(rest).split(b"\n")
        rest = bytearray(last)
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        raise Unreachable("the watch ended in the middle of a line", "GET", path)


def event_of(res: Resource[T], line: bytes, path: str) -> WatchEvent[T] | None:
    """The event of one line; None for one we can do nothing with. Raises what an ERROR event says."""
    try:
        told = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, RecursionError) as problem:
        raise Unreachable(f"a line of the watch is not an event: {problem}", "GET", path) from problem
    if told.type == "ERROR":
        raise error_of(0, bytes(told.object), "GET", path)
    who = _identity(told.object)
    if told.type == "BOOKMARK":
        return WatchEvent(EventType.BOOKMARK, "", "", who.resource_version, None)
    if told.type not in ("ADDED", "MODIFIED", "DELETED") or not who.name:
        log.warning("GET %s: ignoring a watch event of type %r without a usable name", path, told.type)
        return None
    obj = decode_item(res, told.object)
    kind = EventType(told.type) if obj is not None or told.type == "DELETED" else EventType.UNDECODABLE
    return WatchEvent(kind, who.namespace, who.name, who.resource_version, obj)
