"""Reading rules: keys, values, aliases and canonical forms (semantics §2).

Everything that enters a declaration, from a layout or from a policy, goes through a :class:`Draft`, so that
the same content is the same set whatever it was written in.
"""

from __future__ import annotations

import re

from migcompat.engine.declaration import Entry, Kind, Presence, SelfSet

MAX_VALUE = 4096
"""One value, in bytes, without the blanks around it (semantics §2)."""

MAX_DOCUMENT = 64 * 1024
"""One L2/L3 document, in bytes (semantics §2)."""

MAX_ENTRIES = 256
"""Entries of one device, in any layout (semantics §2)."""

DEVICE_API = "device_api"
TYPE = "type"
SOFTWARE_VERSION = "software_version"
PCI_ID = "pci_id"
SUBCHANNEL_TYPE = "subchannel_type"
CHPID_TYPE = "chpid_type"

MUST = frozenset((DEVICE_API, TYPE, SOFTWARE_VERSION, PCI_ID, SUBCHANNEL_TYPE))
"""What a self must have, some of it depending on ``device_api`` (semantics §1)."""
API_SPECIFIC = {"vfio-pci": PCI_ID, "vfio-ccw": SUBCHANNEL_TYPE}
"""The attribute of a ``device_api`` that stage 3 compares (semantics §3); other APIs have none."""

ALIASES = {
    "mdev_type": TYPE,
    "device_type": DEVICE_API,
    "device_id": PCI_ID,
    "pciid": PCI_ID,
    "interface_version": SOFTWARE_VERSION,
}
"""Other spellings of names (semantics §2, canonical forms)."""

BLANKS = " \t\r\n"
_PCI_ID = re.compile(r"[0-9a-f]{8}")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_INTEGERS = frozenset((CHPID_TYPE, SUBCHANNEL_TYPE))
CANONICALISED = _INTEGERS | {DEVICE_API, PCI_ID}
"""The attributes that have another canonical form than their plain text."""


class MalformedError(ValueError):
    """A value that the reading rules of semantics §2 refuse; says why, never where on which device."""


class GarbledError(MalformedError):
    """Bytes that make a whole document malformed: NUL, control characters, BOM, non-ASCII."""


def shown(text: str) -> str:
    """*text* in double quotes, short enough for a message of one sentence (semantics §4)."""
    return f'"{text if len(text) <= 96 else text[:93] + "..."}"'


def clean(raw: bytes) -> str:
    """*raw* without the ASCII blanks around it. Raises GarbledError unless the rest is printable ASCII."""
    text = raw.decode("latin-1").strip(BLANKS)
    if not _PRINTABLE.fullmatch(text):
        raise GarbledError("holds bytes that are not printable ASCII")
    return text


def readable(name: bytes) -> str:
    """A name of any bytes for a message; the bytes that are not printable ASCII as escapes."""
    text = name if len(name) <= 64 else name[:61] + b"..."
    return text.decode("ascii", "backslashreplace").encode("unicode_escape").decode("ascii")


def unquoted(text: str) -> str:
    """*text* without one pair of double quotes around it. Raises MalformedError when that is too long."""
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if len(text) > MAX_VALUE:
        raise MalformedError(f"is longer than {MAX_VALUE} bytes")
    return text


def canonical_name(name: str) -> str:
    """The one name of an attribute that has several."""
    return ALIASES.get(name, name)


def canonical_value(name: str, value: str) -> str:
    """The canonical form of *value* for the attribute with the canonical *name*.

    Raises MalformedError when the value has none (semantics §2, canonical forms).
    """
    if name not in CANONICALISED:
        return value
    if name == DEVICE_API:
        return value.replace("_", "-")
    if name == PCI_ID:
        digits = "".join(part.removeprefix("0x") for part in value.lower().split(":"))
        if not _PCI_ID.fullmatch(digits):
            raise MalformedError(f"pci_id {shown(value)} is not 8 hexadecimal digits")
        return digits
    try:
        number = int(value, 0)
    except ValueError:
        raise MalformedError(f"{name} {shown(value)} is not an integer") from None
    try:
        return str(number)
    except ValueError:  # beyond Python's limit for decimal text: such a number has one hexadecimal form
        return f"{number:#x}"


