"""Bounded reads inside one device's sysfs directory (semantics §2, reading rules).

A declaration is written by a driver, and a driver may be wrong: reads take at most so many bytes, never
block (FIFOs and device nodes are not even opened), and never leave the device directory through a link.
"""

from __future__ import annotations

import errno
import os
import stat
from itertools import islice
from pathlib import Path

MAX_NAMES = 16_384
"""Names of one directory: far beyond what the bounds of semantics §2 let a declaration hold."""

_PAGE = 4096
"""Bytes that sysfs gives in one read where it has as many (``fs/kernfs/file.c``): fewer are the last."""

_CHUNK = 2 * _PAGE

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY


class ReadError(Exception):
    """Nothing could be read; the text says why, without naming the place or the device."""


class AbsentError(ReadError):
    """There is no such file or directory."""


class MalformedFileError(ReadError):
    """It counts as malformed (semantics §2): a FIFO or device, too long, a link that leaves or dangles."""


class UnreadableError(ReadError):
    """A read error: what is there cannot be known now."""


class DeviceDirectory:
    """Reads below one directory and nowhere else; *path* itself may be a link, as in ``/sys/bus``.

    Places are named relative to it, with slashes. Raises ReadError when there is no such directory.
    """

    def __init__(self, path: Path | str) -> None:
        self._root = _real_directory(os.fspath(path)).rstrip("/")
        self._directories = {"": self._root}
        self._located: dict[str, tuple[str, os.stat_result]] = {}

    @property
    def name(self) -> str:
        """The name of the directory that the path given resolves to."""
        return self._root.rpartition("/")[2]

    def has(self, name: str) -> bool:
        """Whether there is anything called *name*, be it a link that leads nowhere. Raises ReadError."""
        try:
            _status(f"{self._root}/{name}")
        except AbsentError:
            return False
        return True

    def is_directory(self, name: str) -> bool:
        """Whether *name* is a directory; a link is followed if it stays inside. Raises ReadError."""
        return stat.S_ISDIR(self._locate(name)[1].st_mode)

    def is_file(self, name: str) -> bool:
        """Whether *name* is a regular file, as :meth:`is_directory`. Raises ReadError."""
        return stat.S_ISREG(self._locate(name)[1].st_mode)

    def linked(self, name: str) -> DeviceDirectory:
        """The directory that *name* is or links to, wherever that is. Raises ReadError."""
        return DeviceDirectory(f"{self._root}/{name}")

    def names(self, name: str) -> list[str]:
        """The names in the directory *name*, sorted. Raises ReadError, MalformedFileError if too many."""
        return sorted(entry.name for entry in self._entries(name))

    def files(self, name: str) -> tuple[list[str], list[str]]:
        """The regular files in the directory *name*, and what is neither file nor directory, both sorted.

        From the directory itself, without a look at each file. Raises ReadError, MalformedFileError if there
        are too many names.
        """
        regular, others = [], []
        try:
            for entry in self._entries(name):
                if entry.is_file(follow_symlinks=False):
                    regular.append(entry.name)
                elif not entry.is_dir(follow_symlinks=False):
                    others.append(entry.name)
        except OSError as error:
            raise _translated(error) from error
        return sorted(regular), sorted(others)

    def read(self, name: str, limit: int) -> bytes:
        """The content of the regular file *name*, at most *limit* bytes. Raises ReadError."""
        place, status = self._locate(name)
        if not stat.S_ISREG(status.st_mode):
            raise MalformedFileError("is not a regular file")
        return self._read(place, limit)

    def read_listed(self, name: str, limit: int) -> bytes:
        """Like :meth:`read` for a *name* that :meth:`files` just told to be a regular file."""
        parent, _, last = name.rpartition("/")
        return self._read(f"{self._directory(parent)}/{last}", limit)

    def _entries(self, name: str) -> list[os.DirEntry[str]]:
        """What the directory *name* holds. Raises ReadError, MalformedFileError if too much."""
        try:
            with os.scandir(self._directory(name) or "/") as found:
                entries = list(islice(found, MAX_NAMES + 1))
        except OSError as error:
            raise _translated(error) from error
        if len(entries) > MAX_NAMES:
            raise MalformedFileError(f"holds more than {MAX_NAMES} names")
        return entries

    @staticmethod
    def _read(place: str, limit: int) -> bytes:
        try:
            handle = os.open(place, _OPEN)
        except OSError as error:
            raise _translated(error) from error
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise MalformedFileError("is not a regular file")
            return _read_all(handle, limit)
        except OSError as error:
            raise _translated(error) from error
        finally:
            os.close(handle)

    def _locate(self, name: str) -> tuple[str, os.stat_result]:
        """The path of *name* free of links, and its status; looked up once. Raises ReadError."""
        known = self._located.get(name)
        if known is not None:
            return known
        parent, _, last = name.rpartition("/")
        if last in ("", ".", ".."):
            raise MalformedFileError("is no name inside the device directory")
        place = f"{self._directory(parent)}/{last}"
        status = _status(place)
        if stat.S_ISLNK(status.st_mode):
            place = _real(place)
            if not place.startswith(f"{self._root}/"):
                raise MalformedFileError("is a link that leaves the device directory")
            status = _status(place)
        self._located[name] = place, status
        return place, status

    def _directory(self, name: str) -> str:
        """The path of the directory *name*, free of links; remembered, since many files share it."""
        known = self._directories.get(name)
        if known is None:
            known, status = self._locate(name)
            if not stat.S_ISDIR(status.st_mode):
                raise AbsentError("does not exist")
            self._directories[name] = known
        return known


def read_value(path: Path, *, limit: int, root: Path) -> bytes:
    """The content of the file *path* below the device directory *root*, at most *limit* bytes.

    Raises AbsentError, MalformedFileError or UnreadableError.
    """
    return DeviceDirectory(root).read(os.path.relpath(path, root), limit)


def _real_directory(path: str) -> str:
    """The path of a directory free of links, asked of the kernel in one step where ``/proc`` is there."""
    try:
        handle = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return _real(path)
    try:
        real = os.readlink(f"/proc/self/fd/{handle}")
    except OSError:
        return _real(path)
    finally:
        os.close(handle)
    return real if real.startswith("/") and os.path.isdir(real) else _real(path)


def _real(path: str) -> str:
    try:
        return os.path.realpath(path, strict=True)
    except OSError as error:
        if error.errno in _ABSENT and os.path.islink(path):
            raise MalformedFileError("is a link that leads nowhere") from error
        raise _translated(error) from error


def _status(path: str) -> os.stat_result:
    try:
        return os.lstat(path)
    except OSError as error:
        raise _translated(error) from error


def _read_all(handle: int, limit: int) -> bytes:
    chunks = []
    left = limit + 1
    while left > 0 and (chunk := os.read(handle, min(left, _CHUNK))):
        chunks.append(chunk)
        left -= len(chunk)
        if len(chunk) < _PAGE:
            break
    if left <= 0:
        raise MalformedFileError(f"is longer than {limit} bytes")
    return b"".join(chunks)


def _translated(error: OSError) -> ReadError:
    """What an error of the operating system means here; its text without the path."""
    if error.errno in _ABSENT:
        return AbsentError("does not exist")
    if error.errno == errno.ELOOP:
        return MalformedFileError("is a link that leads nowhere")
    return UnreadableError(f"cannot be read ({os.strerror(error.errno or errno.EIO)})")
