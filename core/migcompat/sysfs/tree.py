"""Cheap look-ups in one sysfs tree, for scans of a thousand devices.

Plain strings and single system calls instead of :mod:`pathlib`: a scan is repeated every few seconds on
every node. Nothing here walks a directory tree or follows a chain of links, so loops cannot hold it up.
Attribute files are opened non-blocking and not through links, and one bounded read is made of each;
``config``, ``rom`` and ``resource*``, whose mere reading can disturb a device, are never opened.
"""

from __future__ import annotations

import os
import re
import stat
from posixpath import basename, dirname, join, normpath

from migcompat.sysfs.found import Vanished

ATTRIBUTE_LIMIT = 4096
"""sysfs attributes are at most one page (kernel, Documentation/filesystems/sysfs.rst)."""

PCI_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
"""``domain:bus:device.function``; domains above ffff exist behind Intel VMD."""

NO_IOMMU = "vfio-noiommu"
"""The name of IOMMU groups that VFIO makes up: of mdevs, and of PCI functions in no-IOMMU mode."""

_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_VFIO_DEV = re.compile(r"vfio\d{1,9}")
_PCI_WORD = re.compile(r"0x[0-9a-f]{4}")
_INTEGER = re.compile(r"-?\d{1,9}")


def printable(name: str) -> str:
    """*name* as printable ASCII: names on disk may hold any bytes, JSON and labels may not."""
    if name.isascii() and name.isprintable():
        return name
    raw = os.fsencode(name)
    return "".join(chr(byte) if 0x20 <= byte <= 0x7E else f"\\x{byte:02x}" for byte in raw)


class Tree:
    """One sysfs tree; paths given and returned are relative to its root.

    Drivers' versions and parents' facts are remembered for the lifetime of the object, so make a new one
    for each scan. What is wrong with a file is appended to the ``notes`` that the caller passes, in words;
    the scan of one device never fails because of one file.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/") or "/"
        self._versions: dict[str, str] = {}
        self._functions: dict[str, tuple[str, str]] = {}
        self._nodes: dict[str, int | None] = {}

    def absolute(self, path: str) -> str:
        """*path* below the root."""
        return f"{self.root}/{path}"

    def names(self, directory: str) -> list[str]:
        """The entries of *directory*, sorted; none when there is no such directory. Raises OSError."""
        try:
            return sorted(os.listdir(f"{self.root}/{directory}"))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def is_directory(self, path: str) -> bool:
        """Whether *path*, or what it links to, is there and a directory."""
        return os.path.isdir(f"{self.root}/{path}")

    def link(self, path: str, notes: list[str]) -> str:
        """The last component of what *path* links to; empty when there is no such link."""
        try:
            return printable(basename(os.readlink(f"{self.root}/{path}")))
        except FileNotFoundError:
            return ""
        except OSError as error:
            notes.append(f"{basename(path)} is no readable link ({error.strerror})")
            return ""

    def device_path(self, entry: str) -> str:
        """Where the device of the bus' *entry* (``bus/pci/devices/…``) lies.

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
        text = raw.decode("ascii", "replace").strip(" \t\r\n")
        if not text.isascii() or (text and not text.isprintable()):
            notes.append(f"{basename(path)} is not printable ASCII")
            return ""
        return text

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
        key = f"{bus}/{driver}"
        if driver and key not in self._versions:
            module = self.link(f"bus/{bus}/drivers/{driver}/module", []) or driver.replace("-", "_")
            self._versions[key] = self.value(f"module/{module}/version", [])
        return self._versions.get(key, "")

    def pci_id(self, function: str, notes: list[str]) -> tuple[str, str]:
        """``vendor`` + ``device`` as 8 hex digits, and ``revision``, of the PCI function at *function*."""
        words = []
        for name in ("vendor", "device"):
            word = self.value(f"{function}/{name}", notes)
            if not _PCI_WORD.fullmatch(word):
                notes.append(f"{name} reads '{word[:16]}', not 0x and 4 hex digits")
                return "", ""
            words.append(word[2:])
        return "".join(words), self.value(f"{function}/revision", notes)

    def numa_node(self, device: str, notes: list[str]) -> int | None:
        """``numa_node`` of *device*; None when it has none or the kernel does not know it (-1)."""
        text = self.value(f"{device}/numa_node", notes)
        if not text:
            return None
        if not _INTEGER.fullmatch(text):
            notes.append(f"numa_node reads '{text[:16]}', not a number")
            return None
        return int(text) if int(text) >= 0 else None

    def function_above(self, device: str) -> tuple[str, str]:
        """PCI id and revision of the nearest PCI function above *device*; empty where there is none."""
        parent = dirname(device)
        if parent not in self._functions:
            found = ("", "")
            if PCI_ADDRESS.fullmatch(basename(parent)):
                found = self.pci_id(parent, [])
            elif parent.startswith("devices/"):
                found = self.function_above(parent)
            self._functions[parent] = found
        return self._functions[parent]

    def node_above(self, device: str) -> int | None:
        """The NUMA node of the nearest device above *device* that knows it."""
        parent = dirname(device)
        if not parent.startswith("devices/"):
            return None
        if parent not in self._nodes:
            own = self.numa_node(parent, [])
            self._nodes[parent] = own if own is not None else self.node_above(parent)
        return self._nodes[parent]
