"""The fleet's answers: sources, fits, surveys, reservations, policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import pytest
from migcompat.api import names
from migcompat.api.compatibilitypolicy import CompatibilityPolicy
from migcompat.api.meta import ObjectMeta
from migcompat.api.vfionode import Migration, MigrationState, VFIONode
from migcompat.api.vfionode import Mode as NodeMode
from migcompat.engine.declaration import Declaration, Kind, Presence
from migcompat.fleet.fleet import Fleet
from migcompat.fleet.migrant import Facts, Migrant, Mode

from tests.support.fleets import BOOT, POOL, declared, node, pod, vfionode, vmi


def policy(name: str, **spec: object) -> CompatibilityPolicy:
    return CompatibilityPolicy(ObjectMeta(name=name), msgspec.Raw(msgspec.json.encode(spec)))


def fleet_of(targets: dict[str, list[str]], *, source_version: str = "1.1.0", **options: bool) -> Fleet:
    """vm-a on node-1 with one device of *source_version*; other nodes have devices of the versions given."""
    fleet = Fleet(**options)
    fleet.put_node(node("node-1"))
    fleet.put_vfionode(
        vfionode(
            "node-1",
            {"src": declared(source_version)},
            allocated={"src": ("tenant-a", "virt-launcher-vm-a-src")},
        )
    )
    fleet.put_pod(pod("vm-a", "node-1"))
    fleet.put_vmi(vmi("vm-a", "node-1"))
    for name, versions in targets.items():
        fleet.put_node(node(name))
        fleet.put_vfionode(vfionode(name, {f"{name}-{i}": declared(v) for i, v in enumerate(versions)}))
    return fleet


def migrant_of(fleet: Fleet, name: str = "vm-a") -> Migrant:
    found = fleet.vmi("tenant-a", name)
    assert found is not None
    return fleet.migrant(found)


BARE = Declaration(Kind.MDEV)
"""What a device of today's drivers says: nothing."""
OTHER_POOL = f"{names.RESOURCE_DOMAIN}/other"


def pair_fleet(first: Declaration, second: Declaration) -> Fleet:
    """vm-a on node-1 with two devices of one pool, and a node n2 without any."""
    fleet = Fleet()
    for name in ("node-1", "n2"):
        fleet.put_node(node(name))
    holder = ("tenant-a", "virt-launcher-vm-a-src")
    fleet.put_vfionode(
        vfionode("node-1", {"s1": first, "s2": second}, allocated={"s1": holder, "s2": holder})
    )
    fleet.put_pod(pod("vm-a", "node-1", resources=[POOL, POOL]))
    fleet.put_vmi(vmi("vm-a", "node-1", resources=[POOL, POOL]))
    return fleet


def altered(item: VFIONode, **changes: Mapping[str, object]) -> VFIONode:
    """*item* with fields of its devices replaced, given by device id."""
    devices = [msgspec.structs.replace(d, **changes.get(d.id, {})) for d in item.status.devices]
    return msgspec.structs.replace(item, status=msgspec.structs.replace(item.status, devices=devices))


def test_survey_counts_groups_and_ranks() -> None:
    fleet = fleet_of(
        {"n2": ["1.0.0"], "n3": ["1.0.0", "1.0.0"], "n4": ["1.2.0"], "n5": ["1.1.0"], "n6": ["2.0.0"]}
    )
    survey = fleet.survey(migrant_of(fleet))
    assert (survey.compatible, survey.free, survey.total) == (2, 2, 5)
    assert survey.accepting == ("n5", "n4"), "the nearest version comes first"
    assert [(g.reason, g.nodes) for g in survey.groups] == [
        ("VersionMinorOlder", ("n2", "n3")),
        ("VersionMajorMismatch", ("n6",)),
    ]
    assert "1.1.0" in survey.groups[0].message
    assert "n2" not in survey.groups[0].message


