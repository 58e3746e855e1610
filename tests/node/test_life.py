"""What happens to nodes in their lives, while a VM runs there: its container must not notice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from migcompat import __version__
from migcompat.api import names

from tests.cluster.api import Object
from tests.cluster.base import NAMESPACE as PRODUCT
from tests.cluster.base import RELEASE
from tests.cluster.controlplane import ClusterError
from tests.image import next_release
from tests.node import containers, devices, images, podresources, vms
from tests.node.cluster import NodeCluster
from tests.node.containers import Container
from tests.node.figures import Figures
from tests.node.node import Node
from tests.node.record import PODS, VFIONODES, Version, recording
from tests.node.vms import NAMESPACE, Launcher
from tests.scenario import nodes
from tests.scenario.nodes import POOL

# For the test alone: what the cluster's start may take, its own deadlines say.
pytestmark = pytest.mark.timeout(600, func_only=True)

OTHER, SUBJECT = "node-1", "node-2"
ALL = {node: [nodes.device_id(node, n) for n in range(count)] for node, count in ((OTHER, 1), (SUBJECT, 2))}
VM = "vm-a"
CAN_MOVE = ("1/1", "True", "Compatible")
LABELS = {names.LAUNCHER_LABEL: names.LAUNCHER_VALUE, names.MIGRATION_UID: "of-nobody"}
"""Of a migration's target pod, as the webhook selects them."""


@pytest.fixture(scope="module")
def cluster(bare: NodeCluster) -> NodeCluster:
    """The two nodes with the product; the operator is on the one that is not rebooted."""
    install(bare)
    until_serves(bare, *ALL)
    return bare


@pytest.fixture
def vm(cluster: NodeCluster) -> Iterator[Launcher]:
    """A VM that ran on SUBJECT before the test; afterwards it runs in the same container."""
    try:
        running = vms.launcher(cluster, VM)
    except ClusterError:
        vms.end(cluster, VM)
        running = vms.start(cluster, VM, SUBJECT)
    assert (running.node, len(running.devices)) == (SUBJECT, 1)
    yield running
    vms.assert_lives(cluster, running)


def test_after_a_kubelet_restart_devices_are_registered_again(
    cluster: NodeCluster, vm: Launcher, figures: Figures
) -> None:
    node, taken, agent = (
        cluster.nodes[SUBJECT],
        [],
        containers.running(cluster.agent(SUBJECT), "device-plugin"),
    )
    with recording(cluster, VFIONODES) as published:
        for _ in range(3):
            former = sockets(node)
            node.stop_kubelet()
            begun = time.monotonic()
            node.start_kubelet()
            until_offers(cluster, SUBJECT)
            taken.append(time.monotonic() - begun)
            assert not sockets(node) & former, "the kubelet has wiped the sockets"
            vms.assert_lives(cluster, vm)
        gets_a_device(cluster)
    figures.spread("kubelet started → it offers the devices", taken)
    assert containers.running(cluster.agent(SUBJECT), "device-plugin") == agent, "the agent has lived on"
    assert_published_as_held(published, vm)


def test_a_killed_plugin_comes_back_and_serves(cluster: NodeCluster, vm: Launcher, figures: Figures) -> None:
    offers, gets = [], []
    for name, node in cluster.nodes.items():
        agent = cluster.agent(name)
        killed = containers.running(agent, "device-plugin")
        assert killed is not None
        begun = time.monotonic()
        os.kill(killed.pids(node)[0], signal.SIGKILL)
        until_gone(cluster, name, killed)
        until_offers(cluster, name)
        offers.append(time.monotonic() - begun)
        if name == SUBJECT:
            gets_a_device(cluster)
            gets.append(time.monotonic() - begun)
        until_serves(cluster, name)
        now = cluster.agent(name)
        assert now["metadata"]["uid"] == agent["metadata"]["uid"], "the same pod,"
        assert containers.running(now, "device-plugin") not in (None, killed), "with another container"
    figures.spread("plugin killed → the kubelet offers its devices again", offers)
    figures.spread("plugin killed → the next VM runs with a device", gets)
    vms.until_allocated_to(cluster, SUBJECT, {vm.devices[0]: vm.pod})


