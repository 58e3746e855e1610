"""Who opened a device node, and when: asked of the kernel, not of the process (inotify(7))."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_OPEN, _IN_CLOSE = 0x20, 0x08 | 0x10
_EVENT = struct.Struct("iIII")


class Opens:
    """Openings of the nodes in one directory: ``opened`` and ``closed`` count them by node."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.opened: dict[str, int] = {}
        self.closed: dict[str, int] = {}

    def take(self) -> None:
        """Count what has happened until now."""
        while True:
            try:
                events = os.read(self._descriptor, 65536)
            except BlockingIOError:
                return
            while events:
                _, mask, _, length = _EVENT.unpack_from(events)
                name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode()
                events = events[_EVENT.size + length :]
                counted = self.opened if mask & _IN_OPEN else self.closed
                counted[name] = counted.get(name, 0) + 1


@contextmanager
def watched(directory: Path) -> Iterator[Opens]:
    """Openings of the nodes in *directory* from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if libc.inotify_add_watch(descriptor, os.fsencode(directory), _IN_OPEN | _IN_CLOSE) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(directory))
        yield Opens(descriptor)
    finally:
        os.close(descriptor)
