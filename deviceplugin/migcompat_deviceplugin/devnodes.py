"""The host's device nodes: where we see them, and where the container runtime finds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from migcompat.sysfs.scan import FoundDevice

VFIO_CONTAINER = "vfio/vfio"
IOMMUFD = "iommu"


class DevDir(msgspec.Struct, frozen=True):
    """The host's ``/dev``. ``root``: where this process sees it. ``host``: where it lies on the host."""

    root: Path = Path("/dev")
    host: Path = Path("/dev")

    def nodes(self, devices: Sequence[FoundDevice]) -> list[str]:
        """What a container needs for *devices*, as names below ``/dev``, each once.

        The VFIO container and the groups (kernel, Documentation/driver-api/vfio.rst), then cdevs and iommufd
        where they exist.
        """
        nodes = [VFIO_CONTAINER]
        nodes += [f"vfio/{device.iommu_group}" for device in devices if device.iommu_group]
        cdevs = [f"vfio/devices/{device.vfio_dev}" for device in devices if device.vfio_dev]
        nodes += [node for node in (*cdevs, IOMMUFD) if (self.root / node).exists()]
        return list(dict.fromkeys(nodes))
