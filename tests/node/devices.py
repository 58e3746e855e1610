"""What the real nodes' sysfs and /dev show: recorded trees with the scenario's mdevs, and device nodes."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from tests.cluster.controlplane import ClusterError
from tests.scenario import nodes
from tests.support.sysfs import unpack

_MISC = 10
"""Major number of misc devices (kernel, Documentation/admin-guide/devices.txt)."""
_OPENABLE = ("fuse", "loop-control")
"""The first that the kernel has stands behind VFIO's device nodes: anybody may open it, nothing happens; but,
unlike with /dev/null, no container may unless the device plugin asks for it."""


def device_number() -> int:
    """What VFIO's device nodes are on these nodes.

    Raises:
        ClusterError: the kernel has none of the devices that could stand behind them.
    """
    misc = [line.split() for line in Path("/proc/misc").read_text().splitlines()]
    minors = {name: int(minor) for minor, name in misc}
    for name in _OPENABLE:
        if name in minors:
            return os.makedev(_MISC, minors[name])
    raise ClusterError(f"/proc/misc: none of {', '.join(_OPENABLE)}; one has to stand behind /dev/vfio/*")


def prepare(host: Path, versions: list[str], kernel: str = nodes.KERNEL) -> None:
    """Fills ``host/sys`` and ``host/dev``: one mdev of the scenario's type for each of `versions`."""
    sysfs = unpack(kernel, nodes.TREE, host)
    for mdev in nodes.RECORDED[len(versions) :]:
        nodes.remove_mdev(sysfs, mdev)
    for number, version in enumerate(versions):
        mdev = nodes.device_id(host.parent.name, number)
        if mdev in nodes.RECORDED:
            nodes.upgrade(sysfs, mdev, version)
        else:
            nodes.add_mdev(sysfs, mdev, version, 200 + number)
    make_device_nodes(host)


def make_device_nodes(host: Path) -> None:
    """Character devices for VFIO's container, iommufd, and every group and device of ``host/sys``."""
    _make(host, "vfio/vfio", "iommu")
    _make(host, *(f"vfio/{group.name}" for group in (host / "sys/kernel/iommu_groups").iterdir()))
    for device in (host / "sys/bus").glob("*/devices/*/vfio-dev/*"):
        _make(host, f"vfio/devices/{device.name}")


def add_device(host: Path, number: int, version: str) -> str:
    """A further mdev, with its device nodes made first; its id."""
    mdev = nodes.device_id(host.parent.name, number)
    group = 200 + number
    _make(host, f"vfio/{group}", f"vfio/devices/vfio{group}")
    nodes.add_mdev(host / "sys", mdev, version, group)
    return mdev


def remove_device(host: Path, mdev: str) -> None:
    """The mdev is gone; its device nodes go with it, as the kernel would have it."""
    device = host / "sys" / nodes.PARENT / mdev
    group = (device / "iommu_group").readlink().name
    gone = [f"vfio/{group}", *(f"vfio/devices/{d.name}" for d in (device / "vfio-dev").iterdir())]
    nodes.remove_mdev(host / "sys", mdev)
    for name in gone:
        (host / "dev" / name).unlink()
    shutil.rmtree(host / "sys/kernel/iommu_groups" / group)


def device_nodes(host: Path, *mdevs: str) -> set[str]:
    """The device nodes that a container needs for these mdevs, by their paths in there."""
    found = {"/dev/iommu", "/dev/vfio/vfio"}
    for mdev in mdevs:
        device = host / "sys" / nodes.PARENT / mdev
        found.add(f"/dev/vfio/{(device / 'iommu_group').readlink().name}")
        found |= {f"/dev/vfio/devices/{d.name}" for d in (device / "vfio-dev").iterdir()}
    return found


def prepare_source(host: Path) -> None:
    """A node whose only device is at version 1.1.0."""
    prepare(host, ["1.1.0"])


def prepare_accepting(host: Path) -> None:
    """A node with a device that refuses 1.1.0 and one that accepts it."""
    prepare(host, ["1.0.0", "1.1.0"])


def _make(host: Path, *names: str) -> None:
    """Device nodes below ``host/dev`` that are not there yet."""
    for name in names:
        path = host / "dev" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.mknod(path, 0o600 | stat.S_IFCHR, device_number())
