"""L3: the one file ``migration_compatible`` (semantics §2)."""

from __future__ import annotations

from migcompat.engine.attributes import Draft, GarbledError
from migcompat.engine.declaration import Acceptance, Kind, Presence, SelfSet
from migcompat.engine.layouts.lines import COMPATIBLE_LINE, SELF_LINE, add_line, read_lines
from migcompat.engine.layouts.raw import Fault, Flaw, Raw, bounded, flawed


def read(document: Raw, kind: Kind) -> tuple[SelfSet, Acceptance]:
    """What the file says the device is and accepts.

    Blank lines mean nothing; each ``COMPATIBLE:`` starts an entry; a second ``SELF:`` continues the first.
    A line before the first section line stands in no set; it makes the self malformed, since a
    reader cannot tell what the device meant to say with it.
    """
    if isinstance(document, Flaw):
        presence = Presence.UNREADABLE if document.fault is Fault.UNREADABLE else Presence.MALFORMED
        return SelfSet(presence, problem=document.problem), flawed(document)
    own = Draft(literal=True)
    entries: list[Draft] = []
    current = own
    begun = False
    try:
        for line in read_lines(document):
            if line == SELF_LINE:
                current, begun = own, True
            elif line == COMPATIBLE_LINE:
                current, begun = Draft(literal=False), True
                entries.append(current)
            elif line:
                if not begun:
                    own.spoil("a line stands before the first SELF: or COMPATIBLE:")
                add_line(current, line)
    except GarbledError as error:
        problem = f"migration_compatible {error}"
        return SelfSet(Presence.MALFORMED, problem=problem), Acceptance(Presence.MALFORMED, problem=problem)
    accepts = bounded(draft.entry() for draft in entries)
    if accepts.presence is Presence.MALFORMED:
        return SelfSet(Presence.MALFORMED, problem=accepts.problem), accepts
    return own.self_set(kind), accepts
