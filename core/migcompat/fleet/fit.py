"""Does a VM fit these devices (semantics §6)? One answer for a node, with the reason nearest to success."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from migcompat.engine.assignment import assign
from migcompat.engine.declaration import Declaration
from migcompat.engine.policy import DEFAULT_POLICY, Choice, Policy
from migcompat.engine.verdict import Reason, Verdict
from migcompat.fleet.judge import Judge, Overlay, content_key
from migcompat.fleet.migrant import Migrant, MigrantDevice

NOT_ENOUGH = "NotEnoughDevices"
NO_P2P = "PeerToPeerUnsupported"
NONE_FREE = "NoneFree"

_TARGET_CANNOT = Verdict(False, Reason.NOT_MIGRATABLE, "the target's driver cannot migrate this device")
_SOURCE_CANNOT = Verdict(False, Reason.NOT_MIGRATABLE, "the source's driver cannot migrate this device")
"""What the kernel says of a device is harder than what it declares: ``unknown: Allow`` waives neither."""

_STAGES = {
    reason: stage
    for stage, reasons in enumerate(
        (
            (Reason.NOT_MIGRATABLE,),
            (Reason.UNKNOWN,),
            (Reason.MALFORMED_SELF,),
            (Reason.NO_COMPATIBLE_ENTRY,),
            (Reason.DEVICE_API_MISMATCH,),
            (Reason.API_SPECIFIC_MISMATCH,),
            (Reason.TYPE_MISMATCH,),
            (Reason.VERSION_MALFORMED, Reason.VERSION_MAJOR_MISMATCH, Reason.VERSION_MINOR_OLDER),
            (
                Reason.ATTRIBUTE_MISSING_ON_SOURCE,
                Reason.ATTRIBUTE_MISSING_ON_TARGET,
                Reason.ATTRIBUTE_MISMATCH,
            ),
            (Reason.RETURN_PATH,),
            (Reason.COMPATIBLE,),
        )
    )
    for reason in reasons
}


class Target(msgspec.Struct, frozen=True):
    """A device that could take over state: its declaration, supplied parts included, and its policy.

    ``key`` and ``policy_key`` are content digests (empty ``key``: computed when needed). ``held``: by a pod.
    ``migratable``, ``peer_to_peer``: as of a :class:`~migcompat.fleet.migrant.MigrantDevice`.
    """

    id: str
    resource: str
    declaration: Declaration
    free: bool = True
    held: bool = False
    key: str = ""
    policy: Policy = DEFAULT_POLICY
    policy_key: str = ""
    migratable: bool | None = None
    peer_to_peer: bool | None = None


class Assigned(msgspec.Struct, frozen=True):
    """The VM's device *source* (index) goes to the device *id*, once *obligations* are written there."""

    source: int
    id: str
    obligations: dict[str, str] = {}


class Fit(msgspec.Struct, frozen=True):
    """Whether the VM fits, whether what it fits is free, and why not.

    ``message`` names neither node nor device. ``rank``: smaller is better, null when unknown.
    ``assignment`` prefers free devices; it is empty when not compatible.
    """

    compatible: bool
    free: bool
    reason: str
    message: str
    rank: tuple[int, ...] | None = None
    assignment: tuple[Assigned, ...] = ()


