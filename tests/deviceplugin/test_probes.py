"""Devices are asked whether they can migrate once, before anybody may have them, and never when in use."""

from __future__ import annotations

import asyncio
import errno
import logging
import queue
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from migcompat.api.vfionode import Device, Migration, MigrationState
from migcompat.engine.declaration import Declaration, Kind
from migcompat.kube.kinds import VFIONODES
from migcompat.kubelet.podresources import Allocations
from migcompat.sysfs.appearance import Appearance, appearance
from migcompat.sysfs.scan import FoundDevice
from migcompat.vfio.probe import NotKnown, Why
from migcompat_deviceplugin import metrics, probes
from migcompat_deviceplugin.allocate import Refused
from migcompat_deviceplugin.app import Agent
from migcompat_deviceplugin.inventory import NOT_ASKED_YET, Inventory
from migcompat_deviceplugin.inventory import Device as InventoryDevice
from migcompat_deviceplugin.probes import Answer, Asker, Probes, Whom

from tests.deviceplugin.world import CONTAINER, PARENT, POOL, World, eventually, uuid
from tests.support import fleets
from tests.support.fabricate import add_device_nodes, add_driver, add_mdev, link, write
from tests.support.kubelet import PreStartError
from tests.support.uevents import message
from tests.support.vfio import P2P, PRE_COPY, STOP_COPY, FakeVfio

NEVER = 3600.0
CAN = Migration(True, (MigrationState.STOP_COPY,))
CANNOT = Migration(False)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets devices go that hang until then."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines that a test can wait for."""
    monkeypatch.setattr(probes, "GRACE", 0.05)
    monkeypatch.setattr(probes, "PROBE_DEADLINE", 0.5)
    monkeypatch.setattr(probes, "HOLDERS_PATIENCE", 0.5)
    monkeypatch.setattr(probes, "HOLDERS_PAUSE", 0.05)


@pytest.fixture
async def held(node: World) -> AsyncIterator[World]:
    """A node on which a pod holds a device that can migrate, since an agent that has ended."""
    node.add(1)
    node.plug(1)
    async with node.running():
        await node.registered()
        await node.kubelet.admit("ns", "pod", "compute", {POOL: 1})
        await eventually(lambda: published(node, 1).allocated_to is not None)
        assert published(node, 1).migration == CAN
    node.vfio.opened.clear()
    yield node
    assert node.vfio.left_open == []


def published(node: World, number: int) -> Device:
    return next(device for device in node.vfionode.status.devices if device.id == uuid(number))


def answers(node: World) -> dict[str, Migration | None]:
    return {device.id: device.migration for device in node.vfionode.status.devices}


def devices_opened(node: World) -> list[str]:
    """The nodes opened, but for those that all devices share."""
    return [opened for opened in node.vfio.opened if opened not in ("iommu", "vfio/vfio")]


def settled(agent: Agent) -> bool:
    """Whether there are devices, and none of them waits for a question."""
    devices = agent.state.inventory.values()
    return bool(devices) and not any(device.waiting for device in devices)


def figure(answer: str) -> float:
    value = metrics.REGISTRY.get_sample_value("migcompat_agent_migration_probes_total", {"answer": answer})
    return value or 0.0


async def test_what_devices_answer_is_published_before_they_are_served(node: World) -> None:
    for number, migration in {1: STOP_COPY | P2P | PRE_COPY, 2: STOP_COPY, 3: -errno.ENOTTY}.items():
        node.add(number)
        node.plug(number, migration)
    async with node.running():
        await node.kubelet.wait_for(lambda: bool(node.kubelet.registrations))
        seen = node.vfionode
        await node.registered(count=3)
        assert node.kubelet.resources[POOL] == dict.fromkeys((uuid(1), uuid(2), uuid(3)), True)
    devices = {device.id: device for device in seen.status.devices}
    assert devices[uuid(1)].migration == Migration(True, tuple(MigrationState))
    assert devices[uuid(2)].migration == CAN
    assert devices[uuid(3)].migration == CANNOT
    assert [devices[uuid(n)].peer_to_peer for n in (1, 2, 3)] == [True, False, False]
    assert all(device.health == "Healthy" for device in devices.values())
    assert node.vfio.left_open == []