def missing_must(kind: Kind, attributes: dict[str, str]) -> str:
    """The first must attribute of semantics §1 that a self with these *attributes* lacks, or empty."""
    for name in (SOFTWARE_VERSION, DEVICE_API, TYPE):
        if name not in attributes:
            return name
    specific = API_SPECIFIC.get(attributes[DEVICE_API], "")
    if specific == PCI_ID and kind is not Kind.PHYSICAL:
        return ""
    return specific if specific not in attributes else ""


def checked_self(kind: Kind, attributes: dict[str, str]) -> SelfSet:
    """The self set of well-formed *attributes*: absent when empty, malformed when a must is missing.

    In the latter case the attributes are kept, because a policy may supply what is missing (semantics §5).
    """
    if not attributes:
        return SelfSet()
    lacking = missing_must(kind, attributes)
    if lacking:
        return SelfSet(Presence.MALFORMED, attributes, f"self lacks {lacking}")
    return SelfSet(Presence.PRESENT, attributes)


class Draft:
    """One set of attributes while it is being read.

    *literal*: values are literals, so ``{`` makes the set malformed; else they are patterns (rule T).
    """

    def __init__(self, *, literal: bool) -> None:
        self.attributes: dict[str, str] = {}
        self.problem = ""
        self.unreadable = ""
        self._literal = literal

    def add(self, key: str, value: str, *, listed: bool = False) -> None:
        """Take one attribute, *key* and *value* stripped and *value* unquoted; flaws spoil the set.

        *listed*: the value is a comma list, each item of which has a canonical form of its own (L4).
        """
        if not key:
            self.spoil("a line has an empty key")
            return
        name = canonical_name(key)
        if "{" in value and self._literal:
            self.spoil(f"{name} holds a brace")
            return
        if self._literal or ("{" not in value and "}" not in value):
            items = [item.strip(" ") for item in value.split(",")] if listed else [value]
            try:
                if not listed or name in CANONICALISED:
                    value = ",".join(canonical_value(name, item) for item in items)
            except MalformedError as error:
                self.spoil(str(error))
                return
        known = self.attributes.setdefault(name, value)
        if known != value:
            self.spoil(f"{name} is given twice, as {shown(known)} and {shown(value)}")

    def add_text(self, key: str, text: str, *, listed: bool = False) -> None:
        """Take one attribute, *key* and *text* stripped; *text* may still be quoted, or too long."""
        try:
            value = unquoted(text)
        except MalformedError as error:
            self.spoil(f"{key} {error}")
        else:
            self.add(key, value, listed=listed)

    def add_raw(self, key: bytes, value: bytes, *, listed: bool = False) -> None:
        """Take one attribute as it came, where bytes that are not printable spoil this set alone."""
        try:
            self.add_text(clean(key), clean(value), listed=listed)
        except GarbledError as error:
            self.spoil(f"{readable(key)} {error}")

    def spoil(self, problem: str) -> None:
        """Remember that the set is malformed; the first problem is the one told."""
        self.problem = self.problem or problem

    def fail(self, problem: str) -> None:
        """Remember that a part of the set could not be read."""
        self.unreadable = self.unreadable or problem

    def self_set(self, kind: Kind) -> SelfSet:
        """The set as what a device is. What is known to be malformed is so whatever could not be read."""
        if self.problem:
            return SelfSet(Presence.MALFORMED, {}, self.problem)
        if self.unreadable:
            return SelfSet(Presence.UNREADABLE, {}, self.unreadable)
        return checked_self(kind, self.attributes)

    def entry(self) -> Entry | None:
        """The set as an entry of what a device accepts; None when it is empty (which is no entry)."""
        problem = self.problem or self.unreadable
        if problem:
            return Entry({}, problem)
        return Entry(self.attributes) if self.attributes else None
