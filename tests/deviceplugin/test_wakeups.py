"""The kernel's events bring a scan, soon and once; nothing is lost, and without them time does."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from migcompat.sysfs import scan as discovery
from migcompat.sysfs.scan import ScanResult
from migcompat.sysfs.uevents import Listener
from migcompat_deviceplugin import metrics, wakeups
from migcompat_deviceplugin import sysfs as module
from migcompat_deviceplugin.app import SWEEP
from migcompat_deviceplugin.wakeups import Wakeups

from tests.deviceplugin.world import POOL, World, eventually, uuid
from tests.support.fabricate import add_device_nodes, add_mdev, write
from tests.support.uevents import FakeUevents, message

NEVER = 3600.0


@pytest.fixture
async def kernel() -> FakeUevents:
    return FakeUevents()


@pytest.fixture
async def listening(kernel: FakeUevents) -> AsyncIterator[Wakeups]:
    made = Wakeups(kernel.listener())
    made.start()
    yield made
    made.stop()
    assert kernel.closed


async def woken(listening: Wakeups) -> float:
    """The time of the event that ends a wait which otherwise would be endless."""
    async with asyncio.timeout(20):
        news = await listening.wait(NEVER)
    assert news is not None
    return news.at


def figure(name: str) -> float:
    return metrics.REGISTRY.get_sample_value(name) or 0.0


async def test_an_event_ends_the_wait_and_says_when_it_came(kernel: FakeUevents, listening: Wakeups) -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    kernel.send()
    event = await woken(listening)
    assert before <= event <= loop.time()


async def test_time_ends_it_too(listening: Wakeups) -> None:
    assert await listening.wait(0.01) is None


async def test_without_a_listener_time_alone_does() -> None:
    silent = Wakeups(None)
    silent.start()
    assert await silent.wait(0.01) is None
    silent.stop()


async def test_a_burst_of_events_is_one_wake_up(kernel: FakeUevents, listening: Wakeups) -> None:
    heard = figure("migcompat_agent_uevents_total")
    for _ in range(100):
        kernel.send()
    await woken(listening)
    assert await listening.wait(0.05) is None
    assert figure("migcompat_agent_uevents_total") == heard + 100


async def test_events_that_follow_closely_put_the_wake_up_off(
    kernel: FakeUevents, listening: Wakeups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeups, "SOON", 0.5)
    monkeypatch.setattr(wakeups, "QUIET", 0.5)
    monkeypatch.setattr(wakeups, "AT_MOST", NEVER)
    wait = asyncio.create_task(woken(listening))
    sent = []
    for _ in range(5):
        kernel.send()
        sent.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0)
    await wait
    assert asyncio.get_running_loop().time() >= sent[-1] + 0.5


async def test_events_that_never_end_do_not_put_it_off_for_ever(
    kernel: FakeUevents, listening: Wakeups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeups, "SOON", NEVER)
    monkeypatch.setattr(wakeups, "QUIET", NEVER)
    monkeypatch.setattr(wakeups, "AT_MOST", 0.2)
    wait = asyncio.create_task(woken(listening))
    while not wait.done():
        kernel.send()
        await asyncio.sleep(0.01)
    event = await wait
    assert asyncio.get_running_loop().time() >= event + 0.2


async def test_what_comes_between_two_waits_ends_the_second(kernel: FakeUevents, listening: Wakeups) -> None:
    kernel.send()
    first = await woken(listening)
    kernel.send()
    assert await woken(listening) > first


async def test_events_that_the_kernel_dropped_are_a_wake_up(kernel: FakeUevents, listening: Wakeups) -> None:
    overruns = figure("migcompat_agent_uevent_overruns_total")
    kernel.fail(errno.ENOBUFS)
    await woken(listening)
    assert figure("migcompat_agent_uevent_overruns_total") == overruns + 1


async def test_others_and_others_matters_are_none(kernel: FakeUevents, listening: Wakeups) -> None:
    kernel.send(sender=4711)
    kernel.send(message(subsystem="net"))
    kernel.send(b"garbled")
    assert await listening.wait(0.05) is None


async def test_a_broken_socket_leaves_time(
    kernel: FakeUevents, listening: Wakeups, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.fail(errno.EBADF)
    assert await listening.wait(0.05) is None
    assert kernel.closed
    assert "heard no more" in caplog.text


async def test_an_event_shows_a_device_at_once(node: World) -> None:
    lags = figure("migcompat_agent_uevent_lag_seconds_count")
    async with node.running(scan_interval=NEVER) as agent:
        await eventually(lambda: agent.state.scanned)
        node.add(1)
        node.uevents.send()
        await node.registered(count=1)
        node.remove(1)
        node.uevents.send(message("remove"))
        await eventually(lambda: POOL not in node.kubelet.plugins)
    assert figure("migcompat_agent_uevent_lag_seconds_count") == lags + 2


async def test_an_event_during_a_scan_brings_another(node: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device comes after the scan has read the bus, and before it has ended."""
    inside, go_on = threading.Event(), threading.Event()
    real = discovery.scan

    def slow(root: Path, *_: object) -> ScanResult:
        result = real(root)
        inside.set()
        go_on.wait()
        return result

    monkeypatch.setattr(module, "scan", slow)
    async with node.running(scan_interval=NEVER):
        await eventually(inside.is_set)
        node.add(1)
        node.uevents.send()
        go_on.set()
        await node.registered(count=1)


