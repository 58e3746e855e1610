"""Recorded sysfs trees for tests: unpacking them, and giving their devices a ``migration/`` tree."""

from __future__ import annotations

import ctypes
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

DATA = Path(__file__).parents[1] / "data" / "sysfs"

KERNELS = ("linux-6.1-debian12-stock", "linux-6.12-debian13-cdev")
TREES = ("0-host-drivers", "1-sriov", "2-vfio-mdev", "3-pf-on-vfio-pci", "4-after-remove")

_SAFE = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
"""Python 3.11 has it from its fourth patch release on."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def unpack(kernel: str, tree: str, dest: Path) -> Path:
    """Unpack the recorded *tree* of *kernel* into *dest*; returns the sysfs root in it (``dest/sys``)."""
    with tarfile.open(DATA / kernel / f"{tree}.tar.gz") as archive:
        archive.extractall(dest, **_SAFE)  # type: ignore[arg-type]
    root = dest / "sys"
    root.chmod(0o755)
    return root


def add_migration(
    device_dir: Path, self_attributes: Mapping[str, str], entries: Sequence[Mapping[str, str]] = ()
) -> Path:
    """Give a device that has none a ``migration/`` tree in layout L1; returns its path.

    It is built aside and appears whole, so that a scan at any moment sees all of it or nothing. Raises
    FileExistsError when there is one already.
    """
    device = device_dir.resolve(strict=True)
    tree = device / "migration"
    if tree.exists():
        raise FileExistsError(f"{tree} exists: use set_migration to replace it")
    _build(device, self_attributes, entries).rename(tree)
    return tree


def set_migration(
    device_dir: Path, self_attributes: Mapping[str, str], entries: Sequence[Mapping[str, str]] = ()
) -> Path:
    """Replace a device's ``migration/`` tree, as a driver upgrade does; returns its path.

    Old and new are exchanged in one step. A device without a tree gets one.
    """
    device = device_dir.resolve(strict=True)
    tree = device / "migration"
    if not tree.exists():
        return add_migration(device, self_attributes, entries)
    fresh = _build(device, self_attributes, entries)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, bytes(fresh), _AT_FDCWD, bytes(tree), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        shutil.rmtree(fresh)
        raise OSError(code, os.strerror(code), str(tree))
    shutil.rmtree(fresh)
    return tree


def _build(device: Path, self_attributes: Mapping[str, str], entries: Sequence[Mapping[str, str]]) -> Path:
    fresh = Path(tempfile.mkdtemp(prefix=".migration-", dir=device))
    fresh.chmod(0o755)
    _write(fresh / "self", self_attributes)
    for index, entry in enumerate(entries):
        _write(fresh / ("compatible" if index == 0 else f"compatible{index}"), entry)
    return fresh


def _write(directory: Path, attributes: Mapping[str, str]) -> None:
    directory.mkdir()
    for name, value in attributes.items():
        (directory / name).write_text(f"{value}\n", encoding="ascii")
