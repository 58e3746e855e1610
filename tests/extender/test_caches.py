"""The watches fill the fleet, and answers stop when they cannot be trusted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import msgspec
from aiohttp import web
from migcompat.api.compatibilitypolicy import CompatibilityPolicy
from migcompat.api.meta import ObjectMeta
from migcompat.fleet.fleet import Fleet
from migcompat_extender.caches import Caches
from migcompat_extender.refusals import GUARD_REFUSED, Refusals

from tests.extender.world import args, built, filtered
from tests.kube.fake_api import api, listing
from tests.support.fleets import declared, node, pod, refused, vfionode, vmi


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


class Leaving(Api):
    """Watches tell that everything listed has been deleted, once ``leave`` is set."""

    def __init__(self, items: dict[str, list[Any]]) -> None:
        super().__init__(items)
        self.leave = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return await super().answer(request)
        answer = web.StreamResponse()
        await answer.prepare(request)
        await self.leave.wait()
        for item in map(built, self.items[request.path.rsplit("/", 1)[1]]):
            await answer.write(json.dumps({"type": "DELETED", "object": item}).encode() + b"\n")
        await asyncio.sleep(60)
        return answer


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


async def test_pods_tell_what_guards_have_refused() -> None:
    fleet, refusals, server = Fleet(), Refusals(), Api(objects())
    server.items["pods"].append(refused("vm-a", "n2"))
    async with api(server.answer) as client:
        running = asyncio.create_task(Caches(client, fleet, refusals).run())
        await until(lambda: refusals.nodes("uid-vm-a") == {"n2": GUARD_REFUSED})
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_what_is_deleted_leaves_the_fleet() -> None:
    fleet, server = Fleet(), Leaving(objects())
    server.items["compatibilitypolicies"] = [CompatibilityPolicy(ObjectMeta(name="p"), msgspec.Raw(b"[]"))]
    async with api(server.answer) as client:
        caches = Caches(client, fleet)
        running = asyncio.create_task(caches.run())
        await until(lambda: caches.problem() is None)
        assert fleet.policies.problems
        server.leave.set()
        await until(lambda: fleet.vmi("tenant-a", "vm-a") is None)
        await until(lambda: not fleet.pods_of("uid-vm-a"))
        await until(lambda: fleet.node("n2") is None)
        await until(lambda: fleet.vfionode("n2") is None)
        await until(lambda: not fleet.policies.problems)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


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
