"""``/mutate``: who is steered, who is denied and in which words, who is left alone."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from migcompat.api import names
from migcompat.api.cluster import Node
from migcompat.api.compatibilitypolicy import CompatibilityPolicy
from migcompat.api.meta import ObjectMeta
from migcompat.api.vfionode import Mode as NodeMode
from migcompat.fleet import stamp
from migcompat.fleet.fleet import Fleet
from migcompat.fleet.migrant import Mode
from migcompat_extender.admission import Admission
from migcompat_extender.affinity import REQUIRED
from migcompat_extender.refusals import Refusals
from migcompat_extender.settings import Settings
from migcompat_extender.table import Tables
from migcompat_extender.wire import WireError

from tests.extender.world import (
    admitted,
    all_well,
    built,
    by_name,
    patched,
    recorded_pod,
    required_terms,
    review,
    target,
    world,
)
from tests.support.fleets import POOL, declared, node, pod, refused, vfionode, vmi

STALE = "no news from kube-apiserver for 120 s of: pods"


def stamp_of(pod_: dict[str, Any]) -> Any:
    meta = pod_["metadata"]
    return stamp.decode(meta["annotations"][names.SOURCE], meta["labels"][names.MIGRATION_UID])


def test_a_target_is_steered_to_accepting_nodes_nearest_version_first() -> None:
    fleet = world({"n2": "1.0.0", "n3": "1.2.0", "n4": "1.1.0", "n5": "2.0.0"})
    after = patched(target(), admitted(fleet, review(target())))
    assert required_terms(after) == [{"matchFields": [by_name("In", n)]} for n in ("n4", "n3")]
    migrant = stamp_of(after)
    assert (migrant.name, migrant.node, migrant.mode) == ("vm-a", "node-1", Mode.ENFORCE)
    assert migrant.devices[0].declaration.self.attributes["software_version"] == "1.1.0"


def test_of_equal_versions_common_devices_are_named_before_rare_ones_and_many_before_few() -> None:
    refusing = {f"old-{i}": "1.0.0" for i in range(4)}
    fleet = world({"n2": "1.1.0", "n3": "1.1.0", "n4": "1.1.0", **refusing})
    held = {"other": ("tenant-b", "virt-launcher-other")}
    fleet.put_node(node("n9"))
    fleet.put_vfionode(vfionode("n9", {"other": declared("2.0.0")}, allocated=held))
    both = [declared("1.1.0").self.attributes, declared("2.0.0").self.attributes]
    fleet.put_vfionode(vfionode("n2", {"n2-0": declared("1.1.0", accepts=both)}))
    fleet.put_vfionode(vfionode("n4", {"n4-0": declared("1.1.0"), "n4-1": declared("1.1.0")}))
    after = patched(target(), admitted(fleet, review(target())))
    assert required_terms(after) == [{"matchFields": [by_name("In", n)]} for n in ("n4", "n3", "n2")]


def test_targets_that_ask_for_another_plugins_resource_are_steered_and_denied_too() -> None:
    foreign = "nvidia.com/GRID_T4-1Q"
    fleet = Fleet()
    holder = {"src": ("tenant-a", "virt-launcher-vm-a-src")}
    fleet.put_pod(pod("vm-a", "node-1", resources=[foreign]))
    fleet.put_vmi(vmi("vm-a", "node-1", resources=[foreign]))
    for name, version, held in (("node-1", "1.1.0", holder), ("n2", "1.1.0", {}), ("n3", "1.0.0", {})):
        fleet.put_node(node(name))
        item = vfionode(name, {"src" if held else name: declared(version)}, allocated=held, resource=foreign)
        item.status.mode = NodeMode.OBSERVE
        fleet.put_vfionode(item)
    asking = target(resources=[foreign])
    after = patched(asking, admitted(fleet, review(asking)))
    assert required_terms(after) == [{"matchFields": [by_name("In", "n2")]}]
    fleet.drop_vfionode("n2")
    assert not admitted(fleet, review(asking))["allowed"]


def test_only_nodes_with_accepting_devices_free_are_named() -> None:
    """A full node's free device may be one that refuses: kube-scheduler could not tell."""
    fleet = world({"n2": "1.1.0", "n3": "1.2.0", "n4": "1.3.0", "old": "1.0.0"}, used=["n2"])
    after = patched(target(), admitted(fleet, review(target())))
    assert required_terms(after) == [{"matchFields": [by_name("In", n)]} for n in ("n3", "n4")]


