"""JSON Patch operations (RFC 6902) as the API server applies them."""

from __future__ import annotations

from typing import Any

import msgspec


class Operation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One operation; ``value`` is left out for ``remove``."""

    op: str
    path: str
    value: Any = msgspec.UNSET


def pointer(*parts: str) -> str:
    """A JSON Pointer (RFC 6901: ``~`` becomes ``~0``, ``/`` becomes ``~1``)."""
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def add(value: Any, *parts: str) -> Operation:
    """Set the member at *parts*; its parent must exist, the member itself may (it is replaced then)."""
    return Operation("add", pointer(*parts), value)


def remove(*parts: str) -> Operation:
    """Remove the member at *parts*, which must exist."""
    return Operation("remove", pointer(*parts))


def write(operations: list[Operation]) -> bytes:
    """The patch document."""
    return msgspec.json.encode(operations)
