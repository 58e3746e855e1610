"""Each device is asked whether it can migrate before anybody hears of it, and is left as it was found."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from migcompat.api.vfionode import Migration, MigrationState
from migcompat.vfio.probe import Handle, probe

from tests.kernel.guest import hardware, vfio
from tests.kernel.guest.conftest import Figure
from tests.kernel.guest.hardware import IGB, NVME
from tests.kernel.guest.node import Node
from tests.kernel.guest.opens import watched

pytestmark = pytest.mark.asyncio(loop_scope="session")

NODES = Path("/dev/vfio/devices")
STATES = {
    vfio.STOP_COPY: MigrationState.STOP_COPY,
    vfio.P2P: MigrationState.P2P,
    vfio.PRE_COPY: MigrationState.PRE_COPY,
}
ASKED = 5
CANNOT = Migration(False)
CAN = Migration(True, tuple(STATES.values()))


def vf_of(ids: tuple[str, str]) -> str:
    (vf,) = hardware.set_vfs(hardware.physical_function(ids), 1)
    hardware.bind(vf)
    return vf


def answered(flags: int | None) -> Migration:
    """The kernel's answer as a VFIONode says it."""
    if flags is None:
        return CANNOT
    return Migration(
        bool(flags & vfio.STOP_COPY), tuple(state for bit, state in STATES.items() if flags & bit)
    )


MAKERS: dict[str, Callable[[], str]] = {
    "mtty-1": lambda: hardware.create("mtty-1"),
    "mtty-2": lambda: hardware.create("mtty-2"),
    "mdpy": lambda: hardware.create("mdpy-vga"),
    "mbochs": lambda: hardware.create("mbochs-small"),
    "nvme VF": lambda: vf_of(NVME),
    "igb VF": lambda: vf_of(IGB),
}


async def test_what_is_published_is_what_the_kernel_answers(node: Node) -> None:
    """By way of the group and by way of the device's own node; who asks gets the device at once."""
    devices = {kind: make() for kind, make in MAKERS.items()}
    await node.settled()
    for kind, device in devices.items():
        with vfio.opened(device) as descriptor:
            by_group = vfio.migration_flags(descriptor)
        with vfio.opened_node(vfio.device_node(device)) as descriptor:
            by_node = vfio.migration_flags(descriptor)
        assert by_group == by_node, kind
        assert node.published[device].migration == answered(by_group), kind
    able = {kind for kind, device in devices.items() if node.published[device].migration != CANNOT}
    assert able == {"mtty-1", "mtty-2"}
    assert node.published[devices["mtty-1"]].migration == CAN
    assert [node.published[devices[kind]].peer_to_peer for kind in ("mtty-1", "mdpy")] == [True, False]


async def test_a_device_is_asked_before_the_kubelet_hears_of_it_and_never_after(node: Node) -> None:
    """The kernel says when its node was opened and closed; what the agent says is not asked."""
    at_first: dict[str, tuple[int, int, Migration | None]] = {}
    hardware.create("mtty-2")  # without a device there is no directory to watch
    await node.settled()
    made: set[str] = set()
    with watched(NODES) as opens:

        def heard(_resource: str, devices: dict[str, bool]) -> None:
            opens.take()
            for device in made.intersection(devices):
                name = vfio.device_node(device).name
                counts = opens.opened.get(name, 0), opens.closed.get(name, 0)
                at_first.setdefault(device, (*counts, node.published[device].migration))

        node.messages.on_message = heard
        try:
            made.update(hardware.create("mtty-1") for _ in range(4))
            await node.settled()
            made.add(hardware.create("mdpy-vga"))
            await node.settled()
            hardware.create("mtty-1")
            await node.settled()
        finally:
            node.messages.on_message = None
        opens.take()
        names = {vfio.device_node(device).name for device in made}
    assert at_first.keys() == made
    for device, (opened, closed, migration) in at_first.items():
        assert (opened, closed) == (1, 1), device
        assert migration is not None, device
    assert {opens.opened[name] for name in names} == {1}


async def test_nothing_stays_open(node: Node) -> None:
    devices = [make() for make in MAKERS.values()]
    await node.settled()
    assert len(node.published) == len(devices)
    assert {file for file in node.agent.open_files() if file.startswith(("/dev/vfio", "/dev/iommu"))} == set()
    for device in devices:
        with vfio.opened(device):
            pass


async def test_a_device_that_somebody_else_has_open_is_served_and_not_known(node: Node) -> None:
    """It is not asked later either: it may be in use at any time from then on."""
    with node.agent.frozen():
        device = hardware.create("mtty-1")
        other = hardware.create("mtty-1")
        hold = vfio.opened(device)
        hold.__enter__()
    try:
        await node.settled()
        assert node.published[device].migration is None
        assert node.published[device].peer_to_peer is None
        assert node.published[other].migration == CAN
    finally:
        hold.__exit__(None, None, None)
    hardware.remove(other)
    await node.settled()
    assert node.published[device].migration is None


async def test_a_restarted_agent_does_not_open_what_a_pod_holds(node: Node) -> None:
    """It knows from the VFIONode what its forerunner was told, and asks the free device anew."""
    held, free = hardware.create("mtty-1"), hardware.create("mtty-2")
    await node.settled()
    await node.kubelet.admit("tenant-a", "holder", "compute", {f"{hardware.DOMAIN}/mtty-1": 1})
    try:
        await node.comes_true(lambda: node.published[held].allocated_to is not None)
        before = node.published
        with watched(NODES) as opens:
            await node.agent.stop()
            opens.take()
            assert opens.opened == {}
            await node.agent.start()
            await node.settled()
            opens.take()
        assert opens.opened == {vfio.device_node(free).name: 1}
        assert node.published == before
    finally:
        node.kubelet.release("tenant-a", "holder")


async def test_how_long_asking_takes(node: Node, figure: Figure) -> None:
    """In this process, through the product's own code: one device after another."""
    for kind in ("mtty-1", "nvme VF"):
        device = MAKERS[kind]()
        await node.settled()
        handle = Handle(device, vfio.group_node(device).name, vfio.device_node(device).name)
        seconds = []
        for _ in range(ASKED):
            start = time.perf_counter()
            assert isinstance(probe(handle, Path("/dev")), Migration)
            seconds.append(time.perf_counter() - start)
        figure(
            f"asking one device ({kind}) whether it can migrate, median",
            sorted(seconds)[ASKED // 2] * 1000,
            "ms",
        )