async def test_a_target_does_not_start_with_a_device_that_cannot_migrate(node: World) -> None:
    """Whatever the device declares: its VM could not be loaded into it."""
    node.add(1)
    node.plug(1, -errno.ENOTTY)
    node.source_vm(version="1.0.0")
    pod = node.target_pod()
    async with node.running():
        await node.registered(count=1)
        with pytest.raises(PreStartError, match="NotMigratable: the target"):
            await node.start_target(pod)


async def test_a_device_that_has_not_answered_is_not_advertised_and_holds_up_no_other(
    node: World, release: threading.Event
) -> None:
    node.add(1)
    node.plug(1, hang=release)
    node.add(2)
    node.plug(2)
    async with node.running():
        await node.registered(count=1)
        assert node.kubelet.resources[POOL] == {uuid(2): True}
        waiting = published(node, 1)
        assert (waiting.health, waiting.problem) == ("Unhealthy", NOT_ASKED_YET)
        assert waiting.migration is None

        release.set()
        await node.registered(count=2)
        assert node.kubelet.resources[POOL] == {uuid(1): True, uuid(2): True}
        assert (published(node, 1).health, published(node, 1).migration) == ("Healthy", CAN)
    assert len(node.kubelet.registrations) == 1


@pytest.mark.usefixtures("hasty")
async def test_a_device_that_hangs_is_advertised_once_that_has_ended(
    node: World, release: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    timed_out = figure("TimedOut")
    node.add(1)
    hanging = node.plug(1, hang=release)
    node.add(2)
    node.plug(2)
    async with node.running(scan_interval=0.05) as agent:
        await node.registered(count=1)
        await eventually(lambda: figure("TimedOut") == timed_out + 1)
        node.add(3)
        await node.registered(count=2)
        assert node.kubelet.resources[POOL] == {uuid(2): True, uuid(3): True}
        assert published(node, 1).health == "Unhealthy"
        with pytest.raises(Refused, match=f"{uuid(1)}: the question .* still open"):
            await agent._probes.let_go([uuid(1)])
        release.set()
        await node.registered(count=3)
        assert answers(node)[uuid(1)] is None
        assert published(node, 1).peer_to_peer is None
        await agent._probes.let_go([uuid(1)])
    assert hanging.asked == 1
    assert figure("TimedOut") == timed_out + 1
    assert f"{uuid(1)}: not known whether it can migrate: no answer within 0.5 s" in caplog.text


async def test_no_target_starts_on_a_device_that_hangs(
    node: World, hasty: None, release: threading.Event
) -> None:
    node.add(1)
    node.add(2)
    asked = node.plug(1, hang=release)
    node.plug(2)
    node.source_vm()
    pod = node.target_pod()
    async with node.running():
        await node.registered(count=1)
        await eventually(lambda: asked.asked)
        node.kubelet.pods["tenant-a", pod.metadata.name] = {CONTAINER: {POOL: [uuid(1)]}}
        await node.kubelet.admit("tenant-a", pod.metadata.name, CONTAINER, {})
        with pytest.raises(PreStartError, match=r"migcompat guard: DeviceUnhealthy: .* still open"):
            await node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER)
        release.set()
        await eventually(lambda: asked.asked and not node.vfio.left_open)
        await node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER)


VGPU = "vfio.migcompat.io/nvidia-1414"


