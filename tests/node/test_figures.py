"""What the agent costs on a real node: how soon devices count, how long the kubelet waits, memory.

Nothing here asserts that something is fast; it asserts that what is measured happened.
"""

from __future__ import annotations

import math
import random
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.cluster.api import Object
from tests.cluster.base import NAMESPACE as PRODUCT
from tests.cluster.kubevirt import objects
from tests.node import cgroups, containers, devices, images, plugin, podresources, vms
from tests.node.cluster import NodeCluster, launcher_shaped
from tests.node.figures import Figures
from tests.node.record import NODES, Version, recording
from tests.node.vms import NAMESPACE
from tests.scenario.nodes import POOL, device_id

# For the test alone: what the cluster's start may take, its own deadlines say.
pytestmark = pytest.mark.timeout(600, func_only=True)

SOURCE, TARGET = "node-1", "node-2"
APPEARANCES = 10
"""On each of the two nodes."""
POLL = 0.02
"""Seconds; PodResources lets itself be asked 100 times a second, and the agent asks it too."""
DEVICES, PODS = 13, 52
NUMBERS = {SOURCE: 1, TARGET: 2}
"""Devices that the nodes have at first."""
WITHIN = 60.0
CALLS = 200
ACCEPTING = device_id(TARGET, 1)
COMPONENTS = ("device-plugin", "operator", "extender")
ALLOCATIONS = "kubelet_device_plugin_alloc_duration_seconds"


@pytest.fixture(scope="module", autouse=True)
def idle(nodes: NodeCluster, figures: Figures) -> None:
    """Memory before there was any work, with the devices that the nodes have at first."""
    for node, count in NUMBERS.items():
        until_counted(nodes, node, count)
    add_memory(nodes, figures, "idle")


@pytest.fixture
def many(nodes: NodeCluster) -> Iterator[int]:
    """DEVICES devices on TARGET."""
    host = nodes.nodes[TARGET].host
    numbers = range(200, 200 + DEVICES - NUMBERS[TARGET])
    added = [devices.add_device(host, number, "1.1.0") for number in numbers]
    try:
        until_counted(nodes, TARGET, DEVICES)
        yield DEVICES
    finally:
        remove(nodes, TARGET, added)


def test_from_a_device_to_the_kubelets_allocatable(nodes: NodeCluster, figures: Figures) -> None:
    known: list[float] = []
    counted: list[float] = []
    added: dict[str, list[str]] = {node: [] for node in nodes.node_names}
    try:
        with recording(nodes, NODES) as seen:
            for number in range(APPEARANCES):
                # At any moment between two looks of the agent, and between two reports of the kubelet.
                time.sleep(random.uniform(0, 2))
                begun = {}
                for node, mdevs in added.items():
                    mdevs.append(devices.add_device(nodes.nodes[node].host, 100 + number, "1.1.0"))
                    begun[node] = time.monotonic()
                has = until_kubelets_have(nodes, {node: mdevs[-1] for node, mdevs in added.items()})
                for node in added:
                    known.append(has[node] - begun[node])
                    says = until_node_says(nodes, seen, node, NUMBERS[node] + number + 1)
                    counted.append(says - begun[node])
    finally:
        for node, mdevs in added.items():
            remove(nodes, node, mdevs)
    assert len(known) == len(counted) == 2 * APPEARANCES
    assert min(known + counted) > 0
    how = "no kernel event, a look every 1 s"
    figures.spread(f"device in sysfs → the kubelet has it from ListAndWatch ({how})", known)
    figures.spread(f"device in sysfs → the Node's allocatable ({how}; kubelet reports every 2 s)", counted)


