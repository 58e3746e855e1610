"""The virt-controller stand-in behaves as a real one was measured to: it starts, migrates, waits, retries."""

from __future__ import annotations

import base64
import datetime
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.kubevirt import objects

pytestmark = pytest.mark.cluster


@pytest.fixture
def namespace(harness: Cluster, request: pytest.FixtureRequest) -> str:
    name = request.node.name.replace("_", "-").lower()[:60].strip("-")
    harness.plane.kubectl("create", "namespace", name)
    harness.wait(lambda: harness.plane.get("sa", "default", "-n", name), "the namespace has its account")
    return str(name)


class Webhook:
    """Denies every target pod while `deny` is set, and counts calls."""

    def __init__(self, harness: Cluster, directory: Path) -> None:
        self.deny = ""
        self.calls = 0
        address = harness.plane.addresses.control_plane
        pair = harness.plane.authority.issue("webhook", hosts=(address,))
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.calls += 1
                answer: dict[str, Any] = {"uid": body["request"]["uid"], "allowed": not hook.deny}
                if hook.deny:
                    answer["status"] = {"message": hook.deny}
                review = {"apiVersion": body["apiVersion"], "kind": body["kind"], "response": answer}
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(review).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer((address, 0), Handler)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pair.certificate, pair.key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://{address}:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def webhook(harness: Cluster, tmp_path: Path) -> Iterator[Webhook]:
    hook = Webhook(harness, tmp_path)
    authority = base64.b64encode(harness.plane.authority.certificate.read_bytes()).decode()
    harness.plane.apply(
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "deny"},
            "webhooks": [
                {
                    "name": "deny.migcompat.io",
                    "admissionReviewVersions": ["v1"],
                    "sideEffects": "None",
                    "failurePolicy": "Fail",
                    "clientConfig": {"url": hook.url, "caBundle": authority},
                    "rules": [
                        {
                            "apiGroups": [""],
                            "apiVersions": ["v1"],
                            "resources": ["pods"],
                            "operations": ["CREATE"],
                        }
                    ],
                    "objectSelector": {
                        "matchExpressions": [{"key": "kubevirt.io/migrationJobUID", "operator": "Exists"}]
                    },
                }
            ],
        }
    )
    yield hook
    harness.plane.kubectl("delete", "validatingwebhookconfiguration", "deny")
    hook.server.shutdown()
    hook.server.server_close()


def phase(harness: Cluster, name: str, namespace: str) -> str:
    return str(harness.plane.get("vmim", name, "-n", namespace).get("status", {}).get("phase", ""))


def phases(harness: Cluster, namespace: str) -> list[str]:
    return [m.get("status", {}).get("phase", "") for m in harness.migrations(namespace)]


def test_a_vm_runs_with_the_recorded_shape(harness: Cluster, namespace: str) -> None:
    made = harness.start_vm(
        "vm", namespace, annotations={"migcompat.io/mode": "enforce"}, labels={"app": "cad"}
    )

    node = made["status"]["nodeName"]
    (pod,) = harness.plane.get("pods", "-n", namespace)["items"]
    assert made["metadata"]["labels"] == {"app": "cad", "kubevirt.io/nodeName": node}
    assert made["status"]["activePods"] == {pod["metadata"]["uid"]: node}
    assert {c["type"]: c["status"] for c in made["status"]["conditions"]} == {
        "Ready": "True",
        "LiveMigratable": "True",
        "StorageLiveMigratable": "True",
    }
    labels, annotations = pod["metadata"]["labels"], pod["metadata"]["annotations"]
    assert labels["kubevirt.io"] == "virt-launcher"
    assert labels["kubevirt.io/created-by"] == made["metadata"]["uid"]
    assert labels["app"] == "cad"
    assert annotations["kubevirt.io/domain"] == "vm"
    assert annotations["migcompat.io/mode"] == "enforce"
    assert "kubevirt.io/latest-observed-api-version" not in annotations
    harness.wait(
        lambda: (
            harness.plane.get("pod", pod["metadata"]["name"], "-n", namespace)["metadata"]["labels"].get(
                "kubevirt.io/nodeName"
            )
            == node
        ),
        "the pod's node label follows the VMI's",
    )


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ({"gpus": ["x.io/y"]}, True),
        ({"gpus": ["x.io/y", "x.io/y"]}, False),
        ({"host_devices": ["x.io/y"]}, False),
    ],
)
def test_kubevirt_moves_one_gpu_and_no_host_device(devices: dict[str, list[str]], expected: bool) -> None:
    assert objects.is_migratable(objects.vmi("vm", "default", **devices)) is expected  # type: ignore[arg-type]