def vgpus(node: World) -> None:
    """A vGPU as an mdev, one as a VF, and another device."""
    pf, ids = "0000:41:00.0", ("0x10de", "0x2335")
    add_device_nodes(node.dev, "vfio/101")
    add_mdev(node.sysfs, PARENT, uuid(1), type_id=fleets.TYPE, driver="nvidia-vgpu-vfio", group=101)
    node.vfio.plug(uuid(1), STOP_COPY, group="101", vfio_dev="vfio1")
    node.add_function(f"pci0000:40/{pf}", driver="nvidia", group=5, ids=ids)
    vf = node.add_function(
        "pci0000:40/0000:41:00.4", driver="nvidia", group=77, ids=ids, vfio_dev="vfio9", physfn=pf
    )
    (vf / "nvidia").mkdir()
    write(vf / "nvidia", {"current_vgpu_type": "1414"})
    node.vfio.plug("0000:41:00.4", STOP_COPY, group="77", vfio_dev="vfio9")
    node.add_function("pci0000:00/0000:00:05.0", group=55, vfio_dev="vfio7")
    node.vfio.plug("0000:00:05.0", STOP_COPY, group="55", vfio_dev="vfio7")


@pytest.mark.parametrize(
    ("whom", "asked"),
    [
        (Whom.AUTO, {"0000:00:05.0"}),
        (Whom.ALL, {"0000:00:05.0", "0000:41:00.4", uuid(1)}),
        (Whom.OFF, set()),
    ],
)
async def test_who_is_asked_can_be_chosen(
    node: World, monkeypatch: pytest.MonkeyPatch, whom: Whom, asked: set[str]
) -> None:
    vgpus(node)
    settings = node.settings
    monkeypatch.setattr(
        node, "settings", lambda **given: msgspec.structs.replace(settings(**given), probe=whom)
    )
    unasked = figure("NotAsked")
    async with node.running() as agent:
        for resource in (POOL, VGPU):
            await node.registered(resource)
        await eventually(lambda: settled(agent) and len(answers(node)) == 3)
        assert {id_ for id_, migration in answers(node).items() if migration} == asked
    assert bool(node.vfio.opened) is bool(asked)
    assert figure("NotAsked") == unasked + 3 - len(asked)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
async def test_an_agent_that_may_not_open_devices_serves_them_and_says_so_once(
    node: World, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    caplog.set_level(logging.INFO)
    for device in (1, 2, 3):
        node.add(device)
        node.plug(device)
        node.vfio.failing |= {f"vfio/devices/vfio{device}": number, f"vfio/{100 + device}": number}
    async with node.running():
        await node.registered(count=3)
        assert set(answers(node).values()) == {None}
    told = [record.message for record in caplog.records if "not allowed to open devices" in record.message]
    assert len(told) == 1
    assert "devicePlugin.privileged" in told[0]


async def test_an_agent_that_may_open_nothing_waits_for_nobody(
    node: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a container that is not privileged: not even the nodes that all devices share."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(probes, "HOLDERS_PATIENCE", NEVER)
    node.vfio.failing = {"iommu": errno.EPERM, "vfio/vfio": errno.EPERM}
    node.add(1)
    node.plug(1)
    await node.kubelet.stop_pod_resources()
    async with node.running():
        await node.registered(count=1)
        assert answers(node) == {uuid(1): None}
    assert set(node.vfio.opened) == {"iommu", "vfio/vfio"}
    assert "not allowed to open devices" in caplog.text


async def test_a_held_device_keeps_its_answer_when_devices_may_not_be_opened_any_more(held: World) -> None:
    held.vfio.failing = {"iommu": errno.EPERM, "vfio/vfio": errno.EPERM}
    held.add(2)
    held.plug(2)
    async with held.running():
        await held.registered(count=2)
        assert answers(held) == {uuid(1): CAN, uuid(2): None}


async def test_a_device_that_hangs_is_not_asked_once_more_when_it_comes_back(
    node: World, hasty: None, release: threading.Event
) -> None:
    node.add(1)
    hanging = node.plug(1, hang=release)
    async with node.running() as agent:
        await eventually(lambda: agent.state.inventory and hanging.asked)
        node.remove(1)
        await eventually(lambda: not agent.state.inventory and not answers(node))
        node.add(1)
        await eventually(lambda: answers(node) == {uuid(1): None})
        await asyncio.sleep(2 * probes.PROBE_DEADLINE)
        assert POOL not in node.kubelet.resources
        release.set()
        await node.registered(count=1)
    assert hanging.asked == 1
    assert devices_opened(node) == ["vfio/devices/vfio1"]


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EIO, errno.ENOENT])
async def test_a_device_that_cannot_be_asked_is_served(node: World, number: int) -> None:
    node.add(1)
    node.plug(1)
    node.vfio.failing = {"vfio/devices/vfio1": number, "vfio/101": number}
    async with node.running():
        await node.registered(count=1)
        assert answers(node) == {uuid(1): None}