def test_a_node_whose_guard_has_just_refused_the_vm_is_not_named_while_another_takes_it() -> None:
    fleet = world({"n2": "1.1.0", "n3": "1.2.0", "old": "1.0.0"})
    refusals = Refusals()
    refusals.note(refused("vm-a", "n2"))
    after = patched(target(), admitted(fleet, review(target()), refusals=refusals))
    assert required_terms(after) == [{"matchFields": [by_name("In", "n3")]}]
    refusals.note(refused("vm-a", "n3"))
    after = patched(target(), admitted(fleet, review(target()), refusals=refusals))
    named = [{"matchFields": [by_name("In", n)]} for n in ("n2", "n3")]
    assert required_terms(after) == named, "better these nodes again than none"


def test_the_shorter_list_is_written() -> None:
    """Equally long ones: the nodes that take it, because nothing that joins later slips through."""
    accepting = {"n2": "1.1.0", "n3": "1.2.0"}
    after = patched(target(), admitted(world(accepting), review(target())))
    assert required_terms(after) == [{"matchFields": [by_name("NotIn", "node-1")]}]
    after = patched(target(), admitted(world({**accepting, "old": "1.0.0"}), review(target())))
    assert required_terms(after) == [{"matchFields": [by_name("In", n)]} for n in ("n2", "n3")]


def offers(name: str, **quantities: str) -> Node:
    """A node whose kubelet has these resources to give."""
    made = node(name)
    return msgspec.structs.replace(
        made, status=msgspec.structs.replace(made.status, allocatable={"cpu": "8", **quantities})
    )


def test_exclusion_names_nodes_whose_kubelet_has_such_devices_though_no_agent_publishes_them() -> None:
    """kube-scheduler counts devices: those of a node whose VFIONode is gone would do."""
    fleet = world({f"n{i}": "1.1.0" for i in range(8)})
    fleet.put_node(offers("dark", **{POOL: "4"}))
    fleet.put_node(offers("unpublished", **{POOL: "4"}))
    fleet.put_vfionode(vfionode("unpublished", {}))
    fleet.put_node(offers("emptied", **{POOL: "0"}))
    fleet.put_node(
        offers("others", **{f"{names.RESOURCE_DOMAIN}/other": "4", "devices.kubevirt.io/kvm": "1k"})
    )
    fleet.put_node(offers("n1", **{POOL: "1"}))

    def excluded() -> list[str]:
        (term,) = required_terms(patched(target(), admitted(fleet, review(target()))))
        assert {field["operator"] for field in term["matchFields"]} == {"NotIn"}
        return [field["values"][0] for field in term["matchFields"]]

    assert excluded() == ["dark", "node-1", "unpublished"]
    fleet.put_node(node("dark"))
    fleet.drop_node("unpublished")
    assert excluded() == ["node-1"]


def test_a_node_that_has_but_one_of_two_pools_is_not_excluded() -> None:
    other = f"{names.RESOURCE_DOMAIN}/other"
    asks = [POOL, other]
    fleet = Fleet()
    spec = msgspec.Raw(msgspec.json.encode({"unknown": "Allow"}))
    fleet.put_policy(CompatibilityPolicy(ObjectMeta(name="lax"), spec))
    for name in ("node-1", "n2", "n3", "n4"):
        item, more = (vfionode(name, {f"{name}-{r}": declared()}, resource=r) for r in asks)
        item.status.devices += more.status.devices
        fleet.put_node(node(name))
        fleet.put_vfionode(item)
    fleet.put_node(offers("half", **{POOL: "4"}))
    fleet.put_node(offers("both", **{POOL: "4", other: "4"}))
    fleet.put_vmi(vmi("vm-a", "node-1", resources=asks))
    asking = target(resources=asks)
    after = patched(asking, admitted(fleet, review(asking)))
    assert required_terms(after) == [{"matchFields": [by_name("NotIn", n) for n in ("both", "node-1")]}]


