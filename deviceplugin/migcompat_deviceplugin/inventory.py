"""The devices of one scan as the kubelet counts them: pools, health. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from migcompat.api.names import RESOURCE_DOMAIN
from migcompat.api.vfionode import Health, Migration
from migcompat.engine.declaration import Kind
from migcompat.sysfs.resources import resource_name
from migcompat.sysfs.scan import FoundDevice, ScanResult

ID_LIMIT = 63
"""Characters of a device id that the kubelet takes."""


NOT_ASKED_YET = "it has not been asked yet whether it can migrate"


class Device(msgspec.Struct, frozen=True):
    """A device in its pool. ``served``: whether the kubelet may hear of it (it has a usable id and pool).

    ``waiting``: it is not advertised before it has been asked whether it can migrate; ``migration``: what it
    said, None where that is not known.
    """

    found: FoundDevice
    resource: str
    served: bool = True
    waiting: bool = False
    migration: Migration | None = None

    @property
    def id(self) -> str:
        """PCI address or mdev UUID."""
        return self.found.id

    @property
    def health(self) -> Health:
        """Unhealthy as long as there is a problem with it."""
        return Health.UNHEALTHY if self.problem else Health.HEALTHY

    @property
    def problem(self) -> str:
        """Why nobody may have it, empty if somebody may."""
        return self.found.problem or (NOT_ASKED_YET if self.waiting else "")


Inventory = Mapping[str, Device]
"""Devices by id."""


def take(result: ScanResult, before: Inventory, domain: str = RESOURCE_DOMAIN) -> dict[str, Device]:
    """The inventory that *result* shows.

    A device whose type (or PCI id) cannot be read for the moment stays, unhealthy, in the pool where it was
    *before*; one that was never readable has no pool that means anything and is published but not served.
    """
    devices: dict[str, Device] = {}
    for found in result.devices:
        old = before.get(found.id)
        readable = bool(found.type if found.kind is Kind.MDEV else found.pci_id)
        if readable or old is None:
            served = readable and len(found.id) <= ID_LIMIT
            devices[found.id] = Device(found, resource_name(found, domain), served)
        else:
            devices[found.id] = Device(found, old.resource, old.served)
    return devices


def pools(inventory: Inventory) -> dict[str, dict[str, Device]]:
    """The devices to be served, by resource name, then by id."""
    found: dict[str, dict[str, Device]] = {}
    for device in inventory.values():
        if device.served and not device.waiting:
            found.setdefault(device.resource, {})[device.id] = device
    return found


class Change(msgspec.Struct, frozen=True):
    """What differs between two inventories, as ids; ``altered`` are in both with another content."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    altered: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.altered)


def diff(before: Inventory, after: Inventory) -> Change:
    """What changed from *before* to *after*."""
    return Change(
        tuple(sorted(after.keys() - before.keys())),
        tuple(sorted(before.keys() - after.keys())),
        tuple(sorted(id_ for id_ in before.keys() & after.keys() if before[id_] != after[id_])),
    )
