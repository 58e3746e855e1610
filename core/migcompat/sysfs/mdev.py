"""Mediated devices: everything on the mdev bus, whatever bus its parent is on.

vGPUs, vfio-ccw and vfio-ap devices and sample drivers alike
(kernel, Documentation/driver-api/vfio-mediated-device.rst).
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from posixpath import basename, dirname

from migcompat.engine.declaration import Kind
from migcompat.sysfs.declaration import read_declaration
from migcompat.sysfs.found import Finds, FoundDevice, Vanished
from migcompat.sysfs.tree import Tree, printable

BUS = "bus/mdev/devices"

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def find(tree: Tree) -> Finds:
    """All mdevs of *tree*. Never raises for what it finds there."""
    finds = Finds()
    try:
        names = tree.names(BUS)
    except OSError as error:
        finds.problem(BUS, f"cannot be listed ({error.strerror}): no mdev is found")
        return finds
    for name in names:
        entry = f"{BUS}/{name}"
        if _UUID.fullmatch(name):
            finds.device(entry, partial(_read, tree, name, entry))
        else:
            finds.problem(printable(entry), "the name is not a UUID, so this is no mdev")
    return finds


def _read(tree: Tree, uuid: str, entry: str) -> FoundDevice:
    path = tree.device_path(entry)
    if not tree.is_directory(path):
        raise Vanished
    notes: list[str] = []
    driver = tree.link(f"{path}/driver", notes)
    group = tree.link(f"{path}/iommu_group", notes)
    vfio_dev = tree.vfio_dev(path, notes)
    mdev_type = tree.link(f"{path}/mdev_type", notes)
    name = tree.value(f"{path}/mdev_type/name", notes)
    device_api = tree.value(f"{path}/mdev_type/device_api", notes)
    if not driver:
        notes.append("no driver is bound to it")
    if not mdev_type:
        notes.append("it has no mdev_type")
    elif not tree.is_directory(f"{path}/mdev_type"):
        notes.append("mdev_type leads nowhere")
    if driver and not group and not vfio_dev:
        notes.append("it has neither an IOMMU group nor a vfio-dev entry, so it cannot be opened")
    pci_id, revision = tree.function_above(path)
    found = FoundDevice(
        id=uuid,
        kind=Kind.MDEV,
        path=printable(path),
        declaration=read_declaration(Path(tree.absolute(path)), Kind.MDEV),
        parent=printable(basename(dirname(path))) if path != entry else "",
        driver=driver,
        driver_version=tree.driver_version("mdev", driver),
        type=mdev_type,
        type_name=name,
        device_api=device_api,
        pci_id=pci_id,
        revision=revision,
        numa_node=tree.node_above(path),
        iommu_group=group,
        vfio_dev=vfio_dev,
        problem="; ".join(notes),
    )
    if not tree.is_directory(entry):
        raise Vanished
    return found