def test_source_node_and_nodes_without_the_pool_are_no_candidates() -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    fleet.put_node(node("other"))
    fleet.put_vfionode(vfionode("other", {"x": declared("1.1.0")}, resource=f"{names.RESOURCE_DOMAIN}/else"))
    assert list(fleet.candidates(migrant_of(fleet))) == ["n2"]
    fleet.drop_node("n2")
    assert list(fleet.candidates(migrant_of(fleet))) == [], "what is left of a removed node is none either"
    assert fleet.fit(migrant_of(fleet), "other").reason == "NoDevices"


def test_allocated_and_unhealthy_devices_are_compatible_but_not_free() -> None:
    fleet = fleet_of({})
    fleet.put_node(node("n2"))
    fleet.put_vfionode(
        vfionode(
            "n2",
            {"a": declared("1.1.0"), "b": declared("1.1.0")},
            allocated={"a": ("x", "y")},
            unhealthy=["b"],
        )
    )
    fit = fleet.fit(migrant_of(fleet), "n2")
    assert (fit.compatible, fit.free, fit.reason) == (True, False, "NoneFree")


def test_pod_bound_but_not_yet_allocated_counts_as_using_a_device() -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    assert fleet.fit(migrant_of(fleet), "n2").free
    fleet.put_pod(pod("vm-b", "n2", source="node-9", suffix="tgt", phase="Pending"))
    assert not fleet.fit(migrant_of(fleet), "n2").free
    fleet.drop_pod("tenant-a", "virt-launcher-vm-b-tgt")
    assert fleet.fit(migrant_of(fleet), "n2").free


def test_a_pod_that_holds_its_device_is_not_counted_a_second_time() -> None:
    fleet = fleet_of({})
    fleet.put_node(node("n2"))
    holder = ("tenant-a", "virt-launcher-vm-b-src")
    fleet.put_vfionode(
        vfionode("n2", {"a": declared("1.1.0"), "b": declared("1.1.0")}, allocated={"a": holder})
    )
    fleet.put_pod(pod("vm-b", "n2"))
    assert fleet.fit(migrant_of(fleet), "n2").free


def test_a_promised_device_is_not_free_for_an_unknown_source_either() -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    fleet.drop_vfionode("node-1")
    fleet.put_policy(policy("lax", unknown="Allow"))
    assert fleet.fit(migrant_of(fleet), "n2").free
    fleet.put_pod(pod("vm-b", "n2", source="node-9", suffix="tgt", phase="Pending"))
    fit = fleet.fit(migrant_of(fleet), "n2")
    assert (fit.compatible, fit.free, fit.reason) == (True, False, "NoneFree")


def test_a_pod_made_anew_on_another_node_takes_nothing_on_the_first() -> None:
    """A watch that was interrupted shows only the new pod of the name, never that the old one went."""
    fleet = fleet_of({"n2": ["1.1.0"], "n3": ["1.1.0"]})
    fleet.put_pod(pod("vm-b", "n2", source="node-9", suffix="tgt", phase="Pending"))
    fleet.put_pod(pod("vm-b", "n3", source="node-9", suffix="tgt", phase="Pending"))
    assert [fleet.fit(migrant_of(fleet), name).free for name in ("n2", "n3")] == [True, False]
    fleet.drop_pod("tenant-a", "virt-launcher-vm-b-tgt")
    assert [fleet.fit(migrant_of(fleet), name).free for name in ("n2", "n3")] == [True, True]


def test_own_target_pod_does_not_take_the_device_from_itself() -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    fleet.put_pod(pod("vm-a", "n2", source="node-1", suffix="tgt", phase="Pending"))
    assert fleet.fit(migrant_of(fleet), "n2").free


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_ended_pods_hold_nothing(phase: str) -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    fleet.put_pod(pod("vm-b", "n2", source="node-9", suffix="tgt", phase=phase))
    assert fleet.fit(migrant_of(fleet), "n2").free


