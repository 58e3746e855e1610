"""The six nodes of the scenario: recorded trees, with mdevs that say what they accept.

The recorded kernels export no ``migration/`` tree (none does today), so the scenario adds one to each mdev of
the type ``mtty-2``: three software versions of one type, the way a rolling driver upgrade leaves a cluster.
Two such mdevs stand in each recorded tree; nodes that need more get further ones made after these.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from uuid import NAMESPACE_DNS, uuid5

from tests.support.fabricate import add_group_nodes
from tests.support.sysfs import set_migration, unpack

KERNEL = "linux-6.12-debian13-cdev"
OLD_KERNEL = "linux-6.1-debian12-stock"
TREE = "2-vfio-mdev"
TYPE = "mtty-2"
RECORDED = ("3cdd9d10-ab0b-5b62-a830-1e64593fa98e", "e5e2c6a0-9d9b-5fd2-bc10-b96aabd5f151")
"""The mdevs of that type in the recorded trees."""
POOL = "vfio.migcompat.io/mtty-2"
PARENT = Path("devices/virtual/mtty/mtty")
SOURCE, REFUSING, ACCEPTING, OTHER_TYPE, UPGRADED = (
    "node-1",
    ("node-2", "node-3"),
    "node-4",
    "node-5",
    "node-6",
)
NODES = (SOURCE, *REFUSING, ACCEPTING, OTHER_TYPE, UPGRADED)


def attributes(version: str) -> dict[str, str]:
    """What an mdev of the scenario's type says about itself at a driver version; it accepts the same."""
    return {"software_version": version, "device_api": "vfio-pci", "type": TYPE}


def device_id(node: str, number: int) -> str:
    """The UUID of a node's mdev: the two recorded ones first, the same on every node, then added ones."""
    if number < len(RECORDED):
        return RECORDED[number]
    return str(uuid5(NAMESPACE_DNS, f"{number}.{node}.migcompat.io"))


def upgrade(sysfs: Path, mdev: str, version: str) -> None:
    """The driver of an mdev is now at *version*: its ``migration/`` tree changes under whoever reads it."""
    own = attributes(version)
    set_migration(sysfs / PARENT / mdev, own, [own])


def add_mdev(sysfs: Path, mdev: str, version: str, group: int) -> None:
    """A further mdev of the scenario's type, made after a recorded one, the way the kernel shows it."""
    device = sysfs / PARENT / mdev
    device.mkdir(parents=True)
    up = "../" * 5
    (device / "driver").symlink_to(f"{up}bus/mdev/drivers/mtty")
    (device / "subsystem").symlink_to(f"{up}bus/mdev")
    (device / "iommu_group").symlink_to(f"{up}kernel/iommu_groups/{group}")
    (device / "uevent").write_text("DRIVER=mtty\n")
    (device / "vfio-dev" / f"vfio{group}").mkdir(parents=True)
    members = sysfs / "kernel/iommu_groups" / str(group) / "devices"
    members.mkdir(parents=True)
    (members / mdev).symlink_to(f"../../../../{PARENT}/{mdev}")
    upgrade(sysfs, mdev, version)
    # What makes it an mdev comes last, as a scan may run at any time.
    (device / "mdev_type").symlink_to(f"../mdev_supported_types/{TYPE}")
    (sysfs / "bus/mdev/devices" / mdev).symlink_to(f"../../../{PARENT}/{mdev}")


def remove_mdev(sysfs: Path, mdev: str) -> None:
    """The mdev is gone, as after a write to its ``remove``."""
    (sysfs / "bus/mdev/devices" / mdev).unlink()
    shutil.rmtree(sysfs / PARENT / mdev)


def prepare(directory: Path, node: str) -> None:
    """Lay out *directory*/sys and *directory*/dev of a node of the scenario."""
    sysfs = unpack(OLD_KERNEL if node in REFUSING else KERNEL, TREE, directory)
    versions = {
        SOURCE: ["1.1.0"],
        REFUSING[0]: ["1.0.0"] * 4,
        REFUSING[1]: ["1.0.0"] * 4,
        ACCEPTING: ["1.0.0", "1.1.0"],
        OTHER_TYPE: [],
        UPGRADED: ["1.0.0"],
    }[node]
    for mdev in RECORDED[len(versions) :]:
        remove_mdev(sysfs, mdev)
    for number, version in enumerate(versions):
        mdev = device_id(node, number)
        if mdev in RECORDED:
            upgrade(sysfs, mdev, version)
        else:
            add_mdev(sysfs, mdev, version, 200 + number)
    add_group_nodes(directory / "dev", sysfs)