def test_how_long_the_kubelet_waits_for_allocate(nodes: NodeCluster, many: int, figures: Figures) -> None:
    before = allocations(nodes)
    for first in range(0, PODS, many):
        names = [f"short-{first + number}" for number in range(many)]
        nodes.plane.apply(*(short_pod(name) for name in names))
        what = "the pods had their device and are over"
        nodes.wait(lambda: over(nodes) == set(names), what, within=180)  # noqa: B023
        nodes.plane.kubectl("delete", "pod", "-n", NAMESPACE, "-l", "of=figures", "--grace-period=1")
    waited = allocations(nodes).since(before)
    assert waited.count == PODS
    mean, most = waited.sum / waited.count * 1000, waited.bound(0.99) * 1000
    figures.add(
        f"Allocate as the kubelet's metric has it, {many} pods at a time",
        f"n {PODS}, mean {mean:.1f} ms, p99 at most {most:.0f} ms (its bucket)",
    )


def test_how_long_a_caller_of_the_agents_socket_waits(
    nodes: NodeCluster, many: int, figures: Figures
) -> None:
    source = vms.start(nodes, "vm-a", SOURCE)
    first = vms.start(nodes, "vm-b", TARGET)
    node = nodes.nodes[TARGET]
    free = next(d for d in podresources.allocatable(socket(nodes, TARGET), POOL) if d not in first.devices)
    how = f"{many} devices, called one after another by the test"
    figures.spread(f"Allocate ({how})", plugin.durations(node, POOL, plugin.allocate(free), CALLS))
    plain = plugin.durations(node, POOL, plugin.pre_start(*first.devices), CALLS)
    figures.spread(f"PreStartContainer of a first start ({how})", plain)
    target = target_of(nodes, source)
    passed = passes(nodes)
    checked = plugin.durations(node, POOL, plugin.pre_start(*target.devices), CALLS)
    figures.spread(f"PreStartContainer of a migration's target ({how})", checked)
    assert passes(nodes) - passed == CALLS, "each was asked of the API server and judged"
    nodes.plane.kubectl("delete", "pod", target.pod, "-n", NAMESPACE, "--grace-period=1")
    vms.end(nodes)


def test_memory_after_the_work(nodes: NodeCluster, figures: Figures) -> None:
    add_memory(nodes, figures, "after the work")


# devices


def until_kubelets_have(cluster: NodeCluster, mdevs: dict[str, str]) -> dict[str, float]:
    """When each node's device manager first had its device."""
    has: dict[str, float] = {}
    deadline = time.monotonic() + WITHIN
    while len(has) < len(mdevs):
        for node in mdevs.keys() - has.keys():
            if mdevs[node] in podresources.allocatable(socket(cluster, node), POOL):
                has[node] = time.monotonic()
        assert time.monotonic() < deadline, f"{mdevs} do not come to the kubelets"
        time.sleep(POLL)
    return has


def until_node_says(cluster: NodeCluster, seen: list[Version], node: str, count: int) -> float:
    """When the Node object first said so many devices."""

    def said() -> list[float]:
        allocatable = ((v, v.item["status"]["allocatable"].get(POOL)) for v in seen if v.name == node)
        return [v.at for v, found in allocatable if found == str(count)]

    cluster.wait(said, f"{node} says {count}")
    return said()[0]


def remove(cluster: NodeCluster, node: str, mdevs: list[str]) -> None:
    """Takes away all devices that were added, and waits until they count no longer."""
    for mdev in mdevs:
        devices.remove_device(cluster.nodes[node].host, mdev)
    until_counted(cluster, node, NUMBERS[node])


def until_counted(cluster: NodeCluster, node: str, count: int) -> None:
    """Until the Node object says so many devices."""
    cluster.wait(lambda: cluster.allocatable(node, POOL) == count, f"{node} has {count} devices")


def socket(cluster: NodeCluster, node: str) -> Path:
    """Of the node's PodResources."""
    return cluster.nodes[node].root / "kubelet/pod-resources/kubelet.sock"


# pods


