"""The kernel's side of VFIO, as far as a question to a device needs it: nodes, groups, containers, iommufd.

Its numbers are written out here once more, from include/uapi/linux/vfio.h, so that both must be right.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

from migcompat.vfio.calls import Calls

BASE = 0x3B64
NAMES = {
    BASE + 2: "SET_IOMMU",
    BASE + 3: "GROUP_GET_STATUS",
    BASE + 4: "GROUP_SET_CONTAINER",
    BASE + 6: "GROUP_GET_DEVICE_FD",
    BASE + 17: "DEVICE_FEATURE",
    BASE + 18: "DEVICE_BIND_IOMMUFD",
}
GET_MIGRATION = 1 << 16 | 1
STOP_COPY, P2P, PRE_COPY = 1, 2, 4


@dataclass
class Plugged:
    """A device. ``migration``: its flags, or minus the errno of the question. ``hang``: until it is set."""

    name: str
    group: str
    vfio_dev: str
    migration: int
    hang: threading.Event | None = None
    asked: int = 0


@dataclass
class _Open:
    """What a descriptor stands for. ``bound``: what the calls before have put together."""

    node: str
    device: Plugged | None = None
    bound: set[str] = field(default_factory=set)


class FakeVfio(Calls):
    """Keeps the kernel's order: no question before the group has a container and an IOMMU, or an iommufd.

    ``failing``: errno by node (``vfio/vfio``) or by call (``SET_IOMMU``). ``opened``: nodes opened, in order.
    ``cdevs``: whether there are devices' own nodes and ``/dev/iommu``. A group or a device that is open
    cannot be opened once more.
    """

    def __init__(self, dev_root: Path, *, cdevs: bool = True) -> None:
        self.dev_root = dev_root
        self.cdevs = cdevs
        self.failing: dict[str, int] = {}
        self.opened: list[str] = []
        self.calls: list[str] = []
        self._plugged: dict[str, Plugged] = {}
        self._open: dict[int, _Open] = {}
        self._next = 1000
        self._lock = threading.Lock()

    def plug(
        self,
        name: str,
        migration: int = STOP_COPY | P2P | PRE_COPY,
        *,
        group: str = "12",
        vfio_dev: str = "vfio3",
        hang: threading.Event | None = None,
    ) -> Plugged:
        self._plugged[name] = Plugged(name, group, vfio_dev, migration, hang)
        return self._plugged[name]

    def unplug(self, name: str) -> None:
        del self._plugged[name]

    @property
    def left_open(self) -> list[str]:
        """What has not been closed."""
        return [held.node for held in self._open.values()]

    def open(self, path: str) -> int:
        node = str(Path(path).relative_to(self.dev_root))
        with self._lock:
            self.opened.append(node)
            self._fail(node)
            if node == "vfio/vfio" or (node == "iommu" and self.cdevs):
                return self._descriptor(_Open(node))
            device = next((d for d in self._plugged.values() if self._is_of(node, d)), None)
            if device is None:
                raise _error(errno.ENOENT)
            if node in self.left_open:
                raise _error(errno.EBUSY)
            own = node.startswith("vfio/devices/")
            return self._descriptor(_Open(node, device if own else None))

    def ioctl(self, descriptor: int, request: int, argument: int | bytearray) -> int:
        name = NAMES[request]
        self.calls.append(name)
        held = self._open[descriptor]
        if name == "DEVICE_FEATURE":
            return self._feature(held, argument)
        with self._lock:
            self._fail(name)
            return {
                "GROUP_GET_STATUS": self._status,
                "GROUP_SET_CONTAINER": self._set_container,
                "SET_IOMMU": self._set_iommu,
                "GROUP_GET_DEVICE_FD": self._device_fd,
                "DEVICE_BIND_IOMMUFD": self._bind,
            }[name](held, argument)

    def close(self, descriptor: int) -> None:
        with self._lock:
            del self._open[descriptor]  # KeyError: closed twice

    def _status(self, held: _Open, argument: int | bytearray) -> int:
        assert isinstance(argument, bytearray)
        assert struct.unpack("=II", argument)[0] == 8
        argument[:] = struct.pack("=II", 8, 0 if "unviable" in self.failing else 1)
        return 0

    def _set_container(self, held: _Open, argument: int | bytearray) -> int:
        assert isinstance(argument, bytearray)
        container = self._open[struct.unpack("=i", argument)[0]]
        assert container.node == "vfio/vfio"
        container.bound.add(held.node)
        held.bound.add("container")
        return 0

    def _set_iommu(self, held: _Open, argument: int | bytearray) -> int:
        assert argument == 3, "VFIO_TYPE1v2_IOMMU"
        assert held.bound, "a container without a group takes no IOMMU (EINVAL)"
        for other in self._open.values():
            if other.node in held.bound:
                other.bound.add("iommu")
        return 0

    def _device_fd(self, held: _Open, argument: int | bytearray) -> int:
        assert isinstance(argument, bytearray)
        assert {"container", "iommu"} <= held.bound
        assert argument.endswith(b"\0")
        device = self._plugged.get(argument[:-1].decode())
        if device is None or f"vfio/{device.group}" != held.node:
            raise _error(errno.ENODEV)
        return self._descriptor(_Open(f"device {device.name}", device, {"iommu"}))

    def _bind(self, held: _Open, argument: int | bytearray) -> int:
        assert isinstance(argument, bytearray)
        size, flags, iommufd, _ = struct.unpack("=IIiI", argument)
        assert (size, flags, self._open[iommufd].node) == (16, 0, "iommu")
        held.bound.add("iommu")
        return 0

    def _feature(self, held: _Open, argument: int | bytearray) -> int:
        assert isinstance(argument, bytearray)
        assert struct.unpack("=IIQ", argument) == (16, GET_MIGRATION, 0)
        device = held.device
        assert device is not None
        assert "iommu" in held.bound, "asked before it was opened for use (EINVAL)"
        device.asked += 1
        if device.hang is not None:
            device.hang.wait()
        if device.migration < 0:
            raise _error(-device.migration)
        argument[8:] = struct.pack("=Q", device.migration)
        return 0

    def _is_of(self, node: str, device: Plugged) -> bool:
        own = self.cdevs and node == f"vfio/devices/{device.vfio_dev}"
        return own or node == f"vfio/{device.group}"

    def _fail(self, what: str) -> None:
        if what in self.failing:
            raise _error(self.failing[what])

    def _descriptor(self, held: _Open) -> int:
        self._next += 1
        self._open[self._next] = held
        return self._next


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
