"""What the chart's tests share: rendering, an installed release, and people to act as."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml
from migcompat.api.meta import ObjectMeta
from migcompat.api.vfionode import VFIONode
from migcompat.kube.client import Client
from migcompat.kube.errors import NotFound
from migcompat.kube.kinds import VFIONODES

from tests.cluster.binaries.build import Binaries
from tests.cluster.controlplane import ClusterError, ControlPlane

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "migcompat"
CRDS = CHART / "files" / "crds"
RELEASE = "migcompat"
NAMESPACE = "migcompat-system"

Object = dict[str, Any]


def render(
    programs: Binaries, *flags: str, release: str = RELEASE, namespace: str = NAMESPACE
) -> list[Object]:
    """Objects that ``helm template`` gives; raises AssertionError with helm's words when it refuses."""
    result = subprocess.run(
        [programs.helm, "template", release, str(CHART), "--namespace", namespace, *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [item for item in yaml.safe_load_all(result.stdout) if item]


def notes(programs: Binaries, *flags: str) -> str:
    """What helm tells whoever installs the chart."""
    result = subprocess.run(
        [
            *(programs.helm, "install", RELEASE, str(CHART), "--namespace", NAMESPACE),
            *("--dry-run=client", "--output", "json", *flags),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    said: str = json.loads(result.stdout)["info"]["notes"]
    return said


def refusal(programs: Binaries, *flags: str) -> str:
    """What helm says against these values."""
    result = subprocess.run(
        [programs.helm, "template", RELEASE, str(CHART), *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode != 0, "helm accepted the values"
    return result.stderr


def named(objects: list[Object], kind: str, name: str = "") -> Object:
    """The one object of *kind* (and *name*)."""
    found = [o for o in objects if o["kind"] == kind and name in ("", o["metadata"]["name"])]
    assert len(found) == 1, f"{kind} {name}: {len(found)} of them"
    return found[0]


def pod_specs(objects: list[Object]) -> dict[str, Object]:
    """Pod specs of all workloads, by component."""
    return {
        o["metadata"]["labels"]["app.kubernetes.io/component"]: o["spec"]["template"]["spec"]
        for o in objects
        if o["kind"] in ("DaemonSet", "Deployment")
    }


class Installed:
    """A control plane with the chart installed."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane

    def refused(self, *arguments: str, stdin: str = "") -> str:
        """What kubectl says when the API server refuses."""
        try:
            output = self.plane.kubectl(*arguments, stdin=stdin)
        except ClusterError as error:
            return str(error)
        raise AssertionError(f"kubectl {' '.join(arguments)} was not refused: {output}")

    def await_policies(self) -> None:
        """The API server takes a moment to put new ValidatingAdmissionPolicies in force."""
        body = '{"apiVersion": "migcompat.io/v1alpha1", "kind": "VFIONode", "metadata": {"name": "probe"}}'
        deadline = time.monotonic() + 30
        while True:
            try:
                self.plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=body)
            except ClusterError:
                return
            assert time.monotonic() < deadline, "the policies are not in force"
            time.sleep(0.1)

    @functools.cache  # noqa: B019 - lives as long as the session's cluster
    def agent(self, node: str) -> str:
        """Kubeconfig with a token of the agent's service account, bound to a pod on *node* (made here)."""
        account = f"{RELEASE}-device-plugin"
        pod = f"agent-{node}"
        self.plane.apply(
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": {"zone": "a"}}},
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": pod, "namespace": NAMESPACE},
                "spec": {
                    "nodeName": node,
                    "serviceAccountName": account,
                    "containers": [{"name": "agent", "image": "migcompat"}],
                },
            },
        )
        token = self.plane.kubectl(
            *("create", "token", account, "-n", NAMESPACE),
            *("--bound-object-kind=Pod", f"--bound-object-name={pod}"),
        ).strip()
        return self._kubeconfig(pod, token)

    def unbound_agent(self) -> str:
        """Kubeconfig with a token of the agent's service account that is bound to nothing."""
        token = self.plane.kubectl("create", "token", f"{RELEASE}-device-plugin", "-n", NAMESPACE).strip()
        return self._kubeconfig("agent-unbound", token)

    def publish(self, node: str, status: Mapping[str, Any], by: str = "") -> None:
        """Makes or changes a VFIONode as the agent of the node *by* (empty: *node*) does. Raises ApiError."""
        asyncio.run(self._publish(self.agent(by or node), node, status))

    @staticmethod
    async def _publish(kubeconfig: str, node: str, status: Mapping[str, Any]) -> None:
        async with Client.from_environment(kubeconfig) as client:
            try:
                item = await client.get(VFIONODES, node)
            except NotFound:
                item = await client.create(VFIONODES, VFIONode(ObjectMeta(name=node)))
            whole = {"metadata": msgspec.to_builtins(item.metadata), "status": status}
            await client.replace(VFIONODES, whole, node, subresource="status")

    def _kubeconfig(self, name: str, token: str) -> str:
        path = self.plane.directory / f"{name}.kubeconfig"
        path.write_text(yaml.safe_dump(self.plane.kubeconfig_of({"token": token})))
        return str(path)
