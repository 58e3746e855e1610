"""What is to be done about one MigrationCompatibility. Pure: objects in, a plan out."""

from __future__ import annotations

from typing import Any

import msgspec
from migcompat.api.cluster import VirtualMachineInstance
from migcompat.api.conditions import set_condition
from migcompat.api.meta import Condition, ObjectMeta, OwnerReference
from migcompat.api.migrationcompatibility import (
    MigrationCompatibility,
    MigrationCompatibilitySpec,
    MigrationCompatibilityStatus,
    VMIReference,
)
from migcompat.fleet.fleet import Fleet
from migcompat.fleet.intent import intent
from migcompat.fleet.survey import Survey

from migcompat_operator import announcement as say
from migcompat_operator.announcement import Announcement
from migcompat_operator.answer import MIGRATABLE, answer, condition, unanswerable
from migcompat_operator.question import Unanswerable, ask

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "migcompat-operator"
VMI_API = "kubevirt.io/v1"
VMI_KIND = "VirtualMachineInstance"


class Plan(msgspec.Struct):
    """What the writer does, in this order.

    ``urgent``: MIGRATABLE, REASON or the source changes. ``survey``: of the VM that has the object's name,
    if it is what the object asks about.
    """

    create: MigrationCompatibility | None = None
    delete: bool = False
    adopt: OwnerReference | None = None
    status: MigrationCompatibilityStatus | None = None
    urgent: bool = False
    events: tuple[Announcement, ...] = ()
    survey: Survey | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.create or self.delete or self.adopt or self.status or self.events)

    @property
    def is_patient(self) -> bool:
        """Whether only counts (and events, which are said anyway) are to be written: that may wait."""
        return not (self.create or self.delete or self.adopt or self.urgent)


def reconcile(
    fleet: Fleet,
    existing: MigrationCompatibility | None,
    vmi: VirtualMachineInstance | None,
    *,
    now: str,
    allow_loosening: bool = False,
) -> Plan:
    """The plan for a name at which *existing* and a *vmi* may be found.

    *now* (RFC 3339) becomes the transition time of conditions whose status changes.
    """
    item = existing
    events = _annotation_events(vmi, allow_loosening) if vmi is not None and _is_wanted(fleet, vmi) else ()
    if item is None:
        if vmi is None or not _is_wanted(fleet, vmi):
            return Plan()
        item = _for_vmi(vmi)
    elif item.metadata.deletion_timestamp is not None:
        return Plan(events=events)
    elif is_ours(item) and (vmi is None or not _is_kept(vmi)):
        return Plan(delete=True)
    status, survey = _desired(fleet, item)
    status.observed_generation = item.metadata.generation or 1
    status.conditions = _stamped(item.status.conditions, status.conditions, now)
    changed = existing is None or status != item.status
    return Plan(
        create=item if existing is None else None,
        adopt=_adoption(item, vmi) if existing is not None else None,
        status=status if changed else None,
        urgent=changed and _is_urgent(item.status, status),
        events=events + (_verdict_events(item, status, vmi) if changed else ()),
        survey=survey,
    )


def is_ours(item: MigrationCompatibility) -> bool:
    """Whether the operator made the object for a VMI (then it may also delete it)."""
    owned = any(owner.kind == VMI_KIND for owner in item.metadata.owner_references or ())
    return owned and (item.metadata.labels or {}).get(MANAGED_BY) == MANAGER


def wire(status: MigrationCompatibilityStatus) -> dict[str, Any]:
    """The status as JSON values, zeroes included: printer columns show nothing for a field that is absent."""
    zeroes = {"deviceCount": 0, "targets": "", "compatible": 0, "free": 0, "total": 0}
    told: dict[str, Any] = msgspec.to_builtins(status)
    return {**zeroes, **told}


