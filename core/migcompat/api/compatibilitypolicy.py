"""``CompatibilityPolicy``: an admin's rules for the devices and nodes it selects (semantics §5)."""

from __future__ import annotations

import msgspec

from migcompat.api.meta import Condition, ObjectMeta
from migcompat.api.names import API_VERSION, CATALOGUE_PREFIX, MANAGED_BY, OPERATOR
from migcompat.engine.policy import Policy


class DeviceSelector(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, rename="camel"
):
    """Which devices: every key given must equal the device's (empty: any)."""

    driver: str = ""
    type: str = ""
    device_api: str = ""
    vendor: str = ""


class Selector(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, rename="camel"):
    """Which devices on which nodes. Specificity is the number of keys given."""

    device: DeviceSelector = DeviceSelector()
    node_labels: dict[str, str] = {}


class CompatibilityPolicySpec(
    Policy, frozen=True, omit_defaults=True, forbid_unknown_fields=True, rename="camel"
):
    """The policy keys of semantics §5, and whom they select."""

    selector: Selector = Selector()


class CompatibilityPolicyStatus(msgspec.Struct, omit_defaults=True, rename="camel"):
    """How many devices and nodes the policy selects."""

    observed_generation: int = 0
    devices: int = 0
    nodes: int = 0
    conditions: list[Condition] = []


class CompatibilityPolicy(msgspec.Struct, omit_defaults=True, rename="camel"):
    """The object. ``spec`` is kept raw: one bad policy must not make a list undecodable."""

    metadata: ObjectMeta
    spec: msgspec.Raw = msgspec.Raw(b"{}")
    status: CompatibilityPolicyStatus = msgspec.field(default_factory=CompatibilityPolicyStatus)
    api_version: str = API_VERSION
    kind: str = "CompatibilityPolicy"

    @property
    def is_of_catalogue(self) -> bool:
        """Whether the operator put it there, of its catalogue of known drivers."""
        labels = self.metadata.labels or {}
        return labels.get(MANAGED_BY) == OPERATOR and self.metadata.name.startswith(CATALOGUE_PREFIX)
