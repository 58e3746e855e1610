"""Writes one declaration to a device directory in every layout that can express it (semantics §2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

Attributes = Mapping[str, str]

DYNAMIC = ("aggregator", "remote_url")


class Content(msgspec.Struct, frozen=True):
    """What a device says: its self (None: none) and its entries, values as they stand in the files."""

    own: dict[str, str] | None
    entries: tuple[dict[str, str], ...] = ()
    mdev: bool = True


def accepting_itself(content: Content) -> Content:
    """*content* with the entry that L4 always has: for a source, whose entries play no part."""
    own = content.own or {}
    entry = {name: value for name, value in own.items() if name not in DYNAMIC}
    return msgspec.structs.replace(content, entries=(entry,))


class NotExpressibleError(Exception):
    """The layout has no place for this content."""


def device(place: Path, content: Content, type_name: str = "some-type") -> Path:
    """An empty device directory; an mdev gets a type directory beside it, and the link to it."""
    place.mkdir(parents=True)
    if content.mdev:
        types = place.parent / f"{place.name}-mdev_supported_types" / type_name
        types.mkdir(parents=True)
        (types / "name").write_text("the type's display name\n")
        (place / "mdev_type").symlink_to(os.path.relpath(types, place))
    return place


def l1_siblings(place: Path, content: Content) -> None:
    """``compatible``, ``compatible1``, ``compatible2``, …"""
    _l1(place, content, lambda index: f"compatible{index or ''}")


def l1_siblings_padded(place: Path, content: Content) -> None:
    """``compatible_0001``, ``compatible_0002``, …"""
    _l1(place, content, lambda index: f"compatible_{index + 1:04}")


def l1_numbered(place: Path, content: Content) -> None:
    """``compatible/0``, ``compatible/1``, …"""
    _l1(place, content, lambda index: f"compatible/{index}")


def _l1(place: Path, content: Content, name: Callable[[int], str]) -> None:
    device(place, content)
    migration = place / "migration"
    if content.own is not None:
        _files(migration / "self", content.own)
    for index, entry in enumerate(content.entries):
        _files(migration / name(index), entry)


def _files(directory: Path, attributes: Attributes) -> None:
    directory.mkdir(parents=True)
    for name, value in attributes.items():
        (directory / name).write_text(f"{value}\n")


def l2_blank_lines(place: Path, content: Content) -> None:
    """Entries separated by blank lines."""
    _l2(place, content, "\n".join(_lines(entry) for entry in content.entries))


def l2_headings(place: Path, content: Content) -> None:
    """Entries below ``COMPATIBLE:`` lines."""
    _l2(place, content, "".join(f"COMPATIBLE:\n{_lines(entry)}" for entry in content.entries))


def _l2(place: Path, content: Content, compatible: str) -> None:
    device(place, content)
    if content.own is None and not content.entries:
        return
    (place / "migration").mkdir()
    if content.own is not None:
        (place / "migration/self").write_text(_lines(content.own))
    (place / "migration/compatible").write_text(compatible)


def l3(place: Path, content: Content) -> None:
    """One file with sections."""
    device(place, content)
    if content.own is None and not content.entries:
        return
    sections = [("SELF", content.own)] if content.own is not None else []
    sections += [("COMPATIBLE", entry) for entry in content.entries]
    text = "".join(f"{name}:\n{_lines(attributes, indent='  ')}" for name, attributes in sections)
    (place / "migration_compatible").write_text(text)


def _lines(attributes: Attributes, indent: str = "") -> str:
    return "".join(f"{indent}{name}={value}\n" for name, value in attributes.items())


def l4(place: Path, content: Content) -> None:
    """The mdev type directory.

    It can say: one version and device_api for self and entries alike, an entry for the own type (here put
    first) and for others, lists that self and entries share. Dynamic attributes that no entry names are
    instance attributes. An mdev's ``pci_id`` that no entry names is left out: L4 would make the entries name
    it, and else it plays no part (vector D3).
    """
    own = dict(content.own or {})
    if not any("pci_id" in entry for entry in content.entries):
        own.pop("pci_id", None)
    if not content.mdev or content.own is None or {"type", "device_api", "software_version"} - own.keys():
        raise NotExpressibleError
    constrained = set().union(*content.entries) if content.entries else set(own)
    dynamic = {name: own.pop(name) for name in DYNAMIC if name in own and name not in constrained}
    core = {name: own.pop(name) for name in ("type", "device_api", "software_version")}
    types = [entry.get("type", "") for entry in content.entries]
    expected = [{**core, **own, "type": name} for name in types]
    if list(content.entries) != expected or core["type"] not in types:
        raise NotExpressibleError
    types.remove(core["type"])
    if any("{" in value for entry in content.entries for value in entry.values()):
        raise NotExpressibleError
    device(place, content, core["type"])
    directory = (place / "mdev_type").resolve()
    lists = {
        "software_version": core["software_version"],
        "device_api": core["device_api"],
        "compatible_type": ",".join(types),
        **{f"compatible_{name}": value for name, value in own.items()},
        "dynamic_resources": ",".join(dynamic),
    }
    for name, value in lists.items():
        (directory / name).write_text(f"{value}\n")
    for name, value in dynamic.items():
        (place / name).write_text(f"{value}\n")


LAYOUTS: Sequence[Callable[[Path, Content], None]] = (
    l1_siblings,
    l1_siblings_padded,
    l1_numbered,
    l2_blank_lines,
    l2_headings,
    l3,
    l4,
)
