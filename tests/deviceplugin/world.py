"""One node for the agent's tests: a sysfs that changes, a kubelet, an API server, and the agent itself."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from migcompat.api.cluster import Pod, Workload
from migcompat.api.meta import ObjectMeta
from migcompat.api.vfionode import Mode, VFIONode
from migcompat.engine.declaration import Declaration
from migcompat.kube.client import Client
from migcompat.kube.kinds import DAEMONSETS, NODES, PODS, VFIONODES, VMIS
from migcompat.sysfs.uevents import Listener, tell_of
from migcompat_deviceplugin.app import Agent, Settings
from migcompat_deviceplugin.devnodes import DevDir
from migcompat_deviceplugin.manager import PREFIX
from migcompat_deviceplugin.probes import Whom

from tests.deviceplugin.fake_api import FakeApi, running_api
from tests.support import fleets
from tests.support.fabricate import add_device_nodes, add_function, add_mdev, make_sysfs
from tests.support.kubelet import DeviceManager
from tests.support.sysfs import set_migration
from tests.support.uevents import FakeUevents
from tests.support.vfio import STOP_COPY, FakeVfio, Plugged

POOL = fleets.POOL
NODE = "node-1"
SOURCE = "node-0"
PARENT = "pci0000:00/0000:00:04.0"
NAMESPACE = "migcompat-system"
DAEMONSET = "agents"
CONTAINER = "compute"
HOST_DEV = Path("/node/dev")
"""Where the device nodes lie for the container runtime: not where the agent sees them."""


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


async def eventually(condition: Callable[[], object], within: float = 20.0) -> None:
    """Wait until *condition* holds."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.02)


