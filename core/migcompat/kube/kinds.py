"""The resources we read and write, and the types they decode into."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from migcompat.api import names
from migcompat.api.cluster import (
    Node,
    Pod,
    VirtualMachineInstance,
    VirtualMachineInstanceMigration,
    Workload,
)
from migcompat.api.compatibilitypolicy import CompatibilityPolicy
from migcompat.api.event import Event
from migcompat.api.migrationcompatibility import MigrationCompatibility
from migcompat.api.vfionode import VFIONode

T = TypeVar("T")


class Resource(Generic[T]):
    """A resource of the API and the type of its objects.

    ``type`` may be a partial view (Node, Pod …): good for reading, never for :meth:`Client.replace`.
    """

    __slots__ = ("_decoder", "group", "kind", "namespaced", "plural", "type", "version")

    def __init__(self, group: str, version: str, plural: str, kind: str, type: type[T], *, namespaced: bool):
        self.group = group
        self.version = version
        self.plural = plural
        self.kind = kind
        self.type = type
        self.namespaced = namespaced
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(type)

    def __repr__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        """``apiVersion`` of the objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, name: str = "", namespace: str = "", subresource: str = "") -> str:
        """URL path of the collection, or of the object *name*, or of its *subresource*.

        Raises ValueError for a name without the namespace that a namespaced resource needs.
        """
        if self.namespaced and name and not namespace:
            raise ValueError(f"{self!r} {name}: the resource is namespaced, a namespace is needed")
        parts = ["", "apis", self.group, self.version] if self.group else ["", "api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/".join(parts)

    def decode(self, raw: bytes | msgspec.Raw) -> T:
        """One object from its JSON; raises msgspec.DecodeError with the path of what does not fit."""
        return self._decoder.decode(raw)


VFIONODES = Resource(names.GROUP, names.VERSION, "vfionodes", "VFIONode", VFIONode, namespaced=False)
POLICIES = Resource(
    names.GROUP,
    names.VERSION,
    "compatibilitypolicies",
    "CompatibilityPolicy",
    CompatibilityPolicy,
    namespaced=False,
)
COMPATIBILITIES = Resource(
    names.GROUP,
    names.VERSION,
    "migrationcompatibilities",
    "MigrationCompatibility",
    MigrationCompatibility,
    namespaced=True,
)
NODES = Resource("", "v1", "nodes", "Node", Node, namespaced=False)
PODS = Resource("", "v1", "pods", "Pod", Pod, namespaced=True)
DAEMONSETS = Resource("apps", "v1", "daemonsets", "DaemonSet", Workload, namespaced=True)
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment", Workload, namespaced=True)
EVENTS = Resource("", "v1", "events", "Event", Event, namespaced=True)
VMIS = Resource(
    "kubevirt.io",
    "v1",
    "virtualmachineinstances",
    "VirtualMachineInstance",
    VirtualMachineInstance,
    namespaced=True,
)
VMIMS = Resource(
    "kubevirt.io",
    "v1",
    "virtualmachineinstancemigrations",
    "VirtualMachineInstanceMigration",
    VirtualMachineInstanceMigration,
    namespaced=True,
)
