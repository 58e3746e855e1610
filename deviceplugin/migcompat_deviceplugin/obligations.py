"""Obligations: dynamic attributes to be written to a device before it is handed over (semantics §3)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

VALUE_LIMIT = 4096
_PATH = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY


class ObligationError(Exception):
    """An attribute could not be written, or does not read back as written; the text says which and why."""


def fulfil(device_dir: Path, obligations: Mapping[str, str]) -> None:
    """Write each attribute to the same-named file of *device_dir*, unless it reads so already; read back.

    Files are opened by one path component below the directory's descriptor and not through links. May block
    for as long as the driver does: call it in a thread. Raises ObligationError.
    """
    try:
        directory = os.open(device_dir, _PATH)
    except OSError as error:
        raise ObligationError(f"the device directory cannot be opened ({error.strerror})") from error
    try:
        for name, value in sorted(obligations.items()):
            if _read(directory, name) != value:
                _write(directory, name, value)
        for name, value in sorted(obligations.items()):
            found = _read(directory, name)
            if found != value:
                raise ObligationError(f"{name} reads '{found[:64]}' after '{value[:64]}' was written to it")
    finally:
        os.close(directory)


def _open(directory: int, name: str, flags: int) -> int:
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise ObligationError(f"{name!r} is not the name of an attribute")
    try:
        descriptor = os.open(name, flags | _FILE, dir_fd=directory)
    except OSError as error:
        what = "is a link" if error.errno == errno.ELOOP else f"cannot be opened ({error.strerror})"
        raise ObligationError(f"{name} {what}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ObligationError(f"{name} is not a plain file")
    return descriptor


def _write(directory: int, name: str, value: str) -> None:
    descriptor = _open(directory, name, os.O_WRONLY | os.O_TRUNC)
    try:
        raw = value.encode()
        if os.write(descriptor, raw) != len(raw):
            raise ObligationError(f"{name} took only a part of '{value[:64]}'")
    except OSError as error:
        raise ObligationError(f"{name} does not take '{value[:64]}' ({error.strerror})") from error
    finally:
        os.close(descriptor)


def _read(directory: int, name: str) -> str:
    """The value, stripped as a reader does; attributes that cannot be read make reading back impossible."""
    descriptor = _open(directory, name, os.O_RDONLY)
    try:
        return os.read(descriptor, VALUE_LIMIT + 1).decode("ascii", "replace").strip(" \t\r\n")
    except OSError as error:
        raise ObligationError(f"{name} cannot be read back ({error.strerror})") from error
    finally:
        os.close(descriptor)
