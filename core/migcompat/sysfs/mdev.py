"""The mdev bus, and what holds for every mediated device, whatever bus its parent is on.

vGPUs, vfio-ccw and vfio-ap devices and sample drivers alike
(kernel, Documentation/driver-api/vfio-mediated-device.rst).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from posixpath import basename, dirname, join, normpath
from typing import NamedTuple

import msgspec

from migcompat.engine.declaration import Kind
from migcompat.sysfs import shown
from migcompat.sysfs.declaration import read_declaration
from migcompat.sysfs.found import Finds, FoundDevice, Vanished
from migcompat.sysfs.provider import Bus, Names, Provider
from migcompat.sysfs.tree import Tree, printable

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Type(NamedTuple):
    """An mdev type: its directory's name, its human name, its API; ``notes``: what is wrong with it."""

    id: str
    name: str
    device_api: str
    notes: tuple[str, ...]


class Mdev(NamedTuple):
    """An mdev as the first look at the bus shows it; ``parent``: the path of the device that it lives on."""

    tree: Tree
    uuid: str
    entry: str
    path: str
    parent: str
    type: Type


def _candidates(tree: Tree, finds: Finds, only: Names | None) -> Iterator[Mdev]:
    try:
        names = tree.names(BUS.path)
    except OSError as error:
        finds.problem(BUS.path, f"cannot be listed ({error.strerror}): no mdev is found")
        return
    for name in names:
        if only is not None and name not in only:
            continue
        entry = f"{BUS.path}/{name}"
        if not _UUID.fullmatch(name):
            finds.problem(printable(entry), "the name is not a UUID, so this is no mdev")
            continue
        found = finds.look(entry, partial(_first_look, tree, name, entry))
        if found is not None:
            yield found


BUS = Bus("bus/mdev/devices", _candidates)


def _first_look(tree: Tree, uuid: str, entry: str) -> Mdev:
    path = tree.device_path(entry)
    if not tree.is_directory(path):
        raise Vanished
    return Mdev(tree, uuid, entry, path, dirname(path) if path != entry else "", _type(tree, path))


def _type(tree: Tree, path: str) -> Type:
    """The type of the mdev at *path*; one that several mdevs share is read once."""
    notes: list[str] = []
    link = f"{path}/mdev_type"
    target = tree.target(link, notes)
    if not target:
        return Type("", "", "", (*notes, "it has no mdev_type"))
    place = normpath(join(path, target))
    if not place.startswith("devices/"):
        place = link
    return tree.once(("mdev type", place), lambda: _read_type(tree, place, printable(basename(target))))


def _read_type(tree: Tree, place: str, type_id: str) -> Type:
    notes: list[str] = []
    if not tree.is_directory(place):
        return Type(type_id, "", "", ("mdev_type leads nowhere",))
    name = tree.value(f"{place}/name", [])
    device_api = tree.value(f"{place}/device_api", notes)
    return Type(type_id, name, device_api, tuple(notes))


def read(
    mdev: Mdev,
    *,
    pci_id: str = "",
    revision: str = "",
    physfn: str = "",
    extra: Mapping[str, str] | None = None,
) -> FoundDevice:
    """The device that *mdev* is; *extra* is what it shows beside what every mdev does.

    Raises Vanished, ValueError, OSError.
    """
    tree, uuid, entry, path, parent, mdev_type = mdev
    notes: list[str] = []
    driver = tree.link(f"{path}/driver", notes)
    group = tree.link(f"{path}/iommu_group", notes)
    vfio_dev = tree.vfio_dev(path, notes)
    notes += mdev_type.notes
    if not driver:
        notes.append("no driver is bound to it")
    elif not group and not vfio_dev:
        notes.append("it has neither an IOMMU group nor a vfio-dev entry, so it cannot be opened")
    version = tree.driver_version("mdev", driver)
    declaration = read_declaration(tree.absolute(path), Kind.MDEV)
    shows = {
        **shown.given(device_api=mdev_type.device_api, type=mdev_type.id, type_name=mdev_type.name),
        **shown.of_driver(driver, _stream_version(tree, parent) or version),
        **shown.migration_features(tree, uuid),
        **(extra or {}),
    }
    found = FoundDevice(
        id=uuid,
        kind=Kind.MDEV,
        path=printable(path),
        declaration=msgspec.structs.replace(declaration, shown=shows),
        parent=printable(basename(parent)),
        driver=driver,
        driver_version=version,
        type=mdev_type.id,
        type_name=mdev_type.name,
        device_api=mdev_type.device_api,
        pci_id=pci_id,
        revision=revision,
        physfn=physfn,
        numa_node=tree.node_above(path),
        iommu_group=group,
        vfio_dev=vfio_dev,
        problem="; ".join(notes),
    )
    if not tree.is_directory(entry):
        raise Vanished
    return found


def _stream_version(tree: Tree, parent: str) -> str:
    """The version of the driver that makes the migration stream: the parent's, since the mdev's is glue."""
    return tree.version_at(parent) if parent else ""


PROVIDER = Provider(BUS, lambda mdev: True, read)
"""Any mdev: put it behind those that claim mdevs of which they know more."""