class World:
    """``uevents``: what the kernel tells the agent that runs. ``vfio``: what its devices answer. ``config``:
    the agent's configuration file, None for none."""

    def __init__(self, directory: Path, client: Client, api: FakeApi, kubelet: DeviceManager) -> None:
        self.directory = directory
        self.client = client
        self.api = api
        self.kubelet = kubelet
        self.sysfs = make_sysfs(directory)
        self.dev = directory / "dev"
        (self.dev / "vfio/devices").mkdir(parents=True)
        add_device_nodes(self.dev, "vfio/vfio")
        self.boot_id = directory / "boot_id"
        self.boot_id.write_text(f"{fleets.BOOT}\n")
        self.uevents = FakeUevents()
        self.vfio = FakeVfio(self.dev)
        self.config: Path | None = None
        for name in (NODE, SOURCE):
            api.put(NODES, fleets.node(name))
        api.put(DAEMONSETS, Workload(ObjectMeta(name=DAEMONSET, namespace=NAMESPACE)))

    # -- devices ------------------------------------------------------------------------------------------

    def add(
        self,
        number: int,
        version: str = "1.0.0",
        *,
        type_: str = fleets.TYPE,
        entries: Sequence[Mapping[str, str]] | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Path:
        """An mdev that accepts its own version, unless *entries* say otherwise; returns its directory."""
        add_device_nodes(self.dev, f"vfio/{100 + number}")
        device = add_mdev(
            self.sysfs,
            PARENT,
            uuid(number),
            type_id=type_,
            driver="nvidia",
            group=100 + number,
            vfio_dev=f"vfio{number}",
        )
        own = {
            "software_version": version,
            "device_api": "vfio-pci",
            "type": type_,
            **(attributes or {}),
        }
        set_migration(device, own, [own] if entries is None else entries)
        return device

    def add_function(self, path: str, *, group: int, **options: Any) -> Path:
        """A PCI function at ``devices/<path>`` (options as of `fabricate.add_function`), and its node."""
        add_device_nodes(self.dev, f"vfio/{group}")
        return add_function(self.sysfs, path, group=group, **options)

    def plug(self, number: int, migration: int = STOP_COPY, hang: threading.Event | None = None) -> Plugged:
        """The kernel's side of the device: without it there is no node to open."""
        return self.vfio.plug(
            uuid(number), migration, group=str(100 + number), vfio_dev=f"vfio{number}", hang=hang
        )

    def device(self, number: int) -> Path:
        return self.sysfs / "devices" / PARENT / uuid(number)

    def remove(self, number: int) -> None:
        (self.sysfs / "bus/mdev/devices" / uuid(number)).unlink()
        (self.sysfs / f"kernel/iommu_groups/{100 + number}/devices" / uuid(number)).unlink()
        shutil.rmtree(self.device(number))

    # -- the cluster --------------------------------------------------------------------------------------

    def source_vm(
        self,
        name: str = "vm",
        version: str = "1.0.0",
        *,
        extra: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        """A VM that runs on another node, with a device at *version*."""
        self.api.put(VMIS, fleets.vmi(name, SOURCE, annotations=annotations))
        self.api.put(PODS, fleets.pod(name, SOURCE))
        self.put_source(
            {f"source-of-{name}": fleets.declared(version, extra=extra)},
            {f"source-of-{name}": ("tenant-a", f"virt-launcher-{name}-src")},
        )

    def put_source(self, devices: Mapping[str, Declaration], holders: Mapping[str, tuple[str, str]]) -> None:
        """What the other node publishes."""
        self.api.put(VFIONODES, fleets.vfionode(SOURCE, devices, allocated=holders))

    def target_pod(
        self, name: str = "vm", *, suffix: str = "dst", annotations: Mapping[str, str] | None = None
    ) -> Pod:
        """The VM's target pod, bound to this node and pending."""
        pod = fleets.pod(name, NODE, source=SOURCE, suffix=suffix, annotations=annotations, phase="Pending")
        self.api.put(PODS, pod)
        return pod

    @property
    def vfionode(self) -> VFIONode:
        import msgspec

        return msgspec.convert(self.api.get("vfionodes", NODE), VFIONode)

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.api.get("nodes", NODE)["metadata"]["labels"]
        return labels

    # -- the agent ----------------------------------------------------------------------------------------

    def settings(
        self, *, allow_loosening: bool = False, scan_interval: float = 0.1, mode: Mode = Mode.SERVE
    ) -> Settings:
        return Settings(
            node_name=NODE,
            mode=mode,
            boot_id_file=self.boot_id,
            namespace=NAMESPACE,
            daemonset=DAEMONSET,
            sysfs_root=self.sysfs,
            dev=DevDir(self.dev, HOST_DEV),
            kubelet_dir=self.kubelet.kubelet_dir,
            config=self.config,
            scan_interval=scan_interval,
            health_bind="127.0.0.1:0",
            allow_loosening=allow_loosening,
            probe=Whom.ALL,
        )

    @asynccontextmanager
    async def running(
        self,
        *,
        allow_loosening: bool = False,
        scan_interval: float = 0.1,
        told: Callable[[Path], bool] = tell_of,
        mode: Mode = Mode.SERVE,
    ) -> AsyncIterator[Agent]:
        """The agent in this process."""
        settings = self.settings(allow_loosening=allow_loosening, scan_interval=scan_interval, mode=mode)
        agent = Agent(settings, self.client, listen=self._listen, told=told, calls=self.vfio)
        task = asyncio.create_task(agent.run())
        try:
            yield agent
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await eventually(lambda: not self.ours())

    def ours(self) -> list[str]:
        """Resources for which the kubelet listens to the agent."""
        return [name for name, p in self.kubelet.plugins.items() if p.endpoint.startswith(PREFIX)]

    def _listen(self) -> Listener:
        self.uevents = FakeUevents()
        return self.uevents.listener()

    async def registered(self, resource: str = POOL, count: int | None = None) -> None:
        """Wait until the kubelet has the resource's devices, and a healthy one among them."""
        await self.kubelet.wait_for(
            lambda: (
                resource in self.kubelet.plugins
                and (count is None or len(self.kubelet.resources.get(resource, ())) == count)
                and any(self.kubelet.resources.get(resource, {}).values())
            )
        )

    async def start_target(self, pod: Pod) -> dict[str, str]:
        """Admit and start a pod's container as the kubelet does; returns the pool's environment."""
        meta = pod.metadata
        answers = await self.kubelet.admit(meta.namespace, meta.name, CONTAINER, {POOL: 1})
        await self.kubelet.prestart(meta.namespace, meta.name, CONTAINER)
        return dict(answers[POOL].envs)


@asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    """A node without devices, its kubelet and API server running, no agent yet."""
    api = FakeApi()
    kubelet = DeviceManager(directory / "kubelet")
    async with running_api(api) as client:
        await kubelet.start()
        try:
            yield World(directory, client, api, kubelet)
        finally:
            await kubelet.stop()
