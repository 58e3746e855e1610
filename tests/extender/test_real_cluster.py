"""With the real kube-apiserver and kube-scheduler: what they make of our answers."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from migcompat.api import names

from tests.cluster.binaries import build
from tests.cluster.controlplane import ClusterError, ControlPlane
from tests.cluster.processes import Process
from tests.extender.certificates import Authority
from tests.extender.test_process import free_port
from tests.extender.world import built, required_terms
from tests.support.fleets import POOL, declared, node, vfionode

ROOT = Path(__file__).parents[2]
DEADLINE = 60.0
SOURCE_POD = "virt-launcher-vm-a-src"
OTHERS = {"d": ("tenant-b", "virt-launcher-other")}


def eventually(what: Any, *, until: Any) -> Any:
    deadline = time.monotonic() + DEADLINE
    while not until(last := what()):
        assert time.monotonic() < deadline, f"still {last!r}"
        time.sleep(0.1)
    return last


class Site:
    """A control plane with four nodes, the VM on node-1, and the extender as a process.

    n2 accepts the VM's device, n3 and n4 are a version behind. *flags* are the extender's.
    """

    def __init__(self, plane: ControlPlane, folder: Path, *flags: str) -> None:
        self.plane = plane
        self._count = 0
        crds = [
            ROOT / "tests/cluster/kubevirt/crds.yaml",
            *(ROOT / "charts/migcompat/files/crds").glob("*.yaml"),
        ]
        for file in crds:
            plane.kubectl("apply", "--server-side", "-f", str(file))
        plane.await_kinds()
        plane.kubectl("create", "namespace", "tenant-a")
        eventually(
            lambda: plane.kubectl("get", "serviceaccounts", "-n", "tenant-a", "-o", "name"),
            until=lambda said: "default" in said,
        )
        for name in ("node-1", "n2", "n3", "n4"):
            plane.apply({"apiVersion": "v1", "kind": "Node", **built(node(name))})
            capacity = {POOL: "2", "cpu": "8", "memory": "16Gi", "pods": "100"}
            info = built(node(name))["status"]["nodeInfo"]
            self.patch(
                "node", name, {"status": {"capacity": capacity, "allocatable": capacity, "nodeInfo": info}}
            )
        self.publish("n2", "1.1.0")
        self.publish("n3", "1.0.0")
        self.publish("n4", "1.0.0")
        self.publish("node-1", "1.1.0", {"d": ("tenant-a", SOURCE_POD)})
        gpus = [{"name": "gpu1", "deviceName": POOL}]
        vmi = {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm-a", "namespace": "tenant-a"},
            "spec": {"domain": {"devices": {"gpus": gpus}}},
            "status": {"phase": "Running", "nodeName": "node-1"},
        }
        plane.apply(vmi)
        self.uid = plane.get("vmi", "-n", "tenant-a", "vm-a")["metadata"]["uid"]
        plane.apply(self.pod(SOURCE_POD, node_name="node-1"))
        self.port, self.health = free_port(), free_port()
        self.authority = Authority(folder, "ca")
        cert, key = self.authority.issue("server")
        self.client = self.authority.issue("kube-scheduler")
        self.process = Process(
            "extender",
            [
                sys.executable,
                "-c",
                "from migcompat_extender.cli import main; main()",
                f"--bind=127.0.0.1:{self.port}",
                f"--health-bind=127.0.0.1:{self.health}",
                f"--tls-cert={cert}",
                f"--tls-key={key}",
                f"--client-ca={self.authority.file}",
                f"--kubeconfig={plane.kubeconfig}",
                *flags,
            ],
            log=folder / "extender.log",
            environment=dict(os.environ),
        )
        self.await_ready()

    def await_ready(self) -> None:
        """Until the extender has read the cluster."""
        eventually(self._ready, until=lambda said: said == "ok\n")

    def _ready(self) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/readyz", timeout=5) as answer:
                text: str = answer.read().decode()
                return text
        except OSError as error:
            return str(error)

    def patch(self, kind: str, name: str, patch: Any) -> None:
        self.plane.kubectl(
            "patch", kind, name, "--subresource=status", "--type=merge", "-p", json.dumps(patch)
        )

    def publish(self, name: str, version: str, allocated: Any = None) -> None:
        """The VFIONode of a node with one device."""
        item = built(vfionode(name, {"d": declared(version)}, allocated=allocated))
        head = {"apiVersion": names.API_VERSION, "kind": "VFIONode", "metadata": {"name": name}}
        self.plane.apply(head)
        self.patch("vfionode", name, {"status": {"profiles": None, "acceptances": None}})
        self.patch("vfionode", name, {"status": item["status"]})

    def pod(self, name: str, *, node_name: str = "", target: bool = False) -> dict[str, Any]:
        """A launcher pod of the VM; a target's affinity is as a real virt-controller makes it."""
        labels = {
            names.LAUNCHER_LABEL: names.LAUNCHER_VALUE,
            names.CREATED_BY: self.uid,
            names.NODE_NAME: "node-1",
        }
        spec: dict[str, Any] = {
            "containers": [{"name": "compute", "image": "x", "resources": {"limits": {POOL: "1"}}}],
            "terminationGracePeriodSeconds": 0,
        }
        if node_name:
            spec["nodeName"] = node_name
        if target:
            labels[names.MIGRATION_UID] = f"migration-{name}"
            term = {
                "matchExpressions": [
                    {"key": "node-labeller.kubevirt.io/obsolete-host-model", "operator": "DoesNotExist"}
                ]
            }
            required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
            spec["affinity"] = {"nodeAffinity": required}
        meta = {
            "name": name,
            "namespace": "tenant-a",
            "labels": labels,
            "annotations": {names.VMI_NAME: "vm-a", names.SOURCE: "forged"},
        }
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}

    def create_target(self, *flags: str) -> dict[str, Any]:
        """A new target pod as kube-apiserver stored it."""
        self._count += 1
        pod = self.pod(f"virt-launcher-vm-a-t{self._count}", target=True)
        said = self.plane.kubectl("create", "-f", "-", "-o", "json", *flags, stdin=yaml.safe_dump(pod))
        stored: dict[str, Any] = json.loads(said)
        return stored

    def placed(self, pod: dict[str, Any]) -> str:
        """The node that the pod is bound to, or what kube-scheduler says of it; then the pod is removed."""
        name = pod["metadata"]["name"]

        def outcome() -> str:
            now = self.plane.get("pod", "-n", "tenant-a", name)
            said = [condition.get("message", "") for condition in now["status"].get("conditions", [])]
            text: str = now["spec"].get("nodeName") or " ".join(said)
            return text

        said: str = eventually(outcome, until=bool)
        self.plane.kubectl("delete", "pod", "-n", "tenant-a", name, "--force", "--grace-period=0")
        return said

    def webhook(self, *, on: bool) -> None:
        """Register the webhook, or take it away."""
        if not on:
            self.plane.kubectl("delete", "mutatingwebhookconfiguration", "migcompat", "--ignore-not-found")
            return
        hook = {
            "name": "targets.migcompat.io",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "rules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
            ],
            "objectSelector": {"matchLabels": {names.LAUNCHER_LABEL: names.LAUNCHER_VALUE}},
            "clientConfig": {
                "url": f"https://127.0.0.1:{self.port}/mutate",
                "caBundle": base64.b64encode(self.authority.file.read_bytes()).decode(),
            },
        }
        kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration"}
        self.plane.apply({**kind, "metadata": {"name": "migcompat"}, "webhooks": [hook]})

    def extender(self, *, by_name: bool) -> dict[str, Any]:
        """The element of kube-scheduler's configuration."""
        return {
            "urlPrefix": f"https://127.0.0.1:{self.port}",
            "filterVerb": "filter",
            "prioritizeVerb": "prioritize",
            "weight": 1,
            "enableHTTPS": True,
            "tlsConfig": {
                "caFile": str(self.authority.file),
                "certFile": str(self.client[0]),
                "keyFile": str(self.client[1]),
            },
            "nodeCacheCapable": by_name,
            "managedResources": [{"name": POOL}],
        }

    def denied(self) -> str:
        """What kube-apiserver says when it refuses a target; fails when it does not."""
        with pytest.raises(ClusterError) as refused:
            self.create_target("--dry-run=server")
        return str(refused.value)