def test_nodes_that_take_no_pods_accept_but_are_not_free() -> None:
    """Each VM of a drain would else be pinned to a node that was drained before."""
    fleet = fleet_of({"n2": ["1.1.0"], "n3": ["1.1.0"], "n4": ["1.1.0"]})
    fleet.put_node(node("n2", cordoned=True))
    fleet.put_node(node("n3", ready=False))
    survey = fleet.survey(migrant_of(fleet))
    assert (survey.compatible, survey.free, survey.accepting[0]) == (3, 1, "n4")
    assert survey.fits["n2"].reason == survey.fits["n3"].reason == "NodeUnschedulable"
    assert fleet.fit(migrant_of(fleet), "n2").free, "kube-scheduler itself leaves cordoned nodes out"
    assert fleet.put_node(node("n2"))
    assert fleet.survey(migrant_of(fleet)).free == 2


def test_stale_boot_id_and_missing_node_do_not_count() -> None:
    fleet = fleet_of({"n2": ["1.1.0"], "n3": ["1.1.0"]})
    fleet.put_node(node("n2", boot_id="boot-2"))
    fleet.drop_node("n3")
    assert fleet.fit(migrant_of(fleet), "n2").reason == "StaleVFIONode"
    assert fleet.fit(migrant_of(fleet), "n3").reason == "NoVFIONode"
    fleet.put_vfionode(vfionode("n2", {"n2-0": declared("1.1.0")}, boot_id="boot-2"))
    assert fleet.fit(migrant_of(fleet), "n2").compatible


def test_upgrade_of_a_node_changes_the_answer() -> None:
    fleet = fleet_of({"n2": ["1.0.0"]})
    migrant = migrant_of(fleet)
    assert not fleet.fit(migrant, "n2").compatible
    before = fleet.generation
    assert fleet.put_vfionode(vfionode("n2", {"n2-0": declared("1.1.0")}))
    assert fleet.generation > before
    assert fleet.fit(migrant, "n2").compatible


def test_equal_objects_are_no_change() -> None:
    fleet = fleet_of({"n2": ["1.0.0"]})
    before = fleet.generation
    assert not fleet.put_vfionode(vfionode("n2", {"n2-0": declared("1.0.0")}))
    assert not fleet.put_node(node("n2"))
    assert not fleet.put_pod(pod("vm-a", "node-1"))
    assert not fleet.put_vmi(vmi("vm-a", "node-1"))
    assert fleet.generation == before


@pytest.mark.parametrize(
    "holder",
    [("tenant-a", "virt-launcher-vm-a-old"), ("tenant-b", "virt-launcher-vm-a-src")],
    ids=["a former pod of the VM", "a pod of another tenant"],
)
def test_only_the_devices_of_the_running_launcher_are_the_source(holder: tuple[str, str]) -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    fleet.put_pod(pod("vm-a", "node-1", suffix="old", phase="Succeeded"))
    fleet.put_vfionode(
        vfionode(
            "node-1",
            {"src": declared("1.1.0"), "not-its-own": declared("2.0.0")},
            allocated={"src": ("tenant-a", "virt-launcher-vm-a-src"), "not-its-own": holder},
        )
    )
    migrant = migrant_of(fleet)
    assert (migrant.problem, [device.id for device in migrant.devices]) == ("", ["src"])


@pytest.mark.parametrize(
    ("breakage", "text"),
    [
        (lambda f: f.drop_vfionode("node-1"), "no agent publishes"),
        (lambda f: f.drop_pod("tenant-a", "virt-launcher-vm-a-src"), "has not published"),
        (lambda f: f.put_vfionode(vfionode("node-1", {"src": declared("1.1.0")})), "has not published"),
        (lambda f: f.put_vmi(vmi("vm-a", "")), "runs on no node"),
    ],
)
def test_unknown_source_is_unknown_everywhere(breakage: Callable[[Fleet], object], text: str) -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    breakage(fleet)
    fit = fleet.fit(migrant_of(fleet), "n2")
    assert (fit.compatible, fit.reason) == (False, "Unknown")
    assert text in fit.message