def test_where_neither_list_fits_names_that_the_pod_itself_rules_out_give_way() -> None:
    """Else the names written could all lie in another zone, and the VM would not move at its first try."""
    fleet = world({f"old{i}": "1.0.0" for i in range(5)})
    for i in range(9):
        name, zone = f"n{i}", "b" if i in (4, 7) else "a"
        fleet.put_node(node(name, labels={"zone": zone, "cpu": "x" if i != 4 else "y"}))
        fleet.put_vfionode(vfionode(name, {f"{name}-0": declared("1.1.0")}))
    before = built(target())
    zone_b = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}
    before["spec"]["affinity"] = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [zone_b]}}}

    def named() -> list[str]:
        terms = required_terms(patched(before, admitted(fleet, review(before), max_names=3)))
        return [term["matchFields"][0]["values"][0] for term in terms]

    assert named() == ["n4", "n7", "n0"]
    before["spec"]["nodeSelector"] = {"cpu": "x"}
    assert named() == ["n7", "n0", "n1"]


def test_exclusion_names_the_node_whose_guard_has_just_refused_the_vm() -> None:
    fleet = world({f"n{i}": "1.1.0" for i in range(6)})
    refusals = Refusals()
    refusals.note(refused("vm-a", "n5"))
    after = patched(target(), admitted(fleet, review(target()), refusals=refusals, max_names=3))
    assert required_terms(after) == [{"matchFields": [by_name("NotIn", n) for n in ("n5", "node-1")]}]


def test_exclusion_names_the_refusing_the_full_and_the_source() -> None:
    fleet = world({f"n{i}": "1.1.0" for i in range(5)} | {"old": "1.0.0", "full": "1.1.0"}, used=["full"])
    after = patched(target(), admitted(fleet, review(target()), max_names=3))
    assert required_terms(after) == [
        {"matchFields": [by_name("NotIn", n) for n in ("full", "node-1", "old")]}
    ]


def test_more_accepting_nodes_than_names_excludes_the_refusing_ones_and_the_source() -> None:
    fleet = world({f"n{i}": "1.1.0" for i in range(5)} | {"old": "1.0.0"})
    after = patched(target(), admitted(fleet, review(target()), max_names=3))
    assert required_terms(after) == [{"matchFields": [by_name("NotIn", "node-1"), by_name("NotIn", "old")]}]


def test_a_source_node_that_is_not_known_is_not_excluded_by_an_empty_name() -> None:
    fleet = world({f"n{i}": "1.1.0" for i in range(5)})
    fleet.put_vmi(vmi("vm-a", ""))
    spec = msgspec.Raw(msgspec.json.encode({"unknown": "Allow"}))
    fleet.put_policy(CompatibilityPolicy(ObjectMeta(name="lax"), spec))
    after = patched(target(), admitted(fleet, review(target()), max_names=3))
    assert required_terms(after) == [{"matchFields": [by_name("NotIn", "node-1")]}], "it is full, and no more"


