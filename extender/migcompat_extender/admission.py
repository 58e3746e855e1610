"""``POST /mutate``: target pods get accepting nodes as node affinity, or are denied (contract, *Steering*).

Only the request is read and only the answer is written, so dry runs need no case of their own; they are not
counted in the metrics.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import msgspec
from migcompat.api import names
from migcompat.api.cluster import Pod
from migcompat.fleet import stamp
from migcompat.fleet.fleet import Fleet, Preference
from migcompat.fleet.intent import intent
from migcompat.fleet.migrant import Migrant, Mode
from migcompat.fleet.survey import Survey

from migcompat_extender.affinity import NodeAffinity
from migcompat_extender.denial import denial
from migcompat_extender.filter import NOT_READY
from migcompat_extender.jsonpatch import Operation, add, remove, write
from migcompat_extender.refusals import Refusals
from migcompat_extender.scheduler import assign
from migcompat_extender.settings import Settings
from migcompat_extender.table import Tables
from migcompat_extender.targets import may_be_ours, must_wait
from migcompat_extender.wire import (
    POD,
    UNREADABLE,
    AdmissionRequest,
    AdmissionResponse,
    Status,
    WireError,
    read_review,
    write_review,
)

_POD = msgspec.json.Decoder(Pod)

LOOSENED = "loosened"
"""Key of the audit annotation; kube-apiserver puts the webhook's name before it."""