def fit(migrant: Migrant, targets: Sequence[Target], judge: Judge | None = None, reserved: int = 0) -> Fit:
    """Can the migrant's devices go one-to-one to *targets*?

    *reserved*: how many of the free targets are already promised to pods that hold no device yet.
    """
    judge = judge or Judge()
    for resource, count in sorted(migrant.asks.items()):
        if sum(target.resource == resource for target in targets) < count:
            return Fit(False, False, NOT_ENOUGH, f"fewer than {count} device(s) of {resource}")
    if migrant.problem or not migrant.devices:
        return _fit_unknown(migrant, targets, reserved)
    verdicts = _verdicts(migrant, targets, judge)
    for row in verdicts:
        if not row:
            return Fit(False, False, NOT_ENOUGH, "no device of the pool that the VM's device came from")
        if not any(verdict.compatible for verdict in row.values()):
            nearest = max(row.values(), key=lambda v: _STAGES[v.reason])
            return Fit(False, False, nearest.reason, nearest.message)
    if len(migrant.devices) > 1 and any(device.peer_to_peer is False for device in migrant.devices):
        return Fit(False, False, NO_P2P, "not all devices of the source support peer-to-peer")
    rows = [{i: v.rank or () for i, v in row.items() if v.compatible} for row in verdicts]
    chosen = assign(rows)
    if chosen is None:
        return Fit(False, False, NOT_ENOUGH, f"fewer than {len(rows)} devices accept the VM's")
    if len(rows) > 1 and any(targets[i].peer_to_peer is False for row in rows for i in row):
        rows = [{i: rank for i, rank in row.items() if targets[i].peer_to_peer is not False} for row in rows]
        chosen = assign(rows)
        if chosen is None:
            return Fit(False, False, NO_P2P, "not enough devices support peer-to-peer")
    free_rows = [{i: rank for i, rank in row.items() if targets[i].free} for row in rows]
    usable = {i for row in free_rows for i in row}
    chosen_free = assign(free_rows) if len(usable) - reserved >= len(rows) else None
    free = chosen_free is not None
    chosen = chosen_free or chosen
    picked = [verdicts[source][index] for source, index in enumerate(chosen)]
    ranks = [verdict.rank for verdict in picked if verdict.rank is not None]
    reason = Reason.UNKNOWN if any(v.reason is Reason.UNKNOWN for v in picked) else Reason.COMPATIBLE
    return Fit(
        True,
        free,
        reason if free else NONE_FREE,
        picked[0].message if free else "devices that accept are all in use",
        max(ranks) if ranks else None,
        tuple(
            Assigned(source, targets[index].id, verdicts[source][index].obligations)
            for source, index in enumerate(chosen)
        ),
    )


def _verdicts(migrant: Migrant, targets: Sequence[Target], judge: Judge) -> list[dict[int, Verdict]]:
    overlay = Overlay.of(migrant)
    rows = []
    for device in migrant.devices:
        rows.append(
            {
                index: _verdict(device, target, judge, overlay)
                for index, target in enumerate(targets)
                if target.resource == device.resource
            }
        )
    return rows


def cannot_migrate(source: MigrantDevice | Target, target: Target) -> Verdict | None:
    """The verdict where the kernel says of one of them that it cannot migrate, else None."""
    if source.migratable is False:
        return _SOURCE_CANNOT
    return _TARGET_CANNOT if target.migratable is False else None


def _verdict(device: MigrantDevice, target: Target, judge: Judge, overlay: Overlay) -> Verdict:
    return cannot_migrate(device, target) or judge.verdict(
        (device.key or content_key(device.declaration), device.declaration),
        (target.key or content_key(target.declaration), target.declaration),
        (target.policy_key, target.policy),
        overlay,
    )


def _fit_unknown(migrant: Migrant, targets: Sequence[Target], reserved: int) -> Fit:
    """The source is not known: ``Unknown``, and each target's policy decides (semantics §5, ``unknown``).

    There are at least as many targets as the migrant asks for, which anyone who makes a pod may exaggerate.
    """
    message = migrant.problem or "the devices of the source are not known"
    able = [t for t in targets if t.migratable is not False]
    if any(all(t.resource != resource for t in able) for resource in migrant.asks):
        return Fit(False, False, _TARGET_CANNOT.reason, _TARGET_CANNOT.message)
    asked = [resource for resource, count in sorted(migrant.asks.items()) for _ in range(count)]
    willing = [t for t in able if t.policy.unknown == Choice.ALLOW]
    rows = [{i: () for i, t in enumerate(willing) if t.resource == resource} for resource in asked]
    if not asked or assign(rows) is None:
        return Fit(False, False, Reason.UNKNOWN, message)
    free_rows = [{i: () for i in row if willing[i].free} for row in rows]
    usable = {i for row in free_rows for i in row}
    free = len(usable) - reserved >= len(asked) and assign(free_rows) is not None
    return Fit(True, free, Reason.UNKNOWN if free else NONE_FREE, message)
