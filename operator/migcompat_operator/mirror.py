"""What the operator knows of the cluster.

Objects come from two sides: kopf's watches, and lists of our own (:mod:`.resync`). The mirror takes the newer
of two versions (resource versions of one kind can be compared since Kubernetes 1.35, KEP-5504), feeds the
fleet, and marks what a change may have affected.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import msgspec
from migcompat.api import names
from migcompat.api.cluster import Pod, VirtualMachineInstanceMigration
from migcompat.api.compatibilitypolicy import CompatibilityPolicy
from migcompat.api.migrationcompatibility import MigrationCompatibility
from migcompat.fleet.fleet import Fleet
from migcompat.kube.kinds import (
    COMPATIBILITIES,
    NODES,
    PODS,
    POLICIES,
    VFIONODES,
    VMIMS,
    VMIS,
    Resource,
)

Key = tuple[str, str]
"""Namespace and name."""


class Subject(enum.Enum):
    """What a piece of work is about."""

    QUESTION = "question"
    TARGET = "target"
    POLICY = "policy"


class Dirty:
    """What must be looked at again. ``everything`` stands for all of it."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._everything = False
        self._items: dict[tuple[Subject, Key], None] = {}

    def mark(self, subject: Subject, key: Key) -> None:
        """One thing."""
        self._items[subject, key] = None
        self._wake()

    def mark_everything(self) -> None:
        """Anything may be affected."""
        self._everything = True
        self._wake()

    def take(self) -> tuple[bool, list[tuple[Subject, Key]]]:
        """Whether everything is marked, and the single marks; all are cleared."""
        taken = (self._everything, list(self._items))
        self._everything = False
        self._items = {}
        return taken


class _Kind(msgspec.Struct):
    """The versions known of one kind's objects, and of those that have gone since the last full list."""

    resource: Resource[Any]
    put: Callable[[Any], bool]
    drop: Callable[[str, str], bool]
    versions: dict[Key, int]
    gone: dict[Key, int]


