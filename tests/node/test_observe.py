"""Beside another device plugin on real kubelets; from there to serving, with a VM running (docs/observe.md).

The other plugin has KubeVirt's kind of ids (numbers of IOMMU groups) in the pool of the scenario.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.api import Object
from tests.cluster.controlplane import ClusterError
from tests.cluster.processes import Process
from tests.node import other_plugin, podresources, vms
from tests.node.cluster import NodeCluster
from tests.node.node import Node
from tests.node.vms import Launcher
from tests.scenario import nodes
from tests.scenario.nodes import POOL

# For the test alone: what the cluster's start may take, its own deadlines say.
pytestmark = pytest.mark.timeout(600, func_only=True)

SOURCE, TARGET = "node-1", "node-2"
ALL = {node: [nodes.device_id(node, n) for n in range(count)] for node, count in ((SOURCE, 1), (TARGET, 2))}
VM = "vm-a"


@pytest.fixture(scope="module")
def others(bare: NodeCluster) -> Iterator[list[Process]]:
    """The other plugin, on each node, before migcompat is there."""
    running = [other_plugin.start(node, POOL, groups(node)) for node in bare.nodes.values()]
    yield running
    for process in running:
        process.stop()


@pytest.fixture(scope="module")
def vm(bare: NodeCluster, others: list[Process]) -> Launcher:
    """A VM on SOURCE with a device that the other plugin gave out."""
    bare.wait(
        lambda: all(bare.allocatable(name, POOL) == len(ids) for name, ids in ALL.items()),
        "the other plugin's devices are counted",
    )
    started = vms.start(bare, VM, SOURCE)
    assert list(started.devices) == groups(bare.nodes[SOURCE]), "the kubelet knows it by its group"
    return started


def test_devices_of_the_other_plugin_are_published_and_judged(bare: NodeCluster, vm: Launcher) -> None:
    bare.install_chart({"devicePlugin": {"mode": "observe"}})
    bare.wait(
        lambda: vms.allocated_to(bare, SOURCE) == {ALL[SOURCE][0]: vm.pod}, "it is published who holds what"
    )
    wanted = {name: dict.fromkeys(ids, "Healthy") for name, ids in ALL.items()}
    bare.wait(lambda: {name: published(bare, name) for name in ALL} == wanted, "all are published as healthy")
    for name in ALL:
        status = bare.plane.get("vfionode", name)["status"]
        assert status["mode"] == "observe"
        assert conditions(status)["Ready"] == ("True", "Published")
        assert conditions(status)["Guarded"] == ("False", "ObserveMode")
        assert conditions(status)["IdsUnderstood"] == ("True", "AllUnderstood")
        assert not list(plugins(bare.nodes[name]).glob("migcompat-*.sock")), "nothing is registered"
    bare.wait(lambda: vms.answer(bare, VM) == ("1/1", "True", "Compatible"), "the VM has an answer")
    vms.assert_lives(bare, vm)


def test_after_the_change_to_serving_the_vm_has_its_device_and_nobody_else_gets_it(
    bare: NodeCluster, others: list[Process], vm: Launcher
) -> None:
    for process in others:
        process.stop()
    bare.install_chart({"devicePlugin": {"mode": "serve"}})
    bare.wait(
        lambda: (offered(bare.nodes[SOURCE]), offered(bare.nodes[TARGET])) == ([], sorted(ALL[TARGET])),
        "the kubelets offer what is free, under our ids",
    )
    vms.assert_lives(bare, vm)
    status = bare.plane.get("vfionode", SOURCE)["status"]
    assert (status["mode"], conditions(status)["Guarded"]) == ("serve", ("True", "ServeMode"))
    assert conditions(status)["DevicesUsable"] == ("True", "AllUsable"), "nothing is wrong with it"
    (device,) = (d for d in status["devices"] if d["id"] == ALL[SOURCE][0])
    assert device["health"] == "Unhealthy"
    (group,) = vm.devices
    assert (
        device["problem"]
        == f"pod default/{vm.pod} holds it as {group} of {POOL}, given out by another plugin"
    )
    vms.until_allocated_to(bare, SOURCE, {ALL[SOURCE][0]: vm.pod})
    node = bare.nodes[SOURCE]
    node.stop_kubelet()
    node.start_kubelet()
    bare.wait(lambda: len(list(plugins(node).glob("migcompat-*.sock"))) > 0, "registered again")
    vms.assert_lives(bare, vm)
    bare.wait(lambda: offered(node) == [], "the restarted kubelet offers it to nobody either")


def test_migrating_the_vm_away_sets_its_device_free(bare: NodeCluster, vm: Launcher) -> None:
    bare.wait(lambda: vms.answer(bare, VM) == ("1/1", "True", "Compatible"), "the VM can move")
    moved = vms.migrate(bare, VM)
    assert moved.node == TARGET
    assert moved.devices == (ALL[TARGET][1],), "our id, and of its two devices the one that accepts the VM"
    bare.wait(lambda: offered(bare.nodes[SOURCE]) == ALL[SOURCE], "the kubelet has the device for the next")
    bare.wait(lambda: vms.allocated_to(bare, SOURCE) == {}, "nobody holds it")
    assert published(bare, SOURCE) == dict.fromkeys(ALL[SOURCE], "Healthy")


def plugins(node: Node) -> Path:
    """Where its kubelet meets plugins."""
    return node.root / "kubelet/device-plugins"


def groups(node: Node) -> list[str]:
    """IOMMU groups of the node's devices of the pool."""
    return [
        (node.host / "sys" / nodes.PARENT / id_ / "iommu_group").readlink().name for id_ in ALL[node.name]
    ]


def offered(node: Node) -> list[str] | None:
    """Healthy devices of the pool as the kubelet has them; None while it does not answer."""
    try:
        return podresources.allocatable(node.root / "kubelet/pod-resources/kubelet.sock", POOL)
    except ClusterError:
        return None


def published(cluster: NodeCluster, node: str) -> dict[str, str]:
    """Health by device of the pool."""
    found = cluster.plane.get("vfionode", node).get("status", {}).get("devices", ())
    return {d["id"]: d["health"] for d in found if d["resource"] == POOL}


def conditions(status: Object) -> dict[str, tuple[str, str]]:
    """Status and reason by type."""
    return {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
