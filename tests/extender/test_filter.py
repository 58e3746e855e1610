"""``/filter``: who passes, who fails, and with which text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from migcompat.api import names
from migcompat_extender.filter import Filter
from migcompat_extender.refusals import Refusals
from migcompat_extender.settings import Settings
from migcompat_extender.table import Tables
from migcompat_extender.wire import WireError

from tests.extender.world import all_well, args, filter_of, filtered, recorded_pod, target, world
from tests.support.fleets import BOOT, declared, node, pod, refused, vfionode, vmi

FIELDS = ["Nodes", "NodeNames", "FailedNodes", "FailedAndUnresolvableNodes", "Error"]


def test_names_pass_or_fail_with_the_reason() -> None:
    answer = filtered(world({"n2": "1.1.0", "n3": "1.0.0", "n4": "2.0.0"}), args(["n2", "n3", "n4"]))
    assert list(answer) == FIELDS, "the names of kube-scheduler's types, none left out"
    assert answer["NodeNames"] == ["n2"]
    assert answer["Nodes"] is None
    assert answer["FailedNodes"] == {}
    assert answer["Error"] == ""
    failed = answer["FailedAndUnresolvableNodes"]
    assert failed.keys() == {"n3", "n4"}
    assert failed["n3"].startswith("VersionMinorOlder: ")
    assert failed["n4"].startswith("VersionMajorMismatch: ")


def test_full_nodes_come_back_byte_for_byte() -> None:
    items = [
        {"metadata": {"name": name, "labels": {"x": "é"}}, "status": {"odd": [1.50, None], "z": {}}}
        for name in ("n2", "n3")
    ]
    answer = filtered(
        world({"n2": "1.1.0", "n3": "1.0.0"}), args(None, nodes={"metadata": {}, "items": items})
    )
    assert answer["NodeNames"] is None
    assert answer["Nodes"]["items"] == items[:1]
    assert answer["FailedAndUnresolvableNodes"].keys() == {"n3"}


def test_equal_causes_have_equal_texts_without_nodes_or_devices() -> None:
    versions = {f"worker-{i}": "1.0.0" if i % 2 else "2.0.0" for i in range(40)}
    failed = filtered(world(versions), args(list(versions)))["FailedAndUnresolvableNodes"]
    assert len(failed) == 40
    assert len(set(failed.values())) == 2
    assert not any("worker" in text for text in failed.values())


def test_compatible_but_in_use_fails() -> None:
    failed = filtered(world({"n2": "1.1.0"}, used=["n2"]), args(["n2"]))["FailedAndUnresolvableNodes"]
    assert failed["n2"].startswith("NoneFree: ")


def test_nodes_without_facts_fail() -> None:
    fleet = world({"n2": "1.1.0"})
    fleet.put_node(node("stale", boot_id="later"))
    fleet.put_vfionode(vfionode("stale", {"s": declared("1.1.0")}, boot_id=BOOT))
    fleet.put_node(node("plain"))
    failed = filtered(fleet, args(["n2", "stale", "plain", "unknown"]))["FailedAndUnresolvableNodes"]
    assert {name: text.split(":")[0] for name, text in failed.items()} == {
        "stale": "StaleVFIONode",
        "plain": "NoVFIONode",
        "unknown": "NoVFIONode",
    }


def test_a_bound_target_that_holds_no_device_yet_counts_as_using_one() -> None:
    fleet = world({"n2": "1.1.0"})
    assert filtered(fleet, args(["n2"]))["NodeNames"] == ["n2"]
    fleet.put_pod(pod("vm-b", "n2", source="node-1", suffix="tgt", phase="Pending"))
    assert filtered(fleet, args(["n2"]))["FailedAndUnresolvableNodes"].keys() == {"n2"}


def test_answers_follow_the_cluster() -> None:
    fleet = world({"n2": "1.0.0"})
    asked = filter_of(fleet)
    assert json.loads(asked.answer(args(["n2"]))[0])["NodeNames"] == []
    fleet.put_vfionode(vfionode("n2", {"n2-0": declared("1.1.0")}))
    assert json.loads(asked.answer(args(["n2"]))[0])["NodeNames"] == ["n2"]


def test_counts() -> None:
    fleet = world({"n2": "1.1.0", "n3": "1.0.0"})
    assert filter_of(fleet).answer(args(["n2", "n3", "n9"]))[1:] == (1, 2)


@pytest.mark.parametrize(
    "pod_",
    [
        pytest.param(pod("vm-a", "", suffix="first", phase="Pending"), id="first start"),
        pytest.param(target(resources=()), id="asks for no VFIO device"),
        pytest.param(target(resources=("devices.kubevirt.io/kvm",)), id="asks for KubeVirt's own"),
        pytest.param({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "c"}]}}, id="any pod"),
    ],
)
@pytest.mark.parametrize("problem", [None, "not listed yet: pods"])
def test_other_pods_pass_everywhere(pod_: Any, problem: str | None) -> None:
    answer = filtered(world({"n2": "1.0.0"}), args(["n2", "unknown"], pod_), lambda: problem)
    assert answer["NodeNames"] == ["n2", "unknown"]
    assert answer["FailedAndUnresolvableNodes"] == {}


def test_rejections_invite_preemption_only_where_asked_for() -> None:
    answer = filtered(world({"n2": "1.0.0"}), args(["n2"]), preemptible_rejections=True)
    assert answer["FailedNodes"].keys() == {"n2"}
    assert answer["FailedAndUnresolvableNodes"] == {}


def test_without_caches_every_node_fails_with_that_reason() -> None:
    answer = filtered(world({"n2": "1.1.0"}), args(["n2", "n3"]), lambda: "not listed yet: nodes")
    assert answer["NodeNames"] == []
    assert answer["Error"] == ""
    assert set(answer["FailedAndUnresolvableNodes"].values()) == {"CachesNotReady: not listed yet: nodes"}


@pytest.mark.parametrize("mode", ["prefer", "ignore"])
@pytest.mark.parametrize("problem", [None, "not listed yet: nodes"])
def test_lax_modes_pass_where_the_admin_lets_them(mode: str, problem: str | None) -> None:
    annotations = {names.MODE: mode}
    for loosening in (True, False):
        fleet = world({"n2": "1.0.0"}, allow_loosening=loosening)
        fleet.put_vmi(vmi("vm-a", "node-1", annotations=annotations))
        body = args(["n2"], target(annotations=annotations))
        answer = filtered(fleet, body, lambda: problem, allow_loosening=loosening)
        assert answer["NodeNames"] == (["n2"] if loosening else [])


def test_the_recorded_pod_of_an_unknown_vm_fails_as_unknown() -> None:
    failed = filtered(world({"n2": "1.1.0"}), args(["n2"], recorded_pod()))["FailedAndUnresolvableNodes"]
    assert failed["n2"].split(":")[0] in ("Unknown", "NoDevices")


def test_a_node_whose_guard_has_just_refused_the_vm_is_left_out_while_another_takes_it() -> None:
    fleet = world({"n2": "1.1.0", "n3": "1.1.0", "old": "1.0.0"})
    refusals = Refusals()
    refusals.note(refused("vm-a", "n2"))
    asked = Filter(fleet, Tables(fleet), all_well, Settings(), refusals)
    answer = json.loads(asked.answer(args(["n2", "n3", "old"]))[0])
    assert answer["NodeNames"] == ["n3"]
    failed = answer["FailedAndUnresolvableNodes"]
    assert failed["n2"].startswith("GuardRefused: ")
    assert failed["old"].startswith("VersionMinorOlder: ")
    alone = json.loads(asked.answer(args(["n2", "old"]))[0])
    assert alone["NodeNames"] == ["n2"], "better that node again than none"


def test_no_nodes_is_an_answer() -> None:
    assert filtered(world({}), args([]))["NodeNames"] == []
    assert filtered(world({}), args(None, nodes={"metadata": {}, "items": None}))["Nodes"]["items"] == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(b"", "not ExtenderArgs", id="empty"),
        pytest.param(b"not json", "malformed", id="no JSON"),
        pytest.param(args(["n2"])[:-20], "truncated", id="cut short"),
        pytest.param(b"{}", "Pod is null", id="no pod"),
        pytest.param(b"null", "ExtenderArgs", id="null"),
        pytest.param(b"[1]", "ExtenderArgs", id="a list"),
        pytest.param(args(None), "both NodeNames and Nodes", id="no nodes"),
        pytest.param(b'{"Pod": {"metadata": {}}, "NodeNames": [1]}', "$.NodeNames[0]", id="a number as name"),
        pytest.param(b'{"Pod": {"metadata": {}}, "NodeNames": "n2"}', "$.NodeNames", id="a string as list"),
        pytest.param(b'{"Pod": "x", "NodeNames": []}', "$.Pod", id="a string as pod"),
        pytest.param(args(None, nodes={"items": [{"kind": "Node"}]}), "metadata", id="node without a name"),
        pytest.param(args(["n2"]).replace(b"n2", b"\xff\xfe"), "ExtenderArgs", id="no UTF-8"),
        pytest.param(b"[" * 200_000, "ExtenderArgs", id="deep nesting"),
    ],
)
def test_what_cannot_be_understood_is_refused_clearly(body: bytes, says: str) -> None:
    with pytest.raises(WireError, match="ExtenderArgs") as refused:
        filter_of(world({"n2": "1.1.0"})).answer(body)
    assert says in str(refused.value)