async def test_a_device_is_asked_once(node: World) -> None:
    device = node.add(1)
    asked = node.plug(1)

    def version() -> str:
        own = published(node, 1).profile
        return node.vfionode.status.profiles[own].self.attributes["software_version"]

    async with node.running(scan_interval=0.02):
        await node.registered()
        for changed in ("1.1.0", "1.2.0"):
            (device / "migration/self/software_version").write_text(changed)
            await eventually(lambda wanted=changed: version() == wanted)  # type: ignore[misc]
        assert answers(node) == {uuid(1): CAN}
    assert asked.asked == 1


async def test_a_device_is_asked_when_it_turns_healthy_for_the_first_time(node: World) -> None:
    device = node.add(1)
    asked = node.plug(1)
    driver = (device / "driver").readlink()
    (device / "driver").unlink()
    async with node.running() as agent:
        await eventually(lambda: (POOL, uuid(1)) in agent.state.published)
        assert published(node, 1).problem
        assert asked.asked == 0
        (device / "driver").symlink_to(driver)
        await node.registered(count=1)
        await eventually(lambda: answers(node) == {uuid(1): CAN})
    assert asked.asked == 1


async def test_a_held_device_is_not_opened_and_keeps_its_answer_over_a_restart(held: World) -> None:
    held.add(2)
    held.plug(2, -errno.ENOTTY)
    async with held.running():
        await held.registered(count=2)
        assert answers(held) == {uuid(1): CAN, uuid(2): CANNOT}
    assert devices_opened(held) == ["vfio/devices/vfio2"]


async def test_an_answer_of_another_boot_is_not_taken_over(held: World) -> None:
    item = held.vfionode
    item.status.boot_id = "boot-0"
    held.api.put(VFIONODES, item)
    async with held.running():
        await held.registered()
        await eventually(lambda: answers(held) == {uuid(1): None})
    assert devices_opened(held) == []


async def test_an_answer_of_another_driver_is_not_taken_over(held: World) -> None:
    (held.device(1) / "driver").unlink()
    add_driver(held.sysfs, "mdev", "other")
    link(held.device(1) / "driver", held.sysfs / "bus/mdev/drivers/other")
    async with held.running():
        await held.registered()
        await eventually(lambda: answers(held) == {uuid(1): None})
    assert devices_opened(held) == []


async def test_a_free_device_is_asked_again_after_a_restart(node: World) -> None:
    node.add(1)
    node.plug(1)
    async with node.running():
        await node.registered()
    asked = node.plug(1, -errno.ENOTTY)
    async with node.running():
        await node.registered()
        await eventually(lambda: answers(node) == {uuid(1): CANNOT})
    assert asked.asked == 1


