"""What is wrong with a node is said in the agent's log and as a condition, and nothing crashes over it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.base import CHART, NAMESPACE, RELEASE
from tests.cluster.controlplane import ClusterError
from tests.node import vms
from tests.node.cluster import NodeCluster
from tests.node.node import shared_host
from tests.scenario.nodes import PARENT, POOL, device_id

pytestmark = pytest.mark.timeout(240)

NODE, OTHER = "node-2", "node-1"
DEVICES = 2
"""Of NODE."""


@pytest.fixture
def healthy(nodes: NodeCluster) -> Iterator[NodeCluster]:
    """Everything was fine before, and is again after the test has mended what it broke."""
    until_fine(nodes)
    yield nodes
    until_fine(nodes)


@pytest.fixture
def upgraded(healthy: NodeCluster) -> Iterator[NodeCluster]:
    """The chart's own values come back after the test."""
    yield healthy
    healthy.install_chart()


def test_missing_device_nodes_cost_one_device_until_they_are_there(healthy: NodeCluster) -> None:
    host = healthy.nodes[NODE].host
    mdev = host / "sys" / PARENT / device_id(NODE, 1)
    cdevs = [host / "dev/vfio/devices" / entry.name for entry in (mdev / "vfio-dev").iterdir()]
    lost = [host / "dev/vfio" / (mdev / "iommu_group").readlink().name, *(c for c in cdevs if c.exists())]
    kept = {path: path.rename(path.with_name(f"aside-{path.name}")) for path in lost}
    said(healthy, "DevicesUsable", "DeviceNodesMissing", device_id(NODE, 1))
    healthy.wait(lambda: healthy.allocatable(NODE, POOL) == DEVICES - 1, "one device less")
    for path, aside in kept.items():
        aside.rename(path)


def test_no_device_nodes_at_all(healthy: NodeCluster) -> None:
    vfio = healthy.nodes[NODE].host / "dev/vfio"
    aside = vfio.rename(vfio.with_name("vfio-aside"))
    said(healthy, "DevicesUsable", "DeviceNodesMissing", "vfio")
    healthy.wait(lambda: healthy.allocatable(NODE, POOL) == 0, "no device is offered")
    assert condition(healthy, OTHER, "DevicesUsable")["status"] == "True"
    aside.rename(vfio)


def test_an_attribute_that_cannot_be_read_harms_its_device_alone(healthy: NodeCluster) -> None:
    mdev = healthy.nodes[NODE].host / "sys" / PARENT / device_id(NODE, 1)
    version = mdev / "migration/self/software_version"
    good = version.read_text()
    version.unlink()
    os.mkfifo(version)
    healthy.wait(lambda: profile(healthy, device_id(NODE, 1)) == "Malformed", "its self is malformed")
    assert profile(healthy, device_id(NODE, 0)) == "Present"
    version.unlink()
    version.write_text(good)
    healthy.wait(lambda: profile(healthy, device_id(NODE, 1)) == "Present", "it can be read again")


def test_a_directory_that_is_no_sysfs(upgraded: NodeCluster) -> None:
    upgrade(upgraded, {"sys": str(shared_host(upgraded.plane.directory) / "dev")})
    said(upgraded, "Ready", "WrongHostPath", "hostPaths.sys")


def test_a_directory_without_pod_resources_still_lets_vms_start(upgraded: NodeCluster) -> None:
    elsewhere = upgraded.plane.directory / "elsewhere"
    (elsewhere / "pod-resources").mkdir(parents=True, exist_ok=True)
    upgrade(upgraded, {"kubelet": str(elsewhere)})
    said(upgraded, "Ready", "PodResourcesUnavailable", "pod-resources")
    vms.start(upgraded, "vm-first", NODE)
    vms.end(upgraded, "vm-first")


def test_a_path_that_does_not_exist_is_an_event_of_the_pod(upgraded: NodeCluster) -> None:
    upgrade(upgraded, {"sys": "/nowhere/sys"})

    def told() -> bool:
        events = upgraded.plane.get("events", "-n", NAMESPACE)["items"]
        return any(e["reason"] == "FailedMount" and "/nowhere/sys" in e["message"] for e in events)

    upgraded.wait(told, "the kubelet says which path is missing", within=90)


def test_values_that_contradict_are_refused_by_helm(healthy: NodeCluster) -> None:
    before = healthy.plane.helm("get", "manifest", RELEASE, "-n", NAMESPACE)
    with pytest.raises(ClusterError, match=r"webhook\.enabled"):
        upgrade(healthy, {}, extender={"enabled": False})
    assert healthy.plane.helm("get", "manifest", RELEASE, "-n", NAMESPACE) == before


def upgrade(cluster: NodeCluster, host_paths: Mapping[str, str], **values: Any) -> None:
    """Changes values without waiting for pods, which cannot become ready."""
    wanted = cluster.chart_values(values)
    wanted["hostPaths"] |= host_paths
    # Both agents at once: the first would never get ready and hold up the other.
    wanted["devicePlugin"] |= {"maxUnavailable": "100%"}
    path: Path = cluster.plane.directory / "bad-values.yaml"
    path.write_text(yaml.safe_dump(wanted))
    cluster.plane.helm("upgrade", RELEASE, str(CHART), "-n", NAMESPACE, "-f", str(path))


def said(cluster: NodeCluster, kind: str, reason: str, words: str) -> None:
    """The condition, with these words; the same in the agent's log; and the agent has not been restarted."""
    cluster.wait(
        lambda: condition(cluster, NODE, kind).get("reason") == reason,
        f"{kind} of {NODE} is {reason}",
        on_failure=lambda: str(condition(cluster, NODE, kind)),
    )
    found = condition(cluster, NODE, kind)
    assert found["status"] == "False"
    assert words in found["message"]
    agent = cluster.agent(NODE)
    assert words in cluster.pod_log(agent["metadata"]["name"])
    assert [c["restartCount"] for c in agent["status"]["containerStatuses"]] == [0]


def condition(cluster: NodeCluster, node: str, kind: str) -> dict[str, Any]:
    """A condition of the node's VFIONode, empty if it has none of that type."""
    found = cluster.plane.get("vfionode", node).get("status", {}).get("conditions", [])
    return next((c for c in found if c["type"] == kind), {})


def profile(cluster: NodeCluster, device: str) -> str:
    """Whether what a device of NODE says about itself is there, as its VFIONode says."""
    status = cluster.plane.get("vfionode", NODE)["status"]
    own = next(d for d in status["devices"] if d["id"] == device)
    presence: str = status["profiles"][own["profile"]]["self"].get("presence", "Present")
    return presence.capitalize()


def until_fine(cluster: NodeCluster) -> None:
    """Both agents publish and serve everything."""
    for node, count in ((OTHER, 1), (NODE, DEVICES)):
        for kind in ("Ready", "DevicesUsable"):
            cluster.wait(
                lambda node=node, kind=kind: condition(cluster, node, kind).get("status") == "True",  # type: ignore[misc]
                f"{kind} of {node} is True",
                on_failure=lambda node=node, kind=kind: str(condition(cluster, node, kind)),  # type: ignore[misc]
            )
        cluster.wait(
            lambda node=node, count=count: cluster.allocatable(node, POOL) == count,  # type: ignore[misc]
            f"{node} offers {count}",
        )
