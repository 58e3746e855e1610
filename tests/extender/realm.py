"""A real control plane, made-up nodes, the extender as a process, the webhook as the chart registers it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

from migcompat.api import names
from migcompat.api.vfionode import VFIONode

from tests.chart.support import CRDS, ROOT, render
from tests.cluster.api import Api, ApiError, Object
from tests.cluster.controlplane import ControlPlane
from tests.cluster.processes import Process
from tests.extender.world import built
from tests.support.fleets import BOOT, POOL, node

T = TypeVar("T")

NAMESPACE = "tenant-a"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
VMIS = f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachineinstances"
MIGRATIONS = f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}/virtualmachineinstancemigrations"
VFIONODES = "/apis/migcompat.io/v1alpha1/vfionodes"
WEBHOOK = "targets.migcompat.io"
DEADLINE = 120.0


async def eventually(
    check: Callable[[], Awaitable[T]], what: str, *, until: Callable[[T], object] = bool
) -> T:
    """The first result of *check* of which *until* is true; fails after two minutes."""
    deadline = time.monotonic() + DEADLINE
    while not until(found := await check()):
        assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {what}; last: {found!r}"
        await asyncio.sleep(0.1)
    return found


class Realm:
    """What the tests of one module share. Close it with :meth:`stop`."""

    def __init__(self, plane: ControlPlane, *flags: str) -> None:
        self.plane = plane
        for file in (ROOT / "tests/cluster/kubevirt/crds.yaml", *CRDS.glob("*.yaml")):
            plane.kubectl("apply", "--server-side", "-f", str(file))
        plane.await_kinds()
        plane.kubectl("create", "namespace", NAMESPACE)
        address = plane.addresses.control_plane
        port, health = plane.addresses.free_port(address), plane.addresses.free_port(address)
        pair = plane.authority.issue("extender", hosts=(address,))
        self._health = f"http://{address}:{health}"
        self.extender = self.process(
            "extender",
            f"--bind={address}:{port}",
            f"--health-bind={address}:{health}",
            f"--tls-cert={pair.certificate}",
            f"--tls-key={pair.key}",
            *flags,
        )
        self.await_page(f"{self._health}/readyz")
        rendered = render(
            plane.binaries,
            *("--set", f"extender.url=https://{address}:{port},webhook.failurePolicy=Fail"),
            *(
                "--set",
                "tls.existingSecret=none",
                "--set-file",
                f"tls.caBundle={plane.authority.certificate}",
            ),
        )
        (hook,) = [item for item in rendered if item["kind"] == "MutatingWebhookConfiguration"]
        plane.apply(hook)

    def process(self, component: str, *flags: str) -> Process:
        """A process of the product, with the administrator's rights."""
        return Process(
            component,
            [str(Path(sys.executable).with_name(f"migcompat-{component}")), *flags],
            log=self.plane.directory / "logs" / f"{component}.log",
            environment={**os.environ, "KUBECONFIG": str(self.plane.kubeconfig)},
        )

    def await_page(self, url: str) -> None:
        """Until *url* answers 200."""
        deadline = time.monotonic() + DEADLINE
        while not _serves(url):
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.1)

    def stop(self) -> None:
        """End the extender."""
        self.extender.stop()

    def reviews(self) -> tuple[int, dict[str, int], int]:
        """Reviews that kube-apiserver sent, outcomes that the extender counted, its answers to reviews."""
        sent = _samples(
            self.plane.kubectl("get", "--raw", "/metrics"),
            "apiserver_admission_webhook_admission_duration_seconds_count",
        )
        with urllib.request.urlopen(f"{self._health}/metrics", timeout=5) as answer:
            told = answer.read().decode()
        outcomes = _samples(told, "migcompat_extender_admissions_total")
        answers = _samples(told, "migcompat_extender_responses_total")
        return (
            sum(count for labels, count in sent if f'name="{WEBHOOK}"' in labels),
            {labels.split('"')[1]: count for labels, count in outcomes if count},
            sum(count for labels, count in answers if 'endpoint="mutate"' in labels),
        )


def _serves(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def _samples(text: str, metric: str) -> list[tuple[str, int]]:
    found = re.findall(rf"^{metric}{{(.*)}} ([0-9.e+]+)$", text, re.MULTILINE)
    return [(labels, int(float(value))) for labels, value in found]


async def put_node(
    api: Api,
    name: str,
    *,
    labels: Mapping[str, str] | None = None,
    has: Mapping[str, str] | None = None,
    cordoned: bool = False,
) -> None:
    """A Node whose kubelet offers *has* besides room for everything."""
    body = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": dict(labels or {})},
        "spec": {"unschedulable": cordoned},
    }
    await api.create("/api/v1/nodes", body)
    room = {"cpu": "1000", "memory": "1000Gi", "pods": "10000", **(has or {})}
    status = {**built(node(name))["status"], "capacity": room, "allocatable": room}
    status["conditions"] = [{"type": "Ready", "status": "True"}]
    status["nodeInfo"] = {**dict.fromkeys(_NODE_INFO, ""), "bootID": BOOT}
    await api.patch(f"/api/v1/nodes/{name}/status", {"status": status})


_NODE_INFO = (
    *("machineID", "systemUUID", "kernelVersion", "osImage", "containerRuntimeVersion", "kubeletVersion"),
    *("kubeProxyVersion", "operatingSystem", "architecture"),
)


async def publish(api: Api, item: VFIONode) -> None:
    """A node's VFIONode as its agent writes it."""
    path, plain = f"{VFIONODES}/{item.metadata.name}", built(item)
    if await api.find(path) is None:
        head = {"apiVersion": names.API_VERSION, "kind": "VFIONode", "metadata": plain["metadata"]}
        await api.create(VFIONODES, head)
    now = await api.get(path)
    await api.request("PUT", f"{path}/status", {**now, "status": plain["status"]})


async def run_vm(api: Api, name: str, source: str) -> str:
    """A running VMI with one device, and its launcher pod on *source*; its UID."""
    vmi = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": name},
        "spec": {"domain": {"devices": {"gpus": [{"name": "gpu1", "deviceName": POOL}]}}},
        "status": {"phase": "Running", "nodeName": source},
    }
    uid: str = (await api.create(VMIS, vmi))["metadata"]["uid"]
    launcher = launcher_pod(name, uid, source)
    launcher["metadata"]["name"] = launcher_of(name)
    launcher["spec"]["nodeName"] = source
    await api.create(PODS, launcher)
    return uid


def launcher_of(vm: str) -> str:
    """The name of the pod that the VM runs in."""
    return f"virt-launcher-{vm}-src"


def launcher_pod(vm: str, uid: str, source: str, *, migration: str = "") -> Object:
    """A launcher pod without a name; of a target when *migration*, a UID, is given."""
    labels = {names.LAUNCHER_LABEL: names.LAUNCHER_VALUE, names.CREATED_BY: uid, names.NODE_NAME: source}
    if migration:
        labels[names.MIGRATION_UID] = migration
    meta = {
        "generateName": f"virt-launcher-{vm}-",
        "labels": labels,
        "annotations": {names.VMI_NAME: vm},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod_spec()}


def pod_spec(**more: str) -> Object:
    """A container that asks for one device and for *more*."""
    limits = {POOL: "1", **more}
    return {
        "containers": [{"name": "compute", "image": "x", "resources": {"limits": limits}}],
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
    }


async def refusal(api: Api, pod: Object) -> str:
    """Why the API server refuses *pod*, tried without effect; empty when it would take it."""
    try:
        await api.request("POST", PODS, pod, params={"dryRun": "All"})
    except ApiError as error:
        return error.message
    return ""
