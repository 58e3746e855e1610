"""What cannot be understood of what devices say about themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from migcompat.engine.declaration import Declaration, Presence

from migcompat_deviceplugin.inventory import Inventory

_FLAWED = (Presence.MALFORMED, Presence.UNREADABLE)


class Flaws(msgspec.Struct, frozen=True):
    """By device id what is wrong with its declaration; ``unreadable``: some of it could not be read."""

    problems: dict[str, str]
    unreadable: bool


def find(inventory: Inventory) -> Flaws:
    """The flaws of all declarations. A device that declares nothing (semantics §3) has none."""
    problems, unreadable = {}, False
    for id_, device in sorted(inventory.items()):
        declaration = device.found.declaration
        if told := list(dict.fromkeys(_problems(declaration))):
            problems[id_] = "; ".join(told)
            unreadable |= Presence.UNREADABLE in (declaration.self.presence, declaration.accepts.presence)
    return Flaws(problems, unreadable)


def _problems(declaration: Declaration) -> Iterator[str]:
    for part in (declaration.self, declaration.accepts):
        if part.presence in _FLAWED:
            yield part.problem
    for number, entry in enumerate(declaration.accepts.entries):
        if entry.problem:
            yield f"compatible entry {number}: {entry.problem}"
