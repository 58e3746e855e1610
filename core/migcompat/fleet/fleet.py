"""The cluster as far as it decides where a VM may go, kept up to date object by object.

A VFIONode counts only while its Node is known and has the same boot id: device ids and drivers of an earlier
boot say nothing (contract, Device plugin).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from migcompat.api import names
from migcompat.api.cluster import Node, Pod, VirtualMachineInstance, extended
from migcompat.api.compatibilitypolicy import CompatibilityPolicy
from migcompat.api.vfionode import Device, VFIONode
from migcompat.fleet.devices import migrant_device, target
from migcompat.fleet.fit import Fit, Target, fit
from migcompat.fleet.intent import Intent, intent
from migcompat.fleet.judge import Judge
from migcompat.fleet.migrant import Migrant, MigrantDevice
from migcompat.fleet.policies import PolicySet, Selected, facts_of
from migcompat.fleet.stock import Stock
from migcompat.fleet.survey import Survey, summarise

NO_DEVICES = "NoDevices"
NO_VFIONODE = "NoVFIONode"
STALE_VFIONODE = "StaleVFIONode"
UNSCHEDULABLE = "NodeUnschedulable"

FOLDED_LIMIT = 512
"""Devices of one entry that are looked at: a node runs fewer pods, so more can never be asked for at once."""

PodKey = tuple[str, str]
"""Namespace and name."""


class Offer(msgspec.Struct, frozen=True):
    """A device that a node publishes, as a target, and the policy that governs it."""

    device: Device
    target: Target
    selected: Selected


Preference = tuple[bool, bool, tuple[int, ...], int, int]
"""Smaller is better: not free; version not known; its distance; how common, how many devices, negated."""


class Fleet:
    """Objects in, answers out. Not thread-safe: one event loop owns it.

    *allow_loosening*: whether annotations of a VMI may make it laxer (a chart value, off by default).
    """

    def __init__(self, *, allow_loosening: bool = False) -> None:
        self.generation = 0
        """Bumped on every effective change."""
        self.policies = PolicySet()
        self._allow_loosening = allow_loosening
        self._vfionodes: dict[str, VFIONode] = {}
        self._nodes: dict[str, Node] = {}
        self._policy_objects: dict[str, CompatibilityPolicy] = {}
        self._pods: dict[PodKey, Pod] = {}
        self._pods_on: dict[str, set[PodKey]] = {}
        self._pods_of: dict[str, set[PodKey]] = {}
        self._vmis: dict[PodKey, VirtualMachineInstance] = {}
        self._vmi_keys: dict[str, PodKey] = {}
        self._pools: dict[str, int] = {}
        self._offers: dict[str, frozenset[str]] = {}
        self._offering: dict[str, set[str]] = {}
        self._targets: dict[str, list[Target]] = {}
        self._judge = Judge()
        self._stock = Stock(self._judge)
        self._uncounted: set[str] = set()

    # -- objects in ---------------------------------------------------------------------------------------

    def put_vfionode(self, item: VFIONode) -> bool:
        """A VFIONode as it is now. Returns whether anything that counts changed."""
        name = item.metadata.name
        old = self._vfionodes.get(name)
        if old is not None and old.status == item.status:
            return False
        self._count_pools(old, -1)
        self._count_pools(item, 1)
        self._vfionodes[name] = item
        return self._changed(name)

    def drop_vfionode(self, name: str) -> bool:
        """A VFIONode is gone."""
        old = self._vfionodes.pop(name, None)
        self._count_pools(old, -1)
        return old is not None and self._changed(name)

    def put_node(self, item: Node) -> bool:
        """A Node as it is now.

        Its labels, its boot id and whether it takes pods count; what its kubelet offers only for
        :meth:`offering`, and is no change.
        """
        name = item.metadata.name
        old = self._nodes.get(name)
        self._offer(name, extended(item.status.allocatable or {}))
        status = msgspec.structs.replace(item.status, allocatable=None)
        item = self._nodes[name] = msgspec.structs.replace(item, status=status)
        if old is not None and _node_state(old) == _node_state(item):
            return False
        return self._changed(name)

    def drop_node(self, name: str) -> bool:
        """A Node is gone."""
        self._offer(name, ())
        return self._nodes.pop(name, None) is not None and self._changed(name)

    def put_policy(self, item: CompatibilityPolicy) -> bool:
        """A CompatibilityPolicy as it is now."""
        old = self._policy_objects.get(item.metadata.name)
        self._policy_objects[item.metadata.name] = item
        return (old is None or bytes(old.spec) != bytes(item.spec)) and self._rebuild_policies()

    def drop_policy(self, name: str) -> bool:
        """A CompatibilityPolicy is gone."""
        return self._policy_objects.pop(name, None) is not None and self._rebuild_policies()

    def put_pod(self, item: Pod) -> bool:
        """A launcher pod as it is now (other pods are not needed)."""
        key = (item.metadata.namespace, item.metadata.name)
        old = self._pods.get(key)
        if old is not None and _pod_state(old) == _pod_state(item):
            self._pods[key] = item
            return False
        self._forget_pod(key)
        self._pods[key] = item
        self._pods_on.setdefault(item.spec.node_name, set()).add(key)
        self._pods_of.setdefault(_owner(item), set()).add(key)
        return self._changed()

    def drop_pod(self, namespace: str, name: str) -> bool:
        """A launcher pod is gone."""
        return self._forget_pod((namespace, name)) and self._changed()

    def put_vmi(self, item: VirtualMachineInstance) -> bool:
        """A VMI as it is now."""
        key = (item.metadata.namespace, item.metadata.name)
        old = self._vmis.get(key)
        self._vmis[key] = item
        self._vmi_keys[item.metadata.uid] = key
        if old is None:
            return self._changed()
        if old.metadata.uid != item.metadata.uid:
            self._vmi_keys.pop(old.metadata.uid, None)
        same = (
            old.metadata.uid == item.metadata.uid
            and old.metadata.annotations == item.metadata.annotations
            and old.spec == item.spec
            and old.status == item.status
        )
        return not same and self._changed()

    def drop_vmi(self, namespace: str, name: str) -> bool:
        """A VMI is gone."""
        old = self._vmis.pop((namespace, name), None)
        if old is None:
            return False
        self._vmi_keys.pop(old.metadata.uid, None)
        return self._changed()

    # -- answers out --------------------------------------------------------------------------------------

    def is_ours(self, resource: str) -> bool:
        """Whether a resource name is a pool of VFIO devices: some node offers it, or it is in our domain."""
        return resource in self._pools or resource.startswith(names.RESOURCE_DOMAIN + "/")

    def vmi(self, namespace: str, name: str) -> VirtualMachineInstance | None:
        """A VMI by name."""
        return self._vmis.get((namespace, name))

    def vmis(self) -> list[VirtualMachineInstance]:
        """All VMIs with VFIO devices."""
        return [vmi for vmi in self._vmis.values() if any(map(self.is_ours, vmi.device_names()))]

    def pods_of(self, vmi_uid: str) -> list[Pod]:
        """The launcher pods of a VMI."""
        return [self._pods[key] for key in sorted(self._pods_of.get(vmi_uid, ()))]

    def node(self, name: str) -> Node | None:
        """A Node by name."""
        return self._nodes.get(name)

    def vfionode(self, name: str) -> VFIONode | None:
        """The VFIONode of a node, whether or not it counts."""
        return self._vfionodes.get(name)

    def vfionodes(self) -> Iterator[VFIONode]:
        """Every VFIONode, whether or not it counts, by name."""
        return (self._vfionodes[name] for name in sorted(self._vfionodes))

    def node_problem(self, name: str) -> tuple[str, str] | None:
        """Why the node's VFIONode does not count, as (reason, message), or None when it does."""
        item, node = self._vfionodes.get(name), self._nodes.get(name)
        if item is None or node is None:
            return NO_VFIONODE, "no agent publishes what the node's devices accept"
        if item.status.boot_id != node.status.node_info.boot_id:
            return STALE_VFIONODE, "what is published of the node's devices is from before its last boot"
        return None

    def intent(self, vmi: VirtualMachineInstance) -> Intent:
        """What the VM's annotations come to."""
        return intent(vmi.metadata.annotations, allow_loosening=self._allow_loosening)

    def migrant(self, vmi: VirtualMachineInstance) -> Migrant:
        """The VM as something to be moved, with what its devices say now."""
        meta = vmi.metadata
        wish = self.intent(vmi)
        asks: dict[str, int] = {}
        for resource in filter(self.is_ours, vmi.device_names()):
            asks[resource] = asks.get(resource, 0) + 1
        node = vmi.status.node_name
        devices, problem = self._source_devices(meta.namespace, meta.uid, node, asks)
        return Migrant(
            namespace=meta.namespace,
            name=meta.name,
            uid=meta.uid,
            node=node,
            asks=asks,
            devices=devices,
            mode=wish.mode,
            require_return_path=wish.require_return_path,
            deny_cross_type=wish.deny_cross_type,
            allow_cross_type=wish.allow_cross_type,
            problem=problem,
        )

    def migrant_for_pod(self, pod: Pod) -> Migrant | None:
        """The VM behind a migration target that asks for one of our pools, else None."""
        asks = {resource: count for resource, count in pod.asks().items() if self.is_ours(resource)}
        if not pod.is_migration_target or not asks:
            return None
        labels, annotations = pod.metadata.labels or {}, pod.metadata.annotations or {}
        uid = labels.get(names.CREATED_BY, "")
        name = annotations.get(names.VMI_NAME, "")
        vmi = self._vmis.get(self._vmi_keys.get(uid, (pod.metadata.namespace, name)))
        if vmi is None or vmi.metadata.uid != uid or vmi.metadata.namespace != pod.metadata.namespace:
            wish = intent(annotations, allow_loosening=self._allow_loosening)
            return Migrant(
                namespace=pod.metadata.namespace,
                name=name,
                uid=uid,
                node=labels.get(names.NODE_NAME, ""),
                asks=asks,
                mode=wish.mode,
                problem="the VirtualMachineInstance of the target pod is not known",
            )
        migrant = self.migrant(vmi)
        if labels.get(names.NODE_NAME, migrant.node) != migrant.node:
            return msgspec.structs.replace(
                migrant,
                devices=(),
                problem="target pod and VMI name different source nodes",
            )
        if migrant.asks != asks:
            return msgspec.structs.replace(
                migrant, asks=asks, devices=(), problem="target pod and VMI ask for different devices"
            )
        return migrant

    def device_migrant(self, node: str, device_id: str) -> Migrant:
        """A question about one device of a node, as if a VM held just it."""
        item = self._vfionodes.get(node)
        found = next((d for d in item.status.devices if d.id == device_id), None) if item else None
        base = Migrant(namespace="", name="", uid="", node=node)
        if item is None or found is None:
            return msgspec.structs.replace(base, problem=f"node {node} publishes no device {device_id}")
        device = self._migrant_device(item, found)
        if device is None:
            return msgspec.structs.replace(base, problem=f"VFIONode {node} lacks the profile of {device_id}")
        return msgspec.structs.replace(base, asks={found.resource: 1}, devices=(device,))

    def fit(self, migrant: Migrant, node: str) -> Fit:
        """Does the VM fit the node?"""
        problem = self.node_problem(node)
        if problem is not None:
            return Fit(False, False, *problem)
        targets = self._targets_of(node)
        pools = {target.resource for target in targets}
        for resource in sorted(migrant.asks):
            if resource not in pools:
                return Fit(False, False, NO_DEVICES, f"no device of {resource}")
        wanted = [target for target in targets if target.resource in migrant.asks]
        return fit(migrant, wanted, self._judge, self._reserved(migrant, node))

    def candidates(self, migrant: Migrant) -> Iterator[str]:
        """Nodes other than the source that publish devices of each pool the VM asks for, by name."""
        for name in sorted(self._vfionodes):
            if name == migrant.node or name not in self._nodes:
                continue
            pools = {device.resource for device in self._vfionodes[name].status.devices}
            if migrant.asks and all(resource in pools for resource in migrant.asks):
                yield name

    def offering(self, resources: Iterable[str]) -> set[str]:
        """Nodes whose kubelets have devices of each of *resources*, whoever publishes them or not.

        That is what kube-scheduler goes by.
        """
        found = [self._offering.get(resource, set()) for resource in resources]
        return set.intersection(*found) if found else set()

    def survey(self, migrant: Migrant) -> Survey:
        """Where the VM could go, where not, and why."""
        return summarise({name: self.standing(migrant, name) for name in self.candidates(migrant)})

    def standing(self, migrant: Migrant, node: str) -> Fit:
        """:meth:`fit`, but a cordoned or not ready node is not free, whatever its devices.

        A target steered there would wait in vain and hold one of KubeVirt's few slots. :meth:`fit` leaves
        that to kube-scheduler.
        """
        found = self.fit(migrant, node)
        if found.free and not self._nodes[node].takes_pods:
            return msgspec.structs.replace(
                found, free=False, reason=UNSCHEDULABLE, message="nodes that accept take no pods now"
            )
        return found

    def offered(self, node: str) -> list[Offer]:
        """The devices of *node* that count, none where its VFIONode does not."""
        if self.node_problem(node) is not None:
            return []
        item = self._vfionodes[node]
        found = []
        for device in item.status.devices:
            selected = self._selected(item, device)
            one = target(item.status, device, selected)
            if one is not None:
                found.append(Offer(device, one, selected))
        return found

    def promised(self, migrant: Migrant, node: str) -> dict[PodKey, int]:
        """Other VMs' launcher pods on *node* that lack devices of the asked pools yet, and how many."""
        pods = self._pods_on.get(node)
        item = self._vfionodes.get(node)
        if not pods or item is None:
            return {}
        held = Counter(
            (device.allocated_to.namespace, device.allocated_to.name, device.resource)
            for device in item.status.devices
            if device.allocated_to is not None
        )
        found: dict[PodKey, int] = {}
        for key in pods:
            pod = self._pods[key]
            if pod.is_over or _owner(pod) == migrant.uid:
                continue
            for resource, count in pod.asks().items():
                lacking = count - held[*key, resource]
                if resource in migrant.asks and lacking > 0:
                    found[key] = found.get(key, 0) + lacking
        return found

    def preference(self, migrant: Migrant, node: str, fit: Fit) -> Preference:
        """How gladly the VM goes to *node*, which it fits as *fit* says (docs/concepts.md, Which node first).

        The nearest version first (semantics §3, rule V); then where devices are taken that others can best
        do without; then where most are free. Counts only what changed since the last call, not the fleet.
        """
        for name in self._uncounted:
            counts = self.node_problem(name) is None
            targets = self._targets_of(name) if counts else []
            self._stock.put(name, targets, takes_pods=counts and self._nodes[name].takes_pods)
        self._uncounted.clear()
        common = self._stock.common(node, (assigned.id for assigned in fit.assignment))
        spare = self._stock.spare(node, migrant.asks) - self._reserved(migrant, node)
        return not fit.free, fit.rank is None, fit.rank or (), -common, -spare

    def preferences(self, migrant: Migrant, fits: Mapping[str, Fit]) -> dict[str, Preference]:
        """The accepting nodes of *fits*, the most preferred first, for equal ones by name."""
        found = {name: self.preference(migrant, name, fit) for name, fit in fits.items() if fit.compatible}
        return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))

    # -- inside -------------------------------------------------------------------------------------------

    def _source_devices(
        self, namespace: str, uid: str, node: str, asks: dict[str, int]
    ) -> tuple[tuple[MigrantDevice, ...], str]:
        if not node:
            return (), "the VM runs on no node of this cluster"
        item = self._vfionodes.get(node)
        problem = self.node_problem(node)
        if item is None or problem is not None:
            return (), f"source: {problem[1] if problem else 'unknown'}"
        holders = {
            pod.metadata.name for pod in self.pods_of(uid) if pod.spec.node_name == node and not pod.is_over
        }
        found = [
            device
            for device in item.status.devices
            if device.allocated_to is not None
            and device.allocated_to.namespace == namespace
            and device.allocated_to.name in holders
            and device.resource in asks
        ]
        counts = {resource: sum(d.resource == resource for d in found) for resource in asks}
        if counts != asks:
            return (), "source: the agent has not published which devices the VM holds"
        devices = [self._migrant_device(item, device) for device in found]
        if any(device is None for device in devices):
            return (), "source: its VFIONode lacks a profile"
        return tuple(device for device in devices if device is not None), ""

    def _migrant_device(self, item: VFIONode, device: Device) -> MigrantDevice | None:
        return migrant_device(item.status, device, self._selected(item, device))

    def _selected(self, item: VFIONode, device: Device) -> Selected:
        return self.policies.select(facts_of(device), self.labels(item.metadata.name))

    def _targets_of(self, node: str) -> list[Target]:
        targets = self._targets.get(node)
        if targets is None:
            item = self._vfionodes[node]
            targets = self._targets[node] = []
            for device in item.status.devices:
                one = target(item.status, device, self._selected(item, device))
                if one is not None:
                    targets += [one] * min(device.count, FOLDED_LIMIT)
        return targets

    def _reserved(self, migrant: Migrant, node: str) -> int:
        return sum(self.promised(migrant, node).values())

    def labels(self, node: str) -> dict[str, str]:
        """The labels of a node, by which policies select it."""
        found = self._nodes.get(node)
        return (found.metadata.labels or {}) if found else {}

    def _rebuild_policies(self) -> bool:
        self.policies = PolicySet(self._policy_objects.values())
        self._targets.clear()
        self._uncounted.update(self._vfionodes)
        return self._changed()

    def _offer(self, node: str, resources: Iterable[str]) -> None:
        """What the kubelet of *node* offers from now on."""
        before, now = self._offers.get(node, frozenset()), frozenset(resources)
        for resource in before - now:
            self._offering[resource].discard(node)
            if not self._offering[resource]:
                del self._offering[resource]
        for resource in now - before:
            self._offering.setdefault(resource, set()).add(node)
        if now:
            self._offers[node] = now
        else:
            self._offers.pop(node, None)

    def _count_pools(self, item: VFIONode | None, step: int) -> None:
        for resource in {device.resource for device in item.status.devices} if item else ():
            left = self._pools.get(resource, 0) + step
            if left:
                self._pools[resource] = left
            else:
                del self._pools[resource]

    def _forget_pod(self, key: PodKey) -> bool:
        old = self._pods.pop(key, None)
        if old is None:
            return False
        for index, value in ((self._pods_on, old.spec.node_name), (self._pods_of, _owner(old))):
            index[value].discard(key)
            if not index[value]:
                del index[value]
        return True

    def _changed(self, node: str = "") -> bool:
        if node:
            self._targets.pop(node, None)
            self._uncounted.add(node)
        self.generation += 1
        return True


def _node_state(node: Node) -> tuple[object, ...]:
    return node.metadata.labels, node.status.node_info, node.takes_pods


def _owner(pod: Pod) -> str:
    return (pod.metadata.labels or {}).get(names.CREATED_BY, "")


def _pod_state(pod: Pod) -> tuple[object, ...]:
    return pod.spec, pod.is_over, pod.metadata.labels, pod.metadata.uid