def test_the_recorded_pod_keeps_its_own_affinity() -> None:
    before = recorded_pod()
    fleet = world({})
    name, uid = "vgpu-vm", before["metadata"]["labels"][names.CREATED_BY]
    resource = f"{names.RESOURCE_DOMAIN}/i915-gvtg-v5-4"
    found = vmi(name, "node-a", resources=[resource])
    found.metadata.uid = uid
    fleet.put_vmi(found)
    source = pod(name, "node-a", resources=[resource])
    assert source.metadata.labels is not None
    source.metadata.labels[names.CREATED_BY] = uid
    fleet.put_pod(source)
    holder = {"a": ("tenant-a", source.metadata.name)}
    for node_name, allocated in (("node-a", holder), ("node-b", {})):
        fleet.put_node(node(node_name))
        fleet.put_vfionode(
            vfionode(node_name, {"a": declared("1.1.0")}, resource=resource, allocated=allocated)
        )
    after = patched(before, admitted(fleet, review(before)))
    own = required_terms(before)[0]
    assert required_terms(after) == [{**own, "matchFields": [by_name("In", "node-b")]}]
    assert after["spec"]["affinity"]["podAntiAffinity"] == before["spec"]["affinity"]["podAntiAffinity"]
    assert stamp_of(after).uid == uid
    after["spec"]["affinity"] = before["spec"]["affinity"]
    del after["metadata"]["annotations"][names.SOURCE]
    assert after == before, "nothing else is touched"


@pytest.mark.parametrize("annotations", [None, {}, {names.SOURCE: "forged", "other": "kept"}])
def test_the_stamp_replaces_what_a_tenant_wrote(annotations: dict[str, str] | None) -> None:
    before = built(target())
    before["metadata"]["annotations"] = annotations
    before["metadata"].setdefault("labels", {})
    fleet = world({"n2": "1.1.0"})
    after = patched(before, admitted(fleet, review(before)))
    assert stamp_of(after).name == "vm-a"
    assert {k: v for k, v in after["metadata"]["annotations"].items() if k != names.SOURCE} == (
        {"other": "kept"} if annotations else {}
    )


def test_a_stamp_too_large_to_write_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamp, "LIMIT", 10)
    before = target(annotations={names.SOURCE: "forged"})
    after = patched(before, admitted(world({"n2": "1.1.0"}), review(before)))
    assert names.SOURCE not in after["metadata"]["annotations"]
    assert required_terms(after)


def denied(fleet: Any, **settings: Any) -> str:
    response = admitted(fleet, review(target()), **settings)
    assert response["allowed"] is False
    assert "patch" not in response
    assert response["status"]["code"] == 403
    message: str = response["status"]["message"]
    return message


def test_denial_names_causes_and_counts() -> None:
    text = denied(world({"n2": "1.0.0", "n3": "1.0.0", "n4": "1.0.0", "n5": "2.0.0", "n6": "2.0.0"}))
    assert text.startswith(
        "migcompat: VM tenant-a/vm-a cannot migrate now: 0 of 5 nodes accept its device(s): "
        "3 VersionMinorOlder (software_version"
    )
    assert "), 2 VersionMajorMismatch (software_version" in text
    assert text.endswith(")")
    assert "1.0.0" in text
    assert "1.1.0" in text
    assert "n2" not in text


def test_denial_when_none_is_free() -> None:
    text = denied(world({"n2": "1.1.0", "n3": "1.0.0"}, used=["n2"]))
    assert "1 of 2 nodes accept its device(s), none of them has them free: 1 NoneFree (" in text
    assert "), 1 VersionMinorOlder (" in text


def test_denial_when_nobody_offers_such_devices() -> None:
    assert denied(world({})).endswith(f"0 of 0 nodes accept its device(s): no other node offers {POOL}")


def test_denial_when_the_source_is_not_known() -> None:
    fleet = world({"n2": "1.1.0"})
    fleet.drop_vmi("tenant-a", "vm-a")
    text = denied(fleet)
    assert "0 of 1 nodes accept its device(s): 1 Unknown (" in text
    assert "VirtualMachineInstance of the target pod is not known" in text


def abroad(policy: dict[str, str]) -> Fleet:
    """A VM that comes from another cluster: here it runs nowhere yet (a decentralized migration)."""
    fleet = world({"n2": "1.1.0", "n3": "1.0.0"}, used=["n3"])
    fleet.put_vmi(vmi("vm-a", ""))
    fleet.drop_pod("tenant-a", "virt-launcher-vm-a-src")
    fleet.put_policy(CompatibilityPolicy(ObjectMeta(name="p"), msgspec.Raw(msgspec.json.encode(policy))))
    return fleet


