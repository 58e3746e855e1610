"""Only the agent of a node speaks for the node (ValidatingAdmissionPolicies of the chart)."""

from __future__ import annotations

import json
import time

import pytest
from migcompat.kube.errors import Forbidden

from tests.chart.support import NAMESPACE, Installed, Object

AGENT = f"system:serviceaccount:{NAMESPACE}:migcompat-device-plugin"


@pytest.fixture(scope="module")
def nodes(installed: Installed) -> Installed:
    """Two nodes with their agents; the first has published."""
    for node in ("mine", "other"):
        installed.agent(node)
    installed.publish("mine", {"bootID": "1"})
    return installed


def vfionode(name: str, status: Object | None = None) -> str:
    body: Object = {"apiVersion": "migcompat.io/v1alpha1", "kind": "VFIONode", "metadata": {"name": name}}
    if status is not None:
        body["status"] = status
    return json.dumps(body)


def apply(kubeconfig: str, *flags: str) -> tuple[str, ...]:
    return ("apply", f"--kubeconfig={kubeconfig}", "--server-side", "--force-conflicts", *flags, "-f", "-")


def test_an_agent_writes_its_own(nodes: Installed) -> None:
    nodes.publish("mine", {"bootID": "2"})
    assert nodes.plane.get("vfionode", "mine")["status"]["bootID"] == "2"


def test_another_nodes_agent_is_denied_the_object(nodes: Installed) -> None:
    with pytest.raises(Forbidden) as denied:
        nodes.publish("third", {}, by="other")
    assert "VFIONode third is written by the migcompat agent of that node only" in str(denied.value)
    assert "bound to node other" in str(denied.value)


def test_another_nodes_agent_is_denied_the_status(nodes: Installed) -> None:
    with pytest.raises(Forbidden) as denied:
        nodes.publish("mine", {"bootID": "x"}, by="other")
    assert "this token is bound to node other" in str(denied.value)
    assert nodes.plane.get("vfionode", "mine")["status"]["bootID"] != "x"


def test_a_token_that_is_bound_to_no_node_is_denied(nodes: Installed) -> None:
    said = nodes.refused(
        "create", f"--kubeconfig={nodes.unbound_agent()}", "-f", "-", stdin=vfionode("third")
    )
    assert "this token is bound to no node" in said


@pytest.mark.parametrize("flags", [(), ("--subresource=status",)], ids=["object", "status"])
def test_nobody_else_writes_one(nodes: Installed, flags: tuple[str, ...]) -> None:
    administrator = str(nodes.plane.kubeconfig)
    labelled = json.loads(vfionode("mine", {"bootID": "x"}))
    labelled["metadata"]["labels"] = {"by": "me"}
    said = nodes.refused(*apply(administrator, *flags), stdin=json.dumps(labelled))
    assert f"({AGENT}), not by" in said


def test_who_may_delete_one_still_may(nodes: Installed) -> None:
    nodes.agent("leaving")
    nodes.publish("leaving", {"bootID": "1"})
    nodes.plane.kubectl("delete", "vfionode", "leaving")


def test_one_that_is_being_deleted_can_be_let_go(nodes: Installed) -> None:
    """The garbage collector holds what it deletes in the foreground by a finalizer that it then removes."""
    held = json.loads(vfionode("gone"))
    held["metadata"]["finalizers"] = ["migcompat.io/held"]
    nodes.plane.kubectl("create", f"--kubeconfig={nodes.agent('gone')}", "-f", "-", stdin=json.dumps(held))
    release = ("patch", "vfionode", "gone", "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
    assert "of that node only" in nodes.refused(*release)
    nodes.plane.kubectl("delete", "vfionode", "gone", "--wait=false")
    nodes.plane.kubectl(*release)
    assert "gone" not in nodes.plane.kubectl("get", "vfionodes", "-o", "name")


def patch_node(nodes: Installed, agent: str, node: str, patch: Object) -> tuple[str, ...]:
    body = json.dumps(patch)
    return ("patch", f"--kubeconfig={nodes.agent(agent)}", "node", node, "--type=merge", "-p", body)


OURS: Object = {
    "migcompat.io/managed": "true",
    "type.migcompat.io/nvidia-592": "true",
    "offers.migcompat.io/000000000000000000000000": "true",
}


def test_an_agent_labels_its_own_node(nodes: Installed) -> None:
    nodes.plane.kubectl(*patch_node(nodes, "mine", "mine", {"metadata": {"labels": OURS}}))
    labels = nodes.plane.get("node", "mine")["metadata"]["labels"]
    assert OURS.items() <= labels.items()
    nodes.plane.kubectl(*patch_node(nodes, "mine", "mine", {"metadata": {"labels": dict.fromkeys(OURS)}}))
    assert not OURS.keys() & nodes.plane.get("node", "mine")["metadata"]["labels"].keys()


def test_an_agent_does_not_label_another_node(nodes: Installed) -> None:
    said = nodes.refused(*patch_node(nodes, "other", "mine", {"metadata": {"labels": OURS}}))
    assert (
        "Node mine is labelled by the migcompat agent of that node only; this token is bound to node other"
        in said
    )


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (
            {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}},
            "not node-role.kubernetes.io/",
        ),
        ({"metadata": {"labels": {"zone": "b"}}}, "not zone"),
        ({"metadata": {"labels": {"zone": None}}}, "not zone"),
        ({"metadata": {"labels": {"evilmigcompat.io/x": "y"}}}, "not evilmigcompat.io/x"),
        ({"metadata": {"annotations": {"a": "b"}}}, "changes nothing of its Node but labels"),
        ({"metadata": {"finalizers": ["a.b/c"]}}, "changes nothing of its Node but labels"),
        ({"spec": {"unschedulable": True}}, "changes nothing of its Node but labels"),
        (
            {"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}},
            "changes nothing of its Node but labels",
        ),
    ],
    ids=["role", "foreign", "foreign-removed", "lookalike", "annotation", "finalizer", "cordon", "taint"],
)
def test_an_agent_changes_nothing_else_of_its_node(nodes: Installed, patch: Object, words: str) -> None:
    assert words in nodes.refused(*patch_node(nodes, "mine", "mine", patch))


def test_other_writers_of_nodes_are_not_asked(nodes: Installed) -> None:
    nodes.plane.kubectl("label", "node", "mine", "rack=7")
    nodes.plane.kubectl("taint", "node", "mine", "a=b:NoSchedule")


def test_without_the_policies_rbac_alone_decides(nodes: Installed) -> None:
    """What the other tests see is the policies' doing."""
    plane = nodes.plane
    bindings = plane.get("validatingadmissionpolicybinding")["items"]
    plane.kubectl("delete", "validatingadmissionpolicybinding", "--all")
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                nodes.publish("free-for-all", {}, by="other")
                return
            except Forbidden:
                assert time.monotonic() < deadline
                time.sleep(0.2)
    finally:
        for binding in bindings:
            for key in ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"):
                binding["metadata"].pop(key, None)
        plane.apply(*bindings)
        nodes.await_policies()
