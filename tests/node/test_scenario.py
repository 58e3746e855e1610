"""The main job on real nodes: VMs' pods ask for devices, run, and move to devices that accept them."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator

import pytest
from migcompat.api import names

from tests.cluster.api import Object
from tests.node import containers, devices, podresources, vms
from tests.node.cluster import NodeCluster
from tests.node.figures import Figures
from tests.node.record import PODS, Version, recording
from tests.node.vms import NAMESPACE, VARIABLE
from tests.scenario import nodes
from tests.scenario.nodes import POOL, TYPE

# For the test alone: what the cluster's start may take, its own deadlines say.
pytestmark = pytest.mark.timeout(600, func_only=True)

SOURCE, TARGET = "node-1", "node-2"
COUNTS = {SOURCE: 1, TARGET: 2}
REFUSING, ACCEPTING = (nodes.device_id(TARGET, n) for n in (0, 1))
"""Devices of the target node, for a VM from the source node."""
LAUNCHER_USER = 107


@pytest.fixture(scope="module")
def cluster(nodes: NodeCluster) -> NodeCluster:
    """The two nodes, once their kubelets have counted the devices."""
    nodes.wait(lambda: {n: nodes.allocatable(n, POOL) for n in COUNTS} == COUNTS, "devices are counted")
    return nodes


@pytest.fixture(autouse=True)
def nothing_left(cluster: NodeCluster) -> Iterator[None]:
    """Each test finds nodes without VMs, whatever came of the one before."""
    yield
    vms.end(cluster)
    cluster.wait(
        lambda: not any(vms.allocated_to(cluster, node) for node in COUNTS), "all devices are free again"
    )


@pytest.fixture(scope="module")
def without_webhook(cluster: NodeCluster) -> None:
    """For the rest of the module no target is steered at its admission."""
    cluster.install_chart({"webhook": {"enabled": False}})
    assert not cluster.plane.get("mutatingwebhookconfigurations")["items"]


def test_containers_have_the_privileges_of_the_chart_and_no_others(cluster: NodeCluster) -> None:
    users = {"device-plugin": 0, "operator": 65532, "extender": 65532}
    for component, user in users.items():
        pods = cluster.product_pods(component)
        assert pods
        for pod in pods:
            process = main_process(cluster, pod, component)
            found = containers.credentials(process)
            assert found.uids == (user,) * 4
            assert (found.effective, found.permitted, found.bounding) == (0, 0, 0)
            assert found.no_new_privileges
            assert found.seccomp_filter
            assert containers.is_read_only(process, "/")


def test_an_agent_writes_to_sysfs_and_to_the_plugins_directory_alone(cluster: NodeCluster) -> None:
    process = main_process(cluster, cluster.agent(SOURCE), "device-plugin")
    writable = {"/host/sys": True, "/host/kubelet/device-plugins": True}
    only_read = {"/host/dev": False, "/host/boot_id": False, "/host/kubelet/pod-resources": False}
    for path, may in {**writable, **only_read}.items():
        assert containers.is_read_only(process, path) is not may, path


def test_agents_register_publish_and_label(cluster: NodeCluster) -> None:
    for name, count in COUNTS.items():
        node = cluster.nodes[name]
        socket = node.root / "kubelet/pod-resources/kubelet.sock"
        expected = sorted(nodes.device_id(name, n) for n in range(count))
        assert podresources.allocatable(socket, POOL) == expected
        status = cluster.plane.get("vfionode", name)["status"]
        assert status["bootID"] == node.boot_id
        assert sorted(d["id"] for d in status["devices"] if d["resource"] == POOL) == expected
        assert ("Ready", "True") in [(c["type"], c["status"]) for c in status["conditions"]]
        labels = cluster.plane.get("node", name)["metadata"]["labels"]
        assert labels[names.NODE_MANAGED] == labels[names.NODE_TYPE_PREFIX + TYPE] == "true"
        offers = {d["profile"] for d in status["devices"] if d["resource"] == POOL}
        assert {names.NODE_OFFERS_PREFIX + profile for profile in offers} <= labels.keys()


def test_a_vm_starts_with_its_device_and_sees_no_other(cluster: NodeCluster) -> None:
    running = vms.start(cluster, "vm-a", TARGET)
    assert len(running.devices) == 1
    cluster.wait(
        lambda: vms.allocated_to(cluster, TARGET) == {running.devices[0]: running.pod}, "its VFIONode says so"
    )
    check_inside(cluster, running)
    # A container of the same pod that asks for no device gets none, and may not open one if it finds it.
    pod = vms.pods(cluster, "vm-a")[0]
    beside = containers.running(pod, "guest-console-log", kind="initContainerStatuses")
    assert beside is not None
    directory = f"/proc/{beside.pids(cluster.nodes[TARGET])[0]}/root/dev/vfio"
    os.mkdir(directory)
    os.mknod(f"{directory}/vfio", stat.S_IFCHR, devices.device_number())
    os.chmod(f"{directory}/vfio", 0o666)
    said = cluster.launched(running.pod, container="guest-console-log")
    assert [(d["path"], d["opens"], d["error"]) for d in said["devices"]] == [
        ("/dev/vfio/vfio", False, "operation not permitted")
    ]
    assert said["environment"] == {}


def test_a_vm_migrates_to_the_device_that_accepts_it(cluster: NodeCluster, figures: Figures) -> None:
    source = vms.start(cluster, "vm-a", SOURCE)
    cluster.wait(lambda: vms.answer(cluster, "vm-a") == ("1/1", "True", "Compatible"), "vm-a can move")
    with recording(cluster, PODS) as seen:
        target = vms.migrate(cluster, "vm-a")
        cluster.wait(lambda: len(vms.pods(cluster, "vm-a")) == 1, "the source pod is gone")
    figures.add("target pod made → its VM's container runs", f"{seconds_to_run(seen, target.pod):.1f} s")
    pod = vms.pods(cluster, "vm-a")[0]
    assert pod["metadata"]["name"] == target.pod != source.pod
    admitted = next(v.item for v in seen if v.name == target.pod)
    assert vms.source_stamp(admitted), "stamped before anybody could see it: by the webhook"
    required = admitted["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [term.get("matchFields") for term in required["nodeSelectorTerms"]] == [
        [{"key": "metadata.name", "operator": "In", "values": [TARGET]}]
    ]
    assert (target.node, target.devices) == (TARGET, (ACCEPTING,))
    log = cluster.pod_log(cluster.agent(TARGET)["metadata"]["name"])
    assert f"pod {NAMESPACE}/{target.pod}: preferring {ACCEPTING}" in log, "two devices were free"
    assert f"pod {NAMESPACE}/{target.pod}: may start with {ACCEPTING}" in log
    check_inside(cluster, target, user=LAUNCHER_USER)
    assert cluster.held(SOURCE, POOL) == {}
    assert cluster.held(TARGET, POOL) == {target.pod: [ACCEPTING]}
    cluster.wait(lambda: vms.allocated_to(cluster, SOURCE) == {}, "the source's device is free")
    cluster.wait(
        lambda: vms.allocated_to(cluster, TARGET) == {ACCEPTING: target.pod}, "the target's device is taken"
    )


def test_kube_scheduler_asks_the_extender_for_a_free_device_that_accepts(
    cluster: NodeCluster, without_webhook: None
) -> None:
    vms.start(cluster, "vm-a", SOURCE)
    blocker = occupy(cluster, TARGET, ACCEPTING)
    cluster.plane.restart_scheduler([cluster.extender([POOL])])
    try:
        job = cluster.migrate("vm-a", NAMESPACE)
        cluster.wait(lambda: "NoneFree" in unschedulable(cluster, "vm-a"), "the extender refuses the node")
        vms.end(cluster, blocker)
        cluster.wait(lambda: vms.phase(cluster, job) == "Succeeded", "vm-a moves once the device is free")
    finally:
        cluster.plane.restart_scheduler()
    assert vms.launcher(cluster, "vm-a").devices == (ACCEPTING,)


def test_a_wrong_pick_is_refused_and_the_next_attempt_succeeds(
    cluster: NodeCluster, without_webhook: None, figures: Figures
) -> None:
    source = vms.start(cluster, "vm-a", SOURCE)
    blocker = occupy(cluster, TARGET, ACCEPTING)
    with recording(cluster, PODS) as seen:
        job = cluster.migrate("vm-a", NAMESPACE)
        cluster.wait(lambda: vms.phase(cluster, job) == "Failed", "the attempt is over")
        cluster.wait(lambda: not cluster.target_pods("vm-a"), "its pod is gone")
    refused = targets(seen)
    assert len({v.name for v in refused}) == 1
    pod = refused[-1].item
    uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
    waiting = [w for v in refused if (w := waits(v.item))]
    assert waiting, "the kubelet said why it waits"
    assert waiting[0]["reason"] == "CreateContainerConfigError"
    assert "migcompat guard: VersionMinorOlder: " in waiting[0]["message"]
    first = next(v.at for v in refused if waits(v.item))
    deleted = next(v.at for v in refused if "deletionTimestamp" in v.item["metadata"])
    figures.add("guard's refusal in the pod's status → pod deleted", f"{(deleted - first) * 1000:.0f} ms")
    assert_never_started(cluster, refused)
    assert containers.asked_for(cluster.nodes[TARGET], uid) == ["guest-console-log"]
    assert containers.asked_for(cluster.nodes[SOURCE], source.compute.pod_uid)[-1] == "compute", (
        "as a control"
    )

    def told_refused() -> list[str]:
        return [e["message"] for e in cluster.events("vm-a", NAMESPACE) if e["reason"] == "GuardRefused"]

    cluster.wait(told_refused, "the VM is told, after its pod was deleted")
    told = told_refused()
    assert len(told) == 1
    assert told[0].startswith(
        f"Target pod {name} on node {TARGET} is deleted: migcompat guard: VersionMinorOlder"
    )
    vms.assert_lives(cluster, source)
    vms.end(cluster, blocker)
    cluster.wait(lambda: vms.allocated_to(cluster, TARGET) == {}, "the accepting device is free")
    target = vms.migrate(cluster, "vm-a")
    assert (target.node, target.devices) == (TARGET, (ACCEPTING,))


def test_of_two_targets_that_arrive_together_one_gets_the_accepting_device_and_one_is_refused(
    cluster: NodeCluster, without_webhook: None
) -> None:
    host = cluster.nodes[SOURCE].host
    second = devices.add_device(host, 2, "1.1.0")
    try:
        cluster.wait(lambda: cluster.allocatable(SOURCE, POOL) == 2, "the second device is counted")
        sources = {vm: vms.start(cluster, vm, SOURCE) for vm in ("vm-a", "vm-b")}
        with recording(cluster, PODS) as seen:
            jobs = {vm: cluster.migrate(vm, NAMESPACE) for vm in sources}
            cluster.wait(
                lambda: sorted(vms.phase(cluster, job) for job in jobs.values()) == ["Failed", "Succeeded"],
                "one moves, one does not",
            )
            stayed = next(vm for vm, job in jobs.items() if vms.phase(cluster, job) == "Failed")
            cluster.wait(lambda: not cluster.target_pods(stayed), "the refused pod is gone")
        moved = next(vm for vm in sources if vm != stayed)
        assert vms.launcher(cluster, moved).devices == (ACCEPTING,)
        vms.assert_lives(cluster, sources[stayed])
        arrived = {v.name: v.item for v in targets(seen)}
        assert {p["spec"]["nodeName"] for p in arrived.values()} == {TARGET}, "both were bound to the node"
        refused = [v for v in targets(seen) if v.item["metadata"]["labels"]["vmi.kubevirt.io/id"] == stayed]
        assert any("migcompat guard: VersionMinorOlder" in waits(v.item).get("message", "") for v in refused)
        assert_never_started(cluster, refused)
    finally:
        vms.end(cluster)
        devices.remove_device(host, second)
    cluster.wait(lambda: cluster.allocatable(SOURCE, POOL) == 1, "the second device is gone")


# what the tests look at


def main_process(cluster: NodeCluster, pod: Object, container: str) -> int:
    """Process id of a container of the product."""
    found = containers.running(pod, container)
    assert found is not None, f"{pod['metadata']['name']}: {container} does not run"
    return found.pids(cluster.nodes[pod["spec"]["nodeName"]])[0]


def check_inside(cluster: NodeCluster, running: vms.Launcher, user: int = 0) -> None:
    """The container has its device in environment and /dev, may open it, and sees no other."""
    said = cluster.launched(running.pod)
    assert said["uid"] == user
    assert said["environment"] == {VARIABLE: ",".join(running.devices)}
    expected = devices.device_nodes(cluster.nodes[running.node].host, *running.devices)
    assert {d["path"] for d in said["devices"]} == expected
    assert all(d["opens"] for d in said["devices"]), said["devices"]
    assert said["errors"] == []


def occupy(cluster: NodeCluster, node: str, device: str) -> str:
    """A VM on the node that holds just this device; which one it gets is not ours to say."""
    others = []
    for number in itertools.count(1):
        vm = f"blocker-{number}"
        if vms.start(cluster, vm, node).devices == (device,):
            break
        others.append(vm)
    if others:
        vms.end(cluster, *others)
    cluster.wait(lambda: list(vms.allocated_to(cluster, node)) == [device], f"only {device} is taken")
    return vm


def unschedulable(cluster: NodeCluster, vm: str) -> str:
    """Why kube-scheduler finds no node for the VM's target pod."""
    for pod in cluster.target_pods(vm):
        for condition in pod["status"].get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
                return str(condition["message"])
    return ""


