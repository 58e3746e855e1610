"""The survey of a migrant as status: counts, groups, conditions, one sentence each. Pure.

Contract, "Answers that count": MIGRATABLE is True only when devices fit somewhere *and* KubeVirt itself
would move the VMI; what the devices alone would allow is the condition ``DevicesCompatible``.
"""

from __future__ import annotations

from collections.abc import Sequence

from migcompat.api.cluster import VirtualMachineInstance
from migcompat.api.meta import Condition
from migcompat.api.migrationcompatibility import (
    Group,
    MigrationCompatibilityStatus,
    Source,
    SourceDevice,
)
from migcompat.fleet.fit import NONE_FREE
from migcompat.fleet.migrant import Migrant
from migcompat.fleet.survey import Refusal, Survey

DEVICES_COMPATIBLE = "DevicesCompatible"
MIGRATABLE = "Migratable"
AVAILABLE = "Available"
CONDITION_TYPES = (DEVICES_COMPATIBLE, MIGRATABLE, AVAILABLE)

COMPATIBLE = "Compatible"
UNKNOWN = "Unknown"
NO_CANDIDATES = "NoCandidates"
KUBEVIRT_NOT_MIGRATABLE = "KubeVirtNotMigratable"
TARGET_FREE = "TargetFree"
NONE_COMPATIBLE = "NoneCompatible"
MORE_CAUSES = "MoreCauses"

NODES_SHOWN = 10
GROUPS_SHOWN = 20
CAUSES_IN_TEXT = 5
CAUSE_LENGTH = 160

LIVE_MIGRATABLE = "LiveMigratable"


def unanswerable(reason: str, message: str) -> MigrationCompatibilityStatus:
    """The status of a question without an answer: every condition Unknown, with *reason* and *message*."""
    return MigrationCompatibilityStatus(
        conditions=[Condition(kind, "Unknown", reason, message) for kind in CONDITION_TYPES]
    )


def answer(
    migrant: Migrant, survey: Survey, vmi: VirtualMachineInstance | None
) -> MigrationCompatibilityStatus:
    """The status for *migrant*: *survey* says what devices allow, *vmi* (if any) what KubeVirt would do."""
    if migrant.problem and not survey.compatible:
        devices = Condition(DEVICES_COMPATIBLE, "Unknown", UNKNOWN, migrant.problem)
    else:
        devices = _devices_compatible(migrant, survey)
    return MigrationCompatibilityStatus(
        source=_source(migrant),
        device_count=sum(migrant.asks.values()),
        targets=f"{survey.compatible}/{survey.total}",
        compatible=survey.compatible,
        free=survey.free,
        total=survey.total,
        accepting=list(survey.accepting[:NODES_SHOWN]),
        refusals=_groups(survey.groups),
        obligations=dict(sorted(survey.obligations.items())),
        conditions=[devices, _migratable(devices, vmi), _available(devices, survey)],
    )


def causes(groups: Sequence[Refusal]) -> str:
    """The causes of refusal in one line, biggest first: ``7 VersionMinorOlder (…); 5 TypeMismatch (…)``."""
    shown = [
        f"{len(group.nodes)} {group.reason}" + (f" ({_short(group.message)})" if group.message else "")
        for group in groups[:CAUSES_IN_TEXT]
    ]
    rest = sum(len(group.nodes) for group in groups[CAUSES_IN_TEXT:])
    if rest:
        shown.append(f"{rest} for other reasons")
    return "; ".join(shown)


def explain(migrant: Migrant, survey: Survey) -> str:
    """One sentence: how many nodes take *migrant*, or why none does, with a count for each cause."""
    if not survey.total:
        pools = ", ".join(sorted({device.resource for device in migrant.devices})) or "such devices"
        return f"No other node offers {pools}."
    if not survey.compatible:
        return f"None of {_nodes(survey.total)} accepts its devices: {causes(survey.groups)}."
    verb = "accepts" if survey.compatible == 1 else "accept"
    free = f"{survey.free} of them with free ones" if survey.free else "none of them has free ones"
    return f"{survey.compatible} of {_nodes(survey.total)} {verb} its devices, {free}."


def condition(status: MigrationCompatibilityStatus, kind: str) -> Condition | None:
    """The condition of type *kind*, or None."""
    return next((c for c in status.conditions if c.type == kind), None)


def _devices_compatible(migrant: Migrant, survey: Survey) -> Condition:
    text = explain(migrant, survey)
    if survey.compatible:
        fits = [fit for fit in survey.fits.values() if fit.compatible]
        if migrant.problem or all(fit.reason == UNKNOWN for fit in fits):
            text = f"{text.removesuffix('.')}, because policies allow what is unknown there."
            return Condition(DEVICES_COMPATIBLE, "True", UNKNOWN, text)
        return Condition(DEVICES_COMPATIBLE, "True", COMPATIBLE, text)
    reason = survey.groups[0].reason if survey.total and survey.groups else NO_CANDIDATES
    return Condition(DEVICES_COMPATIBLE, "False", str(reason), text)


def _migratable(devices: Condition, vmi: VirtualMachineInstance | None) -> Condition:
    live = _live_migratable(vmi)
    if live is not None and live.status == "False":
        text = f"KubeVirt would not migrate it: {live.message or live.reason or 'it gives no reason'}"
        return Condition(MIGRATABLE, "False", KUBEVIRT_NOT_MIGRATABLE, text)
    return Condition(MIGRATABLE, devices.status, devices.reason, devices.message)


def _available(devices: Condition, survey: Survey) -> Condition:
    if devices.status == "Unknown":
        return Condition(AVAILABLE, "Unknown", UNKNOWN, devices.message)
    if not survey.compatible:
        return Condition(AVAILABLE, "False", NONE_COMPATIBLE, "No node accepts its devices.")
    if not survey.free:
        text = f"Of {_nodes(survey.compatible)} that would accept it none has free devices and takes pods."
        return Condition(AVAILABLE, "False", NONE_FREE, text)
    return Condition(
        AVAILABLE, "True", TARGET_FREE, f"{_nodes(survey.free)} that would accept it: devices are free."
    )


def _live_migratable(vmi: VirtualMachineInstance | None) -> Condition | None:
    conditions = (vmi.status.conditions if vmi is not None else None) or ()
    return next((c for c in conditions if c.type == LIVE_MIGRATABLE), None)


def _source(migrant: Migrant) -> Source:
    return Source(
        migrant.node,
        [
            SourceDevice(d.resource, d.id, d.profile, dict(sorted(d.declaration.self.attributes.items())))
            for d in migrant.devices
        ],
    )


def _groups(groups: Sequence[Refusal]) -> list[Group]:
    shown = [
        Group(str(g.reason), g.message, len(g.nodes), sorted(g.nodes)[:NODES_SHOWN])
        for g in groups[:GROUPS_SHOWN]
    ]
    rest = groups[GROUPS_SHOWN:]
    if rest:
        count = sum(len(g.nodes) for g in rest)
        shown.append(Group(MORE_CAUSES, f"{len(rest)} more causes, each on fewer nodes.", count))
    return shown


def _short(text: str) -> str:
    text = text.rstrip(".")
    return text if len(text) <= CAUSE_LENGTH else text[: CAUSE_LENGTH - 1] + "…"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
