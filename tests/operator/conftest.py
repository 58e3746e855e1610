"""A real API server with our CRDs and small ones of KubeVirt, and the operator as a process beside it."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import pytest
import yaml
from migcompat.api import names
from migcompat.api.cluster import VirtualMachineInstance
from migcompat.api.event import Event
from migcompat.api.vfionode import VFIONode
from migcompat.kube.client import Client
from migcompat.kube.kinds import EVENTS, NODES, PODS, VFIONODES, VMIMS, VMIS

from tests.cluster.processes import Process
from tests.support.fleets import BOOT, POOL

if TYPE_CHECKING:
    from tests.cluster.binaries import build
    from tests.cluster.controlplane import ControlPlane

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "charts" / "migcompat" / "files" / "crds"
KUBEVIRT_CRDS = ROOT / "tests" / "cluster" / "kubevirt" / "crds.yaml"
DEADLINE = 60.0
"""Seconds for anything to happen; generous, because the machine may be busy."""


@pytest.fixture(scope="module")
def plane(binaries: build.Binaries) -> Iterator[ControlPlane]:
    """A control plane of this module's own: other tests install the chart, whose CRDs are these."""
    from tests.cluster.controlplane import ControlPlane

    with ControlPlane(binaries) as running:
        for path in sorted(CRDS.glob("*.yaml")):
            running.kubectl("apply", "-f", str(path))
        running.await_kinds()
        running.kubectl("create", "namespace", "tenant-a")
        yield running


async def eventually(check: Callable[[], Awaitable[T | None]], what: str | Callable[[], str]) -> T:
    """The first result of *check* that is neither None nor False; fails after the deadline."""
    deadline = time.monotonic() + DEADLINE
    while True:
        found = await check()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            told = what if isinstance(what, str) else what()
            pytest.fail(f"did not happen within {DEADLINE:.0f} s: {told}")
        await asyncio.sleep(0.1)


