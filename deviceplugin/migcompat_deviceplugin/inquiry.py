"""What the API server says about a migration target: where its VM's state comes from, and by which policies.

A few GETs a migration instead of watches on every node; answered by the same Fleet that the extender asks.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple, TypeVar

import msgspec
from migcompat.api import names
from migcompat.api.cluster import Node, Pod
from migcompat.api.compatibilitypolicy import CompatibilityPolicy
from migcompat.api.meta import ObjectMeta
from migcompat.api.vfionode import PodRef, VFIONode, VFIONodeStatus
from migcompat.fleet.fleet import Fleet
from migcompat.fleet.migrant import Migrant, Mode
from migcompat.fleet.stamp import StampError, decode
from migcompat.kube.client import Client
from migcompat.kube.errors import ApiError, NotFound, Unreachable
from migcompat.kube.kinds import NODES, PODS, POLICIES, VFIONODES, VMIS, Resource

log = logging.getLogger(__name__)

T = TypeVar("T")

SOURCE_DEADLINE = 8.0
"""Seconds for the source's objects; then the stamp must do."""

TARGETS_SELECTOR = f"{names.LAUNCHER_LABEL}={names.LAUNCHER_VALUE},{names.MIGRATION_UID}"


class Rules(NamedTuple):
    """The policies, and the Node whose labels select among them."""

    policies: list[CompatibilityPolicy]
    node: Node


class Answer(NamedTuple):
    """The VM behind a target pod, and a Fleet in which this node has the devices in question."""

    fleet: Fleet
    migrant: Migrant


class Inquiry:
    """Asks for one node's agent. *allow_loosening* as for the Fleet."""

    def __init__(self, client: Client, node_name: str, *, allow_loosening: bool = False) -> None:
        self.node_name = node_name
        self.allow_loosening = allow_loosening
        self._client = client

    async def pod(self, ref: PodRef) -> Pod:
        """The pod. Raises ApiError."""
        return await self._client.get(PODS, ref.name, ref.namespace)

    async def pending_targets(self, resource: str) -> list[Pod]:
        """Migration targets bound to this node that ask for *resource* and do not run yet, oldest first.

        Raises ApiError.
        """
        pods = await self._client.list(
            PODS, labels=TARGETS_SELECTOR, fields=f"spec.nodeName={self.node_name},status.phase=Pending"
        )
        wanted = [pod for pod in pods.items if resource in pod.asks() and not pod.metadata.deletion_timestamp]
        return sorted(wanted, key=lambda pod: (pod.metadata.creation_timestamp or "", pod.metadata.name))

    async def targets_to_start(self, resource: str) -> list[Pod]:
        """Migration targets bound to this node that ask for *resource* and may have a container yet to start.

        Raises ApiError.
        """
        pods = await self._client.list(
            PODS, labels=TARGETS_SELECTOR, fields=f"spec.nodeName={self.node_name}"
        )
        return [pod for pod in pods.items if resource in pod.asks() and not (pod.is_over or _runs(pod))]

    async def rules(self) -> Rules:
        """What judges this node's devices. Raises ApiError."""
        policies, node = await asyncio.gather(
            self._client.list(POLICIES), self._client.get(NODES, self.node_name)
        )
        return Rules(policies.items, node)

    async def about(self, pod: Pod, rules: Rules, devices: VFIONodeStatus) -> Answer:
        """Who is to start in the migration target *pod*, on this node with *devices*.

        The API server is asked first, because an annotation is only as good as whoever may write it. The
        stamp counts only where the API server could not be asked, or knows the VM on the very node that the
        stamp names and lacks what that node's agent publishes; never against what it does say. Raises
        ApiError when neither tells.
        """
        fleet = Fleet(allow_loosening=self.allow_loosening)
        for policy in rules.policies:
            fleet.put_policy(policy)
        problem: ApiError | None = None
        try:
            async with asyncio.timeout(SOURCE_DEADLINE):
                await self._add_source(fleet, pod)
        except TimeoutError:
            problem = Unreachable(f"the source is not known within {SOURCE_DEADLINE:g} s")
        except ApiError as error:
            problem = error
        # As just read, so not from before the node's last boot, whatever its Node object says yet.
        devices = msgspec.structs.replace(devices, boot_id=rules.node.status.node_info.boot_id)
        fleet.put_vfionode(VFIONode(ObjectMeta(name=self.node_name), devices))
        fleet.put_node(rules.node)
        migrant = fleet.migrant_for_pod(pod)
        stamped = self.stamped(pod)
        if stamped is not None and migrant is not None:
            silent = problem is not None or (migrant.problem and _unpublished(fleet, pod, stamped.node))
            if silent and stamped.asks == migrant.asks:
                return Answer(fleet, stamped)
        if problem is not None:
            raise problem
        if migrant is None:
            raise Unreachable("the pod asks for none of our resources")
        return Answer(fleet, migrant)

    def stamped(self, pod: Pod) -> Migrant | None:
        """What the pod's stamp says, if it has one made for its own migration and VM."""
        meta = pod.metadata
        text = (meta.annotations or {}).get(names.SOURCE)
        labels = meta.labels or {}
        if text is None:
            return None
        try:
            migrant = decode(text, labels.get(names.MIGRATION_UID, ""))
        except StampError as error:
            log.warning("pod %s/%s: its stamp does not count: %s", meta.namespace, meta.name, error)
            return None
        if (migrant.namespace, migrant.uid) != (meta.namespace, labels.get(names.CREATED_BY)):
            log.warning("pod %s/%s: its stamp was made for another VM", meta.namespace, meta.name)
            return None
        if self.allow_loosening:
            return migrant
        return msgspec.structs.replace(migrant, mode=Mode.ENFORCE, allow_cross_type=False)

    async def _add_source(self, fleet: Fleet, pod: Pod) -> None:
        """Put the VMI, its pods, and its node's objects into *fleet*; what does not exist is left out."""
        meta = pod.metadata
        uid = (meta.labels or {}).get(names.CREATED_BY, "")
        name = (meta.annotations or {}).get(names.VMI_NAME, "")
        if not uid or not name:
            return
        vmi = await self._existing(VMIS, name, meta.namespace)
        if vmi is None:
            return
        fleet.put_vmi(vmi)
        source = vmi.status.node_name
        if not source:
            return
        launchers = self._client.list(PODS, meta.namespace, labels=f"{names.CREATED_BY}={uid}")
        published = self._existing(VFIONODES, source)
        runs_on = self._existing(NODES, source)
        pods, item, node = await asyncio.gather(launchers, published, runs_on)
        for held in pods.items:
            fleet.put_pod(held)
        if item is not None:
            fleet.put_vfionode(item)
        if node is not None:
            fleet.put_node(node)

    async def _existing(self, resource: Resource[T], name: str, namespace: str = "") -> T | None:
        try:
            return await self._client.get(resource, name, namespace)
        except NotFound:
            return None


def _runs(pod: Pod) -> bool:
    """Whether all containers of the pod have started."""
    statuses = pod.status.container_statuses or ()
    started = bool(statuses) and all(status.state.waiting is None for status in statuses)
    return pod.status.phase == "Running" and started


def _unpublished(fleet: Fleet, pod: Pod, node: str) -> bool:
    """Whether the pod's VM is known to run on *node*, about which nothing valid is published."""
    meta = pod.metadata
    vmi = fleet.vmi(meta.namespace, (meta.annotations or {}).get(names.VMI_NAME, ""))
    labelled = (meta.labels or {}).get(names.NODE_NAME)
    known = vmi is not None and vmi.status.node_name == node == labelled
    return known and fleet.node_problem(node) is not None
