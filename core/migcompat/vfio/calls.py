"""The system calls that reach a VFIO device; the only ioctls of the project."""

from __future__ import annotations

import fcntl
import os


class Calls:
    """open, ioctl and close, as the operating system has them. All raise OSError."""

    def open(self, path: str) -> int:
        """A descriptor of the character device at *path*, for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)

    def ioctl(self, descriptor: int, request: int, argument: int | bytearray) -> int:
        """What the kernel returns; a bytearray is passed by address and filled in."""
        return fcntl.ioctl(descriptor, request, argument)

    def close(self, descriptor: int) -> None:
        """Give *descriptor* back."""
        os.close(descriptor)
