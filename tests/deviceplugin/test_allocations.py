"""Who holds what, also while a kubelet that has just been restarted knows none of its pods."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from migcompat.api.vfionode import PodRef
from migcompat.engine.declaration import Declaration, Kind
from migcompat.kubelet.connection import Identity, KubeletError
from migcompat.kubelet.podresources import Allocations
from migcompat.sysfs.found import FoundDevice
from migcompat_deviceplugin import metrics
from migcompat_deviceplugin.allocations import (
    FAILING,
    FREE,
    HELD,
    PENDING,
    QUICK,
    QUICK_FOR,
    SETTLING,
    AllocationsPoller,
)
from migcompat_deviceplugin.inventory import Device
from migcompat_deviceplugin.state import State

from tests.deviceplugin.world import POOL, World, eventually, uuid

A, B = PodRef("tenant-a", "virt-launcher-vm-a"), PodRef("tenant-a", "virt-launcher-vm-b")
ONE, TWO = ("vfio/pool", "1"), ("vfio/pool", "2")


class Kubelet:
    """Answers as it is told; `restart` makes another one of it."""

    def __init__(self) -> None:
        self.started = 1
        self.holders: Allocations = {}
        self.now = 0.0
        self.calls = 0
        self.silent = False
        self.state = State()
        self.poller = AllocationsPoller(self, self.state, clock=lambda: self.now)

    def server(self) -> Identity | None:
        return (1, 1, self.started)

    async def allocations(self) -> Allocations:
        self.calls += 1
        if self.silent:
            raise KubeletError("no answer")
        return dict(self.holders)

    def restart(self) -> None:
        self.started += 1
        self.holders = {}

    async def said(self) -> Allocations | None:
        await self.poller.refresh()
        return self.state.allocations


async def test_a_freed_device_is_free_at_once() -> None:
    kubelet = Kubelet()
    kubelet.holders = {ONE: A, TWO: B}
    assert await kubelet.said() == {ONE: A, TWO: B}
    kubelet.holders = {TWO: B}
    assert await kubelet.said() == {TWO: B}


async def test_a_restarted_kubelet_frees_nothing_by_not_knowing_its_pods_yet() -> None:
    kubelet = Kubelet()
    kubelet.holders = {ONE: A, TWO: A}
    await kubelet.said()
    kubelet.restart()
    assert await kubelet.said() == {ONE: A, TWO: A}
    kubelet.holders = {ONE: B}
    assert await kubelet.said() == {ONE: B, TWO: A}, "whom it names counts"
    kubelet.now = SETTLING
    assert await kubelet.said() == {ONE: B}


async def test_who_would_open_a_device_hears_of_former_holders_too() -> None:
    kubelet = Kubelet()
    kubelet.holders = {ONE: A, TWO: A}
    await kubelet.said()
    kubelet.restart()
    kubelet.holders = {TWO: B}
    assert await kubelet.poller.holders() == {ONE: A, TWO: B}
    kubelet.now = SETTLING
    assert await kubelet.poller.holders() == {TWO: B}


async def test_the_guard_hears_only_what_the_kubelet_says() -> None:
    kubelet = Kubelet()
    kubelet.holders = {ONE: A}
    await kubelet.said()
    kubelet.restart()
    assert await kubelet.poller.refresh() == {}, "a pod that held the device is not the one that gets it now"


async def test_it_is_asked_closely_while_an_allocation_may_show_and_seldom_while_nobody_holds_a_device() -> (
    None
):
    kubelet = Kubelet()
    kubelet.state.set_inventory({"1": Device(FoundDevice("1", Kind.MDEV, "p", Declaration(Kind.MDEV)), "r")})
    await kubelet.said()
    assert kubelet.poller.interval() == QUICK, "an allocation to a forerunner may not show yet"
    kubelet.now = QUICK_FOR
    assert kubelet.poller.interval() == HELD
    kubelet.now = PENDING
    assert kubelet.poller.interval() == FREE

    kubelet.poller.stir()
    assert kubelet.poller.interval() == QUICK
    kubelet.now += PENDING
    kubelet.holders = {TWO: B}
    await kubelet.said()
    assert kubelet.poller.interval() == FREE, "a device of others"
    kubelet.holders = {ONE: A}
    await kubelet.said()
    assert kubelet.poller.interval() == HELD
    kubelet.holders = {}
    await kubelet.said()
    assert kubelet.poller.interval() == FREE


async def test_a_kubelet_that_does_not_answer_is_asked_again_soon_and_counted() -> None:
    failures = "migcompat_agent_pod_resources_failures_total"
    kubelet = Kubelet()
    kubelet.now, kubelet.silent = PENDING, True
    before = metrics.REGISTRY.get_sample_value(failures) or 0
    polling = asyncio.create_task(kubelet.poller.run())
    await eventually(lambda: kubelet.state.allocations_problem)
    polling.cancel()
    assert kubelet.poller.interval() == FAILING
    assert metrics.REGISTRY.get_sample_value(failures) == before + kubelet.calls


async def test_a_sign_of_an_allocation_has_it_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kubelet = Kubelet()
    monkeypatch.setattr(kubelet.poller, "interval", lambda: 3600.0)
    polling = asyncio.create_task(kubelet.poller.run())
    await eventually(lambda: kubelet.calls == 1)
    kubelet.poller.stir()
    await eventually(lambda: kubelet.calls == 2)
    polling.cancel()


async def test_the_checkpoint_and_the_kubelets_restart_are_such_signs(tmp_path: Path) -> None:
    kubelet, checkpoint = Kubelet(), tmp_path / "checkpoint"
    poller = AllocationsPoller(kubelet, kubelet.state, lambda: kubelet.now, checkpoint=checkpoint)
    kubelet.now = PENDING
    assert poller.interval() == FREE
    poller.look()
    assert poller.interval() == FREE, "nothing has changed"

    (tmp_path / "new").write_text("{}")
    (tmp_path / "new").rename(checkpoint)
    poller.look()
    assert poller.interval() == QUICK

    kubelet.now += PENDING
    poller.look()
    assert poller.interval() == FREE, "each sign counts once"
    kubelet.restart()
    poller.look()
    assert poller.interval() == QUICK


async def test_what_is_allocated_is_published_although_the_next_call_is_far_off(
    node: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.add(1)
    async with node.running() as agent:
        await node.registered()
        await eventually(lambda: agent.state.problem() is None)
        await eventually(lambda: agent.state.allocations == {})
        calm = [3600.0]
        interval = agent.poller.interval
        monkeypatch.setattr(agent.poller, "interval", lambda: calm.pop() if calm else interval())
        await eventually(lambda: not calm)
        await node.kubelet.admit("ns", "pod", "compute", {POOL: 1})
        await eventually(lambda: agent.state.allocations == {(POOL, uuid(1)): PodRef("ns", "pod")})
