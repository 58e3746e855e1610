"""Way 3 on real nodes: the chart's own scheduler, from an image as the stock one, places the targets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from migcompat.api import names

from tests.cluster.api import Object
from tests.cluster.base import NAMESPACE as PRODUCT
from tests.node import containers, images, vms
from tests.node.cluster import NodeCluster
from tests.node.record import PODS, Version, recording
from tests.node.vms import NAMESPACE
from tests.scenario import nodes
from tests.scenario.nodes import POOL

pytestmark = pytest.mark.timeout(600, func_only=True)

OURS = "migcompat-scheduler"
SOURCE, TARGET = "node-1", "node-2"
COUNTS = {SOURCE: 1, TARGET: 2}
ACCEPTING = nodes.device_id(TARGET, 1)
"""The device of the target node that takes a VM from the source node; it has another one, which does not."""


@pytest.fixture(scope="module")
def cluster(bare: NodeCluster, tmp_path_factory: pytest.TempPathFactory) -> NodeCluster:
    """The two nodes with the chart's scheduler: all of it is its defaults, but that it is enabled."""
    archive: Path = tmp_path_factory.mktemp("image") / "kube-scheduler.tar"
    images.scheduler(bare.plane.binaries.kube_scheduler, archive)
    for node in bare.nodes.values():
        node.import_image(images.SCHEDULER, archive)
    archive.unlink()
    bare.install_chart({"scheduler": {"enabled": True}})
    bare.wait(lambda: {n: bare.allocatable(n, POOL) for n in COUNTS} == COUNTS, "devices are counted")
    return bare


@pytest.fixture(autouse=True)
def nothing_left(cluster: NodeCluster) -> Iterator[None]:
    """Each test finds nodes without VMs, and both schedulers, whatever came of the one before."""
    yield
    scale(cluster, 2)
    vms.end(cluster)
    cluster.wait(
        lambda: not any(vms.allocated_to(cluster, node) for node in COUNTS), "all devices are free again"
    )


def test_its_containers_have_no_privilege_and_one_of_them_leads(cluster: NodeCluster) -> None:
    pods = schedulers(cluster)
    assert len(pods) == 2
    for pod in pods:
        assert pod["spec"]["containers"][0]["image"] == images.SCHEDULER, "of the cluster's own version"
        found = containers.running(pod, "scheduler")
        assert found is not None
        process = found.pids(cluster.nodes[pod["spec"]["nodeName"]])[0]
        credentials = containers.credentials(process)
        assert credentials.uids == (65532,) * 4
        assert (credentials.effective, credentials.permitted, credentials.bounding) == (0, 0, 0)
        assert credentials.no_new_privileges
        assert credentials.seccomp_filter
        assert containers.is_read_only(process, "/")
    assert leader(cluster) in {pod["metadata"]["name"] for pod in pods}


def test_a_vm_moves_through_it(cluster: NodeCluster) -> None:
    vms.start(cluster, "vm-a", SOURCE)
    first = vms.pods(cluster, "vm-a")[0]
    assert first["spec"]["schedulerName"] == "default-scheduler", "a VM's start is none of our business"
    with recording(cluster, PODS) as seen:
        target = vms.migrate(cluster, "vm-a")
    admitted = targets(seen)[0].item
    assert admitted["spec"]["schedulerName"] == OURS
    assert (target.node, target.devices) == (TARGET, (ACCEPTING,))
    assert bound_by(cluster, target.pod) == [OURS]
    assert bound_by(cluster, first["metadata"]["name"]) == ["default-scheduler"]
    assert {v.name for v in targets(seen)} == {target.pod}, "at the first attempt"


def test_another_replica_goes_on_when_the_one_that_leads_is_killed(cluster: NodeCluster) -> None:
    vms.start(cluster, "vm-a", SOURCE)
    former = leader(cluster)
    (pod,) = (p for p in schedulers(cluster) if p["metadata"]["name"] == former)
    cluster.plane.kubectl("delete", "pod", former, "-n", PRODUCT, "--force", "--grace-period=0")
    assert vms.migrate(cluster, "vm-a").node == TARGET
    cluster.wait(lambda: leader(cluster) not in ("", pod["metadata"]["name"]), "another one leads")


