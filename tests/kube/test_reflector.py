"""The copy stays true whatever the connection does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from migcompat.api.cluster import Node
from migcompat.kube.backoff import Backoff
from migcompat.kube.client import Client
from migcompat.kube.kinds import NODES
from migcompat.kube.reflector import Reflector

from tests.kube.fake_api import Handler, api, line, listing, node, status, stream


class Copy:
    """A copy of nodes: name to resource version."""

    def __init__(self) -> None:
        self.nodes: dict[str, str] = {}
        self.drops: list[str] = []

    def put(self, obj: Node) -> None:
        if obj.metadata.name == "poison":
            raise KeyError("poison")
        self.nodes[obj.metadata.name] = obj.metadata.resource_version

    def drop(self, namespace: str, name: str) -> None:
        assert namespace == ""
        self.nodes.pop(name, None)
        self.drops.append(name)

    async def until(self, **expected: str) -> None:
        async with asyncio.timeout(20):
            while self.nodes != expected:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def reflected(
    handler: Handler, *, optional: bool = False
) -> AsyncIterator[tuple[Reflector[Node], Copy]]:
    """A running reflector of Nodes against a fake API, with short delays."""
    copy = Copy()
    async with api(handler, deadline=5) as client:
        reflector = Reflector(
            client, NODES, copy.put, copy.drop, optional=optional, backoff=Backoff(0.01, 0.02)
        )
        task = asyncio.create_task(reflector.run())
        try:
            yield reflector, copy
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def hold(request: web.Request, *parts: bytes) -> web.StreamResponse:
    """A watch that delivers *parts* and stays open."""
    answer = await stream(request, *parts)
    await asyncio.sleep(60)
    return answer


async def test_it_lists_then_follows_from_the_lists_version() -> None:
    watched = []

    async def handler(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return listing(node("a", 1), node("b", 2), version=5)
        watched.append(request.query["resourceVersion"])
        return await hold(
            request,
            line("MODIFIED", node("a", 6)),
            line("DELETED", node("b", 7)),
            line("ADDED", node("c", 8)),
        )

    async with reflected(handler) as (reflector, copy):
        assert reflector.trouble() == "nodes: not listed yet"
        await copy.until(a="6", c="8")
        assert reflector.synced.is_set()
        assert reflector.trouble() is None
        assert reflector.age() < 60
    assert watched == ["5"]


@pytest.mark.parametrize("ending", ["proper", "cut", "half"])
async def test_a_watch_that_ends_is_resumed_where_it_was(ending: str) -> None:
    asked = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.query.get("resourceVersion", "list"))
        if asked == ["list"]:
            return listing(node("a", 1), version=5)
        if len(asked) == 2:
            bookmark = line("BOOKMARK", {"metadata": {"resourceVersion": "11"}})
            rest = b'{"type": "ADDED", "object": {"metad' if ending == "half" else b""
            return await stream(request, line("MODIFIED", node("a", 9)), bookmark, rest, cut=ending == "cut")
        return await hold(request, line("MODIFIED", node("a", 12)))

    async with reflected(handler) as (_, copy):
        await copy.until(a="12")
    assert asked == ["list", "5", "11"]


@pytest.mark.parametrize("where", ["stream", "status"])
async def test_gone_lists_again_and_drops_what_went_meanwhile(where: str) -> None:
    lists = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal lists
        if "watch" not in request.query:
            lists += 1
            return (
                listing(node("a", 1), node("b", 1), version=5)
                if lists == 1
                else listing(node("b", 7), version=9)
            )
        if request.query["resourceVersion"] == "9":
            return await hold(request)
        gone = status(410, "Expired")
        return (
            await stream(request, line("ERROR", gone))
            if where == "stream"
            else web.json_response(gone, status=410)
        )

    async with reflected(handler) as (_, copy):
        await copy.until(b="7")
    assert copy.drops == ["a"]


async def test_a_continue_token_that_expires_starts_the_list_again() -> None:
    asked = []

    async def handler(request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            return await hold(request)
        asked.append(request.query.get("continue", ""))
        if len(asked) == 1:
            return listing(node("a"), more="old")
        if len(asked) == 2:
            return web.json_response(status(410, "Expired"), status=410)
        return listing(node("b"))

    async with reflected(handler) as (reflector, copy):
        await copy.until(b="1")
        await reflector.synced.wait()
    assert asked == ["", "old", ""]


async def test_errors_are_waited_out_and_the_copy_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    requests = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal requests
        requests += 1
        if requests in (1, 2, 4, 5):
            return web.json_response(status(500, "InternalError", "etcd is away"), status=500)
        if "watch" not in request.query:
            return listing(node("a", 1), version=3)
        return await hold(request, line("MODIFIED", node("a", 4)))

    with caplog.at_level(logging.WARNING):
        async with reflected(handler) as (_, copy):
            await copy.until(a="4")
    assert copy.drops == []
    assert requests == 6
    assert (
        "nodes: cannot list or watch, trying again: GET /api/v1/nodes: 500 InternalError: etcd is away"
        in caplog.text
    )


async def test_what_no_longer_decodes_is_dropped_and_comes_back() -> None:
    bad = {"metadata": {"name": "a", "resourceVersion": "6", "labels": 1}}
    repair = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return listing(node("a", 1), version=5)
        answer = await stream(request, line("MODIFIED", bad))
        await repair.wait()
        await answer.write(line("MODIFIED", node("a", 7)))
        return answer

    async with reflected(handler) as (_, copy):
        await copy.until()
        repair.set()
        await copy.until(a="7")
    assert "a" in copy.drops


async def test_a_callback_that_fails_costs_one_object_only(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await hold(request) if "watch" in request.query else listing(node("poison"), node("a"))

    async with reflected(handler) as (reflector, copy):
        await reflector.synced.wait()
        assert copy.nodes == {"a": "1"}
    assert "nodes /poison: cannot take it in, dropping it" in caplog.text


async def test_an_optional_kind_may_be_absent_come_and_go() -> None:
    installed, served = False, asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        if not installed:
            return web.Response(status=404, text="404 page not found")
        if "watch" in request.query:
            answer = await stream(request)
            await served.wait()
            return answer
        return listing(node("a", 1), version=5)

    async with reflected(handler, optional=True) as (reflector, copy):
        async with asyncio.timeout(20):
            await reflector.synced.wait()
        assert copy.nodes == {}
        assert reflector.trouble() is None
        installed = True
        await copy.until(a="1")
        installed = False
        served.set()
        await copy.until()
        assert reflector.trouble() is None
    assert copy.drops == ["a"]


async def test_any_other_kind_must_be_there() -> None:
    asked = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return web.Response(status=404, text="404 page not found")

    async with reflected(handler) as (reflector, _):
        async with asyncio.timeout(20):
            while asked < 3:
                await asyncio.sleep(0.01)
        assert reflector.trouble() == "nodes: not listed yet"


async def test_a_known_object_whose_change_cannot_be_taken_in_is_dropped() -> None:
    held: dict[str, str] = {}

    def put(item: Node) -> None:
        if item.metadata.resource_version != "1":
            raise ValueError("a bug")
        held[item.metadata.name] = item.metadata.resource_version

    async def handler(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return listing(node("a"), node("b"))
        return await hold(request, line("MODIFIED", node("a", 2)))

    async with api(handler) as client:
        reflector = Reflector(client, NODES, put, lambda _, name: held.pop(name))
        task = asyncio.create_task(reflector.run())
        async with asyncio.timeout(20):
            while held != {"b": "1"}:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_selectors_go_with_every_request() -> None:
    seen = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append((request.path, request.query["labelSelector"], request.query["fieldSelector"]))
        return await hold(request) if "watch" in request.query else listing()

    async with api(handler) as client:
        reflector = Reflector(client, NODES, print, print, labels="a=b", fields="metadata.name=x")
        task = asyncio.create_task(reflector.run())
        async with asyncio.timeout(20):
            while len(seen) < 2:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert set(seen) == {("/api/v1/nodes", "a=b", "metadata.name=x")}


def test_delays_double_up_to_the_most_and_start_again() -> None:
    backoff = Backoff(1.0, 8.0)
    for top in (1, 2, 4, 8, 8):
        assert top / 2 <= backoff.delay() <= top
    backoff.reset()
    assert backoff.delay() <= 1


async def test_client_needs_to_be_open() -> None:
    from migcompat.kube.config import Connection

    with pytest.raises(RuntimeError, match="async with"):
        await Client(Connection("http://127.0.0.1:1")).get(NODES, "n")
