"""The nodes are what tests take them for: real kubelets side by side, on a network, and apart."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cluster.api import Object
from tests.cluster.processes import Process
from tests.node import __main__ as command
from tests.node import containers, images
from tests.node.cluster import NodeCluster
from tests.node.commands import run
from tests.node.containers import Container
from tests.node.devices import prepare_source
from tests.node.figures import Figures

OUTSIDE = ["tests/node/test_interrupted.py", "tests/node/test_preparation.py"]
# For the test alone: what the cluster's start may take, its own deadlines say.
pytestmark = pytest.mark.timeout(600, func_only=True)

API_SERVICE = "https://10.91.0.1:443"
PORT = 7000
ANSWER = f"""
import socket
with socket.create_server(("", {PORT})) as server:
    while True:
        server.accept()[0].close()
"""
CALL = f"""
import socket, sys
peer = socket.create_connection((sys.argv[1], {PORT}), timeout=5)
print(peer.getsockname()[0])
"""


@pytest.fixture(scope="module")
def pods(bare: NodeCluster) -> dict[str, Object]:
    """A pod on each node, running, by the node's name."""
    for node in bare.node_names:
        bare.plane.apply(pod(f"on-{node}", node))
    bare.wait(lambda: all(compute(bare, f"on-{node}") for node in bare.node_names), "both pods run")
    return {node: bare.plane.get("pod", f"on-{node}") for node in bare.node_names}


def pod(name: str, node: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "compute", "image": images.LAUNCHER, "imagePullPolicy": "Never"}],
        },
    }


def compute(cluster: NodeCluster, name: str) -> Container | None:
    return containers.running(cluster.plane.get("pod", name), "compute")


def network_of(cluster: NodeCluster, of: Object) -> str:
    """The file of a pod's network namespace."""
    running = containers.running(of, "compute")
    assert running is not None
    return f"/proc/{running.pids(cluster.nodes[of['spec']['nodeName']])[0]}/ns/net"


def test_both_nodes_are_ready_with_addresses_of_their_own(bare: NodeCluster) -> None:
    addresses, boots = set(), set()
    for name, node in bare.nodes.items():
        status = bare.plane.get("node", name)["status"]
        assert bare.is_ready(name)
        assert {"type": "InternalIP", "address": node.address} in status["addresses"]
        assert status["nodeInfo"]["bootID"] == node.boot_id
        assert status["nodeInfo"]["containerRuntimeVersion"].startswith("containerd://")
        addresses.add(node.address)
        boots.add(node.boot_id)
    assert len(addresses) == len(boots) == 2


def test_a_pod_reaches_pods_of_the_other_node_and_the_api_by_its_service(
    bare: NodeCluster, pods: dict[str, Object], tmp_path: Path
) -> None:
    caller, called = pods["node-1"], pods["node-2"]
    inside = ["nsenter", f"--net={network_of(bare, called)}"]
    server = Process("answer", [*inside, sys.executable, "-IS", "-c", ANSWER], log=tmp_path / "log")
    try:
        inside = ["nsenter", f"--net={network_of(bare, caller)}"]
        call = [*inside, sys.executable, "-IS", "-c", CALL, called["status"]["podIP"]]
        bare.wait(lambda: run(*call, timeout=10), "the pod on node-1 reaches the one on node-2")
        assert run(*call).strip() == caller["status"]["podIP"], "not translated on the way"
    finally:
        server.stop(0.0)
    said = run(
        *inside,
        str(bare.plane.binaries.kubectl),
        f"--kubeconfig={bare.plane.kubeconfig}",
        f"--server={API_SERVICE}",
        *("get", "--raw", "/readyz"),
    )
    assert said == "ok"