async def test_a_restart_changes_nothing_that_is_published(node: World) -> None:
    for number in (1, 2, 3):
        node.add(number)
        node.plug(number)
    async with node.running() as agent:
        await node.registered(count=3)
        await eventually(lambda: agent.state.problem() is None)
        await eventually(lambda: not agent.state.to_publish.is_set())
    writes = len(node.api.writes("vfionodes"))
    async with node.running() as agent:
        await node.registered(count=3)
        await eventually(lambda: agent.state.problem() is None)
    # Only "not registered yet", and that it is over.
    assert {device.health for device in node.vfionode.status.devices} == {"Healthy"}
    assert len(node.api.writes("vfionodes")) <= writes + 2


async def test_a_device_that_comes_back_is_asked_again(node: World) -> None:
    node.add(1)
    node.plug(1)
    async with node.running() as agent:
        await node.registered()
        assert answers(node) == {uuid(1): CAN}
        node.remove(1)
        await eventually(lambda: not agent.state.inventory)
        node.plug(1, -errno.ENOTTY)
        node.add(1)
        await eventually(lambda: answers(node) == {uuid(1): CANNOT})
        await node.registered()


async def test_a_device_made_anew_between_two_scans_is_asked_again(node: World) -> None:
    device = node.add(1)
    node.plug(1)
    async with node.running(scan_interval=NEVER):
        node.uevents.send()
        await node.registered()
        node.plug(1, -errno.ENOTTY)
        device.rename(node.directory / "earlier")
        (node.sysfs / "bus/mdev/devices" / uuid(1)).unlink()
        (node.sysfs / "kernel/iommu_groups/101/devices" / uuid(1)).unlink()
        node.add(1)
        node.uevents.send(message("remove"))
        node.uevents.send(message("add"))
        await eventually(lambda: answers(node) == {uuid(1): CANNOT})
        await node.registered()


async def test_another_driver_of_an_advertised_device_is_not_known_until_the_device_was_gone(
    node: World,
) -> None:
    device = node.add(1)
    asked = node.plug(1)
    add_driver(node.sysfs, "mdev", "other")
    async with node.running() as agent:
        await node.registered()
        (device / "new").symlink_to("../../../../bus/mdev/drivers/other")
        (device / "new").rename(device / "driver")
        await eventually(lambda: published(node, 1).driver == "other")
        assert answers(node) == {uuid(1): None}
        assert node.kubelet.resources[POOL] == {uuid(1): True}
        assert asked.asked == 1

        node.remove(1)
        await eventually(lambda: not agent.state.inventory)
        node.add(1)
        await node.registered()
        await eventually(lambda: answers(node) == {uuid(1): CAN})
    assert asked.asked == 2


async def test_a_kubelet_that_does_not_know_its_pods_yet_frees_no_device(node: World) -> None:
    device = node.add(1)
    asked = node.plug(1)
    async with node.running():
        await node.registered()
        await node.kubelet.admit("ns", "pod", "compute", {POOL: 1})
        await eventually(lambda: published(node, 1).allocated_to is not None)
        await node.kubelet.restart()
        node.kubelet.release("ns", "pod")
        driver = (device / "driver").readlink()
        (device / "driver").rename(device / "before")
        (device / "driver").symlink_to(driver)
        await eventually(lambda: answers(node) == {uuid(1): None})
        await node.registered()
    assert asked.asked == 1


@pytest.mark.usefixtures("hasty")
async def test_nothing_is_opened_before_pod_resources_has_answered(node: World) -> None:
    node.add(1)
    node.plug(1)
    await node.kubelet.stop_pod_resources()
    async with node.running():
        await node.registered()
        assert answers(node) == {uuid(1): None}
        assert published(node, 1).health == "Healthy"
    assert devices_opened(node) == []


async def test_pod_resources_that_is_late_is_waited_for(node: World) -> None:
    node.add(1)
    node.plug(1)
    await node.kubelet.stop_pod_resources()
    async with node.running() as agent:
        await eventually(lambda: agent.state.allocations_problem)
        assert devices_opened(node) == []
        await node.kubelet.start_pod_resources()
        await node.registered()
        assert answers(node) == {uuid(1): CAN}


