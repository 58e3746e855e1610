"""Cheap look-ups in one sysfs tree, for scans of a thousand devices on whatever bus.

Plain strings and single system calls instead of :mod:`pathlib`: a scan is repeated every few seconds on
every node. Nothing here walks a directory tree or follows a chain of links, so loops cannot hold it up.
Attribute files are opened non-blocking and not through links, and one bounded read is made of each;
``config``, ``rom`` and ``resource*``, whose mere reading can disturb a device, are never opened.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from posixpath import basename, dirname, join, normpath
from typing import Any, TypeVar

from migcompat.sysfs.found import Vanished
from migcompat.sysfs.progress import Progress

ATTRIBUTE_LIMIT = 4096
"""sysfs attributes are at most one page (kernel, Documentation/filesystems/sysfs.rst)."""

_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_VFIO_DEV = re.compile(r"vfio\d{1,9}")
_INTEGER = re.compile(r"-?\d{1,9}")
_DRIVER = re.compile(r"(?:.*/)?bus/([^/]+)/drivers/([^/]+)")

T = TypeVar("T")


def printable(name: str) -> str:
    """*name* as printable ASCII: names on disk may hold any bytes, JSON and labels may not."""
    if name.isascii() and name.isprintable():
        return name
    raw = os.fsencode(name)
    return "".join(chr(byte) if 0x20 <= byte <= 0x7E else f"\\x{byte:02x}" for byte in raw)


def ancestors(device: str) -> Iterator[str]:
    """The directories above *device*, nearest first, below ``devices/``."""
    while (device := dirname(device)).startswith("devices/"):
        yield device


class Tree:
    """One sysfs tree; paths given and returned are relative to its root.

    What many devices share is remembered for the lifetime of the object, so make a new one for each scan.
    What is wrong with a file is appended to the ``notes`` that the caller passes, in words; the scan of one
    device never fails because of one file. *progress* is told of what many devices share.
    """

    def __init__(self, root: str, progress: Progress | None = None) -> None:
        self.root = root.rstrip("/") or "/"
        self._progress = progress or Progress()
        self._remembered: dict[Hashable, Any] = {}

    def absolute(self, path: str) -> str:
        """*path* below the root."""
        return f"{self.root}/{path}"

    def once(self, key: Hashable, look: Callable[[], T]) -> T:
        """What *look* says, asked once a scan for each *key*; not remembered when it raises.

        Raises ValueError where an earlier look for *key* still hangs.
        """
        try:
            found: T = self._remembered[key]
        except KeyError:
            found = self._remembered[key] = self._progress.step(key, look)
        return found

    def names(self, directory: str) -> list[str]:
        """The entries of *directory*, sorted; none when there is no such directory. Raises OSError."""
        try:
            return sorted(os.listdir(f"{self.root}/{directory}"))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def is_directory(self, path: str) -> bool:
        """Whether *path*, or what it links to, is there and a directory."""
        return os.path.isdir(f"{self.root}/{path}")

    def exists(self, path: str) -> bool:
        """Whether anything is at *path*, be it a link that leads nowhere."""
        return os.path.lexists(f"{self.root}/{path}")

    def target(self, path: str, notes: list[str]) -> str:
        """What the link *path* says, as it stands; empty when there is no such link."""
        try:
            return os.readlink(f"{self.root}/{path}")
        except FileNotFoundError:
            return ""
        except OSError as error:
            notes.append(f"{basename(path)} is no readable link ({error.strerror})")
            return ""

    def link(self, path: str, notes: list[str]) -> str:
        """The last component of what *path* links to; empty when there is no such link."""
        return printable(basename(self.target(path, notes)))

    def device_path(self, entry: str) -> str:
        """Where the device of the bus' *entry* (``bus/…/devices/…``) lies.

        The kernel's links lead to ``devices/…`` in one step; a plain directory is taken as it is. Raises
        :class:`Vanished` when nothing is there, ValueError when the link leads elsewhere.
        """
        try:
            target = os.readlink(f"{self.root}/{entry}")
        except FileNotFoundError as error:
            raise Vanished from error
        except OSError:
            return entry
        path = normpath(join(dirname(entry), target))
        if not path.startswith("devices/"):
            raise ValueError(f"the link leads to {printable(target)}, not below devices/ of this sysfs")
        return path

    def value(self, path: str, notes: list[str]) -> str:
        """The content of one attribute file, stripped; empty when it is absent or unusable (then noted)."""
        text = self._text(path, notes)
        if text and not (text.isascii() and text.isprintable()):
            notes.append(f"{basename(path)} is not printable ASCII")
            return ""
        return text

    def lines(self, path: str, notes: list[str]) -> list[str]:
        """The lines of one attribute file, stripped, without empty ones; none as for :meth:`value`."""
        lines = [line.strip(" \t\r") for line in self._text(path, notes).split("\n")]
        if not all(line.isascii() and line.isprintable() for line in lines):
            notes.append(f"{basename(path)} is not printable ASCII")
            return []
        return [line for line in lines if line]

    def _text(self, path: str, notes: list[str]) -> str:
        try:
            descriptor = os.open(f"{self.root}/{path}", _OPEN)
        except FileNotFoundError:
            return ""
        except OSError as error:
            notes.append(f"{basename(path)} cannot be opened ({error.strerror})")
            return ""
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                notes.append(f"{basename(path)} is not a plain file")
                return ""
            raw = os.read(descriptor, ATTRIBUTE_LIMIT + 1)
        except OSError as error:
            notes.append(f"{basename(path)} cannot be read ({error.strerror})")
            return ""
        finally:
            os.close(descriptor)
        if len(raw) > ATTRIBUTE_LIMIT:
            notes.append(f"{basename(path)} is longer than {ATTRIBUTE_LIMIT} bytes")
            return ""
        return raw.decode("ascii", "replace").strip(" \t\r\n")

    def vfio_dev(self, device: str, notes: list[str]) -> str:
        """The name of the device's VFIO character device (``vfio3``, since Linux 6.1), or empty."""
        try:
            names = os.listdir(f"{self.root}/{device}/vfio-dev")
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except OSError as error:
            notes.append(f"vfio-dev cannot be listed ({error.strerror})")
            return ""
        return min((name for name in names if _VFIO_DEV.fullmatch(name)), default="")

    def driver_version(self, bus: str, driver: str) -> str:
        """``/sys/module/<module>/version`` of *driver*; empty when it has none, as most in-tree drivers.

        The module is the one that the driver's ``module`` link names (``vfio-pci`` lives in ``vfio_pci``).
        """
        if not driver:
            return ""

        def look() -> str:
            module = self.link(f"bus/{bus}/drivers/{driver}/module", []) or driver.replace("-", "_")
            return self.value(f"module/{module}/version", [])

        return self.once(("driver version", bus, driver), look)

    def version_at(self, device: str) -> str:
        """:meth:`driver_version` of the driver that *device* is bound to, whatever bus that is on."""

        def look() -> str:
            match = _DRIVER.fullmatch(self.target(f"{device}/driver", []))
            return self.driver_version(match[1], match[2]) if match else ""

        return self.once(("version at", device), look)

    def numa_node(self, device: str, notes: list[str]) -> int | None:
        """``numa_node`` of *device*; None when it has none or the kernel does not know it (-1)."""
        text = self.value(f"{device}/numa_node", notes)
        if not text:
            return None
        if not _INTEGER.fullmatch(text):
            notes.append(f"numa_node reads '{text[:16]}', not a number")
            return None
        return int(text) if int(text) >= 0 else None

    def node_above(self, device: str) -> int | None:
        """The NUMA node of the nearest device above *device* that knows it."""
        for above in ancestors(device):
            node = self.once(("numa node", above), partial(self.numa_node, above, []))
            if node is not None:
                return node
        return None