def test_unknown_source_is_allowed_by_the_targets_policy_only() -> None:
    fleet = fleet_of({"n2": ["1.1.0"], "n3": ["1.1.0"]})
    fleet.drop_vfionode("node-1")
    fleet.put_node(node("n2", labels={"zone": "lab"}))
    fleet.put_policy(policy("lab", selector={"nodeLabels": {"zone": "lab"}}, unknown="Allow"))
    fits = fleet.survey(migrant_of(fleet)).fits
    assert (fits["n2"].compatible, fits["n2"].reason) == (True, "Unknown")
    assert not fits["n3"].compatible


def test_migrant_for_pod() -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    target = pod("vm-a", source="node-1", suffix="tgt")
    found = fleet.migrant_for_pod(target)
    assert found is not None
    assert (found.name, found.problem, found.node) == ("vm-a", "", "node-1")
    assert fleet.migrant_for_pod(pod("vm-a", "node-1")) is None, "not a migration target"
    assert fleet.migrant_for_pod(pod("vm-a", source="node-1", resources=["nvidia.com/gpu"])) is None
    unknown = fleet.migrant_for_pod(pod("vm-x", source="node-1"))
    assert unknown is not None
    assert unknown.problem
    moved = fleet.migrant_for_pod(pod("vm-a", source="node-7"))
    assert moved is not None
    assert "different source nodes" in moved.problem
    more = fleet.migrant_for_pod(pod("vm-a", source="node-1", resources=[POOL, POOL]))
    assert more is not None
    assert "different devices" in more.problem


def test_former_target_pod_is_the_source_of_the_next_migration() -> None:
    """The pod a VM has migrated into keeps its migrationJobUID label (contract, Migration targets)."""
    fleet = fleet_of({"n2": ["1.1.0"]})
    fleet.put_pod(pod("vm-a", "node-1", source="node-0"))
    assert migrant_of(fleet).problem == ""


def test_two_devices_need_two_that_accept() -> None:
    fleet = Fleet()
    for name in ("node-1", "n2", "n3"):
        fleet.put_node(node(name))
    holder = ("tenant-a", "virt-launcher-vm-a-src")
    fleet.put_vfionode(
        vfionode(
            "node-1",
            {"s1": declared("1.1.0"), "s2": declared("1.0.0")},
            allocated={"s1": holder, "s2": holder},
        )
    )
    fleet.put_pod(pod("vm-a", "node-1", resources=[POOL, POOL]))
    fleet.put_vmi(vmi("vm-a", "node-1", resources=[POOL, POOL]))
    fleet.put_vfionode(vfionode("n2", {"a": declared("1.1.0"), "b": declared("1.0.0")}))
    fleet.put_vfionode(vfionode("n3", {"a": declared("1.0.0"), "b": declared("1.0.0")}))
    good = fleet.fit(migrant_of(fleet), "n2")
    assert {(a.source, a.id) for a in good.assignment} == {(0, "a"), (1, "b")}, (
        "greedy would give a to the older"
    )
    assert fleet.fit(migrant_of(fleet), "n3").reason == "VersionMinorOlder"
    fleet.put_vfionode(vfionode("n3", {"a": declared("1.1.0")}))
    assert fleet.fit(migrant_of(fleet), "n3").reason == "NotEnoughDevices"


def test_a_device_goes_to_one_of_its_own_pool_only() -> None:
    fleet = pair_fleet(declared("1.1.0"), declared("1.1.0"))
    source = fleet.vfionode("node-1")
    assert source is not None
    fleet.put_vfionode(altered(source, s2={"resource": OTHER_POOL}))
    fleet.put_pod(pod("vm-a", "node-1", resources=[POOL, OTHER_POOL]))
    fleet.put_vmi(vmi("vm-a", "node-1", resources=[POOL, OTHER_POOL]))
    target = vfionode("n2", {"a": declared("2.0.0"), "b": declared("1.1.0"), "c": declared("1.1.0")})
    fleet.put_vfionode(altered(target, b={"resource": OTHER_POOL}, c={"resource": OTHER_POOL}))
    assert fleet.fit(migrant_of(fleet), "n2").reason == "VersionMajorMismatch"