@pytest.mark.parametrize("label", [None, "", "node-1"])
def test_a_source_in_another_cluster_is_unknown_and_policy_decides(label: str | None) -> None:
    """*label*: what the pod says of its source; a node of that name here is another one."""
    asking = built(target())
    asking["metadata"]["labels"] |= {names.NODE_NAME: label}
    if label is None:
        del asking["metadata"]["labels"][names.NODE_NAME]
    response = admitted(abroad({"unknown": "Deny"}), review(asking))
    text = response["status"]["message"]
    why = (
        "target pod and VMI name different source nodes"
        if label
        else "the VM runs on no node of this cluster"
    )
    assert f"0 of 3 nodes accept its device(s): 3 Unknown ({why})" in text
    after = patched(asking, admitted(abroad({"unknown": "Allow"}), review(asking)))
    assert required_terms(after) == [{"matchFields": [by_name("In", "n2")]}], "the others have none free"
    assert stamp_of(after).problem == why


def test_several_devices_need_a_node_that_takes_them_all() -> None:
    fleet = Fleet()
    both = [POOL, POOL]
    holder = ("tenant-a", "virt-launcher-vm-a-src")
    held = {"s1": holder, "s2": holder}
    nodes = {
        "node-1": {"s1": declared("1.1.0"), "s2": declared("1.0.0")},
        "both": {"a": declared("1.1.0"), "b": declared("1.0.0")},
        "one": {"a": declared("1.1.0")},
        "old": {"a": declared("1.0.0"), "b": declared("1.0.0")},
        "half": {"a": declared("1.1.0"), "b": declared("1.0.0")},
    }
    for name, devices in nodes.items():
        allocated = held if name == "node-1" else {"a": ("other", "pod")} if name == "half" else {}
        fleet.put_node(node(name))
        fleet.put_vfionode(vfionode(name, devices, allocated=allocated))
    fleet.put_pod(pod("vm-a", "node-1", resources=both))
    fleet.put_vmi(vmi("vm-a", "node-1", resources=both))
    asking = target(resources=both)
    after = patched(asking, admitted(fleet, review(asking)))
    assert required_terms(after) == [{"matchFields": [by_name("In", "both")]}]
    assert len(stamp_of(after).devices) == 2
    fleet.drop_vfionode("both")
    text = admitted(fleet, review(asking))["status"]["message"]
    assert "1 of 3 nodes accept its device(s), none of them has them free: 1 NoneFree (" in text
    assert f"1 NotEnoughDevices (fewer than 2 device(s) of {POOL})" in text
    assert "1 VersionMinorOlder (" in text


def test_denial_is_bounded() -> None:
    fleet = world({})
    for i in range(300):
        name = f"n{i}"
        fleet.put_node(node(name))
        declaration = declared("1.1.0", type_=f"{i}-{'T' * 400}")
        fleet.put_vfionode(vfionode(name, {f"d{i}": declaration}))
    text = denied(fleet)
    assert len(text) <= 1000
    assert text.endswith(" more cause(s)")
    assert " 1 TypeMismatch (" in text


@pytest.mark.parametrize(
    "pod_",
    [
        pytest.param(target(resources=()), id="asks for none of our resources"),
        pytest.param(pod("vm-a", suffix="first", phase="Pending"), id="first start"),
        pytest.param({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "c"}]}}, id="any pod"),
    ],
)
@pytest.mark.parametrize("problem", [None, STALE])
@pytest.mark.parametrize("fail_closed", [False, True])
def test_other_pods_are_left_alone(pod_: Any, problem: str | None, fail_closed: bool) -> None:
    response = admitted(world({"n2": "1.0.0"}), review(pod_), lambda: problem, fail_closed=fail_closed)
    assert response == {"uid": "review-1", "allowed": True}


