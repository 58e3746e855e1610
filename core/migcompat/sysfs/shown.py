"""Attributes that devices of every kind show without declaring them (docs/reference/attributes.md)."""

from __future__ import annotations

import re

from migcompat.sysfs.tree import Tree

DEBUGFS = "kernel/debug/vfio"
"""VFIO's part of debugfs, where that is mounted as usual (kernel, Documentation/ABI/testing/debugfs-vfio)."""

NO_MIGRATION = "none"
"""Among migration features: VFIO knows the device, and its driver cannot migrate it."""

_FEATURE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def of_driver(driver: str, version: str) -> dict[str, str]:
    """What the driver says. A module's version is the only version of today's migration streams there is."""
    return given(driver=driver, driver_version=version, software_version=version)


def migration_features(tree: Tree, device_id: str) -> dict[str, str]:
    """What the driver of the device can do, as VFIO lists it for debugging.

    Since Linux 6.8 a device has a directory there, and in it ``migration`` if its driver can migrate it
    (``vfio_device_debugfs_init`` in ``drivers/vfio/debugfs.c``); since 6.18 that holds ``features``. The file
    is written from flags, without asking the device (``vfio_device_features_read``); its neighbour ``state``
    does ask and is left alone.
    """
    if not tree.once(DEBUGFS, lambda: tree.is_directory(DEBUGFS)):
        return {}
    place = f"{DEBUGFS}/{device_id}"
    try:
        can_migrate = "migration" in tree.names(place)
    except OSError:
        return {}
    if not can_migrate:
        return given(migration_features=NO_MIGRATION if tree.is_directory(place) else "")
    features = tree.lines(f"{place}/migration/features", [])
    return given(migration_features=as_set([word for word in features if _FEATURE.fullmatch(word)]))


def as_set(members: list[str]) -> str:
    """The canonical spelling of a set-valued attribute (semantics §3)."""
    return "+".join(sorted(set(members)))


def given(**attributes: str) -> dict[str, str]:
    """Those of *attributes* that have a value: what cannot be read is not shown."""
    return {name: value for name, value in attributes.items() if value}