def test_an_upgrade_replaces_agents_one_by_one_and_keeps_what_they_published(
    cluster: NodeCluster, vm: Launcher, figures: Figures, tmp_path: Path
) -> None:
    next_release.write(cluster.product, tmp_path / "next.tar")
    for node in cluster.nodes.values():
        node.import_image(next_release.REFERENCE, tmp_path / "next.tar")
    assert {version(cluster, name) for name in ALL} == {__version__}
    with recording(cluster, PODS) as pods, recording(cluster, VFIONODES) as published:
        install(cluster, image={"tag": next_release.TAG})
        until_serves(cluster, *ALL)
        cluster.wait(
            lambda: {version(cluster, name) for name in ALL} == {next_release.VERSION}, "both are upgraded"
        )
    agents = [v for v in pods if labels(v.item).get("app.kubernetes.io/component") == "device-plugin"]
    assert len({v.item["spec"]["containers"][0]["image"] for v in agents}) == 2
    for name in ALL:
        assert_never_two(agents, name)
    figures.spread("upgrade: a node has no ready agent for", [seconds_without(agents, name) for name in ALL])
    assert_published_as_held(published, vm)


def test_a_device_that_goes_while_a_vm_has_it_is_missed_until_it_comes_back(
    cluster: NodeCluster, vm: Launcher, figures: Figures
) -> None:
    (device,) = vm.devices
    host, number = cluster.nodes[SUBJECT].host, ALL[SUBJECT].index(device)
    rest = [id_ for id_ in ALL[SUBJECT] if id_ != device]
    cluster.wait(lambda: vms.answer(cluster, VM) == CAN_MOVE, "the VM can move")
    begun = time.monotonic()
    devices.remove_device(host, device)
    try:
        until_offers(cluster, SUBJECT, rest)
        figures.add("device gone → the kubelet does not offer it", f"{time.monotonic() - begun:.1f} s")
        cluster.wait(
            lambda: cluster.allocatable(SUBJECT, POOL) == 1 and published(cluster, SUBJECT) == rest,
            "its Node and its VFIONode say so",
        )
        cluster.wait(lambda: vms.answer(cluster, VM)[1:] == ("Unknown", "Unknown"), "nobody can say any more")
        cluster.wait(
            lambda: f"{device} of {POOL}, held by {vms.NAMESPACE}/{vm.pod}" in missed(cluster), "it is missed"
        )
        vms.assert_lives(cluster, vm)
    finally:
        devices.add_device(host, number, "1.0.0")
    begun = time.monotonic()
    until_offers(cluster, SUBJECT)
    figures.add("device back → the kubelet offers it", f"{time.monotonic() - begun:.1f} s")
    cluster.wait(lambda: vms.answer(cluster, VM) == CAN_MOVE, "the VM can move again")
    vms.until_allocated_to(cluster, SUBJECT, {device: vm.pod})


def test_a_migrated_vm_outlives_a_kubelet_restart_after_labels_and_policies_changed(
    cluster: NodeCluster, vm: Launcher
) -> None:
    kubectl, sysfs = cluster.plane.kubectl, cluster.nodes[OTHER].host / "sys"
    former = ours(cluster, SUBJECT)
    vms.start(cluster, "vm-m", OTHER)
    try:
        migrated = vms.migrate(cluster, "vm-m")
        assert migrated.node == SUBJECT
        cluster.plane.apply(
            plain_pod("control", {"kubernetes.io/hostname": SUBJECT, names.NODE_MANAGED: "true"})
        )
        cluster.wait(lambda: phase(cluster, "control") == "Running", "a pod that wants our label runs")
        kubectl("label", "node", SUBJECT, *(f"{key}-" for key in former))
        cluster.plane.apply(REFUSING_POLICY)
        nodes.upgrade(sysfs, ALL[OTHER][0], "2.0.0")
        refused = ("0/1", "False", "VersionMajorMismatch")
        cluster.wait(lambda: vms.answer(cluster, "vm-m") == refused, "its source has changed")
        cluster.nodes[SUBJECT].restart_kubelet()
        over = ("Failed", "Succeeded")
        cluster.wait(lambda: phase(cluster, "control") in over, "the pod that wants our label is ended")
        until_serves(cluster, SUBJECT)
        vms.assert_lives(cluster, migrated)
    finally:
        nodes.upgrade(sysfs, ALL[OTHER][0], "1.1.0")
        kubectl("delete", "compatibilitypolicy", REFUSING_POLICY["metadata"]["name"], "--ignore-not-found")
        kubectl("delete", "pod", "control", "-n", NAMESPACE, "--ignore-not-found", "--wait=false")
        kubectl("label", "node", SUBJECT, "--overwrite", *(f"{key}={value}" for key, value in former.items()))
        vms.end(cluster, "vm-m")


