"""L2: the files ``migration/self`` and ``migration/compatible`` (semantics §2)."""

from __future__ import annotations

from migcompat.engine.attributes import Draft, GarbledError
from migcompat.engine.declaration import Acceptance, Kind, Presence, SelfSet
from migcompat.engine.layouts.lines import COMPATIBLE_LINE, SELF_LINE, add_line, read_lines
from migcompat.engine.layouts.raw import Fault, Flaw, Raw, bounded, flawed


def self_set(document: Raw, kind: Kind) -> SelfSet:
    """What ``migration/self`` says the device is. Blank lines mean nothing in it."""
    draft = Draft(literal=True)
    if isinstance(document, Flaw):
        if document.fault is Fault.UNREADABLE:
            return SelfSet(Presence.UNREADABLE, problem=document.problem)
        return SelfSet(Presence.MALFORMED, problem=document.problem)
    try:
        for line in read_lines(document):
            if line not in ("", SELF_LINE):
                add_line(draft, line)
    except GarbledError as error:
        return SelfSet(Presence.MALFORMED, problem=f"migration/self {error}")
    return draft.self_set(kind)


def acceptance(document: Raw) -> Acceptance:
    """What ``migration/compatible`` says the device accepts: sets between blank or ``COMPATIBLE:`` lines."""
    if isinstance(document, Flaw):
        return flawed(document)
    drafts = [Draft(literal=False)]
    try:
        for line in read_lines(document):
            if line in ("", COMPATIBLE_LINE):
                drafts.append(Draft(literal=False))
            else:
                add_line(drafts[-1], line)
    except GarbledError as error:
        return Acceptance(Presence.MALFORMED, problem=f"migration/compatible {error}")
    return bounded(draft.entry() for draft in drafts)
