"""What the real nodes' sysfs and /dev show: recorded trees with the scenario's mdevs, and device nodes."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from tests.scenario import nodes
from tests.support.sysfs import unpack

KERNEL_LOG = os.makedev(1, 11)
"""Stands behind each VFIO device node (/dev/kmsg): harmless to open, and, unlike /dev/null, in no container
unless the device plugin asks for it."""


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
    """Character devices for the VFIO container and every IOMMU group of ``host/sys`` that has none yet."""
    vfio = host / "dev/vfio"
    vfio.mkdir(parents=True, exist_ok=True)
    groups = [group.name for group in (host / "sys/kernel/iommu_groups").iterdir()]
    for name in ("vfio", *groups):
        if not (vfio / name).exists():
            os.mknod(vfio / name, 0o600 | stat.S_IFCHR, KERNEL_LOG)


def add_device(host: Path, number: int, version: str) -> str:
    """A further mdev, with its device node made first; its id."""
    mdev = nodes.device_id(host.parent.name, number)
    os.mknod(host / "dev/vfio" / str(200 + number), 0o600 | stat.S_IFCHR, KERNEL_LOG)
    nodes.add_mdev(host / "sys", mdev, version, 200 + number)
    return mdev


def remove_device(host: Path, mdev: str) -> None:
    """The mdev is gone; its device node goes with it, as the kernel would have it."""
    group = (host / "sys" / nodes.PARENT / mdev / "iommu_group").readlink().name
    nodes.remove_mdev(host / "sys", mdev)
    (host / "dev/vfio" / group).unlink()
    shutil.rmtree(host / "sys/kernel/iommu_groups" / group)


def prepare_source(host: Path) -> None:
    """A node whose only device is at version 1.1.0."""
    prepare(host, ["1.1.0"])


def prepare_accepting(host: Path) -> None:
    """A node with a device that refuses 1.1.0 and one that accepts it."""
    prepare(host, ["1.0.0", "1.1.0"])