def test_a_node_that_reboots_counts_again_once_its_agent_has_published(
    cluster: NodeCluster, vm: Launcher, figures: Figures
) -> None:
    node, former = cluster.nodes[OTHER], cluster.nodes[OTHER].boot_id
    lost = vms.start(cluster, "vm-r", OTHER)
    ran = containers.asked_for(node, lost.compute.pod_uid)
    # The only node that accepts it, and full.
    cluster.wait(lambda: vms.answer(cluster, VM) == CAN_MOVE, "the other VM could move there")
    sysfs, away = node.host / "sys", node.root / "sys-before-drivers"
    # As long as it is away no agent can start: only the old VFIONode speaks of the node's devices.
    sysfs.rename(away)
    try:
        begun = time.monotonic()
        node.reboot()
        cluster.wait(lambda: boot_id(cluster, OTHER) == node.boot_id, "the Node says that it has booted")
        figures.add("reset → the Node names the new boot", f"{time.monotonic() - begun:.1f} s")
        stale = ("0/1", "False", "StaleVFIONode")
        cluster.wait(lambda: vms.answer(cluster, VM) == stale, "what was published counts no more")
        assert cluster.plane.get("vfionode", OTHER)["status"]["bootID"] == former != node.boot_id
    finally:
        away.rename(sysfs)
    until_serves(cluster, OTHER)
    cluster.wait(lambda: vms.answer(cluster, VM) == CAN_MOVE, "the other VM can move there again")
    # The kubelet admits its pods before any plugin has registered, as after every boot: this one is over.
    cluster.wait(lambda: phase(cluster, lost.pod) == "Failed", "the pod of the VM that ran there has failed")
    status = cluster.plane.get("pod", lost.pod, "-n", NAMESPACE)["status"]
    assert status["reason"] == "UnexpectedAdmissionError"
    assert POOL in status["message"]
    assert containers.asked_for(node, lost.compute.pod_uid) == ran, "nothing of it was started again"
    cluster.wait(lambda: cluster.vmi("vm-r", NAMESPACE)["status"]["phase"] == "Failed", "KubeVirt knows")
    assert cluster.held(OTHER, POOL) == {}
    vms.until_allocated_to(cluster, OTHER, {})
    vms.end(cluster, "vm-r")
    assert vms.start(cluster, "vm-s", OTHER).devices == lost.devices, "the device serves the next VM"
    vms.end(cluster, "vm-s")


def test_vms_outlive_an_uninstall_and_are_found_by_the_next_install(
    cluster: NodeCluster, vm: Launcher, figures: Figures
) -> None:
    plane = cluster.plane
    begun = time.monotonic()
    plane.helm("uninstall", RELEASE, "-n", PRODUCT)
    figures.add("helm uninstall", f"{time.monotonic() - begun:.1f} s")
    for name in ALL:
        assert offered(cluster.nodes[name]) == []
        assert ours(cluster, name) == {}
    cluster.wait(lambda: {counted(cluster, name) for name in ALL} == {("0", "0")}, "Nodes count none")
    kinds = (
        "crd,mutatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings,"
        "clusterroles,clusterrolebindings,priorityclasses"
    )
    left = plane.kubectl("get", kinds, "-o", "name").split()
    assert [one for one in left if "migcompat" in one] == []
    everything = "pods,jobs,deployments,daemonsets,secrets,services"
    cluster.wait(lambda: not plane.get(everything, "-n", PRODUCT)["items"], "its namespace is empty")
    target = {
        **plain_pod("target", {}),
        "metadata": {"name": "target", "namespace": NAMESPACE, "labels": LABELS},
    }
    plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(target))
    vms.assert_lives(cluster, vm)
    cluster.nodes[SUBJECT].restart_kubelet()
    restarted = datetime.now(UTC)
    cluster.wait(lambda: offered(cluster.nodes[SUBJECT]) == [], "the kubelet answers")
    vms.assert_lives(cluster, vm)
    cluster.wait(lambda: said_ready(cluster, SUBJECT) > restarted, "the new kubelet says that it is Ready")
    assert counted(cluster, SUBJECT) == ("0", "0"), "a restart does not take the pool off the Node"
    install(cluster)
    until_serves(cluster, *ALL)
    held = {vm.devices[0]: vm.pod}
    cluster.wait(lambda: vms.allocated_to(cluster, SUBJECT) == held, "the held device is known as held")
    gets_a_device(cluster)
    cluster.wait(lambda: vms.answer(cluster, VM) == CAN_MOVE, "the VM has its answer again")


