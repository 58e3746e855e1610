"""Looks at sysfs that hang or fail."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from migcompat.sysfs import scan as discovery
from migcompat.sysfs.scan import ScanResult
from migcompat_deviceplugin import sysfs as module
from migcompat_deviceplugin.sysfs import Sysfs, SysfsError

from tests.deviceplugin.world import POOL, World, eventually, uuid


async def test_hanging_scan_is_given_up_and_starts_no_second_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, threads = threading.Event(), []

    def hang(_: Path) -> ScanResult:
        threads.append(threading.current_thread())
        release.wait()
        return ScanResult()

    monkeypatch.setattr(module, "scan", hang)
    sysfs = Sysfs(tmp_path)
    with pytest.raises(SysfsError, match="not read within"):
        await sysfs.scan(deadline=0.1)
    with pytest.raises(SysfsError, match="an earlier scan still hangs"):
        await sysfs.scan(deadline=0.1)
    assert [thread.daemon for thread in threads] == [True]

    release.set()
    threads[0].join()
    assert await sysfs.scan() == {}


async def test_scan_that_breaks_in_an_unforeseen_way_is_a_failed_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> ScanResult:
        raise KeyError("unforeseen")

    monkeypatch.setattr(module, "scan", fail)
    with pytest.raises(SysfsError, match="KeyError"):
        await Sysfs(tmp_path).scan()


async def test_hanging_scan_stops_neither_serving_nor_publishing(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.add(1)
    release = threading.Event()
    async with node.running() as agent:
        await node.registered()
        real = discovery.scan
        monkeypatch.setattr(module, "SCAN_DEADLINE", 0.1)
        monkeypatch.setattr(module, "REREAD_DEADLINE", 0.1)

        def hang(root: Path) -> ScanResult:
            release.wait()
            return real(root)

        monkeypatch.setattr(module, "scan", hang)
        await eventually(
            lambda: agent.state.problem() and node.vfionode.status.conditions[0].status == "False"
        )
        assert node.vfionode.status.conditions[0].reason == "ScanFailed"
        assert node.kubelet.resources[POOL] == {uuid(1): True}

        await node.kubelet.restart()
        await node.registered()
        release.set()
        await eventually(lambda: node.vfionode.status.conditions[0].reason == "Published")