@pytest.mark.parametrize(
    "changes",
    [
        {"operation": "UPDATE"},
        {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}, "object": {"spec": {"x": 1}}},
        {"kind": {"group": "", "version": "v2", "kind": "Pod"}},
        {"subResource": "status"},
        {"operation": "DELETE", "object": None},
    ],
)
def test_what_the_webhook_is_not_for_is_allowed_with_a_warning(changes: dict[str, Any]) -> None:
    response = admitted(world({}), review(target(), **changes))
    assert response["allowed"] is True
    assert "patch" not in response
    assert "only the creation of pods" in response["warnings"][0]


def test_a_pod_without_its_namespace_gets_the_request_s() -> None:
    before = built(target())
    del before["metadata"]["namespace"]
    assert required_terms(patched(before, admitted(world({"n2": "1.1.0"}), review(before))))


def test_without_caches_the_pod_passes_with_a_warning_and_without_a_stamp_of_others() -> None:
    before = target(annotations={names.SOURCE: "forged"})
    response = admitted(world({"n2": "1.0.0"}), review(before), lambda: STALE)
    assert response["warnings"] == [f"migcompat: CachesNotReady: {STALE}; the pod is not steered"]
    after = patched(before, response)
    assert names.SOURCE not in after["metadata"]["annotations"]
    assert "affinity" not in after["spec"]
    assert patched(target(), admitted(world({}), review(target()), lambda: STALE)) == built(target())


def test_without_caches_a_lax_vm_passes_unwarned_but_without_a_stamp_of_others_too() -> None:
    before = target(annotations={names.SOURCE: "forged", names.MODE: "ignore"})
    fleet = world({"n2": "1.0.0"}, allow_loosening=True)
    response = admitted(fleet, review(before), lambda: STALE, allow_loosening=True)
    assert "warnings" not in response
    assert names.SOURCE not in patched(before, response)["metadata"]["annotations"]


def test_without_caches_the_pod_is_denied_where_asked_for() -> None:
    response = admitted(world({"n2": "1.1.0"}), review(target()), lambda: STALE, fail_closed=True)
    assert response["allowed"] is False
    assert response["status"]["code"] == 503
    assert STALE in response["status"]["message"]


def lax(mode: str) -> Any:
    fleet = world({"n2": "1.0.0", "n3": "1.1.0", "n4": "1.2.0"}, allow_loosening=True)
    fleet.put_vmi(vmi("vm-a", "node-1", annotations={names.MODE: mode}))
    return fleet


def test_prefer_adds_preferences_only() -> None:
    response = admitted(lax("prefer"), review(target()), allow_loosening=True)
    affinity = patched(target(), response)["spec"]["affinity"]["nodeAffinity"]
    assert affinity == {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "preference": {"matchFields": [by_name("In", "n3")]}},
            {"weight": 99, "preference": {"matchFields": [by_name("In", "n4")]}},
        ]
    }
    assert response["auditAnnotations"] == {"loosened": "migcompat.io/mode=prefer"}


def test_prefer_ranks_nodes_with_free_devices_first() -> None:
    fleet = world({"n2": "1.1.0", "n3": "1.1.0"}, used=["n2"], allow_loosening=True)
    fleet.put_vmi(vmi("vm-a", "node-1", annotations={names.MODE: "prefer"}))
    after = patched(target(), admitted(fleet, review(target()), allow_loosening=True))
    (added,) = after["spec"]["affinity"]["nodeAffinity"].values()
    assert [(p["weight"], p["preference"]["matchFields"]) for p in added] == [
        (100, [by_name("In", "n3")]),
        (99, [by_name("In", "n2")]),
    ]


def test_ignore_only_stamps() -> None:
    response = admitted(lax("ignore"), review(target()), allow_loosening=True)
    after = patched(target(), response)
    assert "affinity" not in after["spec"]
    assert stamp_of(after).mode is Mode.IGNORE
    assert response["auditAnnotations"] == {"loosened": "migcompat.io/mode=ignore"}


