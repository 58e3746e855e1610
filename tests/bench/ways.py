"""The real extender as a process, and how kube-apiserver and kube-scheduler come to call it."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path

from migcompat.api import names

from tests.bench import product
from tests.cluster.api import Object
from tests.cluster.controlplane import ControlPlane
from tests.cluster.processes import Process

WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
WEBHOOK = "migcompat"


class Ways:
    """One extender beside a control plane, with certificates of the control plane's authority."""

    def __init__(self, plane: ControlPlane, scratch: Path) -> None:
        self._plane = plane
        self._scratch = scratch
        address = plane.addresses.control_plane
        self._client = plane.authority.issue("bench-kube-scheduler")
        self._serving = plane.authority.issue("bench-extender", hosts=(address,))
        self._url = f"https://{address}:{plane.addresses.free_port(address)}"
        self._health = f"{address}:{plane.addresses.free_port(address)}"
        self._process: Process | None = None

    def start(self) -> None:
        """Start the extender and wait until it is ready. Raises BenchError."""
        self._process = Process(
            "migcompat-extender",
            [
                str(product.program("migcompat-extender")),
                f"--bind={self._url.removeprefix('https://')}",
                f"--health-bind={self._health}",
                f"--tls-cert={self._serving.certificate}",
                f"--tls-key={self._serving.key}",
                f"--client-ca={self._plane.authority.certificate}",
                f"--kubeconfig={self._plane.kubeconfig}",
            ],
            log=self._scratch / "extender.log",
            environment=dict(os.environ),
        )
        product.await_ready(self._process, f"http://{self._health}/readyz")

    @property
    def pid(self) -> int:
        """Of the extender's process, which was started."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.stop()

    def extender(self, resources: Sequence[str]) -> Object:
        """The element of kube-scheduler's configuration that docs/install.md asks for."""
        return {
            "urlPrefix": self._url,
            "filterVerb": "filter",
            "prioritizeVerb": "prioritize",
            "weight": 1,
            "enableHTTPS": True,
            "nodeCacheCapable": True,
            "ignorable": True,
            "httpTimeout": "5s",
            "tlsConfig": {
                "caFile": str(self._plane.authority.certificate),
                "certFile": str(self._client.certificate),
                "keyFile": str(self._client.key),
            },
            "managedResources": [{"name": name, "ignoredByScheduler": False} for name in resources],
        }

    def webhook(self) -> Object:
        """The registration as the chart makes it, but failing closed: a call that fails is to be seen."""
        authority = self._plane.authority.certificate.read_bytes()
        pods = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
        hook = {
            "name": "targets.migcompat.io",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "timeoutSeconds": 5,
            "reinvocationPolicy": "Never",
            "rules": [{**pods, "scope": "Namespaced"}],
            "objectSelector": {
                "matchLabels": {names.LAUNCHER_LABEL: names.LAUNCHER_VALUE},
                "matchExpressions": [{"key": names.MIGRATION_UID, "operator": "Exists"}],
            },
            "clientConfig": {
                "url": f"{self._url}/mutate",
                "caBundle": base64.b64encode(authority).decode(),
            },
        }
        kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration"}
        return {**kind, "metadata": {"name": WEBHOOK}, "webhooks": [hook]}
