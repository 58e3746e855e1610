"""One published device put together again, as the source of a VM's state or as its target."""

from __future__ import annotations

from collections.abc import Mapping

from migcompat.api.vfionode import Device, Health, VFIONodeStatus, declaration
from migcompat.engine.policy import supply
from migcompat.fleet.fit import Target
from migcompat.fleet.judge import content_key
from migcompat.fleet.migrant import MigrantDevice
from migcompat.fleet.policies import Selected

_FEATURES = "migration_features"
_STOP_COPY = "stop-copy"


def migrant_device(status: VFIONodeStatus, device: Device, selected: Selected) -> MigrantDevice | None:
    """*device* as one of a VM's; None when its profile or acceptance is not in *status*."""
    declared = declaration(status, device)
    if declared is None:
        return None
    supplied = supply(declared, selected.policy)
    key = content_key(supplied)
    return MigrantDevice(
        resource=device.resource,
        declaration=supplied,
        id=device.id,
        profile=device.profile,
        migratable=_migratable(device, supplied.shown),
        peer_to_peer=device.peer_to_peer,
        key=key,
    )


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
        migratable=_migratable(device, supplied.shown),
        peer_to_peer=device.peer_to_peer,
    )


def _migratable(device: Device, shown: Mapping[str, str]) -> bool | None:
    """Whether the driver of *device* can save and load its state; None where nobody has said.

    The kernel's answer (``VFIO_DEVICE_FEATURE_MIGRATION``) comes first; where it was not asked, what VFIO
    lists in debugfs, of the same flags (docs/reference/attributes.md, ``migration_features``).
    """
    if device.migration is not None:
        return device.migration.supported
    features = shown.get(_FEATURES)
    return None if features is None else _STOP_COPY in features.split("+")
