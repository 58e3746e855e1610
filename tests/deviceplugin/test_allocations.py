"""Who holds what, also while a kubelet that has just been restarted knows none of its pods."""

from __future__ import annotations

from migcompat.api.vfionode import PodRef
from migcompat.kubelet.connection import Identity
from migcompat.kubelet.podresources import Allocations
from migcompat_deviceplugin.allocations import SETTLING, AllocationsPoller
from migcompat_deviceplugin.state import State

A, B = PodRef("tenant-a", "virt-launcher-vm-a"), PodRef("tenant-a", "virt-launcher-vm-b")
ONE, TWO = ("vfio/pool", "1"), ("vfio/pool", "2")


class Kubelet:
    """Answers as it is told; `restart` makes another one of it."""

    def __init__(self) -> None:
        self.started = 1
        self.holders: Allocations = {}
        self.now = 0.0
        self.state = State()
        self.poller = AllocationsPoller(self, self.state, clock=lambda: self.now)

    def server(self) -> Identity | None:
        return (1, 1, self.started)

    async def allocations(self) -> Allocations:
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
