"""Reading what a device says about itself: which layout is there, and its bytes (semantics §2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from migcompat.engine.attributes import MAX_DOCUMENT, MAX_ENTRIES, SOFTWARE_VERSION, readable
from migcompat.engine.declaration import Acceptance, Declaration, Kind, Presence, SelfSet
from migcompat.engine.layouts import l1, l2, l3, l4
from migcompat.engine.layouts.raw import Fault, Flaw, Raw, RawSet, flawed
from migcompat.sysfs.reader import (
    AbsentError,
    DeviceDirectory,
    MalformedFileError,
    ReadError,
    UnreadableError,
)

MAX_ATTRIBUTES = 4096
"""Attributes of one L1 or L4 directory that are read; more are malformed, so that reading stays bounded."""

_VALUE_LIMIT = MAX_DOCUMENT  # the bound of MAX_VALUE is on the stripped value
_MIGRATION = "migration"
_SELF = "migration/self"
_COMPATIBLE = "migration/compatible"
_L3 = "migration_compatible"
_L4 = "mdev_type"


def read_declaration(device_dir: Path | str, kind: Kind | None = None) -> Declaration:
    """What the device in *device_dir* says about itself; *kind* None: an mdev iff it has ``mdev_type``.

    Never raises for what is in the directory: flaws are part of the answer. Of several layouts L1/L2 is
    read, then L3, then L4; the two halves of ``migration/`` may each be of L1 or L2.
    """
    try:
        device = DeviceDirectory(device_dir)
    except AbsentError:
        return Declaration(kind or Kind.PHYSICAL)
    except ReadError as error:
        return _hopeless(kind or Kind.PHYSICAL, "", _flaw("the device directory", error))
    try:
        if kind is None:
            kind = Kind.MDEV if device.has(_L4) else Kind.PHYSICAL
        found = _read_migration(device, kind) or _read_sections(device, kind)
        if found is None and kind is Kind.MDEV:
            found = _read_type_directory(device)
    except ReadError as error:
        return _hopeless(kind or Kind.PHYSICAL, "", _flaw("the device directory", error))
    return found or Declaration(kind)


def _read_migration(device: DeviceDirectory, kind: Kind) -> Declaration | None:
    """L1 and L2, or None when ``migration`` has neither a self nor entries."""
    if not device.has(_MIGRATION):
        return None
    try:
        if not device.is_directory(_MIGRATION):
            return None
        names = device.names(_MIGRATION)
    except AbsentError:
        return None
    except ReadError as error:
        return _hopeless(kind, "L1", _flaw(_MIGRATION, error))
    siblings = _numbered(names, l1.sibling_number)
    if "self" not in names and "compatible" not in names and not siblings:
        return None
    own, own_is_file = _read_self(device, kind) if "self" in names else (SelfSet(), False)
    accepts, accepts_is_file = _read_entries(device, "compatible" in names, siblings)
    return Declaration(kind, own, accepts, "L2" if own_is_file or accepts_is_file else "L1")


def _read_sections(device: DeviceDirectory, kind: Kind) -> Declaration | None:
    """L3, or None when there is no such file."""
    if not device.has(_L3):
        return None
    document = _document(device, _L3)
    return None if document is None else Declaration(kind, *l3.read(document, kind), layout="L3")


def _read_self(device: DeviceDirectory, kind: Kind) -> tuple[SelfSet, bool]:
    """The self set, and whether it is a file (L2)."""
    document = _document(device, _SELF)
    if document is None:
        return l1.self_set(_read_set(device, _SELF), kind), False
    return l2.self_set(document, kind), isinstance(document, bytes)


def _read_entries(device: DeviceDirectory, base: bool, siblings: list[str]) -> tuple[Acceptance, bool]:
    """The entries, and whether they are a file (L2), which then is all that counts.

    L1's stand in this order: the files of ``compatible``, its numbered sub-directories, its siblings.
    """
    sets: list[RawSet] = []
    inner: list[str] = []
    if base:
        document = _document(device, _COMPATIBLE)
        if isinstance(document, bytes):
            return l2.acceptance(document), True
        try:
            if document is None:
                inner = _numbered(device.names(_COMPATIBLE), l1.entry_number)
        except ReadError as error:
            document = _flaw(_COMPATIBLE, error)
        sets.append(_read_set(device, _COMPATIBLE) if document is None else document)
    places = [f"{_COMPATIBLE}/{name}" for name in inner] + [f"{_MIGRATION}/{name}" for name in siblings]
    for place in places:
        entry = _read_entry(device, place)
        if entry:
            sets.append(entry)
        if len(sets) > MAX_ENTRIES + 1:
            break
    return l1.acceptance(sets), False


def _read_entry(device: DeviceDirectory, place: str) -> RawSet:
    """The files of a numbered entry; none when *place* is a file, which is an attribute or nothing."""
    try:
        if device.is_directory(place):
            return _read_set(device, place)
        if device.is_file(place):
            return {}
    except AbsentError:
        return {}
    except ReadError as error:
        return _flaw(place, error)
    return Flaw(Fault.MALFORMED, f"{_shown(place)} is neither a file nor a directory")


def _read_set(device: DeviceDirectory, place: str) -> RawSet:
    """The attribute files of one L1 directory; what is a directory itself is no attribute."""
    try:
        regular, others = (list(filter(l1.is_attribute, names)) for names in device.files(place))
    except AbsentError:
        return {}
    except ReadError as error:
        return _flaw(place, error)
    if len(regular) + len(others) > MAX_ATTRIBUTES:
        return Flaw(Fault.MALFORMED, f"{_shown(place)} holds more than {MAX_ATTRIBUTES} names")
    found = _read_files(device, {name: f"{place}/{name}" for name in others})
    listed = {name: f"{place}/{name}" for name in regular}
    return found | _read_each(listed, lambda file: device.read_listed(file, _VALUE_LIMIT))


def _read_files(device: DeviceDirectory, places: Mapping[str, str]) -> dict[str, Raw]:
    """The files at *places* by the names given, without those that are directories or have vanished."""
    return _read_each(
        places, lambda place: None if device.is_directory(place) else device.read(place, _VALUE_LIMIT)
    )


def _read_each(places: Mapping[str, str], read: Callable[[str], bytes | None]) -> dict[str, Raw]:
    """What *read* gives for each place, by name; nothing for what is None or absent."""
    found: dict[str, Raw] = {}
    for name, place in places.items():
        try:
            content = read(place)
        except AbsentError:
            continue
        except ReadError as error:
            found[name] = _flaw(place, error)
        else:
            if content is not None:
                found[name] = content
    return found


def _document(device: DeviceDirectory, place: str) -> Raw | None:
    """The content of the document at *place*; None when it is a directory."""
    try:
        return None if device.is_directory(place) else device.read(place, MAX_DOCUMENT)
    except ReadError as error:
        return _flaw(place, error)


def _read_type_directory(device: DeviceDirectory) -> Declaration | None:
    """L4, or None when there is no type directory with a ``software_version``.

    ``mdev_type`` is the one link that may leave the device directory (semantics §2); what it leads to is
    a directory of its own, which again nothing leaves.
    """
    try:
        directory = device.linked(_L4)
        names = [name for name in directory.names("") if l4.is_attribute(name)]
    except UnreadableError as error:
        return _hopeless(Kind.MDEV, "L4", _flaw(_L4, error))
    except ReadError:  # no link, or one that leads nowhere, or to no directory: no layout
        return None
    if SOFTWARE_VERSION not in names:
        return None
    if len(names) > MAX_ATTRIBUTES:
        return _hopeless(
            Kind.MDEV, "L4", Flaw(Fault.MALFORMED, f"{_L4} holds more than {MAX_ATTRIBUTES} names")
        )
    files = _read_files(directory, {name: name for name in names})
    instance = _read_files(device, {name: name for name in l4.dynamic_names(files)})
    return Declaration(Kind.MDEV, *l4.read(directory.name, files, instance), layout="L4")


def _hopeless(kind: Kind, layout: str, flaw: Flaw) -> Declaration:
    """The declaration of which nothing could be had."""
    presence = Presence.MALFORMED if flaw.fault is Fault.MALFORMED else Presence.UNREADABLE
    return Declaration(kind, SelfSet(presence, problem=flaw.problem), flawed(flaw), layout)


def _numbered(names: list[str], number: Callable[[str], int | None]) -> list[str]:
    """Those of *names* that have a number, in the order of their numbers, then of their spelling."""
    found = [(value, name) for name in names if (value := number(name)) is not None]
    return [name for _, name in sorted(found)]


def _flaw(place: str, error: ReadError) -> Flaw:
    fault = Fault.MALFORMED if isinstance(error, MalformedFileError) else Fault.UNREADABLE
    return Flaw(fault, f"{_shown(place)} {error}")


def _shown(place: str) -> str:
    return readable(os.fsencode(place))
