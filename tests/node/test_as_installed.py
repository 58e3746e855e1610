"""What agents may do in their containers: hear the kernel, and open devices where the chart allows it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.cluster.base import NAMESPACE as PRODUCT
from tests.cluster.controlplane import ClusterError
from tests.node import containers, devices, podresources, vms
from tests.node.cluster import NodeCluster
from tests.node.containers import Credentials
from tests.node.kernel_events import speak
from tests.scenario import nodes
from tests.scenario.nodes import POOL

pytestmark = pytest.mark.timeout(600, func_only=True)

SEVERAL, SINGLE = "node-2", "node-1"
COUNTS = {SINGLE: 1, SEVERAL: 2}
ACCEPTING = nodes.device_id(SEVERAL, 1)
"""The one that a VM from SINGLE may get."""
AGENT = "device-plugin"
NEVER = 3600
"""Seconds between two looks at sysfs: the longest that the chart allows."""
PATIENCE = 180.0
"""Seconds for what takes one or two on a quiet machine."""
UEVENTS, LOOKS = "migcompat_agent_uevents_total", "migcompat_agent_uevent_lag_seconds_count"
PROBES = "migcompat_agent_migration_probes_total"
CONFINED = Credentials((0,) * 4, 0, 0, 0, no_new_privileges=True, seccomp_filter=True)


@pytest.fixture(scope="module")
def cluster(bare: NodeCluster) -> NodeCluster:
    """The product as the chart has it, but that nothing is looked at again by time alone."""
    bare.install_chart({"devicePlugin": {"scanInterval": NEVER}})
    until_serve(bare)
    return bare


@pytest.fixture(scope="module")
def privileged(cluster: NodeCluster) -> Iterator[vms.Launcher]:
    """Agents that may open devices, and a VM on SINGLE that has run since before they could."""
    running = vms.start(cluster, "vm-a", SINGLE)
    cluster.install_chart({"devicePlugin": {"privileged": True}}, within=PATIENCE)
    until_serve(cluster)
    yield running
    vms.end(cluster)


def test_an_agent_in_its_container_hears_the_kernel_and_looks_again(cluster: NodeCluster) -> None:
    for name in COUNTS:
        assert credentials(cluster, name) == CONFINED
        assert "cannot be heard" not in agent_log(cluster, name)
    networks = {
        os.readlink(f"/proc/{pid}/ns/net") for pid in (os.getpid(), *(agent_pid(cluster, n) for n in COUNTS))
    }
    assert len(networks) == 3, "each has a network namespace of its own"
    heard = {name: figure(cluster, name, UEVENTS) for name in COUNTS}
    host = cluster.nodes[SEVERAL].host
    mdev = devices.add_device(host, 2, "1.1.0")
    said = speak()
    try:
        for name, before in heard.items():
            until_hears(cluster, name, before, said)
        until(cluster, lambda: mdev in offered(cluster, SEVERAL), "it has looked: the device is offered")
        assert figure(cluster, SEVERAL, LOOKS) > 0
    finally:
        devices.remove_device(host, mdev)
        speak()
    until(cluster, lambda: mdev not in offered(cluster, SEVERAL), "it has looked again: the device is gone")
    until_serve(cluster)
    for name in COUNTS:
        assert "heard no more" not in agent_log(cluster, name)


def test_by_default_no_device_is_opened(cluster: NodeCluster) -> None:
    for name, count in COUNTS.items():
        answers = probes(cluster, name)
        assert set(answers) == {"NotAllowed"}
        assert answers["NotAllowed"] > count, "those of other pools, too"
        assert "not allowed to open devices" in agent_log(cluster, name)


def test_privileged_agents_ask_all_devices_but_those_that_pods_hold(
    cluster: NodeCluster, privileged: vms.Launcher
) -> None:
    may_all = containers.credentials(os.getpid()).bounding
    assert may_all
    # What stands behind VFIO's device nodes here can be opened, and knows nothing of VFIO.
    for name, held in {SINGLE: 1, SEVERAL: 0}.items():
        assert credentials(cluster, name) == Credentials(
            (0,) * 4, may_all, may_all, may_all, no_new_privileges=False, seccomp_filter=False
        )
        until_asked(cluster, name, held=held)
        assert "not allowed to open devices" not in agent_log(cluster, name)
    for device in offered(cluster, SEVERAL):
        assert f"{device}: not known whether it can migrate: VFIO_" in agent_log(cluster, SEVERAL)
    (device,) = privileged.devices
    assert f"{device}: not known whether it can migrate: a pod holds {device}" in agent_log(cluster, SINGLE)


def test_with_privileged_agents_vms_live_start_and_migrate(
    cluster: NodeCluster, privileged: vms.Launcher
) -> None:
    vms.assert_lives(cluster, privileged)
    until(
        cluster,
        lambda: vms.allocated_to(cluster, SINGLE) == {privileged.devices[0]: privileged.pod},
        "the held device is known as held",
    )
    for name in COUNTS:
        process = agent_pid(cluster, name)
        assert containers.is_read_only(process, "/")
        assert not containers.is_read_only(process, "/host/sys")
    assert vms.migrate(cluster, "vm-a").devices == (ACCEPTING,)
    assert len(vms.start(cluster, "vm-b", SINGLE).devices) == 1


def test_the_way_back_takes_the_rights_away(cluster: NodeCluster, privileged: vms.Launcher) -> None:
    running = vms.launcher(cluster, privileged.vm)
    cluster.install_chart(within=PATIENCE)
    until_serve(cluster)
    for name in COUNTS:
        assert credentials(cluster, name) == CONFINED
    vms.assert_lives(cluster, running)


# what the tests look at


def until(cluster: NodeCluster, condition: Callable[[], object], what: str) -> None:
    """Waits, for as long as it may take on a loaded machine."""
    cluster.wait(condition, what, within=PATIENCE)


def until_serve(cluster: NodeCluster) -> None:
    """Until Nodes have counted the devices, and VFIONodes say that the agents are well."""
    counted = COUNTS.items()
    until(cluster, lambda: all(cluster.allocatable(n, POOL) == c for n, c in counted), "devices are counted")
    until(cluster, lambda: all(is_well(cluster, name) for name in COUNTS), "the agents are well")


def until_hears(cluster: NodeCluster, name: str, before: float, said: Path) -> None:
    """Until the agent on the node has heard more events than before."""
    until(cluster, lambda: figure(cluster, name, UEVENTS) > before, f"the agent on {name} hears of {said}")


def until_asked(cluster: NodeCluster, name: str, *, held: int) -> None:
    """Until the agent on the node has asked all devices, of other pools too, but those that pods hold."""
    count = len(cluster.plane.get("vfionode", name)["status"]["devices"])
    expected = {"Failed": count - held, **({"InUse": held} if held else {})}
    cluster.wait(
        lambda: probes(cluster, name) == expected,
        f"the agent on {name} has asked: {expected}",
        within=PATIENCE,
        on_failure=lambda: f"{probes(cluster, name)}\n{agent_log(cluster, name)}",
    )


def is_well(cluster: NodeCluster, name: str) -> bool:
    """Whether the VFIONode says so of its agent, and has all devices."""
    status = cluster.plane.get("vfionode", name)["status"]
    ready = [c["status"] for c in status.get("conditions", ()) if c["type"] == "Ready"]
    return ready == ["True"] and len([d for d in status["devices"] if d["resource"] == POOL]) == COUNTS[name]


def offered(cluster: NodeCluster, name: str) -> list[str]:
    """The devices of the pool that the kubelet has healthy."""
    return podresources.allocatable(cluster.nodes[name].root / "kubelet/pod-resources/kubelet.sock", POOL)


def agent_pid(cluster: NodeCluster, name: str) -> int:
    """Of the agent's process on the node."""
    running = containers.running(cluster.agent(name), AGENT)
    if running is None:
        raise ClusterError(f"the agent on {name} does not run")
    return running.pids(cluster.nodes[name])[0]


def credentials(cluster: NodeCluster, name: str) -> Credentials:
    """Of the agent's process on the node."""
    return containers.credentials(agent_pid(cluster, name))


def agent_log(cluster: NodeCluster, name: str) -> str:
    """What the agent's pod on the node has written."""
    return cluster.pod_log(cluster.agent(name)["metadata"]["name"])


def samples(cluster: NodeCluster, name: str, metric: str) -> list[Sample]:
    """Of a metric of the agent on the node, as kube-apiserver fetches them."""
    pod = cluster.agent(name)["metadata"]["name"]
    text = cluster.plane.kubectl(
        "get", "--raw", f"/api/v1/namespaces/{PRODUCT}/pods/{pod}:8080/proxy/metrics"
    )
    return [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == metric]


def probes(cluster: NodeCluster, name: str) -> dict[str, int]:
    """How often the agent on the node asked a device whether it can migrate, by what came of it."""
    return {s.labels["answer"]: int(s.value) for s in samples(cluster, name, PROBES)}


def figure(cluster: NodeCluster, name: str, metric: str) -> float:
    """The agent's counter without labels."""
    (sample,) = samples(cluster, name, metric)
    return float(sample.value)
