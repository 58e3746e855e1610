"""What has gone while kopf's watch was interrupted is noticed at once, not at the next regular list."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from migcompat.fleet.fleet import Fleet
from migcompat.kube.answers import Listing
from migcompat.kube.errors import NotFound, Unreachable
from migcompat.kube.kinds import VMIS, Resource
from migcompat_operator.handlers import take
from migcompat_operator.metrics import Metrics
from migcompat_operator.mirror import Dirty, Mirror
from migcompat_operator.resync import AGAIN, EVERY, FIRST, QUIET, QUIET_LIMIT, Resync

from tests.support.fleets import vmi


class Cluster:
    """VMIs by name, listed by a client that counts; and the operator's mirror of them."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)
        self.version = 10
        self.objects = "5"
        self.now = 1000.0
        self.lists: Counter[str] = Counter()
        self.away = False
        self.installed = True
        self.mirror = Mirror(Fleet(), Dirty(lambda: None))
        self.resync = Resync(self, self.mirror, clock=lambda: self.now)  # type: ignore[arg-type]

    async def list(self, resource: Resource[Any], **_: str) -> Listing[Any]:
        """What the client would answer."""
        self.lists[resource.plural] += 1
        if self.away:
            raise Unreachable("no answer", "GET", "/apis")
        if resource is VMIS and not self.installed:
            raise NotFound(404, "NotFound", "the server could not find the requested resource")
        found = [vmi(name, "node-1") for name in sorted(self.names)] if resource is VMIS else []
        for item in found:
            item.metadata.resource_version = self.objects
        return Listing(found, str(self.version))

    def relist(self) -> None:
        """kopf's watch got 410: each object as an event of type None, nothing of those that have gone."""
        self.version += 1
        for name in sorted(self.names):
            item = vmi(name, "node-1")
            item.metadata.resource_version = self.objects
            event = {"type": None, "object": msgspec.to_builtins(item)}
            take(event, VMIS, self.mirror, Metrics(), self.resync.relisted)

    def known(self) -> set[str]:
        """The VMIs that the operator knows."""
        return {item.metadata.name for item in self.mirror.fleet._vmis.values()}

    async def after(self, seconds: float) -> int:
        """How often VMIs are listed once *seconds* have gone by."""
        before = self.lists[VMIS.plural]
        self.now += seconds
        await self.resync.list_due()
        return self.lists[VMIS.plural] - before


async def settled(*names: str) -> Cluster:
    """A cluster some time after the start."""
    cluster = Cluster(*names)
    await cluster.resync.prime()
    assert await cluster.after(FIRST) == 1
    return cluster


async def test_what_went_while_the_watch_was_interrupted_is_noticed_at_once() -> None:
    cluster = await settled("vm-a", "vm-b")
    cluster.names.discard("vm-b")
    others = sum(cluster.lists.values()) - cluster.lists[VMIS.plural]
    cluster.relist()
    assert cluster.known() == {"vm-a", "vm-b"}, "kopf does not say it"
    assert await cluster.after(QUIET) == 1
    assert cluster.known() == {"vm-a"}
    assert sum(cluster.lists.values()) - cluster.lists[VMIS.plural] == others, "only that kind"
    assert await cluster.after(EVERY * 0.8) == 0


async def test_a_long_list_is_followed_by_one_of_ours_not_by_many() -> None:
    cluster = await settled("vm-a")
    cluster.relist()
    assert await cluster.after(QUIET / 2) == 0
    cluster.relist()
    assert await cluster.after(QUIET / 2) == 0, "kopf's list goes on"
    listed = 0
    for _ in range(20):
        cluster.relist()
        listed += await cluster.after(QUIET_LIMIT / 20)
    assert listed == 1, "but not for ever"


async def test_before_everything_was_listed_once_nothing_is_scheduled() -> None:
    cluster = Cluster("vm-a")
    cluster.relist()
    await cluster.resync.prime()
    assert cluster.lists[VMIS.plural] == 1
    assert await cluster.after(QUIET) == 0


async def test_what_could_not_be_listed_is_listed_again_soon() -> None:
    cluster = await settled("vm-a", "vm-b")
    cluster.names.discard("vm-b")
    cluster.relist()
    cluster.away = True
    assert await cluster.after(QUIET) == 1
    cluster.away = False
    assert await cluster.after(AGAIN) == 1
    assert cluster.known() == {"vm-a"}


async def test_objects_go_with_their_crd_though_no_watch_says_so_and_new_ones_come() -> None:
    cluster = await settled("vm-a")
    cluster.installed = False
    cluster.relist()
    assert await cluster.after(QUIET) == 1
    assert cluster.known() == {"vm-a"}, "one answer may be a restarting API server's"
    assert await cluster.after(AGAIN) == 1
    assert cluster.known() == set()
    cluster.installed, cluster.objects = True, "7"
    assert await cluster.after(AGAIN) == 1
    assert cluster.known() == {"vm-a"}


async def test_what_went_at_the_start_is_noticed_although_kopf_has_listed() -> None:
    cluster = Cluster("vm-a")
    await cluster.resync.prime()
    cluster.relist()
    assert await cluster.after(QUIET) == 1
    assert await cluster.after(FIRST) == 1