class Mirror:
    """Objects in; the fleet, :attr:`dirty` and the operator's own few maps out."""

    def __init__(self, fleet: Fleet, dirty: Dirty) -> None:
        self.fleet = fleet
        self.dirty = dirty
        self.compatibilities: dict[Key, MigrationCompatibility] = {}
        self.migrations: dict[Key, VirtualMachineInstanceMigration] = {}
        self.migrations_of: dict[Key, set[Key]] = {}
        self.targets: dict[Key, Pod] = {}
        self.policies: dict[Key, CompatibilityPolicy] = {}
        rows: list[tuple[Resource[Any], Callable[[Any], bool], Callable[[str, str], bool]]] = [
            (VFIONODES, fleet.put_vfionode, lambda _, name: fleet.drop_vfionode(name)),
            (NODES, fleet.put_node, lambda _, name: fleet.drop_node(name)),
            (POLICIES, self._put_policy, self._drop_policy),
            (PODS, self._put_pod, self._drop_pod),
            (VMIS, fleet.put_vmi, fleet.drop_vmi),
            (VMIMS, self._put_migration, self._drop_migration),
            (COMPATIBILITIES, self._put_compatibility, self._drop_compatibility),
        ]
        self._kinds = {resource.plural: _Kind(resource, put, drop, {}, {}) for resource, put, drop in rows}

    @property
    def resources(self) -> list[Resource[Any]]:
        """The kinds that are mirrored, in an order in which they may be listed: facts before questions."""
        return [kind.resource for kind in self._kinds.values()]

    def put(self, resource: Resource[Any], item: Any) -> None:
        """An object as it was at its resource version; ignored when something newer is known."""
        kind = self._kinds[resource.plural]
        key = (item.metadata.namespace, item.metadata.name)
        version = _number(item.metadata.resource_version)
        if version <= max(kind.versions.get(key, -1), kind.gone.get(key, -1)):
            return
        kind.gone.pop(key, None)
        kind.versions[key] = version
        if kind.put(item):
            self.dirty.mark_everything()

    def drop(self, resource: Resource[Any], key: Key, resource_version: str) -> None:
        """An object is gone (or does not decode) as of *resource_version*, unless it is known to be back."""
        kind = self._kinds[resource.plural]
        version = _number(resource_version)
        if version < kind.versions.get(key, -1):
            return
        kind.gone[key] = version
        if kind.versions.pop(key, None) is not None and kind.drop(*key):
            self.dirty.mark_everything()

    def sync(self, resource: Resource[Any], items: list[Any], resource_version: str) -> None:
        """All objects of a kind as of *resource_version*: what is missing there and not newer, is gone."""
        kind = self._kinds[resource.plural]
        listed = {(item.metadata.namespace, item.metadata.name) for item in items}
        at = _number(resource_version)
        for key in [key for key, version in kind.versions.items() if key not in listed and version <= at]:
            self.drop(resource, key, resource_version)
        for item in items:
            self.put(resource, item)
        kind.gone = {key: version for key, version in kind.gone.items() if version >= at}

    def clear(self, resource: Resource[Any]) -> None:
        """The kind itself is gone, and all its objects with it; what is made later is newer than those."""
        for key, version in list(self._kinds[resource.plural].versions.items()):
            self.drop(resource, key, str(version))

    # -- kinds that the operator itself needs to see, beside or instead of the fleet -----------------------

    def _put_policy(self, item: CompatibilityPolicy) -> bool:
        key = ("", item.metadata.name)
        self.policies[key] = item
        self.dirty.mark(Subject.POLICY, key)
        return self.fleet.put_policy(item)

    def _drop_policy(self, namespace: str, name: str) -> bool:
        self.policies.pop((namespace, name), None)
        return self.fleet.drop_policy(name)

    def _put_pod(self, item: Pod) -> bool:
        key = (item.metadata.namespace, item.metadata.name)
        if item.is_migration_target and not item.is_over:
            self.targets[key] = item
            self.dirty.mark(Subject.TARGET, key)
        else:
            self.targets.pop(key, None)
        return self.fleet.put_pod(item)

    def _drop_pod(self, namespace: str, name: str) -> bool:
        self.targets.pop((namespace, name), None)
        return self.fleet.drop_pod(namespace, name)

    def _put_migration(self, item: VirtualMachineInstanceMigration) -> bool:
        key = (item.metadata.namespace, item.metadata.name)
        if key not in self.migrations and self._has_devices(_migrating(item)):
            # Whether it is to be touched depends on the VM's answer, which it does not change.
            self.dirty.mark(Subject.QUESTION, _migrating(item))
        self._drop_migration(*key)
        self.migrations[key] = item
        self.migrations_of.setdefault(_migrating(item), set()).add(key)
        return False

    def _drop_migration(self, namespace: str, name: str) -> bool:
        old = self.migrations.pop((namespace, name), None)
        if old is not None:
            of = _migrating(old)
            self.migrations_of[of].discard((namespace, name))
            if not self.migrations_of[of]:
                del self.migrations_of[of]
        return False

    def _has_devices(self, vmi: Key) -> bool:
        found = self.fleet.vmi(*vmi)
        return found is not None and any(map(self.fleet.is_ours, found.device_names()))

    def _put_compatibility(self, item: MigrationCompatibility) -> bool:
        key = (item.metadata.namespace, item.metadata.name)
        self.compatibilities[key] = item
        self.dirty.mark(Subject.QUESTION, key)
        return False

    def _drop_compatibility(self, namespace: str, name: str) -> bool:
        if self.compatibilities.pop((namespace, name), None) is not None:
            self.dirty.mark(Subject.QUESTION, (namespace, name))
        return False

    def started_migrations(self) -> set[str]:
        """UIDs of migrations whose target pod has its node."""
        return {_migration(pod) for pod in self.targets.values() if pod.spec.node_name}

    def unbound_targets(self, migration_uid: str) -> list[Pod]:
        """Target pods of a migration that have no node yet."""
        return [
            pod
            for pod in self.targets.values()
            if _migration(pod) == migration_uid and not pod.spec.node_name
        ]


def _migration(target: Pod) -> str:
    return (target.metadata.labels or {})[names.MIGRATION_UID]


def _migrating(item: VirtualMachineInstanceMigration) -> Key:
    return (item.metadata.namespace, item.spec.vmi_name)


def _number(resource_version: str) -> int:
    """Resource versions of the API server are decimal; anything else counts as newest."""
    return int(resource_version) if resource_version.isdecimal() else 1 << 63
