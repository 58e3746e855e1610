"""Can this device migrate? The kernel tells whoever opens it (``VFIO_DEVICE_FEATURE_MIGRATION``).

There are two ways to open a device (kernel, Documentation/driver-api/vfio.rst): its own character device,
bound to an iommufd (since Linux 6.6, where built in), and the group API with a type 1 IOMMU container. A
device without an IOMMU (``noiommu-…``) is opened in neither.

Opening counts as use: while it lasts, others get EBUSY, and a PCI function is reset before and after. So ask
only what nobody else may open, and not a PF that has VFs.
"""

from __future__ import annotations

import enum
import errno
import os
import re
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from migcompat.api.vfionode import Migration, MigrationState
from migcompat.vfio import uapi
from migcompat.vfio.calls import Calls

_CDEV = re.compile(r"vfio\d{1,9}")
_GROUP = re.compile(r"\d{1,9}")


class Why(enum.StrEnum):
    """Why it is not known whether a device can migrate (``TimedOut``, ``NotAsked``: callers decide that)."""

    IN_USE = "InUse"
    NOT_ALLOWED = "NotAllowed"
    NO_NODE = "NoNode"
    FAILED = "Failed"
    TIMED_OUT = "TimedOut"
    NOT_ASKED = "NotAsked"


class NotKnown(NamedTuple):
    """The device could not be asked; ``message`` names the step and the error."""

    why: Why
    message: str


class Handle(NamedTuple):
    """By what a device is opened: PCI address or UUID, group's number, ``vfioN`` (both empty without)."""

    name: str
    group: str = ""
    vfio_dev: str = ""


class _Failure(Exception):
    def __init__(self, answer: NotKnown) -> None:
        super().__init__(answer.message)
        self.answer = answer


_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV})
_FORBIDDEN = frozenset({errno.EPERM, errno.EACCES})


def probe(device: Handle, dev_root: Path, calls: Calls | None = None) -> Migration | NotKnown:
    """Open *device* through the nodes below *dev_root*, ask, and close it again. Never raises OSError.

    ENOTTY from the question itself is an answer: not supported. May block for as long as the driver does
    (a reset takes 0.1 s and more): call it in a thread.
    """
    answer = NotKnown(Why.NO_NODE, f"there is no device node for {device.name} below {dev_root}")
    for way in (_by_cdev, _by_group):
        with ExitStack() as opened:
            session = _Session(dev_root, calls or Calls(), opened)
            try:
                descriptor = way(session, device)
                if descriptor is not None:
                    return session.migration(descriptor)
            except _Failure as failure:
                if failure.answer.why is Why.IN_USE:
                    return failure.answer
                if answer.why is Why.NO_NODE:
                    answer = failure.answer
    return answer


def forbidden(dev_root: Path, calls: Calls | None = None) -> NotKnown | None:
    """Why this process may open no device at all, or None if it may. Opens none, only what all share."""
    answer = None
    for node in ("iommu", "vfio/vfio"):
        with ExitStack() as opened:
            try:
                _Session(dev_root, calls or Calls(), opened).open(node)
            except _Failure as failure:
                if failure.answer.why is Why.NOT_ALLOWED:
                    answer = failure.answer
            else:
                return None
    return answer


def _by_cdev(session: _Session, device: Handle) -> int | None:
    """The device opened through its own node; None when it has none."""
    if not _CDEV.fullmatch(device.vfio_dev):
        return None
    iommufd = session.open("iommu")
    descriptor = session.open(f"vfio/devices/{device.vfio_dev}")
    bind = uapi.bind_iommufd(iommufd)
    session.ioctl("VFIO_DEVICE_BIND_IOMMUFD", descriptor, uapi.DEVICE_BIND_IOMMUFD, bind)
    return descriptor


def _by_group(session: _Session, device: Handle) -> int | None:
    """The device opened through its group and a container; None when it has no group."""
    if not _GROUP.fullmatch(device.group):
        return None
    container = session.open("vfio/vfio")
    group = session.open(f"vfio/{device.group}")
    status = uapi.group_status()
    session.ioctl("VFIO_GROUP_GET_STATUS", group, uapi.GROUP_GET_STATUS, status)
    if not uapi.is_viable(status):
        raise _Failure(
            NotKnown(Why.FAILED, f"group {device.group} is not viable: the host uses a device of it")
        )
    session.ioctl("VFIO_GROUP_SET_CONTAINER", group, uapi.GROUP_SET_CONTAINER, uapi.container(container))
    session.ioctl("VFIO_SET_IOMMU", container, uapi.SET_IOMMU, uapi.TYPE1V2_IOMMU)
    name = uapi.device_name(device.name)
    return session.taken(session.ioctl("VFIO_GROUP_GET_DEVICE_FD", group, uapi.GROUP_GET_DEVICE_FD, name))


class _Session:
    """Calls on one device; what they open is closed with *opened*, last first."""

    def __init__(self, dev_root: Path, calls: Calls, opened: ExitStack) -> None:
        self._dev_root = dev_root
        self._calls = calls
        self._opened = opened

    def open(self, node: str) -> int:
        """A descriptor of the node below /dev; raises _Failure."""
        path = self._dev_root / node
        try:
            return self.taken(self._calls.open(os.fspath(path)))
        except OSError as error:
            why = Why.NOT_ALLOWED if error.errno in _FORBIDDEN else Why.FAILED
            why = Why.NO_NODE if error.errno in _MISSING else why
            raise _failure(f"opening {path}", error, why) from error

    def taken(self, descriptor: int) -> int:
        """*descriptor*, to be closed at the end."""
        self._opened.callback(self._close, descriptor)
        return descriptor

    def ioctl(self, what: str, descriptor: int, request: int, argument: int | bytearray) -> int:
        """What the call returns; raises _Failure.

        EPERM and EACCES are no lack of privilege here: VFIO_SET_IOMMU says so without interrupt remapping,
        VFIO_GROUP_GET_DEVICE_FD where a VF token is wanted.
        """
        try:
            return self._calls.ioctl(descriptor, request, argument)
        except OSError as error:
            raise _failure(what, error, Why.FAILED) from error

    def migration(self, descriptor: int) -> Migration:
        """The device's answer; raises _Failure."""
        feature = uapi.get_migration()
        try:
            self._calls.ioctl(descriptor, uapi.DEVICE_FEATURE, feature)
        except OSError as error:
            if error.errno == errno.ENOTTY:
                return Migration(False)
            raise _failure("VFIO_DEVICE_FEATURE_MIGRATION", error, Why.FAILED) from error
        flags = uapi.migration_flags(feature)
        states = tuple(state for state in MigrationState if uapi.MigrationFlag[state.name] in flags)
        return Migration(MigrationState.STOP_COPY in states, states)

    def _close(self, descriptor: int) -> None:
        with suppress(OSError):
            self._calls.close(descriptor)


def _failure(what: str, error: OSError, why: Why) -> _Failure:
    number = error.errno or 0
    if number == errno.EBUSY:
        why = Why.IN_USE
    return _Failure(NotKnown(why, f"{what}: {errno.errorcode.get(number, number)} ({os.strerror(number)})"))
