"""Kernel uevents: hearing at once that a device came, went or changed.

The kernel sends every uevent that is not tagged with a network namespace to all network namespaces that the
initial user namespace owns, and lets anyone listen (``uevent_net_init`` with ``NL_CFG_F_NONROOT_RECV`` and
``uevent_net_broadcast_untagged`` in lib/kobject_uevent.c). So neither a capability nor the host's network is
needed, only a pod without a user namespace of its own.

An event is a hint to look again and nothing more: what is there is read from sysfs. So a message that is lost
(the socket then says ENOBUFS) costs no more than one look.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import NamedTuple, Protocol

PROTOCOL = 15
"""``NETLINK_KOBJECT_UEVENT`` (include/uapi/linux/netlink.h)."""
GROUP = 1
"""The multicast group of the kernel's own messages; 2 is udev's."""

MESSAGE_LIMIT = 8192
"""Bytes read of one message. The kernel's have 2048 (``UEVENT_BUFFER_SIZE``), and the action and the path."""
RECEIVE_BUFFER = 1024 * 1024
"""Bytes asked for with SO_RCVBUF; what is given is at most ``net.core.rmem_max``."""
DRAIN_LIMIT = 1024
"""Messages taken at once, so that a storm cannot keep the process from anything else."""

SUBSYSTEMS = frozenset({"drivers", "iommu", "mdev", "module", "pci", "vfio", "vfio-dev"})
"""Whose events may change what a scan finds."""


MOUNTS = Path("/proc/self/mountinfo")
UID_MAP = Path("/proc/self/uid_map")
ALL_IDS = ["0", "0", "4294967295"]
"""``uid_map`` of the initial user namespace (user_namespaces(7))."""


def tell_of(root: Path) -> bool:
    """Whether the kernel's events, if they can be listened to, tell of changes in the tree at *root*.

    They do where that is a mounted sysfs, not a tree that looks like one, and this process is in the initial
    user namespace: in others it may listen but hears nothing.
    """
    try:
        status = root.stat()
        mounts = MOUNTS.read_text(errors="replace").splitlines()
        ids = UID_MAP.read_text().split()
    except OSError:
        return False
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    return ids == ALL_IDS and any(
        mount.split()[2] == device and mount.partition(" - ")[2].startswith("sysfs ") for mount in mounts
    )


class Uevent(NamedTuple):
    """One event, for example ``add``, ``/devices/virtual/mtty/mtty/<uuid>``, ``mdev``."""

    action: str
    devpath: str
    subsystem: str

    @property
    def relevant(self) -> bool:
        """Whether it may be about a VFIO device."""
        return self.subsystem in SUBSYSTEMS


class Heard(NamedTuple):
    """How many events about VFIO devices were heard, of what, and how often the kernel had to drop some."""

    relevant: int = 0
    overruns: int = 0
    devpaths: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.relevant or self.overruns)


class Datagrams(Protocol):
    """What a :class:`Listener` needs of a netlink socket."""

    def fileno(self) -> int:
        """The file descriptor to wait on."""

    def recvfrom(self, bufsize: int, /) -> tuple[bytes, tuple[int, int]]:
        """One message and its sender (port, groups); raises OSError."""

    def close(self) -> None:
        """End."""


def parse(message: bytes) -> Uevent | None:
    r"""The event in ``ACTION@DEVPATH\0KEY=VALUE\0…``; None when *message* is none. Never raises."""
    head, *pairs = message.split(b"\0")
    action, at, devpath = head.partition(b"@")
    if not at or not action.isalpha() or not devpath.startswith(b"/"):
        return None
    subsystem = b""
    for pair in pairs:
        key, equals, value = pair.partition(b"=")
        if equals and key == b"SUBSYSTEM":
            subsystem = value
    return Uevent(*(part.decode("utf-8", "backslashreplace") for part in (action, devpath, subsystem)))


class Listener:
    """Takes the kernel's messages from a socket that does not block."""

    def __init__(self, messages: Datagrams) -> None:
        self._messages = messages

    def fileno(self) -> int:
        """The file descriptor that turns readable when there is something to :meth:`drain`."""
        return self._messages.fileno()

    def drain(self) -> Heard:
        """Take what has arrived, at most ``DRAIN_LIMIT`` messages. Raises OSError when the socket is broken.

        Counted are messages of the kernel (sender 0) about ``SUBSYSTEMS``; all others are ignored.
        """
        relevant = overruns = 0
        devpaths = set()
        for _ in range(DRAIN_LIMIT):
            try:
                message, (sender, _groups) = self._messages.recvfrom(MESSAGE_LIMIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                overruns += 1
                continue
            event = parse(message) if sender == 0 else None
            if event is not None and event.relevant:
                relevant += 1
                devpaths.add(event.devpath)
        return Heard(relevant, overruns, frozenset(devpaths))

    def close(self) -> None:
        """Stop listening."""
        self._messages.close()


def listen() -> Listener:
    """Hear the kernel from now on. Raises OSError where there is no such socket."""
    messages = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, PROTOCOL
    )
    try:
        messages.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        messages.bind((0, GROUP))
    except OSError:
        messages.close()
        raise
    return Listener(messages)