def test_the_refusal_nearest_to_success_is_told() -> None:
    fleet = fleet_of({})
    fleet.put_node(node("n2"))
    near, far = declared("1.0.0"), declared("1.1.0", type_="OTHER")
    for devices in ({"a": near, "b": far}, {"a": far, "b": near}):
        fleet.put_vfionode(vfionode("n2", devices))
        assert fleet.fit(migrant_of(fleet), "n2").reason == "VersionMinorOlder"


def test_a_node_ranks_by_the_farthest_of_its_devices() -> None:
    fleet = pair_fleet(declared("1.1.0"), declared("1.1.0"))
    fleet.put_vfionode(vfionode("n2", {"a": declared("1.1.0"), "b": declared("1.3.0")}))
    fleet.put_node(node("n3"))
    fleet.put_vfionode(vfionode("n3", {"a": declared("1.2.0"), "b": declared("1.2.0")}))
    assert fleet.survey(migrant_of(fleet)).accepting == ("n3", "n2")


def test_one_device_of_which_nothing_is_known_makes_the_answer_unknown() -> None:
    fleet = pair_fleet(declared("1.1.0"), BARE)
    fleet.put_vfionode(vfionode("n2", {"a": declared("1.1.0"), "b": declared("1.1.0")}))
    assert fleet.fit(migrant_of(fleet), "n2").reason == "NotMigratable"
    fleet.put_policy(policy("lax", unknown="Allow"))
    fit = fleet.fit(migrant_of(fleet), "n2")
    assert (fit.compatible, fit.reason) == (True, "Unknown")


def test_a_single_device_needs_no_peer_to_peer() -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    for name, device in (("node-1", "src"), ("n2", "n2-0")):
        item = fleet.vfionode(name)
        assert item is not None
        fleet.put_vfionode(altered(item, **{device: {"peer_to_peer": False}}))
    assert fleet.fit(migrant_of(fleet), "n2").compatible


def test_peer_to_peer_is_needed_for_several_devices_where_known() -> None:
    fleet = Fleet()
    for name in ("node-1", "n2"):
        fleet.put_node(node(name))
    holder = ("tenant-a", "virt-launcher-vm-a-src")
    source = vfionode("node-1", {"s1": declared(), "s2": declared()}, allocated={"s1": holder, "s2": holder})
    fleet.put_vfionode(source)
    fleet.put_pod(pod("vm-a", "node-1", resources=[POOL, POOL]))
    fleet.put_vmi(vmi("vm-a", "node-1", resources=[POOL, POOL]))
    target = vfionode("n2", {"a": declared(), "b": declared()})
    fleet.put_vfionode(target)
    assert fleet.fit(migrant_of(fleet), "n2").compatible, "not known is no obstacle"
    status = msgspec.structs.replace(
        target.status,
        devices=[msgspec.structs.replace(d, peer_to_peer=d.id == "a") for d in target.status.devices],
    )
    fleet.put_vfionode(msgspec.structs.replace(target, status=status))
    assert fleet.fit(migrant_of(fleet), "n2").reason == "PeerToPeerUnsupported"


CAN, CANNOT = Migration(True, (MigrationState.STOP_COPY,)), Migration(False)


@pytest.mark.parametrize("name", ["node-1", "n2"])
@pytest.mark.parametrize("declares", [True, False])
def test_what_the_kernel_cannot_migrate_goes_nowhere_whatever_policy_says(name: str, declares: bool) -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    if not declares:
        holder = {"src": ("tenant-a", "virt-launcher-vm-a-src")}
        fleet.put_vfionode(vfionode("node-1", {"src": BARE}, allocated=holder))
        fleet.put_vfionode(vfionode("n2", {"n2-0": BARE}))
    fleet.put_policy(policy("lax", unknown="Allow"))
    assert fleet.fit(migrant_of(fleet), "n2").compatible, "not known is no obstacle"
    item = fleet.vfionode(name)
    assert item is not None
    id_ = item.status.devices[0].id
    fleet.put_vfionode(altered(item, **{id_: {"migration": CAN}}))
    assert fleet.fit(migrant_of(fleet), "n2").compatible
    fleet.put_vfionode(altered(item, **{id_: {"migration": CANNOT}}))
    fit = fleet.fit(migrant_of(fleet), "n2")
    assert (fit.compatible, fit.free, fit.reason) == (False, False, "NotMigratable")
    assert (
        fit.message == f"the {'source' if name == 'node-1' else 'target'}'s driver cannot migrate this device"
    )


