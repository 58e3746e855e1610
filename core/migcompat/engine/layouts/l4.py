"""L4: the mdev type directory (semantics §2).

Its values are literals: what a list accepts is set-valued, and no template can stand in it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from migcompat.engine.attributes import (
    DEVICE_API,
    SOFTWARE_VERSION,
    TYPE,
    Draft,
    MalformedError,
    canonical_name,
    clean,
    unquoted,
)
from migcompat.engine.declaration import Acceptance, Kind, SelfSet
from migcompat.engine.dynamic import may_be_dynamic
from migcompat.engine.layouts.raw import Fault, Flaw, Raw, bounded, note

COMPATIBLE_TYPE = "compatible_type"
DYNAMIC_RESOURCES = "dynamic_resources"
_LIST = "compatible_"


def is_attribute(name: str) -> bool:
    """Whether a file of this *name* in a type directory is one that the layout reads."""
    return name in (SOFTWARE_VERSION, DEVICE_API, DYNAMIC_RESOURCES) or (
        name.startswith(_LIST) and name != _LIST
    )


def dynamic_names(files: Mapping[str, Raw]) -> tuple[str, ...]:
    """The instance attributes that ``dynamic_resources`` names, but for those that may never be dynamic."""
    raw = files.get(DYNAMIC_RESOURCES, b"")
    try:
        named = () if isinstance(raw, Flaw) else _items(raw)
    except MalformedError:
        named = ()
    return tuple(dict.fromkeys(filter(may_be_dynamic, named)))


def read(type_name: str, files: Mapping[str, Raw], instance: Mapping[str, Raw]) -> tuple[SelfSet, Acceptance]:
    """What a type directory called *type_name* says an mdev is and accepts.

    *files*: what of the directory :func:`is_attribute`; *instance*: the mdev's own attributes that
    :func:`dynamic_names` gives, as far as they are there. An instance's own value is what the mdev is, even
    where a list of the same name says what it accepts.
    """
    lists = {
        name.removeprefix(_LIST): raw
        for name, raw in sorted(files.items())
        if name.startswith(_LIST) and name != COMPATIBLE_TYPE
    }
    fixed = {DEVICE_API: files.get(DEVICE_API), SOFTWARE_VERSION: files.get(SOFTWARE_VERSION)}
    own = Draft(literal=True)
    _fill(own, type_name, fixed)
    known = set(map(canonical_name, instance))
    others = {name: raw for name, raw in lists.items() if canonical_name(name) not in known}
    _fill(own, None, others, listed=True)
    _fill(own, None, instance)
    accepted, unread = _accepted_types(files.get(COMPATIBLE_TYPE, b""))
    entries = []
    for name in (type_name, *accepted):
        draft = Draft(literal=True)
        if isinstance(name, Flaw):
            note(draft, name)
        else:
            _fill(draft, name, fixed)
            _fill(draft, None, lists, listed=True)
        unread = unread or draft.unreadable
        entries.append(draft.entry())
    dynamic = files.get(DYNAMIC_RESOURCES, b"")
    if isinstance(dynamic, Flaw):
        note(own, dynamic)
        unread = unread or own.unreadable
    else:
        try:
            _items(dynamic)
        except MalformedError as error:
            own.spoil(f"{DYNAMIC_RESOURCES} {error}")
    accepts = bounded(entries, unread)
    named = {"dynamic": dynamic_names(files), "sets": tuple(sorted(set(map(canonical_name, lists))))}
    return own.self_set(kind=Kind.MDEV), msgspec.structs.replace(accepts, **named)


def _fill(
    draft: Draft, type_name: str | None, values: Mapping[str, Raw | None], *, listed: bool = False
) -> None:
    if type_name is not None:
        draft.add_raw(TYPE.encode(), type_name.encode(errors="surrogateescape"))
    for name, raw in values.items():
        if isinstance(raw, Flaw):
            note(draft, raw)
        elif raw is not None:
            draft.add_raw(name.encode(), raw, listed=listed)


def _accepted_types(raw: Raw) -> tuple[list[str | Flaw], str]:
    """The types of ``compatible_type``, one malformed entry if they are, and what could not be read."""
    if isinstance(raw, Flaw):
        return ([], raw.problem) if raw.fault is Fault.UNREADABLE else ([raw], "")
    try:
        return list(_items(raw)), ""
    except MalformedError as error:
        return [Flaw(Fault.MALFORMED, f"{COMPATIBLE_TYPE} {error}")], ""


def _items(raw: bytes) -> list[str]:
    """The items of a comma list. Raises MalformedError."""
    return [item for piece in unquoted(clean(raw)).split(",") if (item := piece.strip(" "))]
