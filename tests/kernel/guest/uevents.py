"""Counts the kernel's device events, whoever else listens."""

from __future__ import annotations

import socket
import threading
from types import TracebackType

_KOBJECT_UEVENT = 15
_KERNEL = 1
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python does not name it


class Counted:
    """``events``: how many there were while the context was entered."""

    def __init__(self) -> None:
        self.events = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _KOBJECT_UEVENT)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 * 1024 * 1024)
        self._socket.bind((0, _KERNEL))
        self._socket.settimeout(0.2)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._count)

    def __enter__(self) -> Counted:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        self._socket.close()

    def _count(self) -> None:
        """Until nothing more comes after the end."""
        while True:
            try:
                self._socket.recv(8192)
                self.events += 1
            except TimeoutError:
                if self._ending.is_set():
                    return