def merge_patch(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) that makes *new* of *old*: null for what has gone, lists as a whole."""
    patch: dict[str, Any] = dict.fromkeys(old.keys() - new.keys())
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if value != before:
                patch[key] = merge_patch(before, value)
        elif key not in old or value != before:
            patch[key] = value
    return patch


def _is_wanted(fleet: Fleet, vmi: VirtualMachineInstance) -> bool:
    return _is_kept(vmi) and any(map(fleet.is_ours, vmi.device_names()))


def _is_kept(vmi: VirtualMachineInstance) -> bool:
    """An object once made stays while the VM has devices, even if no node offers their pool any more."""
    return vmi.status.phase not in ("Succeeded", "Failed") and bool(vmi.device_names())


def _owner(vmi: VirtualMachineInstance) -> OwnerReference:
    return OwnerReference(VMI_API, VMI_KIND, vmi.metadata.name, vmi.metadata.uid, controller=True)


def _for_vmi(vmi: VirtualMachineInstance) -> MigrationCompatibility:
    return MigrationCompatibility(
        metadata=ObjectMeta(
            name=vmi.metadata.name,
            namespace=vmi.metadata.namespace,
            labels={MANAGED_BY: MANAGER},
            owner_references=[_owner(vmi)],
        ),
        spec=MigrationCompatibilitySpec(virtual_machine_instance=VMIReference(vmi.metadata.name)),
    )


def _adoption(item: MigrationCompatibility, vmi: VirtualMachineInstance | None) -> OwnerReference | None:
    """Our object follows its VM over a restart, which makes a VMI of the same name and another UID."""
    if vmi is None or not is_ours(item):
        return None
    owners = {owner.uid for owner in item.metadata.owner_references or ()}
    return _owner(vmi) if vmi.metadata.uid not in owners else None


def _desired(
    fleet: Fleet, item: MigrationCompatibility
) -> tuple[MigrationCompatibilityStatus, Survey | None]:
    question = ask(fleet, item)
    if isinstance(question, Unanswerable):
        return unanswerable(question.reason, question.message), None
    survey = fleet.survey(question.migrant)
    asked = question.vmi.metadata.name if question.vmi is not None else ""
    return (
        answer(question.migrant, survey, question.vmi),
        survey if asked == item.metadata.name else None,
    )


def _stamped(old: list[Condition], new: list[Condition], now: str) -> list[Condition]:
    conditions = old
    for one in new:
        conditions = set_condition(conditions, one, now)
    return conditions


def _is_urgent(old: MigrationCompatibilityStatus, new: MigrationCompatibilityStatus) -> bool:
    """A change of MIGRATABLE, REASON or the source is written at once, a mere count may wait."""
    return (
        old.observed_generation != new.observed_generation
        or _verdict(old) != _verdict(new)
        or old.source != new.source
    )


def _verdict(status: MigrationCompatibilityStatus) -> tuple[str, str]:
    found = condition(status, MIGRATABLE)
    return (found.status, found.reason) if found is not None else ("", "")


def _verdict_events(
    item: MigrationCompatibility, new: MigrationCompatibilityStatus, vmi: VirtualMachineInstance | None
) -> tuple[Announcement, ...]:
    """The VM's own object tells on the VM when MIGRATABLE or REASON changed; a good start is no news."""
    asked = item.spec.virtual_machine_instance
    if vmi is None or asked is None or asked.name != item.metadata.name:
        return ()
    before, after = _verdict(item.status), _verdict(new)
    found = condition(new, MIGRATABLE)
    if found is None or before == after:
        return ()
    about = say.about_vmi(vmi)
    if found.status == "False":
        text = f"{found.reason}: {found.message}"
        return (Announcement(about, say.WARNING, say.MIGRATION_IMPOSSIBLE, text),)
    if found.status == "True" and before[0] == "False":
        return (Announcement(about, say.NORMAL, say.MIGRATION_POSSIBLE, found.message),)
    return ()


def _annotation_events(vmi: VirtualMachineInstance, allow_loosening: bool) -> tuple[Announcement, ...]:
    wish = intent(vmi.metadata.annotations, allow_loosening=allow_loosening)
    about = say.about_vmi(vmi)
    told = []
    if wish.warnings:
        text = "; ".join(wish.warnings) + ". The strict reading counts."
        told.append(Announcement(about, say.WARNING, say.UNKNOWN_ANNOTATION_VALUE, text, text))
    if wish.loosened:
        text = f"The VM's annotations loosen the rules for its migrations: {', '.join(wish.loosened)}."
        told.append(Announcement(about, say.NORMAL, say.RULES_LOOSENED, text, text))
    if wish.denied:
        text = (
            f"Not honoured: {', '.join(wish.denied)}. "
            "Only the cluster's administrator can allow annotations that loosen the rules."
        )
        told.append(Announcement(about, say.WARNING, say.LOOSENING_IGNORED, text, text))
    return tuple(told)