def test_nodes_see_files_and_containers_of_their_own_alone(
    bare: NodeCluster, pods: dict[str, Object]
) -> None:
    for directory in ("/run", "/var/lib/kubelet", "/var/lib/cni", "/var/log"):
        for name, node in bare.nodes.items():
            node.enter("touch", f"{directory}/of-{name}")
        for name, other in (("node-1", "node-2"), ("node-2", "node-1")):
            seen = bare.nodes[name].enter("ls", "-A", directory).split()
            assert f"of-{name}" in seen
            assert f"of-{other}" not in seen
        assert not Path(directory, "of-node-1").exists(), "nor does the machine see them"
    found = {name: set(node.ctr("containers", "ls", "-q").split()) for name, node in bare.nodes.items()}
    for name, of in pods.items():
        running = containers.running(of, "compute")
        assert running is not None
        assert running.id in found[name]
    assert not found["node-1"] & found["node-2"]


def test_pods_are_in_cgroups_below_their_node(bare: NodeCluster, pods: dict[str, Object]) -> None:
    for name, of in pods.items():
        node = bare.nodes[name]
        running = containers.running(of, "compute")
        assert running is not None
        path = running.cgroup(node)
        assert path.startswith(f"{node.cgroup}/kubepods/")
        assert Path(f"/proc/{running.pids(node)[0]}/comm").read_text().strip() == "launcher"


def test_a_kubelet_changes_kernel_settings_of_its_node_alone(bare: NodeCluster) -> None:
    own = {name: node.enter("cat", "/proc/sys/kernel/panic").strip() for name, node in bare.nodes.items()}
    assert own == {"node-1": "10", "node-2": "10"}
    for node in bare.nodes.values():
        node.enter("sh", "-c", "echo 11 > /proc/sys/kernel/panic")
        assert Path("/proc/sys/kernel/panic").read_text().strip() != "11"


def test_a_node_without_overlayfs_copies_its_images(
    bare: NodeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.overlay.mounts", lambda _: False)
    bare.add_nodes({"node-3": prepare_source})
    bare.plane.apply(pod("copied", "node-3"))
    bare.wait(lambda: compute(bare, "copied"), "a pod runs there")
    running = compute(bare, "copied")
    assert running is not None
    (root,) = (
        line.split()
        for line in Path(f"/proc/{running.pids(bare.nodes['node-3'])[0]}/mountinfo").read_text().splitlines()
        if line.split()[4] == "/"
    )
    assert "/io.containerd.snapshotter.v1.native/" in root[3]


def test_figures_are_written_with_their_numbers(tmp_path: Path) -> None:
    figures = Figures()
    figures.add("size", "3 MB")
    figures.spread("wait", [0.3, 0.1, 0.2])
    figures.write(tmp_path / "build" / "node.json")
    size, wait = json.loads((tmp_path / "build" / "node.json").read_text())
    assert size == {"name": "size", "value": "3 MB"}
    assert wait["seconds"] == {"n": 3, "median": 0.2, "p99": 0.3, "max": 0.3}
    assert wait["value"] == "n 3, median 200.0 ms, p99 300.0 ms, max 300.0 ms"


@pytest.mark.parametrize(
    ("arguments", "inside", "outside", "options"),
    [
        ([], ["tests/node", "tests/image"], OUTSIDE, []),
        (["-k", "life"], ["tests/node", "tests/image"], OUTSIDE, ["-k", "life"]),
        (["tests/node/test_harness.py", "-x"], ["tests/node/test_harness.py"], [], ["-x"]),
        (["tests/node/test_harness.py::test_a"], ["tests/node/test_harness.py::test_a"], [], []),
        (["tests/node/test_interrupted.py::test_a"], [], ["tests/node/test_interrupted.py::test_a"], []),
        (["tests/node"], ["tests/node"], OUTSIDE, []),
        (["tests/image"], ["tests/image"], [], []),
    ],
)  # fmt: skip
def test_arguments_choose_what_runs_inside_and_what_outside_of_a_run(
    arguments: list[str], inside: list[str], outside: list[str], options: list[str]
) -> None:
    assert command.split(arguments) == (inside, outside, options)
