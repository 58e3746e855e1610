"""``MigrationCompatibility``: where one VM (or device, or literal attributes) could go, and why not."""

from __future__ import annotations

import msgspec

from migcompat.api import names
from migcompat.api.meta import Condition, ObjectMeta
from migcompat.api.names import API_VERSION
from migcompat.engine.declaration import Kind
from migcompat.engine.policy import Choice, VersionScheme


class VMIReference(msgspec.Struct, frozen=True):
    """A VirtualMachineInstance of the same namespace."""

    name: str


class DeviceReference(msgspec.Struct, frozen=True):
    """A device of a node, as its VFIONode names it."""

    node: str
    id: str


class LiteralSource(msgspec.Struct, frozen=True, omit_defaults=True):
    """A question asked before a VM exists: literal self attributes, and the pool to look in."""

    resource: str
    self: dict[str, str]
    kind: Kind = Kind.MDEV


class Overrides(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Policy keys that this question overrides."""

    version_scheme: VersionScheme | None = None
    cross_type: Choice | None = None
    require_return_path: bool | None = None


class MigrationCompatibilitySpec(msgspec.Struct, omit_defaults=True, rename="camel"):
    """What is asked: exactly one of the three."""

    virtual_machine_instance: VMIReference | None = None
    device: DeviceReference | None = None
    attributes: LiteralSource | None = None
    policy: Overrides | None = None


class SourceDevice(msgspec.Struct, omit_defaults=True, rename="camel"):
    """One device of the source."""

    resource: str
    id: str = ""
    profile: str = ""
    attributes: dict[str, str] = {}


class Source(msgspec.Struct, omit_defaults=True):
    """Where the VM is, and with which devices."""

    node: str = ""
    devices: list[SourceDevice] = []


class Group(msgspec.Struct, omit_defaults=True):
    """Nodes that refuse with the same reason and message (``nodes`` is bounded, ``count`` is not)."""

    reason: str
    message: str
    count: int
    nodes: list[str] = []


class MigrationCompatibilityStatus(msgspec.Struct, omit_defaults=True, rename="camel"):
    """The answer. ``targets`` is ``<compatible>/<all>``, for the printer column."""

    observed_generation: int = 0
    source: Source = msgspec.field(default_factory=Source)
    device_count: int = 0
    targets: str = ""
    compatible: int = 0
    free: int = 0
    total: int = 0
    accepting: list[str] = []
    refusals: list[Group] = []
    obligations: dict[str, str] = {}
    conditions: list[Condition] = []


class MigrationCompatibility(msgspec.Struct, omit_defaults=True, rename="camel"):
    """The object."""

    metadata: ObjectMeta
    spec: MigrationCompatibilitySpec = msgspec.field(default_factory=MigrationCompatibilitySpec)
    status: MigrationCompatibilityStatus = msgspec.field(default_factory=MigrationCompatibilityStatus)
    api_version: str = API_VERSION
    kind: str = "MigrationCompatibility"

    @property
    def is_made_by_operator(self) -> bool:
        """Whether the operator made the object for a VMI (then we may also delete it)."""
        owned = any(owner.kind == names.VMI_KIND for owner in self.metadata.owner_references or ())
        return owned and (self.metadata.labels or {}).get(names.MANAGED_BY) == names.OPERATOR
