"""Fabricated sysfs devices, in the shape of the recorded trees: only the files a scan looks at."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def make_sysfs(root: Path) -> Path:
    """An empty sysfs below *root* with a PCI and an mdev bus; returns the sysfs root (``root/sys``)."""
    sys = root / "sys"
    for directory in ("bus/pci/devices", "bus/mdev/devices", "devices", "kernel/iommu_groups", "module"):
        (sys / directory).mkdir(parents=True)
    return sys


def add_driver(sys: Path, bus: str, driver: str, version: str = "") -> None:
    """Make *driver* known on *bus*, in a module of that name (``-`` as ``_``), if it is not yet."""
    directory = sys / "bus" / bus / "drivers" / driver
    if directory.exists():
        return
    module = sys / "module" / driver.replace("-", "_")
    module.mkdir(exist_ok=True)
    if version:
        write(module, {"version": version})
    directory.mkdir(parents=True)
    link(directory / "module", module)


def add_function(
    sys: Path,
    path: str,
    *,
    driver: str = "vfio-pci",
    group: int | None,
    ids: tuple[str, str] = ("0x15b3", "0x101e"),
    node: int = -1,
    vfio_dev: str = "",
    physfn: str = "",
) -> Path:
    """A PCI function at ``devices/<path>``; its address is the last component. Returns its directory."""
    device = sys / "devices" / path
    device.mkdir(parents=True, exist_ok=True)
    facts = {"vendor": ids[0], "device": ids[1], "revision": "0x00", "numa_node": str(node)}
    card = {"subsystem_vendor": ids[0], "subsystem_device": "0x0001"}
    write(device, {**facts, **card, "driver_override": "(null)"})
    if physfn:
        (device / "physfn").symlink_to(f"../{physfn}")
    _register(sys, "pci", device, driver=driver, group=group, vfio_dev=vfio_dev)
    return device


def add_mdev(
    sys: Path,
    parent: str,
    uuid: str,
    *,
    type_id: str,
    driver: str,
    group: int | None,
    device_api: str = "vfio-pci",
    vfio_dev: str = "",
) -> Path:
    """An mdev of type *type_id* on the device at ``devices/<parent>``. Returns its directory."""
    device = sys / "devices" / parent / uuid
    device.mkdir(parents=True)
    mdev_type = device.parent / "mdev_supported_types" / type_id
    mdev_type.mkdir(parents=True, exist_ok=True)
    write(mdev_type, {"name": f"The {type_id}", "device_api": device_api, "available_instances": "1"})
    link(device / "mdev_type", mdev_type)
    _register(sys, "mdev", device, driver=driver, group=group, vfio_dev=vfio_dev)
    if group is not None:
        write(sys / f"kernel/iommu_groups/{group}", {"name": "vfio-noiommu"})
    return device


def add_device_nodes(dev: Path, *names: str) -> None:
    """Character devices at these names below *dev*, as links to one that anybody may have."""
    for name in names:
        node = dev / name
        node.parent.mkdir(parents=True, exist_ok=True)
        if not node.is_symlink():
            node.symlink_to("/dev/null")


def add_group_nodes(dev: Path, sys: Path) -> None:
    """VFIO's container and a node for each IOMMU group of *sys*."""
    groups = (group.name for group in (sys / "kernel/iommu_groups").iterdir())
    add_device_nodes(dev, "vfio/vfio", *(f"vfio/{group}" for group in groups))


def write(directory: Path, values: Mapping[str, str]) -> None:
    """One attribute file for each of *values*."""
    for name, value in values.items():
        (directory / name).write_text(f"{value}\n")


def link(path: Path, target: Path) -> None:
    """A relative link, as all of sysfs' are."""
    path.symlink_to(os.path.relpath(target, path.parent))


def _register(sys: Path, bus: str, device: Path, *, driver: str, group: int | None, vfio_dev: str) -> None:
    if driver:
        add_driver(sys, bus, driver)
        link(device / "driver", sys / "bus" / bus / "drivers" / driver)
    if group is not None:
        members = sys / f"kernel/iommu_groups/{group}/devices"
        members.mkdir(parents=True, exist_ok=True)
        link(members / device.name, device)
        link(device / "iommu_group", members.parent)
    if vfio_dev:
        (device / "vfio-dev" / vfio_dev).mkdir(parents=True)
    link(sys / "bus" / bus / "devices" / device.name, device)
