"""What each policy governs, as its status."""

from __future__ import annotations

import msgspec
from migcompat.api.compatibilitypolicy import CompatibilityPolicy
from migcompat.api.meta import ObjectMeta
from migcompat.fleet.fleet import Fleet
from migcompat_operator.policies import governed, policy_status

from tests.support.fleets import declared, node, vfionode

NOW = "2026-01-01T00:00:00Z"


def policy(name: str, **spec: object) -> CompatibilityPolicy:
    meta = ObjectMeta(name=name, generation=4)
    return CompatibilityPolicy(meta, msgspec.Raw(msgspec.json.encode(spec)))


def fleet_of(*policies: CompatibilityPolicy) -> Fleet:
    fleet = Fleet()
    for name, count in (("n1", 2), ("n2", 1)):
        fleet.put_node(node(name))
        fleet.put_vfionode(vfionode(name, {f"{name}-{i}": declared() for i in range(count)}))
    for item in policies:
        fleet.put_policy(item)
    return fleet


def conditions(fleet: Fleet, item: CompatibilityPolicy) -> dict[str, tuple[str, str]]:
    status = policy_status(fleet, item, governed(fleet).get(item.metadata.name), now=NOW)
    assert status is not None
    item.status = status
    return {c.type: (c.status, c.reason) for c in status.conditions}


def test_counts_what_it_governs_and_says_it_once() -> None:
    item = policy("a", selector={"device": {"driver": "nvidia"}})
    fleet = fleet_of(item, policy("b"))
    assert conditions(fleet, item) == {"Accepted": ("True", "Accepted"), "Unambiguous": ("True", "NoTie")}
    assert (item.status.devices, item.status.nodes, item.status.observed_generation) == (3, 2, 4)
    assert policy_status(fleet, item, governed(fleet)["a"], now="2027-01-01T00:00:00Z") is None
    assert "b" not in governed(fleet), "the less specific one governs nothing"


def test_both_rivals_say_so() -> None:
    first = policy("a", selector={"device": {"driver": "nvidia"}})
    second = policy("b", selector={"device": {"vendor": "10de"}})
    fleet = fleet_of(first, second)
    for item in (first, second):
        assert conditions(fleet, item)["Unambiguous"] == ("False", "EquallySpecific")
        assert "Policies a, b select" in item.status.conditions[1].message
    assert (first.status.devices, second.status.devices) == (3, 0)


def test_a_bad_policy_says_what_is_wrong_and_the_others_count() -> None:
    bad, good = policy("a", versionScheme="lunar"), policy("b")
    fleet = fleet_of(bad, good)
    assert conditions(fleet, bad)["Accepted"] == ("False", "InvalidSpec")
    assert "lunar" in bad.status.conditions[0].message
    assert conditions(fleet, good)["Accepted"] == ("True", "Accepted")
    assert good.status.devices == 3
