"""Hearing at once that files of directories come and go (inotify(7)).

Everything that a kubelet does to its plugins shows in two directories: it makes its sockets anew when it
starts, removes ours, and replaces its checkpoint when devices are allocated. What is heard is a hint to look.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x40, 0x80, 0x100, 0x200
IN_ONLYDIR = 0x01000000
"""``include/uapi/linux/inotify.h``."""
MASK = IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE | IN_ONLYDIR

_LIMIT = 64 * 1024
"""Bytes taken at once."""


class Directories:
    """Watches *paths*. Where that is not possible, nothing is heard and :meth:`watched` says so."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._libc = ctypes.CDLL(None)
        self._descriptor = -1

    def open(self) -> int | None:
        """A descriptor, readable when there is something to :meth:`drain`; None where that is impossible."""
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        return self._descriptor if self._descriptor >= 0 else None

    def watched(self) -> bool:
        """Whether all directories are watched from now on; one that was removed and made anew is again."""
        watched = True
        for path in self._paths:
            watched &= self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), MASK) >= 0
        return watched

    def drain(self) -> None:
        """Take what has been heard."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._descriptor, _LIMIT):
                continue

    def close(self) -> None:
        """Hear no more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
