"""What is to be done about one MigrationCompatibility. Pure: objects in, a plan out."""

from __future__ import annotations

from typing import Any

import msgspec
from migcompat.api import names
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
from migcompat_operator.answer import KUBEVIRT_NOT_MIGRATABLE, MIGRATABLE, answer, condition, unanswerable
from migcompat_operator.memory import Verdict
from migcompat_operator.question import Question, Unanswerable, ask

VMI_API = "kubevirt.io/v1"


class Plan(msgspec.Struct):
    """What the writer does, in this order.

    ``urgent``: MIGRATABLE, REASON or the source changes. ``held``: the answer is in doubt and left as it was.
    ``is_definite``: MIGRATABLE is True or False. ``tells``: the verdict that the VM's events have told once
    ``events`` are said; empty when they tell none. ``survey``: of the VM that has the object's name, if that
    and nothing else is what the object asks.
    """

    create: MigrationCompatibility | None = None
    delete: bool = False
    adopt: OwnerReference | None = None
    status: MigrationCompatibilityStatus | None = None
    urgent: bool = False
    held: bool = False
    is_definite: bool = False
    tells: Verdict = ("", "")
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
    told: Verdict | None = None,
    hold: bool = False,
) -> Plan:
    """The plan for a name at which *existing* and a *vmi* may be found.

    *now* (RFC 3339) becomes the transition time of conditions whose status changes. *told* is the last
    definite verdict that events told of *vmi* (None: what :func:`told_before` finds). With *hold*, a definite
    answer stays while the devices of a running VM are not published yet.
    """
    item = existing
    events = _annotation_events(vmi, allow_loosening) if vmi is not None and _is_wanted(fleet, vmi) else ()
    if item is None:
        if vmi is None or not _is_wanted(fleet, vmi):
            return Plan()
        item = _for_vmi(vmi)
    elif item.metadata.deletion_timestamp is not None:
        return Plan(events=events)
    elif item.is_made_by_operator and (vmi is None or not _is_kept(vmi)):
        return Plan(delete=True)
    question = ask(fleet, item)
    status, survey = _desired(fleet, item, question)
    if hold and _is_in_doubt(fleet, item, question, status) and _adoption(item, vmi) is None:
        return Plan(held=True, events=events)
    status.observed_generation = item.metadata.generation or 1
    status.conditions = _stamped(item.status.conditions, status.conditions, now)
    changed = existing is None or status != item.status
    before = told_before(existing, vmi) if told is None else told
    own = vmi is not None and asks_about(item, vmi.metadata.name)
    is_definite = _is_definite(_verdict(status))
    return Plan(
        create=item if existing is None else None,
        adopt=_adoption(item, vmi) if existing is not None else None,
        status=status if changed else None,
        urgent=changed and _is_urgent(item.status, status),
        is_definite=is_definite,
        tells=_verdict(status) if own and is_definite else ("", ""),
        events=events + (_verdict_events(before, status, vmi) if own and vmi is not None else ()),
        survey=survey,
    )


def asks_about(item: MigrationCompatibility, vmi_name: str) -> bool:
    """Whether the object's answer is the one that counts for that VM's migrations: nothing is overridden."""
    spec = item.spec
    asked = spec.virtual_machine_instance
    others = (spec.device, spec.attributes, spec.policy)
    return asked is not None and asked.name == vmi_name and all(other is None for other in others)


def told_before(existing: MigrationCompatibility | None, vmi: VirtualMachineInstance | None) -> Verdict:
    """What events of an earlier process must have told of *vmi*: what the status says, if definite."""
    if existing is None or vmi is None or not asks_about(existing, vmi.metadata.name):
        return ("", "")
    verdict = _verdict(existing.status)
    return verdict if _is_definite(verdict) and _adoption(existing, vmi) is None else ("", "")


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
    return OwnerReference(VMI_API, names.VMI_KIND, vmi.metadata.name, vmi.metadata.uid, controller=True)


def _for_vmi(vmi: VirtualMachineInstance) -> MigrationCompatibility:
    return MigrationCompatibility(
        metadata=ObjectMeta(
            name=vmi.metadata.name,
            namespace=vmi.metadata.namespace,
            labels={names.MANAGED_BY: names.OPERATOR},
            owner_references=[_owner(vmi)],
        ),
        spec=MigrationCompatibilitySpec(virtual_machine_instance=VMIReference(vmi.metadata.name)),
    )


def _adoption(item: MigrationCompatibility, vmi: VirtualMachineInstance | None) -> OwnerReference | None:
    """Our object follows its VM over a restart, which makes a VMI of the same name and another UID."""
    if vmi is None or not item.is_made_by_operator:
        return None
    owners = {owner.uid for owner in item.metadata.owner_references or ()}
    return _owner(vmi) if vmi.metadata.uid not in owners else None


def _desired(
    fleet: Fleet, item: MigrationCompatibility, question: Question | Unanswerable
) -> tuple[MigrationCompatibilityStatus, Survey | None]:
    if isinstance(question, Unanswerable):
        return unanswerable(question.reason, question.message), None
    survey = fleet.survey(question.migrant)
    return (
        answer(question.migrant, survey, question.vmi),
        survey if asks_about(item, item.metadata.name) else None,
    )


def _is_in_doubt(
    fleet: Fleet,
    item: MigrationCompatibility,
    question: Question | Unanswerable,
    new: MigrationCompatibilityStatus,
) -> bool:
    """Whether a definite answer is about to become Unknown only because devices are not published yet.

    KubeVirt's own no is no answer about devices, and an answer to another generation of the question none.
    """
    if isinstance(question, Unanswerable) or question.vmi is None:
        return False
    before = _verdict(item.status)
    return (
        question.vmi.status.phase == "Running"
        and bool(question.migrant.problem)
        and fleet.node_problem(question.migrant.node) is None
        and not _is_definite(_verdict(new))
        and _is_definite(before)
        and before[1] != KUBEVIRT_NOT_MIGRATABLE
        and item.status.observed_generation == (item.metadata.generation or 1)
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


def _is_definite(verdict: Verdict) -> bool:
    return verdict[0] in ("True", "False")


def _verdict(status: MigrationCompatibilityStatus) -> Verdict:
    found = condition(status, MIGRATABLE)
    return (found.status, found.reason) if found is not None else ("", "")


def _verdict_events(
    before: Verdict, new: MigrationCompatibilityStatus, vmi: VirtualMachineInstance
) -> tuple[Announcement, ...]:
    """What differs from *before*, the last definite verdict told on the VM; a good start is no news."""
    found = condition(new, MIGRATABLE)
    if found is None or before == _verdict(new):
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