class Admission:
    """Answers admission reviews. ``problem`` says why the fleet cannot be trusted now, or None."""

    def __init__(
        self,
        fleet: Fleet,
        tables: Tables,
        problem: Callable[[], str | None],
        settings: Settings,
        refusals: Refusals | None = None,
    ) -> None:
        self._fleet = fleet
        self._tables = tables
        self._problem = problem
        self._settings = settings
        self._refusals = refusals or Refusals()

    def answer(self, body: bytes) -> tuple[bytes, str]:
        """The AdmissionReview for *body*, and the outcome to count (empty for dry runs).

        Raises:
            WireError: the review cannot be understood.
        """
        request = read_review(body)
        try:
            response, outcome = self._review(request)
        except UNREADABLE as error:
            raise WireError(f"object of the AdmissionReview is not a Pod: {error}") from error
        return write_review(response), "" if request.dry_run else outcome

    def _review(self, request: AdmissionRequest) -> tuple[AdmissionResponse, str]:
        allowed = AdmissionResponse(request.uid, True)
        if (request.kind, request.operation, request.sub_resource) != (POD, "CREATE", ""):
            allowed.warnings = [
                "migcompat: only the creation of pods is looked at; check the webhook's rules"
            ]
            return allowed, "not_a_new_pod"
        pod = _POD.decode(request.object)
        pod.metadata.namespace = pod.metadata.namespace or request.namespace
        if not pod.is_migration_target:
            return allowed, "not_a_target"
        if problem := self._problem():
            return self._unknown(request, pod, problem)
        migrant = self._fleet.migrant_for_pod(pod)
        if migrant is None:
            return allowed, "not_ours"
        operations = _stamp(pod, migrant)
        self._note(allowed, pod, migrant.name, migrant.uid)
        outcome = "stamped"
        if migrant.mode is not Mode.IGNORE:
            operations += assign(request.object, self._settings.scheduler_name)
            table = self._tables.of(migrant)
            survey = table.survey
            affinity = NodeAffinity(request.object)
            if migrant.mode is Mode.PREFER:
                operations += affinity.prefer(
                    _groups(table.preferences), self._settings.max_names, self._settings.max_affinity_bytes
                )
                outcome = "preferred"
            elif not survey.free:
                allowed.allowed = False
                allowed.status = Status(403, denial(migrant, survey), "Forbidden")
                return allowed, "denied"
            else:
                free = [node for node in table.preferences if survey.fits[node].free]
                avoided = self._refusals.nodes(migrant.uid)
                chosen = [node for node in free if node not in avoided] or free
                operations += affinity.require(
                    chosen,
                    self._excluded(migrant, survey, chosen),
                    self._settings.max_names,
                    self._settings.max_affinity_bytes,
                    self._fleet.labels,
                )
                outcome = "steered"
        return _patched(allowed, operations), outcome

    def _excluded(self, migrant: Migrant, survey: Survey, chosen: list[str]) -> list[str]:
        """All nodes but *chosen* where kube-scheduler may find such devices, and the source.

        Those are the nodes that publish them, and those whose kubelet has them though no agent publishes
        them. kube-scheduler, which counts devices, keeps the pod off all others.
        """
        offering = self._fleet.offering(migrant.asks)
        return sorted({migrant.node, *survey.fits, *offering} - {"", *chosen})

    def _unknown(self, request: AdmissionRequest, pod: Pod, problem: str) -> tuple[AdmissionResponse, str]:
        """The cluster is not known: let the pod pass to the guard, without a stamp that is not ours.

        It keeps its scheduler, too: ours would ask an extender that may know as little, and hold the pod back
        (``CachesNotReady``), and whether the resource asked for is ours at all cannot be told.
        """
        allowed = AdmissionResponse(request.uid, True)
        if not must_wait(pod, allow_loosening=self._settings.allow_loosening):
            if may_be_ours(pod):
                self._note(allowed, pod)
            return _patched(allowed, _unstamp(pod)), "not_ours"
        text = f"migcompat: {NOT_READY}: {problem}"
        if self._settings.fail_closed:
            return AdmissionResponse(
                request.uid, False, Status(503, text, "ServiceUnavailable")
            ), "failed_closed"
        self._note(allowed, pod)
        allowed.warnings.append(f"{text}; the pod is not steered")
        return _patched(allowed, _unstamp(pod)), "failed_open"

    def _note(self, response: AdmissionResponse, pod: Pod, vmi_name: str = "", vmi_uid: str = "") -> None:
        """Say what the VM's annotations came to (contract, *Labels and annotations*).

        What makes the VM laxer and is honoured goes to the audit log; what is not understood or not honoured
        is a warning to whoever made the pod. The pod's annotations, which KubeVirt copied from the VMI, count
        where the VMI is not known.
        """
        vmi = self._fleet.vmi(pod.metadata.namespace, vmi_name)
        found = vmi.metadata if vmi is not None and vmi.metadata.uid == vmi_uid else pod.metadata
        wish = intent(found.annotations, allow_loosening=self._settings.allow_loosening)
        if wish.loosened:
            response.audit_annotations = {LOOSENED: ", ".join(wish.loosened)}
        response.warnings += [f"migcompat: {warning}; the strict reading counts" for warning in wish.warnings]
        response.warnings += [
            f"migcompat: {denied} is not honoured: only the cluster's administrator can allow it"
            for denied in wish.denied
        ]


def _patched(response: AdmissionResponse, operations: list[Operation]) -> AdmissionResponse:
    if operations:
        response.patch_type, response.patch = "JSONPatch", write(operations)
    return response


def _stamp(pod: Pod, migrant: Migrant) -> list[Operation]:
    """Write the stamp over whatever a tenant put there; one too large is left out, and the agent asks."""
    uid = (pod.metadata.labels or {}).get(names.MIGRATION_UID, "")
    text = stamp.encode(migrant, uid, pod.metadata.annotations)
    if not text:
        return _unstamp(pod)
    if not pod.metadata.annotations:
        return [add({names.SOURCE: text}, "metadata", "annotations")]
    return [add(text, "metadata", "annotations", names.SOURCE)]


def _unstamp(pod: Pod) -> list[Operation]:
    if names.SOURCE in (pod.metadata.annotations or {}):
        return [remove("metadata", "annotations", names.SOURCE)]
    return []


def _groups(preferences: Mapping[str, Preference]) -> list[list[str]]:
    """Equally preferred nodes together, in the order given."""
    return [list(group) for _, group in itertools.groupby(preferences, preferences.__getitem__)]