# what the tests do


REFUSING_POLICY: Object = {
    "apiVersion": "migcompat.io/v1alpha1",
    "kind": "CompatibilityPolicy",
    "metadata": {"name": "nobody-accepts"},
    "spec": {
        "selector": {"device": {"driver": "mtty", "type": nodes.TYPE}},
        "self": {"vendor_secret": "1"},
    },
}
"""Whatever it selects has an attribute that no device accepts. One key more than the catalogue has."""


def install(cluster: NodeCluster, **values: object) -> None:
    """Installs or upgrades the chart; the operator is on the node that is not rebooted."""
    cluster.install_chart({"operator": {"nodeSelector": {"kubernetes.io/hostname": SUBJECT}}, **values})


def plain_pod(name: str, node_selector: dict[str, str]) -> Object:
    """A pod of the tests' own program, without devices."""
    container = {"name": "main", "image": images.LAUNCHER, "imagePullPolicy": "Never"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"nodeSelector": node_selector, "restartPolicy": "Never", "containers": [container]},
    }


def until_offers(cluster: NodeCluster, name: str, ids: Sequence[str] | None = None) -> None:
    """Until the kubelet of the node offers these devices (None: all that there are)."""
    expected = ALL[name] if ids is None else list(ids)
    cluster.wait(lambda: offered(cluster.nodes[name]) == expected, f"the kubelet of {name} offers {expected}")


def until_gone(cluster: NodeCluster, name: str, killed: Container) -> None:
    """Until the kubelet knows of the agent's end: it offers none of its devices, or has another by now."""

    def known() -> bool:
        none = offered(cluster.nodes[name]) == []
        return none or containers.running(cluster.agent(name), "device-plugin") not in (None, killed)

    cluster.wait(known, f"the kubelet of {name} knows that the agent has ended")


def until_serves(cluster: NodeCluster, *nodes: str) -> None:
    """Until kubelets, Nodes and VFIONodes all say that the nodes have their devices."""
    for name in nodes:
        until_offers(cluster, name)
    cluster.wait(
        lambda: all(
            cluster.allocatable(name, POOL) == len(ALL[name])
            and published(cluster, name) == ALL[name]
            and is_well(cluster, name)
            for name in nodes
        ),
        f"{', '.join(nodes)} serve their devices",
    )


def gets_a_device(cluster: NodeCluster) -> None:
    """Another VM starts on SUBJECT and gets the other device; it is ended afterwards."""
    cluster.wait(lambda: cluster.allocatable(SUBJECT, POOL) == len(ALL[SUBJECT]), "kube-scheduler may know")
    other = vms.start(cluster, "vm-b", SUBJECT)
    assert len(other.devices) == 1
    assert other.devices != vms.launcher(cluster, VM).devices
    vms.end(cluster, "vm-b")


# what the tests look at


def offered(node: Node) -> list[str] | None:
    """Healthy devices of the pool as the kubelet has them this moment; None while it does not answer."""
    try:
        return podresources.allocatable(node.root / "kubelet/pod-resources/kubelet.sock", POOL)
    except ClusterError:
        return None


