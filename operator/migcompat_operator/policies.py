"""What each CompatibilityPolicy governs, and what is wrong with it, as its status. Pure.

Semantics §5: the most specific policy governs a device; of equally specific ones the first by name does, and
both say so in a condition (``Unambiguous``).
"""

from __future__ import annotations

import msgspec
from migcompat.api.compatibilitypolicy import CompatibilityPolicy, CompatibilityPolicyStatus
from migcompat.api.conditions import set_condition
from migcompat.api.meta import Condition
from migcompat.fleet.fleet import Fleet
from migcompat.fleet.policies import Selected, facts_of

ACCEPTED = "Accepted"
UNAMBIGUOUS = "Unambiguous"
INVALID_SPEC = "InvalidSpec"
EQUALLY_SPECIFIC = "EquallySpecific"
NO_TIE = "NoTie"


class Governed(msgspec.Struct):
    """*devices* on *nodes* are governed by a policy; *rivals* select some device just as specifically."""

    devices: int = 0
    nodes: int = 0
    rivals: set[str] = msgspec.field(default_factory=set)


def governed(fleet: Fleet) -> dict[str, Governed]:
    """What each policy governs, by its name. One look at every device of the cluster."""
    found: dict[str, Governed] = {}
    for item in fleet.vfionodes():
        labels = fleet.labels(item.metadata.name)
        here = [
            (fleet.policies.select(facts_of(device), labels), device.count) for device in item.status.devices
        ]
        for selected, count in here:
            _count(found, selected, count)
        for name in {selected.name for selected, _ in here if selected.name}:
            found[name].nodes += 1
    return found


def policy_status(
    fleet: Fleet, item: CompatibilityPolicy, found: Governed | None, *, now: str
) -> CompatibilityPolicyStatus | None:
    """The status of *item*, which governs *found*; None when that is what *item* says already."""
    found = found or Governed()
    status = CompatibilityPolicyStatus(
        observed_generation=item.metadata.generation, devices=found.devices, nodes=found.nodes
    )
    conditions = item.status.conditions
    for one in (_accepted(fleet, item), _unambiguous(item, found)):
        conditions = set_condition(conditions, one, now)
    status.conditions = conditions
    return status if status != item.status else None


def _count(found: dict[str, Governed], selected: Selected, count: int) -> None:
    if not selected.name:
        return
    found.setdefault(selected.name, Governed()).devices += count
    for name in selected.tied:
        found.setdefault(name, Governed()).rivals.update(set(selected.tied) - {name})


def _accepted(fleet: Fleet, item: CompatibilityPolicy) -> Condition:
    problem = fleet.policies.problems.get(item.metadata.name)
    if problem:
        return Condition(ACCEPTED, "False", INVALID_SPEC, f"{problem}. The policy is ignored.")
    return Condition(ACCEPTED, "True", ACCEPTED, "The policy is understood and in force.")


def _unambiguous(item: CompatibilityPolicy, found: Governed) -> Condition:
    if not found.rivals:
        text = "No equally specific policy selects the same device."
        return Condition(UNAMBIGUOUS, "True", NO_TIE, text)
    names = sorted({item.metadata.name, *found.rivals})
    text = (
        f"Policies {', '.join(names[:10])} select the same devices equally specifically; "
        "the first by name governs them. Give one of them another selector key."
    )
    return Condition(UNAMBIGUOUS, "False", EQUALLY_SPECIFIC, text)
