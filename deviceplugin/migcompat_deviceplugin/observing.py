"""Observe mode: which device is which id of the plugin that serves it. Pure.

``VFIONode`` then has our ids and the other plugin's resource names; docs/reference/device-plugin.md has the
rules for people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from migcompat.api.names import RESOURCE_DOMAIN
from migcompat.api.vfionode import PodRef
from migcompat.kubelet.podresources import Allocations, Offers
from migcompat.resources.selection import Configuration, Others, facts
from migcompat.sysfs.scan import ScanResult

from migcompat_deviceplugin.foreign import Ids, Seen
from migcompat_deviceplugin.inventory import Device, Held, Inventory

NOT_OFFERED = f"{RESOURCE_DOMAIN}/not-offered"
"""Where devices are published that no plugin offers. Nobody serves it, so no pod can ask for it."""


_TOLD = 5
"""Ids that a doubt names."""


def take(
    result: ScanResult, before: Inventory, configuration: Configuration | None, held: Held
) -> dict[str, Device]:
    """All devices of *result*, not to be served; whose they are is seen later."""
    return {found.id: Device(found, NOT_OFFERED, served=False) for found in result.devices}


class _Claim(NamedTuple):
    """An id of *resource* that may be a device. ``several``: our ids of all devices that it may be."""

    resource: str
    id: str
    offered: bool
    holder: PodRef | None
    several: tuple[str, ...]


def observed(
    inventory: Inventory,
    allocations: Allocations | None,
    offers: Offers | None,
    configuration: Configuration | None,
    former: Mapping[str, str],
) -> Seen:
    """*inventory* in the pools of the plugins that serve it, and who holds what.

    *offers* and *allocations* are None while the kubelet has not answered, *configuration* while there is no
    good one. *former* has the resource of each device that had one: a plugin that is restarted does not make
    its devices nobody's.
    """
    former = {
        id_: name
        for id_, name in former.items()
        if id_ in inventory and _may_have(name, inventory[id_], configuration)
    }
    claims, unknown = _claims(inventory, allocations or {}, offers or {}, configuration, former)
    devices: dict[str, Device] = {}
    holders: Allocations = {}
    doubts = list(unknown)
    for id_, device in sorted(inventory.items()):
        told = claims.get(id_, [])
        resource, barred, doubtful = _judged(told, former.get(id_, ""), offers is not None)
        if not resource and not _is_wanted(device, configuration):
            continue
        if doubtful:
            doubts.append(f"{id_}: {barred}")
        devices[id_] = _placed(device, resource or NOT_OFFERED, barred)
        pods = [claim.holder for claim in told if claim.resource == resource and claim.holder]
        if pods:
            holders[(resource, id_)] = pods[0]
    return Seen(devices, None if allocations is None else holders, tuple(doubts))


def _placed(device: Device, resource: str, barred: str) -> Device:
    if (device.resource, device.barred) == (resource, barred):
        return device
    return msgspec.structs.replace(device, resource=resource, barred=barred)


def _claims(
    inventory: Inventory,
    allocations: Allocations,
    offers: Offers,
    configuration: Configuration | None,
    former: Mapping[str, str],
) -> tuple[dict[str, list[_Claim]], list[str]]:
    """By our id, the ids of others that may be the device; and what is offered or held but is no device."""
    known: dict[str, dict[str, PodRef | None]] = {r: dict.fromkeys(ids) for r, ids in offers.items()}
    for (resource, id_), pod in allocations.items():
        known.setdefault(resource, {})[id_] = pod
    ids = Ids(inventory)
    claims: dict[str, list[_Claim]] = {}
    unknown: list[str] = []
    taken = set(former.values())
    of_vfio: dict[str, dict[str, list[str]]] = {}
    for resource, holders in sorted(known.items()):
        meant = {id_: _meant(resource, id_, ids, inventory, configuration) for id_ in sorted(holders)}
        if _is_of_vfio(resource, meant, ids, configuration, taken):
            of_vfio[resource] = meant
        else:
            unknown += _half_known(resource, meant, configuration)
    named = Counter(id_ for meant in of_vfio.values() for id_ in meant)
    for resource, meant in of_vfio.items():
        holders = known[resource]
        nothing = [id_ for id_, devices in meant.items() if not devices]
        if nothing:
            unknown.append(f"{resource}: no device here is {', '.join(nothing)}")
        for id_, first in meant.items():
            # Of a group that two resources name, which device is whose is not told by its number.
            shared = named[id_] > 1 and not _is_configured(resource, configuration)
            devices = ids.group(id_) or first if shared else first
            offered = id_ in offers.get(resource, ())
            claim = _Claim(resource, id_, offered, holders[id_], tuple(devices))
            for device in devices:
                claims.setdefault(device, []).append(claim)
    return claims, unknown


def _is_of_vfio(
    resource: str,
    meant: Mapping[str, list[str]],
    ids: Ids,
    configuration: Configuration | None,
    taken: set[str],
) -> bool:
    """Whether *resource*, whose ids mean the devices *meant*, is one of VFIO devices.

    Everybody may number his devices, so numbers alone count only where each is an IOMMU group with a device.
    """
    if _is_ignored(resource, configuration):
        return False
    if configuration is None or resource in taken:
        return resource in taken
    if _is_configured(resource, configuration):
        return True
    return any(ids.exact(id_) for id_ in meant) or (bool(meant) and all(meant.values()))


def _half_known(
    resource: str, meant: Mapping[str, list[str]], configuration: Configuration | None
) -> list[str]:
    """A doubt where most of what is no resource of VFIO devices could be one all the same."""
    devices = [id_ for id_, found in meant.items() if found]
    others = [id_ for id_, found in meant.items() if not found]
    if configuration is None or _is_ignored(resource, configuration) or len(devices) < len(others):
        return []
    if not devices:
        return []
    return [
        f"{resource}: {_some(devices)} may be IOMMU groups of devices here, {_some(others)} cannot be:"
        " name it in the configuration if these devices are meant"
    ]


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:_TOLD]) + (f" and {len(ids) - _TOLD} more" if len(ids) > _TOLD else "")


def _meant(
    resource: str, id_: str, ids: Ids, inventory: Inventory, configuration: Configuration | None
) -> list[str]:
    """Our ids of the devices that *id_* of *resource* may be, as long as no other resource has that id.

    Of a group the devices that the configuration selects for the resource, where it has that. Without it,
    functions of one slot with different PCI ids (a GPU and its sound) are the device of the lowest number:
    NVIDIA's plugin names the resource after it (``createIommuDeviceMap``).
    """
    exact = ids.exact(id_)
    if exact is not None:
        return [exact]
    devices = ids.group(id_)
    for one in configuration.resources if configuration is not None else ():
        if one.name == resource:
            return [device for device in devices if one.takes(facts(inventory[device].found))]
    slots = {device.rpartition(".")[0] for device in devices}
    models = [inventory[device].found.pci_id for device in devices]
    if len(slots) == 1 and len(set(models)) == len(models):
        return devices[:1]
    return devices


def _judged(told: list[_Claim], former: str, answered: bool) -> tuple[str, str, bool]:
    """The resource of a device, why nobody may have it, and whether that is a matter of doubt."""
    if not told:
        text = f"no plugin offers it{f' any more as {former}' if former else ''}"
        return former, text if answered else "it is not known yet whether a plugin offers it", False
    resources = sorted({claim.resource for claim in told}, key=lambda name: (not _holds(told, name), name))
    resource = resources[0]
    several = {id_ for claim in told for id_ in claim.several}
    if all(len(claim.several) > 1 for claim in told):
        text = (
            f"{told[0].id} of {' and '.join(sorted(resources))} is the IOMMU group of"
            f" {', '.join(sorted(several))}, and only the plugin knows which is meant: select each for its"
            " resource in the configuration"
        )
        return resource, text, True
    if len(resources) > 1:
        return resource, f"{' and '.join(sorted(resources))} both have it: it may be given out twice", True
    if not any(claim.offered for claim in told):
        text = f"{resource} has it ({told[0].id}), but does not offer it now as healthy"
        return resource, text if answered else "", False
    return resource, "", False


def _holds(told: list[_Claim], resource: str) -> bool:
    return any(claim.resource == resource and claim.holder for claim in told)


def _is_configured(resource: str, configuration: Configuration | None) -> bool:
    """Whether the configuration has *resource*."""
    return configuration is not None and any(one.name == resource for one in configuration.resources)


def _is_ignored(resource: str, configuration: Configuration | None) -> bool:
    """Whether *resource* is none of ours to look at, by the configuration."""
    if configuration is None or configuration.others is not Others.IGNORE:
        return False
    return not _is_configured(resource, configuration)


def _may_have(resource: str, device: Device, configuration: Configuration | None) -> bool:
    """Whether the configuration lets *device* be one of *resource*."""
    for one in configuration.resources if configuration is not None else ():
        if one.name == resource:
            return one.takes(facts(device.found))
    return not _is_ignored(resource, configuration)


def _is_wanted(device: Device, configuration: Configuration | None) -> bool:
    """Whether *device* is to be published although no plugin has it."""
    if configuration is None or configuration.others is not Others.IGNORE:
        return True
    told = facts(device.found)
    return any(one.takes(told) for one in configuration.resources)