def counted(cluster: NodeCluster, node: str) -> tuple[str | None, str | None]:
    """The pool in the Node's capacity and allocatable."""
    status = cluster.plane.get("node", node)["status"]
    return status["capacity"].get(POOL), status["allocatable"].get(POOL)


def published(cluster: NodeCluster, node: str) -> list[str]:
    """The devices of the pool in the VFIONode."""
    found = cluster.plane.get("vfionode", node).get("status", {}).get("devices", ())
    return sorted(d["id"] for d in found if d["resource"] == POOL)


def missed(cluster: NodeCluster) -> str:
    """What the SUBJECT's agent says of devices that went while pods hold them."""
    conditions = cluster.plane.get("vfionode", SUBJECT).get("status", {}).get("conditions", ())
    return next((c["message"] for c in conditions if c["reason"] == "HeldDeviceGone"), "")


def is_well(cluster: NodeCluster, node: str) -> bool:
    """Whether the VFIONode is of this boot and says that the agent is well."""
    status = cluster.plane.get("vfionode", node).get("status", {})
    ready = [c["status"] for c in status.get("conditions", ()) if c["type"] == "Ready"]
    return ready == ["True"] and status.get("bootID") == cluster.nodes[node].boot_id


def version(cluster: NodeCluster, node: str) -> str:
    """Of the agent, as the VFIONode has it."""
    return str(cluster.plane.get("vfionode", node)["status"]["agentVersion"])


def sockets(node: Node) -> set[str]:
    """Names of the agent's sockets in the kubelet's directory."""
    return {path.name for path in (node.root / "kubelet/device-plugins").glob("migcompat-*.sock")}


def boot_id(cluster: NodeCluster, node: str) -> str:
    """That the Node has."""
    return str(cluster.plane.get("node", node)["status"]["nodeInfo"]["bootID"])


def said_ready(cluster: NodeCluster, node: str) -> datetime:
    """When the kubelet last wrote that the node is Ready."""
    conditions = cluster.plane.get("node", node)["status"]["conditions"]
    (ready,) = (c for c in conditions if c["type"] == "Ready")
    if ready["status"] != "True":
        raise ClusterError(f"{node} is not Ready: {ready}")
    return datetime.fromisoformat(ready["lastHeartbeatTime"])


def phase(cluster: NodeCluster, pod: str) -> str:
    """Of a pod."""
    return str(cluster.plane.get("pod", pod, "-n", NAMESPACE)["status"].get("phase", ""))


def labels(item: Object) -> dict[str, str]:
    """Of an object."""
    return item["metadata"].get("labels") or {}


def ours(cluster: NodeCluster, node: str) -> dict[str, str]:
    """The Node's labels that are migcompat's."""
    found = labels(cluster.plane.get("node", node))
    return {key: value for key, value in found.items() if names.is_node_label(key)}


def assert_published_as_held(published: list[Version], vm: Launcher) -> None:
    """Not for a moment did the VFIONode say that the VM's device is free, or another's."""
    said = [
        d.get("allocatedTo", {}).get("name")
        for v in published
        if v.name == vm.node
        for d in v.item.get("status", {}).get("devices", ())
        if d["id"] in vm.devices
    ]
    assert said
    assert set(said) == {vm.pod}


def assert_never_two(agents: list[Version], node: str) -> None:
    """There was never more than one agent on the node."""
    here: set[str] = set()
    for version in (v for v in agents if v.item["spec"].get("nodeName") == node):
        # The next pod may come once all containers of one that is being deleted have ended.
        over = version.kind == "DELETED" or version.item["status"]["phase"] in ("Succeeded", "Failed")
        (here.discard if over else here.add)(version.name)
        assert len(here) <= 1, f"two agents on {node}: {here}"


def seconds_without(agents: list[Version], node: str) -> float:
    """From the end of the node's former agent until the next one is ready."""
    here = [v for v in agents if v.item["spec"].get("nodeName") == node]
    begun = next(v.at for v in here if "deletionTimestamp" in v.item["metadata"])
    return next(v.at - begun for v in here if v.at > begun and is_ready(v.item))


def is_ready(pod: Object) -> bool:
    """Whether the pod is, and stays."""
    conditions = pod["status"].get("conditions", ())
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]