class Operator:
    """The operator's process."""

    def __init__(self, plane: ControlPlane, log: Path) -> None:
        address = plane.addresses.control_plane
        self._bind = f"{address}:{plane.addresses.free_port(address)}"
        self._plane = plane
        self.log = log
        self._process: Process | None = None

    async def start(self, *arguments: str) -> None:
        """Start it and wait until it is ready."""
        self._process = Process(
            "operator",
            [
                str(Path(sys.executable).with_name("migcompat-operator")),
                f"--health-bind={self._bind}",
                "--count-delay=0.5",
                *arguments,
            ],
            log=self.log,
            environment={"KUBECONFIG": str(self._plane.kubeconfig), "PATH": "/usr/bin:/bin"},
        )

        async def ready() -> bool:
            assert self._process is not None
            if self._process.exit_code() is not None:
                pytest.fail(f"the operator ended:\n{self.log.read_text()}")
            try:
                return await asyncio.to_thread(self.get, "/readyz") == "ok\n"
            except OSError:
                return False

        await eventually(ready, lambda: f"operator ready; its log:\n{self.log.read_text()}")

    def get(self, path: str) -> str:
        """The body of a page of its health server. Raises OSError (HTTPError for another status than 200)."""
        with urllib.request.urlopen(f"http://{self._bind}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def written(self) -> float:
        """How many writes it has counted."""
        prefix = "migcompat_operator_writes_total{"
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(prefix)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    @property
    def runs(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.exit_code() is None

    def stop(self) -> int | None:
        """End it by SIGTERM; its exit code."""
        if self._process is None:
            return None
        self._process.stop(15)
        code = self._process.exit_code()
        self._process = None
        return code

    def kill(self) -> None:
        """End it without a chance to say good-bye."""
        if self._process is not None:
            self._process.stop(0)
            self._process = None


@pytest.fixture
async def client(plane: ControlPlane) -> AsyncIterator[Client]:
    """The API server, as administrator."""
    async with Client.from_environment(str(plane.kubeconfig), writes_per_second=1000) as opened:
        yield opened


@pytest.fixture
async def operator(plane: ControlPlane, tmp_path: Path, client: Client) -> AsyncIterator[Operator]:
    """An operator that a test starts; stopped, and all objects that tests make removed, at the end."""
    made = Operator(plane, tmp_path / "operator.log")
    made.log.touch()
    try:
        yield made
    finally:
        made.kill()
        plane.kubectl("delete", "migrationcompat", "--all", "-A", "--wait=false")
        plane.kubectl("delete", "compatpolicy,vfionode,node", "--all", "--wait=false")
        plane.kubectl("delete", "event", "--all", "-n", "tenant-a", "--wait=false")
        plane.kubectl("delete", "pod", "--all", "-A", "--force", "--grace-period=0", "--wait=false")
        for crd in ("virtualmachineinstances", "virtualmachineinstancemigrations"):
            if crd in plane.kubectl("get", "crd", "-o", "name"):
                plane.kubectl("delete", f"{crd}.kubevirt.io", "--all", "-A")


class World:
    """Makes the objects that others (kubelet, agents, KubeVirt) would make."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._count = itertools.count()

    async def node(self, name: str, published: VFIONode) -> None:
        """A Node and its VFIONode."""
        body: dict[str, Any] = {"metadata": {"name": name}, "status": {"nodeInfo": _node_info(BOOT)}}
        await self.client.create(NODES, body)
        await self.client.create(VFIONODES, published)
        await self.publish(published)

    async def publish(self, item: VFIONode) -> None:
        """The agent's new facts."""
        current = await self.client.get(VFIONODES, item.metadata.name)
        item = msgspec.structs.replace(item, metadata=current.metadata)
        await self.client.replace(VFIONODES, item, item.metadata.name, subresource="status")

    async def vmi(self, item: VirtualMachineInstance) -> VirtualMachineInstance:
        """A VMI."""
        return await self.client.create(VMIS, item, item.metadata.namespace)

    async def pod(
        self, vmi: VirtualMachineInstance, name: str, node: str = "", migration_uid: str = ""
    ) -> None:
        """A launcher pod of *vmi*; a migration target when *migration_uid* is given."""
        labels = {
            names.LAUNCHER_LABEL: names.LAUNCHER_VALUE,
            names.CREATED_BY: vmi.metadata.uid,
            names.NODE_NAME: vmi.status.node_name,
        }
        if migration_uid:
            labels[names.MIGRATION_UID] = migration_uid
        limits = {POOL: "1"}
        container = {
            "name": "compute",
            "image": "localhost/virt-launcher:x",
            "resources": {"limits": limits, "requests": limits},
        }
        meta = {"name": name, "labels": labels, "annotations": {names.VMI_NAME: vmi.metadata.name}}
        spec: dict[str, Any] = {"containers": [container], "automountServiceAccountToken": False}
        if node:
            spec["nodeName"] = node
        body = {"metadata": meta, "spec": spec}
        await self.client.create(PODS, body, vmi.metadata.namespace)

    async def migration(self, vmi: VirtualMachineInstance, name: str, phase: str = "Pending") -> str:
        """A waiting migration of *vmi*; its UID."""
        body = {
            "metadata": {"name": name, "labels": {"kubevirt.io/vmi-name": vmi.metadata.name}},
            "spec": {"vmiName": vmi.metadata.name},
        }
        made = await self.client.create(VMIMS, body, vmi.metadata.namespace)
        status = {"status": {"phase": phase}}
        await self.client.patch(VMIMS, name, status, vmi.metadata.namespace, subresource="status")
        return made.metadata.uid

    async def row(self, plane: ControlPlane, name: str) -> list[str]:
        """The columns of ``kubectl get migrationcompat`` for one object, without its age."""
        command = f"get migrationcompat -n tenant-a {name} --no-headers --ignore-not-found"
        out = await asyncio.to_thread(plane.kubectl, *command.split())
        return out.split()[:-1]

    async def becomes(self, plane: ControlPlane, name: str, *columns: str) -> None:
        """Wait until the object prints like this."""

        seen: list[str] = []

        async def check() -> bool:
            seen[:] = await self.row(plane, name)
            return seen == [name, *columns]

        await eventually(check, lambda: f"{name} prints {columns}, not {seen}")

    async def events(self, about: str, reason: str) -> list[Event]:
        """Events about an object (by name) with a reason."""
        fields = f"involvedObject.name={about},reason={reason}"
        return (await self.client.list(EVENTS, "tenant-a", fields=fields)).items

    async def event(self, about: str, reason: str) -> Event:
        """The first such event, when it is there."""

        async def check() -> Event | None:
            found = await self.events(about, reason)
            return found[0] if found else None

        return await eventually(check, f"event {reason} about {about}")


@pytest.fixture
def world(client: Client) -> World:
    """What makes objects."""
    return World(client)


def install_kubevirt(plane: ControlPlane, *, loose: bool = False) -> None:
    """KubeVirt's kinds; *loose*: of a version whose VMIs may hold anything."""
    kinds = list(yaml.safe_load_all(KUBEVIRT_CRDS.read_text()))
    if loose:
        for kind in kinds:
            schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
            kind["spec"]["versions"][0]["schema"] = {"openAPIV3Schema": schema}
    plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(kinds))
    plane.await_kinds()


def _node_info(boot_id: str) -> dict[str, str]:
    keys = (
        "machineID systemUUID kernelVersion osImage containerRuntimeVersion kubeletVersion kubeProxyVersion "
        "operatingSystem architecture"
    )
    return {**dict.fromkeys(keys.split(), ""), "bootID": boot_id}
