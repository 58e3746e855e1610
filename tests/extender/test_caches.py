"""The watches fill the fleet, and answers stop when they cannot be trusted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from aiohttp import web
from migcompat.fleet.fleet import Fleet
from migcompat_extender.caches import Caches

from tests.extender.world import args, built, filtered
from tests.kube.fake_api import api, listing
from tests.support.fleets import declared, node, pod, vfionode, vmi


def objects() -> dict[str, list[Any]]:
    holder = {"src": ("tenant-a", "virt-launcher-vm-a-src")}
    return {
        "nodes": [node("node-1"), node("n2")],
        "vfionodes": [
            vfionode("node-1", {"src": declared("1.1.0")}, allocated=holder),
            vfionode("n2", {"d": declared("1.1.0")}),
        ],
        "compatibilitypolicies": [],
        "virtualmachineinstances": [vmi("vm-a", "node-1")],
        "pods": [pod("vm-a", "node-1")],
    }


class Api:
    """Lists of *items*; watches stay silent. ``asked``: the selectors of the lists."""

    def __init__(self, items: dict[str, list[Any]], missing: Iterable[str] = ()) -> None:
        self.items, self.missing = items, set(missing)
        self.asked: dict[str, str] = {}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        plural = request.path.rsplit("/", 1)[1]
        if plural in self.missing:
            return web.json_response({"reason": "NotFound", "message": "no such kind"}, status=404)
        if "watch" in request.query:
            answer = web.StreamResponse()
            await answer.prepare(request)
            await asyncio.sleep(60)
            return answer
        self.asked[plural] = request.query.get("labelSelector", "")
        return listing(*map(built, self.items[plural]))


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_lists_fill_the_fleet() -> None:
    fleet, server = Fleet(), Api(objects())
    async with api(server.answer) as client:
        caches = Caches(client, fleet)
        assert caches.problem() == (
            "not listed yet: nodes, vfionodes.migcompat.io, compatibilitypolicies.migcompat.io, "
            "virtualmachineinstances.kubevirt.io, pods"
        )
        assert filtered(fleet, args(["n2"]), caches.problem)["NodeNames"] == []
        running = asyncio.create_task(caches.run())
        await until(lambda: caches.problem() is None)
        assert filtered(fleet, args(["n2"]), caches.problem)["NodeNames"] == ["n2"]
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    assert server.asked["pods"] == "kubevirt.io=virt-launcher", "other pods are not read"
    assert server.asked["nodes"] == ""


async def test_silence_makes_stale() -> None:
    fleet = Fleet()
    async with api(Api(objects()).answer) as client:
        caches = Caches(client, fleet, stale_after=0.2)
        running = asyncio.create_task(caches.run())
        await until(lambda: "no news" in (caches.problem() or ""))
        await asyncio.sleep(0.2)
        text = caches.problem()
        assert text is not None
        assert text.startswith("no news from kube-apiserver for 0.2 s of: nodes, vfionodes.migcompat.io")
        assert caches.problem() == text, "kube-scheduler counts equal texts"
        failed = filtered(fleet, args(["n2"]), caches.problem)["FailedAndUnresolvableNodes"]
        assert failed == {"n2": f"CachesNotReady: {text}"}
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_a_kind_of_ours_that_is_missing_is_named() -> None:
    async with api(Api(objects(), missing=["vfionodes"]).answer) as client:
        caches = Caches(client, Fleet())
        running = asyncio.create_task(caches.run())
        await until(lambda: caches.problem() == "not listed yet: vfionodes.migcompat.io")
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_kubevirt_may_be_installed_later() -> None:
    fleet, server = Fleet(), Api(objects(), missing=["virtualmachineinstances"])
    async with api(server.answer) as client:
        caches = Caches(client, fleet)
        running = asyncio.create_task(caches.run())
        await until(lambda: caches.problem() is None)
        assert filtered(fleet, args(["n2"]), caches.problem)["NodeNames"] == [], "the VM is not known"
        server.missing.clear()
        await until(lambda: fleet.vmi("tenant-a", "vm-a") is not None)
        assert filtered(fleet, args(["n2"]), caches.problem)["NodeNames"] == ["n2"]
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
