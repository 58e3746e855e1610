"""The product's pods run as processes from their real specs, with what a kubelet would give them."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.cluster

SERVER = """
import http.server, json, os, sys
host, _, port = sys.argv[1].partition("=")[2].rpartition(":")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if os.path.exists(sys.argv[2] + "/ready") else 503)
        self.end_headers()
        self.wfile.write(json.dumps([sys.argv, dict(os.environ)]).encode())
http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
"""


def pod(name: str, namespace: str, container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "migcompat", "app": name},
        },
        "spec": {"containers": [{"name": "main", "image": "none", **container}], **spec},
    }


def is_ready(cluster: Cluster, name: str, namespace: str) -> bool:
    conditions = cluster.plane.get("pod", name, "-n", namespace)["status"].get("conditions", ())
    return {c["type"]: c["status"] for c in conditions}.get("Ready") == "True"


@pytest.fixture
def namespace(harness: Cluster, request: pytest.FixtureRequest) -> str:
    name = request.node.name.replace("_", "-").lower()[:60].strip("-")
    harness.plane.kubectl("create", "namespace", name)
    harness.wait(lambda: harness.plane.get("sa", "default", "-n", name), "the namespace has its account")
    return str(name)


def test_gets_mounts_variables_addresses_a_token_and_readiness(harness: Cluster, namespace: str) -> None:
    plane, node = harness.plane, harness.nodes["node-1"]
    ready = node.root / "opt" / "state"
    ready.mkdir(parents=True)
    plane.kubectl("create", "secret", "generic", "s", "--from-literal=key=value", "-n", namespace)
    plane.apply(
        pod(
            "server",
            namespace,
            {
                "command": ["python3", "-c", SERVER],
                "args": [
                    "--bind=0.0.0.0:8080",
                    "/host/state",
                    "--dir=/host",
                    "--to=$(WHERE)/x",
                    "/etc/s/key",
                ],
                "env": [
                    {"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                    {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}},
                ],
                "ports": [{"name": "http", "containerPort": 8080}],
                "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
                "volumeMounts": [
                    {"name": "state", "mountPath": "/host/state"},
                    {"name": "s", "mountPath": "/etc/s"},
                ],
            },
            nodeName="node-1",
            volumes=[
                {"name": "state", "hostPath": {"path": "/opt/state", "type": "Directory"}},
                {"name": "s", "secret": {"secretName": "s"}},
            ],
        ),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "server", "namespace": namespace},
            "spec": {"selector": {"app": "server"}, "ports": [{"port": 8090, "targetPort": "http"}]},
        },
    )
    harness.wait(
        lambda: plane.get("pod", "server", "-n", namespace)["status"].get("phase") == "Running", "it runs"
    )
    assert not is_ready(harness, "server", namespace)

    (ready / "ready").touch()
    harness.wait(lambda: is_ready(harness, "server", namespace), "it is ready")

    address = plane.get("service", "server", "-n", namespace)["spec"]["clusterIP"]
    with urllib.request.urlopen(f"http://{address}:8090/", timeout=10) as answer:
        arguments, environment = json.loads(answer.read())
    pod_ip = plane.get("pod", "server", "-n", namespace)["status"]["podIP"]
    assert pod_ip.startswith(harness.addresses.prefix)
    assert arguments[1:3] == [f"--bind={pod_ip}:8080", str(ready)]
    assert Path(arguments[3].removeprefix("--dir=")).joinpath("state").resolve() == ready
    assert arguments[4] == "--to=node-1/x"
    assert Path(arguments[5]).read_text() == "value"
    assert environment["KEY"] == "value"

    config = yaml.safe_load(Path(environment["KUBECONFIG"]).read_text())
    who = plane.kubectl("auth", "whoami", "-o", "json", "--kubeconfig", environment["KUBECONFIG"])
    user = json.loads(who)["status"]["userInfo"]
    assert list(config["users"][0]["user"]) == ["token"]
    assert user["username"] == f"system:serviceaccount:{namespace}:default"
    assert user["extra"]["authentication.kubernetes.io/node-name"] == ["node-1"]
    assert user["extra"]["authentication.kubernetes.io/pod-name"] == ["server"]


def test_is_restarted_when_it_ends_and_stopped_when_deleted(harness: Cluster, namespace: str) -> None:
    plane = harness.plane
    container = {
        "command": ["python3", "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(300)"]
    }
    plane.apply(pod("sleeper", namespace, container, nodeName="node-2", terminationGracePeriodSeconds=2))
    harness.wait(lambda: harness.pod_log("sleeper", namespace).split(), "it has started")
    first = int(harness.pod_log("sleeper", namespace).split()[0])

    os.kill(first, signal.SIGKILL)
    harness.wait(lambda: len(harness.pod_log("sleeper", namespace).split()) == 2, "it has started again")

    def restarts() -> int:
        statuses = plane.get("pod", "sleeper", "-n", namespace)["status"]["containerStatuses"]
        return int(statuses[0]["restartCount"])

    harness.wait(lambda: restarts() == 1, "the restart is counted")
    second = int(harness.pod_log("sleeper", namespace).split()[1])
    plane.kubectl("delete", "pod", "sleeper", "-n", namespace, "--timeout=20s")
    assert not Path(f"/proc/{second}").exists()


def test_a_crashing_container_backs_off_and_shows_it(harness: Cluster, namespace: str) -> None:
    harness.plane.apply(
        pod("crash", namespace, {"command": ["python3", "-c", "raise SystemExit(3)"]}, nodeName="node-1")
    )

    def waiting() -> dict[str, Any]:
        status = harness.plane.get("pod", "crash", "-n", namespace)["status"]["containerStatuses"][0]
        return dict(status["state"].get("waiting", {}))

    harness.wait(lambda: waiting().get("reason") == "CrashLoopBackOff", "it backs off")
    assert "3" in waiting()["message"]
    harness.plane.kubectl("delete", "pod", "crash", "-n", namespace, "--timeout=20s")


def test_waits_for_what_it_mounts(harness: Cluster, namespace: str) -> None:
    plane = harness.plane
    container = {
        "command": ["python3", "-c", "import time; time.sleep(300)"],
        "volumeMounts": [{"name": "c", "mountPath": "/c"}],
    }
    volumes = [{"name": "c", "configMap": {"name": "late"}}]
    plane.apply(pod("late", namespace, container, nodeName="node-1", volumes=volumes))
    harness.wait(lambda: '"late" not found' in str(plane.get("pod", "late", "-n", namespace)), "it says so")

    plane.kubectl("create", "configmap", "late", "--from-literal=a=b", "-n", namespace)

    harness.wait(lambda: is_ready(harness, "late", namespace), "it runs")
    plane.kubectl("delete", "pod", "late", "-n", namespace, "--grace-period=0", "--force")


def test_pods_of_others_only_seem_to_run(harness: Cluster, namespace: str) -> None:
    other = pod("other", namespace, {"command": ["false"]}, nodeName="node-1")
    other["metadata"]["labels"] = {}
    harness.plane.apply(other)

    harness.wait(lambda: is_ready(harness, "other", namespace), "it is ready")
    began = time.monotonic()
    harness.plane.kubectl("delete", "pod", "other", "-n", namespace, "--timeout=20s")
    assert time.monotonic() - began < 15
