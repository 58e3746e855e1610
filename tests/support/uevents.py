"""A netlink socket of the kernel's device events, without a kernel."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque

from migcompat.sysfs.uevents import Listener

KERNEL = 0
"""The sender's port in the kernel's own messages."""


def message(action: str = "add", subsystem: str = "mdev", devpath: str = "/devices/virtual/x/y") -> bytes:
    """A message as the kernel writes it (lib/kobject_uevent.c)."""
    pairs = (f"ACTION={action}", f"DEVPATH={devpath}", f"SUBSYSTEM={subsystem}", "SEQNUM=815")
    return b"".join(part.encode() + b"\0" for part in (f"{action}@{devpath}", *pairs))


class FakeUevents:
    """Messages and errors in the order they were sent; readable while there are any, like a socket."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[bytes, int] | OSError] = deque()
        self._signal, self._readable = socket.socketpair()
        self._readable.setblocking(False)
        self.closed = False

    def listener(self) -> Listener:
        return Listener(self)

    def send(self, sent: bytes | None = None, sender: int = KERNEL) -> None:
        self._waiting.append((message() if sent is None else sent, sender))
        self._signal.send(b".")

    def fail(self, number: int = errno.ENOBUFS) -> None:
        """Let the next read fail; ENOBUFS: the kernel had to drop messages."""
        self._waiting.append(OSError(number, os.strerror(number)))
        self._signal.send(b".")

    def fileno(self) -> int:
        return self._readable.fileno()

    def recvfrom(self, bufsize: int, /) -> tuple[bytes, tuple[int, int]]:
        self._readable.recv(1)  # BlockingIOError when nothing is waiting
        taken = self._waiting.popleft()
        if isinstance(taken, OSError):
            raise taken
        sent, sender = taken
        return sent[:bufsize], (sender, 1)

    def close(self) -> None:
        self.closed = True
        self._signal.close()
        self._readable.close()
