"""Discovery: which VFIO devices does a node have, and what does each say about itself.

One provider a kind of device; each gets the same tree and fails for nobody else.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from migcompat.sysfs import mdev, pci
from migcompat.sysfs.found import FoundDevice, ScanProblem, ScanResult
from migcompat.sysfs.tree import Tree

__all__ = ["BUSES", "FoundDevice", "ScanError", "ScanProblem", "ScanResult", "scan"]

PROVIDERS = (pci.find, mdev.find)
BUSES = (pci.BUS, mdev.BUS)
"""A :class:`ScanProblem` of one of these paths hides all devices of the bus."""


class ScanError(ValueError):
    """The given root is no sysfs: nothing at all can be found."""


def scan(sysfs_root: Path) -> ScanResult:
    """All VFIO devices below *sysfs_root*, the mount point of a sysfs (normally ``/sys``).

    A device that cannot be used has a ``problem``; what cannot be taken for a device is a
    :class:`ScanProblem`; neither hides the other devices. Raises :class:`ScanError` when *sysfs_root* is no
    sysfs, and OSError when that cannot be found out.
    """
    root = os.fspath(sysfs_root)
    for part in ("bus", "devices"):
        if not _is_directory(os.path.join(root, part)):
            raise ScanError(
                f"{root} is no sysfs: it has no directory {part}/; give the directory where sysfs is mounted,"
                " normally /sys"
            )
    tree = Tree(root)
    finds = [find(tree) for find in PROVIDERS]
    return ScanResult(
        tuple(device for found in finds for device in found.devices),
        tuple(problem for found in finds for problem in found.problems),
    )


def _is_directory(path: str) -> bool:
    """Whether *path* is one; raises OSError where it may be, but cannot be looked at."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