async def test_listening_begins_before_the_first_scan(node: World, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    real = discovery.scan

    def scan(root: Path, *_: object) -> ScanResult:
        order.append("scan")
        return real(root)

    def listen() -> Listener:
        order.append("listen")
        return FakeUevents().listener()

    monkeypatch.setattr(module, "scan", scan)
    monkeypatch.setattr(node, "_listen", listen)
    async with node.running() as agent:
        await eventually(lambda: agent.state.scanned)
    assert order[:2] == ["listen", "scan"]
    assert order.count("listen") == 1


async def test_a_scan_that_fails_does_not_lose_the_event(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lags = figure("migcompat_agent_uevent_lag_seconds_count")
    async with node.running(scan_interval=0.3) as agent:
        await eventually(lambda: agent.state.scanned)
        (node.sysfs / "bus").rename(node.sysfs / "elsewhere")
        node.uevents.send()
        await eventually(lambda: agent.state.scan_problem)
        (node.sysfs / "elsewhere").rename(node.sysfs / "bus")
        node.add(1)
        await node.registered(count=1)
    assert figure("migcompat_agent_uevent_lag_seconds_count") == lags + 1


async def test_a_publication_that_fails_does_not_lose_the_event(node: World) -> None:
    lags = figure("migcompat_agent_publish_lag_seconds_count")
    failures = figure("migcompat_agent_publish_failures_total")
    node.add(1)
    async with node.running(scan_interval=NEVER) as agent:
        await node.registered(count=1)
        await eventually(lambda: agent.state.problem() is None)
        node.api.broken.add("vfionodes")
        node.add(2)
        node.uevents.send()
        await eventually(lambda: figure("migcompat_agent_publish_failures_total") > failures)
        node.api.broken.clear()
        await node.registered(count=2)
    assert figure("migcompat_agent_publish_lag_seconds_count") == lags + 1


async def test_an_agent_that_may_not_listen_says_so_once_and_goes_on(
    node: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden() -> Listener:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(node, "_listen", forbidden)
    async with node.running():
        node.add(1)
        await node.registered(count=1)
        node.add(2)
        await node.registered(count=2)
    told = [record for record in caplog.records if "cannot be heard" in record.message]
    assert [record.levelno for record in told] == [logging.WARNING]
    assert "--scan-interval" in told[0].message


def nvidias_vf(node: World) -> Path:
    """A VF of NVIDIA's that may be given a vGPU type, which is what makes a device of it."""
    pf, ids = "0000:41:00.0", ("0x10de", "0x2335")
    node.add_function(f"pci0000:40/{pf}", driver="nvidia", group=5, ids=ids)
    vf = node.add_function(
        "pci0000:40/0000:41:00.4", driver="nvidia", group=77, ids=ids, vfio_dev="vfio9", physfn=pf
    )
    (vf / "nvidia").mkdir()
    write(vf / "nvidia", {"current_vgpu_type": "0"})
    return vf


def matrix(node: World) -> Path:
    """An AP mdev, to which queues can be assigned."""
    add_device_nodes(node.dev, "vfio/109")
    device = add_mdev(
        node.sysfs,
        "vfio_ap/matrix",
        uuid(9),
        type_id="vfio_ap-passthrough",
        driver="vfio_ap_mdev",
        group=109,
        device_api="vfio-ap",
    )
    (device / "matrix").write_text("06.0004\n")
    return device


@pytest.mark.parametrize("add", [nvidias_vf, matrix])
async def test_where_no_event_tells_of_a_device_scans_are_frequent(
    node: World, add: Callable[[World], Path]
) -> None:
    node.add(1)
    async with node.running(scan_interval=NEVER, told=lambda _: True) as agent:
        await node.registered()
        assert agent.intervals(listening=True) == SWEEP
        add(node)
        node.uevents.send()
        await eventually(lambda: agent.intervals(listening=True) == 1)


async def test_a_vf_that_gets_a_type_and_loses_it_is_noticed_without_an_event(node: World) -> None:
    vf = nvidias_vf(node)
    async with node.running(told=lambda _: True) as agent:
        await eventually(lambda: agent.state.scanned)
        assert agent.state.inventory == {}
        write(vf / "nvidia", {"current_vgpu_type": "1414"})
        await node.registered("vfio.migcompat.io/nvidia-1414")
        write(vf / "nvidia", {"current_vgpu_type": "0"})
        await eventually(lambda: agent.state.inventory == {})


async def test_where_events_tell_of_all_that_is_well_scans_are_seldom(node: World) -> None:
    device = node.add(1)
    async with node.running(told=lambda root: root == node.sysfs) as agent:
        await node.registered()
        assert agent.intervals(listening=True) == SWEEP
        assert agent.intervals(listening=False) == 1
        (device / "driver").unlink()
        node.uevents.send(message("unbind"))
        await eventually(lambda: agent.state.inventory[uuid(1)].problem)
        assert agent.intervals(listening=True) == 1, "what mends it may send no event"
    async with node.running() as agent:
        await eventually(lambda: agent.state.scanned)
        assert agent.intervals(listening=True) == 1, "this tree is not the kernel's"


async def test_a_device_that_an_event_names_is_looked_at_first_and_then_all(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[frozenset[str] | None] = []
    real = discovery.scan

    def scan(root: Path, only: frozenset[str] | None, *_: object) -> ScanResult:
        looks.append(only)
        return real(root, only)

    monkeypatch.setattr(module, "scan", scan)
    lags = figure("migcompat_agent_publish_lag_seconds_count")
    writes = figure("migcompat_agent_publishes_total")
    node.add(1)
    async with node.running(scan_interval=NEVER) as agent:
        await node.registered(count=1)
        await eventually(lambda: agent.state.problem() is None)
        looks.clear()
        device = node.add(2)
        node.uevents.send(message("add", "mdev", f"/{device.relative_to(node.sysfs)}"))
        await eventually(lambda: len(node.vfionode.status.devices) == 2)
        assert looks[0] == frozenset({uuid(2)})
        await eventually(lambda: None in looks)
        await node.registered(count=2)
    assert figure("migcompat_agent_publish_lag_seconds_count") == lags + 1
    assert figure("migcompat_agent_publishes_total") > writes


async def test_events_that_are_lost_or_name_nothing_have_all_looked_at(
    kernel: FakeUevents, listening: Wakeups
) -> None:
    kernel.send(message("add", "mdev", "/devices/a"))
    kernel.fail(errno.ENOBUFS)
    async with asyncio.timeout(20):
        news = await listening.wait(NEVER)
    assert news is not None
    assert not news.devpaths
    kernel.send(message("add", "mdev", "/devices/b"))
    kernel.send(message("add", "vfio", "/devices/c"))
    async with asyncio.timeout(20):
        news = await listening.wait(NEVER)
    assert news is not None
    assert news.devpaths == {"/devices/b", "/devices/c"}


async def test_events_count_for_one_look(kernel: FakeUevents, listening: Wakeups) -> None:
    for name in ("a", "b"):
        kernel.send(message("add", "mdev", f"/devices/{name}"))
        async with asyncio.timeout(20):
            news = await listening.wait(NEVER)
        assert news is not None
        assert news.devpaths == {f"/devices/{name}"}


async def test_what_was_lost_stays_so_until_the_look(kernel: FakeUevents, listening: Wakeups) -> None:
    """Events that are heard later say nothing of those that the kernel dropped."""
    overruns = figure("migcompat_agent_uevent_overruns_total")
    kernel.fail(errno.ENOBUFS)
    kernel.fail(errno.ENOBUFS)
    await eventually(lambda: figure("migcompat_agent_uevent_overruns_total") == overruns + 2)
    events = figure("migcompat_agent_uevents_total")
    kernel.send(message("add", "mdev", "/devices/a"))
    await eventually(lambda: figure("migcompat_agent_uevents_total") == events + 1)
    async with asyncio.timeout(20):
        news = await listening.wait(NEVER)
    assert news is not None
    assert not news.devpaths


async def test_events_about_too_much_have_all_looked_at(
    kernel: FakeUevents, listening: Wakeups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeups, "DEVPATHS", 2)
    for count in (2, 3):
        for number in range(count):
            kernel.send(message("add", "mdev", f"/devices/{number}"))
        async with asyncio.timeout(20):
            news = await listening.wait(NEVER)
        assert news is not None
        assert len(news.devpaths) == (2 if count == 2 else 0)
