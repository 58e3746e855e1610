"""What is to be done about a migration's target pod. Pure.

* A pod whose stamp is not what we would write gets ours (contract, Labels and annotations): the webhook may
  be off or have known less, and KubeVirt copies the annotations of a VM, which its tenant writes, to the pod.
* A pod whose guard refused never starts and would be retried by the kubelet for ever (measured): it goes.
* A pod that no node takes says so on itself.
"""

from __future__ import annotations

import msgspec
from migcompat.api import names
from migcompat.api.cluster import Pod
from migcompat.fleet import stamp
from migcompat.fleet.fleet import Fleet
from migcompat.fleet.migrant import Mode
from migcompat.fleet.refusal import guard_refusal

from migcompat_operator import announcement as say
from migcompat_operator.announcement import Announcement
from migcompat_operator.answer import explain


class TargetPlan(msgspec.Struct):
    """*stamp*: the annotation's value to write, or empty. *unstamp*: remove the annotation.

    *delete*: the guard refused.
    """

    stamp: str = ""
    unstamp: bool = False
    delete: bool = False
    events: tuple[Announcement, ...] = ()


def reconcile_target(fleet: Fleet, pod: Pod) -> TargetPlan:
    """The plan for a launcher pod; an empty one unless it is a migration target that is not running yet."""
    if not pod.is_migration_target or pod.is_over:
        return TargetPlan()
    leaves = pod.metadata.deletion_timestamp is not None
    refusal = guard_refusal(pod)
    if refusal:
        return TargetPlan(delete=not leaves, events=_refused(fleet, pod, refusal))
    if leaves or pod.status.phase not in ("", "Pending"):
        return TargetPlan()
    migrant = fleet.migrant_for_pod(pod)
    if migrant is None:
        return TargetPlan()
    plan = TargetPlan()
    uid = (pod.metadata.labels or {})[names.MIGRATION_UID]
    if not migrant.problem:
        _correct_stamp(pod, stamp.encode(migrant, uid, pod.metadata.annotations), plan)
    if not pod.spec.node_name and migrant.mode is Mode.ENFORCE:
        survey = fleet.survey(migrant)
        if not survey.free:
            causes = " ".join(sorted({group.reason for group in survey.groups}))
            cause = f"{bool(survey.compatible)} {bool(survey.total)} {causes}"
            text = explain(migrant, survey)
            plan.events = (Announcement(say.about_pod(pod), say.WARNING, say.NO_ACCEPTING_NODE, text, cause),)
    return plan


def _correct_stamp(pod: Pod, ours: str, plan: TargetPlan) -> None:
    """Whatever differs from *ours* (empty when too large) is replaced; equal content is not written again."""
    theirs = (pod.metadata.annotations or {}).get(names.SOURCE)
    if theirs != ours:
        plan.stamp = ours
        plan.unstamp = not ours and theirs is not None


def _refused(fleet: Fleet, pod: Pod, refusal: str) -> tuple[Announcement, ...]:
    labels, annotations = pod.metadata.labels or {}, pod.metadata.annotations or {}
    cause = pod.metadata.uid
    told = [Announcement(say.about_pod(pod), say.WARNING, say.GUARD_REFUSED, refusal, cause)]
    vmi = fleet.vmi(pod.metadata.namespace, annotations.get(names.VMI_NAME, ""))
    if vmi is not None and vmi.metadata.uid == labels.get(names.CREATED_BY):
        where = f" on node {pod.spec.node_name}" if pod.spec.node_name else ""
        text = f"Target pod {pod.metadata.name}{where} is deleted: {refusal}"
        told.append(Announcement(say.about_vmi(vmi), say.WARNING, say.GUARD_REFUSED, text, cause))
    return tuple(told)
