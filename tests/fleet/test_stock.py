"""Which devices others can best do without, counted as the fleet changes."""

from __future__ import annotations

import random

import msgspec
import pytest
from migcompat.api.cluster import Node, Pod
from migcompat.api.compatibilitypolicy import CompatibilityPolicy
from migcompat.api.meta import ObjectMeta
from migcompat.api.vfionode import Migration, VFIONode
from migcompat.fleet import stock
from migcompat.fleet.fit import Fit
from migcompat.fleet.fleet import Fleet
from migcompat.fleet.judge import Judge
from migcompat.fleet.migrant import Facts, Migrant
from migcompat.fleet.stock import NOBODYS, Stock

from tests.support.fleets import declared, node, pod, vfionode, vmi

OLD, NEW = declared("1.1.0"), declared("2.0.0")
BOTH = declared("1.1.0", accepts=[dict(OLD.self.attributes), dict(NEW.self.attributes)])
NAMES = [f"n{i}" for i in range(6)]


def fleet_with(*sources: str) -> Fleet:
    """Node src, whose devices of these versions are held by VMs vm-0, vm-1 …"""
    fleet = Fleet()
    fleet.put_node(node("src"))
    held = {f"s{i}": ("tenant-a", f"virt-launcher-vm-{i}-src") for i in range(len(sources))}
    fleet.put_vfionode(vfionode("src", {f"s{i}": declared(v) for i, v in enumerate(sources)}, allocated=held))
    for index in range(len(sources)):
        fleet.put_vmi(vmi(f"vm-{index}", "src"))
        fleet.put_pod(pod(f"vm-{index}", "src"))
    return fleet


def preferred(fleet: Fleet, vm: str = "vm-0") -> dict[str, object]:
    found = fleet.vmi("tenant-a", vm)
    assert found is not None
    migrant = fleet.migrant(found)
    return dict(fleet.preferences(migrant, fleet.survey(migrant).fits))


def common(fleet: Fleet, name: str) -> int:
    found = preferred(fleet)[name]
    assert isinstance(found, tuple)
    value: int = -found[3]
    return value


def test_a_device_that_cannot_migrate_is_nobodys() -> None:
    fleet = fleet_with("1.1.0")
    for name in ("n1", "n2"):
        fleet.put_node(node(name))
        fleet.put_vfionode(vfionode(name, {name: OLD}))
    assert common(fleet, "n1") == 2
    there = vfionode("n2", {"n2": OLD})
    cannot = msgspec.structs.replace(there.status.devices[0], migration=Migration(supported=False))
    there.status.devices[0] = cannot
    fleet.put_vfionode(there)
    assert common(fleet, "n1") == 1


def test_a_device_counts_by_the_worst_off_that_it_would_take() -> None:
    fleet = fleet_with("1.1.0", "2.0.0")
    for name, device in (("n1", OLD), ("n2", OLD), ("n3", BOTH)):
        fleet.put_node(node(name))
        fleet.put_vfionode(vfionode(name, {name: device}))
    assert [common(fleet, name) for name in ("n1", "n2", "n3")] == [3, 3, 1]
    assert list(preferred(fleet)) == ["n1", "n2", "n3"]
    fleet.put_node(node("n4"))
    fleet.put_vfionode(vfionode("n4", {"n4": NEW}))
    assert common(fleet, "n3") == 2, "the VM of version 2 could go to n4, too"
    fleet.put_node(node("n4", cordoned=True))
    assert common(fleet, "n3") == 1, "but not while that is cordoned"


def test_what_no_device_in_use_could_move_to_is_missed_by_nobody() -> None:
    one = Stock(Judge())
    fleet = fleet_with("1.1.0")
    fleet.put_node(node("n1"))
    fleet.put_vfionode(vfionode("n1", {"x": NEW}))
    one.put("n1", fleet._targets_of("n1"), takes_pods=True)
    assert one.common("n1", ["x"]) == NOBODYS
    assert one.common("n1", ["gone"]) == 0
    assert one.common("n2", ["x"]) == 0


def test_kinds_too_seldom_to_be_compared_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "MOST_FREE", 1)
    fleet = fleet_with("1.1.0")
    for name, device in (("a", BOTH), ("b", OLD), ("c", OLD)):
        fleet.put_node(node(name))
        fleet.put_vfionode(vfionode(name, {name: device}))
    assert (common(fleet, "a"), common(fleet, "b")) == (0, 2)
    assert list(preferred(fleet)) == ["b", "c", "a"]


@pytest.mark.parametrize("seed", range(15))
def test_counted_as_it_changes_or_at_once_is_the_same(seed: int) -> None:
    chance = random.Random(seed)
    fleet = fleet_with("1.1.0", "2.0.0", "1.0.0")
    nodes: dict[str, Node] = {}
    vfionodes: dict[str, VFIONode] = {}
    pods: dict[str, Pod] = {}
    scheme = "semver"
    for _ in range(40):
        name = chance.choice(NAMES)
        match chance.randrange(7):
            case 0 | 1:
                nodes[name] = node(name, cordoned=chance.random() < 0.3)
                fleet.put_node(nodes[name])
            case 2 | 3:
                devices = {f"{name}-{i}": chance.choice([OLD, NEW, BOTH]) for i in range(chance.randrange(4))}
                held = {id_: ("other", "pod") for id_ in devices if chance.random() < 0.3}
                vfionodes[name] = vfionode(name, devices, allocated=held)
                fleet.put_vfionode(vfionodes[name])
            case 4:
                pods[name] = pod(f"other-{name}", name)
                fleet.put_pod(pods[name])
            case 5:
                if chance.random() < 0.5:
                    nodes.pop(name, None)
                    fleet.drop_node(name)
                else:
                    vfionodes.pop(name, None)
                    fleet.drop_vfionode(name)
            case _:
                scheme = chance.choice(["exact", "semver"])
                fleet.put_policy(policy(scheme))
        preferred(fleet)
    fresh = fleet_with("1.1.0", "2.0.0", "1.0.0")
    if fleet.policies.select(Facts(), {}).name:
        fresh.put_policy(policy(scheme))
    for thing in nodes.values():
        fresh.put_node(thing)
    for item in vfionodes.values():
        fresh.put_vfionode(item)
    for other in pods.values():
        fresh.put_pod(other)
    for vm in ("vm-0", "vm-1", "vm-2"):
        assert preferred(fleet, vm) == preferred(fresh, vm)
    for one in (fleet, fresh):
        one.preference(Migrant("", "", "", ""), "src", Fit(True, False, "", ""))
    assert fleet._stock._free == fresh._stock._free
    assert fleet._stock._held == fresh._stock._held
    assert fleet._stock._examples.keys() == fresh._stock._examples.keys()


def policy(scheme: str) -> CompatibilityPolicy:
    spec = msgspec.Raw(msgspec.json.encode({"versionScheme": scheme}))
    return CompatibilityPolicy(ObjectMeta(name="scheme"), spec)
