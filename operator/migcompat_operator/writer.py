"""Carries plans out: the only module that writes to the API server.

The client limits the rate of writes. Every write names what it was based on where that matters: deletions
carry the UID, status patches are differences to the status last seen.
"""

from __future__ import annotations

import logging

import msgspec
from migcompat.api import names
from migcompat.api.cluster import Pod
from migcompat.api.compatibilitypolicy import CompatibilityPolicy, CompatibilityPolicyStatus
from migcompat.api.migrationcompatibility import MigrationCompatibility
from migcompat.kube.client import Client
from migcompat.kube.errors import Conflict, NotFound
from migcompat.kube.events import EventRecorder
from migcompat.kube.kinds import COMPATIBILITIES, PODS, POLICIES, VMIMS

from migcompat_operator.announcement import Announcement, Said
from migcompat_operator.metrics import Metrics
from migcompat_operator.mirror import Mirror
from migcompat_operator.reconcile import Plan, merge_patch, wire
from migcompat_operator.retries import Touch
from migcompat_operator.targets import TargetPlan

log = logging.getLogger(__name__)

COMPONENT = "migcompat-operator"


class Writer:
    """Writes plans, tells the mirror what the API server answered, and counts.

    Every method raises ApiError when the API server refuses or cannot be reached, and those that say events
    return False when one was not said; the worker tries again.
    """

    def __init__(self, client: Client, mirror: Mirror, metrics: Metrics) -> None:
        self._client = client
        self._mirror = mirror
        self._metrics = metrics
        self._recorder = EventRecorder(client, COMPONENT)
        self._said = Said()

    async def question(self, key: tuple[str, str], item: MigrationCompatibility | None, plan: Plan) -> bool:
        """Carry out the plan for the MigrationCompatibility at *key*; *item* is what it was made from."""
        namespace, name = key
        try:
            if plan.delete and item is not None:
                await self._client.delete(COMPATIBILITIES, name, namespace, uid=item.metadata.uid)
                self._count("delete")
                log.info(
                    "MigrationCompatibility %s/%s deleted: its VM is over or without devices", namespace, name
                )
                return True
            if plan.create is not None:
                item = await self._client.create(COMPATIBILITIES, plan.create, namespace)
                self._count("create")
                self._mirror.put(COMPATIBILITIES, item)
            if item is not None and plan.adopt is not None:
                owners = {"metadata": {"ownerReferences": [msgspec.to_builtins(plan.adopt)]}}
                item = await self._client.patch(COMPATIBILITIES, name, owners, namespace)
                self._count("adopt")
                self._mirror.put(COMPATIBILITIES, item)
            if item is not None and plan.status is not None:
                await self._status(item, plan)
        except (NotFound, Conflict) as problem:
            # Someone else was faster; the watch brings what there is now.
            log.info("MigrationCompatibility %s/%s changed meanwhile: %s", namespace, name, problem)
            return not plan.events
        return await self.say(plan.events)

    async def target(self, pod: Pod, plan: TargetPlan) -> bool:
        """Carry out the plan for a target pod."""
        meta = pod.metadata
        try:
            if plan.stamp or plan.unstamp:
                patch = {"metadata": {"uid": meta.uid, "annotations": {names.SOURCE: plan.stamp or None}}}
                self._mirror.put(PODS, await self._client.patch(PODS, meta.name, patch, meta.namespace))
                self._count("stamp")
            if plan.delete:
                await self._client.delete(PODS, meta.name, meta.namespace, uid=meta.uid)
                self._count("delete-target")
                log.info("target pod %s/%s deleted: its guard refused", meta.namespace, meta.name)
        except (NotFound, Conflict) as problem:
            log.info("target pod %s/%s has gone meanwhile: %s", meta.namespace, meta.name, problem)
        return await self.say(plan.events)

    async def policy(self, item: CompatibilityPolicy, status: CompatibilityPolicyStatus) -> None:
        """Write the status of a policy."""
        name = item.metadata.name
        told = {"devices": 0, "nodes": 0, **msgspec.to_builtins(status)}
        try:
            written = await self._client.patch(POLICIES, name, {"status": told}, subresource="status")
        except NotFound:
            log.info("CompatibilityPolicy %s has gone meanwhile", name)
            return
        self._count("policy-status")
        self._mirror.put(POLICIES, written)

    async def touch(self, touch: Touch) -> None:
        """Make virt-controller try a migration again now."""
        namespace, name = touch.migration
        patch = {"metadata": {"annotations": {names.RETRY: touch.value}}}
        try:
            self._mirror.put(VMIMS, await self._client.patch(VMIMS, name, patch, namespace))
            self._count("retry")
            log.info("migration %s/%s: asked for another try", namespace, name)
        except NotFound:
            log.info("migration %s/%s has gone meanwhile", namespace, name)

    async def wake(self, pod: Pod, touch: Touch) -> None:
        """Make kube-scheduler try a target pod again now.

        One that an extender refused is tried again at any change that kube-scheduler sees, of the pod itself
        too; that a device is published as free is none. Else it would wait for five minutes.
        """
        meta = pod.metadata
        patch = {"metadata": {"uid": meta.uid, "annotations": {names.RETRY: touch.value}}}
        try:
            self._mirror.put(PODS, await self._client.patch(PODS, meta.name, patch, meta.namespace))
            self._count("retry")
            log.info("target pod %s/%s: asked for another try", meta.namespace, meta.name)
        except (NotFound, Conflict):
            log.info("target pod %s/%s has gone meanwhile", meta.namespace, meta.name)

    async def say(self, announcements: tuple[Announcement, ...]) -> bool:
        """Record those of *announcements* that are news; whether all of them are said now."""
        all_said = True
        for one in announcements:
            if not self._said.is_news(one):
                continue
            if await self._recorder.record(one.about, one.type, one.reason, one.message):
                self._said.remember(one)
                self._count("event")
            else:
                all_said = False
        return all_said

    async def _status(self, item: MigrationCompatibility, plan: Plan) -> None:
        if plan.status is None:
            return
        known = wire(item.status) if item.status.conditions else {}
        written = await self._client.patch(
            COMPATIBILITIES,
            item.metadata.name,
            {"status": merge_patch(known, wire(plan.status))},
            item.metadata.namespace,
            subresource="status",
        )
        self._count("status")
        self._mirror.put(COMPATIBILITIES, written)

    def _count(self, what: str) -> None:
        self._metrics.written.labels(what).inc()