async def test_a_held_device_keeps_its_answer_while_pod_resources_is_down(held: World, hasty: None) -> None:
    await held.kubelet.stop_pod_resources()
    async with held.running() as agent:
        await held.registered()
        await eventually(lambda: settled(agent))
        assert answers(held) == {uuid(1): CAN}
    assert devices_opened(held) == []


async def test_allocate_waits_until_the_device_is_closed(node: World, release: threading.Event) -> None:
    """A kubelet that still believes in a device, while it is asked once more because it was made anew."""
    node.add(1)
    node.plug(1)
    async with node.running(scan_interval=NEVER) as agent:
        node.uevents.send()
        await node.registered()
        hanging = node.plug(1, hang=release)
        driver = (node.device(1) / "driver").readlink()
        (node.device(1) / "driver").rename(node.device(1) / "before")
        (node.device(1) / "driver").symlink_to(driver)
        node.uevents.send()
        await eventually(lambda: hanging.asked)
        allocating = asyncio.create_task(agent._probes.let_go([uuid(1)]))
        done, _ = await asyncio.wait({allocating}, timeout=0.2)
        assert not done
        assert node.vfio.left_open
        release.set()
        await allocating
        assert node.vfio.left_open == []
        await eventually(lambda: answers(node) == {uuid(1): CAN})


async def test_no_target_starts_while_its_device_is_open(node: World, release: threading.Event) -> None:
    """An earlier agent has given the device out, and this one asks it: PodResources named nobody yet."""
    node.add(1)
    node.add(2)
    asked = node.plug(1, hang=release)
    node.plug(2)
    node.source_vm()
    pod = node.target_pod()
    async with node.running():
        await node.registered(count=1)
        await eventually(lambda: asked.asked)
        node.kubelet.pods["tenant-a", pod.metadata.name] = {CONTAINER: {POOL: [uuid(1)]}}
        await node.kubelet.admit("tenant-a", pod.metadata.name, CONTAINER, {})
        starting = asyncio.create_task(node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER))
        await asyncio.sleep(0.5)
        assert not starting.done()
        release.set()
        await starting
        assert node.vfio.left_open == []


async def test_a_device_that_is_handed_out_is_not_asked_any_more(
    node: World, release: threading.Event
) -> None:
    """Allocate for the second of two devices in one group, while the first is asked."""
    for number in (1, 2):
        node.add(number)
    link_group(node, 2, 101)
    first = node.plug(1, hang=release)
    second = node.vfio.plug(uuid(2), group="101", vfio_dev="vfio2")
    async with node.running() as agent:
        await eventually(lambda: first.asked)
        allocating = asyncio.create_task(agent._probes.let_go([uuid(2)]))
        await asyncio.sleep(0)
        release.set()
        await allocating
        await eventually(lambda: settled(agent))
    assert (first.asked, second.asked) == (1, 0)


async def test_devices_of_one_group_are_asked_one_after_the_other(node: World) -> None:
    for number in (1, 2, 3):
        node.add(number)
        link_group(node, number, 101)
        node.vfio.plug(uuid(number), STOP_COPY, group="101", vfio_dev=f"vfio{number}")
    node.vfio.cdevs = False
    async with node.running():
        await node.registered(count=3)
        assert set(answers(node).values()) == {CAN}
    assert node.vfio.opened.count("vfio/101") == 3


async def test_no_group_is_opened_of_which_a_device_is_handed_out_already(node: World) -> None:
    node.add(1)
    node.plug(1)
    async with node.running():
        await node.registered(count=1)
        node.add(2)
        link_group(node, 2, 101)
        late = node.vfio.plug(uuid(2), group="101", vfio_dev="vfio2")
        await node.registered(count=2)
        assert answers(node) == {uuid(1): CAN, uuid(2): None}
    assert late.asked == 0


