"""One published device put together again, as the source of a VM's state or as its target."""

from __future__ import annotations

from migcompat.api.vfionode import Device, Health, VFIONodeStatus, declaration
from migcompat.engine.policy import supply
from migcompat.fleet.fit import Target
from migcompat.fleet.judge import content_key
from migcompat.fleet.migrant import MigrantDevice
from migcompat.fleet.policies import Selected


def migrant_device(status: VFIONodeStatus, device: Device, selected: Selected) -> MigrantDevice | None:
    """*device* as one of a VM's; None when its profile or acceptance is not in *status*."""
    declared = declaration(status, device)
    if declared is None:
        return None
    supplied = supply(declared, selected.policy)
    key = content_key(supplied)
    return MigrantDevice(device.resource, supplied, device.id, device.profile, device.peer_to_peer, key)


def target(status: VFIONodeStatus, device: Device, selected: Selected) -> Target | None:
    """*device* as a target; None when its profile or acceptance is not in *status*."""
    declared = declaration(status, device)
    if declared is None:
        return None
    supplied = supply(declared, selected.policy)
    return Target(
        id=device.id,
        resource=device.resource,
        declaration=supplied,
        free=device.health == Health.HEALTHY and device.allocated_to is None,
        held=device.allocated_to is not None,
        key=content_key(supplied),
        policy=selected.policy,
        policy_key=selected.key,
        peer_to_peer=device.peer_to_peer,
    )
