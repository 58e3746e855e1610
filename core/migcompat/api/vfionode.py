"""``VFIONode``: the raw facts that one node's agent publishes about its VFIO devices.

Distinct contents are kept once, keyed by digest: ``profiles`` (what devices *are*, dynamic attributes left
out), ``acceptances`` (what devices *accept*) and ``shown`` (what is found out about them otherwise).
:func:`declaration` puts one device's parts together again.
"""

from __future__ import annotations

import enum

import msgspec

from migcompat.api.meta import Condition, ObjectMeta
from migcompat.api.names import API_VERSION, digest
from migcompat.engine.declaration import Acceptance, Declaration, Kind, SelfSet
from migcompat.engine.policy import DEFAULT_POLICY


class Health(enum.StrEnum):
    """Whether the kubelet may hand the device out."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"


class Mode(enum.StrEnum):
    """Who serves the devices to the kubelet: we, or another plugin that we only observe."""

    SERVE = "serve"
    OBSERVE = "observe"


class PodRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """The pod that holds a device, as the kubelet's PodResources names it."""

    namespace: str
    name: str


class Profile(msgspec.Struct, frozen=True, omit_defaults=True):
    """What equal devices are: kind and ``self`` without dynamic attributes."""

    kind: Kind
    self: SelfSet = SelfSet()


class Driver(msgspec.Struct, frozen=True, omit_defaults=True):
    """A driver that devices of the node are bound to, and its ``/sys/module/<driver>/version`` if any."""

    name: str
    version: str = ""


class MigrationState(enum.StrEnum):
    """States of migration that a driver may have (``VFIO_MIGRATION_*``, include/uapi/linux/vfio.h)."""

    STOP_COPY = "STOP_COPY"
    P2P = "P2P"
    PRE_COPY = "PRE_COPY"


class Migration(msgspec.Struct, frozen=True, omit_defaults=True):
    """The kernel's answer to whether a device can migrate (``VFIO_DEVICE_FEATURE_MIGRATION``).

    ``supported``: whether the driver can save and load the device's state at all (``STOP_COPY``).
    """

    supported: bool
    states: tuple[MigrationState, ...] = ()


class Device(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One VFIO device of the node.

    ``id``: PCI address or mdev UUID. ``profile`` and ``acceptance`` are keys of the status' maps;
    ``dynamic`` holds the values of its dynamic attributes (semantics §3). ``type`` is the raw mdev type name
    (empty for a physical device), ``pci_id`` the raw ``vendor``+``device`` (8 hex digits) of the function or
    of an mdev's parent (empty outside PCI). ``migration``: what the kernel said of it before it was first
    advertised, ``peer_to_peer``: whether that includes the P2P states (both None: not known). ``shown``: key
    of the status' ``shown``, empty where it shows nothing. ``count``: devices that this entry stands for, all
    equal but for their ids, places and groups, and held by nobody (the first one's id is told).
    """

    id: str
    resource: str
    profile: str
    acceptance: str
    kind: Kind
    parent: str = ""
    driver: str = ""
    type: str = ""
    device_api: str = ""
    pci_id: str = ""
    numa_node: int | None = None
    iommu_group: str = ""
    health: Health = Health.HEALTHY
    problem: str = ""
    dynamic: dict[str, str] = {}
    allocated_to: PodRef | None = None
    migration: Migration | None = None
    peer_to_peer: bool | None = None
    shown: str = ""
    count: int = 1


class VFIONodeStatus(msgspec.Struct, omit_defaults=True, rename="camel"):
    """The facts. No ticking field: it changes only when a fact does."""

    boot_id: str = msgspec.field(default="", name="bootID")
    agent_version: str = ""
    mode: Mode = Mode.SERVE
    drivers: list[Driver] = []
    profiles: dict[str, Profile] = {}
    acceptances: dict[str, Acceptance] = {}
    shown: dict[str, dict[str, str]] = {}
    devices: list[Device] = []
    conditions: list[Condition] = []


class VFIONode(msgspec.Struct, omit_defaults=True, rename="camel"):
    """The object; its name is the node's."""

    metadata: ObjectMeta
    status: VFIONodeStatus = msgspec.field(default_factory=VFIONodeStatus)
    api_version: str = API_VERSION
    kind: str = "VFIONode"


def split(declared: Declaration) -> tuple[str, Profile, str, Acceptance, dict[str, str]]:
    """Profile digest, profile, acceptance digest, acceptance and dynamic values of one device.

    Dynamic are the default policy's dynamic attributes and those the device itself names (L4), so that
    devices that differ only in these share a profile (contract, Labels and annotations).
    """
    names = {*DEFAULT_POLICY.dynamic_attributes, *declared.accepts.dynamic}
    dynamic = {k: v for k, v in declared.self.attributes.items() if k in names}
    fixed = {k: v for k, v in declared.self.attributes.items() if k not in names}
    profile = Profile(declared.kind, SelfSet(declared.self.presence, fixed, declared.self.problem))
    return digest(profile), profile, digest(declared.accepts), declared.accepts, dynamic


def declaration(status: VFIONodeStatus, device: Device) -> Declaration | None:
    """The declaration of *device*, or None when its profile or acceptance is not in *status*."""
    profile = status.profiles.get(device.profile)
    acceptance = status.acceptances.get(device.acceptance)
    if profile is None or acceptance is None:
        return None
    own = SelfSet(profile.self.presence, {**profile.self.attributes, **device.dynamic}, profile.self.problem)
    return Declaration(profile.kind, own, acceptance, shown=status.shown.get(device.shown, {}))


def declares(device: Device) -> bool:
    """Whether *device* says anything itself about what it is or accepts, be it malformed or unreadable."""
    return (device.profile, device.acceptance) not in _SILENT


_SILENT = frozenset((said[0], said[2]) for said in (split(Declaration(kind)) for kind in Kind))
"""Keys of what a device is and accepts that says nothing of either."""
