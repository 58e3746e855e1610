"""Devices come, go and change under the running agent: the kubelet knows, and only from the kernel's events.

The agent looks by itself only once an hour here, so what the kubelet learns has come by an event.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable

import pytest

from tests.kernel.guest import hardware
from tests.kernel.guest.conftest import Figure
from tests.kernel.guest.hardware import IGB, NVME
from tests.kernel.guest.node import SETTLED, Node
from tests.kernel.guest.storm import Storm
from tests.kernel.guest.uevents import Counted

pytestmark = pytest.mark.asyncio(loop_scope="session")

MTTY = f"{hardware.DOMAIN}/mtty-1"
CYCLES = 1
FLURRIES = 8
STORM = 400
"""Changes."""
OVERRUN = 100
"""Mdevs made and removed; each is some ten events, and the socket holds a few hundred."""


async def timed(node: Node, change: Callable[[], object], shown: Callable[[], bool]) -> float:
    """Milliseconds from just before *change* until the kubelet has heard what *shown* waits for."""
    start = time.perf_counter()
    change()
    await node.kubelet.wait_for(shown, SETTLED)
    return (time.perf_counter() - start) * 1000


def tell(figure: Figure, what: str, milliseconds: list[float]) -> None:
    cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
    figure(f"{what}, p50 of {len(milliseconds)}", cuts[49], "ms")
    figure(f"{what}, p99", cuts[98], "ms")
    figure(f"{what}, max", max(milliseconds), "ms")


async def test_mdevs_one_after_another(node: Node, figure: Figure) -> None:
    """As many as the driver has, each awaited; the first of a pool includes its registration."""
    first: list[float] = []
    created: list[float] = []
    removed: list[float] = []
    for _ in range(CYCLES):
        for _ in range(hardware.available("mtty-1")):
            known = set(node.view.get(MTTY, ()))
            took = await timed(
                node,
                lambda: hardware.create("mtty-1"),
                lambda known=known: len(node.view.get(MTTY, ())) == len(known) + 1,  # type: ignore[misc]
            )
            (created if known else first).append(took)
            assert node.view == hardware.truth()
        for name in hardware.mdevs():
            took = await timed(
                node,
                lambda name=name: hardware.remove(name),  # type: ignore[misc]
                lambda name=name: name not in node.view.get(MTTY, ()),  # type: ignore[misc]
            )
            removed.append(took)
            assert node.view == hardware.truth()
    tell(figure, "create an mdev -> kubelet's allocatable", created)
    figure("create the first mdev of a pool -> allocatable, max", max(first), "ms")
    tell(figure, "remove an mdev -> kubelet's allocatable", removed)


async def test_many_mdevs_at_once(node: Node, figure: Figure) -> None:
    count = 0
    start = time.perf_counter()
    for type_id in ("mtty-1", "mbochs-small"):
        for _ in range(hardware.available(type_id)):
            hardware.create(type_id)
            count += 1
    await node.settled()
    figure(f"create {count} mdevs at once -> allocatable, all", time.perf_counter() - start, "s")
    assert sum(len(devices) for devices in node.view.values()) == count > 40
    start = time.perf_counter()
    for name in hardware.mdevs():
        hardware.remove(name)
    await node.settled()
    figure(f"remove {count} mdevs at once -> allocatable, all", time.perf_counter() - start, "s")
    assert node.view == {}


async def test_an_mdev_that_comes_back_as_another_type_is_in_the_other_pool(node: Node) -> None:
    name = hardware.create("mtty-1")
    await node.settled()
    hardware.remove(name)
    hardware.create("mtty-2", name)
    await node.settled()
    assert node.view == {f"{hardware.DOMAIN}/mtty-2": {name: True}}
    assert (node.published[name].type, node.published[name].resource) == (
        "mtty-2",
        f"{hardware.DOMAIN}/mtty-2",
    )


async def test_an_mdev_that_loses_its_driver_is_unhealthy_until_it_goes(node: Node) -> None:
    name = hardware.create("mtty-1")
    await node.settled()
    hardware.unbind_mdev(name)
    await node.settled()
    assert node.view == {MTTY: {name: False}}
    await node.comes_true(lambda: "no driver" in node.published[name].problem)
    hardware.remove(name)
    await node.settled()
    assert node.view == {}


async def test_an_mdev_that_comes_back_in_another_iommu_group_is_handed_out_by_that(node: Node) -> None:
    """The agent sees before and after alone: the id never goes. Another device has the group's number."""
    name = hardware.create("mtty-1")
    await node.settled()
    former = hardware.iommu_group(name)
    with node.agent.frozen():
        hardware.remove(name)
        other = hardware.create("mtty-1")
        hardware.create("mtty-1", name)
    group = hardware.iommu_group(name)
    assert hardware.iommu_group(other) == former != group, "the kernel numbers otherwise: this shows nothing"
    await node.settled()
    await node.comes_true(
        lambda: {id_: d.iommu_group for id_, d in node.published.items()} == {name: group, other: former}
    )
    answer = (await node.kubelet.admit("ns", "pod", "compute", {MTTY: 2}))[MTTY]
    node.kubelet.release("ns", "pod")
    assert {f"/dev/vfio/{group}", f"/dev/vfio/{former}"} < {device.host_path for device in answer.devices}


