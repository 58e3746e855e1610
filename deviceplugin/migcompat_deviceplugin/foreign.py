"""Devices under ids that are not ours: what other plugins call them. Pure.

What a plugin's ids are is up to it. Those that serve VFIO devices use one of three:

* the mdev's UUID: NVIDIA's plugin (kubevirt-gpu-device-plugin, pkg/device_plugin/device_plugin.go,
  ``createDevicePlugins``: ``ID: dev.addr``, a name in /sys/bus/mdev/devices);
* the PCI address: NVIDIA's plugin since it looks its ids up in ``bdfToIommu``
  (generic_device_plugin.go, ``Allocate``), and the SR-IOV network device plugin;
* the number of the IOMMU group: KubeVirt (pkg/virt-handler/device-manager, mediated_device.go
  ``constructDPIdevicesFromMdev`` and pci_device.go ``constructDPIdevices``), and older ones of NVIDIA's.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from migcompat.api.vfionode import PodRef
from migcompat.kubelet.podresources import Allocations

from migcompat_deviceplugin.inventory import Device, Inventory


class Ids:
    """The devices of an inventory by every id that a plugin may have for them."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._groups: dict[str, list[str]] | None = None

    def exact(self, id_: str) -> str | None:
        """Our id of the one device whose UUID or PCI address *id_* is, or None."""
        if id_ in self._inventory:
            return id_
        lower = id_.lower()
        return lower if lower in self._inventory else None

    def group(self, id_: str) -> list[str]:
        """Our ids of the devices in the IOMMU group *id_*, in their order; none where it is no number."""
        if not (id_.isascii() and id_.isdecimal()):
            return []
        if self._groups is None:
            self._groups = {}
            for device in sorted(self._inventory.values(), key=lambda device: device.id):
                self._groups.setdefault(device.found.iommu_group, []).append(device.id)
        return self._groups.get(id_, [])


def held_ids(allocations: Allocations, inventory: Inventory) -> set[str]:
    """Our ids of all devices that pods may hold: a group's number counts whoever's id it is."""
    ids = Ids(inventory)
    found: set[str] = set()
    for _, id_ in allocations:
        exact = ids.exact(id_)
        found.update([exact] if exact else ids.group(id_))
    return found


class Holding(NamedTuple):
    """A pod that holds a device, and the resource and id under which the kubelet knows that."""

    pod: PodRef
    resource: str
    id: str


def holdings(allocations: Allocations, inventory: Inventory) -> dict[str, Holding]:
    """By our id, the devices that pods hold under another id, or in another pool, than we serve them.

    A UUID or PCI address means its device in whatever pool. A number means an IOMMU group only in a pool of
    ours (anybody may number his devices); there it means all of the pool's devices in that group, because
    whoever has one of them open has the group.
    """
    ids = Ids(inventory)
    pools = {device.resource for device in inventory.values()}
    found: dict[str, Holding] = {}
    for (resource, id_), pod in allocations.items():
        device = inventory.get(id_)
        if device is not None and device.resource == resource:
            continue
        holding = Holding(pod, resource, id_)
        exact = ids.exact(id_)
        if exact is not None:
            found[exact] = holding
        elif resource in pools:
            found |= dict.fromkeys((o for o in ids.group(id_) if inventory[o].resource == resource), holding)
    return found


class Seen(NamedTuple):
    """What is known of devices and holders together.

    ``holders``: by pool and our id, None while PodResources has not answered. ``doubts``: what cannot be told
    of other plugins' ids, as sentences.
    """

    inventory: Inventory
    holders: Allocations | None
    doubts: tuple[str, ...] = ()


def serving(inventory: Inventory, allocations: Allocations | None) -> Seen:
    """What is seen where we serve: devices that pods hold under another id than ours are barred.

    For the kubelet our id of such a device is free, and it would hand the device out a second time. It comes
    about when another plugin served the pool before us, and pods of that time still run.
    """
    found = holdings(allocations or {}, inventory)
    if not found and not any(device.barred for device in inventory.values()):
        return Seen(inventory, allocations)
    marked = {id_: _barred(device, found.get(id_)) for id_, device in inventory.items()}
    if allocations is None:
        return Seen(marked, None)
    held = {(inventory[id_].resource, id_): holding.pod for id_, holding in found.items()}
    meant = {(holding.resource, holding.id) for holding in found.values()}
    return Seen(marked, {**held, **{key: pod for key, pod in allocations.items() if key not in meant}})


def _barred(device: Device, holding: Holding | None) -> Device:
    text = ""
    if holding is not None:
        pod = f"{holding.pod.namespace}/{holding.pod.name}"
        text = f"pod {pod} holds it as {holding.id} of {holding.resource}, given out by another plugin"
    return device if device.barred == text else msgspec.structs.replace(device, barred=text)
