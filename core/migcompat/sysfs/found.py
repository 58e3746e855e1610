"""What a scan finds: devices as they are, and what could not be read.

Which file each field comes from is written down in ``docs/reference/scan.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from migcompat.engine.declaration import Declaration, Kind
from migcompat.sysfs.progress import Progress

T = TypeVar("T")


class FoundDevice(msgspec.Struct, frozen=True, rename="camel"):
    """One VFIO device.

    ``id``: PCI address or mdev UUID, unique on the node. ``path`` is relative to the sysfs root.
    ``parent``: the device that an mdev or a VF lives on, empty for other functions. ``type``: the mdev
    type's directory name (``nvidia-63``) or an NVIDIA VF's vGPU type (``nvidia-1414``), ``type_name`` its
    human name; both empty for other functions. ``pool``: what names its default resource where that is
    neither its type nor its PCI id. ``pci_id``: ``vendor`` and ``device``, 8 hex digits, and
    ``revision`` (``0x02``) of the function itself or of the function that an mdev lives on; empty outside
    PCI. ``numa_node``: None when the kernel does not know. ``iommu_group``: the group's number, empty
    without one. ``vfio_dev``: ``vfioN``, empty before Linux 6.1.
    ``physfn``: the PF of a VF, or of the VF that an mdev lives on.
    ``problem``: why the device, though found, cannot be handed to a VM; empty when it can.
    """

    id: str
    kind: Kind
    path: str
    declaration: Declaration
    parent: str = ""
    driver: str = ""
    driver_version: str = ""
    type: str = ""
    type_name: str = ""
    pool: str = ""
    device_api: str = ""
    pci_id: str = ""
    revision: str = ""
    numa_node: int | None = None
    iommu_group: str = ""
    vfio_dev: str = ""
    is_vf: bool = False
    physfn: str = ""
    problem: str = ""


class ScanProblem(msgspec.Struct, frozen=True):
    """What could not be taken for a device (``path``, relative to the sysfs root), and why."""

    path: str
    message: str


class Vanished(Exception):
    """A device went away while it was being read, or the link to it leads nowhere."""


class Finds(msgspec.Struct):
    """What was found so far by a look that tells its *progress*; ``silent`` as of the result."""

    devices: list[FoundDevice] = msgspec.field(default_factory=list)
    problems: list[ScanProblem] = msgspec.field(default_factory=list)
    progress: Progress = msgspec.field(default_factory=Progress)
    silent: bool = False

    def problem(self, path: str, message: str) -> None:
        """Note that *path* could not be taken for a device."""
        self.problems.append(ScanProblem(path, message))

    def look(self, path: str, look: Callable[[], T]) -> T | None:
        """What *look* returns; what keeps it from doing so becomes a problem of *path*, and None."""
        try:
            return self.progress.step(path, look)
        except Vanished:
            self.problem(path, "went away while it was being read, or its link is broken")
        except ValueError as error:
            self.problem(path, str(error))
        except OSError as error:
            self.problem(path, f"cannot be read ({error.strerror or error})")
        return None


class ScanResult(msgspec.Struct, frozen=True):
    """All devices, physical functions first, each kind in the order of ids; and all problems.

    ``silent``: something there may become a device, or another one, without an event of the kernel.
    """

    devices: tuple[FoundDevice, ...] = ()
    problems: tuple[ScanProblem, ...] = ()
    silent: bool = False
