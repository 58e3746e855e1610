"""Looks at sysfs that hang or fail."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from migcompat.sysfs import scan as discovery
from migcompat.sysfs.scan import ScanProblem, ScanResult
from migcompat_deviceplugin import sysfs as module
from migcompat_deviceplugin.devnodes import DevDir
from migcompat_deviceplugin.sysfs import Sysfs, SysfsError

from tests.deviceplugin.world import PARENT, POOL, World, eventually, uuid
from tests.support.fabricate import add_mdev


async def test_hanging_scan_is_given_up_and_starts_no_second_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, threads = threading.Event(), []

    def hang(*_: object) -> ScanResult:
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
    def fail(*_: object) -> ScanResult:
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

        def hang(root: Path, *_: object) -> ScanResult:
            release.wait()
            return real(root)

        monkeypatch.setattr(module, "scan", hang)
        await eventually(lambda: node.vfionode.status.conditions[0].reason == "ScanFailed")
        assert agent.state.problem()
        assert node.kubelet.resources[POOL] == {uuid(1): True}

        await node.kubelet.restart()
        await node.registered()
        release.set()
        await eventually(lambda: node.vfionode.status.conditions[0].reason == "Published")


PORT = "pci0000:00/0000:00:01.0"
PF, VF, MATE, OTHER = "0000:01:00.0", "0000:01:00.1", "0000:01:00.2", "0000:02:00.0"


def neighbours(node: World) -> Callable[[str], Path]:
    """A VF and another function of its IOMMU group, its PF, and a function and an mdev for themselves."""
    node.add_function(f"{PORT}/{PF}", group=5, driver="mlx5_core")
    node.add_function(f"{PORT}/{VF}", group=1, physfn=PF, vfio_dev="vfio1")
    node.add_function(f"{PORT}/{MATE}", group=1)
    node.add_function(f"{PORT}/{OTHER}", group=2)
    node.add(1)
    return lambda name: node.sysfs / "devices" / PORT / name


def rebind(device: Path, driver: str) -> None:
    (device / "driver").unlink()
    if driver:
        (device / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")


CHANGES: dict[str, Callable[[World, Callable[[str], Path]], object]] = {
    "nothing": lambda node, at: None,
    "the device is unbound": lambda node, at: rebind(at(VF), ""),
    "its neighbour goes to the host": lambda node, at: rebind(at(MATE), "mlx5_core"),
    "its PF goes to vfio-pci": lambda node, at: rebind(at(PF), "vfio-pci"),
    "it is gone": lambda node, at: shutil.rmtree(at(VF)),
    "it cannot be read": lambda node, at: (at(VF) / "vendor").write_text("garbled"),
    "its group cannot be listed": lambda node, at: shutil.rmtree(
        node.sysfs / "kernel/iommu_groups/1/devices"
    ),
    "another is gone": lambda node, at: shutil.rmtree(at(OTHER)),
    "its node is gone": lambda node, at: (node.dev / "vfio/1").unlink(),
    "the mdev is unbound": lambda node, at: (node.device(1) / "driver").unlink(),
    "the mdev is gone": lambda node, at: node.remove(1),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("ids", [[VF], [MATE, OTHER], [uuid(1)], [VF, uuid(1), "0000:ff:00.0"]])
async def test_devices_are_reread_as_a_look_at_all_finds_them(
    node: World, change: str, ids: list[str]
) -> None:
    at = neighbours(node)
    dev = DevDir(node.dev)
    ours, other = (Sysfs(node.sysfs, dev=dev) for _ in range(2))
    before = await ours.scan()
    await other.scan()
    assert not any(device.problem for device in before.values())
    CHANGES[change](node, at)
    whole = await other.scan()
    assert await ours.reread(ids) == {id_: whole[id_] for id_ in ids if id_ in whole}
    assert {id_: d for id_, d in ours.last.items() if id_ not in ids} == {
        id_: d for id_, d in before.items() if id_ not in ids
    }
    assert await ours.scan() == whole
    assert set(ours.problems) == set(other.problems)


async def test_a_glance_tells_what_it_finds_wrong_and_what_is_mended(node: World) -> None:
    at = neighbours(node)
    sysfs = Sysfs(node.sysfs, dev=DevDir(node.dev))
    before = await sysfs.scan()
    assert await sysfs.glance([VF]) is before, "nothing is new"
    entry = node.sysfs / "bus/pci/devices" / VF
    target = entry.readlink()
    entry.unlink()
    entry.symlink_to("/elsewhere")
    assert "link" in (await sysfs.glance([VF]))[VF].problem
    assert [problem.path for problem in sysfs.problems] == [f"bus/pci/devices/{VF}"]
    entry.unlink()
    entry.symlink_to(target)
    assert not (await sysfs.glance([VF]))[VF].problem
    assert sysfs.problems == ()
    assert at(VF).exists()


async def test_paths_of_events_name_devices_and_who_depends_on_them(node: World) -> None:
    neighbours(node)
    sysfs = Sysfs(node.sysfs, dev=DevDir(node.dev))
    await sysfs.scan()
    port = f"/devices/{PORT}"
    assert sysfs.named([f"{port}/{OTHER}"]) == {OTHER}
    assert sysfs.named([f"{port}/{VF}/vfio-dev/vfio1"]) == {VF, MATE}
    assert sysfs.named([f"{port}/{PF}", f"{port}/{OTHER}"]) == {PF, VF, OTHER}
    assert sysfs.named([f"/devices/{PARENT}/{uuid(1)}"]) == {uuid(1)}
    node.add(2)
    assert sysfs.named([f"/devices/{PARENT}/{uuid(2)}"]) == {uuid(2)}, "not found before"
    assert sysfs.named([f"{port}/{OTHER}", "/devices/virtual/vfio/7"]) is None
    assert sysfs.named(["/"]) is None
    assert sysfs.named([]) == set()


async def test_an_event_of_a_pf_is_about_the_mdevs_of_its_vfs_too(node: World) -> None:
    """In whatever order they are known: what was looked at last is behind the others."""
    at = neighbours(node)
    add_mdev(node.sysfs, f"{PORT}/{VF}", uuid(3), type_id="nvidia-557", driver="nvidia", group=103)
    sysfs = Sysfs(node.sysfs, dev=DevDir(node.dev))
    await sysfs.scan()
    assert sysfs.named([f"/devices/{PORT}/{VF}"]) == {VF, MATE, uuid(3)}
    rebind(at(VF), "")
    await sysfs.glance([VF])
    assert sysfs.named([f"/devices/{PORT}/{PF}"]) == {PF, VF, uuid(3)}


async def test_a_device_that_goes_while_it_is_read_is_gone(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.add(1)
    sysfs = Sysfs(node.sysfs, dev=DevDir(node.dev))
    assert set(await sysfs.scan()) == {uuid(1)}
    node.remove(1)
    listed = ScanProblem(f"bus/mdev/devices/{uuid(1)}", "cannot be read (No such file or directory)")
    monkeypatch.setattr(module, "scan", lambda *_: ScanResult((), (listed,)))
    assert await sysfs.scan() == {}
