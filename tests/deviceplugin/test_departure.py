"""The end of an agent: an empty list when nobody comes after it, and on no other account."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest
from migcompat.api.cluster import Workload
from migcompat.api.meta import ObjectMeta
from migcompat.kube.kinds import DAEMONSETS
from migcompat_deviceplugin import departure
from migcompat_deviceplugin.departure import Departure
from migcompat_deviceplugin.server import LEAVE_DEADLINE

from tests.deviceplugin.test_process import free_port, start
from tests.deviceplugin.world import CONTAINER, DAEMONSET, NAMESPACE, POOL, World, eventually, uuid

VF_POOL = "vfio.migcompat.io/pci-15b3-101e"


def deleting(node: World) -> None:
    """As in the foreground: the DaemonSet stays until its pods have gone."""
    meta = ObjectMeta(name=DAEMONSET, namespace=NAMESPACE, deletion_timestamp="2026-01-01T00:00:00Z")
    node.api.put(DAEMONSETS, Workload(meta))


def gone(node: World) -> None:
    node.api.drop("daemonsets", DAEMONSET, NAMESPACE)


async def seen(node: World) -> None:
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{DAEMONSET}"
    await eventually(lambda: ("GET", path) in node.api.requests)
    await asyncio.sleep(0.1)


@pytest.mark.parametrize("end", [deleting, gone])
async def test_an_empty_list_before_leaving_for_good(node: World, end: Callable[[World], None]) -> None:
    node.add(1)
    node.add_function("pci0000:00/0000:00:05.0", group=7)
    async with node.running() as agent:
        await node.registered()
        await node.registered(VF_POOL)
        await node.kubelet.admit("ns", "vm", CONTAINER, {POOL: 1})
        await seen(node)
        end(node)
        await agent.leave()
        await eventually(lambda: not node.kubelet.plugins)
        assert node.kubelet.resources == {POOL: {}, VF_POOL: {}}
        assert node.kubelet.pods["ns", "vm"][CONTAINER] == {POOL: [uuid(1)]}
        agent.state.to_serve.set()
        node.add(2)
        await eventually(lambda: uuid(2) in agent.state.inventory)
        await agent.manager.reconcile()
        assert len(node.kubelet.registrations) == 2
    assert not list(node.kubelet.plugin_dir.glob("migcompat-*"))


@pytest.mark.parametrize("status", [401, 403, 500, 503])
async def test_an_answer_that_is_missing_proves_nothing(node: World, status: int) -> None:
    """401: the token of a pod that was deleted by force. 403: a rollback to a chart without the right."""
    node.add(1)
    async with node.running() as agent:
        await node.registered()
        await seen(node)
        node.api.refused["daemonsets"] = status
        await agent.leave()
        assert node.kubelet.resources == {POOL: {uuid(1): True}}
    assert all(devices for _, devices in node.kubelet.messages)


async def test_a_silent_api_server_does_not_hold_up_the_end(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departure, "DEADLINE", 0.1)
    node.add(1)
    async with node.running() as agent:
        await node.registered()
        await seen(node)
        node.api.hanging.add("daemonsets")
        await asyncio.wait_for(agent.leave(), 5)
    assert all(devices for _, devices in node.kubelet.messages)


async def test_an_upgrade_or_a_deleted_pod_leaves_the_devices_alone(node: World) -> None:
    node.add(1)
    async with node.running() as agent:
        await node.registered()
        await seen(node)
        await agent.leave()
    assert all(devices for _, devices in node.kubelet.messages)


async def test_a_daemonset_that_was_made_anew_is_a_successor(node: World) -> None:
    node.add(1)
    async with node.running() as agent:
        await node.registered()
        await seen(node)
        gone(node)
        node.api.put(DAEMONSETS, Workload(ObjectMeta(name=DAEMONSET, namespace=NAMESPACE, uid="another")))
        await agent.leave()
    assert all(devices for _, devices in node.kubelet.messages)


async def test_a_daemonset_that_was_never_seen_cannot_be_gone(
    node: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong name in the flag must not make an end of every restart."""
    gone(node)
    node.add(1)
    async with node.running() as agent:
        await node.registered()
        await eventually(lambda: "cannot be found out at its end" in caplog.text)
        await agent.leave()
    assert all(devices for _, devices in node.kubelet.messages)


async def test_without_a_daemonset_nothing_is_asked(node: World) -> None:
    alone = Departure(node.client, "", "")
    await alone.run()
    assert not await alone.is_for_good()
    assert node.api.requests == []


async def test_the_daemonset_is_looked_for_until_it_is_seen(node: World) -> None:
    node.api.refused["daemonsets"] = 403
    watched = Departure(node.client, NAMESPACE, DAEMONSET)
    looking = asyncio.create_task(watched.run())
    await seen(node)
    node.api.refused.clear()
    await asyncio.wait_for(looking, 10)
    gone(node)
    assert await watched.is_for_good()


async def test_a_kubelet_that_does_not_listen_does_not_hold_up_the_end(node: World) -> None:
    node.add(1)
    async with node.running() as agent:
        await node.registered()
        await seen(node)
        await node.kubelet.stop()
        deleting(node)
        await asyncio.wait_for(agent.leave(), LEAVE_DEADLINE + 3)


async def test_the_process_says_so_on_sigterm(node: World) -> None:
    node.add(1)
    flags = (f"--namespace={NAMESPACE}", f"--daemonset={DAEMONSET}")
    process = await start(node, node.sysfs, free_port(), *flags)
    try:
        await node.registered()
        await seen(node)
        deleting(node)
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, log.decode()
    assert node.kubelet.messages[-1] == (POOL, {}), log.decode()
    assert "is being deleted: leaving for good" in log.decode()
