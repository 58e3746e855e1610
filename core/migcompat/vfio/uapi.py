"""Numbers and structures of include/uapi/linux/vfio.h that are needed to ask a device. Pure.

All requests are ``_IO(';', 100 + n)``: no size and no direction, so they are the same on every architecture
that QEMU's users have (``_IO`` of include/uapi/asm-generic/ioctl.h; powerpc, mips and sparc differ).
"""

from __future__ import annotations

import enum
import struct

_BASE = (ord(";") << 8) + 100

SET_IOMMU = _BASE + 2
GROUP_GET_STATUS = _BASE + 3
GROUP_SET_CONTAINER = _BASE + 4
GROUP_GET_DEVICE_FD = _BASE + 6
DEVICE_FEATURE = _BASE + 17
DEVICE_BIND_IOMMUFD = _BASE + 18

TYPE1V2_IOMMU = 3
GROUP_VIABLE = 1 << 0
FEATURE_GET = 1 << 16
FEATURE_MIGRATION = 1


class MigrationFlag(enum.IntFlag):
    """``VFIO_MIGRATION_*``: the states beyond STOP and RUNNING that a driver has."""

    STOP_COPY = 1 << 0
    P2P = 1 << 1
    PRE_COPY = 1 << 2


_STATUS = struct.Struct("=II")
_BIND = struct.Struct("=IIiI")
_FEATURE = struct.Struct("=IIQ")


def group_status() -> bytearray:
    """``struct vfio_group_status``, to be filled in."""
    return bytearray(_STATUS.pack(_STATUS.size, 0))


def is_viable(status: bytes | bytearray) -> bool:
    """Whether all devices of the group are bound to VFIO or to no driver."""
    _, flags = _STATUS.unpack(status)
    return bool(flags & GROUP_VIABLE)


def container(descriptor: int) -> bytearray:
    """The argument of GROUP_SET_CONTAINER."""
    return bytearray(struct.pack("=i", descriptor))


def device_name(name: str) -> bytearray:
    """The argument of GROUP_GET_DEVICE_FD; *name* is a PCI address or a UUID."""
    return bytearray(name.encode("ascii") + b"\0")


def bind_iommufd(iommufd: int) -> bytearray:
    """``struct vfio_device_bind_iommufd``."""
    return bytearray(_BIND.pack(_BIND.size, 0, iommufd, 0))


def get_migration() -> bytearray:
    """``struct vfio_device_feature`` that asks for ``struct vfio_device_feature_migration``."""
    return bytearray(_FEATURE.pack(_FEATURE.size, FEATURE_GET | FEATURE_MIGRATION, 0))


def migration_flags(feature: bytes | bytearray) -> MigrationFlag:
    """The answer to :func:`get_migration`; flags of later kernels are left out."""
    _, _, flags = _FEATURE.unpack(feature)
    return MigrationFlag(flags & (MigrationFlag.STOP_COPY | MigrationFlag.P2P | MigrationFlag.PRE_COPY))
