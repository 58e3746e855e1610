"""What a recording shows about its VFIO devices, read without the code under test.

From the tree: the kernel's own registers ``class/vfio-dev``, ``bus/*/drivers/*`` and ``kernel/iommu_groups``.
From ``dev-and-modules.txt``: listings of /dev and /sys that a shell made in the guest.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.sysfs import DATA


def registered(root: Path) -> dict[str, str]:
    """Device id to ``vfioN``, as VFIO itself has registered them (``class/vfio-dev``)."""
    return {(entry / "device").resolve().name: entry.name for entry in (root / "class/vfio-dev").glob("*")}


def bound(root: Path) -> set[str]:
    """Devices that the drivers on the mdev bus, and vfio-pci, have as links in their directories."""
    drivers = [*(root / "bus/mdev/drivers").glob("*"), root / "bus/pci/drivers/vfio-pci"]
    entries = [entry for driver in drivers if driver.is_dir() for entry in driver.iterdir()]
    return {entry.name for entry in entries if entry.is_symlink() and entry.name != "module"}


def grouped(root: Path) -> dict[str, str]:
    """Device id to IOMMU group number, as the groups list their members."""
    members = (root / "kernel/iommu_groups").glob("*/devices/*")
    return {member.name: member.parts[-3] for member in members}


def mediated(root: Path) -> set[str]:
    """Mdevs, as the parents (``class/mdev_bus``) list them by type."""
    return {entry.name for entry in (root / "class/mdev_bus").glob("*/mdev_supported_types/*/devices/*")}


class Listing:
    """``dev-and-modules.txt`` of one kernel."""

    def __init__(self, kernel: str) -> None:
        self.text = (DATA / kernel / "dev-and-modules.txt").read_text()

    def registered(self) -> dict[str, str]:
        """Device id to ``vfioN`` (listing of /sys/class/vfio-dev)."""
        found = re.findall(r" (vfio\d+) -> \S*/([^/\s]+)/vfio-dev/vfio\d+$", self.text, re.MULTILINE)
        return {device: name for name, device in found}

    def groups(self) -> set[str]:
        """Group numbers that VFIO has opened files for (listing of /sys/class/vfio)."""
        return set(re.findall(r" (\d+) -> \S*/virtual/vfio/\1$", self.text, re.MULTILINE))

    def group_nodes(self) -> set[str]:
        """Names of group files in /dev/vfio, beside ``vfio`` itself."""
        return set(re.findall(r"^crw.* (\d+)$", self.text, re.MULTILINE))

    def character_devices(self) -> set[str]:
        """Names in /dev/vfio/devices."""
        return set(re.findall(r"^crw.* (vfio\d+)$", self.text, re.MULTILINE))

    def migratable(self) -> set[str]:
        """Device ids with a directory ``migration`` in /sys/kernel/debug/vfio."""
        return set(re.findall(r"^/sys/kernel/debug/vfio/([^/\s]+)/migration$", self.text, re.MULTILINE))

    def debugged(self) -> set[str]:
        """Device ids in /sys/kernel/debug/vfio."""
        return set(re.findall(r"^/sys/kernel/debug/vfio/([^/\s]+)$", self.text, re.MULTILINE))