def test_of_several_devices_one_that_can_migrate_is_taken() -> None:
    fleet = fleet_of({"n2": ["1.1.0", "1.1.0"]})
    item = fleet.vfionode("n2")
    assert item is not None
    fleet.put_vfionode(altered(item, **{"n2-0": {"migration": CANNOT}}))
    fit = fleet.fit(migrant_of(fleet), "n2")
    assert [assigned.id for assigned in fit.assignment] == ["n2-1"]
    fleet.put_vfionode(altered(item, **{"n2-0": {"migration": CANNOT}, "n2-1": {"migration": CANNOT}}))
    assert fleet.fit(migrant_of(fleet), "n2").reason == "NotMigratable"


def test_an_unknown_source_is_not_allowed_onto_what_cannot_migrate() -> None:
    fleet = fleet_of({"n2": ["1.1.0", "1.1.0"]})
    fleet.put_policy(policy("lax", unknown="Allow"))
    fleet.drop_vfionode("node-1")
    item = fleet.vfionode("n2")
    assert item is not None
    fleet.put_vfionode(altered(item, **{"n2-0": {"migration": CANNOT}}))
    assert fleet.fit(migrant_of(fleet), "n2").reason == "Unknown"
    assert fleet.fit(migrant_of(fleet), "n2").compatible
    fleet.put_vfionode(altered(item, **{"n2-0": {"migration": CANNOT}, "n2-1": {"migration": CANNOT}}))
    assert fleet.fit(migrant_of(fleet), "n2").reason == "NotMigratable"


@pytest.mark.parametrize(
    ("features", "migration", "compatible"),
    [
        ("none", None, False),
        ("dirty-tracking", None, False),
        ("p2p+stop-copy", None, True),
        ("none", CAN, True),
        ("stop-copy", CANNOT, False),
    ],
)
def test_debugfs_counts_where_the_kernel_was_not_asked(
    features: str, migration: Migration | None, compatible: bool
) -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    item = fleet.vfionode("n2")
    assert item is not None
    item = altered(item, **{"n2-0": {"migration": migration, "shown": "s"}})
    status = msgspec.structs.replace(item.status, shown={"s": {"migration_features": features}})
    fleet.put_vfionode(msgspec.structs.replace(item, status=status))
    assert fleet.fit(migrant_of(fleet), "n2").compatible is compatible


def test_most_specific_policy_governs_the_target() -> None:
    fleet = fleet_of({"n2": ["580.95.05"]}, source_version="580.82.07")
    assert fleet.fit(migrant_of(fleet), "n2").reason == "VersionMalformed"
    fleet.put_policy(policy("drivers", selector={"device": {"driver": "nvidia"}}, versionScheme="dotted"))
    assert fleet.fit(migrant_of(fleet), "n2").compatible
    fleet.put_policy(
        policy("strict", selector={"device": {"driver": "nvidia", "vendor": "10de"}}, versionScheme="exact")
    )
    assert fleet.fit(migrant_of(fleet), "n2").reason == "VersionMajorMismatch"
    fleet.drop_policy("strict")
    assert fleet.fit(migrant_of(fleet), "n2").compatible


@pytest.mark.parametrize(
    "device", [{"driver": "vfio"}, {"type": "OTHER"}, {"deviceApi": "vfio-ccw"}, {"vendor": "8086"}]
)
def test_a_policy_governs_only_what_every_key_of_its_selector_selects(device: dict[str, str]) -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    fleet.put_policy(policy("others", selector={"device": device}, versionScheme="exact"))
    fleet.put_policy(policy("elsewhere", selector={"nodeLabels": {"zone": "b"}}, versionScheme="exact"))
    chosen = fleet.policies.select(Facts("nvidia", "GRID-T4-1Q", "vfio-pci", "10de"), {"zone": "a"})
    assert chosen.name == ""