@pytest.fixture(scope="module")
def site(binaries: build.Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ControlPlane(binaries) as plane:
        made = Site(plane, tmp_path_factory.mktemp("extender"))
        try:
            yield made
        finally:
            made.process.stop()


@pytest.mark.cluster
def test_webhook_steers_and_denies(site: Site) -> None:
    site.webhook(on=True)
    pod = eventually(
        lambda: site.create_target("--dry-run=server"),
        until=lambda made: (
            "affinity" in made["spec"] and made["metadata"]["annotations"][names.SOURCE] != "forged"
        ),
    )
    (term,) = required_terms(pod)
    assert term["matchFields"] == [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]
    assert term["matchExpressions"][0]["operator"] == "DoesNotExist", "virt-controller's own term is kept"
    assert site.placed(site.create_target()) == "n2"
    site.publish("n2", "1.1.0", OTHERS)
    text = eventually(site.denied, until=lambda said: "none of them has them free" in said)
    assert 'admission webhook "targets.migcompat.io" denied the request: migcompat: VM tenant-a/vm-a' in text
    assert "1 of 3 nodes accept its device(s)" in text
    site.publish("n2", "1.0.0")
    text = eventually(site.denied, until=lambda said: "0 of 3 nodes accept" in said)
    assert "3 VersionMinorOlder (" in text
    site.publish("n2", "1.1.0")
    eventually(lambda: _admitted(site), until=bool)


def _admitted(site: Site) -> bool:
    try:
        return bool(site.create_target("--dry-run=server"))
    except ClusterError:
        return False


@pytest.mark.cluster
def test_explain_as_kubectl_s_plugin(site: Site, binaries: build.Binaries) -> None:
    for name, version in (("n2", "1.1.0"), ("n3", "1.0.0")):
        site.publish(name, version)

    def explain(*arguments: str) -> tuple[int, str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        ended = subprocess.run(
            [binaries.kubectl, "migcompat", "explain", *arguments],
            env={**os.environ, "PATH": path, "KUBECONFIG": str(site.plane.kubeconfig)},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        return ended.returncode, ended.stdout, ended.stderr

    code, out, _ = explain("tenant-a/vm-a", "-o", "json")
    assert code == 0
    found = {view["node"]: view["reason"] for view in json.loads(out)["nodes"]}
    assert found == {"n2": "Compatible", "n3": "VersionMinorOlder", "n4": "VersionMinorOlder"}
    code, out, _ = explain("-n", "tenant-a", "vm-a", "n3")
    assert code == 1
    assert "§3 stage 5, rule V" in out
    code, _, err = explain("tenant-a/vm-x")
    assert code == 2
    assert "there is no VirtualMachineInstance tenant-a/vm-x" in err


@pytest.mark.cluster
@pytest.mark.parametrize("by_name", [True, False])
def test_extender_alone(site: Site, by_name: bool) -> None:
    site.webhook(on=False)
    site.plane.restart_scheduler([site.extender(by_name=by_name)])
    try:
        site.publish("n2", "1.1.0")
        eventually(lambda: site.placed(site.create_target()), until=lambda said: said == "n2")
        site.publish("n2", "1.0.0")
        text = eventually(lambda: site.placed(site.create_target()), until=lambda said: said != "n2")
        assert text.startswith("0/4 nodes are available: ")
        assert "3 VersionMinorOlder: software_version" in text, "kube-scheduler counts equal texts"
        assert "Preemption is not helpful for scheduling" in text
    finally:
        site.plane.restart_scheduler()
