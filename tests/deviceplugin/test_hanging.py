"""A driver that hangs in an attribute costs its own device, and nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from migcompat_deviceplugin import guard, obligations
from migcompat_deviceplugin import sysfs as module
from migcompat_deviceplugin.devnodes import DevDir
from migcompat_deviceplugin.sysfs import Sysfs, SysfsError

from tests.deviceplugin.world import CONTAINER, POOL, World, eventually, uuid
from tests.support.fabricate import write
from tests.support.hanging import Hanging, hanging_reads
from tests.support.kubelet import AdmissionError, PreStartError

HANGS = "its driver hangs in an attribute that was read"
FIRST, SECOND = uuid(1), uuid(2)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.6)
    monkeypatch.setattr(module, "PATIENCE_LEFT", 0.4)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    with hanging_reads() as made:
        yield made


def looks() -> int:
    """Threads that look at sysfs now."""
    return sum(thread.name == "sysfs" for thread in threading.enumerate())


async def sysfs_of(node: World, count: int) -> Sysfs:
    for number in range(1, count + 1):
        node.add(number)
    sysfs = Sysfs(node.sysfs, dev=DevDir(node.dev))
    assert len(await sysfs.scan()) == count
    return sysfs


async def test_others_are_allocated_and_guarded_while_a_device_hangs_and_it_recovers(
    node: World, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    for patience in ("PATIENCE", "PATIENCE_LEFT"):
        monkeypatch.setattr(module, patience, 2.0)
    node.add(1)
    node.add(2)
    async with node.running() as agent:
        await node.registered(count=2)
        hanging.add(FIRST)
        await eventually(lambda: node.kubelet.resources[POOL] == {FIRST: False, SECOND: True})
        await eventually(lambda: node.vfionode.status.devices[0].problem.startswith(HANGS))
        assert not node.vfionode.status.devices[1].problem
        usable = next(c for c in node.vfionode.status.conditions if c.type == "DevicesUsable")
        assert usable.status == "False"
        assert FIRST in usable.message

        node.source_vm()
        pod = node.target_pod()
        assert list((await node.start_target(pod)).values()) == [SECOND]
        await eventually(lambda: node.vfionode.status.devices[1].allocated_to is not None)
        profile = node.vfionode.status.devices[1].profile
        write(node.device(2) / "migration/self", {"software_version": "1.0.1"})
        await eventually(lambda: node.vfionode.status.devices[1].profile != profile)
        assert len(hanging.threads) == 1, "however often all devices are looked at"
        await eventually(lambda: agent.state.problem() is None)

        hanging.release()
        await eventually(lambda: node.kubelet.resources[POOL] == {FIRST: True, SECOND: True})
        await eventually(lambda: not any(device.problem for device in node.vfionode.status.devices))


async def test_the_device_itself_is_not_handed_out(node: World, hanging: Hanging) -> None:
    node.add(1)
    async with node.running(scan_interval=60):
        await node.registered(count=1)
        hanging.add(FIRST)
        with pytest.raises(AdmissionError, match=f"{FIRST} is unhealthy: {HANGS}"):
            await node.kubelet.admit("vms", "launcher", CONTAINER, {POOL: 1})


async def test_the_guard_refuses_a_device_that_hangs(node: World, hanging: Hanging) -> None:
    node.add(1)
    node.source_vm()
    pod = node.target_pod()
    async with node.running(scan_interval=60):
        await node.registered(count=1)
        await node.kubelet.admit("tenant-a", pod.metadata.name, CONTAINER, {POOL: 1})
        hanging.add(FIRST)
        for _ in range(3):
            with pytest.raises(PreStartError, match=f"migcompat guard: DeviceUnhealthy: {HANGS}"):
                await node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER)
        assert len(hanging.threads) == 1
        hanging.release()
        await eventually(lambda: looks() == 0)
        await node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER)


async def test_a_thread_hangs_for_each_device_and_no_more(node: World, hanging: Hanging) -> None:
    sysfs = await sysfs_of(node, 5)
    before = sysfs.last
    hanging.add(*map(uuid, (1, 3, 4)))
    for _ in range(3):
        found = await sysfs.scan()
        assert [id_ for id_, device in sorted(found.items()) if device.problem] == list(map(uuid, (1, 3, 4)))
        assert await sysfs.reread([uuid(2), uuid(5)]) == {id_: before[id_] for id_ in (uuid(2), uuid(5))}
        assert (await sysfs.reread([uuid(3)]))[uuid(3)].problem.startswith(HANGS)
        assert len(hanging.threads) == 3
        await eventually(lambda: looks() == 3)

    hanging.release(uuid(3))
    await eventually(lambda: looks() == 2)
    assert not (await sysfs.reread([uuid(3)]))[uuid(3)].problem
    hanging.release()
    await eventually(lambda: looks() == 0)
    assert await sysfs.scan() == before
    assert sysfs.problems == ()


async def test_others_are_reread_while_it_turns_out_that_a_device_hangs(
    node: World, hanging: Hanging
) -> None:
    """They wait for their turn at most."""
    sysfs = await sysfs_of(node, 4)
    before = sysfs.last
    hanging.add(uuid(1), uuid(2))
    calls = [sysfs.scan(), *(sysfs.reread([uuid(number)]) for number in (1, 2, 1, 3, 3, 4))]
    whole, *parts = await asyncio.gather(*calls)
    assert {id_ for id_, device in whole.items() if device.problem} == {uuid(1), uuid(2)}
    told = [(id_, bool(device.problem)) for part in parts for id_, device in part.items()]
    assert told == [(uuid(n), n < 3) for n in (1, 2, 1, 3, 3, 4)]
    assert parts[-1] == {uuid(4): before[uuid(4)]}
    assert len(hanging.threads) == 2


async def test_what_devices_share_hangs_once_for_all_of_them(node: World, hanging: Hanging) -> None:
    """The firmware version of a card, of which many VFs ask."""
    port, pf = "pci0000:00/0000:00:01.0", "0000:01:00.0"
    card = node.add_function(f"{port}/{pf}", group=5, driver="mlx5_core") / "infiniband/mlx5_0"
    card.mkdir(parents=True)
    write(card, {"fw_ver": "28.41.1000"})
    vfs = [f"0000:01:00.{number}" for number in range(1, 7)]
    for number, vf in enumerate(vfs):
        node.add_function(f"{port}/{vf}", group=10 + number, physfn=pf, driver="mlx5_vfio_pci")
    sysfs = Sysfs(node.sysfs, dev=DevDir(node.dev))
    node.add(1)
    whole = await sysfs.scan()
    assert set(whole) == {*vfs, FIRST}
    hanging.add("fw_ver")
    found = await sysfs.scan()
    assert {id_ for id_, device in found.items() if device.problem} == set(vfs)
    assert len(hanging.threads) == 1
    hanging.release()
    await eventually(lambda: looks() == 0)
    assert await sysfs.scan() == whole


async def test_a_device_that_is_slow_does_not_hang(node: World, hanging: Hanging) -> None:
    sysfs = await sysfs_of(node, 2)
    hanging.add(FIRST)
    asyncio.get_running_loop().call_later(0.1, hanging.release)
    assert not any(device.problem for device in (await sysfs.scan()).values())


async def test_a_device_that_comes_and_hangs_at_once_is_told(node: World, hanging: Hanging) -> None:
    sysfs = await sysfs_of(node, 1)
    hanging.add(SECOND)
    node.add(2)
    assert set(await sysfs.scan()) == {FIRST}
    [problem] = sysfs.problems
    assert problem.path.endswith(SECOND)
    assert problem.message.startswith(HANGS)


async def test_a_look_that_is_given_up_leaves_nothing_behind(node: World, hanging: Hanging) -> None:
    """Whoever asks may go away, or have less patience than it takes to see that a device hangs."""
    sysfs = await sysfs_of(node, 2)
    hanging.add(FIRST)
    with pytest.raises(SysfsError, match="not read within"):
        await sysfs.glance([FIRST], deadline=0.05)
    asking = asyncio.create_task(sysfs.reread([SECOND]))
    await asyncio.sleep(0)
    asking.cancel()
    assert (await sysfs.scan())[FIRST].problem
    assert len(hanging.threads) == 1
    hanging.release()
    await eventually(lambda: looks() == 0)
    assert not any(device.problem for device in (await sysfs.scan()).values())


async def test_an_obligation_that_hangs_takes_one_thread_however_often_the_kubelet_asks(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, release = [], threading.Event()
    monkeypatch.setattr(guard, "WRITE_DEADLINE", 0.1)
    real = obligations.fulfil

    def hang(*given: object) -> None:
        written.append(threading.current_thread())
        release.wait(60)
        real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(guard, "fulfil", hang)
    (node.add(1) / "aggregator").write_text("16\n")
    node.source_vm(extra={"aggregator": "4"})
    pod = node.target_pod()
    async with node.running():
        await node.registered()
        await node.kubelet.admit("tenant-a", pod.metadata.name, CONTAINER, {POOL: 1})
        for why in ("not written within", "an earlier write", "an earlier write"):
            with pytest.raises(PreStartError, match=f"ObligationFailed: .*{why}"):
                await node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER)
        assert len(written) == 1
        release.set()
        await asyncio.to_thread(written[0].join, 60)
        await eventually(lambda: not written[0].is_alive())
        await node.kubelet.prestart("tenant-a", pod.metadata.name, CONTAINER)
