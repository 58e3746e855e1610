"""Telling a device from another one that came in its place under the same name."""

from __future__ import annotations

import os
from typing import NamedTuple


class Appearance(NamedTuple):
    """Identities of the device's directory and of its binding to a driver; None for what is not there.

    The kernel numbers the entries of sysfs so that a number does not come back (``kernfs_new_node`` in
    fs/kernfs/dir.c: an index and its generation). A device that was removed and made again, and one that was
    unbound and bound again, is so another appearance, even when nobody looked in between.
    """

    device: tuple[int, int] | None
    binding: tuple[int, int] | None


def appearance(root: str | os.PathLike[str], path: str) -> Appearance:
    """The appearance of the device at *path*, relative to the sysfs *root*."""
    device = os.path.join(root, path)
    return Appearance(_identity(device), _identity(os.path.join(device, "driver")))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
