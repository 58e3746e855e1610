"""``/explain`` says what ``/filter`` does."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest
from migcompat.api import names
from migcompat.api.compatibilitypolicy import CompatibilityPolicy
from migcompat.api.meta import ObjectMeta
from migcompat.api.vfionode import Migration
from migcompat.fleet.fleet import Fleet
from migcompat.fleet.judge import Judge, Overlay, content_key
from migcompat_extender.explain import Explain, NotExplainable
from migcompat_extender.filter import Filter
from migcompat_extender.refusals import Refusals
from migcompat_extender.settings import Settings
from migcompat_extender.table import Tables

from tests.extender.world import all_well, args, filtered, target, world
from tests.support.fleets import BOOT, POOL, declared, node, pod, refused, vfionode, vmi


def explained(fleet: Any, node_name: str = "", refusals: Refusals | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(
        Explain(fleet, all_well, refusals).answer("tenant-a", "vm-a", node_name)
    )
    return answer


def test_explain_equals_filter() -> None:
    fleet = world({"n2": "1.1.0", "n3": "1.0.0", "n4": "2.0.0", "n5": "1.2.0"}, used=["n5"])
    fleet.put_node(node("stale", boot_id="later"))
    fleet.put_vfionode(vfionode("stale", {"s": declared("1.1.0")}))
    names = ["n2", "n3", "n4", "n5", "stale"]
    answer = filtered(fleet, args(names))
    rejections = {view["node"]: view["rejection"] for view in explained(fleet)["nodes"]}
    assert {n: t for n, t in rejections.items() if t} == answer["FailedAndUnresolvableNodes"]
    assert [n for n, t in rejections.items() if not t] == answer["NodeNames"]
    for name in names:
        assert explained(fleet, name)["nodes"][0]["rejection"] == rejections[name]


VERSIONS = ["1.0.0", "1.1.0", "1.2.0", "2.0.0", "broken"]
POLICIES: list[dict[str, Any]] = [
    {"crossType": "Deny"},
    {"requireReturnPath": True},
    {"unknown": "Allow"},
    {"versionScheme": "exact"},
    {"ignoredAttributes": ["color"]},
    {"compatible": [{"type": "{self:type}", "software_version": "1.0.0-"}]},
]


def any_fleet(chance: random.Random) -> tuple[Fleet, list[str], list[str], Refusals]:
    """Any fleet with vm-a on node-1, the names of its other nodes, what vm-a asks for, and refusals."""

    def device() -> Any:
        version, type_ = chance.choice(VERSIONS), chance.choice(["T", "T", "U"])
        extra = {"color": chance.choice("rg")} if chance.random() < 0.3 else {}
        own = {"software_version": version, "device_api": "vfio-pci", "type": type_, **extra}
        accepts = None
        if chance.random() < 0.5:
            accepts = [
                {**own, "type": chance.choice(["T", "U", "{n}"]), "software_version": chance.choice(VERSIONS)}
                for _ in range(chance.randrange(4))
            ]
        return declared(version, type_=type_, accepts=accepts, extra=extra)

    loosening = chance.random() < 0.5
    fleet = Fleet(allow_loosening=loosening)
    asked = [POOL] * chance.choice([1, 1, 2])
    annotations = {
        key: value
        for key, value in (
            (names.MODE, chance.choice(["prefer", "ignore", "enforce", "often"])),
            (names.REQUIRE_RETURN_PATH, chance.choice(["true", "false"])),
            (names.CROSS_TYPE, chance.choice(["Allow", "Deny", "Perhaps"])),
        )
        if chance.random() < 0.2
    }
    nodes = [f"n{i}" for i in range(chance.randrange(1, 9))]
    held = {f"src-{i}": ("tenant-a", "virt-launcher-vm-a-src") for i in range(len(asked))}
    fleet.put_node(node("node-1", cordoned=chance.random() < 0.5))
    fleet.put_vfionode(vfionode("node-1", {name: device() for name in held}, allocated=held))
    fleet.put_pod(pod("vm-a", "node-1", resources=asked))
    if chance.random() < 0.9:
        fleet.put_vmi(vmi("vm-a", "node-1", resources=asked, annotations=annotations))
    else:
        fleet.put_vmi(vmi("vm-a", "node-1", resources=asked))
        fleet.drop_vfionode("node-1")
    refusals = Refusals()
    for name in nodes:
        boot = "later" if chance.random() < 0.1 else BOOT
        fleet.put_node(node(name, cordoned=chance.random() < 0.2, labels={"half": name[-1]}, boot_id=boot))
        devices = {f"{name}-{i}": device() for i in range(chance.randrange(5))}
        used = {id_: ("other", "pod") for id_ in devices if chance.random() < 0.3}
        resource = POOL if chance.random() < 0.9 else "vfio.migcompat.io/other"
        if chance.random() < 0.95:
            fleet.put_vfionode(vfionode(name, devices, allocated=used, resource=resource))
        if chance.random() < 0.2:
            fleet.put_pod(pod(f"other-{name}", name, source="node-1", suffix="tgt", phase="Pending"))
        if chance.random() < 0.2:
            refusals.note(refused("vm-a", name))
    for number in range(chance.randrange(3)):
        labels = {"nodeLabels": {"half": str(chance.randrange(8))}} if chance.random() < 0.5 else {}
        spec = msgspec.json.encode({"selector": labels, **chance.choice(POLICIES)})
        fleet.put_policy(CompatibilityPolicy(ObjectMeta(name=f"p{number}"), msgspec.Raw(spec)))
    return fleet, nodes, asked, refusals


@pytest.mark.parametrize("seed", range(150))
def test_over_any_fleet_explain_gives_the_filter_s_own_text(seed: int) -> None:
    fleet, nodes, asked, refusals = any_fleet(random.Random(seed))
    settings = Settings(allow_loosening=fleet._allow_loosening)
    asking = Filter(fleet, Tables(fleet), all_well, settings, refusals)

    def filter_says(of: list[str]) -> dict[str, str]:
        answer = json.loads(asking.answer(args(of, target(resources=asked)))[0])
        failed: dict[str, str] = answer["FailedAndUnresolvableNodes"]
        return {name: failed.get(name, "") for name in of}

    whole = explained(fleet, refusals=refusals)
    candidates = [view["node"] for view in whole["nodes"]]
    assert {view["node"]: view["rejection"] for view in whole["nodes"]} == filter_says(candidates)
    for name in [*nodes, "node-1"]:
        (view,) = explained(fleet, name, refusals)["nodes"]
        said = filter_says([*candidates, *({name} - set(candidates))])
        assert view["rejection"] == said[name]
        check_pairings(fleet, name, view)


def check_pairings(fleet: Fleet, name: str, view: dict[str, Any]) -> None:
    """Every pairing's verdict is what the node's fit was judged by; together they cover its devices."""
    found = fleet.vmi("tenant-a", "vm-a")
    assert found is not None
    migrant = fleet.migrant(found)
    sources = {device.id: device for device in migrant.devices}
    offers = {offer.device.id: offer for offer in fleet.offered(name)}
    for pairing in view["pairings"]:
        verdict = pairing["trace"]["verdict"]
        for id_ in pairing["targets"]:
            offer = offers[id_]
            if not pairing["source"]:
                assert migrant.problem
                assert verdict["compatible"] is (offer.target.policy.unknown == "Allow")
                continue
            source = sources[pairing["source"]]
            judged = Judge().verdict(
                (content_key(source.declaration), source.declaration),
                (offer.target.key, offer.target.declaration),
                (offer.target.policy_key, offer.target.policy),
                Overlay.of(migrant),
            )
            assert msgspec.json.decode(msgspec.json.encode(judged)) == verdict
            assert pairing.get("policy", "") == offer.selected.name
    wanted = [id_ for id_, offer in offers.items() if offer.device.resource in migrant.asks]
    for source_id in sources or [""]:
        mine = [pairing for pairing in view["pairings"] if pairing["source"] == source_id]
        assert sorted(id_ for pairing in mine for id_ in pairing["targets"]) == sorted(wanted)
        assert sum(pairing["free"] for pairing in mine) == sum(offers[id_].target.free for id_ in wanted)


def test_what_is_said() -> None:
    whole = explained(world({"n2": "1.1.0", "n3": "1.0.0"}))
    assert (whole["namespace"], whole["vmi"], whole["node"], whole["mode"]) == (
        "tenant-a",
        "vm-a",
        "node-1",
        "enforce",
    )
    assert (whole["compatible"], whole["free"], whole["total"]) == (1, 1, 2)
    assert whole["devices"][0]["id"] == "src"
    assert whole["devices"][0]["attributes"]["software_version"] == "1.1.0"
    assert [view["node"] for view in whole["nodes"]] == ["n2", "n3"]
    assert whole["nodes"][0]["assignment"] == {"src": "n2-0"}
    assert whole["nodes"][1]["reason"] == "VersionMinorOlder"


def test_one_node_in_detail() -> None:
    (view,) = explained(world({"n2": "1.0.0"}), "n2")["nodes"]
    (device,) = view["devices"]
    assert device["id"] == "n2-0"
    assert device["attributes"]["software_version"] == "1.0.0"
    assert device["accepts"][0]["software_version"] == "1.0.0"


def test_a_refusing_attribute_is_told_with_both_values_and_its_section() -> None:
    (view,) = explained(world({"n2": "1.0.0"}), "n2")["nodes"]
    (pairing,) = view["pairings"]
    assert (pairing["source"], pairing["targets"], pairing["free"]) == ("src", ["n2-0"], 1)
    (entry,) = pairing["trace"]["entries"]
    assert [row for row in entry["rows"] if row["finding"] == "refuses"] == [
        {
            "attribute": "software_version",
            "source": "1.1.0",
            "target": "1.0.0",
            "rule": "entry",
            "how": "version, semver",
            "finding": "refuses",
            "section": "§3 stage 5, rule V",
            "message": entry["message"],
        }
    ]
    assert view["rejection"] == f"VersionMinorOlder: {entry['message']}"


def test_what_the_kernel_says_of_a_device_is_told_before_what_it_declares() -> None:
    fleet = world({"n2": "1.1.0"})
    there = fleet.vfionode("n2")
    assert there is not None
    (device,) = there.status.devices
    cannot = msgspec.structs.replace(device, migration=Migration(supported=False))
    status = msgspec.structs.replace(there.status, devices=[cannot])
    fleet.put_vfionode(msgspec.structs.replace(there, status=status))
    (view,) = explained(fleet, "n2")["nodes"]
    (pairing,) = view["pairings"]
    assert view["rejection"] == "NotMigratable: the target's driver cannot migrate this device"
    assert (pairing["trace"]["presence"]["finding"], pairing["trace"].get("entries", [])) == ("refuses", [])
    assert pairing["trace"]["presence"]["target"] == "cannot migrate"


def test_what_keeps_a_node_from_being_taken_beside_its_devices_is_told() -> None:
    fleet = world({"n2": "1.1.0", "n3": "1.1.0", "n4": "1.1.0"})
    fleet.put_node(node("n2", cordoned=True))
    fleet.put_pod(pod("vm-b", "n3", source="node-1", suffix="tgt", phase="Pending"))
    refusals = Refusals()
    refusals.note(refused("vm-a", "n4"))
    views = {view["node"]: view for view in explained(fleet, refusals=refusals)["nodes"]}
    assert (views["n2"]["takesPods"], views["n2"]["reason"]) == (False, "NodeUnschedulable")
    assert views["n2"]["rejection"] == "", "kube-scheduler leaves it out itself"
    assert (views["n3"]["promised"], views["n3"]["promisedTo"]) == (1, ["tenant-a/virt-launcher-vm-b-tgt"])
    assert views["n3"]["rejection"].startswith("NoneFree: ")
    assert views["n4"]["avoided"].startswith("GuardRefused: ")
    assert views["n4"]["rejection"] == views["n4"]["avoided"], "n2 passes the filter"


def test_policies_and_notes_are_named() -> None:
    fleet = world({"n2": "1.1.0"})
    for name in ("b", "a"):
        spec = msgspec.Raw(msgspec.json.encode({"crossType": "Deny"}))
        fleet.put_policy(CompatibilityPolicy(ObjectMeta(name=name), spec))
    fleet.put_vmi(vmi("vm-a", "node-1", annotations={names.MODE: "prefer", names.CROSS_TYPE: "x"}))
    answer = explained(fleet, "n2")
    (pairing,) = answer["nodes"][0]["pairings"]
    assert (pairing["policy"], pairing["tied"]) == ("a", ["a", "b"])
    assert answer["devices"][0]["policy"] == "a"
    assert answer["crossType"] == "Deny"
    first, second = answer["notes"]
    assert "unknown value 'x'" in first
    assert second.startswith("migcompat.io/mode=prefer is not honoured")
    assert "runs on this node" in explained(fleet, "node-1")["notes"][0]


def test_equal_devices_are_one_pairing_and_answers_stay_bounded() -> None:
    own = dict(declared("1.1.0").self.attributes)
    fleet = world({})
    fleet.put_node(node("n2"))
    equal = {f"e{i:03}": declared("1.1.0") for i in range(40)}
    distinct = {f"d{i:03}": declared("1.1.0", accepts=[{**own, "type": f"X{i}"}]) for i in range(100)}
    many = declared("1.1.0", accepts=[*({**own, "type": f"Y{i}"} for i in range(200)), own])
    fleet.put_vfionode(vfionode("n2", {"many": many, **equal, **distinct}))
    (view,) = explained(fleet, "n2")["nodes"]
    assert (len(view["pairings"]), view["pairingsLeftOut"]) == (64, 38)
    first, second = view["pairings"][:2]
    assert (len(first["trace"]["entries"]), first["entriesLeftOut"]) == (16, 185)
    assert first["trace"]["entries"][-1]["reason"] == "Compatible", "the one that counts is among them"
    assert (second["count"], second["free"], len(second["targets"])) == (40, 40, 8)


@pytest.mark.parametrize(
    ("namespace", "name", "node_name", "status", "says"),
    [
        ("", "vm-a", "", 400, "namespace and vmi"),
        ("tenant-a", "", "", 400, "namespace and vmi"),
        ("tenant-a", "vm-x", "", 404, "tenant-a/vm-x"),
        ("tenant-b", "vm-a", "", 404, "tenant-b/vm-a"),
        ("tenant-a", "vm-a", "n9", 404, "no Node n9"),
    ],
)
def test_clear_refusals(namespace: str, name: str, node_name: str, status: int, says: str) -> None:
    with pytest.raises(NotExplainable, match=says) as refused:
        Explain(world({}), all_well).answer(namespace, name, node_name)
    assert refused.value.status == status


def test_nothing_is_explained_from_stale_caches() -> None:
    with pytest.raises(NotExplainable, match="CachesNotReady: gone") as refused:
        Explain(world({}), lambda: "gone").answer("tenant-a", "vm-a", "")
    assert refused.value.status == 503
