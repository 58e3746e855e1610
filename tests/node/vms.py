"""VMs on real nodes as tests see them: where they start, what they run in, and that they live on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from migcompat.api import names

from tests.cluster.api import Object
from tests.cluster.controlplane import ClusterError
from tests.node import containers
from tests.node.cluster import NodeCluster
from tests.node.containers import Container
from tests.scenario.nodes import POOL

NAMESPACE = "default"
VARIABLE = "MDEV_PCI_RESOURCE_VFIO_MIGCOMPAT_IO_MTTY-2"
"""Where virt-launcher looks for the devices of the scenario's pool."""


@dataclass(frozen=True)
class Launcher:
    """The pod that a VM runs in, and the container that must not be touched."""

    vm: str
    pod: str
    node: str
    compute: Container
    pid: int
    """Of the container's process, in the run's PID namespace."""
    devices: tuple[str, ...]
    """That the pod holds, as the kubelet says."""


@contextlib.contextmanager
def only(cluster: NodeCluster, *takers: str) -> Iterator[None]:
    """All nodes but these are cordoned."""
    others = [name for name in cluster.node_names if name not in takers]
    for name in others:
        cluster.plane.kubectl("cordon", name)
    try:
        yield
    finally:
        for name in others:
            cluster.plane.kubectl("uncordon", name)


def start(cluster: NodeCluster, vm: str, node: str) -> Launcher:
    """Starts a VM with one device of the pool on the node."""
    with only(cluster, node):
        cluster.start_vm(vm, NAMESPACE, gpus=[POOL])
    return launcher(cluster, vm)


def launcher(cluster: NodeCluster, vm: str) -> Launcher:
    """What the VM runs in now.

    Raises:
        ClusterError: there is not exactly one pod with a running compute container on the VM's node.
    """
    node = str(cluster.vmi(vm, NAMESPACE)["status"].get("nodeName", ""))
    found = [
        (pod, compute)
        for pod in pods(cluster, vm)
        if pod["spec"].get("nodeName") == node and (compute := containers.running(pod, "compute"))
    ]
    if len(found) != 1:
        raise ClusterError(f"{vm} runs in {len(found)} pods on {node}, not in one")
    pod, compute = found[0]
    name = pod["metadata"]["name"]
    held = cluster.held(node, POOL).get(name, [])
    return Launcher(vm, name, node, compute, compute.pids(cluster.nodes[node])[0], tuple(held))


def pods(cluster: NodeCluster, vm: str) -> list[Object]:
    """All pods of the VM."""
    items: list[Object] = cluster.plane.get("pods", "-n", NAMESPACE, "-l", f"vmi.kubevirt.io/id={vm}")[
        "items"
    ]
    return items


def assert_lives(cluster: NodeCluster, before: Launcher) -> None:
    """The VM's container is the same one, its process too, and it still holds its devices.

    A kubelet that has just been started may take a moment to say so.
    """
    cluster.wait(
        lambda: launcher(cluster, before.vm) == before,
        f"{before} lives on",
        on_failure=lambda: str([(p["metadata"]["name"], p["status"]) for p in pods(cluster, before.vm)]),
    )


def end(cluster: NodeCluster, *vms: str) -> None:
    """Ends VMs (none: all) with their migrations, and waits until their devices are free."""
    kubectl = cluster.plane.kubectl
    chosen = vms or tuple(i["metadata"]["name"] for i in cluster.plane.get("vmi", "-n", NAMESPACE)["items"])
    for vm in chosen:
        kubectl("delete", "vmim", "-n", NAMESPACE, "-l", f"kubevirt.io/vmi-name={vm}", "--wait=false")
        kubectl("delete", "vmi", vm, "-n", NAMESPACE, "--wait=false", "--ignore-not-found")

    def gone() -> bool:
        return not any(pods(cluster, vm) for vm in chosen)

    cluster.wait(gone, f"the pods of {', '.join(chosen)} are gone")


def migration(cluster: NodeCluster, job: str) -> Object:
    """A migration as it is."""
    return cluster.plane.get("vmim", job, "-n", NAMESPACE)


def phase(cluster: NodeCluster, job: str) -> str:
    """The phase of a migration."""
    return str(migration(cluster, job).get("status", {}).get("phase", ""))


def migrate(cluster: NodeCluster, vm: str) -> Launcher:
    """Migrates the VM, and waits until that succeeded; what it runs in then."""
    job = cluster.migrate(vm, NAMESPACE)
    cluster.wait(lambda: phase(cluster, job) in ("Succeeded", "Failed"), f"migration {job} is over")
    if phase(cluster, job) != "Succeeded":
        raise ClusterError(f"migration {job} failed: {cluster.events(vm, NAMESPACE)}")
    return launcher(cluster, vm)


def source_stamp(pod: Object) -> str:
    """What webhook or operator stamped the pod with; empty if they did not."""
    return str((pod["metadata"].get("annotations") or {}).get(names.SOURCE, ""))


def allocated_to(cluster: NodeCluster, node: str) -> dict[str, str]:
    """Pods by the device of the pool that they hold, as the VFIONode says."""
    devices = cluster.plane.get("vfionode", node)["status"]["devices"]
    return {
        d["id"]: d["allocatedTo"]["name"] for d in devices if d["resource"] == POOL and d.get("allocatedTo")
    }


def until_allocated_to(cluster: NodeCluster, node: str, holders: dict[str, str]) -> None:
    """Until :func:`allocated_to` is `holders`: the agent asks the kubelet now and then."""
    cluster.wait(
        lambda: allocated_to(cluster, node) == holders,
        f"the VFIONode of {node} has the holders {holders}",
        on_failure=lambda: str(allocated_to(cluster, node)),
    )


def answer(cluster: NodeCluster, vm: str) -> tuple[str, str, str]:
    """TARGETS, MIGRATABLE and REASON of the VM; empty strings where nobody has answered."""
    found = cluster.plane.get("migrationcompat", "-n", NAMESPACE)["items"]
    status: Object = next((i.get("status", {}) for i in found if i["metadata"]["name"] == vm), {})
    conditions = [c for c in status.get("conditions", ()) if c["type"] == "Migratable"]
    return (
        status.get("targets", ""),
        conditions[0]["status"] if conditions else "",
        conditions[0]["reason"] if conditions else "",
    )
