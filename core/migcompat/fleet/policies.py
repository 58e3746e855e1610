"""Which CompatibilityPolicy governs a device (semantics §5: most specific, then first by name)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from migcompat.api.compatibilitypolicy import CompatibilityPolicy, CompatibilityPolicySpec
from migcompat.api.names import digest
from migcompat.api.vfionode import Device, declares
from migcompat.engine.policy import DEFAULT_POLICY, Policy, PolicyError, check_policy
from migcompat.fleet.migrant import Facts


def facts_of(device: Device) -> Facts:
    """What policies select a device by."""
    return Facts(device.driver, device.type, device.device_api, device.pci_id[:4], declares(device))


class Selected(msgspec.Struct, frozen=True):
    """The policy that governs a device: its object's name (empty: the defaults), content digest, and ties."""

    policy: Policy
    key: str
    name: str = ""
    tied: tuple[str, ...] = ()


DEFAULT = Selected(DEFAULT_POLICY, "")


class _Rule(msgspec.Struct, frozen=True):
    name: str
    spec: CompatibilityPolicySpec
    key: str
    precedence: tuple[int, bool]
    """How many keys are given; of equally many, what people wrote comes before the catalogue."""
    of_catalogue: bool
    """It speaks for devices that do not speak for themselves, and for no others."""

    def selects(self, facts: Facts, labels: Mapping[str, str]) -> bool:
        device = self.spec.selector.device
        return (
            not (self.of_catalogue and facts.declares)
            and device.driver in ("", facts.driver)
            and device.type in ("", facts.type)
            and device.device_api in ("", facts.device_api)
            and device.vendor in ("", facts.vendor)
            and all(labels.get(k) == v for k, v in self.spec.selector.node_labels.items())
        )


class PolicySet:
    """All policies of the cluster. ``problems`` names the objects that could not be read, and why."""

    def __init__(self, objects: Iterable[CompatibilityPolicy] = ()) -> None:
        self.problems: dict[str, str] = {}
        rules = []
        for item in objects:
            name = item.metadata.name
            try:
                spec = msgspec.json.decode(bytes(item.spec), type=CompatibilityPolicySpec)
                check_policy(spec)
            except (msgspec.DecodeError, PolicyError) as error:
                self.problems[name] = f"CompatibilityPolicy {name}: spec is not usable: {error}"
                continue
            device = spec.selector.device
            given = (device.driver, device.type, device.device_api, device.vendor)
            keys = sum(map(bool, given)) + len(spec.selector.node_labels)
            catalogue = item.is_of_catalogue
            rules.append(_Rule(name, spec, digest(spec), (-keys, catalogue), catalogue))
        self._rules = sorted(rules, key=lambda r: (r.precedence, r.name))
        self._label_keys = sorted({key for rule in rules for key in rule.spec.selector.node_labels})
        self._memo: dict[tuple[Facts, tuple[str | None, ...]], Selected] = {}

    def select(self, facts: Facts, node_labels: Mapping[str, str]) -> Selected:
        """The policy for a device with *facts* on a node with *node_labels*."""
        key = (facts, tuple(node_labels.get(k) for k in self._label_keys))
        found = self._memo.get(key)
        if found is None:
            hits = [rule for rule in self._rules if rule.selects(facts, node_labels)]
            if not hits:
                found = DEFAULT
            else:
                best = hits[0]
                tied = tuple(r.name for r in hits if r.precedence == best.precedence)
                found = Selected(best.spec, best.key, best.name, tied if len(tied) > 1 else ())
            self._memo[key] = found
        return found