async def test_a_function_with_vfs_is_not_opened_because_that_resets_them(node: World) -> None:
    pf = node.add_function("pci0000:00/0000:00:05.0", group=7, vfio_dev="vfio5")
    (pf / "virtfn0").symlink_to("../0000:00:05.1")
    node.vfio.plug("0000:00:05.0", group="7", vfio_dev="vfio5")
    async with node.running():
        await node.registered("vfio.migcompat.io/pci-15b3-101e")
        assert answers(node) == {"0000:00:05.0": None}
    assert devices_opened(node) == []


async def test_a_probe_that_breaks_in_an_unforeseen_way_harms_only_its_answer(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr(probes, "probe", fail)
    node.add(1)
    async with node.running():
        await node.registered(count=1)
        assert answers(node) == {uuid(1): None}


class Scripted(Asker):
    """Answers as the test says: each question waits for an answer and the appearance that gave it."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"), Path("/nowhere"))
        self.questions = 0
        self.answers: queue.Queue[tuple[Appearance, Answer]] = queue.Queue()

    def forbidden(self) -> None:
        return None

    def ask(self, found: FoundDevice) -> tuple[Appearance, Answer]:
        self.questions += 1
        return self.answers.get(timeout=20)


class NobodyHolds:
    async def holders(self) -> Allocations:
        return {}


def seen(number: int) -> Appearance:
    return Appearance((1, number), (2, number))


DEVICE = InventoryDevice(FoundDevice("a", Kind.MDEV, "devices/a", Declaration(Kind.MDEV), driver="d"), POOL)


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[Probes, Scripted]]:
    asker = Scripted()
    made = Probes(NobodyHolds(), asker, lambda: None)
    task = asyncio.create_task(made.run())
    yield made, asker
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def known(made: Probes) -> tuple[bool, Migration | None]:
    device = made.applied({"a": DEVICE})["a"]
    return device.waiting, device.migration


async def test_an_answer_of_another_appearance_than_was_scanned_does_not_count(
    scripted: tuple[Probes, Scripted],
) -> None:
    made, asker = scripted
    made.consider({"a": DEVICE}, {"a": seen(1)})
    asker.answers.put((seen(2), CAN))
    await eventually(lambda: asker.answers.empty() and not made._open)
    assert known(made) == (True, None)
    made.consider({"a": DEVICE}, {"a": seen(2)})
    asker.answers.put((seen(2), CANNOT))
    await eventually(lambda: known(made) == (False, CANNOT))
    assert asker.questions == 2


async def test_a_device_made_anew_while_it_is_asked_is_asked_again_without_another_scan(
    scripted: tuple[Probes, Scripted],
) -> None:
    made, asker = scripted
    made.consider({"a": DEVICE}, {"a": seen(1)})
    await eventually(lambda: asker.questions == 1)
    made.consider({"a": DEVICE}, {"a": seen(2)})
    await asyncio.sleep(0.05)
    assert asker.questions == 1
    asker.answers.put((seen(1), CAN))
    await eventually(lambda: asker.questions == 2)
    assert known(made) == (True, None)
    asker.answers.put((seen(2), CANNOT))
    await eventually(lambda: known(made) == (False, CANNOT))


async def test_a_question_that_fails_after_the_device_was_handed_out_changes_nothing(
    scripted: tuple[Probes, Scripted],
) -> None:
    """It is in use, so what an earlier agent was told of it still counts."""
    made, asker = scripted
    made.consider({"a": DEVICE}, {"a": seen(1)})
    await eventually(lambda: asker.questions == 1)
    letting_go = asyncio.create_task(made.let_go(["a"]))
    await eventually(lambda: known(made) == (False, None))
    failures = figure("Failed")
    asker.answers.put((seen(1), NotKnown(Why.FAILED, "VFIO_DEVICE_BIND_IOMMUFD: EIO")))
    await letting_go
    await eventually(lambda: not made._under_way)
    assert figure("Failed") == failures
    made.recall([Device("a", POOL, "p", "a", Kind.MDEV, driver="d", migration=CAN)])
    assert known(made) == (False, CAN)


@pytest.mark.parametrize("looks", [[{}, {"a": DEVICE}], [{"a": DEVICE}]], ids=["gone meanwhile", "made anew"])
async def test_what_an_earlier_agent_was_told_is_not_of_a_device_that_came_since(
    scripted: tuple[Probes, Scripted], looks: list[Inventory]
) -> None:
    made, asker = scripted
    made.consider({"a": DEVICE}, {"a": seen(1)})
    await eventually(lambda: asker.questions == 1)
    made.recall([Device("a", POOL, "p", "a", Kind.MDEV, driver="d", migration=CAN)])
    for inventory in looks:
        made.consider(inventory, {"a": seen(2)})
    asker.answers.put((seen(1), NotKnown(Why.IN_USE, "EBUSY")))
    asker.answers.put((seen(2), NotKnown(Why.IN_USE, "EBUSY")))
    await eventually(lambda: asker.questions == 2 and known(made)[0] is False)
    assert known(made) == (False, None)


async def test_a_neighbour_that_was_asked_but_is_unhealthy_keeps_no_device_from_being_asked(
    scripted: tuple[Probes, Scripted],
) -> None:
    made, asker = scripted
    a = grouped("a")
    made.consider({"a": a}, {"a": seen(1)})
    asker.answers.put((seen(1), CAN))
    await eventually(lambda: known(made) == (False, CAN))
    unbound = msgspec.structs.replace(a, found=msgspec.structs.replace(a.found, problem="no driver is bound"))
    b = grouped("b")
    made.consider({"a": unbound, "b": b}, {"a": seen(1), "b": seen(2)})
    asker.answers.put((seen(2), CANNOT))
    await eventually(lambda: not made.applied({"b": b})["b"].waiting)
    assert made.applied({"b": b})["b"].migration == CANNOT
    assert asker.questions == 2


class Replacing(FakeVfio):
    """While a device is asked, another one comes in its place."""

    def __init__(self, dev_root: Path, directory: Path) -> None:
        super().__init__(dev_root)
        self.directory = directory

    def ioctl(self, descriptor: int, request: int, argument: int | bytearray) -> int:
        answer = super().ioctl(descriptor, request, argument)
        if self.calls[-1] == "DEVICE_FEATURE":
            self.directory.rename(self.directory.with_name("gone"))
            shutil.copytree(self.directory.with_name("gone"), self.directory, symlinks=True)
        return answer


def test_an_answer_that_may_be_of_a_device_made_anew_meanwhile_does_not_count(node: World) -> None:
    directory = node.add(1)
    found = FoundDevice(
        uuid(1), Kind.MDEV, str(directory.relative_to(node.sysfs)), Declaration(Kind.MDEV), driver="nvidia"
    )
    vfio = Replacing(node.dev, directory)
    vfio.plug(uuid(1), group="101", vfio_dev="vfio1")
    before = appearance(node.sysfs, found.path)
    asked, answer = Asker(node.sysfs, node.dev, vfio).ask(found)
    assert asked == before
    assert answer == NotKnown(Why.NO_NODE, "it went away while it was asked")
    assert vfio.left_open == []


def grouped(id_: str) -> InventoryDevice:
    """A device of IOMMU group 7."""
    found = msgspec.structs.replace(DEVICE.found, id=id_, path=f"devices/{id_}", iommu_group="7")
    return InventoryDevice(found, POOL)


def link_group(node: World, number: int, group: int) -> None:
    """Put a device into another IOMMU group."""
    device = node.device(number)
    members = node.sysfs / f"kernel/iommu_groups/{group}/devices"
    members.mkdir(parents=True, exist_ok=True)
    (device / "iommu_group").unlink()
    link(device / "iommu_group", members.parent)
