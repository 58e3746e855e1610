"""What a reader hands to the layouts: bytes, or why there are none."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import msgspec

from migcompat.engine.attributes import MAX_ENTRIES, Draft
from migcompat.engine.declaration import Acceptance, Entry, Presence


class Fault(enum.StrEnum):
    """Why a file or directory gave no content (semantics §2 tells the two apart)."""

    MALFORMED = "Malformed"
    UNREADABLE = "Unreadable"


class Flaw(msgspec.Struct, frozen=True):
    """A file or directory without usable content; ``problem`` names it relative to the device directory."""

    fault: Fault
    problem: str


Raw = bytes | Flaw
"""The content of one file."""

RawSet = Mapping[str, Raw] | Flaw
"""The files of one L1 directory by name, or why it could not be listed."""


def bounded(entries: Iterable[Entry | None], unreadable: str = "") -> Acceptance:
    """The acceptance that holds *entries*, None being no entry (semantics §2: an empty entry is none).

    *unreadable*: what could not be read, if anything. More than 256 entries are malformed altogether.
    """
    held = tuple(entry for entry in entries if entry is not None)
    if len(held) > MAX_ENTRIES:
        return Acceptance(Presence.MALFORMED, problem=f"there are more than {MAX_ENTRIES} compatible entries")
    if unreadable:
        return Acceptance(Presence.UNREADABLE, held, problem=unreadable)
    return Acceptance(Presence.PRESENT if held else Presence.ABSENT, held)


def flawed(flaw: Flaw) -> Acceptance:
    """The acceptance of which nothing could be had."""
    presence = Presence.MALFORMED if flaw.fault is Fault.MALFORMED else Presence.UNREADABLE
    return Acceptance(presence, problem=flaw.problem)


def note(draft: Draft, flaw: Flaw) -> None:
    """Let a part of *draft*'s set be missing because of *flaw*."""
    if flaw.fault is Fault.MALFORMED:
        draft.spoil(flaw.problem)
    else:
        draft.fail(flaw.problem)
