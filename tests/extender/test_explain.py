"""``/explain`` says what ``/filter`` does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from migcompat_extender.explain import Explain, NotExplainable

from tests.extender.world import all_well, args, filtered, world
from tests.support.fleets import declared, node, vfionode


def explained(fleet: Any, node_name: str = "") -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(Explain(fleet, all_well).answer("tenant-a", "vm-a", node_name))
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


@pytest.mark.parametrize(
    ("namespace", "vmi", "node_name", "status", "says"),
    [
        ("", "vm-a", "", 400, "namespace and vmi"),
        ("tenant-a", "", "", 400, "namespace and vmi"),
        ("tenant-a", "vm-x", "", 404, "tenant-a/vm-x"),
        ("tenant-b", "vm-a", "", 404, "tenant-b/vm-a"),
        ("tenant-a", "vm-a", "n9", 404, "no Node n9"),
    ],
)
def test_clear_refusals(namespace: str, vmi: str, node_name: str, status: int, says: str) -> None:
    with pytest.raises(NotExplainable, match=says) as refused:
        Explain(world({}), all_well).answer(namespace, vmi, node_name)
    assert refused.value.status == status


def test_nothing_is_explained_from_stale_caches() -> None:
    with pytest.raises(NotExplainable, match="CachesNotReady: gone") as refused:
        Explain(world({}), lambda: "gone").answer("tenant-a", "vm-a", "")
    assert refused.value.status == 503
