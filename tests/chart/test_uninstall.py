"""The end of a release, on a cluster whose product processes are the real ones, with a VM that lives on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from migcompat.api import names

from tests.chart.support import Object
from tests.cluster.base import NAMESPACE, RELEASE
from tests.cluster.cluster import Cluster
from tests.conftest import MakeCluster
from tests.scenario import nodes
from tests.scenario.nodes import POOL

TRACES = (
    "all,secrets,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,jobs,"
    "mutatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings,"
    "poddisruptionbudgets"
)

NO_EXTENDER = {"extender": {"enabled": False}, "webhook": {"enabled": False}}


def ours(cluster: Cluster, node: str) -> set[str]:
    labels = cluster.plane.get("node", node)["metadata"]["labels"]
    return {key for key in labels if names.is_node_label(key)}


def started(make: MakeCluster) -> Cluster:
    """Two nodes with devices; on the first a VM that holds one; what people ask and rule, too."""
    cluster = make()
    for name in ("node-1", "node-6"):
        cluster.add_node(name, prepare=lambda root, name=name: nodes.prepare(root, name))  # type: ignore[misc]
    cluster.install_chart({"crds": {"keep": True}, **NO_EXTENDER})
    cluster.start_vm("vm-a", gpus=[POOL])
    for kind, scope, spec in (
        ("MigrationCompatibility", {"namespace": "default"}, {"virtualMachineInstance": {"name": "vm-a"}}),
        ("CompatibilityPolicy", {}, {"unknown": "Allow"}),
    ):
        body = {
            "apiVersion": "migcompat.io/v1alpha1",
            "kind": kind,
            "metadata": {"name": "mine", **scope},
            "spec": spec,
        }
        cluster.plane.kubectl("create", "-f", "-", stdin=json.dumps(body))
    cluster.wait(lambda: cluster.plane.get("migrationcompat", "vm-a")["status"]["targets"], "an answer")
    cluster.wait(lambda: len(ours(cluster, "node-1")) >= 3, "the node is labelled")
    cluster.wait(
        lambda: "catalogue-xe" in cluster.plane.kubectl("get", "compatpolicy", "-o", "name"),
        "the operator has made the catalogue's policies",
    )
    return cluster


def held(cluster: Cluster) -> Object:
    manager = cluster.nodes[cluster.vmi("vm-a")["status"]["nodeName"]].devices
    return {pod: containers for (_, pod), containers in manager.pods.items() if any(containers.values())}


@pytest.mark.timeout(300)
def test_uninstalling_takes_along_what_was_written_and_no_vm(cluster: MakeCluster) -> None:
    c = started(cluster)
    before = held(c)
    assert before
    agents = [p["metadata"]["name"] for p in c.plane.get("pods", "-n", NAMESPACE)["items"]]
    agents = [name for name in agents if "device-plugin" in name]

    c.plane.helm("uninstall", RELEASE, "-n", NAMESPACE)

    for name, node in c.nodes.items():
        assert ours(c, name) == set()
        assert c.plane.get("node", name)["metadata"]["labels"]
        assert POOL in node.devices.resources
        assert not any(node.devices.resources.values()), "each pool had an empty list as the last word"
    assert c.plane.kubectl("get", "vfionodes", "-o", "name") == ""
    left = c.plane.kubectl("get", "migrationcompat,compatpolicy", "-A", "-o", "name").split()
    assert sorted(left) == [
        "compatibilitypolicy.migcompat.io/mine",
        "migrationcompatibility.migcompat.io/mine",
    ]
    assert held(c) == before
    assert c.vmi("vm-a")["status"]["phase"] == "Running"
    for agent in agents:
        assert "leaving for good" in c.pod_log(agent)
    c.wait(
        lambda: (
            c.plane.kubectl("get", TRACES, "-A", "-o", "name", "-l", "app.kubernetes.io/part-of=migcompat")
            == ""
        ),
        "nothing of the release is left",
    )


@pytest.mark.timeout(300)
def test_an_upgrade_tells_the_kubelets_nothing(cluster: MakeCluster) -> None:
    c = cluster()
    c.add_node("node-1", prepare=lambda root: nodes.prepare(root, "node-1"))
    values = {"operator": {"enabled": False}, **NO_EXTENDER}
    c.install_chart(values)
    c.start_vm("vm-a", gpus=[POOL])
    before = held(c)
    (old,) = c.plane.get("pods", "-n", NAMESPACE)["items"]

    c.install_chart({**values, "logLevel": "debug"})

    (new,) = c.plane.get("pods", "-n", NAMESPACE)["items"]
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    log = Path(next(c.nodes["node-1"].root.glob(f"var/log/pods/*{old['metadata']['name']}*/*.log")))
    assert "stopped" in log.read_text()
    assert "leaving for good" not in log.read_text()
    assert all(devices for _, devices in c.nodes["node-1"].devices.messages)
    assert held(c) == before
