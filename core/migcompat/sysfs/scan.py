"""Discovery: which VFIO devices does a node have, and what does each say about itself.

One provider a kind of device (:mod:`migcompat.sysfs.provider`).
"""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path
from typing import Any

from migcompat.sysfs import mdev, mdev_ap, mdev_ccw, pci_mdev, pci_mlx5, pci_nvidia, pci_qat, pci_vfio
from migcompat.sysfs.found import Finds, FoundDevice, ScanProblem, ScanResult
from migcompat.sysfs.progress import Progress
from migcompat.sysfs.provider import Names, Provider
from migcompat.sysfs.tree import Tree

__all__ = ["BUSES", "FoundDevice", "ScanError", "ScanProblem", "ScanResult", "scan"]

PROVIDERS: tuple[Provider[Any], ...] = (
    pci_nvidia.PROVIDER,
    pci_mlx5.PROVIDER,
    pci_qat.PROVIDER,
    pci_vfio.PROVIDER,
    mdev_ccw.PROVIDER,
    mdev_ap.PROVIDER,
    pci_mdev.PROVIDER,
    mdev.PROVIDER,
)
"""All kinds of devices. The first that claims a candidate reads it."""

BUSES = tuple(dict.fromkeys(provider.bus.path for provider in PROVIDERS))
"""A :class:`ScanProblem` of one of these paths hides all devices of the bus."""


class ScanError(ValueError):
    """The given root is no sysfs: nothing at all can be found."""


def scan(sysfs_root: Path, only: Names | None = None, progress: Progress | None = None) -> ScanResult:
    """All VFIO devices below *sysfs_root*, the mount point of a sysfs (normally ``/sys``).

    A device that cannot be used has a ``problem``; what cannot be taken for a device is a
    :class:`ScanProblem`; neither hides the other devices. Raises :class:`ScanError` when *sysfs_root* is no
    sysfs, and OSError when that cannot be found out.

    With *only*, the devices and problems of these names, as a whole scan finds them, but with a look at no
    more than them and what decides about them. *progress* is told where the scan is, and has it leave out
    devices where an earlier one hangs: each is a problem. May block for as long as a driver does.
    """
    root = os.fspath(sysfs_root)
    for part in ("bus", "devices"):
        if not _is_directory(os.path.join(root, part)):
            raise ScanError(
                f"{root} is no sysfs: it has no directory {part}/; give the directory where sysfs is mounted,"
                " normally /sys"
            )
    progress = progress or Progress()
    tree = Tree(root, progress)
    finds = Finds(progress=progress)
    for bus in dict.fromkeys(provider.bus for provider in PROVIDERS):
        kinds = [provider for provider in PROVIDERS if provider.bus is bus]
        for candidate in bus.candidates(tree, finds, only):
            provider = next((provider for provider in kinds if provider.claims(candidate)), None)
            if provider is not None:
                finds.silent = finds.silent or provider.silent(candidate)
                found = finds.look(candidate.entry, partial(provider.read, candidate))
                if found is not None:
                    finds.devices.append(found)
    return ScanResult(tuple(finds.devices), tuple(finds.problems), finds.silent)


def _is_directory(path: str) -> bool:
    """Whether *path* is one; raises OSError where it may be, but cannot be looked at."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
