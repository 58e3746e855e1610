"""What a VM's annotations may do to filter and webhook, and who may let them (contract, Labels)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from migcompat.api import names
from migcompat.api.compatibilitypolicy import CompatibilityPolicy
from migcompat.api.meta import ObjectMeta
from migcompat.fleet.fleet import Fleet

from tests.extender.world import admitted, args, filtered, review, target, world
from tests.support.fleets import declared, node, vfionode, vmi

MODE, BACK, CROSS = names.MODE, names.REQUIRE_RETURN_PATH, names.CROSS_TYPE


def site(annotations: dict[str, str], *, allowed: bool = False, **policy: Any) -> Fleet:
    """Nodes: same as the source; oneway does not give it back; other is another type; old refuses."""
    fleet = world({"same": "1.1.0", "old": "1.0.0"}, allow_loosening=allowed)
    own = dict(declared("1.1.0").self.attributes)
    for name, device in (
        ("oneway", declared("1.2.0", accepts=[{**own, "software_version": "1.2.0"}])),
        ("other", declared("1.1.0", type_="OTHER", accepts=[own, {**own, "type": "OTHER"}])),
    ):
        fleet.put_node(node(name))
        fleet.put_vfionode(vfionode(name, {name: device}))
    # The source takes back from another type, so that only the version can block the way back.
    back = declared("1.1.0", accepts=[own, {**own, "type": "OTHER"}])
    held = {"src": ("tenant-a", "virt-launcher-vm-a-src")}
    fleet.put_vfionode(vfionode("node-1", {"src": back}, allocated=held))
    fleet.put_vmi(vmi("vm-a", "node-1", annotations=annotations))
    if policy:
        spec = msgspec.Raw(msgspec.json.encode(policy))
        fleet.put_policy(CompatibilityPolicy(ObjectMeta(name="admin"), spec))
    return fleet


def passing(fleet: Fleet) -> set[str]:
    return set(filtered(fleet, args(["same", "oneway", "other", "old"]))["NodeNames"])


ALL = {"same", "oneway", "other"}
BOTH_WAYS = {"same", "other"}
OWN_TYPE = {"same", "oneway"}


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize(
    ("annotations", "policy", "expected", "loosened"),
    [
        pytest.param({}, {}, ALL, ALL, id="nothing said"),
        pytest.param({MODE: "enforce"}, {}, ALL, ALL, id="the default said"),
        pytest.param({MODE: "prefer"}, {}, ALL, ALL | {"old"}, id="prefer loosens"),
        pytest.param({MODE: "ignore"}, {}, ALL, ALL | {"old"}, id="ignore loosens"),
        pytest.param({BACK: "true"}, {}, BOTH_WAYS, BOTH_WAYS, id="a way back is stricter"),
        pytest.param(
            {BACK: "false"},
            {"requireReturnPath": True},
            BOTH_WAYS,
            BOTH_WAYS,
            id="the admin's way back stays, whatever the VM says",
        ),
        pytest.param({CROSS: "Deny"}, {}, OWN_TYPE, OWN_TYPE, id="own type is stricter"),
        pytest.param({CROSS: "Allow"}, {}, ALL, ALL, id="other types as the devices say"),
        pytest.param(
            {CROSS: "Allow"}, {"crossType": "Deny"}, OWN_TYPE, ALL, id="other types against the admin"
        ),
        pytest.param({MODE: "Ignore"}, {}, ALL, ALL, id="an unknown mode enforces"),
        pytest.param({BACK: "yes"}, {}, BOTH_WAYS, BOTH_WAYS, id="an unknown wish for a way back"),
        pytest.param({CROSS: "allow"}, {}, OWN_TYPE, OWN_TYPE, id="an unknown cross type"),
    ],
)
def test_who_may_loosen_what(
    annotations: dict[str, str], policy: dict[str, Any], expected: set[str], loosened: set[str], allowed: bool
) -> None:
    fleet = site(annotations, allowed=allowed, **policy)
    assert passing(fleet) == (loosened if allowed else expected)


@pytest.mark.parametrize("key", [MODE, BACK, CROSS])
@pytest.mark.parametrize("free", [True, False], ids=["steered", "denied"])
def test_an_unknown_value_is_a_warning_of_the_webhook(key: str, free: bool) -> None:
    fleet = world({"n2": "1.1.0" if free else "1.0.0"})
    fleet.put_vmi(vmi("vm-a", "node-1", annotations={key: "some\ntimes"}))
    response = admitted(fleet, review(target()))
    assert response["allowed"] is free
    (warning,) = response["warnings"]
    assert warning.startswith(f"migcompat: {key}: unknown value 'some\\ntimes', expected one of ")
    assert warning.endswith("; the strict reading counts")
    assert "auditAnnotations" not in response


def test_a_long_value_is_cut_in_the_warning() -> None:
    fleet = world({"n2": "1.1.0"})
    fleet.put_vmi(vmi("vm-a", "node-1", annotations={MODE: "x" * 5000}))
    (warning,) = admitted(fleet, review(target()))["warnings"]
    assert len(warning) < 256, "kube-apiserver cuts longer ones"


@pytest.mark.parametrize("allowed", [False, True])
def test_what_is_not_honoured_is_a_warning_and_what_is_goes_to_the_audit(allowed: bool) -> None:
    fleet = site({MODE: "ignore", CROSS: "Allow"}, allowed=allowed)
    response = admitted(fleet, review(target()), allow_loosening=allowed)
    if allowed:
        assert "warnings" not in response
        assert response["auditAnnotations"] == {
            "loosened": "migcompat.io/mode=ignore, migcompat.io/cross-type=Allow"
        }
    else:
        assert [text.partition(" is not honoured")[0] for text in response["warnings"]] == [
            "migcompat: migcompat.io/mode=ignore",
            "migcompat: migcompat.io/cross-type=Allow",
        ]
        assert "auditAnnotations" not in response


def test_without_caches_the_pod_s_own_annotations_are_warned_of() -> None:
    asked = target(annotations={MODE: "perhaps"})
    response = admitted(world({}), review(asked), lambda: "not listed yet: nodes")
    first, second = response["warnings"]
    assert "unknown value 'perhaps'" in first
    assert second.endswith("the pod is not steered")


def test_a_pod_s_annotation_does_not_stand_for_its_vm_s() -> None:
    """Who may create pods in the namespace cannot loosen a VM that way."""
    fleet = site({}, allowed=True)
    pod_ = target(annotations={MODE: "ignore"})
    assert set(filtered(fleet, args(["same", "old"], pod_))["NodeNames"]) == {"same"}
