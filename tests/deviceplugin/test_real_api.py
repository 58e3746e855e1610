"""The agent against a real kube-apiserver: what it publishes fits the schema and comes back as written."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
from pathlib import Path

import msgspec
import pytest
from migcompat.api.vfionode import declaration
from migcompat.kube.client import Client
from migcompat.kube.config import connection
from migcompat.kube.errors import NotFound
from migcompat.kube.kinds import NODES, VFIONODES
from migcompat_deviceplugin.app import Agent, Settings
from migcompat_deviceplugin.devnodes import DevDir
from migcompat_deviceplugin.inventory import pools

from tests.cluster.controlplane import ControlPlane
from tests.deviceplugin.world import eventually
from tests.support import fleets
from tests.support.fabricate import add_group_nodes
from tests.support.kubelet import running_device_manager
from tests.support.sysfs import add_migration, unpack

pytestmark = pytest.mark.cluster

CRDS = Path(__file__).parents[2] / "charts/migcompat/files/crds"


async def test_recorded_node_is_published_as_found(control_plane: ControlPlane) -> None:
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    control_plane.await_kinds()
    name = f"agent-{secrets.token_hex(4)}"
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="migcompat-")))
        client = await stack.enter_async_context(Client(connection(str(control_plane.kubeconfig))))
        kubelet = await stack.enter_async_context(running_device_manager(directory / "kubelet"))
        await client.create(NODES, {"metadata": {"name": name, "labels": {"example.org/kept": "true"}}})
        sysfs = unpack("linux-6.12-debian13-cdev", "2-vfio-mdev", directory)
        add_group_nodes(directory / "dev", sysfs)
        boot_id = directory / "boot_id"
        boot_id.write_text(fleets.BOOT)
        mdev = next((sysfs / "bus/mdev/devices").iterdir())
        own = {"software_version": "1.0.0", "device_api": "vfio-pci", "type": "t", "aggregator": "2"}
        add_migration(mdev, own, [own, {"software_version": "{v:int"}])
        agent = Agent(
            Settings(
                node_name=name,
                boot_id_file=boot_id,
                sysfs_root=sysfs,
                dev=DevDir(directory / "dev"),
                kubelet_dir=directory / "kubelet",
                scan_interval=0.2,
                health_bind="127.0.0.1:0",
            ),
            client,
        )
        task = asyncio.create_task(agent.run())
        try:
            await eventually(lambda: agent.state.problem() is None and kubelet.plugins)
            await eventually(lambda: kubelet.resources.keys() == pools(agent.state.inventory).keys())
            for _ in range(300):
                item = await client.get(VFIONODES, name)
                if item.status.conditions and item.status.conditions[0].reason == "Published":
                    break
                await asyncio.sleep(0.1)
            assert {device.id for device in item.status.devices} == set(agent.state.inventory)
            for device in item.status.devices:
                found = agent.state.inventory[device.id].found.declaration
                assert declaration(item.status, device) == msgspec.structs.replace(found, layout="")

            agent.publisher._forget()
            await agent.publisher.publish()
            again = await client.get(VFIONODES, name)
            assert again.metadata.resource_version == item.metadata.resource_version

            labels = (await client.get(NODES, name)).metadata.labels or {}
            assert labels["example.org/kept"] == labels["migcompat.io/managed"] == "true"
            assert labels["type.migcompat.io/mtty-2"] == "true"
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            with contextlib.suppress(NotFound):
                await client.delete(VFIONODES, name)
                await client.delete(NODES, name)
