"""L1: directories with one value per file (semantics §2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from migcompat.engine.attributes import Draft
from migcompat.engine.declaration import Acceptance, Kind, SelfSet
from migcompat.engine.layouts.raw import Flaw, Raw, RawSet, bounded, note

_IGNORED = frozenset({"uevent", "power", "subsystem"})
_SIBLING = re.compile(r"compatible_?([0-9]+)")
_REMEMBERED = 512
_NUMBER = re.compile(r"[0-9]+")


def is_attribute(name: str) -> bool:
    """Whether a file of this *name* in a set's directory is one of its attributes."""
    return name not in _IGNORED and not name.startswith(".")


def sibling_number(name: str) -> int | None:
    """The number of an entry beside ``compatible`` (``compatible1``, ``compatible_0002``), or None."""
    found = _SIBLING.fullmatch(name)
    return int(found[1]) if found else None


def entry_number(name: str) -> int | None:
    """The number of an entry inside ``compatible`` (``compatible/1``), or None."""
    return int(name) if _NUMBER.fullmatch(name) else None


def self_set(files: RawSet, kind: Kind) -> SelfSet:
    """What the files of ``migration/self`` say the device is."""
    return _draft(files, literal=True).self_set(kind)


def acceptance(sets: Sequence[RawSet]) -> Acceptance:
    """What the directories of entries, in their order, say the device accepts."""
    drafts = [_draft(files, literal=False) for files in sets]
    unreadable = next((draft.unreadable for draft in drafts if draft.unreadable), "")
    return bounded((draft.entry() for draft in drafts), unreadable)


def _draft(files: RawSet, *, literal: bool) -> Draft:
    if isinstance(files, Flaw):
        draft = Draft(literal=literal)
        note(draft, files)
        return draft
    return _drafted(tuple(sorted(files.items())), literal)


@lru_cache(maxsize=_REMEMBERED)
def _drafted(files: tuple[tuple[str, Raw], ...], literal: bool) -> Draft:
    """Devices of one type say the same: their sets are understood once, and shared (nobody changes them)."""
    draft = Draft(literal=literal)
    for name, raw in files:
        if isinstance(raw, Flaw):
            note(draft, raw)
        else:
            draft.add_raw(name.encode(errors="surrogateescape"), raw)
    return draft
