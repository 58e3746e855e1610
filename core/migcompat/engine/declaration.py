"""What a device says about itself (semantics §1).

A :class:`Declaration` is what every layout (§2) is read into, what the matching (§3) takes, and what
travels in custom resources: the same content in any layout is the same declaration.
"""

from __future__ import annotations

import enum

import msgspec


class Kind(enum.StrEnum):
    """Whether a device is mediated or a physical (virtual or whole) function."""

    MDEV = "mdev"
    PHYSICAL = "physical"


class Presence(enum.StrEnum):
    """How well a part of a declaration could be read (§3, stage 1)."""

    PRESENT = "Present"
    ABSENT = "Absent"
    MALFORMED = "Malformed"
    UNREADABLE = "Unreadable"


class SelfSet(msgspec.Struct, frozen=True, omit_defaults=True):
    """The ``self`` set: what the device is and what its migration stream looks like.

    ``attributes`` hold canonical names and values (§2). They are empty unless ``presence`` is Present, or
    Malformed for no other cause than that a must attribute is missing, which a policy may supply (§5).
    ``problem`` says in one sentence why the set is malformed or unreadable.
    """

    presence: Presence = Presence.ABSENT
    attributes: dict[str, str] = {}
    problem: str = ""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of ``compatible``: attribute patterns, all of which must match (§3).

    A malformed entry has a ``problem`` and keeps its place, because verdicts name entries by index (§4).
    ``unknown``: attributes that an entry supplied by a policy compares with the device's own, which it does
    not show; nobody can tell whether they match.
    """

    attributes: dict[str, str] = {}
    problem: str = ""
    unknown: tuple[str, ...] = ()


class Acceptance(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a device accepts as an incoming migration.

    ``presence`` is Present when at least one entry (malformed or not) was found, Unreadable when reading
    failed, Malformed when the whole document was. ``dynamic`` are the names of L4 ``dynamic_resources``,
    ``sets`` the names that L4 declares as set-valued (``compatible_<attr>`` lists).
    """

    presence: Presence = Presence.ABSENT
    entries: tuple[Entry, ...] = ()
    dynamic: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    problem: str = ""


class Declaration(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that one device says about itself, and the layout (``L1`` … ``L4``, or empty) it was read from.

    ``shown``: attributes by canonical name that it does not declare, but that its provider found elsewhere
    (docs/reference/attributes.md). They are no part of ``self`` until a policy supplies something for the
    device (:func:`migcompat.engine.policy.supply`). From then on, ``silent``: the device itself declares
    nothing; ``compared``: by index of an entry that the policy has supplied, the attributes in it that stand
    for the device's own.
    """

    kind: Kind
    self: SelfSet = SelfSet()
    accepts: Acceptance = Acceptance()
    layout: str = ""
    shown: dict[str, str] = {}
    silent: bool = False
    compared: dict[int, tuple[str, ...]] = {}