def test_node_labels_make_a_policy_more_specific() -> None:
    fleet = fleet_of({})
    fleet.put_policy(policy("a", selector={"device": {"driver": "nvidia"}}))
    fleet.put_policy(policy("z", selector={"nodeLabels": {"zone": "lab", "row": "7"}}))
    chosen = fleet.policies.select(Facts("nvidia"), {"zone": "lab", "row": "7"})
    assert (chosen.name, chosen.tied) == ("z", ())


def test_a_relabelled_node_comes_under_another_policy() -> None:
    fleet = fleet_of({"n2": ["1.2.0"]})
    fleet.put_policy(policy("lab", selector={"nodeLabels": {"zone": "lab"}}, versionScheme="exact"))
    assert fleet.fit(migrant_of(fleet), "n2").compatible
    assert fleet.put_node(node("n2", labels={"zone": "lab"}))
    assert not fleet.fit(migrant_of(fleet), "n2").compatible


def test_broken_policy_is_named_and_harms_nothing_else() -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    fleet.put_policy(policy("broken", selector={}, offValues={"x": [False]}))
    fleet.put_policy(policy("typo", versionSchema="dotted"))
    fleet.put_policy(policy("template", compatible=[{"type": "x{n:int:}"}]))
    assert sorted(fleet.policies.problems) == ["broken", "template", "typo"]
    assert "versionSchema" in fleet.policies.problems["typo"]
    assert fleet.fit(migrant_of(fleet), "n2").compatible


def test_equally_specific_policies_first_by_name_and_both_are_told() -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    fleet.put_policy(policy("b", selector={"device": {"driver": "nvidia"}}, versionScheme="exact"))
    fleet.put_policy(policy("a", selector={"device": {"vendor": "10de"}}, versionScheme="dotted"))
    chosen = fleet.policies.select(Facts("nvidia", "t", "vfio-pci", "10de"), {})
    assert (chosen.name, chosen.tied) == ("a", ("a", "b"))


def test_supplied_attributes_fill_what_devices_do_not_say() -> None:
    fleet = fleet_of({})
    bare = declared(accepts=[])
    bare = msgspec.structs.replace(
        bare, self=msgspec.structs.replace(bare.self, attributes={}, presence=Presence.ABSENT)
    )
    fleet.put_node(node("n2"))
    fleet.put_vfionode(vfionode("n2", {"x": bare}))
    assert fleet.fit(migrant_of(fleet), "n2").reason == "NotMigratable"
    own = {"software_version": "1.1.0", "device_api": "vfio-pci", "type": "GRID-T4-1Q"}
    fleet.put_policy(policy("supply", selector={"device": {"driver": "nvidia"}}, self=own, compatible=[own]))
    assert fleet.fit(migrant_of(fleet), "n2").compatible


def test_supplied_attributes_fill_what_the_source_does_not_say() -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    holder = ("tenant-a", "virt-launcher-vm-a-src")
    fleet.put_vfionode(vfionode("node-1", {"src": BARE}, allocated={"src": holder}))
    assert fleet.fit(migrant_of(fleet), "n2").reason == "NotMigratable"
    own = {"software_version": "1.1.0", "device_api": "vfio-pci", "type": "GRID-T4-1Q"}
    fleet.put_policy(policy("supply", selector={"device": {"driver": "nvidia"}}, self=own))
    assert fleet.fit(migrant_of(fleet), "n2").compatible


def test_annotations_make_stricter_always_and_laxer_only_where_allowed() -> None:
    for allowed, mode in ((False, Mode.ENFORCE), (True, Mode.IGNORE)):
        fleet = fleet_of({"n2": ["1.1.0"]}, allow_loosening=allowed)
        fleet.put_vmi(vmi("vm-a", "node-1", annotations={names.MODE: "ignore", names.CROSS_TYPE: "Deny"}))
        found = migrant_of(fleet)
        assert (found.mode, found.deny_cross_type) == (mode, True)