async def test_a_driver_is_unloaded_and_loaded_again(node: Node) -> None:
    """As its upgrade does. A parent driver's mdevs go with it; functions lose it and get it back."""
    vf = hardware.set_vfs(hardware.physical_function(NVME), 1)[0]
    hardware.bind(vf)
    name = hardware.create("mtty-1")
    await node.settled()
    (functions,) = [devices for pool, devices in node.view.items() if pool != MTTY]
    assert functions == {vf: True}
    hardware.unload("mtty")
    hardware.unload("vfio-pci")
    try:
        await node.settled()
        assert node.view == {}
        await node.comes_true(lambda: not node.published)
    finally:
        hardware.load("vfio-pci")
        hardware.load("mtty")
    hardware.create("mtty-1", name)
    await node.settled()
    assert functions in node.view.values()
    assert node.view[MTTY] == {name: True}
    await node.comes_true(lambda: node.published.keys() == {name, vf})


@pytest.mark.parametrize("ids", [NVME, IGB], ids=["nvme", "igb"])
async def test_the_number_of_vfs_changes(node: Node, ids: tuple[str, str], figure: Figure) -> None:
    pf = hardware.physical_function(ids)
    for count in (3, 1, 4):
        vfs = hardware.set_vfs(pf, count)
        await node.settled()
        assert node.view == {}
        for vf in vfs:
            hardware.bind(vf)
        took = await node.settled()
        (devices,) = node.view.values()
        assert devices == dict.fromkeys(vfs, True)
        assert {node.published[vf].parent for vf in vfs} == {pf}
        name = hardware.driver(pf)
        figure(f"bind {count} VFs ({name}) to vfio-pci -> allocatable, all", took * 1000, "ms")
    hardware.set_vfs(pf, 0)
    await node.settled()
    assert node.view == {}


async def test_a_function_leaves_vfio_and_comes_back(node: Node) -> None:
    vf, other = hardware.set_vfs(hardware.physical_function(NVME), 2)
    hardware.bind(vf)
    hardware.bind(other)
    await node.settled()
    ((pool, devices),) = node.view.items()
    hardware.unbind(vf)
    await node.settled()
    assert node.view == {pool: {other: True}}
    hardware.bind(vf)
    await node.settled()
    assert node.view == {pool: devices}


async def test_devices_that_share_a_group_come_and_go_one_by_one(node: Node) -> None:
    functions = hardware.functions(hardware.EDU)
    for change in (hardware.bind, hardware.unbind):
        for function in functions:
            change(function)
            await node.settled()


@pytest.mark.parametrize("seed", [1, 2])
async def test_after_each_flurry_the_kubelet_knows_what_the_kernel_has(
    node: Node, seed: int, figure: Figure
) -> None:
    """Many short ones: a lost event is noticed only if no other follows."""
    storm = Storm(seed)
    took = []
    for number in range(FLURRIES):
        for _ in range(1 + (number * 7 + seed) % 5):
            storm.change()
        took.append(await node.settled())
    figure(
        f"flurries of 1 to 5 changes, seed {seed}: until all is known, longest of {FLURRIES}", max(took), "s"
    )


@pytest.mark.parametrize("seed", [3])
async def test_after_a_storm_the_kubelet_knows_what_the_kernel_has(
    node: Node, seed: int, figure: Figure
) -> None:
    storm = Storm(seed)
    heard = await node.agent.metric("migcompat_agent_uevents_total")
    start = time.perf_counter()
    with Counted() as counted:
        await asyncio.to_thread(storm.blow, STORM)
        blew = time.perf_counter() - start
    took = await node.settled()
    assert await node.agent.metric("migcompat_agent_uevents_total") > heard
    await node.comes_true(
        lambda: node.published.keys() == {id_ for devices in node.view.values() for id_ in devices}
    )
    figure(f"storm of {STORM} changes, seed {seed}: its length", blew, "s")
    figure(f"storm of {STORM} changes, seed {seed}: events of the kernel", counted.events, "")
    figure(f"storm of {STORM} changes, seed {seed}: from its end until all is known", took, "s")
    figure("resident memory of the agent after a storm", node.agent.resident(), "MiB")


async def test_events_that_the_kernel_had_to_drop_are_made_up_for(node: Node, figure: Figure) -> None:
    """The agent stands still until its socket is full and the kernel drops what it would say."""
    before = [hardware.create("mtty-1") for _ in range(5)]
    await node.settled()
    with node.agent.frozen():
        for name in before:
            hardware.remove(name)
        for _ in range(OVERRUN):
            hardware.remove(hardware.create("mtty-2"))
        after = [hardware.create("mtty-1") for _ in range(7)]
        dropped = node.agent.dropped()
        assert dropped > 0, "the kernel dropped nothing: this shows nothing"
    took = await node.settled()
    assert node.view == {MTTY: dict.fromkeys(after, True)}
    assert await node.agent.metric("migcompat_agent_uevent_overruns_total") > 0
    figure("events dropped while the agent stood still", dropped, "")
    figure("from its going on until all is known", took, "s")