def targets(seen: list[Version]) -> list[Version]:
    """The versions of migrations' target pods."""
    return [v for v in seen if names.MIGRATION_UID in (v.item["metadata"].get("labels") or {})]


def waits(pod: Object) -> dict[str, str]:
    """What the VM's container waits for, if the kubelet says so and it is not just the pod's beginning."""
    for status in pod["status"].get("containerStatuses", ()):
        waiting: dict[str, str] = status.get("state", {}).get("waiting", {})
        if status["name"] == "compute" and waiting.get("reason") not in (None, "PodInitializing"):
            return waiting
    return {}


def assert_never_started(cluster: NodeCluster, versions: list[Version]) -> None:
    """The VM's container never was: not in any status of the pods, not in containerd."""
    for version in versions:
        for status in version.item["status"].get("containerStatuses", ()):
            if status["name"] == "compute":
                assert not status.get("containerID")
                assert not status.get("started")
                # Terminated it may be, with the pod: "could not be located".
                assert "running" not in status.get("state", {})
    for uid in {v.item["metadata"]["uid"] for v in versions}:
        for node in cluster.nodes.values():
            assert "compute" not in containers.asked_for(node, uid)


def seconds_to_run(seen: list[Version], pod: str) -> float:
    """From the pod's creation until its status says that its VM's container runs."""
    of_pod = [v for v in seen if v.name == pod]
    runs = next(v.at for v in of_pod if containers.running(v.item, "compute"))
    return runs - of_pod[0].at