OURS = "migcompat-scheduler"


def scheduled(pod_: Any, fleet: Fleet, problem: Any = all_well, **settings: Any) -> dict[str, Any]:
    """The spec of the pod after its admission by an extender that brings a scheduler."""
    response = admitted(fleet, review(pod_), problem, **{"scheduler_name": OURS, **settings})
    spec: dict[str, Any] = patched(pod_, response)["spec"]
    return spec


@pytest.mark.parametrize("named", [None, "", "default-scheduler"])
def test_a_target_that_leaves_the_choice_open_gets_our_scheduler(named: str | None) -> None:
    fleet, asking = world({"n2": "1.1.0"}), built(target())
    asking["spec"]["schedulerName"] = named
    spec = scheduled(asking, fleet)
    assert spec["schedulerName"] == OURS
    assert required_terms({"spec": spec}) == [{"matchFields": [by_name("In", "n2")]}], "and is steered"


def test_a_scheduler_that_the_vm_s_owner_chose_stays() -> None:
    asking = built(target())
    asking["spec"]["schedulerName"] = "volcano"
    spec = scheduled(asking, world({"n2": "1.1.0"}))
    assert spec["schedulerName"] == "volcano"
    assert required_terms({"spec": spec}) == [{"matchFields": [by_name("In", "n2")]}], "steered all the same"


def test_without_a_scheduler_of_ours_none_is_named() -> None:
    assert "schedulerName" not in scheduled(target(), world({"n2": "1.1.0"}), scheduler_name="")


@pytest.mark.parametrize(("mode", "name"), [("prefer", OURS), ("ignore", None)])
def test_a_lax_vm_gets_our_scheduler_where_it_is_steered_at_all(mode: str, name: str | None) -> None:
    assert scheduled(target(), lax(mode), allow_loosening=True).get("schedulerName") == name


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (pod("vm-a", "node-1"), None),
        (target(resources=["other.example.org/gpu"]), None),
        (target(resources=["devices.kubevirt.io/kvm"]), STALE),
        (target(), STALE),
    ],
    ids=["no target", "not ours", "not ours, caches stale", "caches stale: it could wait for nothing"],
)
def test_other_pods_keep_their_scheduler(other: Any, problem: str | None) -> None:
    assert "schedulerName" not in scheduled(other, world({"n2": "1.1.0"}), lambda: problem)


def test_a_scheduler_s_name_that_is_no_text_is_refused_clearly() -> None:
    asking = built(target())
    asking["spec"]["schedulerName"] = 7
    with pytest.raises(WireError, match=r"not a Pod: .*spec\.schedulerName"):
        scheduled(asking, world({"n2": "1.1.0"}))


CROSS_TYPE = {names.CROSS_TYPE: "Allow"}


@pytest.mark.parametrize("version", [pytest.param("1.1.0", id="steered"), pytest.param("1.0.0", id="denied")])
def test_whatever_loosens_and_counts_is_audited(version: str) -> None:
    fleet = world({"n2": version}, allow_loosening=True)
    fleet.put_vmi(vmi("vm-a", "node-1", annotations=CROSS_TYPE))
    response = admitted(fleet, review(target()), allow_loosening=True)
    assert response["allowed"] is (version == "1.1.0")
    assert response["auditAnnotations"] == {"loosened": "migcompat.io/cross-type=Allow"}


def test_several_annotations_are_audited_together() -> None:
    fleet = world({"n2": "1.1.0"}, allow_loosening=True)
    fleet.put_vmi(vmi("vm-a", "node-1", annotations={names.MODE: "prefer", **CROSS_TYPE}))
    response = admitted(fleet, review(target()), allow_loosening=True)
    said = "migcompat.io/mode=prefer, migcompat.io/cross-type=Allow"
    assert response["auditAnnotations"] == {"loosened": said}