def short_pod(name: str) -> Object:
    """A pod that asks for a device and ends."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"of": "figures"}},
        "spec": {
            "nodeName": TARGET,
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "compute",
                    "image": images.LAUNCHER,
                    "imagePullPolicy": "Never",
                    "args": ["probe"],
                    "resources": {"limits": {POOL: "1"}},
                }
            ],
        },
    }


def over(cluster: NodeCluster) -> set[str]:
    """Short pods that ended well."""
    items = cluster.plane.get("pods", "-n", NAMESPACE, "-l", "of=figures")["items"]
    return {i["metadata"]["name"] for i in items if i["status"].get("phase") == "Succeeded"}


def target_of(cluster: NodeCluster, source: vms.Launcher) -> vms.Launcher:
    """A target pod as virt-controller makes it, running, of a migration that never goes on."""
    job = {"metadata": {"name": "no-migration", "uid": str(uuid.uuid4())}, "spec": {}}
    wanted = launcher_shaped(objects.target_pod(cluster.vmi(source.vm, NAMESPACE), job))
    made = cluster.run(cluster.api.create(f"/api/v1/namespaces/{NAMESPACE}/pods", wanted))
    name = str(made["metadata"]["name"])

    def now() -> containers.Container | None:
        return containers.running(cluster.plane.get("pod", name, "-n", NAMESPACE), "compute")

    cluster.wait(now, "the target runs")
    compute = now()
    assert compute is not None
    node = cluster.plane.get("pod", name, "-n", NAMESPACE)["spec"]["nodeName"]
    assert node == TARGET
    pid = compute.pids(cluster.nodes[node])[0]
    return vms.Launcher(source.vm, name, node, compute, pid, tuple(cluster.held(node, POOL)[name]))


# what others counted


@dataclass(frozen=True)
class Histogram:
    """What a Prometheus histogram says: how many lay below each bound."""

    sum: float
    buckets: dict[float, float]

    @property
    def count(self) -> float:
        """All of them."""
        return self.buckets.get(math.inf, 0.0)

    def since(self, before: Histogram) -> Histogram:
        """What came after *before*."""
        gone = before.buckets
        return Histogram(self.sum - before.sum, {b: n - gone.get(b, 0.0) for b, n in self.buckets.items()})

    def bound(self, share: float) -> float:
        """The smallest bound below which at least this share lay."""
        return min(bound for bound, below in self.buckets.items() if below >= share * self.count)


def metrics(cluster: NodeCluster, path: str) -> Iterator[Sample]:
    """The samples that kube-apiserver fetches from a kubelet or a pod."""
    text = cluster.plane.kubectl("get", "--raw", f"{path}/proxy/metrics")
    for family in text_string_to_metric_families(text):
        yield from family.samples


def allocations(cluster: NodeCluster) -> Histogram:
    """How long the kubelet of TARGET waited for Allocate so far."""
    total, buckets = 0.0, {}
    for sample in metrics(cluster, f"/api/v1/nodes/{TARGET}"):
        if sample.labels.get("resource_name") != POOL:
            continue
        if sample.name == f"{ALLOCATIONS}_sum":
            total = sample.value
        elif sample.name == f"{ALLOCATIONS}_bucket":
            buckets[float(sample.labels["le"])] = sample.value
    return Histogram(total, buckets)


def passes(cluster: NodeCluster) -> float:
    """Targets' containers that the guard of TARGET let start so far."""
    pod = cluster.agent(TARGET)["metadata"]["name"]
    samples = metrics(cluster, f"/api/v1/namespaces/{PRODUCT}/pods/{pod}:8080")
    return sum(s.value for s in samples if s.name == "migcompat_agent_guard_passes_total")


def add_memory(cluster: NodeCluster, figures: Figures, when: str) -> None:
    """Memory of each of the product's containers, in MiB."""
    for component in COMPONENTS:
        resident, used = [], []
        for pod in cluster.product_pods(component):
            running = containers.running(pod, component)
            assert running is not None, f"{pod['metadata']['name']} does not run"
            path = running.cgroup(cluster.nodes[pod["spec"]["nodeName"]])
            resident.append(cgroups.resident(path) / 2**20)
            used.append(cgroups.working_set(path) / 2**20)
        assert min(resident) > 1
        figures.add(
            f"memory of {component}, {when}",
            f"RSS {_each(resident)} MiB, working set {_each(used)} MiB",
        )


def _each(values: list[float]) -> str:
    return " and ".join(f"{value:.0f}" for value in sorted(values))
