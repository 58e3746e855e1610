"""The control plane answers, does what the chart's objects need, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.cluster.controlplane import ClusterError, ControlPlane
from tests.support.processes import is_alive

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]


def eventually(condition: Callable[[], bool], within: float = 30.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.1)


def namespace(plane: ControlPlane, name: str) -> str:
    plane.kubectl("create", "namespace", name)
    return name


def test_answers_with_the_pinned_version(control_plane: ControlPlane) -> None:
    version = json.loads(control_plane.kubectl("version", "-o", "json"))

    assert version["serverVersion"]["gitVersion"] == "v1.36.3"


def test_listens_on_its_own_loopback_address_only(control_plane: ControlPlane) -> None:
    own = set()
    for pid in control_plane.pids().values():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(link)
            if target.startswith("socket:["):
                own.add(target.removeprefix("socket:[").removesuffix("]"))
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in own:
                listening.append((table, fields[1].partition(":")[0]))

    octets = [int(o) for o in control_plane.addresses.control_plane.split(".")]
    assert set(listening) == {("tcp", bytes(reversed(octets)).hex().upper())}


def test_a_failed_command_says_what_the_server_said(control_plane: ControlPlane) -> None:
    with pytest.raises(ClusterError, match="not found"):
        control_plane.kubectl("get", "nodes", "no-such-node")


def test_accounts_may_do_what_their_roles_say_and_no_more(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    own = namespace(control_plane, "rbac")
    control_plane.kubectl("create", "serviceaccount", "reader", "-n", own)
    control_plane.kubectl("create", "role", "reader", "--verb=list", "--resource=pods", "-n", own)
    control_plane.kubectl(
        "create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={own}:reader", "-n", own
    )
    token = control_plane.kubectl("create", "token", "reader", "-n", own).strip()
    config = tmp_path / "kubeconfig"
    config.write_text(yaml.safe_dump(control_plane.kubeconfig_of({"token": token}, own)))

    assert "No resources" not in control_plane.kubectl("get", "pods", "--kubeconfig", str(config))
    with pytest.raises(ClusterError, match="forbidden"):
        control_plane.kubectl("get", "secrets", "--kubeconfig", str(config))


def test_deployments_get_pods_and_daemon_sets_follow_nodes(control_plane: ControlPlane) -> None:
    own = namespace(control_plane, "controllers")
    template = {
        "metadata": {"labels": {"app": "x"}},
        "spec": {"containers": [{"name": "x", "image": "x"}], "nodeSelector": {"test": "controllers"}},
    }
    selector = {"matchLabels": {"app": "x"}}
    control_plane.apply(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "c-1", "labels": {"test": "controllers"}}},
        *(
            {
                "apiVersion": "apps/v1",
                "kind": kind,
                "metadata": {"name": "x", "namespace": own},
                "spec": {"selector": selector, "template": template},
            }
            for kind in ("Deployment", "DaemonSet")
        ),
    )

    eventually(lambda: len(control_plane.get("pods", "-n", own)["items"]) == 2)
    control_plane.kubectl("delete", "deployment,daemonset", "x", "-n", own)
    control_plane.kubectl("delete", "pods", "--all", "-n", own, "--force")
    eventually(lambda: not control_plane.get("pods", "-n", own)["items"])


def test_the_scheduler_binds_and_asks_its_extenders(control_plane: ControlPlane) -> None:
    own = namespace(control_plane, "scheduling")
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "s-1", "labels": {"test": "scheduling"}}}
    control_plane.apply(node)
    status = {"status": {"capacity": {"pods": "10"}, "allocatable": {"pods": "10"}}}
    control_plane.kubectl("patch", "node", "s-1", "--subresource=status", "-p", json.dumps(status))

    def pod(name: str) -> dict[str, object]:
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": own},
            "spec": {
                "containers": [{"name": "x", "image": "x"}],
                "nodeSelector": {"test": "scheduling"},
                "terminationGracePeriodSeconds": 0,
            },
        }

    control_plane.apply(pod("bound"))
    eventually(lambda: control_plane.get("pod", "bound", "-n", own)["spec"].get("nodeName") == "s-1")

    address = control_plane.addresses.control_plane
    nowhere = f"http://{address}:{control_plane.addresses.free_port(address)}"
    control_plane.restart_scheduler([{"urlPrefix": nowhere, "filterVerb": "filter"}])
    try:
        control_plane.apply(pod("kept"))
        eventually(
            lambda: (
                "connection refused" in control_plane.kubectl("get", "pod", "kept", "-n", own, "-o", "yaml")
            )
        )
    finally:
        control_plane.restart_scheduler()
        control_plane.kubectl("delete", "pods", "--all", "-n", own)


def test_a_broken_part_is_reported_with_its_log(binaries: object, control_plane: ControlPlane) -> None:
    plane = ControlPlane(control_plane.binaries)
    try:
        plane.kubeconfig.write_text("not: [a kubeconfig")
        with pytest.raises(ClusterError, match=r"kube-controller-manager ended with 1;(.|\n)*yaml"):
            plane.start()
    finally:
        plane.stop()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_nothing_outlives_the_process_that_started_it(
    control_plane: ControlPlane, end: signal.Signals
) -> None:
    script = (
        "import signal, time\n"
        # Whoever runs the tests in the background may have had SIGINT ignored, which is inherited.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tests.cluster.controlplane import ControlPlane\n"
        "with ControlPlane() as plane:\n"
        "    print(plane.directory, *plane.pids().values(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    directory, *words = parent.stdout.readline().split()
    pids = [int(word) for word in words]
    assert len(pids) == 4
    assert all(is_alive(pid) for pid in pids)

    parent.send_signal(end)
    parent.communicate(timeout=30)

    eventually(lambda: not any(is_alive(pid) for pid in pids), within=10)
    assert Path(directory).exists() is (end is not signal.SIGINT)
    shutil.rmtree(directory, ignore_errors=True)