def test_require_return_path_by_annotation() -> None:
    fleet = fleet_of({"n2": ["1.2.0"]})
    assert fleet.fit(migrant_of(fleet), "n2").compatible
    fleet.put_vmi(vmi("vm-a", "node-1", annotations={names.REQUIRE_RETURN_PATH: "true"}))
    assert fleet.fit(migrant_of(fleet), "n2").reason == "ReturnPath"


def test_require_return_path_by_policy() -> None:
    fleet = fleet_of({"n2": ["1.2.0"]})
    fleet.put_policy(policy("back", requireReturnPath=True))
    assert fleet.fit(migrant_of(fleet), "n2").reason == "ReturnPath"


def test_vmis_are_those_with_vfio_devices() -> None:
    fleet = fleet_of({})
    fleet.put_vmi(vmi("plain", "node-1", resources=[]))
    fleet.put_vmi(vmi("foreign", "node-1", resources=["example.com/usb"]))
    assert [v.metadata.name for v in fleet.vmis()] == ["vm-a"]


def test_device_question() -> None:
    fleet = fleet_of({"n2": ["1.1.0"]})
    assert fleet.survey(fleet.device_migrant("node-1", "src")).compatible == 1
    assert "no device nope" in fleet.device_migrant("node-1", "nope").problem


def test_boot_constant_is_what_objects_carry() -> None:
    assert vfionode("n", {}).status.boot_id == BOOT == node("n").status.node_info.boot_id


def test_a_pool_of_any_domain_is_ours_while_a_node_publishes_it() -> None:
    """Names come from a configuration file of the agents, of which nobody else knows."""
    fleet = fleet_of({})
    assert not fleet.is_ours("example.com/gpu")
    fleet.put_vfionode(vfionode("n2", {"d": declared("1.0.0")}, resource="example.com/gpu"))
    assert fleet.is_ours("example.com/gpu")
    fleet.put_vmi(vmi("vm-b", "n2", resources=["example.com/gpu"]))
    assert [v.metadata.name for v in fleet.vmis()] == ["vm-a", "vm-b"]
    fleet.drop_vfionode("n2")
    assert not fleet.is_ours("example.com/gpu")


def test_pools_that_another_plugin_serves_are_ours_once_an_agent_observes_them() -> None:
    """Their names are in no domain of ours; a VFIONode that has them makes them so, whatever its mode."""
    foreign = "nvidia.com/GRID_T4-1Q"
    fleet = Fleet()
    fleet.put_vmi(vmi("vm-a", "node-1", resources=[foreign]))
    fleet.put_pod(pod("vm-a", "node-1", resources=[foreign]))
    assert not fleet.is_ours(foreign)
    assert fleet.vmis() == []
    holder = {"src": ("tenant-a", "virt-launcher-vm-a-src")}
    for name, devices, allocated in (
        ("node-1", {"src": declared("1.1.0")}, holder),
        ("n2", {"x": declared("1.1.0")}, {}),
        ("n3", {"y": declared("1.0.0")}, {}),
    ):
        fleet.put_node(node(name))
        item = vfionode(name, devices, allocated=allocated, resource=foreign)
        item.status.mode = NodeMode.OBSERVE
        fleet.put_vfionode(item)
    assert fleet.is_ours(foreign)
    assert [found.metadata.name for found in fleet.vmis()] == ["vm-a"]
    migrant = migrant_of(fleet)
    assert (migrant.asks, migrant.problem) == ({foreign: 1}, "")
    assert fleet.fit(migrant, "n2").free
    assert not fleet.fit(migrant, "n3").compatible
    target = pod("vm-a", source="node-1", suffix="tgt", phase="Pending", resources=[foreign])
    found = fleet.migrant_for_pod(target)
    assert found is not None
    assert (found.problem, found.devices) == ("", migrant.devices)