def test_a_race_with_the_default_scheduler_costs_one_attempt(cluster: NodeCluster) -> None:
    """The default scheduler gives the last devices of the node away, and ours, which has not seen it, too.

    What ours would do a moment after the other, a binding by hand does here: ours does not run meanwhile.
    """
    source = vms.start(cluster, "vm-a", SOURCE)
    scale(cluster, 0)
    with recording(cluster, PODS) as seen:
        job = cluster.migrate("vm-a", NAMESPACE)
        cluster.wait(lambda: targets(seen), "the target is admitted")
        target = targets(seen)[0].item
        assert target["spec"]["schedulerName"] == OURS
        for vm in ("vm-b", "vm-c"):
            vms.start(cluster, vm, TARGET)
        bind(cluster, target, TARGET)
        cluster.wait(lambda: vms.phase(cluster, job) == "Failed", "the attempt is over")
    versions = [v.item for v in targets(seen)]
    assert {v["metadata"]["name"] for v in versions} == {target["metadata"]["name"]}
    refused = [v["status"] for v in versions if v["status"]["phase"] == "Failed"]
    assert {status["reason"] for status in refused} == {"UnexpectedAdmissionError"}
    assert f"requested number of devices unavailable for {POOL}" in refused[0]["message"]
    assert containers.asked_for(cluster.nodes[TARGET], target["metadata"]["uid"]) == []
    vms.assert_lives(cluster, source)
    scale(cluster, 2)
    vms.end(cluster, "vm-b", "vm-c")
    cluster.wait(lambda: vms.allocated_to(cluster, TARGET) == {}, "the target's devices are free")
    moved = vms.migrate(cluster, "vm-a")
    assert (moved.node, moved.devices) == (TARGET, (ACCEPTING,))
    assert bound_by(cluster, moved.pod) == [OURS]


# what the tests look at


def schedulers(cluster: NodeCluster) -> list[Object]:
    """The pods of our scheduler that are not on their way out."""
    return [p for p in cluster.product_pods("scheduler") if "deletionTimestamp" not in p["metadata"]]


def scale(cluster: NodeCluster, replicas: int) -> None:
    """Until so many replicas are ready, and no other is there."""
    cluster.plane.kubectl("scale", "deployment", OURS, "-n", PRODUCT, f"--replicas={replicas}")

    def ready() -> bool:
        pods = cluster.product_pods("scheduler")
        return len(pods) == replicas and all(
            ("Ready", "True") in [(c["type"], c["status"]) for c in pod["status"].get("conditions", ())]
            for pod in pods
        )

    cluster.wait(ready, f"{replicas} replicas of our scheduler are ready")


def leader(cluster: NodeCluster) -> str:
    """The pod that schedules; empty when none does."""
    holder = cluster.plane.get("lease", OURS, "-n", PRODUCT)["spec"].get("holderIdentity") or ""
    return str(holder).partition("_")[0]


def targets(seen: list[Version]) -> list[Version]:
    """The versions of migrations' target pods."""
    return [v for v in seen if names.MIGRATION_UID in (v.item["metadata"].get("labels") or {})]


def bound_by(cluster: NodeCluster, pod: str) -> list[str]:
    """Which schedulers say that they have bound the pod."""
    found = cluster.events(pod, NAMESPACE)
    return [e["reportingComponent"] for e in found if e["reason"] == "Scheduled"]


def bind(cluster: NodeCluster, pod: Object, node: str) -> None:
    """Binds a pod as a scheduler does."""
    meta = {key: pod["metadata"][key] for key in ("name", "namespace")}
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    body = {"apiVersion": "v1", "kind": "Binding", "metadata": meta, "target": target}
    path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/binding"
    cluster.plane.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))
