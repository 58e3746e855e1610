"""The devices of one scan as the kubelet counts them: pools, health. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
from migcompat.api.vfionode import Device as PublishedDevice
from migcompat.api.vfionode import Health, Migration
from migcompat.engine.declaration import Kind
from migcompat.resources.selection import Choice, Configuration
from migcompat.sysfs.scan import FoundDevice, ScanResult

ID_LIMIT = 63
"""Characters of a device id that the kubelet takes."""


NOT_ASKED_YET = "it has not been asked yet whether it can migrate"


class Device(msgspec.Struct, frozen=True):
    """A device in its pool. ``served``: whether the kubelet may hear of it (it has a usable id and pool).

    ``waiting``: it is not advertised before it has been asked whether it can migrate; ``migration``: what it
    said, None where that is not known. ``claims``: the resources that select it, where they are several.
    ``barred``: why nobody may have it though nothing is wrong with it.
    """

    found: FoundDevice
    resource: str
    served: bool = True
    waiting: bool = False
    migration: Migration | None = None
    claims: tuple[str, ...] = ()
    barred: str = ""

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
        return self.found.problem or self.barred or (NOT_ASKED_YET if self.waiting else "")


Inventory = Mapping[str, Device]
"""Devices by id."""


Held = Callable[[str, str], bool]
"""Whether a pod may hold the device of a resource and id, so that the kubelet counts it there."""


def take(
    result: ScanResult, before: Inventory, configuration: Configuration | None, held: Held
) -> dict[str, Device]:
    """The inventory that *result* shows, in the pools of *configuration*.

    A device stays in the pool where it was *before*, whatever the configuration says by now,

    * while somebody holds it: the kubelet, the VM and everybody who judges it know it by that resource, and
      in another pool the kubelet would hand it out a second time;
    * while what would tell its pool (type, PCI id, driver) cannot be read, or there is no configuration.

    A type's name stays as it was read once: NVIDIA's driver names a VF's only while the card has room.

    One with another type or PCI id is another device. One that was never readable has no pool that means
    anything and is published but not served. What the configuration ignores, and without one what was not
    there before, is left out.
    """
    devices: dict[str, Device] = {}
    for found in result.devices:
        device = _taken(found, before.get(found.id), configuration, held)
        if device is not None:
            devices[found.id] = device
    return devices


def _taken(
    found: FoundDevice, old: Device | None, configuration: Configuration | None, held: Held
) -> Device | None:
    if old is not None and old.found.type == found.type and not found.type_name:
        found = msgspec.structs.replace(found, type_name=old.found.type_name)
    served = _is_served(found.id, found.kind, found.type, found.pci_id)
    choice = Choice("") if configuration is None else configuration.choose(found)
    claims = (choice.resource, *choice.also) if choice.also else ()
    if old is not None and _is_same(found, old.found.type, old.found.pci_id):
        unclear = configuration is None or not found.driver or not served
        if unclear or (old.served and held(old.resource, found.id)):
            return Device(found, old.resource, old.served, claims=claims)
    return Device(found, choice.resource, served, claims=claims) if choice.resource else None


def recalled(result: ScanResult, published: Sequence[PublishedDevice]) -> dict[str, Device]:
    """The devices of *result* that an earlier agent *published*, in the pools where it served them."""
    earlier = {d.id: d for d in published if _is_served(d.id, d.kind, d.type, d.pci_id)}
    return {
        found.id: Device(found, device.resource)
        for found in result.devices
        if (device := earlier.get(found.id)) and _is_same(found, device.type, device.pci_id)
    }


def _is_served(id_: str, kind: Kind, type_: str, pci_id: str) -> bool:
    """Whether its id is one for the kubelet, and what its pool depends on could be read."""
    return bool(type_ or (pci_id and kind is not Kind.MDEV)) and len(id_) <= ID_LIMIT


def _is_same(found: FoundDevice, type_: str, pci_id: str) -> bool:
    """Whether this is still the device that had *type_* and *pci_id*, as far as they could be read."""
    pairs = (found.type, type_), (found.pci_id, pci_id)
    return all(not now or not then or now == then for now, then in pairs)


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
