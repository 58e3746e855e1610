"""Keeping the VFIONode of a node with thousands of devices below the size that an object may have. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from migcompat.api.meta import Condition
from migcompat.api.vfionode import Device

DEVICES_LISTED = "DevicesListed"
DEVICES_LIMIT = 768 * 1024
"""Bytes of all devices. etcd refuses requests above 1.5 MiB (``--max-request-bytes``), of which the contents
that devices share may take 512 KiB."""


def folded(devices: Sequence[Device], limit: int = DEVICES_LIMIT) -> tuple[list[Device], Condition]:
    """*devices* in at most *limit* bytes, and the condition that tells what that has cost.

    Each step only as long as they do not fit: each set of devices that nobody holds, and that differ in
    nothing but id, parent, NUMA node and IOMMU group, becomes one entry under its first device's id; no entry
    tells any more what no verdict asks for; entries are left out.
    """
    if _size(devices) <= limit:
        return list(devices), Condition(DEVICES_LISTED, "True", "AllListed", "")
    groups: dict[bytes, list[Device]] = {}
    for device in devices:
        like = msgspec.structs.replace(device, id="", parent="", numa_node=None, iommu_group="")
        key = device.id.encode() if device.allocated_to else msgspec.json.encode(like)
        groups.setdefault(key, []).append(device)
    kept = [_one_for(group) for group in groups.values()]
    missing = len(devices) - len(kept)
    reason, message = (
        "Folded",
        f"{len(devices)} devices are too many for one object: {missing} that nobody holds are counted with"
        " others that are like them (devices[].count)",
    )
    if _size(kept) > limit:
        kept = [_placeless(device) for device in kept]
        reason, message = (
            "Shortened",
            f"{message}; parents, NUMA nodes, IOMMU groups and problems are left out",
        )
    if _size(kept) > limit:
        listed = _that_fit(kept, limit)
        held, free = (_count(kept, held=which) - _count(listed, held=which) for which in (True, False))
        kept, reason = listed, "Incomplete"
        message = (
            f"{message}; {held} devices that pods hold are not listed, so nothing is known of their VMs'"
            f" migration, nor {free} free ones, so no VM is placed for them"
        )
    return kept, Condition(DEVICES_LISTED, "False", reason, message)


def _size(devices: Sequence[Device]) -> int:
    return len(msgspec.json.encode(devices))


def _count(devices: Sequence[Device], *, held: bool) -> int:
    return sum(device.count for device in devices if (device.allocated_to is not None) is held)


def _one_for(group: Sequence[Device]) -> Device:
    if len(group) == 1:
        return group[0]
    return msgspec.structs.replace(group[0], count=len(group), parent="", numa_node=None, iommu_group="")


def _placeless(device: Device) -> Device:
    """*device* with all that verdicts and policies depend on, and a restarted agent takes over."""
    return msgspec.structs.replace(device, parent="", numa_node=None, iommu_group="", problem="")


def _that_fit(devices: Sequence[Device], limit: int) -> list[Device]:
    """As many of *devices* as fit: free ones in half of the room, those that pods hold in what is left."""
    free = [device for device in devices if device.allocated_to is None]
    held = [device for device in devices if device.allocated_to is not None]
    chosen: set[str] = set()
    used = len("[]")
    for some, most in ((free, limit // 2), (held, limit), (free, limit)):
        for device in some:
            size = len(msgspec.json.encode(device)) + len(",")
            if device.id not in chosen and used + size <= most:
                chosen.add(device.id)
                used += size
    return [device for device in devices if device.id in chosen]
