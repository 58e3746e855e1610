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
    """*devices* in at most *limit* bytes, if folding makes that possible, and the condition that tells of it.

    Nothing is folded as long as all fit. Else each set of devices that nobody holds, and that differ in
    nothing but id, parent, NUMA node and IOMMU group, becomes one entry under its first device's id.
    """
    if len(msgspec.json.encode(devices)) <= limit:
        return list(devices), Condition(DEVICES_LISTED, "True", "AllListed", "")
    groups: dict[bytes, list[Device]] = {}
    for device in devices:
        like = msgspec.structs.replace(device, id="", parent="", numa_node=None, iommu_group="")
        key = device.id.encode() if device.allocated_to else msgspec.json.encode(like)
        groups.setdefault(key, []).append(device)
    kept = [_one_for(group) for group in groups.values()]
    missing = len(devices) - len(kept)
    message = (
        f"{len(devices)} devices are too many for one object: {missing} that nobody holds are counted with"
        " others that are like them (devices[].count)"
    )
    return kept, Condition(DEVICES_LISTED, "False", "Folded", message)


def _one_for(group: Sequence[Device]) -> Device:
    if len(group) == 1:
        return group[0]
    return msgspec.structs.replace(group[0], count=len(group), parent="", numa_node=None, iommu_group="")
