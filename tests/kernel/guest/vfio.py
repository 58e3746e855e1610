"""VFIO's ioctls, from its header alone (include/uapi/linux/vfio.h); shares no code with what is tested."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.kernel.guest.hardware import MDEV, PCI, link

_BASE = 0x3B64
_GROUP_SET_CONTAINER = _BASE + 4
_SET_IOMMU = _BASE + 2
_GROUP_GET_DEVICE_FD = _BASE + 6
_DEVICE_FEATURE = _BASE + 17
_DEVICE_BIND_IOMMUFD = _BASE + 18
_TYPE1_IOMMU = 1

_GET, _SET = 1 << 16, 1 << 17
_MIGRATION = 1
_DEVICE_STATE = 2

STOP_COPY, P2P, PRE_COPY = 1, 2, 4
"""Flags of VFIO_DEVICE_FEATURE_MIGRATION."""

STOP, RUNNING, STOP_COPY_STATE, RESUMING = 1, 2, 3, 4
"""``enum vfio_device_mig_state``."""


def _directory(device: str) -> Path:
    return (PCI if ":" in device else MDEV) / device


def group_node(device: str) -> Path:
    """The device node of a device's group."""
    return Path("/dev/vfio") / link(_directory(device) / "iommu_group")


def device_node(device: str) -> Path:
    """The device node of the device itself."""
    (name,) = os.listdir(_directory(device) / "vfio-dev")
    return Path("/dev/vfio/devices") / name


@contextlib.contextmanager
def opened(device: str, group: Path | None = None) -> Iterator[int]:
    """A descriptor of a device by way of its group. Raises OSError: EBUSY when somebody else has it open."""
    with contextlib.ExitStack() as stack:

        def keep(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        container = keep(os.open("/dev/vfio/vfio", os.O_RDWR | os.O_CLOEXEC))
        descriptor = keep(os.open(group or group_node(device), os.O_RDWR | os.O_CLOEXEC))
        fcntl.ioctl(descriptor, _GROUP_SET_CONTAINER, struct.pack("i", container))
        fcntl.ioctl(container, _SET_IOMMU, _TYPE1_IOMMU)
        name = bytearray(device.encode() + b"\0")
        yield keep(fcntl.ioctl(descriptor, _GROUP_GET_DEVICE_FD, name, True))


@contextlib.contextmanager
def opened_node(node: Path) -> Iterator[int]:
    """A descriptor of a device by way of its own node and iommufd."""
    with contextlib.ExitStack() as stack:
        iommufd = os.open("/dev/iommu", os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, iommufd)
        descriptor = os.open(node, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        fcntl.ioctl(descriptor, _DEVICE_BIND_IOMMUFD, bytearray(struct.pack("IIiI", 16, 0, iommufd, 0)), True)
        yield descriptor


def _feature(descriptor: int, flags: int, payload: bytes) -> bytes:
    buffer = bytearray(struct.pack("II", 8 + len(payload), flags) + payload)
    fcntl.ioctl(descriptor, _DEVICE_FEATURE, buffer, True)
    return bytes(buffer[8:])


def migration_flags(descriptor: int) -> int | None:
    """What the kernel answers for an open device; None when it cannot migrate (ENOTTY)."""
    try:
        (flags,) = struct.unpack("Q", _feature(descriptor, _MIGRATION | _GET, bytes(8)))
    except OSError as error:
        if error.errno == 25:  # ENOTTY
            return None
        raise
    return int(flags)


def _set_state(descriptor: int, state: int) -> int:
    """Change the migration state; returns the stream's descriptor, -1 without one."""
    answer = _feature(descriptor, _DEVICE_STATE | _SET, struct.pack("Ii", state, -1))
    stream: int = struct.unpack("Ii", answer)[1]
    return stream


def migrate(source: str, target: str) -> int:
    """Carry the state of one device over to another; returns its size in bytes.

    Raises OSError with what the target's driver thinks of it.
    """
    with opened(source) as from_, opened(target) as to:
        stream = _set_state(from_, STOP_COPY_STATE)
        state = b""
        with open(stream, "rb", buffering=0) as file:
            while chunk := file.read(65536):
                state += chunk
        _set_state(from_, STOP)
        stream = _set_state(to, RESUMING)
        with open(stream, "wb", buffering=0) as file:
            file.write(state)
            _set_state(to, RUNNING)
        return len(state)
