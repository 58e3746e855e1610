"""The real command as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.deviceplugin.world import NODE, POOL, World, uuid
from tests.support.fabricate import add_group_nodes
from tests.support.sysfs import unpack


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def start(node: World, sysfs: Path, port: int, *flags: str) -> asyncio.subprocess.Process:
    kubeconfig = node.directory / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": node.api.url}}
    context = {"name": "c", "context": {"cluster": "c", "user": ""}}
    kubeconfig.write_text(
        yaml.safe_dump({"clusters": [cluster], "contexts": [context], "current-context": "c"})
    )
    return await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("migcompat-device-plugin")),
        f"--sysfs-root={sysfs}",
        f"--dev-root={node.dev}",
        f"--kubelet-dir={node.kubelet.kubelet_dir}",
        f"--boot-id-file={node.boot_id}",
        f"--kubeconfig={kubeconfig}",
        f"--health-bind=127.0.0.1:{port}",
        "--scan-interval=0.2",
        *flags,
        env={**os.environ, "NODE_NAME": NODE},
        stderr=asyncio.subprocess.PIPE,
    )


async def test_process_serves_a_recorded_node_and_ends_on_sigterm(node: World) -> None:
    """The recorded kernel 6.12: its devices are served in their pools, and its health is told over HTTP."""
    recorded = node.directory / "recorded"
    recorded.mkdir()
    sysfs = unpack("linux-6.12-debian13-cdev", "2-vfio-mdev", recorded)
    add_group_nodes(node.dev, sysfs)
    port = free_port()
    process = await start(node, sysfs, port)
    try:
        await node.registered("vfio.migcompat.io/mtty-2")
        found = {device.id: device for device in node.vfionode.status.devices}
        for resource, devices in node.kubelet.resources.items():
            assert devices.keys() == {id_ for id_, device in found.items() if device.resource == resource}
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            async with http.get("/healthz") as answer:
                assert answer.status == 200
            while True:
                async with http.get("/readyz") as answer:
                    if answer.status == 200:
                        break
                await asyncio.sleep(0.1)
            async with http.get("/metrics") as answer:
                text = await answer.text()
        assert (
            'migcompat_agent_devices{health="Healthy",kind="mdev",resource="vfio.migcompat.io/mtty-2"}'
            in text
        )
        assert "migcompat_agent_scan_seconds_count" in text
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, log.decode()
    assert not list(node.kubelet.plugin_dir.glob("migcompat-*")), log.decode()


async def test_process_that_replaces_a_killed_one_serves_again(node: World) -> None:
    node.add(1)
    first = await start(node, node.sysfs, free_port())
    await node.registered()
    first.kill()
    await first.communicate()
    second = await start(node, node.sysfs, free_port())
    try:
        await node.kubelet.wait_for(lambda: len(node.kubelet.registrations) == 2)
        await node.registered()
        assert node.kubelet.resources[POOL] == {uuid(1): True}
        assert len(list(node.kubelet.plugin_dir.glob("migcompat-*"))) == 1
    finally:
        second.terminate()
        await asyncio.wait_for(second.communicate(), 20)


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--log-level=loud", b"loud"),
        ("--resource-domain=devices.kubernetes.io", b"devices.kubernetes.io"),
        ("--host-dev=dev", b"--host-dev dev is not an absolute path"),
    ],
)
async def test_unusable_arguments_are_named(node: World, flag: str, named: bytes) -> None:
    process = await start(node, node.sysfs, 0, flag)
    _, text = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert named in text