def test_what_does_not_count_is_not_audited() -> None:
    fleet = world({"n2": "1.1.0"})
    fleet.put_vmi(vmi("vm-a", "node-1", annotations={names.MODE: "prefer", **CROSS_TYPE}))
    assert "auditAnnotations" not in admitted(fleet, review(target()))
    fleet = world({"n2": "1.1.0"}, allow_loosening=True)
    stricter = target(annotations=CROSS_TYPE)
    assert "auditAnnotations" not in admitted(fleet, review(stricter), allow_loosening=True), "the VMI counts"


@pytest.mark.parametrize("problem", [None, STALE])
def test_of_a_vm_that_is_not_known_the_pod_s_annotations_are_audited(problem: str | None) -> None:
    fleet = world({"n2": "1.1.0"}, allow_loosening=True)
    fleet.drop_vmi("tenant-a", "vm-a")
    lax_pod = target(annotations={names.MODE: "ignore"})
    response = admitted(fleet, review(lax_pod), lambda: problem, allow_loosening=True, fail_closed=True)
    assert response["allowed"] is True
    assert response["auditAnnotations"] == {"loosened": "migcompat.io/mode=ignore"}


@pytest.mark.parametrize("mode", ["prefer", "ignore"])
def test_lax_modes_are_never_denied(mode: str) -> None:
    fleet = world({"n2": "1.0.0"}, allow_loosening=True)
    fleet.put_vmi(vmi("vm-a", "node-1", annotations={names.MODE: mode}))
    assert admitted(fleet, review(target()), allow_loosening=True)["allowed"] is True


def test_lax_modes_count_only_where_the_admin_lets_them() -> None:
    fleet = world({"n2": "1.0.0"})
    fleet.put_vmi(vmi("vm-a", "node-1", annotations={names.MODE: "ignore"}))
    assert denied(fleet)


def test_unknown_annotation_values_enforce() -> None:
    fleet = world({"n2": "1.0.0"}, allow_loosening=True)
    fleet.put_vmi(vmi("vm-a", "node-1", annotations={names.MODE: "perhaps"}))
    assert denied(fleet, allow_loosening=True)


def test_a_label_that_names_another_source_than_the_vmi_is_not_believed() -> None:
    response = admitted(world({"n2": "1.1.0"}), review(target(source="n2")))
    assert response["allowed"] is False
    assert "different source nodes" in response["status"]["message"]


def test_outcomes_are_counted_but_not_of_dry_runs() -> None:
    fleet = world({"n2": "1.1.0"})
    asked = Admission(fleet, Tables(fleet), all_well, Settings())
    wet, dry = review(target()), review(target(), dryRun=True)
    assert asked.answer(wet)[1] == "steered"
    assert asked.answer(dry)[1] == ""
    assert asked.answer(wet)[0] == asked.answer(dry)[0]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(b"", "not an AdmissionReview", id="empty"),
        pytest.param(b"garbage", "malformed", id="no JSON"),
        pytest.param(review(target())[:-30], "truncated", id="cut short"),
        pytest.param(b"{}", "expected kind AdmissionReview", id="empty object"),
        pytest.param(
            review(target()).replace(b"k8s.io/v1", b"k8s.io/v1beta1"), "admissionReviewVersions", id="v1beta1"
        ),
        pytest.param(
            json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}).encode(),
            "no request",
            id="no request",
        ),
        pytest.param(review("x"), "not a Pod", id="object is a string"),
        pytest.param(review({"spec": {}}), "not a Pod", id="object without metadata"),
        pytest.param(
            review(
                {
                    **built(target()),
                    "spec": {"affinity": "x", "containers": built(target())["spec"]["containers"]},
                }
            ),
            "not a Pod",
            id="affinity is a string",
        ),
    ],
)
def test_what_cannot_be_understood_is_refused_clearly(body: bytes, says: str) -> None:
    fleet = world({"n2": "1.1.0"})
    with pytest.raises(WireError) as refused:
        Admission(fleet, Tables(fleet), all_well, Settings()).answer(body)
    assert says in str(refused.value)