def test_a_migration_moves_the_vm_and_ends_the_source(harness: Cluster, namespace: str) -> None:
    before = harness.start_vm("vm", namespace)
    source = next(iter(before["status"]["activePods"]))

    job = harness.migrate("vm", namespace)
    harness.wait(lambda: harness.target_pods("vm", namespace), "there is a target pod")
    (target,) = harness.target_pods("vm", namespace)
    harness.wait(lambda: phase(harness, job, namespace) == "Succeeded", "it succeeds")

    meta = target["metadata"]
    after = harness.vmi("vm", namespace)
    assert after["status"]["nodeName"] != before["status"]["nodeName"]
    assert after["metadata"]["labels"]["kubevirt.io/nodeName"] == after["status"]["nodeName"]
    assert after["status"]["activePods"] == {meta["uid"]: after["status"]["nodeName"]}
    assert after["status"]["migrationState"]["completed"] is True
    assert meta["annotations"]["kubevirt.io/migrationJobName"] == job
    assert meta["labels"]["kubevirt.io/nodeName"] == before["status"]["nodeName"]
    rule = target["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    assert rule["labelSelector"]["matchLabels"] == {"kubevirt.io/created-by": after["metadata"]["uid"]}
    harness.wait(
        lambda: (
            source not in [p["metadata"]["uid"] for p in harness.plane.get("pods", "-n", namespace)["items"]]
        ),
        "the source pod is gone",
    )


def test_a_denied_target_waits_says_why_and_is_tried_again_ever_more_rarely(
    harness: Cluster, namespace: str, webhook: Webhook
) -> None:
    harness.start_vm("vm", namespace)
    webhook.deny = "no node accepts it: " + "x" * 1500

    job = harness.migrate("vm", namespace)
    harness.wait(lambda: webhook.calls >= 9, "it is tried again")

    assert webhook.calls < 14
    assert phase(harness, job, namespace) == "Pending"
    assert harness.target_pods("vm", namespace) == []
    (event, *_) = [e for e in harness.events("vm", namespace) if e["reason"] == "FailedCreate"]
    assert event["type"] == "Warning"
    assert event["message"].endswith(webhook.deny)


def test_a_touched_migration_is_tried_again_at_once(
    harness: Cluster, namespace: str, webhook: Webhook
) -> None:
    harness.start_vm("vm", namespace)
    webhook.deny = "not yet"
    job = harness.migrate("vm", namespace)
    harness.wait(lambda: webhook.calls >= 11, "the pause is long")  # 5 ms * 2^10 = 5 s until the next

    webhook.deny = ""
    touched = datetime.datetime.now(datetime.UTC)
    harness.plane.kubectl("annotate", "vmim", job, "migcompat.io/changed=1", "-n", namespace)
    harness.wait(lambda: harness.target_pods("vm", namespace), "there is a target pod", within=5)

    (target,) = harness.target_pods("vm", namespace)
    made = datetime.datetime.fromisoformat(target["metadata"]["creationTimestamp"])
    assert made - touched < datetime.timedelta(seconds=2)
    harness.wait(lambda: phase(harness, job, namespace) == "Succeeded", "it succeeds")


def test_a_denied_migration_holds_no_slot(harness: Cluster, namespace: str, webhook: Webhook) -> None:
    for name in ("a", "b", "c"):
        harness.start_vm(name, namespace, node_selector={"kubernetes.io/arch": "amd64"})
    webhook.deny = "never"
    waiting = [harness.migrate(name, namespace) for name in ("a", "b")]
    harness.wait(lambda: phases(harness, namespace) == ["Pending", "Pending"], "two wait")
    harness.wait(lambda: webhook.calls >= 20, "both are far into their pauses")

    webhook.deny = ""
    job = harness.migrate("c", namespace)

    harness.wait(lambda: phase(harness, job, namespace) == "Succeeded", "the third goes on")
    harness.wait(lambda: phase(harness, waiting[0], namespace) == "Succeeded", "so do the others", within=90)


def test_a_deleted_target_fails_its_migration(harness: Cluster, namespace: str) -> None:
    harness.start_vm("vm", namespace)
    harness.plane.kubectl("cordon", "node-1", "node-2")
    try:
        job = harness.migrate("vm", namespace)
        harness.wait(lambda: phase(harness, job, namespace) == "Scheduling", "the target is unschedulable")
        (target,) = harness.target_pods("vm", namespace)
        harness.plane.kubectl("delete", "pod", target["metadata"]["name"], "-n", namespace)
        harness.wait(lambda: phase(harness, job, namespace) == "Failed", "it fails")
    finally:
        harness.plane.kubectl("uncordon", "node-1", "node-2")


def test_a_drained_node_is_left_and_a_failed_evacuation_is_repeated(harness: Cluster, namespace: str) -> None:
    node = harness.start_vm("vm", namespace)["status"]["nodeName"]
    other = "node-2" if node == "node-1" else "node-1"
    harness.plane.kubectl("cordon", other)
    harness.drain(node)
    try:
        harness.wait(lambda: harness.target_pods("vm", namespace), "there is a target pod")
        (first,) = harness.target_pods("vm", namespace)
        assert harness.vmi("vm", namespace)["status"]["evacuationNodeName"] == node
        harness.plane.kubectl("delete", "pod", first["metadata"]["name"], "-n", namespace)
        harness.wait(lambda: len(harness.migrations(namespace)) == 2, "another migration is made")
        harness.plane.kubectl("uncordon", other)
        harness.wait(lambda: "Succeeded" in phases(harness, namespace), "it succeeds")
    finally:
        harness.end_drain(node)
        harness.plane.kubectl("uncordon", other)

    jobs = harness.migrations(namespace)
    assert all(j["metadata"]["name"].startswith("kubevirt-evacuation-") for j in jobs)
    assert jobs[0]["metadata"]["annotations"]["kubevirt.io/evacuationMigration"] == node
    assert harness.vmi("vm", namespace)["status"]["nodeName"] == other
    assert "evacuationNodeName" not in harness.vmi("vm", namespace)["status"]


def test_a_deleted_vm_takes_its_pods_along(harness: Cluster, namespace: str) -> None:
    harness.start_vm("vm", namespace)

    harness.plane.kubectl("delete", "vmi", "vm", "-n", namespace)

    harness.wait(lambda: not harness.plane.get("pods", "-n", namespace)["items"], "no pods")
