"""Attributes that devices of every kind show without declaring them (docs/reference/attributes.md)."""

from __future__ import annotations

import re

from migcompat.sysfs.tree import Tree

DEBUGFS = "kernel/debug/vfio"
"""VFIO's part of debugfs, where that is mounted as usual (kernel, Documentation/ABI/testing/debugfs-vfio)."""

_FEATURE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def of_driver(driver: str, version: str) -> dict[str, str]:
    """What the driver says. A module's version is the only version of today's migration streams there is."""
    return given(driver=driver, driver_version=version, software_version=version)


def migration_features(tree: Tree, device_id: str) -> dict[str, str]:
    """What the driver of the device can do, as VFIO lists it for debugging (since Linux 6.18).

    The file is written from flags, without asking the device (``vfio_device_features_read`` in
    ``drivers/vfio/debugfs.c``); its neighbour ``state`` does ask and is left alone.
    """
    if not tree.once(DEBUGFS, lambda: tree.is_directory(DEBUGFS)):
        return {}
    features = tree.lines(f"{DEBUGFS}/{device_id}/migration/features", [])
    return given(migration_features=as_set([word for word in features if _FEATURE.fullmatch(word)]))


def as_set(members: list[str]) -> str:
    """The canonical spelling of a set-valued attribute (semantics §3)."""
    return "+".join(sorted(set(members)))


def given(**attributes: str) -> dict[str, str]:
    """Those of *attributes* that have a value: what cannot be read is not shown."""
    return {name: value for name, value in attributes.items() if value}
