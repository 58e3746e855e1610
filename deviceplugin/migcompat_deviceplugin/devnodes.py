"""The host's device nodes: where we see them, and where the container runtime finds them."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec
from migcompat.sysfs.scan import FoundDevice

VFIO_CONTAINER = "vfio/vfio"
IOMMUFD = "iommu"
MISSING = "no device node: "
"""How the problem of a device begins that no container could open."""

_Way = tuple[str, ...]


class DevDir(msgspec.Struct, frozen=True):
    """The host's ``/dev``. ``root``: where this process sees it. ``host``: where it lies on the host."""

    root: Path = Path("/dev")
    host: Path = Path("/dev")

    def nodes(self, devices: Sequence[FoundDevice]) -> list[str]:
        """What a container needs for *devices*, as names below ``/dev``, each once.

        The VFIO container and the groups, then cdevs and iommufd; of each of these ways of opening a device
        all of its nodes, or none.
        """
        ways = [way for device in devices if (way := _by_group(device))]
        ways += [way for device in devices if (way := _by_cdev(device))]
        return list(dict.fromkeys(node for way in ways if not self._missing(way) for node in way))

    def checked(self, device: FoundDevice) -> FoundDevice:
        """*device*; with a problem if it has none yet, but no container could open it."""
        ways = [way for way in (_by_group(device), _by_cdev(device)) if way]
        if device.problem or not all(map(self._missing, ways)):
            return device
        names = " and ".join(str(self.host / node) for way in ways[:1] for node in self._missing(way))
        why = (
            f"{MISSING}{names} missing on the host, or not a character device: VFIO's module is not loaded,"
            " or hostPaths.dev is not the host's /dev"
        )
        return msgspec.structs.replace(device, problem=why)

    def _missing(self, way: _Way) -> list[str]:
        return [node for node in way if not _is_character_device(self.root / node)]


def _by_group(device: FoundDevice) -> _Way:
    """By its IOMMU group and a VFIO container (kernel, Documentation/driver-api/vfio.rst)."""
    return (VFIO_CONTAINER, f"vfio/{device.iommu_group}") if device.iommu_group else ()


def _by_cdev(device: FoundDevice) -> _Way:
    """By its own character device and iommufd, where these are built in."""
    return (f"vfio/devices/{device.vfio_dev}", IOMMUFD) if device.vfio_dev else ()


def _is_character_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False
